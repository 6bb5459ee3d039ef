"""The libraries that a run uses, told to be quiet."""

import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Progress bars and advice of the libraries would bury ours; what the user has set stays."""
    defaults = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
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
