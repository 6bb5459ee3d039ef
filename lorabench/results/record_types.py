"""The types of what a record may hold: a `run.json` may come from anybody, and is data to be checked."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lorabench.catalog.metrics import METRICS

Check = Callable[[Any], str | None]
"""What was expected, where a value is not that; else None."""

_LARGEST = 2**63


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _number(value: Any) -> str | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    # Larger whole numbers than a float can be are JSON, too.
    return None if known and (isinstance(value, float) or abs(value) < _LARGEST) else "a number"


def _count(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST
    return None if whole else "a whole number of at least 0"


class _Object:
    """An object whose fields, where they are there and not null, are of these types; of others, nothing is asked.

    Args:
        fields: by name.
        others: of every other field.
    """

    def __init__(self, fields: Mapping[str, Any] | None = None, others: Any = None) -> None:
        self.fields = fields or {}
        self.others = others


class _List:
    def __init__(self, items: Any) -> None:
        self.items = items


_SCORES = _Object(
    {**dict.fromkeys((*METRICS, "loss", "rows", "epoch", "step", "value"), _number), "metric": _text},
)
_FITTED = {"ece": _Object(others=_number), "nll": _Object(others=_number), "at_threshold": _SCORES}
_NUMBERS = ("train_seconds", "wall_seconds", "first_step_seconds", "model_construction_seconds", "steps")
_RATES = ("examples_per_second", "tokens_per_second", "padding_percent", "skipped_steps")
_MEMORY = _Object(
    {
        "rank": _count,
        "host": _text,
        "device": _text,
        "device_name": _text,
        "uuid": _text,
        "capacity_gb": _number,
        "limit_gb": _number,
        "phases": _Object(others=_Object(others=_number)),
        "breakdown": _Object({"phase": _text, "frozen_gb": _Object(others=_number)}, others=_number),
    }
)
_PROCESS = _Object({"pid": _count, "name": _text, "gb": _number})
_GPU_AT_START = _Object(
    {"rank": _count, "host": _text, "uuid": _text, "in_use_gb": _number, "others": _List(_PROCESS)}
)
_DRAWN = _Object({"rank": _count, "host": _text, "uuid": _text, "joules": _number, "source": _text})
_ENERGY = _Object({"joules": _number, "rows_per_joule": _number, "ranks": _List(_DRAWN)})
_PLANNED = _Object(dict.fromkeys(("low_gb", "expected_gb", "high_gb"), _number))
_PLAN = _Object({"per_gpu": _List(_Object({"rank": _count, "phases": _Object(others=_PLANNED)}))})
RECORD = _Object(
    {
        "schema_version": _count,
        **dict.fromkeys(("status", "error", "started_at", "strategy", "precision", "execution"), _text),
        "world_size": _count,
        "config": _Object(
            {
                "model": _Object({"model": _text}),
                "data": _Object({"task": _text, "train_file": _text}),
                "optim": _Object({"epochs": _number, "seed": _number, "recipe": _text}),
            },
            others=_Object(),
        ),
        "environment": _Object(),
        "model": _Object(
            {
                **dict.fromkeys(("name", "source", "weights", "quantize"), _text),
                **dict.fromkeys(("total_parameters", "base_parameters", "trainable_parameters"), _number),
                "trainable_percent": _number,
            }
        ),
        "data": _Object(
            {
                "task": _text,
                "synthetic": _flag,
                "labels": _List(_text),
                "positive_label": _text,
                "rows": _Object(others=_number),
                "class_weights": _List(_number),
            }
        ),
        **dict.fromkeys(("before", "best", "test"), _SCORES),
        "calibration": _Object(
            {
                **dict.fromkeys(("temperature", "threshold", "rows", "bins", "folds"), _number),
                **dict.fromkeys(("metric", "note"), _text),
                **_FITTED,
                "cross_fitted": _SCORES,
                "test": _Object({**_FITTED, "rows": _number}),
            }
        ),
        "history": _List(_SCORES),
        "start": _Object(others=_number),
        "gpus_at_start": _List(_GPU_AT_START),
        "memory": _List(_MEMORY),
        "energy": _ENERGY,
        "plan": _PLAN,
        "resumed": _List(_Object()),
        **dict.fromkeys((*_NUMBERS, *_RATES), _number),
    }
)


def wrong_types(value: Any, expected: Any = RECORD, where: str = "") -> Iterator[str]:
    """Each place where a record holds something else than this version writes there, with what was expected.

    What is missing, null, or not of this version is no matter.
    """
    if expected is None or (value is None and where):
        return
    if isinstance(expected, _Object):
        if not isinstance(value, Mapping):
            yield f"{where or 'it'}: expected an object"
            return
        for name, item in value.items():
            yield from wrong_types(item, expected.fields.get(name, expected.others), f"{where}.{name}".lstrip("."))
    elif isinstance(expected, _List):
        if not isinstance(value, list):
            yield f"{where}: expected a list"
            return
        for place, item in enumerate(value):
            if item is None:
                yield f"{where}[{place}]: expected no null"
            yield from wrong_types(item, expected.items, f"{where}[{place}]")
    elif (wanted := expected(value)) is not None:
        yield f"{where}: expected {wanted}"
