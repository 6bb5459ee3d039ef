"""Equal texts are counted as a plain look at every pair of rows counts them."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lorabench.config.run_config import DataConfig
from lorabench.data.division import divide
from lorabench.data.findings import (
    Conflicts,
    Dropped,
    Findings,
    absent_classes,
    count_conflicts,
    count_shared,
    keep_first,
    keep_unshared,
    rare_classes,
)
from lorabench.data.task import Rows, TaskData

ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), max_size=25)


@given(ROWS, ROWS)
def test_counts_are_those_of_a_look_at_every_pair(train: list[tuple[str, int]], other: list[tuple[str, int]]) -> None:
    texts, labels = [text for text, _ in train], [label for _, label in train]
    others = [text for text, _ in other]
    assert count_shared(set(texts), others) == sum(any(text == known for known in texts) for text in others)
    unlike = [text for text, label in train if any(text == t and label != n for t, n in train)]
    assert count_conflicts(texts, labels) == Conflicts(len(set(unlike)), len(unlike))
    assert keep_unshared(texts, others) == [i for i, text in enumerate(texts) if text not in others]
    assert keep_first(texts, labels) == [i for i, row in enumerate(train) if row not in train[:i]]


def test_texts_that_differ_in_case_or_space_are_not_equal() -> None:
    assert count_shared({"a", ("a", "b")}, ["A", "a ", ("b", "a"), ("a", "b")]) == 1


def test_classes_without_a_row_and_with_few_are_told_apart() -> None:
    counts, names = [0, 1, 4, 5, 0], ["a", "b", "c", "d", "e"]
    assert absent_classes(counts, names) == ["a", "e"]
    assert rare_classes(counts, names) == {"b": 1, "c": 4}


@given(ROWS.filter(lambda rows: len(set(rows)) > 4), ROWS, st.integers(0, 99))
def test_after_dropping_no_text_stands_on_two_sides(
    train: list[tuple[str, int]], test: list[tuple[str, int]], seed: int
) -> None:
    texts, labels = [text for text, _ in train], [label for _, label in train]
    tables = {"train": texts, "test": [text for text, _ in test]}
    stays = set(train) - {row for row in train if row[0] in tables["test"]}
    config = DataConfig(drop_duplicates=True, split="random", split_seed=seed)
    if len(stays) < 2:
        return
    division = divide("rows", tables, {"train": labels}, config, 42)
    of = {name: [train[i] for i in getattr(division, name)] for name in ("labelled", "train", "validation")}
    assert len(of["labelled"]) == len(stays) and set(of["labelled"]) == stays
    sides = {name: {text for text, _ in of[name]} for name in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert not (sides["train"] | sides["validation"]) & set(tables["test"])
    assert division.findings.shared == {"validation": 0, "test": 0}
    dropped = division.findings.dropped
    assert dropped is not None
    assert dropped.shared + dropped.repeated == len(train) - len(of["train"]) - len(of["validation"])


def test_duplicates_that_are_kept_are_counted_between_the_rows_that_are_taken() -> None:
    tables = {"train": ["x"] * 20, "validation": ["x", "y", "x"]}
    labels = {"train": [0, 1] * 10, "validation": [0, 1, 0]}
    division = divide("rows", tables, labels, DataConfig(max_train_samples=4), 42)
    assert division.findings.shared == {"validation": 2}
    assert division.findings.conflicts == Conflicts(texts=1, rows=20)
    assert not division.findings.held_out


def test_the_record_says_what_was_found_and_which_classes_are_rare() -> None:
    def rows(labels: list[int] | None, count: int = 0) -> Rows:
        texts = ["x"] * (len(labels) if labels is not None else count)
        return Rows(texts, texts, labels, [(0, 1)] * len(texts))

    findings = Findings(True, {"validation": 2, "test": 1}, Conflicts(1, 3), Dropped(4, 5), held_out_share=0.25)
    data = TaskData(
        rows([0] * 9 + [1] * 9 + [2]), rows([0] * 6 + [1]), rows([1] * 5), ("a", "b", "c"), None, None,
        findings=findings,
    )  # fmt: skip
    assert data.findings_to_json() == {
        "held_out": True,
        "held_out_share": 0.25,
        "rows_in_train": {"validation": 2, "test": 1},
        "test_rows_in_validation": 0,
        "conflicting_labels": {"texts": 1, "rows": 3},
        "dropped": {"shared": 4, "repeated": 5},
        "absent_classes": {"validation": ["c"], "test": ["a", "c"]},
        "rare_classes": {"validation": {"b": 1}, "test": {}},
    }
    unlabelled = replace(data, test=rows(None, 3), findings=Findings())
    assert unlabelled.findings_to_json() == {
        "held_out": False,
        "held_out_share": None,
        "rows_in_train": {},
        "test_rows_in_validation": 0,
        "conflicting_labels": {"texts": 0, "rows": 0},
        "dropped": None,
        "absent_classes": {"validation": ["c"]},
        "rare_classes": {"validation": {"b": 1}},
    }
