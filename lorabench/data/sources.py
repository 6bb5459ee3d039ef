"""Where a task's rows come from: the embedded sample, files, a folder, or the Hub; as columns, not checked yet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lorabench.catalog.tasks import TaskPreset
from lorabench.config.run_config import DataConfig
from lorabench.data.file_format import Columns, FileFormat
from lorabench.data.folder import check_parts, part_remarks, plain_files, rows_alone, unread_files, without_scored
from lorabench.data.hub_data import (
    class_names,
    dataset_columns,
    find_files,
    is_saved,
    load_saved,
    load_splits,
    local_files,
    resolved_commit,
)
from lorabench.data.readers import TableStream, stream_table
from lorabench.data.split_names import Part, choose_parts, is_asked
from lorabench.errors import ConfigError, IssueList
from lorabench.files import file_hash, is_address, why_not
from lorabench.wording import named

SAMPLE_FOLDER = Path(__file__).parent / "sample"
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Table:
    """One split as read.

    Attributes:
        origin: flag and value that it came by, for messages.
        columns: column name -> values.
        class_names: of columns whose classes the data set itself names, in its order.
        source: where the rows are from, for the record: `path`, `form`, `rows` and `sha256` of a file, `dataset`,
            `split`, `rows` and `revision` (None: unknown) of a data set on the Hub, and `sha256` of the files of one
            in a folder; `and` has those of the others, where the rows of several stand one after the other.
    """

    origin: str
    columns: Columns
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)


def file_format(config: DataConfig) -> FileFormat:
    """How the run's files are written, where its flags say so."""
    delimiter = "\t" if config.delimiter in ("tab", "\\t") else config.delimiter
    return FileFormat(delimiter, config.encoding)


def load_tables(config: DataConfig, preset: TaskPreset) -> tuple[dict[str, Table], list[str]]:
    """The splits that there are, by name, and what the user is told of them; files replace those of the task.

    Raises:
        ConfigError: everything that cannot be read, together.
    """
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    own = [split for split in _SPLITS if files[split] is None]
    tables: dict[str, Table] = {}
    remarks: list[str] = []
    issues = IssueList()
    if config.train_file is not None and preset.hub_id is not None and Path(preset.hub_id).is_dir():
        remarks.append(f"--task {config.task}: not read, since --train-file names the rows")
    if config.train_file is None:
        if preset.embedded:
            tables = {split: _read_sample(split) for split in own}
        elif preset.hub_id is not None:
            wanted = [split for split in own if split != "test" or preset.score_hub_test or config.test_split]
            tables, remarks = _load_data_set(preset.hub_id, config, wanted)
        else:
            issues.add(f"--task {config.task}: expected --train-file (CSV, JSON lines, JSON or Parquet)")
    for split, path in files.items():
        if path is None:
            continue
        try:
            tables[split] = read_table(f"--{split}-file", path, file_format(config))
        except ConfigError as error:
            issues.extend(error.issues)
    issues.raise_if_any()
    remarks += part_remarks({f"--{split}-file": path for split, path in files.items() if path is not None})
    forms = [str(table.source.get("form", "")) for table in tables.values()]
    remarks += [f"{flag}: without effect: {reason}" for flag, reason in idle_format_flags(file_format(config), forms)]
    return {split: tables[split] for split in _SPLITS if split in tables}, remarks


def idle_format_flags(given: FileFormat, forms: Sequence[str]) -> list[tuple[str, str]]:
    """The flags that say how files are written and that none of the files read has a use for; and why.

    Args:
        forms: how each file was read, in words, see `TableStream.form`; empty for what is no file.
    """
    idle = []
    if given.delimiter is not None and not any(form.startswith(("CSV", "TSV")) for form in forms):
        idle.append((f"--delimiter {given.delimiter!r}", "no file is CSV or TSV"))
    if given.encoding is not None and not any(form.startswith(("CSV", "TSV", "JSON")) for form in forms):
        idle.append((f"--encoding {given.encoding}", "no file is text"))
    return idle


def read_table(flag: str, path: Path, given: FileFormat) -> Table:
    """All rows of a file.

    Raises:
        ConfigError: missing, unreadable, malformed or empty file.
    """
    stream = stream_table(flag, path, given)
    return Table(f"{flag} {path}", stream.read(), stream.class_names, _file_source(path, stream))


def _file_source(path: Path, stream: TableStream) -> dict[str, Any]:
    return {"path": str(path), "form": stream.form, "rows": stream.rows, "sha256": file_hash(path)}


def _read_sample(split: str) -> Table:
    table = read_table("--task", SAMPLE_FOLDER / f"{split}.csv", FileFormat())
    return Table(f"embedded {split} sample", table.columns, source={**table.source, "path": f"sample/{split}.csv"})


# --- data sets of several splits


@dataclass(frozen=True)
class _Split:
    """A split that can be read.

    Attributes:
        rows: how many it has.
        read: a function of first and last row that reads them.
        files: those on this machine that hold them; empty where they came from the Hub, or where nobody says.
    """

    rows: int
    read: Callable[[Part], Table]
    files: Sequence[Path]


