"""Data sets that the library `datasets` reads: from the Hub, from a folder of many files, from `save_to_disk`."""

import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorabench.config.run_config import DataConfig
from lorabench.config.values import composed
from lorabench.data.file_format import Columns
from lorabench.data.parquet_files import name_classes
from lorabench.errors import ConfigError, first_line
from lorabench.files import LFS_ISSUE, is_lfs_pointer
from lorabench.machine.hub import explain_hub_error, prefer_cache_if_unreachable
from lorabench.wording import counted, named

# What the library makes of folders without a table: its reader -> what it reads.
_NO_TABLES = {
    "text": "plain text",
    "imagefolder": "images",
    "audiofolder": "audio",
    "videofolder": "video",
    "pdffolder": "PDF",
}
_DAMAGED_ARCHIVES = (zipfile.BadZipFile, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk`, be it whole or not."""
    is_rest = (folder / "dataset_info.json").is_file() and any(folder.glob("data-*.arrow"))
    return is_rest or any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def load_saved(folder: Path) -> Mapping[str, Any]:
    """The splits of a folder that `save_to_disk` wrote; a single `Dataset` is the training split.

    Raises:
        ConfigError: it cannot be read, or names files outside.
    """
    import datasets

    pointers = [path.relative_to(folder) for path in sorted(folder.rglob("*.*")) if is_lfs_pointer(path)]
    if pointers:
        raise ConfigError(f"--task {folder}: {pointers[0]} {LFS_ISSUE}")
    try:
        _refuse_outside(folder, _saved_files(folder))
        loaded = datasets.load_from_disk(str(folder))
    except ConfigError:
        raise
    except FileNotFoundError as error:
        lacking = os.path.relpath(error.filename or folder, folder)
        reason = f"not readable as save_to_disk writes it (no {lacking} there)"
        raise ConfigError(f"--task {folder}: {reason}; expected the whole folder") from None
    except Exception as error:  # files of others: whatever Arrow and the JSON files in it give rise to
        raise ConfigError(f"--task {folder}: not readable as save_to_disk writes it ({error})") from None
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    # One that was saved with a format, as torch's, would give its tensors for values.
    return {str(name): split.with_format(None) for name, split in splits.items()}


def _saved_files(folder: Path) -> list[Path]:
    """The files that the JSON files of `save_to_disk` name: a folder may come from anybody."""
    listing = folder / "dataset_dict.json"
    names = json.loads(listing.read_text(encoding="utf-8"))["splits"] if listing.is_file() else ["."]
    folders = [folder / name for name in names]
    states = {part: json.loads((part / "state.json").read_text(encoding="utf-8")) for part in folders}
    empty = [part.name for part, state in states.items() if not state["_data_files"]]
    if empty:
        raise ConfigError(f"--task {folder}: its split {named(empty)} has no rows")
    return [part / file["filename"] for part, state in states.items() for file in state["_data_files"]]


def _refuse_outside(folder: Path, files: Iterable[str | Path]) -> None:
    """Refuse a file that is not in the folder by its name. Links, as the Hub's cache has, may lead out of it.

    Raises:
        ConfigError: names the file.
    """
    inside = os.path.abspath(folder)
    for file in files:
        if "://" in str(file) or not Path(os.path.abspath(file)).is_relative_to(inside):
            raise ConfigError(f"--task {folder}: it names {file}, which is not in the folder, and is not read")


def load_splits(name: str, config: DataConfig) -> Mapping[str, Any]:
    """The splits of a data set on the Hub, or of a local folder, by their names. No code of the data set is run.

    Raises:
        ConfigError: it cannot be had, or which of its configurations is not said.
    """
    if not Path(name).exists():
        prefer_cache_if_unreachable()
    import datasets
    import datasets.exceptions
    from huggingface_hub.errors import HfHubHTTPError

    chosen = {"name": config.dataset_config, "revision": config.dataset_revision}
    flags: dict[str, Any] = {flag: value for flag, value in chosen.items() if value is not None}
    try:
        loaded: Any = datasets.load_dataset(name, **flags)
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(_explain(name, error)) from None
    except (yaml.YAMLError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(_explain_card(name, error)) from None
    return {str(split): rows for split, rows in loaded.items()}


def find_files(folder: Path, config: DataConfig) -> dict[str, list[Path]] | None:
    """Split -> its files, as `datasets` lays out a folder; None where it is to read them, too.

    Its readers of CSV and JSON guess types, and take words such as "NA" for missing values: where only the files have
    to be known, they are read as files that a flag names.

    Raises:
        ConfigError: the folder has no data, or names files outside, or which of its configurations is not said.
    """
    import datasets
    import datasets.exceptions

    try:
        builder = datasets.load_dataset_builder(str(folder.absolute()), config.dataset_config)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, *_DAMAGED_ARCHIVES) as error:
        raise ConfigError(_explain(str(folder), error)) from None
    except (yaml.YAMLError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(_explain_card(str(folder), error)) from None
    listed: Any = builder.config.data_files
    _refuse_outside(folder, (file for files in (listed or {}).values() for file in files))
    form = type(builder).__module__.rpartition(".")[2]
    if form in _NO_TABLES:
        raise ConfigError(_explain_files(folder, form, [Path(file) for files in listed.values() for file in files]))
    plain = builder.info.features is None and getattr(builder.config, "field", None) is None
    if not plain or not listed or form not in ("csv", "json", "parquet"):
        return None
    return {str(split): [Path(file) for file in files] for split, files in listed.items()}


def _explain(name: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    listed = re.search(r"(?:available configs|Available): (\[.*?\])", text)
    if listed is not None:
        names = ", ".join(re.findall(r"'([^']*)'", listed[1]))
        what = "has several configurations" if "missing" in text else "has no such configuration"
        return f"--task {name}: {what}; expected --dataset-config with one of {names}"
    if "infer the same data file format" in text:
        return (
            f"--task {name}: its splits are files of unlike kinds; expected one kind, or files named by split "
            "(train.csv, ...) in the folder itself, or --train-file and its like"
        )
    # What follows is a list of all suffixes that the library knows.
    reason = re.split(r"\.? with any supported extension", explain_hub_error(error, "--dataset-revision"))[0]
    return (
        f"--task {name}: {reason}. Expected a data set on the Hub, the folder "
        "of one, or --train-file with a local copy"
    )


def _explain_card(name: str, error: Exception) -> str:
    """What is said of a data set whose card cannot be read: the library takes what stands there as it is."""
    line = ""
    if isinstance(error, yaml.MarkedYAMLError):
        # The header's first line is the second of the file.
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 2}"
        what = f"not valid YAML ({error.problem})"
    elif isinstance(error, yaml.YAMLError):
        what = f"not valid YAML ({first_line(error)})"
    else:
        what = f"not as `datasets` reads it ({first_line(error)})"
    return (
        f"--task {name}: the header of its README.md{line} is {what}; expected `configs` with the names of splits and "
        "the paths of their files, or --train-file and its like"
    )


def _explain_files(folder: Path, form: str, files: Sequence[Path]) -> str:
    """What is said of a folder whose files are no tables."""
    within = sorted({str(file.parent.relative_to(os.path.abspath(folder))) for file in files} - {"."})
    where = f" in {named(within)}; the names of folders are read as no labels" if within else ""
    return (
        f"--task {folder}: {counted(len(files), 'file')} of {_NO_TABLES[form]}{where}; expected tables (CSV, TSV, "
        "JSON lines, JSON, Parquet) with a column of texts and one of labels"
    )


def dataset_columns(split: Any, start: int, stop: int) -> Columns:
    """Rows of a `datasets.Dataset` from `start` to before `stop`, class numbers replaced by their names."""
    classes = class_names(split)
    rows = split if (start, stop) == (0, len(split)) else split.select(range(start, stop))
    columns = {name: list(rows[name]) for name in rows.column_names}
    whole = {composed(name): values for name, values in columns.items()}
    return {name: name_classes(name, v, classes[name]) if name in classes else v for name, v in whole.items()}


def class_names(split: Any) -> dict[str, tuple[str, ...]]:
    """The columns of a `datasets.Dataset` that hold numbers of classes, and the classes' names in their order."""
    from datasets import ClassLabel

    return {composed(name): tuple(item.names) for name, item in split.features.items() if isinstance(item, ClassLabel)}


def local_files(split: Any) -> list[Path]:
    """The files on this machine that a `datasets.Dataset` was read from; none where they came from the Hub."""
    sources = list(getattr(getattr(split, "info", None), "download_checksums", None) or ())
    read = sources or [file["filename"] for file in getattr(split, "cache_files", ())]
    return [Path(file) for file in read if Path(file).is_file()]


def resolved_commit(split: Any) -> str | None:
    """The commit on the Hub that a `datasets.Dataset` was loaded from; None where it does not say."""
    sources = list(getattr(getattr(split, "info", None), "download_checksums", None) or ())
    marked = (re.search(r"@([0-9a-f]{40})/", str(source)) for source in sources)
    stored = (part for file in getattr(split, "cache_files", ()) for part in Path(file["filename"]).parts)
    in_path = (part for part in stored if _COMMIT.fullmatch(part))
    return next((match[1] for match in marked if match), None) or next(in_path, None)
