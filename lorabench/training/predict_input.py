"""The rows of a file that is to be predicted, in pieces that fit into memory: texts, ids and columns to keep."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorabench.catalog.tasks import task_preset
from lorabench.config.checks import source_issues, text_issues
from lorabench.config.run_config import DataConfig
from lorabench.data.file_format import Columns, FileFormat, is_written_number, list_columns
from lorabench.data.oddities import Oddity, find_odd
from lorabench.data.readers import TableStream, stream_table
from lorabench.data.sources import file_format, idle_format_flags
from lorabench.data.task import ID_COLUMNS, Rows
from lorabench.data.texts import Texts, check_training_texts, read_texts, text_columns
from lorabench.errors import ConfigError, IssueList
from lorabench.results.row_files import Kind, KindFinder
from lorabench.training.prediction import FinishedRun, PredictOptions, prediction_kinds
from lorabench.wording import counted, listed, quoted

# A piece is large enough that rows of like length meet in it and packs are full. Characters bound it, too: a tokenizer
# gives two numbers for each token, about 40 bytes per character.
PIECE_ROWS = 16_384
PIECE_CHARACTERS = 4_000_000
_CHUNK_ROWS = 512
ALL_COLUMNS = "all"


@dataclass(frozen=True)
class InputPiece:
    """Some rows of the file, in its order.

    Attributes:
        ids: as the file has them, or the rows' numbers.
        kept: columns of the file that the output has, too, by their names there.
        rows: those with a text, unlabelled.
        places: which of the piece's rows these are.
    """

    ids: list[Any]
    kept: dict[str, list[Any]]
    rows: Rows
    places: list[int]


@dataclass
class InputFacts:
    """What the whole file is like.

    Attributes:
        rows: how many there are.
        blank: how many of them have no text.
        odd: what texts have, see `oddities.find_odd` -> numbers of the rows that have it.
    """

    rows: int = 0
    blank: int = 0
    odd: dict[Oddity, list[int]] = field(default_factory=dict)
    _kinds: dict[str, KindFinder] = field(default_factory=dict)

    def add(self, piece: InputPiece) -> None:
        """Count one more piece."""
        for oddity, found in find_odd(piece.rows.texts, piece.rows.pairs).items():
            self.odd.setdefault(oddity, []).extend(self.rows + piece.places[i] for i in found)
        self.rows += len(piece.ids)
        self.blank += len(piece.ids) - len(piece.rows)
        for name, values in {"id": piece.ids, **piece.kept}.items():
            self._kinds.setdefault(name, KindFinder()).add(values)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the id and each kept column hold, by their names in the output."""
        return {name: finder.kind for name, finder in self._kinds.items()}


