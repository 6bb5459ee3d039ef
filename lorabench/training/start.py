"""The way into a run: from a configuration to its end, for the command line and for Python alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabench.catalog.models import MODELS
from lorabench.config.checks import looks_into_output_dir
from lorabench.config.run_config import ModelConfig, RunConfig, RunOptions
from lorabench.data.task import load_task
from lorabench.interrupts import raise_again
from lorabench.machine.gpus import check_driver
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.machine.stages import Stages, process_start
from lorabench.models.source import local_source
from lorabench.results.ownership import Ownership
from lorabench.training.refusals import refuse_early, refuse_other_data


def start(config: RunConfig, in_process: bool = False) -> tuple[Path, dict[str, Any]]:
    """Run to the end; every rank calls this.

    Args:
        in_process: the process is not the run's own: it has been there before, and goes on after it.

    Returns:
        The folder with the results, and the run's record.

    Raises:
        ConfigError: what was asked for cannot be done; nothing has been written.
        RunError: the run failed later; `run.json` says so.
        RunInterrupted: a signal asked it to stop; a checkpoint has been saved.
    """
    stages = Stages() if in_process else Stages(process_start())
    stages.done("process")
    with owning(config.run) as ownership:
        check_driver()
        refuse_other_data(config)
        if needs_hub(config.model):
            prefer_cache_if_unreachable()
        data = load_task(config.data, config.optim.seed)
        refuse_early(config, data)
        stages.done("rows")
        # Heavy imports, only for input that is known to be good.
        from lorabench.distributed.accelerator import leave_launch
        from lorabench.training.run import execute

        raise_again()
        stages.done("imports")
        try:
            return execute(config, data, stages, ownership)
        finally:
            if in_process:
                leave_launch()


@contextmanager
def owning(options: RunOptions) -> Iterator[Ownership]:
    """The lock of the run's folder, given back at the end.

    A run that goes on takes it here, before anything is loaded; that of a new run is taken when its folder is made.

    Raises:
        ConfigError: another process holds it.
    """
    ownership = Ownership()
    try:
        if options.resume and options.output_dir is not None and looks_into_output_dir():
            ownership.take(options.output_dir)
        yield ownership
    finally:
        ownership.release()


def needs_hub(config: ModelConfig) -> bool:
    """Whether the model comes from the Hub: not a local folder, an installed package or a known shape."""
    if config.weights == "random" and config.model in MODELS:
        return False
    return not Path(local_source(config.model, config.revision)).is_dir()
