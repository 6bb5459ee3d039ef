"""Planned memory against measured, on one GPU: every model, dtype, batch, length, execution and way to recompute.

    python -m benchmarks.memory_plan --output rows.jsonl --limit-minutes 25
    python -m benchmarks.memory_plan --output rows.jsonl --replan      of what has been measured; needs no GPU
    python -m benchmarks.memory_plan --output rows.jsonl --summary
    python -m benchmarks.memory_plan --output rows.jsonl --largest   what batches are said to fit; no GPU, --workers 8
    python -m benchmarks.memory_plan --output rows.jsonl --run-largest do they?

A process for each model and dtype draws random weights once and runs a few steps of each combination: a pass of an
evaluation, then the steps with the most and with the usual number of tokens. Between combinations caches are emptied
and the allocator's peaks reset. What is compared is the allocator's peak of reserved memory in evaluation and in
training, which `--gpu-memory-limit` limits, in GB of 10^9 bytes. Rows are written as they are measured; combinations
that are in the file already are left out. Plans are made when all is measured, or time is up: they take a core, and
a GPU would wait.
"""

import argparse
import bisect
import hashlib
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lorabench.errors import EXIT_BAD_INPUT, ConfigError
from lorabench.machine.libraries import quiet_libraries

# Model and dtype; what tells most comes first, should the time run out.
KINDS = (
    ("llama3-8b", "bf16"), ("roberta-large", "bf16"), ("llama2-7b", "nf4"), ("roberta-large", "fp32"),
    ("mistral-7b", "fp16"), ("llama3-8b", "nf4"), ("llama2-7b", "bf16"), ("roberta-large", "nf4"),
    ("mistral-7b", "nf4"),
)  # fmt: skip
BATCHES = (8, 1, 32)
RECOMPUTATION = ("auto", "on", "off")
LENGTHS = ("tweets", "filled")
EXECUTIONS = ("eager", "captured")
# GB that some are given besides, with batches of 8 tweets: what little they have has to do.
LIMITS = {("llama3-8b", "bf16"): (24.0, 18.0, 16.5), ("llama2-7b", "nf4"): (8.0, 6.0)}
# And GB of which the largest batch is asked for that is said to fit.
FILLED_UP = {
    ("llama3-8b", "bf16"): (18.0, 24.0, 40.0), ("llama3-8b", "nf4"): (10.0, 18.0, 24.0),
    ("llama2-7b", "bf16"): (18.0, 24.0, 40.0), ("llama2-7b", "nf4"): (6.0, 10.0, 18.0),
    ("mistral-7b", "fp16"): (18.0, 24.0, 40.0), ("mistral-7b", "nf4"): (8.0, 18.0, 24.0),
    ("roberta-large", "bf16"): (2.0, 4.0, 8.0), ("roberta-large", "nf4"): (2.0, 4.0, 8.0),
}  # fmt: skip
LARGEST_BATCH = 512


@dataclass(frozen=True)
class Combination:
    """What is run.

    Attributes:
        limit_gb: as `--gpu-memory-limit`; None for none.
    """

    model: str
    dtype: str
    execution: str
    lengths: str
    batch: int
    recompute: str
    limit_gb: float | None = None

    @property
    def key(self) -> str:
        """Its name in the file."""
        limit = "" if self.limit_gb is None else f" limit {self.limit_gb:g}"
        return f"{self.model} {self.dtype} {self.execution} {self.lengths} {self.batch} {self.recompute}{limit}"

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "Combination":
        """What a row measured."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    @property
    def precision(self) -> str:
        """What it computes in."""
        return "bf16" if self.dtype == "nf4" else self.dtype

    def flags(self) -> list[str]:
        """The run's."""
        values: dict[str, object] = {
            "model": self.model, "weights": "random", "task": "sample", "precision": self.precision,
            "quantize": "nf4" if self.dtype == "nf4" else "none", "batch-size": self.batch, "max-steps": 6,
            "gradient-checkpointing": self.recompute, "execution": self.execution, "on-oom": "stop",
        }  # fmt: skip
        if self.limit_gb is not None:
            values["gpu-memory-limit"] = self.limit_gb
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def combinations(model: str, dtype: str, execution: str) -> list[Combination]:
    """All of a model, dtype and execution, in an order that mixes what they ask for, should the time run out."""
    grid = itertools.product(BATCHES, LENGTHS, RECOMPUTATION)
    found = [Combination(model, dtype, execution, lengths, batch, recompute) for batch, lengths, recompute in grid]
    if execution == "captured":
        limits = LIMITS.get((model, dtype), ())
        found += [Combination(model, dtype, execution, "tweets", 8, "auto", limit) for limit in limits]
    return sorted(found, key=lambda item: hashlib.sha256(item.key.encode()).digest())


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.summary:
        print(summarise(read_rows(options.output)))
        return 0
    quiet_libraries()
    if options.replan:
        return replan(options.output)
    if options.largest:
        return plan_largest(options.output, options.models, options.workers)
    import torch

    if not torch.cuda.is_available():
        print("memory_plan: there is no CUDA GPU; expected one", file=sys.stderr)
        return EXIT_BAD_INPUT
    deadline = time.monotonic() + 60 * options.limit_minutes
    if options.run_largest:
        return run_largest(options.output, deadline)
    if options.only is not None:
        model, dtype = options.only.split(":")
        measure_kind(model, dtype, options.output, deadline)
        return 0
    for model, dtype in KINDS:
        left = deadline - time.monotonic()
        if not _asked_for(model, dtype, options.models) or left < 60:
            continue
        words = ["--output", str(options.output), "--only", f"{model}:{dtype}", "--limit-minutes", f"{left / 60:.2f}"]
        # A process of its own: what one model leaves on the GPU is none of the next one's.
        subprocess.run([sys.executable, "-m", "benchmarks.memory_plan", *words], check=False)
    return replan(options.output)


