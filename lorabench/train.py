"""Fine-tune a classifier with LoRA: `accelerate launch [--config_file X.yaml] -m lorabench.train --model llama3-8b`.

For one process, `python -m lorabench.train` does. Exit codes: 0 completed, 1 failed, 2 bad input; 143 and 130 stopped
by SIGTERM and SIGINT.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lorabench.catalog.models import MODELS
from lorabench.config.command_line import PROGRAM, is_first_on_host, parse_run_config, report_config_error
from lorabench.config.run_config import ModelConfig
from lorabench.data.task import load_task
from lorabench.errors import EXIT_INTERRUPTED, EXIT_RUN_FAILED, ConfigError, RankError, RunError, RunInterrupted
from lorabench.machine.gpus import check_driver
from lorabench.machine.hub import prefer_cache_if_unreachable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code; `SystemExit` from `--help` and unknown flags passes."""
    quiet_libraries()
    try:
        config = parse_run_config(sys.argv[1:] if arguments is None else arguments, PROGRAM)
        check_driver()
        if needs_hub(config.model):
            prefer_cache_if_unreachable()  # before anything imports the Hub's client
        data = load_task(config.data, config.optim.seed)
        # Heavy imports, only for input that is known to be good.
        from lorabench.training.run import execute

        execute(config, data)
    except ConfigError as error:
        return report_config_error(error, PROGRAM)
    except RunError as error:
        if is_first_on_host() or isinstance(error, RankError):
            print(f"{PROGRAM}: failed: {error}", file=sys.stderr, flush=True)
        return EXIT_RUN_FAILED
    except RunInterrupted as error:
        if is_first_on_host():
            print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        if is_first_on_host():
            print(f"{PROGRAM}: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


def needs_hub(config: ModelConfig) -> bool:
    """Whether the model comes from the Hub: not a local folder, an installed package or a known shape."""
    preset = MODELS.get(config.model)
    if preset is None:
        return not Path(config.model).is_dir()
    carried = preset.package is not None and find_spec(preset.package) is not None
    return config.weights == "pretrained" and not carried


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
    # PEFT imports bitsandbytes wherever it is there, and on some CPUs that warns of a package that nothing needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
