"""How messages of what was asked for are put together."""

from lorabench.errors import ConfigError


def test_an_issue_is_one_line_whatever_a_file_is_called() -> None:
    assert str(ConfigError("--train-file new\nline.csv: no rows")) == r"--train-file new\nline.csv: no rows"
    both = ConfigError(["--input a\nb: no rows", "--output c: taken"])
    assert str(both).splitlines() == ["2 problems:", r"  - --input a\nb: no rows", "  - --output c: taken"]
