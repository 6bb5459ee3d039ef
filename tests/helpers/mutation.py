"""Which small changes of the code does no unit test notice? Run by `make mutants`.

    python tests/helpers/mutation.py step [--minutes N] [--workers N]     # or one module of a wing, as step/loss
    python tests/helpers/mutation.py training --sample 250 [--sample-seed S]

mutmut changes one thing at a time in the functions of a wing, and runs the tests that reach the function and stand in
its folder of `tests/unit`. What nothing fails for has survived. `mutants-WING.md` lists the survivors; a run that was
stopped goes on where it was. Mutants that `tests/mutants.toml` names are not counted, and it says why: code that only
runs on a GPU, and changes that change nothing.

A wing may have more mutants than there is time for. `--sample` tries that many, drawn at random, and says between
which shares the whole wing's lies.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from reaching import in_order, with_fixtures
from scipy.stats import binomtest

PROJECT = Path(__file__).resolve().parents[2]
WINGS = ("step", "packed", "training", "checkpoint", "data")
# Beside the wing's own folder: tests that reach it on purpose.
MORE_TESTS = {
    "checkpoint": ["tests/unit/training/test_reload_proof.py"],
    "training": ["tests/unit/test_api.py"],
}
# Where mutmut works, and remembers; a wing has it at a time.
WORK = PROJECT / "mutants"
OWNER = WORK / "wing.json"
LOG = WORK / "log.txt"
SURVIVED = (0, 33)  # as mutmut's exit codes: tests passed, there are none
NOT_TRIED = "not checked"
CAUGHT = ("killed", "timeout", "segfault", "suspicious")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        function: module and qualified name, as `lorabench.step.loss.CrossEntropy.of_split`.
        status: as mutmut calls it.
        removed, added: the lines that differ, stripped.
    """

    function: str
    status: str
    removed: str
    added: str


@dataclasses.dataclass(frozen=True)
class Left:
    """An entry of `tests/mutants.toml`: mutants that are not counted.

    Attributes:
        kind: "GPU-only" or "equivalent".
        function: whose; a name that ends in `*` stands for all that begin so.
        change: a pattern that the changed line has; empty for every change.
        lost: a pattern of what the line had and has no longer, likewise.
        why: a sentence.
    """

    kind: str
    function: str
    change: str
    lost: str
    why: str

    def covers(self, mutant: Mutant) -> bool:
        same = mutant.function == self.function
        if self.function.endswith("*"):
            same = mutant.function.startswith(self.function[:-1])
        lost = not self.lost or any(
            mutant.added.count(found) < mutant.removed.count(found)
            for found in (match.group() for match in re.finditer(self.lost, mutant.removed))
        )
        return same and lost and re.search(self.change, mutant.added) is not None


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some of a target's mutants, each as likely as any other.

    A name's hash decides: a run that goes on draws the same ones, and a larger sample holds every smaller one.

    Attributes:
        size: how many; all of them where there are fewer.
        seed: another one draws others.
    """

    size: int
    seed: int

    def draw(self, names: Iterable[str]) -> set[str]:
        """Those of mutmut's names for its mutants that are in the sample."""
        ordered = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed} {name}".encode()).digest())
        return set(ordered[: self.size])


