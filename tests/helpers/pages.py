"""Examples of CONTRIBUTING.md, as a reader would paste them."""

from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def example_of(section: str) -> str:
    """The first block of Python in a section."""
    _, text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")
    return text.split("```python\n")[1].split("```")[0]


def entries_of(section: str, table: ModuleType) -> dict[str, Any]:
    """The entries of a section's example, by name, made where the module of their table makes its own.

    Definitions come first in an example, then entries, which begin with a name in quotes.
    """
    definitions, quote, entries = example_of(section).partition('\n"')
    if not quote:
        definitions, entries = "", definitions[1:]
    names: dict[str, Any] = dict(vars(table))
    exec(definitions, names)
    return eval(f'{{"{entries}}}', names)
