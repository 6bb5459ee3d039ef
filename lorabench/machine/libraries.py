"""The libraries that a run uses, told to be quiet."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorabench.machine.cache import COMPILED_VARIABLE
from lorabench.machine.hub import is_offline

# What a run tells libraries by the environment.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_TOLD = (*_QUIET, "HF_HUB_OFFLINE", "FSDP_CPU_RAM_EFFICIENT_LOADING", "GLOO_SOCKET_IFNAME", COMPILED_VARIABLE)


def quiet_libraries() -> None:
    """Progress bars and advice of the libraries would bury ours; what the user has set stays."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        # Names that transformers, peft and accelerate deprecate for each other.
        warnings.filterwarnings("ignore", category=FutureWarning)
        # DeepSpeed's engine steps the optimizer itself, and a step that fp16 overflowed is skipped on purpose.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        # Where Jupyter has no widgets; the bars that they would show are switched off.
        warnings.filterwarnings("ignore", message="IProgress not found")
    # PEFT imports bitsandbytes wherever it is there, and on some CPUs that warns of a package that nothing needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # It sets its logger's level as it is imported, wherever transformers looks for it, and writes to standard output.
    logging.getLogger("DeepSpeed").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


@contextmanager
def as_guest() -> Iterator[None]:
    """Inside, libraries are told what a run tells them; outside, all that is as the process had it before.

    But for the state of random generators, which a run seeds, and for how much a library says that was first imported
    inside.
    """
    environment = {name: os.environ.get(name) for name in _TOLD}
    offline = is_offline()
    # Already there, it has read its variable.
    transformers: Any = sys.modules.get("transformers.utils.logging")
    verbosity = None if transformers is None else transformers.get_verbosity()
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    try:
        with warnings.catch_warnings():
            quiet_libraries()
            if transformers is not None:
                transformers.set_verbosity_error()
            yield
    finally:
        bitsandbytes.setLevel(level)
        if transformers is not None:
            transformers.set_verbosity(verbosity)
        constants: Any = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            constants.HF_HUB_OFFLINE = offline
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
