"""The rows that the original experiments trained and validated on, whatever else changes in splitting."""

import dataclasses
from pathlib import Path

import tiny

from lorabench.config.defaults import resolve_defaults
from lorabench.data.task import load_task

# Of 20 rows, those that `datasets` puts into 20 % at seed 42.
VALIDATION = [15, 9, 14, 7]
TRAIN = [12, 10, 6, 19, 3, 0, 16, 5, 11, 18, 2, 4, 17, 1, 13, 8]


def test_the_tweets_are_split_at_seed_42_by_position_alone(tmp_path: Path) -> None:
    train_file = tiny.write_csv(
        tmp_path / "tweets.csv",
        {"id": range(20), "text": tiny.texts(20), "target": [int(i < 3) for i in range(20)]},
    )
    config = resolve_defaults("minilm", "disaster-tweets").data
    data = load_task(dataclasses.replace(config, train_file=train_file), seed=7)
    assert [int(row) for row in data.validation.ids] == VALIDATION
    assert [int(row) for row in data.train.ids] == TRAIN
