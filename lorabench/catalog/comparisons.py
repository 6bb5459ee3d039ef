"""Comparisons: the original experiments, and recipes, as grids of runs, for `lorabench compare --preset`.

To add your own, add an entry to `_COMPARISONS`: any of the axes that a `compare.yaml` has, in its own form.
`tests/unit/catalog/test_comparisons.py` checks the entries.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lorabench.catalog.recipes import RECIPES

_COMPARISONS: dict[str, dict[str, Any]] = {
    # Three models on the tweets, each with its own settings.
    "tweets": {"models": ["roberta-large", "mistral-7b", "llama2-7b"], "tasks": ["disaster-tweets"]},
    # Its loss curve and its accuracy before and after are on the page of every comparison.
    "two-3090s": {"models": ["llama3-8b"], "tasks": ["disaster-tweets"], "flags": {"epochs": 30}},
    # The preset of the task has nf4, all linear layers, batch 2, 3 epochs, and the loss of every 25 steps.
    "reclor": {"models": ["llama2-7b"], "tasks": ["reclor"]},
    # What the settings are worth beside those of the model.
    "recipes": {
        "models": ["minilm"],
        "tasks": ["disaster-tweets"],
        "settings": {name: {"recipe": name} for name in RECIPES},
        "seeds": [1, 2, 3],
    },
}
COMPARISONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(_COMPARISONS)

REPORTED_ACCURACY: Mapping[tuple[str, str], tuple[float, float]] = {
    ("llama3-8b", "disaster-tweets"): (0.4366, 0.7932),
    ("llama2-7b", "reclor"): (0.25, 0.60),
}
"""Accuracy before and after training, as published, by model and task."""
