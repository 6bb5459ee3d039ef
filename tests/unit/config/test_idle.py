"""What a run says of flags that change nothing, and of a template that may not be what was meant."""

import pytest

from lorabench import cli
from lorabench.config.command_line import parse_run_config
from lorabench.config.idle import config_notes


def notes(*words: str) -> list[str]:
    task = [] if "--task" in words else ["--task", "sample"]
    return config_notes(parse_run_config(["--model", "minilm", *task, *words]))


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["--track-tags", "a,b"], "--track-tags a,b: without effect: no tracker"),
        (["--track-project", "p"], "--track-project p: without effect"),
        (["--track-group", "g"], "--track-group g: without effect"),
        (["--track-name", "n"], "--track-name n: without effect"),
        (
            ["--task", "owner/name", "--weights", "random", "--test-split", "t"],
            "--test-split t: without effect: random",
        ),
        (["--weights", "random", "--test-file", __file__], f"--test-file {__file__}: without effect: random"),
        (["--early-stopping", "9", "--epochs", "9"], "--early-stopping 9: without effect: the run has 9 epochs"),
        (["--learning-rate", "1e4"], "--learning-rate 10000: far above the rates that LoRA learns at"),
        (["--warmup-ratio", "0.3"], "--warmup-ratio 0.3: without effect: --lr-scheduler constant has no warm-up"),
    ],
)
def test_a_flag_without_effect_is_said(words: list[str], start: str) -> None:
    (said,) = notes(*words)
    assert said.startswith(start)


def test_files_beside_the_default_task_are_said_not_to_be_trained_on() -> None:
    said = config_notes(
        parse_run_config(["--model", "minilm", "--validation-file", __file__, "--test-file", __file__])
    )
    files = f"--validation-file {__file__} --test-file {__file__}"
    assert said == [f"{files}: no --train-file is given: this trains on --task disaster-tweets"]
    assert notes("--task", "custom", "--test-file", __file__, "--train-file", cli.__file__) == []
    assert notes("--task", "owner/name", "--test-file", __file__) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--track", "tensorboard", "--track-tags", "a", "--track-group", "g"],
        ["--warmup-ratio", "0.3", "--lr-scheduler", "linear"],
        ["--learning-rate", "0.05", "--early-stopping", "1", "--epochs", "2"],
        ["--recipe", "strong", "--lr-scheduler", "constant"],
        ["--warmup-ratio", "0.3", "--lr-scheduler", "constant_with_warmup"],
        ["--task", "custom", "--template", "{a}\n{b} \\d \\{c}"],
    ],
)
def test_what_has_an_effect_is_not(words: list[str]) -> None:
    assert notes(*words) == []


def test_a_line_break_that_no_shell_has_made_is_said() -> None:
    (said,) = notes("--task", "custom", "--template", r"{a}\n{b}\t{c}\n")
    expected = r"\n and \t: a backslash and a letter in each text; in a shell, $'...' makes it one character"
    assert said == rf"--template '{{a}}\\n{{b}}\\t{{c}}\\n': {expected}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{a}} {b}", "'{{a}}' stands in each text as written"),
        ("${a} {b}", "the $ before a column stands in each text as written"),
        ("%(a)s ${b}", "'%(a)s' and the $ before a column stand in each text as written"),
    ],
)
def test_a_template_of_another_language_is_said_to_be_text(template: str, said: str) -> None:
    (note,) = notes("--task", "custom", "--template", template)
    assert note == f"--template {template!r}: {said}; a column is a name in single braces"
