"""From the rows of the files to those of a run: duplicates dropped, validation rows held out, samples drawn.

Rows go by their numbers here; `data.task` has the rows themselves.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from lorabench.config.run_config import DataConfig
from lorabench.data.findings import Dropped, Findings, count_conflicts, count_shared, keep_first, keep_unshared
from lorabench.data.splits import draw, hold_out
from lorabench.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Division:
    """Row numbers of what a run trains on and is validated on.

    Attributes:
        labelled: of the training table, all rows but those that were dropped before any were held out.
        train: of the training table.
        validation: of the training table where `findings.held_out`, else of the validation table.
        findings: what was found on the way.
    """

    labelled: list[int]
    train: list[int]
    validation: list[int]
    findings: Findings


def divide(
    origin: str,
    texts: Mapping[str, Sequence[Hashable]],
    labels: Mapping[str, Sequence[int]],
    config: DataConfig,
    seed: int,
) -> Division:
    """Drop, hold out and draw, as the configuration asks.

    Args:
        origin: where the training rows come from, for messages.
        texts: of each table that there is (train, validation, test), what the model reads.
        labels: class indices of train and, if there is that table, of validation.
        seed: draws the rows of `--max-train-samples` and `--max-eval-samples`.

    Raises:
        ConfigError: the training rows cannot be split, or a flag has nothing to do.
    """
    dropped = None
    labelled = list(range(len(texts["train"])))
    if config.drop_duplicates:
        labelled, dropped = _drop_duplicates(texts, labels["train"])
    held_out = "validation" not in texts
    source = "train" if held_out else "validation"
    held_out_share = None
    train, validation = labelled, list(range(len(texts[source])))
    if held_out:
        share, method = config.validation_share, config.split
        parts = hold_out(origin, _at(labels["train"], labelled), share, config.split_seed, method)
        train, validation = (_at(labelled, part) for part in parts)
        held_out_share = len(validation) / len(labelled)
        if dropped is not None:  # equal texts with unlike labels stay, and may have come to stand on both sides
            unshared = keep_unshared(_at(texts["train"], train), _at(texts["train"], validation))
            dropped = replace(dropped, shared=dropped.shared + len(train) - len(unshared))
            train = _at(train, unshared)
    train = _at(train, draw(_at(labels["train"], train), config.max_train_samples, seed, config.split))
    validation = _at(validation, draw(_at(labels[source], validation), config.max_eval_samples, seed, config.split))
    findings = Findings(
        held_out=held_out,
        shared=_count_shared(texts, train, {**texts, "validation": _at(texts[source], validation)}),
        conflicts=count_conflicts(_at(texts["train"], labelled), _at(labels["train"], labelled)),
        dropped=dropped,
        held_out_share=held_out_share,
        test_in_validation=count_shared(set(_at(texts[source], validation)), texts.get("test", ())),
    )
    return Division(labelled, train, validation, findings)


def check_split_flags(config: DataConfig, validation_origin: str) -> None:
    """Refuse flags that say how to hold rows out where validation rows are there.

    Raises:
        ConfigError: names the flag.
    """
    defaults = DataConfig()
    given = {
        f"--validation-share {config.validation_share}": config.validation_share != defaults.validation_share,
        f"--split-seed {config.split_seed}": config.split_seed != defaults.split_seed,
    }
    issues = [
        f"{flag}: {validation_origin} is there, so no rows are held out; expected one of the two"
        for flag, is_given in given.items()
        if is_given
    ]
    if issues:
        raise ConfigError(issues)


def _drop_duplicates(texts: Mapping[str, Sequence[Hashable]], labels: Sequence[int]) -> tuple[list[int], Dropped]:
    """The training rows that stay, and how many do not.

    Before rows are held out: equal ones would come to stand on both sides by chance.
    """
    others = [text for split, column in texts.items() if split != "train" for text in column]
    unshared = keep_unshared(texts["train"], others)
    first = keep_first(_at(texts["train"], unshared), _at(labels, unshared))
    return _at(unshared, first), Dropped(len(texts["train"]) - len(unshared), len(unshared) - len(first))


def _count_shared(
    texts: Mapping[str, Sequence[Hashable]], train: Sequence[int], taken: Mapping[str, Sequence[Hashable]]
) -> dict[str, int]:
    """By split, the rows whose text stands in the training rows, too."""
    in_train = set(_at(texts["train"], train))
    return {split: count_shared(in_train, taken[split]) for split in ("validation", "test") if split in taken}


def _at(values: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [values[i] for i in indices]
