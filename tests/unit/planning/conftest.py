"""Plans of tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import WIDE, save_tiny

from lorabench.catalog.gpus import GPUS
from lorabench.config.command_line import parse_run_config
from lorabench.planning.workload import Cards, RowLengths, Workload

Asked = Callable[..., Workload]


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Tiny models on disk by family, each made once."""
    made: dict[object, Path] = {}

    def folder(family: str, **changes: Any) -> Path:
        key = (family, *sorted(changes.items()))
        if key not in made:
            shape = {**WIDE[family], **changes}
            made[key] = save_tiny(tmp_path_factory.mktemp(family.replace("/", "-")), family, **shape)
        return made[key]

    return folder


@pytest.fixture
def workload(tiny_folders: Callable[..., Path]) -> Asked:
    """A workload of a tiny model, of rows of given lengths, with flags by name."""

    def make(
        family: str = "llama",
        lengths: tuple[int, ...] = (9, 17, 30, 24),
        precision: str = "bf16",
        strategy: str = "single_gpu",
        card: str = "h100",
        gpus: int = 1,
        changes: dict[str, Any] | None = None,
        **flags: object,
    ) -> Workload:
        values = {"batch_size": 4, "lora_dropout": 0.1, "gradient_checkpointing": "off", **flags}
        words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        folder = tiny_folders(family, **(changes or {}))
        config = parse_run_config(["--model", str(folder), "--task", "sample", "--precision", precision, *words])
        rows = list(lengths) * 10
        return Workload(config, precision, RowLengths(rows, rows[:8], "given"), Cards(GPUS[card], gpus), strategy)

    return make
