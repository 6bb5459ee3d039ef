"""What the whole tweets run costs, five epochs with evaluation: the reference recipe against lorabench.

    python benchmarks/epoch_time.py --model llama2-7b --train-file train.csv --output epoch_time.json

lorabench runs whole, as `python -m lorabench.train`. Its figures are those of `run.json`. The wall time is from the
process's start to the end, without the construction of the model: imports, data, compilation, every evaluation (one
more than the reference: before training) and saving count. The time to the first optimizer step counts everything.

The reference recipe (see `step_time.py`) trains `--reference-steps` steps and evaluates once; the run's time is
extrapolated from both, with nothing added for its start and for saving. Models have random weights.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(ROOT := Path(__file__).resolve().parents[1]))

from benchmarks.options import has_execution, run_flags, shared_parser, use_device
from lorabench.config.run_config import RunConfig
from lorabench.errors import EXIT_BAD_INPUT, EXIT_RUN_FAILED, ConfigError, RunError
from lorabench.machine.environment import environment
from lorabench.machine.libraries import quiet_libraries
from lorabench.results.run_folder import read_run, write_json_atomic
from lorabench.results.table import UNKNOWN

SCHEMA_VERSION = 1
WARMUP_STEPS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    quiet_libraries()
    flags = [*run_flags(options, options.model, options.batch_size), "--epochs", str(options.epochs)]
    record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "environment": environment()}
    try:
        use_device(options)
        # First, while this process holds no memory of the GPU.
        record["lorabench"] = time_lorabench(options, flags)
        report(record, options)
        if options.reference_steps:
            record["reference"] = time_reference(options, flags, record["lorabench"]["steps"])
            ratio = record["reference"]["wall_seconds"] / record["lorabench"]["wall_seconds"]
            record["reference_over_lorabench"] = ratio
            report(record, options)
    except ConfigError as error:
        print(f"epoch_time: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunError as error:
        print(f"epoch_time: failed: {error}", file=sys.stderr)
        return EXIT_RUN_FAILED
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = shared_parser(__doc__ or "")
    add = parser.add_argument
    add("--model", default="llama2-7b", help="preset, or folder of a model (default: llama2-7b)")
    add("--batch-size", type=int, default=8, help="rows per step (default: 8)")
    add("--epochs", type=int, default=5, help="default: 5")
    add("--execution", default="captured", help="of lorabench, where the package has the flag (default: captured)")
    add("--reference-steps", type=int, default=300, help="steps to extrapolate from; 0 leaves it out (default: 300)")
    add("--run-dir", type=Path, help="keep lorabench's results and output there; a new folder")
    return parser.parse_args(arguments)


def time_lorabench(options: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    """Run it whole, in a process of its own.

    Raises:
        RunError: it failed; with the end of what it printed.
    """
    execution = options.execution if has_execution(RunConfig()) else None
    if execution is not None:
        flags = [*flags, "--execution", execution]
    with tempfile.TemporaryDirectory(prefix="epoch-time-") as temporary:
        folder = options.run_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lorabench.train", *flags, "--output-dir", str(folder / "run")]
        paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        log = folder / "log.txt"
        with log.open("wb") as file:
            ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=variables, check=False)
        if ended.returncode != 0:
            printed = log.read_text(encoding="utf-8", errors="replace")
            raise RunError(f"lorabench exited with {ended.returncode}:\n{printed[-4000:]}")
        return lorabench_figures(read_run(folder / "run"), execution)


def lorabench_figures(run: Mapping[str, Any], execution: str | None) -> dict[str, Any]:
    """What is reported of a whole run.

    Args:
        run: its `run.json`.
        execution: the flag; None where the package has none.
    """
    memory = run["memory"][0]["phases"]["train"]
    return {
        "execution": execution,
        "precision": run["precision"],
        "steps": run["steps"],
        "evaluations": 1 + len(run["history"]),
        "wall_seconds": run["wall_seconds"] - run["model_construction_seconds"],
        "wall_seconds_with_construction": run["wall_seconds"],
        "train_seconds": run["train_seconds"],
        "ms_per_step": 1e3 * run["train_seconds"] / run["steps"],
        "model_construction_seconds": run["model_construction_seconds"],
        "first_step_seconds": run["first_step_seconds"],
        "allocated_gb": memory["allocated_gb"],
        "reserved_gb": memory["reserved_gb"],
        "losses": [record["loss"] for record in run["history"]],
    }


def time_reference(options: argparse.Namespace, flags: Sequence[str], steps: int) -> dict[str, Any]:
    """Train some steps by the reference recipe, evaluate once, and extrapolate to `steps`."""
    from benchmarks.reference import TrainerContestant, trainer_recipe
    from benchmarks.workload import load_workload

    workload = load_workload(flags)
    recipe = trainer_recipe("reference", workload)
    contestant = TrainerContestant(workload, recipe)
    windows = workload.windows(WARMUP_STEPS + options.reference_steps)
    run = contestant.run(windows[WARMUP_STEPS:], windows[:WARMUP_STEPS])
    figures = extrapolate(run.seconds / options.reference_steps, contestant.evaluate(), steps, options.epochs)
    return {"recipe": recipe.describe(), "reference_steps": options.reference_steps, **figures}


def extrapolate(step_seconds: float, evaluation_seconds: float, steps: int, epochs: int) -> dict[str, Any]:
    """A run's figures from those of a step and of an evaluation; one evaluation an epoch."""
    train_seconds = steps * step_seconds
    return {
        "steps": steps,
        "evaluations": epochs,
        "ms_per_step": 1e3 * step_seconds,
        "evaluation_seconds": evaluation_seconds,
        "train_seconds": train_seconds,
        "wall_seconds": train_seconds + epochs * evaluation_seconds,
    }


def report(record: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print the table as it stands, and write the JSON file."""
    columns = ("wall s", "train s", "ms/step", "steps", "evaluations", "first step s", "model s")
    keys = (
        *("wall_seconds", "train_seconds", "ms_per_step", "steps", "evaluations", "first_step_seconds"),
        "model_construction_seconds",
    )
    print(f"\n### {options.model}, batch {options.batch_size}, {options.epochs} epochs\n")
    print("| | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for side in ("reference", "lorabench"):
        if side in record:
            detail = "(extrapolated)" if side == "reference" else record[side]["execution"] or ""
            cells = [UNKNOWN if record[side].get(key) is None else f"{record[side][key]:.4g}" for key in keys]
            print(f"| {side} {detail} | " + " | ".join(cells) + " |")
    if "reference_over_lorabench" in record:
        print(f"\nEnd to end: {record['reference_over_lorabench']:.1f} times faster.")
    sys.stdout.flush()
    if options.output is not None:
        write_json_atomic(options.output, record)


if __name__ == "__main__":
    sys.exit(main())
