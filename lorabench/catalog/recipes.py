"""Recipes: settings of LoRA and optimizer that go together, for `--recipe`.

To add your own, add an entry to `_RECIPES`: the settings that it changes, and the learning rate by the size of the
model where one rate would not do. `tests/unit/catalog/test_recipes.py` checks the entries.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lorabench.catalog.settings import Settings

ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that win over those of model and task, and give way to what is asked for by name.

    Attributes:
        summary: what it is, in a few words.
        settings: what it changes.
        learning_rates: (parameters, rate), smallest first: a base model of up to so many parameters gets this rate.
            Empty where the model's own stays.
    """

    summary: str
    settings: Settings = field(default_factory=Settings)
    learning_rates: tuple[tuple[float, float], ...] = ()

    def fields(self) -> set[str]:
        """Names of all that it sets."""
        return {*self.settings, *(("learning_rate",) if self.learning_rates else ())}

    def learning_rate(self, parameters: int) -> float | None:
        """The rate for a base model of so many parameters; None: its own stays."""
        return next((rate for most, rate in self.learning_rates if parameters <= most), None)

    def rates_in_words(self) -> str:
        """The table of learning rates, for messages; empty where there is none."""
        return ", ".join(f"{rate:g} {_up_to(most)}" for most, rate in self.learning_rates)


def _up_to(parameters: float) -> str:
    if math.isinf(parameters):
        return "beyond"
    return f"up to {parameters / 1e9:g} B" if parameters >= 1e9 else f"up to {parameters / 1e6:g} M"


_RECIPES: dict[str, Recipe] = {
    ORIGINAL: Recipe(summary="the settings of model and task"),
    # LoRA on every linear layer comes closest to full fine-tuning, more than a higher rank does (QLoRA,
    # arXiv:2305.14314; arXiv:2405.09673). With alpha at twice the rank the update counts twofold, as in the latter.
    # Rates: from 7 B parameters on they are QLoRA's; those of RoBERTa in the paper of LoRA (arXiv:2106.09685) are 2e-4
    # to 5e-4; small encoders stand more: MiniLM's own, on two projections, is 2e-3.
    "strong": Recipe(
        summary="LoRA on all linear layers, the learning rate by size of model, decaying",
        settings=Settings(
            lora_targets="all-linear", lora_r=16, lora_alpha=32, lr_scheduler="linear", warmup_ratio=0.06,
            max_grad_norm=1.0,
        ),
        learning_rates=((50e6, 1e-3), (200e6, 5e-4), (1e9, 3e-4), (15e9, 2e-4), (math.inf, 1e-4)),
    ),
}  # fmt: skip
RECIPES: Mapping[str, Recipe] = MappingProxyType(_RECIPES)
SET_BY_RECIPES = frozenset(name for recipe in RECIPES.values() for name in recipe.fields())
"""What changes with the recipe: every field that one of them sets."""
