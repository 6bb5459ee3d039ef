"""Files of a local folder of data: those that are its splits by their names, parts of one table, and all others."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lorabench.data.file_format import FileFormat
from lorabench.data.readers import data_suffix, holds_no_rows, is_near_data
from lorabench.data.split_names import scored_in_name, split_in_name
from lorabench.errors import ConfigError
from lorabench.wording import listed

# What libraries and people put beside data, by stems in small letters.
_NO_ROWS = frozenset(
    (
        "dataset_info",
        "dataset_infos",
        "dataset_dict",
        "state",
        "readme",
        "license",
        "licence",
        "notice",
        "requirements",
    )
)
# `train-00000-of-00002`, as libraries name the parts of a table; of few digits, or they are no such numbers.
_PART = re.compile(r"(?P<before>(?:.*[-_. ])?)(?P<number>\d{1,5})(?P<of>[-_ ]of[-_ ])(?P<count>\d{1,5})")


def plain_files(origin: str, folder: Path, given: FileFormat) -> dict[str, list[Path]]:
    """Split -> its file, of a folder that has one file for each, as `train.csv`; empty where it is laid out otherwise.

    Raises:
        ConfigError: a split has two files.
    """
    if any(path.is_dir() and _holds_data(path) for path in folder.iterdir()) or _says_its_layout(folder):
        return {}
    files: dict[str, Path] = {}
    for path in rows_alone(sorted(path for path in folder.iterdir() if _is_data(path)), given):
        suffix = data_suffix(path) or ""
        stem = path.name[: -len(suffix)]
        if stem in files:
            raise ConfigError(f"{origin}: {files[stem].name} and {path.name} could both be the split {stem}")
        files[stem] = path
    if len(files) == 1:
        ((stem, path),) = files.items()
        return {split_in_name(stem) or scored_in_name(stem) or "train": [path]}
    named = any(stem.lower() in ("train", "training") for stem in files)
    return {stem: [path] for stem, path in files.items()} if named else {}


def without_scored(folder: Path, files: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The files of each split, those taken out of training whose names, or folders, say that their rows are scored.

    `datasets` takes whatever has no split that it knows in its name for training rows. What a folder's card says of
    its files is left as it is.
    """
    if _says_its_layout(folder):
        return {**files}
    found: dict[str, list[Path]] = {}
    for split, paths in files.items():
        for path in paths:
            place = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
            scored = next(filter(None, map(scored_in_name, reversed(place.parts))), None)
            found.setdefault(scored if scored and split == "train" else split, []).append(path)
    return found


def rows_alone(files: Sequence[Path], given: FileFormat) -> list[Path]:
    """The files without those that hold no rows, as the names of classes in JSON, where that leaves any.

    A file that is a split by its name is one whatever it holds, and is refused later.
    """
    left = [path for path in files if split_in_name(path.name) is not None or not holds_no_rows(path, given)]
    return left or [*files]


def _is_data(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.name == "dataset_infos.json"
    return not hidden and path.is_file() and data_suffix(path) is not None


def _holds_data(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(map(_is_data, folder.rglob("*")))


def _says_its_layout(folder: Path) -> bool:
    """Whether the folder's card, as on the Hub, says which files belong to which split."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    return text.startswith("---") and "configs:" in text.split("\n---", 1)[0]


def unread_files(folder: Path, read: Iterable[Path]) -> list[str]:
    """The files of a folder that could hold rows and are not read, by their places in it.

    Args:
        read: the files that are.
    """
    known = {path.resolve() for path in read}
    found = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or not path.is_file():
            continue
        stem = path.name.partition(".")[0].lower()
        if (data_suffix(path) or is_near_data(path)) and stem not in _NO_ROWS and path.resolve() not in known:
            found.append(str(place))
    return found


def check_parts(origin: str, files: Iterable[Path]) -> None:
    """Whether all parts of each table are there, as far as files' names tell.

    Raises:
        ConfigError: names the parts that are not.
    """
    parts: dict[tuple[Path, str, str, str, str], dict[int, str]] = {}
    for path in files:
        match, suffix = _part(path)
        if match is not None:
            key = (path.parent, match["before"], match["of"], match["count"], suffix)
            parts.setdefault(key, {})[int(match["number"])] = match["number"]
    for (_, before, of, count, suffix), found in parts.items():
        first = 1 if int(count) in found else 0
        width = len(next(iter(found.values())))
        missing = [
            f"{before}{number:0{width}d}{of}{count}{suffix}"
            for number in range(first, first + int(count))
            if number not in found
        ]
        if missing:
            raise ConfigError(
                f"{origin}: no {listed(missing)} beside the other parts; expected all {int(count)} of them, or "
                "--train-file and its like with what there is"
            )


def part_remarks(flags: Mapping[str, Path]) -> list[str]:
    """A sentence for each file that is a part of a table by its name, and is read alone.

    Args:
        flags: flag -> the file that it names.
    """
    remarks = []
    for flag, path in flags.items():
        match, _ = _part(path)
        if match is not None and int(match["count"]) > 1:
            remarks.append(f"{flag} {path}: one of {match['count'].lstrip('0')} parts by its name; no other is read")
    return remarks


def _part(path: Path) -> tuple[re.Match[str] | None, str]:
    """Whether a file's name, without its suffix, is that of a part; and the suffix."""
    suffix = data_suffix(path) or path.suffix
    return _PART.fullmatch(path.name[: len(path.name) - len(suffix)]), suffix
