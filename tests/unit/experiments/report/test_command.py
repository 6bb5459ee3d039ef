"""`lorabench report` from the command line: which file it writes, and what it refuses before it computes anything."""

import csv
import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pictures
import pytest
from finished import finished_run
from limits import HANG_S
from made_runs import make_run

from lorabench import cli

PROJECT = Path(__file__).parents[4]
TEMPLATES = PROJECT / "lorabench" / "experiments" / "report" / "templates"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "a", model="roberta-large", f1=0.7)
    make_run(tmp_path / "runs" / "b_1", f1=0.8, seed=7)
    return tmp_path / "runs"


def report(*words: object) -> int:
    return cli.main(["report", *map(str, words)])


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("page.html", "<!doctype html>"),
        ("page.HTM", "<!doctype html>"),
        ("table.md", "| Run |"),
        ("table.tex", "% \\usepackage{booktabs}"),
        ("table.csv", "run,status,model"),
        ("table.json", "["),
    ],
)
def test_the_end_of_the_name_says_what_is_written(
    runs: Path, tmp_path: Path, name: str, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(runs, "--output", tmp_path / name) == 0
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)
    assert capsys.readouterr().out == f"wrote {tmp_path / name}\n"


def test_format_wins_over_the_name(runs: Path, tmp_path: Path) -> None:
    assert report(runs, "--output", tmp_path / "table.txt", "--format", "json") == 0
    assert len(json.loads((tmp_path / "table.txt").read_text(encoding="utf-8"))) == 2


def test_rows_that_a_run_has_read_are_not_replaced(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n", encoding="utf-8")
    file = runs / "a" / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["data"]["sources"] = {"train": {"path": str(rows), "sha256": "0"}}
    file.write_text(json.dumps(record), encoding="utf-8")
    assert report(runs, "--output", rows, "--overwrite") == 2
    assert "rows.csv: holds rows that the run in" in capsys.readouterr().err
    assert rows.read_text(encoding="utf-8") == "text,label\n"


def test_runs_are_chosen_and_ordered(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert report(runs, "--output", path, "--sort", "f1", "--descending") == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert [row["run"] for row in rows] == ["b_1", "a"]
    assert report(runs, "--output", path, "--where", "model=rob*", "--reported", "--overwrite") == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert [row["run"] for row in rows] == ["a", "(reported)", "(reported)", "(reported)"]


def test_latex_holds_no_command_of_a_record(runs: Path, tmp_path: Path) -> None:
    make_run(runs / "c", strategy="\\input{secret} 50% & [x] ^_$#~")
    assert report(runs, "--output", tmp_path / "table.tex") == 0
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert "b\\_1 & minilm" in text and "\\input" not in text
    assert r"\textbackslash{}input\{secret\} 50\% \& {[}x] \textasciicircum{}\_\$\#\textasciitilde{}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUNS", "--output", "page.pdf"], "page.pdf: expected a name that ends in one of .html"),
        (["RUNS", "--output", "there.html"], "there.html: exists already; expected a new file, or --overwrite"),
        (["RUNS", "--output", "no/page.html"], "there is no folder no; expected one to write into"),
        (["RUNS", "--output", "page.html", "--plots", "there.html"], "--plots there.html: no folder"),
        (["RUNS", "--output", "page.html", "--plots", "a/b"], "--plots a/b: there is no folder a"),
        (["RUNS", "--output", "page.html", "--plots", "plots"], "exists already; expected a new file"),
        (["RUNS", "--output", "page.html", "--sort", "beauty"], "--sort beauty: no column"),
        (["nothing"], "nothing: no such folder"),
        ([], "expected at least one run folder"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is(
    runs: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine", encoding="utf-8")
    Path("plots").mkdir()
    Path("plots/training-loss.png").write_text("mine", encoding="utf-8")
    assert report(*(runs if word == "RUNS" else word for word in words)) == 2
    assert said in capsys.readouterr().err
    assert not Path("page.html").exists() and Path("there.html").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in Path("plots").iterdir()] == ["training-loss.png"]


def test_plots_go_into_a_new_folder(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures.SAVE, pictures.leave_empty)
    plots = tmp_path / "plots"
    assert report(runs, "--output", tmp_path / "page.html", "--plots", plots) == 0
    names = {path.name for path in plots.iterdir()}
    assert {"training-loss.png", "training-loss.svg", "memory-gpu.svg", "f1-against-time.png"} <= names
    assert capsys.readouterr().out == f"wrote {tmp_path / 'page.html'}, and {len(names)} files into {plots}\n"
    assert report(runs, "--output", tmp_path / "page.html", "--plots", plots, "--overwrite") == 0


def test_the_page_needs_no_torch_and_no_matplotlib(runs: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lorabench import cli; assert cli.main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "report", str(runs), "--output", str(tmp_path / "page.html")]
    subprocess.run(command, check=True, cwd=PROJECT, timeout=HANG_S)


def test_an_installed_package_has_the_page_s_files() -> None:
    patterns = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = patterns["tool"]["setuptools"]["package-data"]["lorabench"]
    packaged = {path for pattern in patterns for path in (PROJECT / "lorabench").glob(pattern)}
    files = set(TEMPLATES.iterdir())
    assert files and files <= packaged


@pytest.mark.slow
def test_a_real_run_has_all_its_sections(tmp_path: Path) -> None:
    run = finished_run(tmp_path, max_steps=4, epochs=2)
    page = tmp_path / "page.html"
    assert report(run, "--output", page, "--plots", tmp_path / "plots") == 0
    text = page.read_text(encoding="utf-8")
    for section in ("runs", "cost", "memory", "curves", "changes", "classes", "confusions", "details", "environments"):
        assert f'id="{section}"' in text
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert f"{record['best']['f1']:.4f}" in text
