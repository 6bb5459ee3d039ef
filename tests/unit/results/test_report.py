"""The table shows what was measured, "n/a" for what was not, in four forms that say the same."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lorabench import cli
from lorabench.catalog import metrics
from lorabench.catalog.metrics import Metric
from lorabench.errors import ConfigError
from lorabench.results import report, table
from lorabench.results.amounts import three_digits
from lorabench.results.curves import draw_curves, running_mean
from lorabench.results.figures import run_figures, select
from lorabench.results.ownership import Ownership
from lorabench.results.report import TableForm, table_command, table_row
from lorabench.results.run_folder import SCHEMA_VERSION, write_json_atomic
from lorabench.results.summary import summary_lines
from lorabench.results.table import (
    COLUMNS,
    REPORTED,
    TableRow,
    footnotes,
    render_terminal,
    to_html,
    to_markdown,
)

PNG = b"\x89PNG\r\n\x1a\n"


def scores(f1: float, loss: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"precision": 0.7, "recall": 0.6, "f1": f1, "accuracy": f1 + 0.01, "loss": loss, "rows": 1523, **more}


def rank(number: int, device: str = "cuda:0", host: str = "node", **phases: float | None) -> dict[str, Any]:
    """One rank's memory; the figures given are those that the table should use."""
    figure, other = ("rss_gb", "reserved_gb") if device == "cpu" else ("reserved_gb", "rss_gb")
    filler = {"allocated_gb": 99.0, "device_gb": 98.0, other: 97.0}
    values = {phase: {**filler, figure: value} for phase, value in phases.items()}
    return {"rank": number, "host": host, "device": device, "device_name": "RTX 3090", "phases": values}


def run_record(**changes: Any) -> dict[str, Any]:
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "completed",
        "error": None,
        "config": {"model": {"model": "llama3-8b"}, "data": {"task": "disaster-tweets"}, "optim": {"epochs": 3}},
        "strategy": "DDP",
        "model": {
            "name": "llama3-8b",
            "weights": "pretrained",
            "total_parameters": 7_511_756_800,
            "trainable_parameters": 6_823_936,
            "trainable_percent": 0.090843,
        },
        "data": {"task": "disaster-tweets", "synthetic": False},
        "before": scores(0.4266, loss=0.9),
        "best": scores(0.78323, epoch=2, metric="f1", value=0.78323),
        "history": [scores(f1, loss, epoch=i, step=10 * i) for i, f1, loss in ((1, 0.6, 0.6), (2, 0.78323, 0.5))],
        "test": None,
        "train_seconds": 538.4,
        "wall_seconds": 7384.0,
        "steps": 20,
        "examples_per_second": 12.34,
        "tokens_per_second": 4567.8,
        "padding_percent": 12.34,
        "memory": [rank(0, load=14.5, train=29.61, eval=20.0), rank(1, "cuda:1", load=14.5, train=20.0, eval=29.49)],
    }
    return {**record, **changes}


def with_model(**changes: Any) -> dict[str, Any]:
    return run_record(model={**run_record()["model"], **changes})


def seeded(seed: int, train_file: str | None = None) -> dict[str, Any]:
    config = run_record()["config"]
    data = {**config["data"], "train_file": train_file}
    return run_record(config={**config, "data": data, "optim": {"epochs": 3, "seed": seed}})


def train_events(losses: list[float | None]) -> list[dict[str, Any]]:
    return [{"event": "train", "step": i, "loss": loss} for i, loss in enumerate(losses, start=1)]


# --- from record to row


def test_row_of_a_completed_run() -> None:
    assert table_row(run_record()).cells() == (
        "llama3-8b",
        "disaster-tweets",
        "DDP",
        "0.7832",
        "538 s",
        "GPU1: 29.6 GB GPU2: 29.5 GB",
        "0.0908 %",
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (with_model(weights="random"), "n/a"),
        (run_record(status="failed"), "failed"),
        (run_record(status="interrupted"), "interrupted"),
        (run_record(status="running", best=None), "running"),
        ({**with_model(weights="random"), "status": "failed"}, "failed"),
        (run_record(best=None), "n/a"),
        (run_record(best={"f1": None}), "n/a"),
        (run_record(best=scores(0.0)), "0.0000"),
    ],
)
def test_f1_cell(record: dict[str, Any], expected: str) -> None:
    assert table_row(record).f1 == expected


def test_synthetic_data_is_named_so() -> None:
    assert table_row(run_record(data={"task": "sample", "synthetic": True})).task == "sample (synthetic)"


def test_row_of_an_empty_record_guesses_nothing() -> None:
    assert set(table_row({"schema_version": 1}).cells()) == {"n/a"}


