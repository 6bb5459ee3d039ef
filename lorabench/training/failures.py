"""How a run ended before its time goes into its record, whichever rank it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError, PeerLostError, RankError, RunError, RunInterrupted, first_line
from lorabench.files import full_disk, is_full
from lorabench.machine.meters import is_out_of_memory
from lorabench.step.execution import out_of_memory_advice
from lorabench.training.record import RecordKeeper


@contextmanager
def recorded(setting: Setting, keeper: RecordKeeper, loading: bool = False) -> Iterator[None]:
    """Records how the block fails, before anything around it is closed: a tracker may take long, and a launcher that
    has seen another rank end does not wait.

    Args:
        loading: the block loads the model.

    Raises:
        RankError: memory ran out; says what to try.
    """
    try:
        yield
    except RunInterrupted as error:
        if loading:
            keeper.fail("interrupted", str(error), every_rank=True)
            raise
        then = f" after step {keeper.record['steps']}{how_to_go_on(keeper.folder)}"
        told = RunInterrupted(error.signal_number, then)
        keeper.fail("interrupted", str(told), every_rank=True)
        raise told from error
    except KeyboardInterrupt:
        keeper.fail("interrupted", "interrupted from the keyboard", every_rank=True)
        raise
    except RankError as error:
        keeper.fail("failed", str(error), every_rank=False)
        raise
    except PeerLostError as error:
        message = f"{error}{how_to_go_on(keeper.folder)}"
        keeper.fail("failed", message, every_rank=False)
        raise PeerLostError(message) from error
    except (ConfigError, RunError) as error:
        keeper.fail("failed", str(error), every_rank=True)
        raise
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            # Standard output: whoever read it, as `| head` does, has read enough.
            keeper.fail("interrupted", "nobody reads standard output any more", every_rank=False)
            raise
        message = _unwritten(error, keeper.folder)
        keeper.fail("failed", message, every_rank=False)
        raise RankError(message) from error
    except Exception as error:
        if is_out_of_memory(error):
            phase = "load" if loading else "eval"
            captured = keeper.record["execution"] == "captured"
            message = out_of_memory_advice(str(error), phase, setting.strategy.meets_in_steps, captured=captured)
            keeper.fail("failed", message, every_rank=False)
            raise RankError(message) from error
        keeper.fail("failed", f"{type(error).__name__}: {error}", every_rank=False)
        raise


def _unwritten(error: OSError, folder: Path) -> str:
    """What a file says that could not be written, or read; without its name where the error has none."""
    # Standard output may be what is full.
    if error.filename is None and is_full(folder):
        return f"{folder}: {full_disk(error, folder)}"
    where = "" if error.filename is None else f"{error.filename}: "
    full = None if error.filename is None else full_disk(error, folder)
    return f"{where}{full or error.strerror or first_line(error)}"


def how_to_go_on(folder: Path) -> str:
    """What to do after a stop."""
    return f"; the same command with --output-dir {folder} --resume goes on"
