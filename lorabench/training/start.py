"""The way into a run: from a configuration to its end, for the command line and for Python alike."""

import time
from pathlib import Path
from typing import Any

from lorabench.catalog.models import MODELS
from lorabench.config.run_config import ModelConfig, RunConfig
from lorabench.data.task import load_task
from lorabench.machine.gpus import check_driver
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.models.source import local_source


def start(config: RunConfig, in_process: bool = False) -> tuple[Path, dict[str, Any]]:
    """Run to the end; every rank calls this.

    Args:
        in_process: the process is not the run's own: it has been there before, and goes on after it.

    Returns:
        The folder with the results, and the run's record.

    Raises:
        ConfigError: what was asked for cannot be done; nothing has been written.
        RunError: the run failed later; `run.json` says so.
        RunInterrupted: a signal asked it to stop; a checkpoint has been saved.
    """
    began = time.time() if in_process else None
    check_driver()
    if needs_hub(config.model):
        prefer_cache_if_unreachable()
    data = load_task(config.data, config.optim.seed)
    # Heavy imports, only for input that is known to be good.
    from lorabench.distributed.accelerator import leave_launch
    from lorabench.training.run import execute

    try:
        return execute(config, data, began)
    finally:
        if in_process:
            leave_launch()


def needs_hub(config: ModelConfig) -> bool:
    """Whether the model comes from the Hub: not a local folder, an installed package or a known shape."""
    if config.weights == "random" and config.model in MODELS:
        return False
    return not Path(local_source(config.model, config.revision)).is_dir()
