"""What a run saves to go on later, and how it goes on: every piece of state that its numbers depend on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lorabench import checkpoint
from lorabench.assembly import Built, Inputs, Setting
from lorabench.batching import TokenizedRows
from lorabench.best import BestAdapter
from lorabench.config import RunConfig
from lorabench.distributed import holds_whole_state, whole_parameters
from lorabench.errors import ConfigError
from lorabench.loop import Progress
from lorabench.meters import MemoryMonitor, Throughput
from lorabench.record import RecordKeeper
from lorabench.results import read_run
from lorabench.savepoint import Savepoint, read_newest_savepoint, write_savepoint

# Fields that may differ between a run and its continuation: they change no number, or only how a step's rows are
# split, which the effective batch covers.
FREE_FIELDS = frozenset(
    {
        *("run.resume", "run.output_dir", "run.keep_checkpoints", "run.track", "run.logging_steps"),
        *("optim.batch_size", "optim.eval_batch_size", "optim.gradient_accumulation"),
        *("model.gradient_checkpointing", "data.train_file", "data.validation_file", "data.test_file"),
    }
)
_SCALARS = ("step", "before", "best", "history", "losses", "epoch_losses", "skipped_steps", "skipped_in_a_row")


def changed_fields(before: RunConfig, now: RunConfig) -> list[str]:
    """Settings in which a continuation differs from its run and must not, as SECTION.FIELD: OLD -> NEW."""
    old, new = before.to_json(), now.to_json()
    return [
        f"{section}.{name}: {old[section][name]} -> {value}"
        for section, fields in new.items()
        for name, value in fields.items()
        if f"{section}.{name}" not in FREE_FIELDS and old[section][name] != value
    ]


def find_savepoint(setting: Setting, inputs: Inputs, folder: Path) -> Savepoint | None:
    """The newest whole checkpoint of the run in `folder`, if this launch can go on from it; None if there is none.

    Raises:
        ConfigError: the run is complete, or this launch has other settings, rows or rows per step, or a strategy whose
            state was not saved.
    """
    known = read_run(folder)
    if known["status"] == "completed":
        raise ConfigError(f"--resume: the run in {folder} is complete")
    if not holds_whole_state(setting.accelerator):
        raise ConfigError("--resume: a DeepSpeed or FSDP run leaves no checkpoint; use one process or DDP")
    savepoint = read_newest_savepoint(folder)
    issues = [
        f"--resume: {difference}, and must not change"
        for difference in changed_fields(RunConfig.from_json(known["config"]), setting.config)
    ]
    if savepoint is not None:
        effective = setting.config.optim.effective_batch(setting.ranks.world_size)
        before = savepoint.progress["effective_batch"]
        if effective != before:
            issues.append(
                f"--resume: the run takes {before} rows per step and this launch {effective}; choose --batch-size and "
                "--gradient-accumulation so that their product with the number of ranks is the same"
            )
        if savepoint.progress["train_rows"] != fingerprint(inputs.tokens["train"]):
            issues.append("--resume: the training rows, or their tokens, are not those of the run")
    if issues:
        raise ConfigError(issues)
    return savepoint


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
        self._train_rows = fingerprint(inputs.tokens["train"])
        self._saved: tuple[int, int] | None = None

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one. A collective call.

        Raises:
            RunError: the disk does not take it; earlier checkpoints are as they were.
        """
        progress, setting = self._progress, self._setting
        if not holds_whole_state(setting.accelerator) or self._saved == self._position():
            return
        ranks = setting.ranks.gather(self._rank_state())
        with whole_parameters(setting.accelerator, self._built.classifier.adapted):
            trained = checkpoint.adapter_state(self._built.classifier.adapted)
        if setting.ranks.is_main:
            scaler = setting.accelerator.scaler
            state = {
                "trained": trained,
                "best": self._best.state(),
                "optimizer": self._built.optimizer.state_dict(),
                "schedule": self._built.schedule.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": [rank.pop("random") for rank in ranks],
            }
            values = {name: getattr(progress, name) for name in _SCALARS}
            facts = {
                "effective_batch": self._built.plan.effective_batch,
                "train_rows": self._train_rows,
                "wall_seconds": self._keeper.wall_seconds(),
                "ranks": ranks,
            }
            write_savepoint(
                self._keeper.folder, progress.step, Savepoint(state, {**values, **facts}),
                keep=setting.config.run.keep_checkpoints,
            )  # fmt: skip
        self._saved = self._position()
        setting.ranks.wait()

    def restore(self, savepoint: Savepoint) -> None:
        """Put back a checkpoint. A collective call; nothing random may be drawn between it and the next step."""
        known, state = savepoint.progress, savepoint.state
        adapted = self._built.classifier.adapted
        with whole_parameters(self._setting.accelerator, adapted, modify=True):
            checkpoint.load_state(adapted, state["trained"])
        self._best.load_state(state["best"], known["best"])
        self._built.optimizer.load_state_dict(state["optimizer"])
        self._built.schedule.load_state_dict(state["schedule"])
        if self._setting.accelerator.scaler is not None and state["scaler"] is not None:
            self._setting.accelerator.scaler.load_state_dict(state["scaler"])
        for name in _SCALARS:
            setattr(self._progress, name, known[name])
        self._keeper.add_wall_seconds(known["wall_seconds"])
        self._restore_rank(known["ranks"], state["random"])
        self._saved = self._position()

    def _position(self) -> tuple[int, int]:
        """Steps taken and evaluations done: an epoch's last step is saved once more when it has been evaluated."""
        return self._progress.step, len(self._progress.history)

    def _rank_state(self) -> dict[str, Any]:
        device = self._setting.ranks.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "throughput": asdict(self._progress.throughput),
            "seconds": self._progress.watch.seconds,
            "memory": self._memory.phases,
        }

    def _restore_rank(self, ranks: list[Mapping[str, Any]], random: list[Mapping[str, torch.Tensor | None]]) -> None:
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
        state = random[mine]
        if state["cpu"] is not None:
            torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None and self._setting.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._setting.ranks.device)


def fingerprint(rows: TokenizedRows) -> str:
    """Hash of tokenized rows: the same tokens and labels, in the same order."""
    digest = hashlib.sha256()
    for ids, label in zip(rows.input_ids, rows.labels, strict=True):
        digest.update(f"{label}:{','.join(map(str, ids))}\n".encode())
    return digest.hexdigest()
