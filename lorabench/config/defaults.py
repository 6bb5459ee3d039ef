"""The configuration of a model and a task before any flag, and what the catalog says of the two together."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from lorabench.catalog.models import MODELS
from lorabench.catalog.recipes import ORIGINAL, RECIPES
from lorabench.catalog.settings import ComputeDtype, Settings
from lorabench.catalog.tasks import CUSTOM_TASK, TASKS, task_preset
from lorabench.config.model_size import known_parameters
from lorabench.config.run_config import DataConfig, ModelConfig, RunConfig
from lorabench.config.saved_adapter import SavedAdapter

# Whoever names one of these brings data of their own.
OWN_DATA_FLAGS = ("train_file", "text_column", "template", "label_column")
# Below this likeness (1 is the same) a name is another one, not a slip: `bert-base-uncased` is no `roberta-large`.
_NEAR = 0.6


def unknown_names(model: str, task: str) -> list[str]:
    """One message for each name that no table has and that cannot be a Hub id or a folder, with the nearest names."""
    messages = (
        _unknown_name("--model", model, MODELS, "a Hub id (owner/name) or the path of a folder"),
        _file_as_task(task)
        or _unknown_name("--task", task, TASKS, "the Hub id (owner/name) or the folder of a data set"),
    )
    return [message for message in messages if message]


def resolve_names(
    model: str | None, task: str | None, own_data: bool, saved: SavedAdapter | None = None
) -> tuple[str, str]:
    """Model and task where one is not named.

    Args:
        own_data: one of `OWN_DATA_FLAGS` was given: the data are the user's own, where no task says otherwise.
        saved: the adapter to go on from, which names its model.
    """
    otherwise = CUSTOM_TASK if own_data else DataConfig().task
    named = ModelConfig().model if saved is None else saved.model
    return model or named, otherwise if task is None else task


def resolve_defaults(
    model: str, task: str, saved: SavedAdapter | None = None, recipe: str = ORIGINAL, revision: str | None = None
) -> RunConfig:
    """The configuration before any flag: default < model preset < task preset < recipe < the adapter to go on from.

    Args:
        recipe: key of `RECIPES`. Where the model's size is not known, the learning rate stays what it was; see
            `recipe_issues`.
        revision: of a Hub model.
    """
    config = RunConfig()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, model=model),
        data=dataclasses.replace(config.data, task=task),
    )
    if model in MODELS:
        config = apply_settings(config, MODELS[model].settings)
    config = apply_settings(config, task_preset(task).settings)
    config = apply_settings(config, {**RECIPES[recipe].settings, "recipe": recipe})
    rate = _learning_rate(recipe, model, revision)
    if rate is not None:
        config = apply_settings(config, Settings(learning_rate=rate))
    return config if saved is None else apply_settings(config, saved.settings())


def recipe_issues(recipe: str, model: str, revision: str | None) -> list[str]:
    """What a recipe lacks to say the learning rate, where no flag says it."""
    if not RECIPES[recipe].learning_rates or _learning_rate(recipe, model, revision) is not None:
        return []
    return [
        f"--recipe {recipe}: its learning rate goes by the number of parameters, and that of {model} is not known "
        f"before its weights (safetensors) are here; expected --learning-rate ({RECIPES[recipe].rates_in_words()})"
    ]


def _learning_rate(recipe: str, model: str, revision: str | None) -> float | None:
    """What a recipe says for a model; None where it says nothing, or does not know how large the model is."""
    if not RECIPES[recipe].learning_rates:
        return None
    parameters = known_parameters(model, revision)
    return None if parameters is None else RECIPES[recipe].learning_rate(parameters)


def apply_settings(config: RunConfig, settings: Settings | Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with the fields that `settings` names replaced, whichever section they are in.

    Raises:
        KeyError: there is no such field.
    """
    unknown = set(settings)
    sections = {}
    for section in dataclasses.fields(config):
        current = getattr(config, section.name)
        names = {item.name for item in dataclasses.fields(current)}
        sections[section.name] = dataclasses.replace(
            current, **{key: value for key, value in settings.items() if key in names}
        )
        unknown -= names
    if unknown:
        raise KeyError(f"no field {', '.join(sorted(unknown))} in a run's configuration")
    return RunConfig(**sections)


def preset_precision(model: str, task: str) -> ComputeDtype | None:
    """Compute dtype on CUDA where neither flag nor launcher names one: the task's, else the model's; None: neither."""
    preset = MODELS.get(model)
    return task_preset(task).precision or (None if preset is None else preset.precision)


def is_synthetic(data: DataConfig) -> bool:
    """Whether the rows were written for this project, not the user's own in place of them."""
    return task_preset(data.task).synthetic and data.train_file is None


def _file_as_task(task: str) -> str | None:
    if task in TASKS or not os.path.isfile(task):
        return None
    return f"--task {task!r}: a file; expected --train-file {task}, or a task's name"


def _unknown_name(flag: str, value: str, known: Iterable[str], otherwise: str) -> str | None:
    names = list(known)
    if value in names or "/" in value or os.path.isdir(value):
        return None
    nearest = difflib.get_close_matches(value.casefold(), names, n=3, cutoff=_NEAR)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"{flag} {value!r}: unknown.{hint} Expected one of {', '.join(names)}, or {otherwise}."
