"""Which of a data set's splits are trained on, evaluated and tested: those that are named, else those whose names say.

A name that could be meant in two ways is asked for; a split that nobody reads is said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorabench.config.run_config import DataConfig
from lorabench.errors import ConfigError, IssueList
from lorabench.wording import named

# Names that data sets give their splits, the usual one first.
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}


# Words in names of files whose rows are to be scored, though no split is called so: they are no training rows.
_SCORED = (
    *("holdout", "heldout", "gold", "golden", "goldstandard", "unseen", "blind", "benchmark", "leaderboard", "ood"),
    *("evaluation", "evaluate", "validate", "development", "devel", "devtest", "testdev"),
)
_TWO_WORDS = re.compile(r"(hold|held|gold)[_.\-\s]+(out|standard)")
# What stands behind such a word in one with it: dev2, testset, valdata.
_BEHIND = re.compile(r"(?:set|split|data|file|rows|s)?\d*$")


def split_in_name(stem: str) -> str | None:
    """The first word in a file's name that says a split, as `test` in `my_test-00000-of-00001`; None without one.

    A name that says several, `train` among them, is that of training rows.
    """
    return _first_word(_words(stem))


def scored_in_name(stem: str) -> str | None:
    """The first word in a file's name by which its rows are to be scored, and not trained on, as `holdout` or `test2`.

    None without one, and where it says training, too.
    """
    names = *(name for names in _NAMES.values() for name in names), *_SCORED
    words = _words(_TWO_WORDS.sub(r"\1\2", stem.lower()))
    known = [word if word in names else _BEHIND.sub("", word, count=1) for word in words]
    if _first_word(known) in _NAMES["train"]:
        return None
    return next((word for word in known if word in names), None)


def split_of_word(word: str) -> str | None:
    """The split that a word names alone; `scored` of another for rows that are not trained on; None of other words."""
    word = word.strip().lower()
    named = next((split for split, names in _NAMES.items() if word in names), None)
    return named or ("scored" if word in _SCORED else None)


def _words(stem: str) -> list[str]:
    return re.split(r"[_.\-\s]+", stem.lower())


def _first_word(words: Sequence[str]) -> str | None:
    """The first one that names a split; one for training, where there is any."""
    training = next((word for word in words if word in _NAMES["train"]), None)
    return training or next((word for word in words if any(word in names for names in _NAMES.values())), None)


def is_asked(name: str, config: DataConfig) -> bool:
    """Whether a split of a data set is one by its whole name, or a flag names it."""
    flags = (config.train_split, config.validation_split, config.test_split)
    named_by_flag = {part.split("[")[0].strip() for spec in flags if spec for part in (spec, *spec.split("+"))}
    return name in named_by_flag or any(name.lower() in words for words in _NAMES.values())


@dataclass(frozen=True)
class Part:
    """Rows of a split: those from `start` to before `stop`.

    Attributes:
        name: of the split in the data set.
        whole: whether these are all of its rows.
    """

    name: str
    start: int
    stop: int
    whole: bool

    def __str__(self) -> str:
        return self.name if self.whole else f"{self.name}[{self.start}:{self.stop}]"


def choose_parts(
    origin: str, rows: Mapping[str, int], config: DataConfig, wanted: Sequence[str], unread: Sequence[str] = ()
) -> tuple[dict[str, list[Part]], list[str]]:
    """The parts that make up each of the wanted splits, and what the user is told of the choice.

    Args:
        origin: the flag and value that named the data set, for messages.
        rows: how many rows each of the data set's splits has.
        wanted: of `train`, `validation` and `test`; the others come from files or are not wanted.
        unread: files that could hold rows and belong to no split.

    Raises:
        ConfigError: a split that is named is not there, there is no training split, several could be the validation
            split, or rows are in two splits; all of it together.
    """
    issues = IssueList()
    asked = {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}
    parts: dict[str, list[Part]] = {}
    remarks: list[str] = []
    for split in wanted:
        # A split that the training rows are said to be is not taken by its name for another one.
        taken = [part.name for part in parts.get("train", ()) if part.whole]
        left = {name: count for name, count in rows.items() if name not in taken}
        try:
            chosen, remark = _choose(origin, split, asked[split], rows if asked[split] else left)
        except ConfigError as error:
            files = unread if split == "train" and not asked[split] else ()
            other = f", or --{split}-file with a file that is not read: {named(files)}" if files else ""
            issues.extend(f"{issue}{other}" for issue in error.issues)
            continue
        if chosen:
            parts[split] = chosen
        remarks += remark
    issues.raise_if_any()
    _refuse_overlap(origin, parts)
    read = {part.name for chosen in parts.values() for part in chosen}
    left_out = [*(name for name in rows if name not in read), *unread]
    if left_out:
        remarks.append(f"{origin}: not read: {named(left_out)}")
    return parts, remarks


def _choose(origin: str, split: str, spec: str | None, rows: Mapping[str, int]) -> tuple[list[Part], list[str]]:
    if spec is not None:
        return _parse(origin, split, spec, rows), []
    found = [name for name in rows if name.lower() in _NAMES[split]]
    if not found:
        found = [name for name in rows if re.split(r"[_.\-]", name.lower())[0] in _NAMES[split]]
    flag, there = f"--{split}-split", named(rows) or "none"
    if not found and split == "train":
        raise ConfigError(f"{origin}: no `train` split, found {there}; expected {flag} with one of them")
    if len(found) > 1 and split == "test":
        return [], []
    if len(found) > 1:
        raise ConfigError(f"{origin}: {' and '.join(found)} could be the {split} split; expected {flag} with one")
    if not found:
        return [], []
    name = found[0]
    remark = [] if name.lower() in _NAMES[split] else [f"{origin}: {name} is the {split} split"]
    return [Part(name, 0, rows[name], whole=True)], remark


def _parse(origin: str, split: str, spec: str, rows: Mapping[str, int]) -> list[Part]:
    """`name`, or in the way of `datasets` a range of its rows, or several: `train[:90%]`, `train+validation`."""
    flag, known = f"--{split}-split {spec}", f"the splits are {named(rows) or 'none'}"
    if spec in rows:
        return [Part(spec, 0, rows[spec], whole=True)]
    names = [name.split("[")[0].strip() for name in spec.split("+")]
    missing = [name for name in names if name not in rows]
    if missing:
        raise ConfigError(f"{flag}: {origin} has no split {named(missing)}; {known}")
    from datasets import ReadInstruction

    try:
        found = ReadInstruction.from_spec(spec).to_absolute(dict(rows))
    except (ValueError, AssertionError):
        raise ConfigError(f"{flag}: expected a split, or rows of it as in {names[0]}[:90%]; {known}") from None
    parts = [
        Part(item.splitname, item.from_, item.to, item.from_ == 0 and item.to == rows[item.splitname])
        for item in found
    ]
    if any(part.start >= part.stop for part in parts):
        raise ConfigError(f"{flag}: no rows; {origin} has {', '.join(f'{name} {rows[name]}' for name in names)}")
    return parts


def _refuse_overlap(origin: str, parts: Mapping[str, Sequence[Part]]) -> None:
    """Rows that are in two splits, or twice in one."""
    taken: list[tuple[str, Part]] = []
    for split, chosen in parts.items():
        for part in chosen:
            for other, before in taken:
                if part.name == before.name and part.start < before.stop and before.start < part.stop:
                    raise ConfigError(
                        f"{origin}: rows of {part.name} in --{other}-split {before} and --{split}-split {part}; "
                        "expected rows in one of them only"
                    )
            taken.append((split, part))