def _load_data_set(name: str, config: DataConfig, wanted: Sequence[str]) -> tuple[dict[str, Table], list[str]]:
    """The wanted splits of a data set on the Hub or in a folder, and what the user is told of them."""
    origin, folder = f"--task {name}", Path(name)
    splits = _find_splits(origin, name, folder, config)
    read = [file for split in splits.values() for file in split.files]
    # One of several configurations is read without the files of the others.
    unread = unread_files(folder, read) if folder.is_dir() and read and config.dataset_config is None else []
    parts, remarks = choose_parts(origin, {key: split.rows for key, split in splits.items()}, config, wanted, unread)
    tables = {split: _join([splits[part.name].read(part) for part in chosen]) for split, chosen in parts.items()}
    return tables, remarks


def _find_splits(origin: str, name: str, folder: Path, config: DataConfig) -> dict[str, _Split]:
    """The splits of a data set on the Hub or in a folder, by their own names."""
    if folder.is_file():
        raise ConfigError(f"{origin}: a file; expected the folder of a data set, or --train-file {name}")
    if folder.is_dir():
        try:
            return _find_local_splits(origin, folder, config)
        except PermissionError as error:
            raise ConfigError(f"{origin}: {why_not(error)}; expected a folder that can be read") from None
    if is_address(name):
        raise ConfigError(f"{origin}: an address; expected the Hub id (owner/name) or the folder of a data set")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise ConfigError(f"{origin}: no such folder")
    return _loaded_splits(origin, name, load_splits(name, config))


def _find_local_splits(origin: str, folder: Path, config: DataConfig) -> dict[str, _Split]:
    if config.dataset_revision is not None:
        raise ConfigError(f"--dataset-revision {config.dataset_revision}: {folder} is a folder, which has no versions")
    if is_saved(folder):
        if config.dataset_config is not None:
            raise ConfigError(f"--dataset-config {config.dataset_config}: save_to_disk wrote {folder} without any")
        return _loaded_splits(origin, str(folder), load_saved(folder))
    given = file_format(config)
    files = plain_files(origin, folder, given) if config.dataset_config is None else {}
    if not files:
        found = find_files(folder, config)
        if found is None:
            return _loaded_splits(origin, str(folder), load_splits(str(folder), config))
        files = without_scored(folder.absolute(), found)
    check_parts(origin, [path for paths in files.values() for path in paths])
    splits = {}
    for split, paths in files.items():
        try:
            streams = {path: stream_table("--task", path, given) for path in rows_alone(paths, given)}
        except ConfigError:
            if is_asked(split, config):
                raise
            continue  # said with the files that are not read
        splits[split] = _file_split(origin, streams)
    return splits


def _loaded_splits(origin: str, name: str, loaded: Mapping[str, Any]) -> dict[str, _Split]:
    return {
        key: _Split(len(rows), partial(_read_split, origin, name, rows), local_files(rows))
        for key, rows in loaded.items()
    }


def _file_split(origin: str, streams: Mapping[Path, TableStream]) -> _Split:
    return _Split(sum(stream.rows for stream in streams.values()), partial(_read_files, origin, streams), [*streams])


def _read_files(origin: str, streams: Mapping[Path, TableStream], part: Part) -> Table:
    """Rows of the files of a split, one file after the other."""
    tables = [
        Table(f"--task {path}", stream.read(), stream.class_names, _file_source(path, stream))
        for path, stream in streams.items()
    ]
    table = _join(tables)
    columns = {name: values[part.start : part.stop] for name, values in table.columns.items()}
    return Table(f"{origin} ({part} split)", columns, table.class_names, table.source)


def _read_split(origin: str, name: str, split: Any, part: Part) -> Table:
    source: dict[str, Any] = {"dataset": name, "split": str(part), "rows": part.stop - part.start}
    if Path(name).is_dir():
        source["sha256"] = {file.name: file_hash(file) for file in local_files(split)}
    else:
        source["revision"] = resolved_commit(split)
    columns = dataset_columns(split, part.start, part.stop)
    return Table(f"{origin} ({part} split)", columns, class_names(split), source)


def _join(tables: Sequence[Table]) -> Table:
    """Several tables one after the other.

    Raises:
        ConfigError: they have other columns.
    """
    first, *others = tables
    for other in others:
        if set(other.columns) != set(first.columns):
            raise ConfigError(f"{other.origin}: other columns than {first.origin}: {named(other.columns)}")
        first = Table(
            f"{first.origin} + {other.origin}",
            {name: values + other.columns[name] for name, values in first.columns.items()},
            first.class_names,
            {
                **first.source,
                "rows": first.source["rows"] + other.source["rows"],
                **_joined_split(first.source, other.source),
                "and": [*first.source.get("and", ()), other.source],
            },
        )
    return first


def _joined_split(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a data set's splits as `--train-split` and its like name them, where they have a name."""
    return {"split": f"{first['split']}+{other['split']}"} if "split" in first and "split" in other else {}