def replan(output: Path) -> int:
    """Plan every row anew that has been run, and say how far the plans are off."""
    from benchmarks.memory_plan_runs import planned_row

    rows = read_rows(output)
    for place, row in enumerate(rows):
        if row["status"] != "planned":
            rows[place] = planned_row(row)
            print(said(rows[place]), flush=True)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(summarise(rows))
    return 0


def plan_largest(output: Path, models: Sequence[str], workers: int) -> int:
    """Of some models and limits, the largest batch of tweets that is said to fit: rows that wait to be run."""
    kinds = [
        Combination(model, dtype, execution, "tweets", 1, "auto", limit)
        for (model, dtype), limits in FILLED_UP.items()
        if _asked_for(model, dtype, models)
        for execution, limit in itertools.product(EXECUTIONS, limits)
    ]
    # Planners start as processes of their own: PyTorch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with output.open("a", encoding="utf-8") as file, ProcessPoolExecutor(workers, mp_context=context) as pool:
        for kind, item in zip(kinds, pool.map(largest_that_fits, kinds), strict=True):
            batch = "none" if item is None else item.batch
            print(f"{kind.model} {kind.dtype} {kind.execution} in {kind.limit_gb:g} GB: {batch}", flush=True)
            if item is not None:
                waits = {"key": f"{item.key} largest", "status": "planned", "planned": {}, "measured": {}, "error": {}}
                file.write(json.dumps({**waits, **asdict(item)}) + "\n")
                file.flush()
    return 0


def largest_that_fits(kind: Combination) -> Combination | None:
    """With the largest batch that is said to fit on an H100, within its limit; None where not even one row is."""
    from benchmarks.memory_plan_runs import fits

    quiet_libraries()
    return largest(kind, fits)


