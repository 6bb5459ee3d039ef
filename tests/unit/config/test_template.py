"""Templates: what stands in braces is a column, all else is text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.config.template import marks_of_others, names_in_marks, parse_template

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(st.text(), NAMES), min_size=1), st.text(), st.data())
def test_a_filled_template_is_its_pieces_and_values_in_order(
    parts: list[tuple[str, str]], end: str, data: st.DataObject
) -> None:
    def escaped(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    written = "".join(f"{escaped(literal)}{{{name}}}" for literal, name in parts) + escaped(end)
    template = parse_template(written)
    values = tuple(data.draw(st.text()) for _ in parts)
    assert template.columns == tuple(name for _, name in parts)
    assert (
        template.fill(values)
        == "".join(literal + value for (literal, _), value in zip(parts, values, strict=True)) + end
    )


def test_names_of_columns_are_taken_as_they_stand() -> None:
    """Where `str.format` would see an attribute, an item, a conversion or a format."""
    assert parse_template("{a.b} {c[0]} {d!r} {e:>3} {0}").columns == ("a.b", "c[0]", "d!r", "e:>3", "0")
    for name, text in {"word": "{word}: {text}", "text": "{text}"}.items():
        assert parse_template(text).fill(("x",) * text.count("{")) == text.format(**{"word": "x", "text": "x"}), name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("text", "no column in braces"),
        ("", "no column in braces"),
        ("{{text}}", "no column in braces; {{ and }} are braces of the text"),
        ("%(text)s", "no column in braces"),
        ("$text", "no column in braces"),
        ("a {text", "a { without its partner at character 3"),
        ("text}", "a } without its partner at character 5"),
        ("{a}}", "a } without its partner at character 4"),
        ("{} {text}", "a pair of braces without the name of a column"),
        ("{ } {text}", "a pair of braces without the name of a column"),
    ],
)
def test_what_is_no_template_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_template(text)
    assert str(raised.value) == problem


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("{{premise}} {text}", ["{{premise}}"]), ("{{ a }}{{ a }}{b}", ["{{ a }}"]), ("${x} {y}", ["${"]),
        ("%(x)s {y} %(z)d", ["%(x)s", "%(z)d"]), ("<%= x %> {y}", ["<%= x %>"]), ("%s {y}", ["%s"]),
        ("{a}: {b}", []), ("5 % {a} (b)s $5 <b>", []), ("100%sure {a}", []), ("{{}} {a}", []),
    ],
)  # fmt: skip
def test_what_other_languages_would_replace_is_found(text: str, marks: list[str]) -> None:
    assert marks_of_others(text) == marks


def test_names_of_columns_in_other_marks_are_found() -> None:
    text = "<title> [body] $user %date% {text} @id <b> $users"
    assert names_in_marks(text, ["title", "body", "user", "date", "id", "other"]) == [
        *("<title>", "[body]", "$user", "%date%", "@id")
    ]
    assert names_in_marks("title: {text} (body)", ["title", "body"]) == []