def read_left() -> list[Left]:
    """The entries of `tests/mutants.toml`."""
    entries = tomllib.loads((PROJECT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    return [
        Left(kind, entry["function"], entry.get("change", ""), entry.get("lost", ""), entry["why"])
        for kind, listed in (("GPU-only", entries["gpu_only"]), ("equivalent", entries["equivalent"]))
        for entry in listed
    ]


def configure(target: str) -> None:
    """Point mutmut, which reads `[tool.mutmut]`, at one wing or module and its tests."""
    from mutmut import configuration

    wing = target.partition("/")[0]
    whole = configuration._load_config()
    configuration._config = dataclasses.replace(
        whole,
        only_mutate=[f"lorabench/{target}/*" if target == wing else f"lorabench/{target}.py"],
        pytest_add_cli_args_test_selection=[f"tests/unit/{wing}", *MORE_TESTS.get(wing, [])],
    )


def make_mutants(target: str, minutes: float, workers: int, sample: Sample | None) -> None:
    """Run mutmut until it is done or the time is up."""
    known = json.loads(OWNER.read_text(encoding="utf-8")) if OWNER.is_file() else {}
    if known.get("target") != target:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    tests = hash_tests()
    if known.get("tests") != tests:
        try_survivors_again(target)
    OWNER.write_text(json.dumps({"target": target, "tests": tests}), encoding="utf-8")
    command = [sys.executable, str(Path(__file__)), target, "--inside", "--workers", str(workers)]
    if sample is not None:
        command += ["--sample", str(sample.size), "--sample-seed", str(sample.seed)]
    # A process group of its own: what is left of it when the time is up is ended with it.
    process = subprocess.Popen(
        command, cwd=PROJECT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    logged = threading.Thread(target=write_log, args=(process.stdout,), daemon=True)
    logged.start()
    try:
        if process.wait(timeout=60 * minutes) != 0:
            logged.join(timeout=10)
            said = LOG.read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(said)[-4000:])
            raise SystemExit(f"mutmut failed: {LOG}")
    except subprocess.TimeoutExpired:
        print(f"stopped after {minutes:g} minutes; the same command goes on from here", flush=True)
    finally:
        for word in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, word)
                process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def write_log(output: IO[bytes]) -> None:
    """What mutmut says, without the lines that only show that it works.

    It writes to a pipe: a test that limits the size of files would limit that of its log.
    """
    with LOG.open("wb") as log:
        for line in output:
            shown = line.rpartition(b"\r")[2].strip()
            if shown:
                log.write(shown + b"\n")
                log.flush()


def hash_tests() -> str:
    """Of all Python files of the tests."""
    found = hashlib.sha256()
    for path in sorted((PROJECT / "tests").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def try_survivors_again(target: str) -> None:
    """Other tests may catch what survived."""
    configure(target)
    from mutmut.__main__ import _reset_mutant_results

    _reset_mutant_results(lambda key, code: code in SURVIVED)


def run_inside(target: str, workers: int, sample: Sample | None) -> None:
    """mutmut itself, in this process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    sys.path[0] = str(PROJECT)
    configure(target)
    from mutmut import __main__ as mutmut
    from mutmut.runners.harness import PytestRunner
    from mutmut.state import state

    PytestRunner.run_stats = with_fixtures(PytestRunner.run_stats, state)
    PytestRunner.run_tests = in_order(PytestRunner.run_tests)
    if sample is not None:
        mutmut.collect_source_file_mutation_data = only_drawn(mutmut.collect_source_file_mutation_data, sample)
    mutmut._run([], workers)


def only_drawn(collect: Callable[..., Any], sample: Sample) -> Callable[..., Any]:
    """mutmut's list of what there is to try, as (data, name, exit code) and by file: cut to the sample.

    mutmut could be told names, but not before it has made the mutants; and it tries again those that it is told.
    """

    def collect_drawn(**asked: Any) -> Any:
        mutants, by_file = collect(**asked)
        drawn = sample.draw(name for _, name, _ in mutants)
        return [mutant for mutant in mutants if mutant[1] in drawn], by_file

    return collect_drawn


def read_mutants(target: str, sample: Sample | None) -> Iterator[Mutant]:
    """What has become of the target's mutants, or of those in the sample."""
    configure(target)
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import get_module_from_key, orig_function_and_class_names_from_key

    known = [SourceFileMutationData(path=path) for path in walk_mutatable_files()]
    for data in known:
        data.load()
    keys = [key for data in known for key in data.exit_code_by_key]
    drawn = set(keys) if sample is None else sample.draw(keys)
    for data in known:
        for key, code in data.exit_code_by_key.items():
            if key not in drawn:
                continue
            name, owner = orig_function_and_class_names_from_key(key)
            function = ".".join(filter(None, (get_module_from_key(key), owner, name)))
            status = status_by_exit_code[code]
            shown = status not in (*CAUGHT, NOT_TRIED)  # mutmut reads the whole file for each
            changed = get_diff_for_mutant(key, path=data.path).splitlines()[2:] if shown else []
            removed = " ".join(line[1:].strip() for line in changed if line.startswith("-"))
            added = " ".join(line[1:].strip() for line in changed if line.startswith("+"))
            yield Mutant(function, status, removed, added)


def interval(caught: int, tried: int) -> tuple[float, float]:
    """Between which percentages of a whole wing a sample has it: Wilson's interval of 95 %."""
    found = binomtest(caught, tried).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * found.low, 100 * found.high


def report(target: str, mutants: list[Mutant], left: list[Left], sample: Sample | None = None) -> dict[str, Any]:
    """Counts, and the survivors; written to `mutants-WING.md` and `.json`, and the counts printed."""
    counts: Counter[str] = Counter()
    survivors: list[Mutant] = []
    for mutant in mutants:
        kinds = [entry.kind for entry in left if entry.covers(mutant)]
        if mutant.status == NOT_TRIED:
            counts[NOT_TRIED] += 1
        elif mutant.status in CAUGHT:
            counts["caught"] += 1
        elif kinds:
            counts[kinds[0]] += 1
        else:
            counts["survived"] += 1
            survivors.append(mutant)
    tried = counts["caught"] + counts["survived"]
    percent = 100 * counts["caught"] / tried if tried else None
    shown = "no mutant was tried" if percent is None else f"{percent:.1f} % caught"
    found: dict[str, Any] = {"target": target, "percent_caught": percent, **counts}
    if sample is not None:
        found["sample"] = {"seed": sample.seed, "drawn": len(mutants)}
        shown += f" of a sample of {len(mutants)} (seed {sample.seed})"
        # mutmut begins with the quickest: those alone are no sample.
        if tried and not counts[NOT_TRIED]:
            found["sample"]["interval"] = interval(counts["caught"], tried)
            shown += ", of all {:.1f} to {:.1f} % with 95 % confidence".format(*found["sample"]["interval"])
    others = ", ".join(f"{counts[kind]} {kind}" for kind in ("GPU-only", "equivalent", NOT_TRIED))
    line = f"{target}: {shown}: {counts['caught']} caught, {counts['survived']} survived; not counted: {others}"
    name = f"mutants-{target.replace('/', '-')}"
    listed = "\n".join(
        f"- `{mutant.function}` ({mutant.status})\n  - `{mutant.removed}`\n  - `{mutant.added}`"
        for mutant in sorted(survivors, key=lambda mutant: mutant.function)
    )
    (PROJECT / f"{name}.md").write_text(f"# {line}\n\n{listed}\n", encoding="utf-8")
    (PROJECT / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{line}\nsurvivors: {name}.md")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help=f"{', '.join(WINGS)}, or a module of one, as step/loss")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="mutants at a time")
    parser.add_argument("--sample", type=int, metavar="N", help="try only so many, drawn at random")
    parser.add_argument("--sample-seed", type=int, default=0, metavar="S", help="draws others (default 0)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    target = arguments.target
    if target.partition("/")[0] not in WINGS or not any(
        path.exists() for path in (PROJECT / "lorabench" / target, PROJECT / "lorabench" / f"{target}.py")
    ):
        parser.error(f"{target}: expected one of {', '.join(WINGS)}, or a module of one, as step/loss")
    if arguments.sample is not None and arguments.sample < 1:
        parser.error(f"--sample {arguments.sample}: expected one mutant or more")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    os.chdir(PROJECT)
    target, workers = arguments.target, arguments.workers
    sample = None if arguments.sample is None else Sample(arguments.sample, arguments.sample_seed)
    if arguments.inside:
        run_inside(target, workers, sample)
        return
    make_mutants(target, arguments.minutes, workers, sample)
    report(target, list(read_mutants(target, sample)), read_left(), sample)


if __name__ == "__main__":
    main()
