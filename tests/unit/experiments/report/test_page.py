"""The page is one file that asks for nothing, runs nothing of others, and shows one run or hundreds."""

import base64
import hashlib
import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import make_run

from lorabench.experiments.report.charts import MOST_CURVES, MOST_POINTS
from lorabench.experiments.report.command import ReportOptions, report_command
from lorabench.experiments.report.page import render_page
from lorabench.experiments.report.runs import read_report_runs
from lorabench.harmless import printable
from lorabench.results.calibration import FITTED
from lorabench.results.report import read_runs

HOSTILE = "</script><script>alert(1)</script>\"'><img src=//host onerror=a()><!-- {{ 7*7 }} \u202e&amp;"


class Page(HTMLParser):
    """A page's tags with their attributes, its texts, and the contents of its script and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.raw[self._inside] = data
        else:
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def render(folder: Path) -> str:
    return render_page(read_report_runs(read_runs([folder], "test")), "Runs")


def policy(page: Page) -> str:
    return next(str(meta["content"]) for meta in page.named("meta") if meta.get("http-equiv"))


def test_every_section_is_there(tmp_path: Path) -> None:
    for seed in (42, 43):
        make_run(tmp_path / f"roberta-{seed}", model="roberta-large", seed=seed, f1=0.8, predictions=True)
    make_run(tmp_path / "mistral", model="mistral-7b", changes={"lora": {"lora_r": 32}})
    page = Page(render(tmp_path))
    sections = [section.get("id") for section in page.named("section") if "id" in section]
    assert sections == [
        *("runs", "reported", "seeds", "cost", "memory", "curves", "changes", "classes", "confusions", "hardest"),
        *("details", "environments"),
    ]
    links = {str(link["href"]) for link in page.named("a")}
    assert links <= {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}, "nothing leads away"
    assert "accelerate launch -m lorabench.train --model roberta-large --seed 43" in page.text
    assert "53 settings that all runs share" not in page.text and "lora.lora_r" in {
        head.get("data-key") for head in page.named("th")
    }


def test_threshold_and_calibration_have_a_section_where_runs_have_fitted_them(tmp_path: Path) -> None:
    fitted = {
        "threshold": 0.4132, "temperature": 1.8345, "at_threshold": {"f1": 0.8123}, "cross_fitted": {"f1": 0.8077},
        "ece": {"before": 0.0712, "after": 0.0213, "cross_fitted": 0.0241},
    }  # fmt: skip
    make_run(tmp_path / "older")
    make_run(tmp_path / "fitted", calibration=fitted)
    page = Page(render(tmp_path))
    assert "calibration" in [section.get("id") for section in page.named("section")]
    for figure in ("0.4132", "1.8345", "0.8123", "0.8077", "0.0712", "0.0213", "0.0241"):
        assert figure in page.text
    for title in ("F1, argmax", *(column.title for column in FITTED.values())):
        assert title in page.text


def test_nothing_is_loaded_and_only_the_page_s_own_script_may_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    text = render(tmp_path)
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form")]
    assert not re.search(r"url\(|@import|https?://|src=", text)
    assert not [name for _, attributes in page.tags for name in attributes if name == "style" or name.startswith("on")]
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert len(page.named(kind)) == 1 and f"{kind}-src 'sha256-{digest}'" in policy(page)
    assert policy(page).startswith("default-src 'none';")


def test_without_a_script_the_table_is_plain_and_whole(tmp_path: Path) -> None:
    for number in range(3):
        make_run(tmp_path / f"run-{number}", seed=number)
    page = Page(render(tmp_path))
    controls = [attributes for _, attributes in page.tags if "needs-script" in str(attributes.get("class"))]
    assert controls and all("hidden" in attributes for attributes in controls)
    rows = [row["data-run"] for row in page.named("tr") if "data-run" in row]
    assert rows[:3] == ["0", "1", "2"]


def hostile_run(folder: Path, text: str) -> None:
    """A run with a text wherever a record may hold one."""
    make_run(folder, labels=(text, "1"), predictions=True)
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record |= {"strategy": text, "precision": text, "started_at": text, "error": text}
    record["model"] |= {"name": text, "source": text, "weights": text}
    record["data"] |= {"task": text, "remarks": [text], "rows": {text: 1}}
    record["config"]["lora"] |= {"lora_targets": text, text: text}
    record["environment"] = {
        **{"packages": {text: text}, "python": text, "gpus": [text], "git_commit": text},
        "launch_command": [text, "-m", text],
    }
    record["memory"][0] |= {"host": text, "device_name": text, "phases": {**record["memory"][0]["phases"], text: {}}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def test_texts_of_others_stay_texts(tmp_path: Path) -> None:
    hostile_run(tmp_path / "a <img src=x onerror=a()>", HOSTILE)
    hostile_run(tmp_path / "b", "harmless")
    text = render(tmp_path)
    page = Page(text)
    assert len(page.named("script")) == 1 and not page.named("img")
    assert "alert(1)" not in page.raw["script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in text and "{{ 7*7 }}" in page.text
    assert "a <img src=x onerror=a()>" in page.text


@settings(max_examples=15)
@given(text=st.text(min_size=1, max_size=30))
def test_any_text_leaves_the_page_as_it_is(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        hostile_run(Path(name) / "run", text)
        hostile_run(Path(name) / "other", "plain")
        written = render(Path(name))
    page = Page(written.encode("utf-8").decode("utf-8"))
    assert len(page.named("script")) == len(page.named("style")) == 1
    tags = {tag for tag, _ in page.tags}
    assert tags <= {
        *("html", "head", "meta", "title", "style", "body", "header", "div", "h1", "h2", "h3", "p", "button", "nav"),
        *("a", "main", "section", "span", "strong", "label", "input", "fieldset", "legend", "output", "code", "table"),
        *(
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "details",
            "summary",
            "dl",
            "dt",
            "dd",
            "figure",
            "svg",
            "g",
        ),
        *("figcaption", "path", "circle", "rect", "caption", "pre", "text", "script"),
    }
    shown = " ".join(printable(text, keep="\n").replace("\r", "\n").split())
    assert shown in " ".join(page.text.split())


def test_hundreds_of_runs_make_a_small_page(tmp_path: Path) -> None:
    for number in range(300):
        changes = {"lora": {"lora_r": 2 ** (number % 6), "lora_dropout": number / 1e4}}
        make_run(
            tmp_path / f"trial-{number}", seed=number, f1=0.5 + number / 1000, changes=changes, events_per_epoch=90
        )
    text = render(tmp_path)
    assert len(text) < 1_700_000
    page = Page(text)
    curves = [group for group in page.named("g") if "curve" in str(group["class"]) and "data-run" in group]
    assert len(curves) == 4 * MOST_CURVES
    paths = [str(path["d"]) for path in page.named("path") if str(path.get("d")).count("L") > 20]
    assert paths and max(path.count("L") for path in paths) < MOST_POINTS
    assert len([run for run in page.named("details") if run.get("id")]) == 300
    drawn = {group["data-run"] for group in curves}
    scores = [run.figures["f1"] for run in read_runs([tmp_path], "test")]
    assert sorted(scores[int(str(place))] for place in drawn) == sorted(scores)[-MOST_CURVES:]
    assert f"Drawn: the {MOST_CURVES} of 300 runs with the highest F1." in page.text


@pytest.mark.parametrize("record", [{"schema_version": 1}, {"schema_version": 1, "status": "failed", "error": "no"}])
def test_a_run_that_knows_next_to_nothing_is_shown(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = Page(render(tmp_path))
    assert page.named("details")[-1]["id"] == "run-0" and "open" in page.named("details")[-1]


def test_random_weights_have_no_scores(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["model"]["weights"] = "random"
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = Page(render(tmp_path))
    sections = {section.get("id") for section in page.named("section")}
    assert {"memory", "curves"} <= sections and not sections & {"cost", "changes", "classes", "confusions"}
    assert f"{record['best']['f1']:.4f}" not in page.text


def test_a_damaged_file_beside_the_record_is_said_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "runs" / "run", predictions=True)
    (folder / "metrics.jsonl").write_text("no json\n{}\n", encoding="utf-8")
    (folder / "validation_predictions.csv").unlink()
    (tmp_path / "secret.csv").write_text("id,label,true_label\nsecret,1,0\n", encoding="utf-8")
    (folder / "validation_predictions.csv").symlink_to(tmp_path / "secret.csv")
    report_command(ReportOptions(runs=(tmp_path / "runs",), output=tmp_path / "page.html"))
    said = capsys.readouterr().err
    assert "metrics.jsonl, line 1: expected a JSON object" in said and "a link out of the run's folder" in said
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "hardest" not in {section.get("id") for section in page.named("section")}
    assert "secret" not in page.text
