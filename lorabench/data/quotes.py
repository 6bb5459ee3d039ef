"""What a quote means in a file of fields: whether it encloses its field, and where one swallows rows."""

from itertools import dropwhile

from lorabench.errors import ConfigError

# Other quotes than `"`, which enclose no field, and what closes each.
ENCLOSING = {
    **{"'": "'", "`": "`", "\u00b4": "\u00b4"},
    **{"\u2018": "\u2019", "\u201c": "\u201d", "\u201e": "\u201c", "\u00ab": "\u00bb"},
}
# A column of more different values than this says nothing of whether a line is a row.
_KNOWN_VALUES = 1000
_SUSPECTS = 100


def other_quotes(fields: list[str]) -> str:
    """What is added to an error about a row of too many fields, where one seems enclosed in other quotes than `"`."""
    starts = [field.strip()[:1] for field in fields]
    found = next((sign for sign in starts if sign in ENCLOSING), None)
    return "" if found is None else f" (is a field enclosed in {found}? expected double quotes)"


class QuoteCheck:
    """Whether all quotes of a file without tabs or line breaks inside fields are those of a writer of quoted fields.

    Such a writer encloses every field that has a quote and doubles it there; else it encloses all of a column, or
    nothing.

    Attributes:
        opens: a field begins with a quote, maybe after spaces.
        after_spaces: a field begins with spaces and a quote.
    """

    def __init__(self) -> None:
        self.opens = False
        self.after_spaces = False
        self._well_formed = True
        self._all_needed = True
        self._rows = 0
        self._per_column: list[int] = []

    def add_header(self, fields: list[str]) -> None:
        """Take the raw fields of the header, which says nothing of how the rows are written but for its spaces."""
        self.after_spaces |= any(value.startswith(" ") and value.lstrip(" ").startswith('"') for value in fields)

    def add(self, fields: list[str]) -> None:
        """Take the raw fields of a row, the header left out."""
        self._rows += 1
        if len(self._per_column) < len(fields):
            self._per_column += [0] * (len(fields) - len(self._per_column))
        for i, value in enumerate(fields):
            if '"' not in value:
                continue
            inner = value[1:-1]
            start = value.lstrip(" ")
            self.opens |= start.startswith('"')
            self.after_spaces |= start.startswith('"') and start != value
            enclosed = len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
            self._well_formed &= enclosed
            self._all_needed &= inner == "" or '""' in inner
            self._per_column[i] += 1

    @property
    def enclose(self) -> bool:
        """Whether they are."""
        if not self.opens or not self._well_formed:
            return False
        return self._all_needed or all(count in (0, self._rows) for count in self._per_column)


class SwallowedRows:
    """Finds a stray quote: one that makes a single field of lines which are rows by themselves.

    They are taken for rows if each has as many fields as the header, and holds in some column a value that other rows
    have there, as a class is.
    """

    def __init__(self) -> None:
        self._known: list[set[str] | None] = []
        self._suspects: list[tuple[int, list[list[str]]]] = []

    def add(self, number: int, fields: list[str], lines: list[str], delimiter: str) -> None:
        """Take a record that ends in line `number`, and the lines that it was read from."""
        if not self._known:
            self._known = [set() for _ in fields]
        if len(lines) > 1 and len(fields) > 1 and len(self._suspects) < _SUSPECTS:
            lines = list(dropwhile(lambda line: not line.strip(), lines))
            split = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip()]
            whole = all(len(parts) == len(fields) for parts in split)
            # Texts have commas and line breaks; few have tabs, so that one such line is enough there. The first line
            # has the row's columns before the text, and the last one those after it.
            between = split[1:-1] if delimiter == "\t" else []
            rows = split[:-1] if whole else [parts for parts in between if len(parts) == len(fields)]
            if rows:
                self._suspects.append((number - len(lines) + 1, rows))
                return
        for i, value in enumerate(fields):
            values = self._known[i]
            if values is None or not value:
                continue
            values.add(value)
            if len(values) > _KNOWN_VALUES:
                self._known[i] = None

    def raise_if_any(self) -> None:
        """Raises `ConfigError` with the line of the first stray quote."""
        for start, rows in self._suspects:
            if all(self._looks_like_a_row(parts) for parts in rows):
                raise ConfigError(
                    f"line {start}: a quote opens a field that takes in {len(rows)} more lines, which look like rows; "
                    "expected a quote that is text to be doubled inside quotes (or JSON lines, if the text has these "
                    "lines)"
                )

    def _looks_like_a_row(self, parts: list[str]) -> bool:
        return any(values is not None and part in values for part, values in zip(parts, self._known, strict=True))