def test_row_of_a_run_that_failed_before_its_data_were_read() -> None:
    row = table_row(run_record(status="failed", data=None, model=None, memory=None))
    assert row.cells() == ("llama3-8b", "disaster-tweets", "DDP", "failed", "538 s", "n/a", "n/a")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((None, "n/a"), (0.04, "0.0 s"), (3.44, "3.4 s"), (9.96, "10 s"), (538.4, "538 s"), (3599.4, "3599 s")),
        *(
            (3599.6, "3600 s (1:00 h)"),
            (7384, "7384 s (2:03 h)"),
            (7199, "7199 s (2:00 h)"),
            (90060, "90060 s (25:01 h)"),
        ),
    ],
)
def test_training_time(seconds: float | None, expected: str) -> None:
    assert table_row(run_record(train_seconds=seconds)).training_time == expected


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        *((0.351261, "0.351 %"), (0.35, "0.350 %"), (0.0120971, "0.0121 %"), (100.0, "100 %"), (9.999, "10.0 %")),
        *((0.00001234, "0.0000123 %"), (0.0, "0.00 %"), (None, "n/a")),
    ],
)
def test_trainable_share_has_three_significant_digits(percent: float | None, expected: str) -> None:
    assert table_row(with_model(trainable_percent=percent)).trainable == expected


@given(st.floats(1e-7, 100))
def test_trainable_share_is_close_and_without_exponent(percent: float) -> None:
    text = three_digits(percent)
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)
    assert float(text) == pytest.approx(percent, rel=5.1e-3)


def test_memory_lists_every_rank_whatever_its_host_or_device() -> None:
    memory = [rank(0, host="a", train=1.04), rank(1, host="b", train=2.0), rank(2, host="b", train=0.449)]
    assert table_row(run_record(memory=memory)).memory == ("GPU1: 1.0 GB", "GPU2: 2.0 GB", "GPU3: 0.45 GB")


def test_memory_on_the_cpu_is_resident_memory() -> None:
    assert table_row(run_record(memory=[rank(0, "cpu", load=1.1, train=1.24)])).memory == ("CPU1: 1.2 GB",)


@pytest.mark.parametrize("phases", [{}, {"load": None}, {"load": 14.0, "train": None}])
def test_memory_with_a_missing_figure_is_unknown(phases: dict[str, float | None]) -> None:
    memory = [rank(0, "cuda:0", "node", **phases), rank(1, load=3.0)]
    assert table_row(run_record(memory=memory)).memory == ("GPU1: n/a", "GPU2: 3.0 GB")


@given(
    st.lists(st.tuples(*[st.floats(1, 500)] * 3), min_size=1, max_size=8),
)
def test_memory_is_the_largest_phase_of_each_rank(figures: list[tuple[float, float, float]]) -> None:
    memory = [rank(i, load=a, train=b, eval=c) for i, (a, b, c) in enumerate(figures)]
    expected = tuple(f"GPU{i}: {max(three):.1f} GB" for i, three in enumerate(figures, start=1))
    assert table_row(run_record(memory=memory)).memory == expected


# --- the four forms


