"""Labels and probabilities for the texts of a file, by a finished run's adapter.

The file is read twice, in pieces: once to check and count it before a model is loaded, once to predict it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabench.data.oddities import odd_remarks
from lorabench.errors import ConfigError, IssueList
from lorabench.files import is_same_file
from lorabench.harmless import printable
from lorabench.results.outputs import data_issues, output_issues, writing_output
from lorabench.results.row_files import SUFFIXES, Kind, row_suffix, row_writer
from lorabench.results.row_progress import RowProgress
from lorabench.results.run_folder import read_run
from lorabench.training.predict_input import InputPiece, PredictInput
from lorabench.training.prediction import FinishedRun, PredictOptions, prediction_columns, prediction_kinds
from lorabench.wording import counted

if TYPE_CHECKING:
    from lorabench.training.predictor import RowPredictor


@dataclass(frozen=True)
class PredictSummary:
    """What was predicted.

    Attributes:
        rows: of the file, each of them written.
        blank: rows without a text, whose label and probabilities are empty.
        cut: rows that were longer than the run's --max-length.
        seconds: from the first row on, the model being loaded.
    """

    rows: int
    blank: int
    cut: int
    seconds: float

    def __str__(self) -> str:
        speed = self.rows / max(self.seconds, 1e-9)
        counts = f"{counted(self.rows, 'row')}, {self.blank} without a text, {self.cut} cut"
        return f"{counts}, {self.seconds:.1f} s, {speed:.1f} rows/s"


def predict_file(options: PredictOptions) -> PredictSummary:
    """Predict every row of a file with the best adapter of a finished run.

    Raises:
        ConfigError: all that is wrong with flags, run, input and output, before a model is loaded.
        RunError: memory or disk ran out; nothing is at the output's name then.
    """
    run, source = check(options)
    print(f"input      {printable(source.description)}", flush=True)
    facts = source.survey()
    for remark in (*run.remarks(), *source.remarks, *odd_remarks(source.origin, facts.odd, facts.rows)):
        print(f"note       {printable(remark)}", flush=True)
    # Heavy imports, only for input that is known to be good.
    from lorabench.training.predictor import RowPredictor

    predictor = RowPredictor(run, options.trust_remote_code)
    kinds = facts.kinds
    columns: dict[str, Kind] = {"id": kinds.pop("id"), **_kinds(run), **kinds}
    with (
        writing_output(options.output, options.overwrite) as temporary,
        row_writer(temporary, row_suffix(options.output) or "", columns) as writer,
        RowProgress(facts.rows) as progress,
    ):
        cut = 0
        for piece in source.pieces():
            predicted, cut_here = predict_piece(run, predictor, piece, source.origin, options.batch_size, progress)
            cut += cut_here
            writer.write({"id": piece.ids, **predicted, **piece.kept})
    return PredictSummary(facts.rows, facts.blank, cut, progress.seconds)


def predict_piece(
    run: FinishedRun,
    predictor: "RowPredictor",
    piece: InputPiece,
    origin: str,
    batch_size: int,
    progress: RowProgress,
) -> tuple[dict[str, list[Any]], int]:
    """Columns of labels and probabilities for a piece, empty where there is no text; and how many rows were cut."""
    progress.advance(len(piece.ids) - len(piece.rows))
    count = len(piece.ids)
    if not piece.rows:
        return {name: [None] * count for name in _kinds(run)}, 0
    found = predictor.logits(piece.rows, origin, batch_size, progress.advance)
    columns = prediction_columns(run.labels, run.label_values, found.logits, piece.places, count, run.tuning)
    return columns, found.cut_rows


def _kinds(run: FinishedRun) -> dict[str, Kind]:
    return prediction_kinds(run.labels, run.label_kind, run.tuning)


def check(options: PredictOptions) -> tuple[FinishedRun, PredictInput]:
    """The run and the input, if both are good, and the output can be written.

    Raises:
        ConfigError: everything that is wrong, together.
    """
    issues = IssueList()
    issues.check(options.batch_size >= 1, f"--batch-size {options.batch_size}: expected a whole number of at least 1")
    issues.extend(output_issues(options.output, options.overwrite))
    if row_suffix(options.output) is None:
        issues.add(f"--output {options.output}: expected a file ending in {', '.join(SUFFIXES)}")
    if is_same_file(options.input, options.output):
        issues.add(f"--output {options.output}: the same file as --input, which would be lost")
    try:
        run = FinishedRun.read_loadable(options.run)
        if options.overwrite:
            issues.extend(data_issues(options.output, [(run.folder, read_run(run.folder))]))
        try:
            run = run.tuned(options.threshold, options.temperature)
        except ConfigError as error:
            issues.extend(error.issues)
        source = PredictInput(options, run)
    except ConfigError as error:
        raise ConfigError([*issues, *error.issues]) from None
    issues.raise_if_any()
    return run, source
