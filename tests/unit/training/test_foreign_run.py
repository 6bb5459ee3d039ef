"""A run's record may come from anybody: what cannot be used for a prediction is said before a model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError
from lorabench.training.prediction import FinishedRun


def read(folder: Path, data: dict[str, Any], **fields: Any) -> FinishedRun:
    record = {"schema_version": 1, "status": "completed", "config": RunConfig().to_json(), "precision": "fp32"}
    (folder / "run.json").write_text(json.dumps({**record, "data": {"labels": ["0", "1"], **data}, **fields}))
    return FinishedRun.read(folder)


def test_classes_get_the_type_that_they_had(tmp_path: Path) -> None:
    assert read(tmp_path, {"label_kind": "integer"}).label_values == (0, 1)


@pytest.mark.parametrize(
    ("data", "fields", "said"),
    [
        ({"label_kind": "date"}, {}, "data.label_kind = 'date'"),
        ({"label_kind": ["integer"]}, {}, "data.label_kind ="),
        ({"label_kind": "integer", "labels": ["no", "yes"]}, {}, "the classes are of another one"),
        ({"labels": ["no", "no"]}, {}, "two classes or more, each once"),
        ({"pairs": [1]}, {}, "data.pairs ="),
        ({}, {"precision": "fp8"}, "precision = 'fp8'"),
    ],
)
def test_what_cannot_be_used_is_refused(
    data: dict[str, Any], fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not one of this version") as raised:
        read(tmp_path, data, **fields)
    assert said in str(raised.value)