class Cells(HTMLParser):
    """The texts of a page's table cells, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in {
            *("html", "head", "meta", "title", "style", "body", "table", "thead", "tbody", "tr"),
            *("th", "td", "br", "ul", "li"),
        }
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True
        if tag == "br" and self.inside:
            self.rows[-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


words = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
marked = st.sampled_from(["a|b", "\\|", "|", "\\", "<script>", "a&amp;b", "*x*", "`", '"q"', "[bold]x[/bold]", "a,b"])
rows_of_any_text = st.lists(
    st.builds(
        TableRow,
        **{name: words | marked for name in ("model", "task", "strategy", "f1", "training_time", "trainable")},
        memory=st.lists(words | marked, min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=3,
)


def markdown_cells(line: str) -> list[str]:
    """The cells of one line as GitHub reads them: split at bare pipes, escapes and entities resolved."""
    parts = re.findall(r"(?:\\.|[^|\\])+", line.strip().removeprefix("|").removesuffix("|"))
    assert not re.search(r"(?<!\\)(\\\\)*[<`*]", line)
    unescaped = [re.sub(r"\\(.)", r"\1", part.strip()) for part in parts]
    return [text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in unescaped]


@given(rows_of_any_text)
def test_markdown_and_html_keep_every_text(rows: list[TableRow]) -> None:
    expected = [list(COLUMNS), *(list(row.cells()) for row in rows)]
    lines = to_markdown(rows).split("\n\n")[0].split("\n")
    assert [markdown_cells(line) for place, line in enumerate(lines) if place != 1] == expected
    page = Cells()
    page.feed(to_html(rows))
    assert page.rows == expected


def test_markdown_escapes_and_aligns() -> None:
    row = table_row(with_model(name="my|model <b>\nx"))
    lines = to_markdown([row]).splitlines()
    assert lines[1] == "| --- | --- | --- | ---: | ---: | --- | ---: |"
    assert lines[2].startswith(
        "| my\\|model &lt;b&gt; x | disaster-tweets | DDP | 0.7832 | 538 s | GPU1: 29.6 GB GPU2"
    )


def test_html_escapes_and_loads_nothing() -> None:
    page = to_html([table_row(with_model(name='<img src="x">|'))])
    assert "<td>&lt;img src=&quot;x&quot;&gt;|</td>" in page
    assert "<td>GPU1: 29.6 GB<br>GPU2: 29.5 GB</td>" in page
    assert not re.search(r"<script|https?://|<link|<img", page)


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("several", [False, True])
def test_terminal_shows_every_figure_on_one_line(width: int, several: bool) -> None:
    long_name = "llama3-8b-disaster-tweets-20261127-101112-123"
    rows = [table_row(run_record(), long_name), *REPORTED]
    if several:
        rows[:0] = [table_row(seeded(7), "b")]
    text = table.to_text(rows, width=width)
    assert max(map(len, text.splitlines())) <= width
    for figure in (
        "0.7832",
        "0.8077",
        "GPU1: 29.6 GB",
        "GPU2: 29.5 GB",
        "GPU2: 33.9 GB",
        "0.0908 %",
        "0.024 %",
        "2030 s",
    ):
        assert figure in text
    if several and width < 100:  # eight columns have no room for whole words
        return
    for word in ("disaster-tweets", "llama3-8b", "roberta-large", "(reported)"):
        assert word in text


def test_terminal_takes_no_name_for_markup() -> None:
    output = io.StringIO()
    render_terminal([table_row(with_model(name="[red]m[/red]"))], Console(file=output, width=120))
    assert "[red]m[/red]" in output.getvalue()


def test_footnotes_say_what_the_rows_need() -> None:
    plain = footnotes([table_row(run_record())])
    assert len(plain) == 2
    assert "reserved by PyTorch's allocator" in plain[1] and "10^9 bytes" in plain[1]
    cpu = table_row(run_record(memory=[rank(0, "cpu", load=1.0)]))
    more = footnotes([cpu, table_row(with_model(weights="random")), REPORTED[0]])
    assert [note.split(" ")[0] for note in more[2:]] == ["CPU", "F1", "(reported):"]
    assert "count the classification head twice" in more[-1]


def test_reported_figures_stand_below_ours_of_the_same_model() -> None:
    ours = [table_row(with_model(name=name)) for name in ("mistral-7b", "minilm", "roberta-large", "mistral-7b")]
    assert [row.model for row in table.with_reported(ours)] == [
        *("mistral-7b", "minilm", "roberta-large", "roberta-large (reported)", "mistral-7b", "mistral-7b (reported)"),
        "llama2-7b (reported)",
    ]
    assert [(row.f1, row.training_time, row.memory, row.trainable) for row in REPORTED] == [
        ("0.8077", "538 s", ("GPU1: 9.1 GB", "GPU2: 8.3 GB"), "0.64 % (as printed)"),
        ("0.7364", "2030 s", ("GPU1: 29.6 GB", "GPU2: 29.5 GB"), "0.024 % (as printed)"),
        ("0.7638", "2052 s", ("GPU1: 35 GB", "GPU2: 33.9 GB"), "0.12 % (as printed)"),
    ]


# --- the command


def save(folder: Path, record: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    write_json_atomic(folder / "run.json", record)
    return folder


def test_table_of_runs_at_any_depth_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "runs" / "a", with_model(name="first"))
    save(tmp_path / "runs" / "sweep" / "trial" / "b", with_model(name="second"))
    other = save(tmp_path / "c", with_model(name="third"))
    table_command([other / "run.json", tmp_path / "runs", tmp_path / "runs" / "a", other], TableForm(format="csv"))
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["run"], line["model"]) for line in lines] == [("c", "third"), ("a", "first"), ("b", "second")]


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json", "html"])
def test_table_is_printed_or_written_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: report.OutputFormat
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    save(tmp_path / "run", run_record())
    target = tmp_path / "table.txt"
    table_command([tmp_path], TableForm(format=form, reported=True))
    table_command([tmp_path], TableForm(format=form, output=target, reported=True))
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == target.read_text().splitlines()
    assert "0.7832" in target.read_text() and "roberta-large" in target.read_text()
    assert "(reported)" in target.read_text()
    assert "\x1b" not in target.read_text()


def test_command_names_every_problem_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        table_command([tmp_path / "empty", tmp_path / "absent"], TableForm())
    assert [issue.split(";")[0] for issue in caught.value.issues] == [
        f"{tmp_path / 'empty'}: no run in it",
        f"{tmp_path / 'absent'}: no such folder",
    ]
    with pytest.raises(ConfigError, match="no runs named"):
        table_command([], TableForm())


def test_records_that_cannot_be_read_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a", {"schema_version": SCHEMA_VERSION + 1})
    save(tmp_path / "b", run_record())
    (save(tmp_path / "c", {}) / "run.json").write_text("{")
    save(tmp_path / "d", run_record(status=["\x1b[2J"]))
    save(tmp_path / "e\x1b[31m", run_record(train_seconds="long"))
    table_command([tmp_path], TableForm(format="csv", output=tmp_path / "table.csv"))
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        assert [line["run"] for line in csv.DictReader(file)] == ["b"]
    printed = capsys.readouterr()
    assert printed.out == "" and "\x1b" not in printed.err
    lines = printed.err.splitlines()
    assert [line.split("run.json")[0][-2] for line in lines] == ["a", "c", "d", "m"]
    assert lines[2].endswith("not a record that a run has written: status: expected a text")
    assert all(line.startswith(f"lorabench table: left out: {tmp_path}") for line in lines)
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(ConfigError) as caught:
        table_command([tmp_path], TableForm(format="csv", output=tmp_path / "other.csv"))
    assert len(caught.value.issues) == 4
    assert not (tmp_path / "other.csv").exists()


def test_command_replaces_nothing_but_what_it_may(tmp_path: Path) -> None:
    run = save(tmp_path / "a", run_record())
    with pytest.raises(ConfigError, match=r"--output .*absent/table\.md: there is no folder"):
        table_command([tmp_path], TableForm(format="markdown", output=tmp_path / "absent" / "table.md"))
    table_command([run], TableForm(format="markdown", output=tmp_path / "table.md"))
    with pytest.raises(ConfigError, match=r"table\.md: exists already; .* --overwrite"):
        table_command([run], TableForm(format="csv", output=tmp_path / "table.md"))
    assert (tmp_path / "table.md").read_text().startswith("| Model")
    table_command([run], TableForm(format="csv", output=tmp_path / "table.md", overwrite=True))
    assert (tmp_path / "table.md").read_text().startswith("run,")
    with pytest.raises(ConfigError, match="belongs to the run"):
        table_command([run], TableForm(output=run / "run.json", overwrite=True))


def test_command_never_replaces_rows_that_a_run_has_read(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n")
    record = run_record()
    record["data"]["sources"] = {"train": {"path": str(rows), "sha256": "0"}}
    with pytest.raises(ConfigError, match=r"holds rows that the run in .* has read"):
        table_command([save(tmp_path / "a", record)], TableForm(output=rows, overwrite=True))
    assert rows.read_text() == "text,label\n"


def test_the_end_of_the_output_says_its_form(tmp_path: Path) -> None:
    save(tmp_path / "a", run_record())
    starts = {
        "t.html": "<!doctype",
        "t.md": "| Model",
        "t.tex": "% \\use",
        "t.csv": "run,",
        "t.json": "[",
        "t.TXT": "Model",
    }
    for name, start in {**starts, "t.TXT": "Model"}.items():
        table_command([tmp_path], TableForm(output=tmp_path / name))
        assert (tmp_path / name).read_text().lstrip().startswith(start), name
    with pytest.raises(ConfigError, match=r"--output .*t\.png: expected a name that ends in one of \.html"):
        table_command([tmp_path], TableForm(output=tmp_path / "t.png"))


def test_flags_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        table_command([save(tmp_path / "a", run_record())], TableForm(overwrite=True, descending=True))
    assert [issue.split(":")[0] for issue in refused.value.issues] == ["--descending", "--overwrite"]


# --- links


def test_a_link_is_followed_where_it_is_named_and_said_where_it_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = save(tmp_path / "elsewhere" / "kept", with_model(name="kept"))
    runs = save(tmp_path / "runs" / "own", with_model(name="own")).parent
    (runs / "one").symlink_to(elsewhere)
    (runs / "several").symlink_to(elsewhere.parent)
    (runs / "again").symlink_to(runs / "own")
    (runs / "other").symlink_to(tmp_path)
    read = [run.folder.name for run in report.read_runs([runs], "table")]
    said = capsys.readouterr().err.splitlines()
    assert read == ["own"]
    assert [line.split(": ")[2] for line in said] == [str(runs / "one"), str(runs / "several")]
    assert all("a link, which is not followed" in line for line in said)
    for path in (runs / "one", runs / "several", runs / "one" / "run.json"):
        assert [run.record["model"]["name"] for run in report.read_runs([path], "table")] == ["kept"]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="links/one: a link, which is not followed"):
        report.read_runs([tmp_path / "links"], "table")


def test_a_record_that_is_a_link_out_of_its_folder_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = save(tmp_path / "elsewhere", run_record()) / "run.json"
    for name in ("a", "b"):
        save(tmp_path / "runs" / name, run_record())
    link = tmp_path / "runs" / "a" / "run.json"
    link.unlink()
    link.symlink_to(secret)
    assert [run.name for run in report.read_runs([tmp_path / "runs"], "table")] == ["b"]
    assert f"left out: {link}: a link out of the run's folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="a link out of the run's folder"):
        report.read_runs([tmp_path / "runs" / "a"], "table")
    assert len(report.read_runs([link], "table")) == 1, "the user's own link"


# --- what tells runs apart


def header(rows: list[TableRow]) -> list[str]:
    return markdown_cells(to_markdown(rows).splitlines()[0])


def test_one_run_needs_no_name_and_several_do() -> None:
    assert header([table_row(seeded(1), "a")]) == list(COLUMNS)
    assert header([table_row(seeded(1), "a"), *REPORTED]) == list(COLUMNS)
    rows = [table_row(seeded(1), "a"), table_row(seeded(1), "b")]
    assert header(rows) == ["Run", *COLUMNS]
    assert markdown_cells(to_markdown(rows).splitlines()[3])[0] == "b"


def test_data_and_seed_are_shown_where_they_differ() -> None:
    rows = [table_row(seeded(1, "/data/a.csv"), "a"), table_row(seeded(2, "/data/a.csv"), "b")]
    assert header(rows) == ["Run", "Model", "Task", "Strategy", "Seed", *COLUMNS[3:]]
    rows.append(table_row(seeded(2), "c"))
    names = ["Run", "Model", "Task", "Data", "Strategy", "Seed", *COLUMNS[3:]]
    assert header([*rows, *REPORTED]) == names
    page = Cells()
    page.feed(to_html(rows))
    assert page.rows[0] == names
    assert [row[3] for row in page.rows[1:]] == ["a.csv", "a.csv", "the task's"]
    assert [row[5] for row in page.rows[1:]] == ["1", "2", "2"]


def test_runs_whose_folders_have_one_name_are_shown_by_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for parent, name in (("x", "run"), ("y", "run"), ("y", "other")):
        save(tmp_path / parent / name, run_record())
    table_command([tmp_path], TableForm(format="json"))
    assert [run["run"] for run in json.loads(capsys.readouterr().out)] == [
        *(str(tmp_path / "x" / "run"), "other", str(tmp_path / "y" / "run")),
    ]


def test_a_run_whose_process_is_gone_is_shown_as_died(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", run_record(status="running"))
    before = (tmp_path / "a" / "run.json").read_bytes()
    table_command([tmp_path], TableForm(format="markdown"))
    printed = capsys.readouterr().out
    assert "| died |" in printed and "no process holds the run" in printed
    assert (tmp_path / "a" / "run.json").read_bytes() == before
    ownership = Ownership()
    ownership.take(tmp_path / "a")
    table_command([tmp_path], TableForm(format="markdown"))
    assert "| running |" in capsys.readouterr().out
    ownership.release()


# --- plain numbers


def listed(paths: list[Path], capsys: pytest.CaptureFixture[str], **form: Any) -> list[dict[str, Any]]:
    table_command(paths, TableForm(format="json", **form))
    return json.loads(capsys.readouterr().out)


def test_csv_and_json_hold_one_plain_number_in_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", seeded(42))
    (found,) = listed([tmp_path], capsys)
    expected = {
        **{"run": "a", "status": "completed", "model": "llama3-8b", "task": "disaster-tweets", "strategy": "DDP"},
        **{"seed": 42, "f1": 0.78323, "precision": 0.7, "accuracy": 0.79323, "loss": 0.5, "epoch": 2},
        **{"train_seconds": 538.4, "memory_gb": 29.61, "memory_gb_gpu1": 29.61, "memory_gb_gpu2": 29.49},
        **{"trainable_parameters": 6_823_936, "trainable_percent": 0.090843, "synthetic": False, "data": None},
    }
    assert {name: found[name] for name in expected} == expected
    table_command([tmp_path], TableForm(format="csv"))
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(line) == list(found)
    for name, value in found.items():
        assert line[name] == {None: "", False: "false"}.get(value, str(value))


def test_reported_figures_are_numbers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", run_record())
    (reported,) = [run for run in listed([tmp_path], capsys, reported=True) if run["model"] == "mistral-7b"]
    assert (reported["run"], reported["f1"], reported["train_seconds"]) == ("(reported)", 0.7364, 2030.0)
    assert (reported["memory_gb"], reported["memory_gb_gpu2"], reported["trainable_percent"]) == (29.6, 29.5, 0.024)


@pytest.mark.parametrize(
    "record",
    [with_model(weights="random"), run_record(status="failed"), run_record(status="running"), {"schema_version": 1}],
)
def test_scores_that_mean_nothing_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any]
) -> None:
    save(tmp_path / "a", record)
    (found,) = listed([tmp_path], capsys)
    assert found["f1"] is None and found["loss"] is None


def test_cells_of_csv_are_no_formulas_and_control_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a", with_model(name="=1+1", trainable_percent=-0.5))
    save(tmp_path / "b", with_model(name="\x1b[2J\n@x"))
    table_command([tmp_path], TableForm(format="csv"))
    printed = capsys.readouterr().out
    first, second = csv.DictReader(io.StringIO(printed))
    assert (first["model"], first["trainable_percent"], second["model"]) == ("'=1+1", "-0.5", r"\x1b[2J\n@x")
    for form in ("terminal", "markdown", "html", "json"):
        table_command([tmp_path], TableForm(format=form))
        assert "\x1b[2J" not in capsys.readouterr().out


# --- order and choice


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Runs a to d: the last one has not ended."""
    for name, f1, seconds, seed in (("a", 0.5, 30.0, 10), ("b", 0.9, 4.0, 9), ("c", 0.7, 200.0, 10)):
        save(tmp_path / name, {**seeded(seed), "best": scores(f1, epoch=1), "train_seconds": seconds})
    save(tmp_path / "d", {**seeded(11), "status": "failed", "error": "lost", "train_seconds": None})
    return tmp_path


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, "abcd"),
        ({"sort": "f1"}, "acbd"),
        ({"sort": "F1", "descending": True}, "bcad"),
        ({"sort": "training time"}, "bacd"),
        ({"sort": "seed"}, "bacd"),
        ({"sort": "run", "descending": True}, "dcba"),
        ({"where": ("seed=10",)}, "ac"),
        ({"where": ("seed=10.0", "run=[bc]")}, "c"),
        ({"where": ("status=fail*",)}, "d"),
        ({"where": ("f1=",)}, "d"),
        ({"where": ("synthetic=false", "model=LLAMA*")}, ""),
        ({"where": ("f1=good",)}, ""),
        ({"where": ("seed = 10",)}, "ac"),
        ({"where": (" seed == 10.0 ", "run='[bc]'")}, "c"),
        ({"where": ('status == "fail*"',)}, "d"),
        ({"where": ("f1 = ",)}, "d"),
        ({"where": ("seed=10",), "sort": "train_seconds", "descending": True}, "ca"),
    ],
)
def test_runs_are_ordered_and_chosen_by_columns(
    four: Path, capsys: pytest.CaptureFixture[str], form: dict[str, Any], expected: str
) -> None:
    if not expected:
        with pytest.raises(ConfigError, match="none of 4 runs is so"):
            listed([four], capsys, **form)
        return
    assert "".join(run["run"] for run in listed([four], capsys, **form)) == expected
    table_command([four], TableForm(format="markdown", **form))
    lines = [markdown_cells(line) for line in capsys.readouterr().out.split("\n\n")[0].splitlines()]
    if len(expected) > 1:
        assert "".join(line[0] for line in lines[2:]) == expected


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"sort": "quality"}, "--sort quality: no column 'quality'; expected one of run, status, model"),
        ({"where": ("quality=1",)}, "--where quality=1: no column 'quality'"),
        *(
            ({"where": (condition,)}, f"--where {condition}: expected COLUMN=VALUE, as in model=minilm; no other")
            for condition in ("f1", "f1>=0.5", "f1 > 0.5", "model!=x", "model=~x", "model: x", "=x", "seed===1")
        ),
    ],
)
def test_a_column_that_is_not_there_is_said(four: Path, form: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        table_command([four], TableForm(**form))
    assert str(refused.value).startswith(message)


def test_the_command_line_has_all_of_it(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["table", str(four), "--where", "seed=10", "--where", "model=llama*", "--sort", "f1", "--descending"]
    assert cli.main([*words, "--format", "json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)] == ["c", "a"]


def test_memory_is_explained_where_it_is_shown() -> None:
    cpu = table_row(run_record(memory=[rank(0, "cpu", load=1.0)]))
    assert [note.split(":")[0] for note in footnotes([cpu])] == ["F1", "CPU memory"]
    assert len(footnotes([table_row(run_record(memory=None))])) == 1


def test_the_table_loads_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    save(tmp_path / "a", run_record())
    code = (
        "import sys; from pathlib import Path; from lorabench.results.report import TableForm, table_command;"
        f"table_command([Path({str(tmp_path)!r})], TableForm(reported=True));"
        "print([name for name in ('torch', 'matplotlib', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- the lines at the end of a run


def test_summary_of_a_completed_run() -> None:
    history = [scores(0.7, epoch=epoch) for epoch in (1.0, 2.0, 3.0)]
    assert summary_lines(run_record(test=scores(0.75, rows=300), history=history)) == [
        "validation 1,523 rows, before -> best: accuracy 0.4366 -> 0.7932, F1 0.4266 -> 0.7832,"
        " precision 0.7000 -> 0.7000, recall 0.6000 -> 0.6000, loss 0.9000 -> 0.5000",
        "best epoch 2 of 3, chosen by f1",
        "test       300 rows: accuracy 0.7600, F1 0.7500, precision 0.7000, recall 0.6000, loss 0.5000",
        "trainable  6,823,936 of 7,511,756,800 parameters (0.0908 %)",
        "time       training 538 s for 20 steps (without evaluation and saving), whole run 7384 s (2:03 h)",
        "throughput 12.3 rows/s, 4,568 tokens/s without padding; padding 12.3 %",
        "memory     GPU1: load 14.5 GB, train 29.6 GB, eval 20.0 GB (reserved, node, RTX 3090)",
        "memory     GPU2: load 14.5 GB, train 20.0 GB, eval 29.5 GB (reserved, node, RTX 3090)",
    ]


ENERGY = {"joules": 9000.0, "rows_per_joule": 0.71234, "ranks": []}


def test_energy_is_said_where_it_is_known_in_the_summary_and_among_the_numbers() -> None:
    lines = summary_lines(run_record(energy=ENERGY))
    assert "energy     2.50 Wh for training, by all GPUs together; 0.712 rows/J" in lines
    numbers = run_figures(run_record(energy=ENERGY), "a", "completed")
    assert (numbers["energy_wh"], numbers["rows_per_joule"]) == (2.5, 0.71234)
    for energy in (None, {"joules": None, "rows_per_joule": None, "ranks": []}):
        assert not [line for line in summary_lines(run_record(energy=energy)) if line.startswith("energy")]
        assert run_figures(run_record(energy=energy), "a", "completed")["energy_wh"] is None


def test_the_summary_names_the_phases_that_a_run_had() -> None:
    memory = [rank(0, load=14.5, train=29.6, eval=20.0, capture=28.0, save=15.0)]
    said = "memory     GPU1: load 14.5 GB, capture 28.0 GB, train 29.6 GB, eval 20.0 GB, save 15.0 GB (reserved, node,"
    assert summary_lines(run_record(memory=memory))[-1].startswith(said)


def by_class(*f1: float) -> dict[str, Any]:
    entries = [
        {"class": f"c{i}", "precision": 0.1, "recall": 0.2, "f1": value, "rows": 9} for i, value in enumerate(f1)
    ]
    return {"classes": entries, "confusion_matrix": [[9, 0], [4, 5]]}


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([1.0, 2.0, 3.0], "best epoch 2 of 3, chosen by f1"),
        ([1.0, 2.0], "best epoch 2 of 2, chosen by f1 (3 asked for)"),
        ([1.0, 2.0, 2.25], "best epoch 2 of 2.25, chosen by f1 (3 asked for)"),
        ([], "best epoch 2 of n/a, chosen by f1"),
    ],
)
def test_the_best_epoch_is_one_of_those_that_ran(epochs: list[float], expected: str) -> None:
    assert summary_lines(run_record(history=[scores(0.7, epoch=epoch) for epoch in epochs]))[1] == expected


def test_summary_says_which_f1_and_shows_each_class_of_validation_and_test() -> None:
    data = {"task": "custom", "labels": ["c0", "c1"], "positive_label": "c1"}
    best = {**scores(0.5, epoch=2, metric="f1"), **by_class(0.6, 0.5)}
    lines = summary_lines(run_record(data=data, best=best, test={**scores(0.7, rows=18), **by_class(0.8, 0.7)}))
    assert "scores     F1 of class c1; precision and recall likewise" in lines
    heads = [i for i, line in enumerate(lines) if line.startswith("by class")]
    assert [lines[i].split(";")[0] for i in heads] == ["by class   validation, best epoch", "by class   test"]
    shown = [lines[i + 3].split() for i in heads]
    assert shown == [
        ["c1", "(positive)", "0.1000", "0.2000", "0.5000", "9", "4", "5"],
        ["c1", "(positive)", "0.1000", "0.2000", "0.7000", "9", "4", "5"],
    ]


def test_summary_of_random_weights_has_no_scores() -> None:
    best = {**scores(0.7832, epoch=2), **by_class(0.6, 0.5)}
    text = "\n".join(summary_lines({**with_model(weights="random"), "best": best, "test": best}))
    assert text.startswith("scores     n/a: random weights")
    assert not re.search(r"accuracy|F1|0\.7832|best|by class", text)
    assert "train 29.6 GB" in text


def test_summary_of_a_failure_is_one_line_each_and_guesses_nothing() -> None:
    lines = summary_lines(
        {"status": "failed", "error": "out of memory\n  at step 3", "memory": [rank(0, "cpu", load=1.0)]}
    )
    assert lines[0] == "status     failed: out of memory at step 3"
    assert lines[1].startswith("validation n/a rows, before -> best: accuracy n/a -> n/a, F1 n/a -> n/a")
    assert lines[-1] == "memory     CPU1: load 1.0 GB, train n/a, eval n/a (resident, node, RTX 3090)"
    assert all("\n" not in line for line in lines)


# --- curves


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved, in order."""
    from matplotlib.figure import Figure

    saved: list[Any] = []
    genuine = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        genuine(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def lines_of(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.get_lines()}


def test_curves_show_losses_and_scores_from_before_training_on(tmp_path: Path, figures: list[Any]) -> None:
    path = tmp_path / "curves.png"
    assert draw_curves(run_record(), train_events([0.9, None, 0.7]), path) is True
    assert path.read_bytes().startswith(PNG)
    assert os.listdir(tmp_path) == ["curves.png"]
    losses, quality = figures[0].axes
    assert lines_of(losses) == {
        "training loss": [(1, 0.9), (3, 0.7)],
        "evaluation loss": [(0, 0.9), (10, 0.6), (20, 0.5)],
        "best epoch (2)": [(20, 0.5)],
    }
    drawn = lines_of(quality)
    assert drawn["F1"] == [(0, 0.4266), (1, 0.6), (2, 0.78323)]
    assert drawn["accuracy"] == [(0, 0.4266 + 0.01), (1, 0.6 + 0.01), (2, 0.78323 + 0.01)]
    assert [x for x, _ in drawn["best epoch (2)"]] == [2, 2]
    assert losses.get_xlabel() == "optimizer step" and losses.get_ylabel() == "loss"
    assert quality.get_xlabel().startswith("epoch") and quality.get_legend() is not None


def test_a_metric_that_is_one_entry_is_summed_up_and_drawn_by_its_label(
    tmp_path: Path, figures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    added = Metric(label="Matthews", compute=lambda answers: 0.0, shown={"summary": 5, "curves": 3})
    monkeypatch.setitem(metrics._METRICS, "matthews", added)
    history = [scores(0.6, epoch=1, step=10, matthews=0.3), scores(0.7, epoch=2, step=20, matthews=0.25)]
    record = run_record(before=scores(0.4, matthews=-0.1), history=history, best=history[1])
    assert "recall 0.6000 -> 0.6000, Matthews -0.1000 -> 0.2500, loss 0.5000 -> 0.5000" in summary_lines(record)[0]
    assert draw_curves(record, [], tmp_path / "curves.png")
    drawn = figures[0].axes[1].get_lines()
    assert [line.get_label() for line in drawn][:3] == ["accuracy", "F1", "Matthews"]
    assert lines_of(figures[0].axes[1])["Matthews"] == [(0, -0.1), (1, 0.3), (2, 0.25)]
    assert len({line.get_color() for line in drawn}) == 4, "three scores, and the best epoch"


def test_curves_of_random_weights_have_losses_only_and_say_so(tmp_path: Path, figures: list[Any]) -> None:
    assert draw_curves(with_model(weights="random"), train_events([0.9, 0.8]), tmp_path / "curves.png")
    (losses,) = figures[0].axes
    assert set(lines_of(losses)) == {"training loss", "evaluation loss"}
    assert "random weights: scores n/a" in figures[0].get_suptitle()


def test_curves_of_many_records_get_a_running_mean(tmp_path: Path, figures: list[Any]) -> None:
    noisy = [0.5 + 0.1 * (-1) ** i for i in range(400)]
    assert draw_curves(run_record(), train_events(noisy), tmp_path / "curves.png")
    drawn = lines_of(figures[0].axes[0])
    mean = drawn["mean of 11 records"]
    assert [x for x, _ in mean] == list(range(1, 401))
    assert max(abs(y - 0.5) for _, y in mean) < 0.02
    assert len(drawn["training loss"]) == 400


def test_a_resumed_run_draws_each_step_once(tmp_path: Path, figures: list[Any]) -> None:
    events = [*train_events([0.9, 0.8, 0.7]), {"event": "train", "step": 3, "loss": 0.65}]
    assert draw_curves(run_record(), events, tmp_path / "curves.png")
    assert lines_of(figures[0].axes[0])["training loss"] == [(1, 0.9), (2, 0.8), (3, 0.65)]


@pytest.mark.parametrize(
    "record", [{}, {"before": None, "best": None, "history": []}, {"before": {}, "history": None}]
)
def test_nothing_recorded_draws_nothing(tmp_path: Path, record: dict[str, Any]) -> None:
    assert draw_curves(record, [], tmp_path / "curves.png") is False
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("record", "events", "panels"),
    [
        ({"status": "failed"}, train_events([0.9]), 1),
        ({"before": scores(0.4)}, [], 2),
        ({"best": None}, [{"event": "eval", **scores(0.4, step=5, epoch=1)}], 2),
        ({"model": {"name": "$\\frac{$ 模型"}}, train_events([0.9] * 60), 1),
    ],
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_curves_draw_what_exists(
    tmp_path: Path, figures: list[Any], record: dict[str, Any], events: list[dict[str, Any]], panels: int
) -> None:
    assert draw_curves(record, events, tmp_path / "curves.png")
    assert len(figures[0].axes) == panels


def test_failed_drawing_keeps_the_previous_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def half(self: Figure, target: Path, **_: Any) -> None:
        target.write_bytes(PNG)
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space"):
        draw_curves(run_record(), [], path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["curves.png"]


@given(st.lists(st.floats(-10, 10), max_size=40), st.sampled_from([1, 3, 5, 11]))
def test_running_mean_is_the_mean_of_the_neighbours(values: list[float], width: int) -> None:
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    assert running_mean(values, width) == pytest.approx([sum(window) / len(window) for window in windows], abs=1e-9)


def test_the_recipe_is_shown_where_it_differs() -> None:
    strong = seeded(1)
    strong["config"]["optim"]["recipe"] = "strong"
    rows = [table_row(seeded(1), "older"), table_row(strong, "b")]
    assert header([*rows, *REPORTED]) == ["Run", "Model", "Task", "Recipe", "Strategy", *COLUMNS[3:]]
    assert [markdown_cells(line)[3] for line in to_markdown(rows).splitlines()[2:4]] == ["original", "strong"]


def test_runs_of_before_there_were_recipes_have_the_original_in_every_form() -> None:
    older = seeded(1)
    older["config"]["optim"].pop("recipe", None)
    unknown = {**seeded(2), "config": {}}
    figures = [run_figures(run, "", "completed") for run in (older, unknown)]
    assert [run["recipe"] for run in figures] == ["original", None]
    assert select(figures, ["recipe=original"]) == [True, False]
    assert [table_row(run).recipe for run in (older, unknown)] == ["original", "n/a"]
