"""What a prediction needs of a finished run, and the columns that predictions are written in."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lorabench.catalog.settings import ComputeDtype
from lorabench.config.command_line import ConfigOption
from lorabench.config.run_config import RunConfig
from lorabench.config.saved_adapter import ADAPTER_WEIGHTS
from lorabench.config.values import compose_names
from lorabench.errors import ConfigError
from lorabench.files import replacing
from lorabench.results.ownership import present_status
from lorabench.results.row_files import Kind, row_suffix, row_writer
from lorabench.results.run_folder import ADAPTER_FOLDER, RUN_FILE, find_adapter, read_run
from lorabench.training.provenance import adapter_issues, unfinished_remarks
from lorabench.training.tuning import AUTO, PLAIN, Choice, Tuning, recorded_tuning
from lorabench.wording import counted, listed

if TYPE_CHECKING:
    import torch

PREDICT_BATCH_SIZE = 32
THRESHOLD_COLUMN = "label_at_threshold"
_LABEL_TYPES: Mapping[Kind, Callable[[str], Any]] = {
    "text": str,
    "integer": int,
    "number": float,
    "boolean": lambda label: label == "True",
}


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ConfigOption):
    """Labels and probabilities for new texts, by the best adapter of a finished run."""

    run: Path
    """Folder of the run, with run.json and adapter/; or that run.json."""
    input: Path
    """CSV, TSV, JSON lines, JSON array or Parquet with the run's text column; read in pieces, whatever its size."""
    output: Path
    """Where to write: id, label and the probability of each class, then what --threshold and --temperature add, as
    .csv, .tsv, .jsonl (each also with .gz) or .parquet. The order is the input's."""
    overwrite: bool = False
    """Replace --output if it is there."""
    text_column: str | None = None
    """Column with the text; default: the run's."""
    template: str | None = None
    """How columns make the text; default: the run's."""
    id_column: str | None = None
    """Column that tells rows apart; default: `id` or `id_string`, else rows are numbered from 0."""
    keep_columns: str | None = None
    """Columns of the input that the output has, too: names with commas between them, or `all`."""
    delimiter: str | None = None
    """What stands between the fields of a CSV file; default: the run's."""
    encoding: str | None = None
    """Encoding of a text file; default: the run's."""
    batch_size: int = PREDICT_BATCH_SIZE
    """Rows per forward pass; results do not depend on it. Without effect on a GPU for a run whose steps were captured,
    where rows are packed up to a number of tokens."""
    threshold: str = AUTO
    """Of two classes, the least probability with which a row gets the positive one in a further column,
    label_at_threshold; label stays the more probable class. `tuned`: the run's own, fitted on its validation rows;
    `auto`: that if there is one; a number from 0 to 1; `none`: no such column."""
    temperature: str = AUTO
    """What logits are divided by for further columns, calibrated_CLASS; probability_CLASS stays as it is. `tuned`: the
    run's own; `auto`: that if there is one; a number above 0; `none`: no such columns."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base model. Off unless you say so."""

    def __post_init__(self) -> None:
        compose_names(self, "text_column", "template", "id_column", "keep_columns")


def classes_and_probabilities(logits: "torch.Tensor") -> tuple[list[int], list[list[float]]]:
    """The class of each row, and the probability of each class.

    Args:
        logits: [rows, classes].

    Returns:
        Class indices, and float32 probabilities [rows, classes], each as the float that prints with the fewest digits
        that tell it from its neighbours in float32.
    """
    from lorabench.step.loss import LOSS

    probabilities = LOSS.probabilities(logits).float().numpy()
    return LOSS.classes(logits).tolist(), probabilities.astype(str).astype(float).tolist()


def calibrated_probabilities(logits: "torch.Tensor", tuning: Tuning) -> list[list[float]] | None:
    """Probabilities with the temperature, in the form of `classes_and_probabilities`; None where there is none."""
    if tuning.temperature is None:
        return None
    from lorabench.step.calibration import with_temperature

    return classes_and_probabilities(with_temperature(logits, tuning.temperature))[1]


