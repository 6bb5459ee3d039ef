"""Training and prediction from Python: what the command line does, for a script or a notebook.

Errors are exceptions: `ConfigError` for what cannot be done, `RunError` for a run that fails, `RunInterrupted` for one
that was asked to stop and has left a checkpoint.
"""

import inspect
import operator
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from lorabench.catalog.settings import Settings
from lorabench.config.keywords import Flags, build_run_config
from lorabench.config.run_config import RunConfig, flag_types
from lorabench.data.given_texts import list_texts
from lorabench.data.task import Rows, text_rows
from lorabench.errors import ConfigError
from lorabench.machine.libraries import as_guest
from lorabench.training.prediction import (
    PREDICT_BATCH_SIZE,
    FinishedRun,
    calibrated_probabilities,
    classes_and_probabilities,
)
from lorabench.training.start import start
from lorabench.training.tuning import AUTO

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


Texts = Iterable[str] | Iterable[tuple[str, str]]


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
        label_at_threshold: of two classes, the one by the threshold; None without one.
        calibrated: probabilities by class with the temperature; None without one.
    """

    label: str
    probabilities: dict[str, float]
    label_at_threshold: str | None = None
    calibrated: dict[str, float] | None = None


def train(config: str | Path | None = None, **flags: Unpack[Flags]) -> Result:
    """Fine-tune a classifier with LoRA on this process, or on every process of the launch that this one belongs to.

    Args:
        config: a YAML file of flags, such as the `config.yaml` of another run; `flags` win over it.
        flags: those of `lorabench train`, with underscores: `model="minilm", task="sample", epochs=1`. What is not
            given has the value that it has on the command line.

    Raises:
        ConfigError: what was asked for cannot be done; nothing has been written.
        RunError: the run failed later; `run.json` says why.
        RunInterrupted: a signal, or the notebook's stop button, ended the training; there is a checkpoint.
        KeyboardInterrupt: the stop button, before the training or after it.
    """
    resolved = build_run_config(flags, config)
    with as_guest():
        folder, record = start(resolved, in_process=True)
    return Result(folder, record)


class Predictor:
    """The best adapter of a finished run, loaded once for any number of calls.

        predictor = lorabench.Predictor("runs/first")
        predictor.predict(["Smoke over the harbour."])

    Args:
        run: the run's folder, or its `run.json`. A warning says so where the run was not completed.
        threshold: of two classes, the least probability of the positive one for `Prediction.label_at_threshold`:
            "tuned", the run's own; "auto", that if there is one; a number from 0 to 1; "none".
        temperature: what logits are divided by for `Prediction.calibrated`: the same words, or a number above 0.
        trust_remote_code: run Python code that comes with the base model.

    Attributes:
        labels: the run's classes, in the order of the probabilities.

    Raises:
        ConfigError: the run has no adapter, no threshold or temperature where one is asked for, or its base model
            cannot be had.
        RunError: the model does not fit into memory.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        threshold: str | float = AUTO,
        temperature: str | float = AUTO,
        trust_remote_code: bool = False,
    ) -> None:
        finished = _finished(run)
        _warn(finished)
        self._run = finished.tuned(threshold, temperature)
        self.labels = self._run.labels
        with as_guest():
            # Heavy imports, only for a run that is known to be good.
            from lorabench.training.predictor import RowPredictor

            self._predictor = RowPredictor(self._run, trust_remote_code)

    def predict(self, texts: Texts, *, batch_size: int = PREDICT_BATCH_SIZE) -> list[Prediction]:
        """Labels and probabilities of `texts`, in their order.

        Args:
            texts: a list or anything else that gives them in order, gone through once: one text each, with a template
                the finished one, or pairs of them for a run that was trained on pairs.
            batch_size: rows per forward pass, where they are padded; results do not depend on it.

        Raises:
            ConfigError: no list of texts; a text is empty, or no pair where one is expected.
            RunError: not even one text fits into memory.
        """
        rows = _rows(self._run, texts, batch_size)
        if not rows:
            return []
        with as_guest():
            logits = self._predictor.logits(rows, "the texts", batch_size).logits
        chosen, probabilities = classes_and_probabilities(logits)
        tuning = self._run.tuning
        calibrated = calibrated_probabilities(logits, tuning)
        found = []
        for place, (index, values) in enumerate(zip(chosen, probabilities, strict=True)):
            decided = tuning.decide(values)
            prediction = Prediction(
                self.labels[index],
                self._by_class(values),
                None if decided is None else self.labels[decided],
                None if calibrated is None else self._by_class(calibrated[place]),
            )
            found.append(prediction)
        return found

    def _by_class(self, probabilities: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.labels, probabilities, strict=True))


