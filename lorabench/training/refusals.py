"""What a run can be refused for before the libraries that take seconds to import: by flags, files and environment."""

import os

from lorabench.config.changes import recorded_changes
from lorabench.config.checks import batch_issues, is_one_machine, looks_into_output_dir
from lorabench.config.run_config import DataConfig, RunConfig
from lorabench.data.task import TaskData
from lorabench.errors import ConfigError, IssueList
from lorabench.launch.request import capture_issues, read_environment
from lorabench.machine.gpus import gpus_hidden, limit_issues, list_gpus
from lorabench.models.folder import folder_issues
from lorabench.results.run_folder import CONFIG_FILE, read_run
from lorabench.training.provenance import check_start
from lorabench.wording import named


def refuse_early(config: RunConfig, data: TaskData, model_too: bool = True) -> None:
    """Refuse what would be refused later, when all ranks have met and the model's files have been read.

    Args:
        model_too: look at the model's configuration, which may be on the Hub, and which takes a second to read.

    Raises:
        ConfigError: everything that is known by now, together.
    """
    issues = IssueList()
    issues.extend(batch_issues(config.optim, int(os.environ.get("WORLD_SIZE") or 1), len(data.train)))
    for check in (_check_device, _check_continuation, _check_adapter, *([_check_model] if model_too else [])):
        try:
            check(config)
        except ConfigError as error:
            issues.extend(error.issues)
    issues.raise_if_any()


def refuse_other_data(config: RunConfig) -> None:
    """Refuse to go on, before any rows are read, where the run had another task, or files where this launch has none.

    Raises:
        ConfigError: says how the run is started again; or that it is complete.
    """
    folder = config.run.output_dir
    if not config.run.resume or folder is None or not looks_into_output_dir():
        return
    record = read_run(folder)
    if not recorded_changes(folder, record, config):
        return
    before, now = RunConfig.from_json(record["config"]).data, config.data
    if _data_flags(before) == _data_flags(now):
        return
    same = folder / CONFIG_FILE
    advice = f"--config {same} --output-dir {folder} --resume" if same.is_file() else "the flags of the run"
    raise ConfigError(
        f"--resume: the run in {folder} has other settings than this launch: {_describe_data(before)}, and here "
        f"{_describe_data(now)}; expected {advice}, the same command again"
    )


def _data_flags(data: DataConfig) -> tuple[str, ...]:
    """The task, and the flags that name files: which ones these are may change."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    return data.task, *(f"--{split}-file" for split, path in files.items() if path is not None)


def _describe_data(data: DataConfig) -> str:
    task, *files = _data_flags(data)
    return " ".join([f"--task {task}", *(f"with {named(files)}" for _ in files[:1])])


def _check_device(config: RunConfig) -> None:
    """Refuse what only a GPU can do where there is none, or where the launch does not let it.

    torch is imported only for whom it concerns.
    """
    limit, attention = config.run.gpu_memory_limit, config.model.attn_implementation
    fp16 = "fp16" in (config.model.precision, os.environ.get("ACCELERATE_MIXED_PRECISION"))
    flash = attention.startswith("flash")
    if limit is None and not fp16 and not flash and config.optim.execution != "captured":
        return
    use_cuda = not gpus_hidden(os.environ) and bool(list_gpus())
    issues = IssueList()
    on_cpu = "the run is on the CPU; expected a GPU"
    if limit is not None:
        issues.check(use_cuda, f"--gpu-memory-limit {limit:g}: {on_cpu} whose memory to limit")
        issues.extend(limit_issues(limit, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)) if use_cuda else [])
    issues.check(use_cuda or not flash, f"--attn-implementation {attention}: {on_cpu}, or auto, sdpa or eager")
    issues.extend(capture_issues(config, read_environment().engine, use_cuda))
    if fp16:
        from lorabench.machine.precision import resolve_precision

        try:
            resolve_precision(config, use_cuda)
        except ConfigError as error:
            issues.extend(error.issues)
    issues.raise_if_any()


def _check_continuation(config: RunConfig) -> None:
    """Refuse other settings than those of the run that is to go on, where this process sees its folder."""
    folder = config.run.output_dir
    if config.run.resume and folder is not None and looks_into_output_dir():
        changes = recorded_changes(folder, read_run(folder), config)
        if changes:
            raise ConfigError(changes)


def _check_adapter(config: RunConfig) -> None:
    """Refuse an adapter to go on from that was trained on another base model; several machines look later."""
    if is_one_machine():
        check_start(config.model)


def _check_model(config: RunConfig) -> None:
    """Refuse a model that is not there or cannot be trained, as far as its files and its configuration say so.

    Imported here, once a folder is known to hold a model: transformers takes a second, on a busy machine many, and
    what is asked of it needs neither PEFT nor weights. Machines may differ in what they have; one that refused alone
    would leave the others waiting, so there all look together later.
    """
    if not is_one_machine():
        return
    issues = folder_issues(config.model)
    if issues:
        raise ConfigError(issues)
    from lorabench.models.configuration import configuration_issues, read_model_config

    model_config = read_model_config(config.model)
    issues = configuration_issues(config.model, config.lora, model_config, config.data.max_length)
    if issues:
        raise ConfigError(issues)
