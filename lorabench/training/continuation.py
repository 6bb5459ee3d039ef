"""What a run saves to go on later, and how it goes on: every piece of state that its numbers depend on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lorabench.checkpoint.savepoint import Savepoint, read_newest_savepoint, write_savepoint
from lorabench.config.changes import recorded_changes
from lorabench.config.run_config import ModelConfig
from lorabench.data.batching import TokenizedRows
from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError, RunError, first_line
from lorabench.machine.meters import MemoryMonitor, Throughput
from lorabench.models.source import changed_files, model_source, pinned_revision
from lorabench.results.run_folder import (
    ADAPTER_STAGING,
    OWN_NAMES,
    PREVIOUS_ADAPTER,
    check_inside,
    lookup,
    read_run,
)
from lorabench.step.execution import RandomState
from lorabench.training.assembly import Built, Inputs
from lorabench.training.best import BestAdapter
from lorabench.training.job import Progress
from lorabench.training.record import RecordKeeper

# Of what a savepoint holds; raised when an older one would be misread.
STATE_FORMAT = 2
_SCALARS = (
    *("step", "before", "best", "history", "losses", "epoch_losses", "skipped_steps", "skipped_in_a_row"),
    "out_of_memory",
)
# All that a checkpoint says beside its format.
EXPECTED = frozenset({*_SCALARS, "effective_batch", "train_rows", "wall_seconds", "ranks"})


def find_savepoint(setting: Setting, inputs: Inputs, folder: Path) -> Savepoint | None:
    """The newest whole checkpoint of the run in `folder`, if this launch can go on from it; None if there is none.

    The first rank reads it for all: on several machines the others need not see the folder. A collective call.

    Raises:
        ConfigError: the run is complete, or this launch has other settings, rows or rows per step.
    """
    savepoint, issues = _read_savepoint(setting, inputs, folder) if setting.ranks.is_main else (None, [])
    savepoint, issues = setting.ranks.from_main((savepoint, issues))
    if issues:
        raise ConfigError(issues)
    return savepoint


def _read_savepoint(setting: Setting, inputs: Inputs, folder: Path) -> tuple[Savepoint | None, list[str]]:
    """The checkpoint, and what keeps this launch from going on from it."""
    try:
        # What is in there is read, and written to.
        check_inside(folder, (*OWN_NAMES, PREVIOUS_ADAPTER, ADAPTER_STAGING))
        known = read_run(folder)
    except ConfigError as error:
        return None, list(error.issues)
    try:
        issues = recorded_changes(folder, known, setting.config)
    except ConfigError as error:
        return None, list(error.issues)
    savepoint = read_newest_savepoint(folder, say=lambda message: print(f"resume     {message}", flush=True))
    if savepoint is None:
        return None, issues
    if savepoint.progress.get("format") != STATE_FORMAT or not savepoint.progress.keys() >= EXPECTED:
        return None, [*issues, f"--resume: the checkpoints in {folder} are another version's; resume with that one"]
    effective = setting.config.optim.effective_batch(setting.ranks.world_size)
    before = savepoint.progress["effective_batch"]
    if effective != before:
        issues.append(
            f"--resume: the run takes {before} rows per step and this launch {effective}; choose --batch-size and "
            "--gradient-accumulation so that their product with the number of ranks is the same"
        )
    for name, found in fingerprints(inputs).items():
        # Earlier versions kept that of the training rows alone.
        if savepoint.progress.get(name, found) != found:
            which = "training" if name == "train_rows" else "validation"
            issues.append(f"--resume: the {which} rows, or their tokens, are not those of the run")
    issues += _class_issues(known, setting.data.labels)
    issues += _base_issues(known, setting.config.model)
    return savepoint, issues


def _class_issues(known: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Rows are compared by the classes' numbers: what these stand for is compared here."""
    before = lookup(known, "data", "labels")
    if not isinstance(before, list) or before == list(labels):
        return []
    return [f"--resume: the run's classes are {', '.join(map(str, before))}, and those here {', '.join(labels)}"]


