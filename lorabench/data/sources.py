"""Where a task's rows come from: the embedded sample, files, or the Hub; as columns, before anything is checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.catalog.tasks import TaskPreset
from lorabench.config.run_config import DataConfig
from lorabench.data.readers import Columns, read_columns
from lorabench.errors import ConfigError, IssueList
from lorabench.machine.hub import explain_hub_error, prefer_cache_if_unreachable

SAMPLE_FOLDER = Path(__file__).parent / "sample"
# Names that data sets on the Hub give their splits.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Table:
    """One split as read.

    Attributes:
        origin: flag and value that it came by, for messages.
        columns: column name -> values.
    """

    origin: str
    columns: Columns


def load_tables(config: DataConfig, preset: TaskPreset) -> dict[str, Table]:
    """The splits that there are, by name; the user's files replace those of the task.

    Raises:
        ConfigError: everything that cannot be read, together.
    """
    tables: dict[str, Table] = {}
    issues = IssueList()
    if config.train_file is None:
        if preset.embedded:
            tables = {
                split: Table(f"embedded {split} sample", read_columns("--task", SAMPLE_FOLDER / f"{split}.csv"))
                for split in ("train", "validation", "test")
            }
        elif preset.hub_id is not None:
            tables = _load_hub(preset.hub_id, preset.score_hub_test)
        else:
            issues.add(f"--task {config.task}: expected --train-file (CSV, JSON lines, JSON or Parquet)")
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    for split, path in files.items():
        if path is None:
            continue
        try:
            tables[split] = Table(f"--{split}-file {path}", read_columns(f"--{split}-file", path))
        except ConfigError as error:
            issues.extend(error.issues)
    issues.raise_if_any()
    return tables


def _load_hub(name: str, with_test: bool) -> dict[str, Table]:
    """The train, validation and test splits of a data set on the Hub, or of a local folder of data files."""
    if not Path(name).exists():
        prefer_cache_if_unreachable()
    import datasets
    import datasets.exceptions
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = datasets.load_dataset(name)
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--task {name}: {explain_hub_error(error)}. Expected a data set on the Hub, the folder of one, or "
            "--train-file with a local copy"
        ) from None
    tables = {}
    for split, candidates in _SPLIT_NAMES.items():
        found = next((candidate for candidate in candidates if candidate in loaded), None)
        if found is not None and (split != "test" or with_test):
            tables[split] = Table(f"--task {name} ({found} split)", _named_classes(loaded[found]))
    if "train" not in tables:
        raise ConfigError(f"--task {name}: no `train` split, found {', '.join(map(str, loaded)) or 'none'}")
    return tables


def _named_classes(split: Any) -> Columns:
    """Columns of a `datasets.Dataset`, class numbers replaced by their names where the data set gives them."""
    from datasets import ClassLabel

    columns = {name: list(split[name]) for name in split.column_names}
    for name, feature in split.features.items():
        # Hub convention: -1 marks an unlabelled row.
        if isinstance(feature, ClassLabel):
            columns[name] = [None if v is None or v < 0 else feature.int2str(v) for v in columns[name]]
    return columns
