"""What may differ between a run and the launch that goes on with it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError

# Fields that may differ between a run and its continuation: they change no number, or only how a step's rows are
# split, which the effective batch covers.
FREE_FIELDS = frozenset(
    {
        *("run.resume", "run.output_dir", "run.keep_checkpoints", "run.track", "run.logging_steps"),
        *("run.track_project", "run.track_name", "run.track_tags", "run.track_group"),
        *("run.on_oom", "run.gpu_memory_limit", "run.memory_snapshot", "optim.execution"),
        *("optim.batch_size", "optim.eval_batch_size", "optim.gradient_accumulation"),
        *("model.gradient_checkpointing", "data.train_file", "data.validation_file", "data.test_file"),
    }
)


def changed_fields(before: RunConfig, now: RunConfig) -> list[str]:
    """Settings in which a continuation differs from its run and must not, as SECTION.FIELD: OLD -> NEW."""
    old, new = before.to_json(), now.to_json()
    return [
        f"{section}.{name}: {old[section][name]} -> {value}"
        for section, fields in new.items()
        for name, value in fields.items()
        if f"{section}.{name}" not in FREE_FIELDS and old[section][name] != value
    ]


def with_versions(config: RunConfig, record: Mapping[str, Any]) -> RunConfig:
    """A configuration that names the commits of model and data set that were read, in place of a branch or of nothing.

    Args:
        record: the run's, with its `model` and the `sources` of its `data`.
    """
    read = record.get("model", {}).get("revision")
    rows = record.get("data", {}).get("sources", {}).get("train", {}).get("revision")
    return replace(
        config,
        model=replace(config.model, revision=read or config.model.revision),
        data=replace(config.data, dataset_revision=rows or config.data.dataset_revision),
    )


def _as_asked(now: RunConfig, before: RunConfig, pinned: RunConfig) -> RunConfig:
    """A continuation as its run was asked for, where it names the commits that the run began at."""
    model, data = now.model, now.data
    if model.revision == pinned.model.revision:
        model = replace(model, revision=before.model.revision)
    if data.dataset_revision == pinned.data.dataset_revision:
        data = replace(data, dataset_revision=before.data.dataset_revision)
    return replace(now, model=model, data=data)


def recorded_changes(folder: Path, record: Mapping[str, Any], now: RunConfig) -> list[str]:
    """One message for each setting in which `--resume` differs from the run in `folder`, and must not.

    Args:
        record: the run's `run.json`.

    Raises:
        ConfigError: the run is complete, or another version's.
    """
    try:
        if record["status"] == "completed":
            raise ConfigError(f"--resume: the run in {folder} is complete")
        before = RunConfig.from_json(record["config"])
        differences = changed_fields(before, _as_asked(now, before, with_versions(before, record)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--resume: the run.json in {folder} is another version's ({error}); resume with that one"
        ) from None
    return [f"--resume: {difference}, and must not change" for difference in differences]
