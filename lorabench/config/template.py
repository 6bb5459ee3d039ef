"""Templates: a text with names of columns in braces, which a row's values replace."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# How other languages write a name to be replaced: Jinja and Mustache, shells and JavaScript, Python's `%`, ERB. In a
# template of ours all of it is text, but for the braces after a dollar sign.
_ELSEWHERE = re.compile(r"\{\{[^{}]+\}\}|\$\{(?=[^{}]+\})|%\([^()]+\)[sdrif]|<%=?[^<>]*%>|(?<![%\w])%[sd](?!\w)")
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
        doubled = "; {{ and }} are braces of the text" if "{{" in text else ""
        raise ValueError(f"no column in braces{doubled}")
    literals[-1] += text[start:]
    return Template(tuple(literals), tuple(columns))


def marks_of_others(text: str) -> list[str]:
    """Parts of a template that other languages would replace, and that are text in it, each once."""
    return list(dict.fromkeys(_ELSEWHERE.findall(text)))


def names_in_marks(text: str, names: Iterable[str]) -> list[str]:
    """Parts of a template that hold the name of a column in marks of another kind than braces: `<name>`, `$name`.

    Args:
        names: of columns that the template does not read.
    """
    return [
        found[0]
        for name in map(re.escape, names)
        if (found := re.search(rf"<{name}>|\[{name}\]|[$@]{name}\b|%{name}%", text)) is not None
    ]
