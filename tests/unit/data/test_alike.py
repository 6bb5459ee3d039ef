"""Classes that a reader might take for one are named, and ordinary sets of classes are not."""

import pytest

from lorabench.data.alike import alike_groups

LOOKS, PARTS, SAYS = "look alike", "have the same parts", "may say the same"


@pytest.mark.parametrize(
    ("names", "likeness"),
    [
        (("caf\u00e9", "cafe"), LOOKS), (("\u0141\u00f3d\u017a", "Lodz"), LOOKS), (("a\u00f1o", "ano"), LOOKS),
        (("R&D", "R&amp;D"), LOOKS), (("R&D", "R and D"), LOOKS), (("it's", "it&#39;s"), LOOKS),
        (("caf\u00c3\u00a9", "caf\u00e9"), LOOKS), (("caf\u00c3\u00a9", "cafe"), LOOKS),
        (("\u0451\u043b\u043a\u0430", "\u0435\u043b\u043a\u0430"), LOOKS),
        (("\U0001f44d", "\U0001f44d\U0001f3fd"), LOOKS), (("a,b", "b,a"), PARTS),
        (("0", "O"), SAYS), (("1", "l"), SAYS),
        (("pos", "positive"), SAYS), (("Neg", "NEGATIVE"), SAYS), (("neu", "neutral"), SAYS),
        (("entail", "entailment"), SAYS), (("con", "contradiction"), SAYS), (("misc", "miscellaneous"), SAYS),
        (("5", "5 stars"), SAYS), (("5", "5-star"), SAYS), (("5 stars", "five stars"), SAYS), (("1", "one"), SAYS),
        (("1", "class 1"), SAYS), (("0", "LABEL_0"), SAYS), (("3 stars", "\u2605\u2605\u2605"), SAYS),
        (("sport", "sports"), SAYS), (("1", "True"), SAYS), (("y", "yes"), SAYS),
    ],
)  # fmt: skip
def test_names_that_may_be_one_class_are_said(names: tuple[str, ...], likeness: str) -> None:
    assert alike_groups(["unlike", *names]) == [(likeness, [list(names)])]


@pytest.mark.parametrize(
    "names",
    [
        ("pos", "neg"), ("pos", "neg", "neutral"), ("positive", "negative"), ("1", "10"), ("A", "AB"),
        ("A", "A+", "A-"),
        ("art", "artist"), ("car", "carpet"), ("new", "news"), ("con", "pro"), ("pos", "post office"), ("0", "1", "2"),
        ("entailment", "neutral", "contradiction"), ("World", "Sports", "Business", "Sci/Tech"), ("one", "two"),
        ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"), ("joy", "sadness", "anger", "fear"), ("1 star", "2 stars"),
        ("level 1", "level 10"), ("grade 1", "level 1"), ("LABEL_0", "LABEL_1"), ("male", "female"),
        ("C", "C++", "C#"),
        ("\u043c\u043e\u0439", "\u043c\u043e\u0438"), ("\u304b", "\u304c"), ("\u0915\u0941\u0932", "\u0915\u0932"),
        ("sci.med", "sci.space", "sci.crypt"), ("Q&A", "FAQ"), ("AT&T", "ATT"), ("2", "2 or more"),
        ("O", "A", "B", "AB"),
    ],
)  # fmt: skip
def test_ordinary_classes_are_not(names: tuple[str, ...]) -> None:
    assert alike_groups(names) == []
