"""The embedded sample: what its README says, clean enough to try the tool on, and not trivially easy."""

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import lorabench.data.sample

FOLDER = Path(lorabench.data.sample.__file__).parent
SPLITS = ("train", "validation", "test")
Row = dict[str, str]


@pytest.fixture(scope="module")
def sample() -> dict[str, list[Row]]:
    rows = {}
    for split in SPLITS:
        with (FOLDER / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows[split] = list(csv.DictReader(file))
    return rows


@pytest.fixture(scope="module")
def all_rows(sample: dict[str, list[Row]]) -> list[Row]:
    return [row for split in SPLITS for row in sample[split]]


@pytest.fixture(scope="module")
def readme() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_folder_holds_three_files_of_rows() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.csv")) == ["test.csv", "train.csv", "validation.csv"]


def test_columns_are_those_of_the_tweets(all_rows: list[Row]) -> None:
    assert {tuple(row) for row in all_rows} == {("id", "keyword", "location", "text", "target")}
    assert {row["target"] for row in all_rows} == {"0", "1"}
    assert all(row["text"].strip() for row in all_rows)


def test_ids_are_unique_over_the_files(all_rows: list[Row]) -> None:
    assert len({row["id"] for row in all_rows}) == len(all_rows) == 800


@pytest.mark.parametrize("split", SPLITS)
def test_counts_are_as_the_readme_says(sample: dict[str, list[Row]], readme: str, split: str) -> None:
    counts = Counter(row["target"] for row in sample[split])
    line = re.search(rf"\| {split}\.csv \| (\d+) \| (\d+) \| (\d+) \|", readme)
    assert line is not None
    assert [int(number) for number in line.groups()] == [len(sample[split]), counts["0"], counts["1"]]


def test_keywords_and_locations_are_as_the_readme_says(all_rows: list[Row], readme: str) -> None:
    keywords = {row["keyword"] for row in all_rows} - {""}
    assert f"one of {len(keywords)}, empty for" in readme
    for column in ("keyword", "location"):
        empty = sum(not row[column] for row in all_rows) / len(all_rows)
        said = re.search(rf"`{column}`: [^;]*?empty\s+for ([\d.]+) %", readme)
        assert said is not None
        assert 100 * empty == pytest.approx(float(said.group(1)), abs=0.5)


def test_every_keyword_occurs_with_both_labels(all_rows: list[Row]) -> None:
    labels = defaultdict(set)
    for row in all_rows:
        labels[row["keyword"]].add(row["target"])
    assert {keyword for keyword, found in labels.items() if found != {"0", "1"}} == set()


def test_no_text_occurs_twice(all_rows: list[Row]) -> None:
    words = Counter(" ".join(re.findall(r"\w+", row["text"].casefold())) for row in all_rows)
    assert [text for text, count in words.items() if count > 1] == []


def test_counting_words_is_not_enough(sample: dict[str, list[Row]], readme: str) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=3000))
    classifier.fit([row["text"] for row in sample["train"]], [row["target"] for row in sample["train"]])
    scores = [
        f1_score(
            [row["target"] for row in sample[split]],
            classifier.predict([row["text"] for row in sample[split]]),
            pos_label="1",
        )
        for split in ("validation", "test")
    ]
    said = re.search(r"TF-IDF words \+ LR ([\d.]+) / ([\d.]+)", readme)
    assert said is not None
    assert scores == pytest.approx([float(number) for number in said.groups()], abs=0.015)
    assert all(0.5 < score < 0.9 for score in scores)