def prediction_kinds(labels: Sequence[str], label_kind: Kind = "text", tuning: Tuning = PLAIN) -> dict[str, Kind]:
    """The columns of predictions, but for the id, with what they hold; those of `tuning` come last."""
    kinds: dict[str, Kind] = {"label": label_kind, **{probability_column(label): "probability" for label in labels}}
    if tuning.threshold is not None:
        kinds[THRESHOLD_COLUMN] = label_kind
    if tuning.temperature is not None:
        kinds |= {calibrated_column(label): "probability" for label in labels}
    return kinds


def prediction_columns(
    labels: Sequence[str],
    values: Sequence[Any],
    logits: "torch.Tensor",
    places: Sequence[int],
    rows: int,
    tuning: Tuning = PLAIN,
) -> dict[str, list[Any]]:
    """The columns of `prediction_kinds` for some rows; those that were not predicted are empty in all of them.

    Args:
        labels: class names, in the order of the logits.
        values: what stands for each class in the column of labels.
        logits: [predicted rows, classes].
        places: for each row of the logits, which of the rows it is.
        rows: how many rows there are.
        tuning: what else is said of each.
    """
    classes, plain = classes_and_probabilities(logits)
    decided, calibrated = [tuning.decide(row) for row in plain], calibrated_probabilities(logits, tuning)
    found: dict[str, list[Any]] = {"label": [values[index] for index in classes]}
    found |= {probability_column(label): [row[i] for row in plain] for i, label in enumerate(labels)}
    if tuning.threshold is not None:
        found[THRESHOLD_COLUMN] = [None if index is None else values[index] for index in decided]
    if calibrated is not None:
        found |= {calibrated_column(label): [row[i] for row in calibrated] for i, label in enumerate(labels)}
    columns: dict[str, list[Any]] = {name: [None] * rows for name in found}
    for name, entries in found.items():
        for place, entry in zip(places, entries, strict=True):
            columns[name][place] = entry
    return columns


def probability_column(label: str) -> str:
    """The column with the probability of a class; no other one begins so, whatever the class is called."""
    return f"probability_{label}"


def calibrated_column(label: str) -> str:
    """The column with the calibrated probability of a class."""
    return f"calibrated_{label}"


def write_predictions(
    path: Path,
    ids: Sequence[str],
    labels: Sequence[str],
    logits: "torch.Tensor",
    true_labels: Sequence[int] | None = None,
    tuning: Tuning = PLAIN,
) -> None:
    """Write id, label, the true label if there is one, and a probability per class, as the path's end says.

    Args:
        path: replaced whole.
        labels: class names, in the order of the logits.
        logits: [rows, classes].
        true_labels: class indices.
        tuning: what else is said of each row.
    """
    columns = prediction_columns(labels, labels, logits, range(len(ids)), len(ids), tuning)
    truth = {} if true_labels is None else {"true_label": [labels[index] for index in true_labels]}
    piece = {"id": list(ids), "label": columns.pop("label"), **truth, **columns}
    kinds: dict[str, Kind] = {"id": "text", **dict.fromkeys(truth, "text"), **prediction_kinds(labels, "text", tuning)}
    with (
        replacing(path) as temporary,
        row_writer(temporary, row_suffix(path) or ".csv", {name: kinds[name] for name in piece}) as writer,
    ):
        writer.write(piece)


