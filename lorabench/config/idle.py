"""Flags that change nothing beside the others, and values that may not be what was meant: said, not refused."""

import re
from collections.abc import Iterator

from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import DataConfig, OptimConfig, RunConfig, RunOptions
from lorabench.config.template import marks_of_others
from lorabench.config.values import flag_word

_DOUBTFUL_RATE = 0.1
_ESCAPE = re.compile(r"\\[nrt]")


def config_notes(config: RunConfig) -> list[str]:
    """One line for each, for the start of a run and for a dry run. A value that is the default is none of them."""
    return [
        *_idle_flags(config),
        *_default_training_rows(config.data),
        *_doubtful_rate(config.optim),
        *_escapes(config.data.template),
        *_marks_of_others(config.data.template),
    ]


def _idle_flags(config: RunConfig) -> Iterator[str]:
    run, usual = config.run, RunOptions()
    if run.track == "none":
        for name in ("track_project", "track_name", "track_tags", "track_group"):
            value = getattr(run, name)
            if value != getattr(usual, name):
                yield f"{flag_word(name)} {value}: without effect: no tracker is named (--track)"
    if config.model.weights == "random":
        for name in ("test_file", "test_split"):
            value = getattr(config.data, name)
            if value is not None:
                yield f"{flag_word(name)} {value}: without effect: random weights have no predictions to score"
    stopping, epochs = run.early_stopping, config.optim.epochs
    if stopping is not None and stopping >= epochs:
        yield f"--early-stopping {stopping}: without effect: the run has {epochs} epochs"
    optim = config.optim
    preset = resolve_defaults(config.model.model, config.data.task, recipe=optim.recipe).optim
    if optim.lr_scheduler == "constant" and optim.warmup_ratio != preset.warmup_ratio:
        yield (
            f"--warmup-ratio {optim.warmup_ratio:g}: without effect: --lr-scheduler constant has no warm-up; "
            "constant_with_warmup has"
        )


def _default_training_rows(data: DataConfig) -> Iterator[str]:
    """Files of rows beside the default task, which nobody need have asked for."""
    given = {"--validation-file": data.validation_file, "--test-file": data.test_file}
    files = [f"{flag} {path}" for flag, path in given.items() if path is not None]
    if files and data.train_file is None and data.task == DataConfig().task:
        yield f"{' '.join(files)}: no --train-file is given: this trains on --task {data.task}"


def _doubtful_rate(optim: OptimConfig) -> Iterator[str]:
    """A learning rate by which nothing is learnt: most likely the minus of its exponent was lost."""
    if optim.learning_rate >= _DOUBTFUL_RATE:
        yield f"--learning-rate {optim.learning_rate:g}: far above the rates that LoRA learns at (1e-5 to 1e-2)"


def _escapes(template: str | None) -> Iterator[str]:
    """Line breaks and tabs that no shell has made of a backslash and a letter."""
    found = list(dict.fromkeys(_ESCAPE.findall(template or "")))
    if found:
        said = "a backslash and a letter in each text; in a shell, $'...' makes it one character"
        yield f"--template {template!r}: {' and '.join(found)}: {said}"


def _marks_of_others(template: str | None) -> Iterator[str]:
    """What looks like a column in another language for templates."""
    found = marks_of_others(template or "")
    if found:
        shown = " and ".join("the $ before a column" if mark == "${" else repr(mark) for mark in found)
        stands = "stands" if len(found) == 1 else "stand"
        yield f"--template {template!r}: {shown} {stands} in each text as written; a column is a name in single braces"