def predict(
    run: str | Path,
    texts: Texts,
    *,
    batch_size: int = PREDICT_BATCH_SIZE,
    threshold: str | float = AUTO,
    temperature: str | float = AUTO,
    trust_remote_code: bool = False,
) -> list[Prediction]:
    """Labels and probabilities of `texts`, in their order, by the best adapter of a finished run.

    The model is loaded anew in each call: for several calls, make a `Predictor`.

    Args:
        run: the run's folder.
        texts: see `Predictor.predict`.
        batch_size: rows per forward pass, where they are padded; results do not depend on it.
        threshold: see `Predictor`; so is `temperature`.
        trust_remote_code: run Python code that comes with the base model.

    Raises:
        ConfigError: see `Predictor`; no list of texts; a text is empty, or
            no pair where one is expected.
        RunError: the model, or one text, does not fit into memory.
    """
    finished, given = _finished(run).tuned(threshold, temperature), list_texts(texts)
    if not _rows(finished, given, batch_size):
        return []
    predictor = Predictor(run, threshold=threshold, temperature=temperature, trust_remote_code=trust_remote_code)
    return predictor.predict(given, batch_size=batch_size)


def _finished(run: str | Path) -> FinishedRun:
    """The run in a folder. Raises `ConfigError` where it cannot be used, or where `run` is no path."""
    if not isinstance(run, str | os.PathLike) or run == "":
        raise ConfigError(f'run={run!r}: expected the path of a run\'s folder, as in "runs/first"')
    return FinishedRun.read_loadable(Path(os.path.expanduser(run)))


def _warn(run: FinishedRun) -> None:
    """What the command line prints of the run."""
    for remark in run.remarks():
        warnings.warn(remark, stacklevel=3)


def _rows(run: FinishedRun, texts: Texts, batch_size: int) -> Rows:
    try:
        size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ConfigError(f"batch_size={batch_size!r}: expected a whole number of at least 1")
    return text_rows(texts, run.pairs)


def load(run: str | Path, *, trust_remote_code: bool = False) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    """The best adapter of a finished run on its base model, as PEFT makes it, in evaluation mode; and its tokenizer.

    On the GPU in the run's precision if there is one, else in float32.

    Raises:
        ConfigError: the run has no adapter, or its base model cannot be had.
    """
    finished = _finished(run)
    _warn(finished)
    with as_guest():
        from lorabench.training.predictor import load_model

        return load_model(finished, trust_remote_code)


def _signature() -> inspect.Signature:
    """Every flag by name, for `help` and for completion in a notebook.

    With its default, or `...` where model and task have defaults of their own for it.
    """
    defaults: Mapping[str, Any] = {
        name: ... if name in Settings.__annotations__ else value
        for section in vars(RunConfig()).values()
        for name, value in vars(section).items()
    }
    first = inspect.signature(train).parameters["config"]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint)
        for name, hint in flag_types().items()
    ]
    return inspect.Signature([first, *flags], return_annotation=Result)


train.__signature__ = _signature()  # pyright: ignore[reportFunctionMemberAccess]