@dataclass(frozen=True)
class FinishedRun:
    """What its record says of a run, as far as its adapter needs it.

    Attributes:
        labels: class names, in the order of the logits.
        precision: that it was trained in (fp32, fp16 or bf16).
        packs: its steps, and so its evaluations, ran over packs.
        status: as it is now, see `present_status`.
        label_kind: what the labels of its training rows were.
        pairs: its rows have two texts.
        tuning: threshold and temperature that its rows are told by, beside class and probabilities.
    """

    folder: Path
    config: RunConfig
    labels: tuple[str, ...]
    precision: str
    packs: bool
    status: str | None
    label_kind: Kind
    pairs: bool
    tuning: Tuning = PLAIN

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """Read `run.json`.

        Args:
            folder: the run's, or its `run.json`.

        Raises:
            ConfigError: there is none, or another version's, or one that contradicts itself.
        """
        folder = _run_folder(folder)
        record = read_run(folder)
        try:
            run = cls(
                folder,
                RunConfig.from_json(record["config"]),
                tuple(record["data"]["labels"]),
                record["precision"],
                record.get("execution") == "captured",
                present_status(folder, record),
                record["data"].get("label_kind", "text"),
                record["data"].get("pairs", False),
                recorded_tuning(record),
            )
            run.check()
            return run
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"--run {folder}: its run.json is not one of this version ({error})") from None

    def check(self) -> None:
        """Whether its values can be used together: the record may come from anybody.

        Raises:
            ValueError: says which cannot.
        """
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"data.labels = {list(self.labels)!r}: expected two classes or more, each once")
        if self.precision not in get_args(ComputeDtype):
            raise ValueError(f"precision = {self.precision!r}: expected one of {', '.join(get_args(ComputeDtype))}")
        if not isinstance(self.pairs, bool):
            raise ValueError(f"data.pairs = {self.pairs!r}: expected true or false")
        if self.label_kind not in tuple(_LABEL_TYPES):
            raise ValueError(f"data.label_kind = {self.label_kind!r}: expected one of {', '.join(_LABEL_TYPES)}")
        issues = self.tuning.issues(
            threshold=f"calibration.threshold = {self.tuning.threshold!r}",
            temperature=f"calibration.temperature = {self.tuning.temperature!r}",
        )
        if issues:
            raise ValueError(issues[0])
        try:
            _ = self.label_values
        except ValueError:
            raise ValueError(f"data.label_kind = {self.label_kind!r}: the classes are of another one") from None

    @classmethod
    def read_loadable(cls, folder: Path) -> "FinishedRun":
        """`read`, where the adapter can be loaded, as far as that is known without loading it.

        Raises:
            ConfigError: there is no record, no adapter, or no library that its base model needs; adapter or base model
                are not those of the run.
        """
        run = cls.read(folder)
        adapter = run.find_adapter()
        issues = adapter_issues(read_run(folder), adapter, *base_of(adapter))
        if issues:
            raise ConfigError(f"--run {folder}: {issue}" for issue in issues)
        if run.config.model.quantize == "nf4" and find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"--run {folder}: its base model is held in 4 bits; expected `pip install bitsandbytes` before"
            )
        return run

    def tuned(self, threshold: Choice, temperature: Choice) -> "FinishedRun":
        """The run with the threshold and the temperature that are asked for.

        Raises:
            ConfigError: it has none, or what is asked for cannot be.
        """
        return replace(self, tuning=self.tuning.choose(threshold, temperature))

    @property
    def label_values(self) -> tuple[Any, ...]:
        """The classes in the type that the training rows' labels had."""
        return tuple(_LABEL_TYPES[self.label_kind](label) for label in self.labels)

    def find_adapter(self) -> Path:
        """The folder of its best adapter.

        Raises:
            ConfigError: there is none.
        """
        adapter = find_adapter(self.folder)
        if adapter is None:
            is_random = self.config.model.weights == "random"
            reason = "random weights save none" if is_random else f"status {self.status}"
            raise ConfigError(f"--run {self.folder}: no {ADAPTER_FOLDER}/{ADAPTER_WEIGHTS} there ({reason})")
        return adapter

    def remarks(self) -> list[str]:
        """What the user is told of the run, a sentence each."""
        return unfinished_remarks(f"--run {self.folder}", self.status)


def _run_folder(path: Path) -> Path:
    """The folder of a run that is named by it, or by the record in it.

    Raises:
        ConfigError: it is another file, a folder inside that of a run, or one of several runs.
    """
    if path.name == RUN_FILE and path.is_file():
        return path.parent
    if (path / RUN_FILE).exists():
        return path
    if not path.exists():
        raise ConfigError(f"--run {path}: no such folder; expected that of a run, with {RUN_FILE}")
    above = next((folder for folder in path.absolute().parents if (folder / RUN_FILE).is_file()), None)
    if above is not None:
        raise ConfigError(f"--run {path}: inside the folder of a run; expected that, {above}")
    below = sorted(path.glob(f"*/{RUN_FILE}"))
    if below:
        runs = listed([str(file.parent) for file in below])
        raise ConfigError(f"--run {path}: the folder of {counted(len(below), 'run')}; expected one of them: {runs}")
    raise ConfigError(f"--run {path}: no {RUN_FILE} there; expected the folder of a run")


def base_of(adapter: Path) -> tuple[str, str | None]:
    """What PEFT loads the base model of an adapter from, a folder or a Hub id, and its revision."""
    try:
        settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return str(settings["base_model_name_or_path"]), settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{adapter}: no readable adapter_config.json ({error})") from None
