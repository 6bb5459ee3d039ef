"""Templates: a text with names of columns in braces, which a row's values replace."""

import re
from dataclasses import dataclass

_PART = re.compile(r"\{\{|\}\}|\{(?P<column>[^{}]*)\}|(?P<stray>[{}])")


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        literals: what stands before, between and after the columns: one more than there are columns.
        columns: names in their order; one may come again.
    """

    literals: tuple[str, ...]
    columns: tuple[str, ...]

    def fill(self, values: tuple[str, ...]) -> str:
        """The text with `values` in place of the columns; one value for each of `columns`."""
        pieces = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            pieces += (value, literal)
        return "".join(pieces)


def parse_template(text: str) -> Template:
    """A template from its text: `{name}` is a column, all between the braces its name; `{{` and `}}` are braces.

    Raises:
        ValueError: a brace stands alone, a name is empty, or there is no column; the message says which.
    """
    literals, columns, start = [""], [], 0
    for part in _PART.finditer(text):
        literals[-1] += text[start : part.start()]
        start = part.end()
        column = part["column"]
        if part["stray"] is not None:
            raise ValueError(f"a {part[0]} without its partner at character {part.start() + 1}")
        if column is None:
            literals[-1] += part[0][0]
        elif not column.strip():
            raise ValueError("a pair of braces without the name of a column")
        else:
            columns.append(column)
            literals.append("")
    if not columns:
        raise ValueError("no column in braces")
    literals[-1] += text[start:]
    return Template(tuple(literals), tuple(columns))
