"""Training and prediction from Python: what the command line does, for a script or a notebook.

Errors are exceptions: `ConfigError` for what cannot be done, `RunError` for a run that fails, `RunInterrupted` for one
that was asked to stop and has left a checkpoint.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from lorabench.config.keywords import Flags, build_run_config, flag_types
from lorabench.config.run_config import RunConfig
from lorabench.data.task import text_rows
from lorabench.errors import ConfigError
from lorabench.machine.libraries import quiet_libraries
from lorabench.training.start import start

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from lorabench.training.prediction import FinishedRun
    from lorabench.training.predictor import Predictor


@dataclass(frozen=True)
class Result:
    """A run that is completed.

    Attributes:
        folder: with `run.json`, `metrics.jsonl`, `curves.png`, `adapter/` and `checkpoints/`.
        record: the content of `run.json`.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)

    @property
    def scores(self) -> dict[str, Any] | None:
        """The best evaluation: scores, loss, step and epoch; None for random weights, whose scores mean nothing."""
        return self.record["best"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Attributes:
        label: the most probable class.
        probabilities: by class, in the order of the run's classes.
    """

    label: str
    probabilities: dict[str, float]


def train(**flags: Unpack[Flags]) -> Result:
    """Fine-tune a classifier with LoRA on this process, or on every process of the launch that this one belongs to.

    Args:
        flags: those of `lorabench train`, with underscores: `model="minilm", task="sample", epochs=1`. What is not
            given has the value that it has on the command line.

    Raises:
        ConfigError: what was asked for cannot be done; nothing has been written.
        RunError: the run failed later; `run.json` says why.
        RunInterrupted: a signal, or the notebook's stop button, ended it; there is a checkpoint to go on from.
    """
    with _quiet():
        folder, record = start(build_run_config(flags), in_process=True)
    return Result(folder, record)


def predict(
    run: str | Path, texts: Sequence[str], *, batch_size: int = 32, trust_remote_code: bool = False
) -> list[Prediction]:
    """Labels and probabilities of `texts`, in their order, by the best adapter of a finished run.

    Args:
        run: the run's folder.
        batch_size: rows per forward pass, where they are padded; results do not depend on it.
        trust_remote_code: run Python code that comes with the base model.

    Raises:
        ConfigError: the run has no adapter, its base model cannot be had, or a text is empty.
    """
    if isinstance(texts, str):
        raise ConfigError("texts: expected a list of texts, found one text")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected a whole number of at least 1")
    finished, rows = _read(run), text_rows(texts)
    if not rows:
        return []
    with _quiet():
        predictor = _load(finished, trust_remote_code)
        from lorabench.step.loss import LOSS

        probabilities = LOSS.probabilities(predictor.logits(rows, "the texts", batch_size)).tolist()
    named = [dict(zip(finished.labels, values, strict=True)) for values in probabilities]
    return [Prediction(max(values, key=values.__getitem__), values) for values in named]


def load(run: str | Path, *, trust_remote_code: bool = False) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    """The best adapter of a finished run on its base model, as PEFT makes it, in evaluation mode; and its tokenizer.

    On the GPU in the run's precision if there is one, else in float32.

    Raises:
        ConfigError: the run has no adapter, or its base model cannot be had.
    """
    with _quiet():
        predictor = _load(_read(run), trust_remote_code)
    return predictor.model, predictor.tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, libraries are quiet, as on the command line; filters of warnings are the caller's own again outside."""
    with warnings.catch_warnings():
        quiet_libraries()
        yield


def _read(run: str | Path) -> "FinishedRun":
    from lorabench.training.prediction import FinishedRun

    return FinishedRun.read(Path(run))


def _load(finished: "FinishedRun", trust_remote_code: bool) -> "Predictor":
    # Heavy imports, only for input that is known to be good.
    from lorabench.training.predictor import Predictor

    return Predictor(finished, trust_remote_code)


def _signature() -> inspect.Signature:
    """Every flag by name with its default, for `help` and for completion in a notebook."""
    defaults: Mapping[str, Any] = {
        name: value for section in vars(RunConfig()).values() for name, value in vars(section).items()
    }
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint)
        for name, hint in flag_types().items()
    ]
    return inspect.Signature(flags, return_annotation=Result)


train.__signature__ = _signature()  # pyright: ignore[reportFunctionMemberAccess]
