"""How long a task's rows are in tokens: counted where the rows are at hand, else by what is known of the task."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import task_preset
from lorabench.config.run_config import ModelConfig, RunConfig
from lorabench.data.batching import tokenize
from lorabench.data.task import TaskData
from lorabench.data.tokenizer import load_tokenizer
from lorabench.models.source import local_source
from lorabench.planning.workload import RowLengths

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Rows of a task of which nothing is known.
UNKNOWN_ROWS = 2000


@dataclass(frozen=True)
class Known:
    """What is known of a task without its rows.

    Attributes:
        quantiles: tokens of rows at each twentieth, from the shortest to the longest, as Llama's stand-in counts them.
        train, evaluation: rows.
    """

    quantiles: tuple[int, ...]
    train: int
    evaluation: int
    classes: int


TWEETS = (2, 12, 16, 20, 22, 25, 27, 28, 30, 32, 34, 35, 37, 38, 40, 42, 44, 46, 49, 54, 75)
_RECLOR = (98, 149, 163, 172, 179, 186, 192, 197, 202, 208, 214, 219, 225, 230, 237, 244, 253, 265, 279, 307, 455)
KNOWN: Mapping[str, Known] = {
    "disaster-tweets": Known(TWEETS, 6090, 1523, 2),
    "reclor": Known(_RECLOR, 4638, 500, 4),
}


def find_lengths(config: RunConfig, model_config: "PretrainedConfig", task: TaskData | None) -> RowLengths:
    """Tokens of the rows that a run would read: those that are at hand are counted, see `command.rows_at_hand`.

    Args:
        task: the rows, where they are at hand.

    Raises:
        ConfigError: the model's tokenizer cannot read them.
    """
    if task is not None:
        return _count(config, model_config, task)
    data = config.data
    known = KNOWN.get(data.task)
    train, evaluation = (UNKNOWN_ROWS, UNKNOWN_ROWS // 4) if known is None else (known.train, known.evaluation)
    train = min(train, data.max_train_samples or train)
    evaluation = min(evaluation, data.max_eval_samples or evaluation)
    if known is None:
        full = [data.max_length] * train
        origin = f"every row as long as --max-length {data.max_length} allows"
        return RowLengths(full, full[:evaluation], origin, guessed=True)
    lengths, validation = (
        spread_lengths(known.quantiles, rows, data.max_length, seed) for seed, rows in enumerate((train, evaluation))
    )
    return RowLengths(lengths, validation, f"what is known of the rows of {data.task}", known.classes)


def _count(config: RunConfig, model_config: "PretrainedConfig", task: TaskData) -> RowLengths:
    """By the model's own tokenizer where that is here, else by a stand-in."""
    source = local_source(config.model.model, config.model.revision)
    here = os.path.isdir(source)
    model = config.model if here or config.model.model not in MODELS else _as_shape(config)
    prefix = task_preset(config.data.task).add_prefix_space
    tokenizer = load_tokenizer(model, source, model_config, task.train.texts, prefix)
    counted = [
        tokenize(rows, tokenizer, config.data.max_length, f"the {split} rows")
        for split, rows in (("train", task.train), ("validation", task.validation))
    ]
    types = any(rows.token_types is not None for rows in counted)
    whose = "the model's tokenizer" if here else "a stand-in for the model's tokenizer"
    origin = f"the {len(counted[0])} training rows, counted by {whose}"
    return RowLengths(counted[0].lengths, counted[1].lengths, origin, len(task.labels), types)


def _as_shape(config: RunConfig) -> ModelConfig:
    return dataclasses.replace(config.model, weights="random")


def spread_lengths(quantiles: Sequence[int], rows: int, most: int, seed: int = 0) -> list[int]:
    """So many lengths that are spread as `quantiles` say, in random order, none longer than `most`."""
    places = np.linspace(0, len(quantiles) - 1, rows)
    lengths = np.interp(places, range(len(quantiles)), quantiles).round().astype(int)
    return np.minimum(np.random.default_rng(seed).permutation(lengths), most).tolist()