def _base_issues(known: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """What is said where the frozen weights are others than those that the run began with.

    Args:
        known: the run's record.
    """
    before, now = lookup(known, "model", "revision"), pinned_revision(config)
    if before is not None and now is not None and before != now:
        return [f"--resume: {config.model} is at commit {now}, the run began at {before}; --revision {before} goes on"]
    files, source = lookup(known, "model", "files"), Path(model_source(config))
    if isinstance(files, Mapping) and source.is_dir():
        changed = changed_files(source, files)
        if changed:
            return [f"--resume: {changed[0]} in {source} is not the file that the run began with"]
    return []


class Continuation:
    """Saves a run's state, and puts it back."""

    def __init__(
        self,
        setting: Setting,
        inputs: Inputs,
        built: Built,
        best: BestAdapter,
        keeper: RecordKeeper,
        progress: Progress,
        memory: MemoryMonitor,
    ) -> None:
        self._setting = setting
        self._built = built
        self._best = best
        self._keeper = keeper
        self._progress = progress
        self._memory = memory
        self._rows = fingerprints(inputs)
        self._saved: tuple[int, int] | None = None

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one. A collective call.

        Raises:
            RunError: the disk does not take it; earlier checkpoints are as they were.
        """
        setting = self._setting
        if self._saved == self._position():
            return
        ranks = setting.ranks.gather(self._rank_state())
        training = setting.strategy.read_state(self._built.classifier, self._built.optimizer)
        setting.ranks.on_main(lambda: self._write(training, ranks))
        self._saved = self._position()

    def _write(self, training: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        progress = self._progress
        state = {
            "training": training,
            "best": self._best.state(),
            "schedule": self._built.schedule.state_dict(),
            "random": [rank.pop("random") for rank in ranks],
        }
        values = {name: getattr(progress, name) for name in _SCALARS}
        facts = {
            "format": STATE_FORMAT,
            "effective_batch": self._built.plan.effective_batch,
            **self._rows,
            "wall_seconds": self._keeper.wall_seconds(),
            "ranks": ranks,
        }
        write_savepoint(
            self._keeper.folder, progress.step, Savepoint(state, {**values, **facts}),
            keep=self._setting.config.run.keep_checkpoints,
        )  # fmt: skip

    def restore(self, savepoint: Savepoint) -> None:
        """Put back a checkpoint, and empty it. A collective call; nothing random may be drawn until the next step.

        Raises:
            RunError: it does not hold what a run of this version saves.
        """
        try:
            self._restore(savepoint)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise RunError(f"the checkpoint does not hold what a run of this version saves ({what})") from error

    def _restore(self, savepoint: Savepoint) -> None:
        known, state = savepoint.progress, savepoint.state
        setting, built = self._setting, self._built
        setting.strategy.write_state(built.classifier, built.optimizer, state["training"])
        self._best.load_state(state["best"], known["best"])
        built.schedule.load_state_dict(state["schedule"])
        for group, learning_rate in zip(built.optimizer.param_groups, built.schedule.get_last_lr(), strict=True):
            group["lr"] = learning_rate
        for name in _SCALARS:
            setattr(self._progress, name, known[name])
        if self._progress.out_of_memory:
            # What did not fit then will not fit now.
            built.execution.batch_size = min(built.plan.batch_size, self._progress.out_of_memory[-1]["batch_size"])
        self._keeper.add_wall_seconds(known["wall_seconds"])
        self._restore_rank(known["ranks"], state["random"])
        self._saved = self._position()
        state.clear()  # three times the adapter, which the run holds itself from here on

    def _position(self) -> tuple[int, int]:
        """Steps taken and evaluations done: an epoch's last step is saved once more when it has been evaluated."""
        return self._progress.step, len(self._progress.history)

    def _rank_state(self) -> dict[str, Any]:
        random = RandomState.read(self._setting.ranks.device)
        return {
            "random": {"cpu": random.cpu, "cuda": random.cuda},
            "throughput": asdict(self._progress.throughput),
            "seconds": self._progress.watch.seconds,
            "memory": self._memory.phases,
            "packs": self._built.execution.state(),
        }

    def _restore_rank(self, ranks: list[Mapping[str, Any]], random: list[dict[str, Any]]) -> None:
        """This rank's own part; on another number of ranks, counts go to the first and dropout is drawn anew."""
        mine, progress = self._setting.ranks.rank, self._progress
        # Time is the slowest rank's whoever reports it; counts add up over ranks, so each goes to one rank only.
        progress.watch.seconds = max(rank["seconds"] for rank in ranks)
        own = [rank for i, rank in enumerate(ranks) if i % self._setting.ranks.world_size == mine]
        totals = {name: sum(rank["throughput"][name] for rank in own) for name in asdict(progress.throughput)}
        progress.throughput = Throughput(**totals)
        if len(ranks) != self._setting.ranks.world_size:
            torch.manual_seed(self._setting.config.optim.seed + mine + progress.step)
            return
        self._memory.merge(ranks[mine]["memory"])
        packs = ranks[mine].get("packs")
        if packs is not None:
            self._built.execution.load_state(packs)
        RandomState(**random[mine]).restore(self._setting.ranks.device)


def fingerprints(inputs: Inputs) -> dict[str, str]:
    """Of the rows that a run's numbers depend on; those of a test split are read when all is done."""
    return {f"{split}_rows": fingerprint(rows) for split, rows in inputs.tokens.items() if split != "test"}


def fingerprint(rows: TokenizedRows) -> str:
    """Hash of tokenized rows: the same tokens, types and labels, in the same order."""
    digest = hashlib.sha256()
    for ids, label in zip(rows.input_ids, rows.labels, strict=True):
        digest.update(f"{label}:{','.join(map(str, ids))}\n".encode())
    for types in rows.token_types or ():
        digest.update(f"{','.join(map(str, types))}\n".encode())
    return digest.hexdigest()
