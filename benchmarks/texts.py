"""Rows of other lengths than the tweets', made of their words: what a step costs depends on how long texts are."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from lorabench.data.readers import read_columns

ROWS = 1200
TextKind = Literal["tweets", "long", "filled", "reclor"]


@dataclass(frozen=True)
class Spread:
    """How many words rows have: normally distributed.

    Attributes:
        flags: of `lorabench.train`, beside those of the rows.
    """

    mean: int
    deviation: int
    flags: tuple[str, ...] = ()


# Of the stand-in tokenizer about 1,200 tokens a row, 1,900 at the most; 512 in each; and 220.
SPREADS: Mapping[TextKind, Spread] = MappingProxyType(
    {
        "long": Spread(570, 140, ("--max-length", "1900")),
        "filled": Spread(570, 90, ("--max-length", "512")),
        "reclor": Spread(97, 20),
    }
)


def write_rows(kind: TextKind, tweets: Path, folder: Path) -> list[str]:
    """Write a kind's rows into `folder`. Returns the flags of a run that trains on them.

    Args:
        kind: of `SPREADS`.
        tweets: CSV of the tweets, whose words texts are made of.
    """
    words = [word for text in read_columns("--train-file", tweets)["text"] for word in text.split()]
    spread, drawn = SPREADS[kind], random.Random(0)
    texts = [_take(words, max(20, round(drawn.gauss(spread.mean, spread.deviation))), drawn) for _ in range(ROWS)]
    row, task = (_reclor_row, "reclor") if kind == "reclor" else (_plain_row, "disaster-tweets")
    file = folder / f"{kind}.jsonl"
    file.write_text("\n".join(json.dumps(row(text, number)) for number, text in enumerate(texts)), encoding="utf-8")
    return ["--task", task, "--train-file", str(file), *spread.flags]


def _take(words: Sequence[str], count: int, drawn: random.Random) -> list[str]:
    start = drawn.randrange(len(words))
    return [words[(start + place) % len(words)] for place in range(count)]


def _plain_row(words: Sequence[str], number: int) -> dict[str, Any]:
    return {"text": " ".join(words), "target": number % 2}


def _reclor_row(words: Sequence[str], number: int) -> dict[str, Any]:
    """Half of the words are the context, six the question, and the rest four answers."""
    context = len(words) // 2
    answers = [" ".join(words[context + 6 + place :: 4]) for place in range(4)]
    question = " ".join(words[context : context + 6])
    return {"context": " ".join(words[:context]), "question": question, "answers": answers, "label": number % 4}
