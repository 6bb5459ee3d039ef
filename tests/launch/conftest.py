"""Models and data that all launches share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import tiny
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pretrained models on disk, by type."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save_tiny(folder / f"tiny-{name}", name) for name in ("llama", "bert", "roberta", "distilbert")}


@pytest.fixture(scope="session")
def wide_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pretrained models that can be held in 4 bits on the CPU, by type.

    With biases of zero: 4-bit products on the CPU round by the shape of a batch, and AdamW makes much of gradients
    that nearly cancel.
    """
    folder = tmp_path_factory.mktemp("wide")
    return {
        name: tiny.save_tiny(folder / f"wide-{name}", name, stirred=False, **tiny.WIDE[name])
        for name in ("llama", "bert", "roberta")
    }


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data files: 37 training rows with unequal classes, 11 validation rows, 7 test rows with and without labels."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": tiny.write_rows(folder / "train.csv", 37),
        "validation": tiny.write_rows(folder / "validation.csv", 11, seed=5),
        "test": tiny.write_rows(folder / "test.csv", 7, seed=6),
        "unlabelled": tiny.write_rows(folder / "unlabelled.csv", 7, seed=6, labelled=False),
    }