class PredictInput:
    """A file of rows to predict, read as the run's own were but for what the options say.

    Args:
        options: name the file, which is checked from end to end, and its columns.
        run: says how texts were read.

    Attributes:
        origin: names the file in messages.

    Raises:
        ConfigError: all that is wrong with it: it cannot be read, lacks a column, or does not hold what the run reads.
    """

    def __init__(self, options: PredictOptions, run: FinishedRun) -> None:
        self.origin = f"--input {options.input}"
        self._data = data_config(options, run)
        self._preset = task_preset(self._data.task)
        self._table: TableStream = stream_table("--input", options.input, file_format(self._data), _CHUNK_ROWS)
        columns = self._table.columns
        issues = IssueList()
        # The run's own may be of no use for this file.
        flags = idle_format_flags(FileFormat(options.delimiter, options.encoding), [self._table.form])
        issues.extend(f"{flag}: {self.origin} is {self._table.form}; expected no such flag" for flag, _ in flags)
        texts = read_texts(self.origin, {name: [] for name in columns}, self._data, self._preset, issues)
        if texts is not None and (texts.pairs is not None) != run.pairs:
            given = f"--text-column {self._data.text_column}" if options.template is None else "--template"
            pair, one = "--text-column with two columns, NAME,NAME", "one column, or --template with several"
            reads, expected = ("pairs of texts", pair) if run.pairs else ("one text in each row", one)
            issues.add(f"{given}: the run reads {reads}; expected {expected}")
        self._id_column = options.id_column or next((name for name in ID_COLUMNS if name in columns), None)
        if options.id_column is not None and options.id_column not in columns:
            issues.add(f"{self.origin}: no column {options.id_column!r} (--id-column); {list_columns(columns)}")
        taken = ["id", *prediction_kinds(run.labels, run.label_kind, run.tuning)]
        self._kept = self._find_kept(options.keep_columns, taken, issues)
        issues.raise_if_any()

    def _find_kept(self, keep: str | None, taken: Sequence[str], issues: IssueList) -> dict[str, str]:
        """Columns to keep -> their names in the output, where the name may be another's."""
        columns = self._table.columns
        if keep is None:
            return {}
        names = columns if keep == ALL_COLUMNS else [name.strip() for name in keep.split(",")]
        missing = [name for name in names if name not in columns]
        if missing:
            names_missing = listed(list(map(quoted, missing)))
            issues.add(f"{self.origin}: no column {names_missing} (--keep-columns); {list_columns(columns)}")
        kept = [name for name in dict.fromkeys(names) if name != self._id_column]
        new: dict[str, str] = {}
        for name in kept:
            free = name
            while free in (*taken, *new.values()):
                free = f"input_{free}"
            new[name] = free
        return new

    @property
    def description(self) -> str:
        """The file, how many rows it has and how it was read, in words."""
        return f"{self.origin.removeprefix('--input ')}: {counted(self._table.rows, 'row')} ({self._table.form})"

    @property
    def remarks(self) -> list[str]:
        """A sentence where a column is named as ids are but for the case of its letters, which counts."""
        near = [name for name in self._table.columns if name.strip().lower() in ID_COLUMNS]
        if self._id_column is not None or not near:
            return []
        return [f"{self.origin}: ids are the numbers of the rows; --id-column {near[0]} takes that column"]

    def survey(self) -> InputFacts:
        """Read the texts of all rows once.

        Raises:
            ConfigError: something that is no text stands where a text should, or a column of texts has numbers alone.
        """
        facts = InputFacts()
        # The numbers of a column stand for each other; its first text that is none stands for the column.
        telling: dict[str, list[str]] = {}
        names = text_columns(self._data.text_column, dict.fromkeys(self._table.columns))
        for piece in self.pieces():
            facts.add(piece)
            for name, texts in zip(names, (piece.rows.texts, piece.rows.pairs or []), strict=False):
                telling[name] = _most_telling([*telling.get(name, []), *texts])
        issues = IssueList()
        check_training_texts(self.origin, telling, self._data, self._preset, issues)
        issues.raise_if_any()
        return facts

    def pieces(self) -> Iterator[InputPiece]:
        """The file's rows, once each; another call begins anew.

        Raises:
            ConfigError: as `survey`, or the file has changed.
        """
        first = 0
        for columns in self._gathered():
            issues = IssueList()
            texts = read_texts(self.origin, columns, self._data, self._preset, issues, first)
            issues.raise_if_any()
            if texts is not None:
                yield self._piece(columns, texts, first)
                first += len(texts.texts)

    def _piece(self, columns: Columns, texts: Texts, first: int) -> InputPiece:
        count = len(texts.texts)
        ids = columns[self._id_column] if self._id_column else list(range(first, first + count))
        blank = set(texts.blank)
        places = [place for place in range(count) if place not in blank]
        rows = Rows([str(value) for value in ids], texts.texts, None, texts.cuttable, texts.pairs).select(places)
        return InputPiece(ids, {new: columns[name] for name, new in self._kept.items()}, rows, places)

    def _gathered(self) -> Iterator[Columns]:
        """Chunks of the file put together, up to the limits of a piece."""
        gathered: Columns = {}
        rows = characters = 0
        for chunk in self._table.chunks:
            new = len(next(iter(chunk.values())))
            length = sum(len(value) for values in chunk.values() for value in values if isinstance(value, str))
            if rows and (rows + new > PIECE_ROWS or characters + length > PIECE_CHARACTERS):
                yield gathered
                gathered, rows, characters = {}, 0, 0
            for name, values in chunk.items():
                gathered.setdefault(name, []).extend(values)
            rows, characters = rows + new, characters + length
        if rows:
            yield gathered


def _most_telling(texts: Sequence[str]) -> list[str]:
    """The first of some texts that is no number, else the first of them; none of none."""
    return [next((text for text in texts if not is_written_number(text)), texts[0])] if texts else []


def data_config(options: PredictOptions, run: FinishedRun) -> DataConfig:
    """The run's, with the columns or the template that the options name.

    Raises:
        ConfigError: they cannot be used, or not together.
    """
    data = run.config.data
    if options.text_column is not None and options.template is not None:
        raise ConfigError("--text-column and --template both name the text; expected one of the two")
    preset = task_preset(data.task)
    if preset.row_text.columns is not None and options.text_column is not None:
        raise ConfigError(f"--text-column {options.text_column}: task {data.task} joins columns of its own")
    if options.text_column is not None:
        data = dataclasses.replace(data, text_column=options.text_column, template=None)
    if options.template is not None:
        usual = preset.settings.get("text_column", DataConfig().text_column)
        data = dataclasses.replace(data, text_column=usual, template=options.template)
    data = dataclasses.replace(
        data, delimiter=options.delimiter or data.delimiter, encoding=options.encoding or data.encoding
    )
    issues = [*source_issues(data), *text_issues(data)]
    if issues:
        raise ConfigError(issues)
    return data