def largest(kind: Combination, fits: Callable[[Combination], bool]) -> Combination | None:
    """With the largest batch that fits, as far as `LARGEST_BATCH`, to within a tenth: a plan takes seconds."""
    powers = [1 << place for place in range(LARGEST_BATCH.bit_length())]
    place = bisect.bisect_left(powers, True, key=lambda batch: not fits(replace(kind, batch=batch)))
    least, most = [0, *powers, LARGEST_BATCH + 1][place : place + 2]
    while most - least > max(1, least // 10):
        middle = (least + most) // 2
        least, most = (middle, most) if fits(replace(kind, batch=middle)) else (least, middle)
    return replace(kind, batch=least) if least else None


def run_largest(output: Path, deadline: float) -> int:
    """Run the rows that wait for it; what they come to takes their place."""
    from benchmarks.memory_plan_runs import Runs

    rows = read_rows(output)
    kept: tuple[object, Runs | None] = (None, None)
    for place, row in enumerate(rows):
        if row["status"] != "planned" or time.monotonic() > deadline:
            continue
        item = Combination.of_row(row)
        kind = item.model, item.dtype
        runs = kept[1] if kept[0] == kind else None
        kept = (None, None)  # the other model goes before this one comes
        runs = runs or Runs(item.flags())
        kept = kind, runs
        rows[place] = {**row, **runs.measure(item)}
        print(f"{row['key']}: {rows[place]['status']}, {rows[place]['seconds']:.0f} s", flush=True)
        output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, gone on with if it is there")
    parser.add_argument(
        "--models", nargs="*", default=[], help="only these, as llama3-8b or llama3-8b:nf4 (default: all)"
    )
    parser.add_argument("--limit-minutes", type=float, default=60.0)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--replan", action="store_true", help="only plan anew what has been measured")
    parser.add_argument("--largest", action="store_true", help="only plan the largest batches of some limits")
    parser.add_argument("--workers", type=int, default=1, help="processes that plan the largest batches (default: 1)")
    parser.add_argument("--run-largest", action="store_true", help="only run those")
    parser.add_argument("--summary", action="store_true", help="only say what is in the file")
    return parser.parse_args(arguments)


def _asked_for(model: str, dtype: str, asked: Sequence[str]) -> bool:
    """Whether `--models` names it, or nothing."""
    return not asked or model in asked or f"{model}:{dtype}" in asked


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What has been measured."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure_kind(model: str, dtype: str, output: Path, deadline: float) -> None:
    """All combinations of one model and dtype that are not in the file yet."""
    from benchmarks.memory_plan_runs import Runs

    known = {row["key"] for row in read_rows(output)}
    runs = None
    # Eager ones first, since captured ones lay weights out anew; they have half the time.
    halfway = time.monotonic() + (deadline - time.monotonic()) / 2
    for execution, until in zip(EXECUTIONS, (halfway, deadline), strict=True):
        for item in combinations(model, dtype, execution):
            if time.monotonic() > until:
                break
            if item.key in known:
                continue
            try:
                runs = runs or Runs(item.flags())
            except (ConfigError, RuntimeError) as error:
                print(f"{model} {dtype}: {error}", file=sys.stderr, flush=True)
                return
            row = {"key": item.key, **asdict(item), **runs.measure(item)}
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{item.key}: {row['status']}, {row['seconds']:.0f} s", flush=True)


def said(row: dict[str, Any]) -> str:
    """A row in a line."""
    planned, measured = row["planned"], row["measured"]
    if row["status"] != "measured":
        return f"{row['key']}: {row['status']} ({planned.get('verdict')})"
    parts = [
        f"{phase} {planned[phase]['expected_gb']:.2f} / {measured[phase]:.2f} ({row['error'][phase]:+.1%})"
        for phase in row["error"]
    ]
    return f"{row['key']}: {', '.join(parts)}"


def summarise(rows: Sequence[dict[str, Any]]) -> str:
    """Median, 90th percentile and maximum of the errors, and where a run failed that was said to fit."""
    lines = []
    for phase in ("eval", "train", "peak"):
        errors = sorted((abs(row["error"][phase]), row["key"]) for row in rows if phase in row["error"])
        if not errors:
            continue
        values = [error for error, _ in errors]
        lines.append(
            f"{phase}: {len(values)} combinations, error median {statistics.median(values):.1%}, 9 in 10 at most "
            f"{values[int(0.9 * (len(values) - 1))]:.1%}, largest {values[-1]:.1%} ({errors[-1][1]})"
        )
    planned = [row for row in rows if row["planned"]]
    wrong = [row["key"] for row in planned if row["planned"].get("verdict") == "fits" and _failed(row)]
    failed = sum(row["status"] not in ("measured", "oom", "planned") for row in rows)
    lines += _filled_up(rows)
    lines.append(f"said to fit, and failed: {', '.join(wrong) or 'none'}; {failed} with another error")
    return "\n".join(lines)


def _filled_up(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many of the largest batches that were said to fit did, which did not, and how full those that did were."""
    filled = [row for row in rows if row["key"].endswith(" largest") and row["status"] != "planned"]
    did = [row for row in filled if row["status"] == "measured"]
    if not filled:
        return []
    others = ", ".join(row["key"] for row in filled if row["status"] != "measured")
    lines = [f"largest batches said to fit: {len(did)} of {len(filled)} did{others and f', not {others}'}"]
    if did:
        shares = sorted(row["measured"]["peak"] / row["limit_gb"] for row in did)
        lines.append(
            f"of their limits these took {shares[0]:.0%} to {shares[-1]:.0%}, {statistics.median(shares):.0%} in the "
            "median"
        )
    return lines


def _failed(row: dict[str, Any]) -> bool:
    """Whether a run did not do with what it had, or only by recomputing what it was not said to."""
    if row["status"] == "oom":
        return True
    unplanned = row["status"] == "measured" and row["recompute"] == "auto" and row["recomputes"]
    return unplanned and not row["planned"]["recomputed_blocks"]


if __name__ == "__main__":
    sys.exit(main())
