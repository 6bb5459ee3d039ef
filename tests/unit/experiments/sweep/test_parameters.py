"""What W&B's parameters become, and which of them are refused, with the reason."""

import math
from typing import Any

import pytest
from optuna import create_study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from lorabench.errors import IssueList
from lorabench.experiments.sweep.parameters import _REFUSED, DISTRIBUTIONS, Parameter, read_parameter


def read(entry: Any) -> tuple[Parameter | None, list[str]]:
    issues = IssueList()
    found = read_parameter("x", entry, "file: x", issues)
    return found, list(issues)


def parameter(entry: Any) -> Parameter:
    found, issues = read(entry)
    assert found is not None and issues == []
    return found


@pytest.mark.parametrize(
    ("entry", "distribution", "extremes"),
    [
        ({"values": [4, 8, 16]}, CategoricalDistribution((4, 8, 16)), (4, 8, 16)),
        ({"values": ["a", 1, True], "distribution": "categorical"}, CategoricalDistribution(("a", 1, True)), None),
        ({"min": 0.0, "max": 0.1}, FloatDistribution(0.0, 0.1), (0.0, 0.1)),
        ({"min": 0, "max": 1, "distribution": "uniform"}, FloatDistribution(0, 1), (0.0, 1.0)),
        ({"min": 1, "max": 9}, IntDistribution(1, 9), (1, 9)),
        ({"min": 1, "max": 9, "distribution": "int_uniform"}, IntDistribution(1, 9), (1, 9)),
        (
            {"min": 1e-5, "max": 1e-3, "distribution": "log_uniform_values"},
            FloatDistribution(1e-5, 1e-3, log=True),
            (1e-5, 1e-3),
        ),
        ({"min": 8, "max": 32, "q": 8, "distribution": "q_uniform"}, IntDistribution(8, 32, step=8), (8, 32)),
        (
            {"min": 0.1, "max": 0.3, "q": 0.1, "distribution": "q_uniform"},
            FloatDistribution(0.1, 0.3, step=0.1),
            (0.1, 0.3),
        ),
    ],
)
def test_wandbs_forms_are_those_of_optuna(entry: Any, distribution: Any, extremes: Any) -> None:
    found = parameter(entry)
    assert found.distribution() == distribution
    assert found.extremes() == (extremes or tuple(entry["values"]))
    study = create_study(sampler=RandomSampler(seed=1))
    for _ in range(5):
        trial = study.ask()
        value = found.suggest(trial)
        assert trial.distributions["x"] == distribution and trial.params["x"] == value


def test_exponents_of_e_are_taken_as_values() -> None:
    found = parameter({"min": -11.0, "max": -8.0, "distribution": "log_uniform"})
    assert found.log and (found.low, found.high) == (math.exp(-11.0), math.exp(-8.0))


@pytest.mark.parametrize("entry", [{"value": 512}, {"values": [512]}, {"value": 512, "distribution": "constant"}])
def test_one_value_is_not_searched(entry: Any) -> None:
    found = parameter(entry)
    study = create_study()
    trial = study.ask()
    assert found.is_fixed and found.suggest(trial) == 512 and trial.params == {}


def test_values_of_steps_are_counted_in_decimals() -> None:
    assert parameter({"min": 0.1, "max": 0.5, "q": 0.1, "distribution": "q_uniform"}).all_values() == (
        0.1, 0.2, 0.3, 0.4, 0.5,
    )  # fmt: skip
    assert parameter({"min": 2, "max": 4}).all_values() == (2, 3, 4)
    assert parameter({"min": 2.0, "max": 4.0}).all_values() is None


@pytest.mark.parametrize("name", _REFUSED)
def test_a_distribution_that_optuna_cannot_express_is_refused_by_name(name: str) -> None:
    found, issues = read({"distribution": name, "min": 1, "max": 2})
    assert found is None and issues == [f"file: x: distribution {name}: {_REFUSED[name]}"]


NO_VALUES = "expected value, values, or min and max"
WRONG: list[tuple[Any, str]] = [
    (3, f" 3: {NO_VALUES}"),
    ({"min": 3}, f": {NO_VALUES}"),
    ({"min": 1e-5, "max": "2e-4"}, ".max 2e-4: expected a number"),
    ({"min": 1.0, "max": "much"}, ".max much: expected a number"),
    ({"min": 1.0, "max": math.inf}, ".max inf: expected a number"),
    ({"min": 2.0, "max": 1.0}, ": min 2.0, max 1.0: expected a max above min, or value"),
    ({"min": 1.5, "max": 4, "distribution": "int_uniform"}, ": int_uniform from 1.5 to 4: expected whole numbers"),
    (
        {"min": 0, "max": 1, "distribution": "log_uniform_values"},
        ": log_uniform_values from 0: expected a min above 0",
    ),
    (
        {"min": 1e-5, "max": 2000, "distribution": "log_uniform"},
        ": log_uniform has exponents of e; expected log_uniform_values for 1e-05 and 2000",
    ),
    ({"min": 1, "max": 10, "q": 4, "distribution": "q_uniform"}, ": min 1, max 10: expected multiples of q 4"),
    ({"min": 0, "max": 1, "q": 0, "distribution": "q_uniform"}, ".q 0: expected a number above 0"),
    (
        {"min": 0, "max": 1, "distribution": "unifrom"},
        f": distribution unifrom: expected one of {', '.join(DISTRIBUTIONS)}",
    ),
    ({"values": [1], "max": 2}, ".max: categorical has no such key; expected values"),
    ({"distribution": "uniform", "min": 0}, ": uniform without max; expected max, min"),
    ({"values": []}, ".values []: expected a list of values"),
    ({"values": [1, None]}, ": None: expected texts, numbers, true or false"),
    ({"values": [1, 2, "1"]}, ": 1 more than once"),
    ({"parameters": {"y": {"value": 1}}}, ": parameters inside a parameter; a run's flags have no parts"),
    (
        {"values": [1, 2], "probabilities": [0.1, 0.9]},
        f": distribution categorical_w_probabilities: {_REFUSED['categorical_w_probabilities']}",
    ),
]


@pytest.mark.parametrize(("entry", "issue"), WRONG)
def test_what_is_wrong_is_said(entry: Any, issue: str) -> None:
    assert read(entry) == (None, [f"file: x{issue}"])
