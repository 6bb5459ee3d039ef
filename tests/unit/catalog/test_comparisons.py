"""The original experiments as grids of runs."""

import pytest

from lorabench.catalog.comparisons import COMPARISONS, REPORTED_ACCURACY
from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import TASKS
from lorabench.config.command_line import parse_run_config
from lorabench.experiments.plan import read_plan


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_runs_of_a_preset_can_be_asked_for(name: str) -> None:
    plan = read_plan(name, None, {}, ["--quantize", "none"] if name == "reclor" else [])
    for cell in plan.cells():
        assert parse_run_config(plan.words(cell, 1), launching=True).optim.seed == 1


def test_what_the_presets_stand_for() -> None:
    (cell,) = (plan := read_plan("two-3090s", None, {}, [])).cells()
    config = parse_run_config(plan.words(cell, 42), launching=True)
    assert (config.model.model, config.optim.epochs, config.data.task) == ("llama3-8b", 30, "disaster-tweets")
    (cell,) = (plan := read_plan("reclor", None, {}, ["--quantize", "none"])).cells()
    config = parse_run_config(plan.words(cell, 42), launching=True)
    assert (config.model.model, config.lora.lora_targets, config.run.logging_steps) == ("llama2-7b", "all-linear", 25)
    assert (config.optim.batch_size, config.optim.epochs) == (2, 3)
    assert read_plan("tweets", None, {}, []).models == ("roberta-large", "mistral-7b", "llama2-7b")


def test_reported_accuracies_are_of_models_and_tasks_that_there_are() -> None:
    assert {model for model, _ in REPORTED_ACCURACY} <= set(MODELS)
    assert {task for _, task in REPORTED_ACCURACY} <= set(TASKS)
