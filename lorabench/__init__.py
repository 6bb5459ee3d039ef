"""Which model, fine-tuned with LoRA, classifies my texts best, how long does it take, and does it fit our GPUs?

    import lorabench

    result = lorabench.train(model="minilm", task="sample", epochs=1)
    lorabench.predict(result.folder, ["Smoke over the harbour."])

What is named here is public; all else may change. Importing it loads nothing: what is used is loaded then.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabench.api import Prediction, Predictor, Result, load, predict, train
    from lorabench.errors import ConfigError, RunError, RunInterrupted

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "Prediction",
    "Predictor",
    "Result",
    "RunError",
    "RunInterrupted",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = import_module("lorabench.errors" if name.endswith(("Error", "Interrupted")) else "lorabench.api")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
