"""What is wrong with the values of a configuration: each issue names flag, value and expectation."""

import codecs
import errno
import math
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from lorabench.catalog.tasks import task_preset
from lorabench.config.run_config import DataConfig, OptimConfig, RunConfig, RunOptions
from lorabench.config.template import parse_template
from lorabench.errors import IssueList
from lorabench.files import full_disk, is_temporary, why_not
from lorabench.wording import named as names_of

RESULTS = Path("runs")
"""Where runs that name no folder make theirs."""
LOCK_FILE = ".lock"
"""Of the process that a run's folder belongs to; one that was left there is no result."""
LARGEST_SEED = 2**63 - 1
LARGEST_WEIGHT = 1e30
"""Of a class: sums of losses by weights like this, and by its inverse, stay within fp32."""
# Codecs of Python that text can be decoded by, for other ends than files.
_NOT_OF_FILES = ("idna", "punycode", "unicode_escape", "unicode-escape", "raw_unicode_escape", "raw-unicode-escape")
# What a new folder has to take: a run writes at least its record, and an adapter.
_TRIAL_BYTES = 1_000_000
# W&B's rules, the narrowest of the trackers'.
_NOT_IN_PROJECTS = "/\\#?%:"
_LONGEST_TAG = 64
# LoRA's updates are scaled by alpha over rank; more than this is a slip, and no number in half precision.
_LARGEST_ALPHA = 65_504
# What ranks find each other by, beside their number.
_MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def find_issues(
    config: RunConfig, launching: bool = False, named: Collection[str] = (), writes: bool = True
) -> list[str]:
    """Everything that is wrong with the values and can be said without reading a file, one sentence each.

    Args:
        launching: no process of the run is there yet; the folder of the results is left to them.
        named: the options that were given one by one, not by a file, which may name all of them.
        writes: the folder of the results has to take files.
    """
    issues = IssueList()
    for flag, value in _counts(config).items():
        if value is not None:
            issues.check(value >= 1, f"--{flag} {value}: expected a whole number of at least 1")
    for flag, value in {
        "learning-rate": config.optim.learning_rate,
        "max-grad-norm": config.optim.max_grad_norm,
    }.items():
        issues.check(math.isfinite(value) and value > 0, f"--{flag} {value}: expected a number above 0")
    decay, warmup = config.optim.weight_decay, config.optim.warmup_ratio
    issues.check(math.isfinite(decay) and decay >= 0, f"--weight-decay {decay}: expected a number of at least 0")
    issues.check(0 <= warmup <= 1, f"--warmup-ratio {warmup}: expected a number from 0 to 1")
    for flag, value in {"lora-dropout": config.lora.lora_dropout, "base-dropout": config.model.base_dropout}.items():
        if value is not None:
            issues.check(0 <= value < 1, f"--{flag} {value}: expected a number of at least 0 and below 1")
    seed = config.optim.seed
    issues.check(0 <= seed <= LARGEST_SEED, f"--seed {seed}: expected a whole number from 0 to {LARGEST_SEED}")
    issues.extend(split_issues(config.data))
    alpha = config.lora.lora_alpha
    issues.check(alpha <= _LARGEST_ALPHA, f"--lora-alpha {alpha}: expected at most {_LARGEST_ALPHA}")
    targets = config.lora.lora_targets
    issues.check(
        all(name.strip() for name in targets.split(",")),
        f"--lora-targets {targets!r}: expected comma-separated module names, `all-linear` or `auto`",
    )
    limit = config.run.gpu_memory_limit
    if limit is not None:
        fits = math.isfinite(limit) and limit > 0
        issues.check(fits, f"--gpu-memory-limit {limit}: expected a number of GB above 0")
    issues.extend(class_weight_issues(config.data.class_weights))
    issues.extend(source_issues(config.data))
    issues.extend(text_issues(config.data, named))
    issues.extend(quantization_issues(config))
    issues.extend(track_issues(config.run))
    variables = launch_variable_issues()
    if not launching and not variables:
        variables = meeting_issues()
    issues.extend(variables)
    folder, resume = config.run.output_dir, config.run.resume
    if (resume and folder is None) or (not launching and not variables and looks_into_output_dir()):
        issues.extend(output_dir_issues(folder, resume, writes))
    return list(issues)


def source_issues(data: DataConfig) -> list[str]:
    """What is wrong with where the rows are said to be, and how they are written there."""
    issues = IssueList()
    preset, given = task_preset(data.task), data.delimiter
    one_character = given is None or given in ("tab", "\\t") or (len(given) == 1 and given not in '"\r\n')
    issues.check(one_character, f"--delimiter {given!r}: expected one character, or `tab`")
    if data.encoding is not None:
        known = is_text_encoding(data.encoding)
        issues.check(
            known, f"--encoding {data.encoding}: unknown; expected an encoding such as utf-8, cp1252 or utf-16"
        )
    if preset.row_text.columns is None and data.label_column in map(str.strip, data.text_column.split(",")):
        issues.add(f"--text-column {data.text_column}: the labels' column, too; expected another --label-column")
    names = ("dataset_config", "dataset_revision", "train_split", "validation_split", "test_split")
    for name in names:
        value, flag, file = getattr(data, name), f"--{name.replace('_', '-')}", name.replace("_split", "_file")
        if value is None:
            continue
        if data.train_file is not None or preset.hub_id is None:
            issues.add(
                f"{flag} {value}: expected a --task that is a data set on the Hub or a folder, and no --train-file"
            )
        elif file.endswith("_file") and getattr(data, file) is not None:
            issues.add(f"{flag} {value}: --{file.replace('_', '-')} names the rows, too; expected one of the two")
    return list(issues)


def is_text_encoding(name: str) -> bool:
    """Whether Python can decode text by that name."""
    try:
        "a".encode(name)
        return codecs.lookup(name).name not in _NOT_OF_FILES
    except (LookupError, ValueError):
        return False


def split_issues(data: DataConfig) -> list[str]:
    """What is wrong with how rows are to be held out."""
    issues = IssueList()
    share, seed = data.validation_share, data.split_seed
    issues.check(0 < share < 1, f"--validation-share {share}: expected a number above 0 and below 1")
    issues.check(seed >= 0, f"--split-seed {seed}: expected a whole number of at least 0")
    return list(issues)


def quantization_issues(config: RunConfig) -> list[str]:
    """What a 4-bit base model cannot do."""
    issues = IssueList()
    if config.model.quantize == "nf4":
        frozen, bias = config.model.frozen_dtype, config.lora.lora_bias
        issues.check(
            frozen == "auto",
            f"--frozen-dtype {frozen}: --quantize nf4 holds the frozen weights in 4 bits; expected auto, or "
            "--quantize none",
        )
        # bitsandbytes casts the biases of its layers to the compute dtype at the first forward pass.
        issues.check(
            bias == "none",
            f"--lora-bias {bias}: --quantize nf4 keeps the biases of its layers in the compute dtype, too coarse to "
            "train; expected none, or --quantize none",
        )
    return list(issues)


def track_issues(run: RunOptions) -> list[str]:
    """What no tracker takes as a run's project, name, tags or group."""
    issues = IssueList()
    project, odd = run.track_project, sorted(set(run.track_project) & set(_NOT_IN_PROJECTS))
    issues.check(bool(project.strip()), "--track-project '': expected a name")
    issues.check(not odd, f"--track-project {project}: has {' '.join(odd)} in it; expected a name without")
    for flag, value in {"track-name": run.track_name, "track-group": run.track_group}.items():
        issues.check(value is None or bool(value.strip()), f"--{flag} '': expected a name")
    tags = run.track_tags
    if tags is not None:
        fits = all(0 < len(tag.strip()) <= _LONGEST_TAG for tag in tags.split(","))
        expected = f"expected words with commas between them, each of at most {_LONGEST_TAG} characters"
        issues.check(fits, f"--track-tags {tags!r}: {expected}")
    return list(issues)


def batch_issues(optim: OptimConfig, world_size: int, rows: int) -> list[str]:
    """What is wrong with an optimizer step over `world_size` ranks, if there are `rows` training rows."""
    effective = optim.effective_batch(world_size)
    if effective <= rows:
        return []
    return [
        f"--batch-size {optim.batch_size} x --gradient-accumulation {optim.gradient_accumulation} x {world_size} "
        f"rank(s) = {effective} rows per step: more than the {rows} training rows"
    ]


def text_issues(data: DataConfig, named: Collection[str] = ()) -> list[str]:
    """What is wrong with how rows become texts, whatever the columns.

    Args:
        named: see `find_issues`.
    """
    if data.template is None:
        return []
    flag, preset = f"--template {data.template!r}", task_preset(data.task)
    issues = IssueList()
    try:
        columns = parse_template(data.template).columns
        issues.check(
            data.label_column not in columns,
            f"{flag}: {data.label_column} is the labels' column; expected another --label-column",
        )
    except ValueError as error:
        issues.add(f'{flag}: {error}; expected names of columns in braces, as in "{{keyword}}: {{text}}"')
    issues.check(preset.row_text.columns is None, f"{flag}: task {data.task} joins columns of its own")
    usual = preset.settings.get("text_column", DataConfig().text_column)
    if data.text_column != usual or "text_column" in named:
        issues.add(f"{flag}: --text-column {data.text_column} names the text, too; expected one of the two")
    return list(issues)


def output_dir_issues(folder: Path | None, resume: bool, writes: bool = True) -> list[str]:
    """What is wrong with the folder of the results, as this process sees it.

    Args:
        writes: it has to take files; a dry run leaves none.
    """
    if folder is None and resume:
        return ["--resume: expected --output-dir with the folder of the run that is to go on"]
    try:
        if folder is None:
            found = new_folder_issues(RESULTS / "MODEL-TASK-TIME", writes)
            return [f"{issue}, or --output-dir with another one" for issue in found]
        if resume:
            has_run = (folder / "run.json").is_file()
            absent = [f"--output-dir {folder}: no run.json there, so no run to --resume"]
            if not has_run:
                return absent
            return _files_issues(folder, folder) if writes else []
        return new_folder_issues(folder, writes)
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be looked into; a null byte
        return [f"--output-dir {folder}: {why_not(error)}; expected a folder that can be written to"]


def new_folder_issues(
    folder: Path, writes: bool, leftovers: Collection[str] = (LOCK_FILE,), to_go_on: str = "--resume to go on"
) -> list[str]:
    """What keeps a folder from becoming that of a new run. Raises `OSError` or `ValueError` where even looking fails.

    Args:
        writes: see `output_dir_issues`.
        leftovers: names of files that may be there: they are no result.
        to_go_on: what else may be expected where others are there.
    """
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    else:
        if not os.path.exists(folder):
            return [f"--output-dir {folder}: a symbolic link that leads nowhere; expected a folder"]
        if not folder.is_dir():
            return [f"--output-dir {folder}: expected a folder, found a file"]
        names = sorted(path.name for path in folder.iterdir())
        others = [name for name in names if name not in leftovers and not is_temporary(name)]
        if others:
            expected = f"expected a new or empty folder, or {to_go_on}"
            return [f"--output-dir {folder}: in use; {expected} (it holds {names_of(others, 3)})"]
    place = folder.resolve()
    for parent in place.parents:
        if os.path.lexists(parent / "run.json"):
            return [f"--output-dir {folder}: inside the folder of the run in {parent}; expected a folder of its own"]
    nearest = next(parent for parent in (place, *place.parents) if os.path.lexists(parent))
    if not nearest.is_dir():
        return [f"--output-dir {folder}: {nearest} is a file; expected a folder"]
    return _files_issues(folder, nearest) if writes else []


def _files_issues(folder: Path, nearest: Path) -> list[str]:
    """Whether the nearest folder that is there takes a file: tried, for there are many ways to say no."""
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
    except OSError as error:
        if error.errno == errno.EFBIG:  # a limit of this process on single files: the folder takes smaller ones
            return []
        reason = full_disk(error, nearest) or f"{nearest} takes no files ({why_not(error)})"
        return [f"--output-dir {folder}: {reason}; expected a folder that can be written to"]
    return []


def launch_variable_issues(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What is wrong with the numbers by which a launcher tells a process its place."""
    least = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
    found, issues = {}, IssueList()
    for name, at_least in least.items():
        value = environment.get(name)
        if not value:
            continue
        found[name] = int(value) if value.isdecimal() else -1
        expected = f"expected a whole number of at least {at_least}, as launchers set it, or no such variable"
        issues.check(found[name] >= at_least, f"{name}={value} in the environment: {expected}")
    if not list(issues):
        here = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in found else "WORLD_SIZE"
        for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", here)):
            rank, ranks = found.get(name, 0), found.get(size)
            issues.check(ranks is None or rank < ranks, f"{name}={rank}: expected a number below {size}={ranks}")
    return list(issues)


def meeting_issues(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What ranks, or DeepSpeed even on one, lack to find each other; MPI tells them by other means."""
    size = environment.get("WORLD_SIZE") or "1"
    needed, asked = _MEETING if size != "1" else (), f"WORLD_SIZE={size}"
    # The number of a rank that is not the first says that there are several: it would keep silent for another's sake.
    later = next((name for name in ("LOCAL_RANK", "RANK") if (environment.get(name) or "0") != "0"), None)
    if later is not None and size == "1":
        needed, asked = ("WORLD_SIZE", *_MEETING), f"{later}={environment[later]}"
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes"):
        needed, asked = ("WORLD_SIZE", *_MEETING, "LOCAL_RANK"), "ACCELERATE_USE_DEEPSPEED"
    lacking = [name for name in needed if not environment.get(name)]
    if not lacking or any(name.startswith(("OMPI_COMM_", "PMI_")) for name in environment):
        return []
    expected = "expected accelerate launch, which sets them all, or no such variable"
    return [f"{asked} in the environment, without {', '.join(lacking)}: {expected}"]


def looks_into_output_dir() -> bool:
    """Whether this process looks before all have met: the first rank, where all are on one machine.

    A late one would find what the first has written already. On several machines the folder need not be everywhere,
    and a machine that refused alone would leave the others waiting for it: there the first rank looks later, for all.
    """
    return int(os.environ.get("RANK") or 0) == 0 and is_one_machine()


def is_one_machine() -> bool:
    """Whether all ranks of the launch are on this machine, and so find the same files."""
    ranks, here = (int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return ranks <= here


def class_weight_issues(text: str) -> list[str]:
    """What is wrong with a `--class-weights` value, whatever the number of classes."""
    if text in ("balanced", "none"):
        return []
    try:
        weights = parse_class_weights(text)
    except ValueError:
        weights = ()
    if weights and all(1 / LARGEST_WEIGHT <= weight <= LARGEST_WEIGHT for weight in weights):
        return []
    if weights and all(math.isfinite(weight) and weight > 0 for weight in weights):
        return [f"--class-weights {text!r}: expected weights of {1 / LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"]
    return [f"--class-weights {text!r}: expected `balanced`, `none` or one number above 0 per class, as in 0.9,1.2"]


def parse_class_weights(text: str) -> tuple[float, ...]:
    """`"0.9,1.2"` -> `(0.9, 1.2)`. Raises `ValueError` where a part is not a number."""
    return tuple(float(part) for part in text.split(","))


def _counts(config: RunConfig) -> dict[str, int | None]:
    """Flags that take a count of at least one, where they are set."""
    return {
        "lora-r": config.lora.lora_r,
        "lora-alpha": config.lora.lora_alpha,
        "max-length": config.data.max_length,
        "max-train-samples": config.data.max_train_samples,
        "max-eval-samples": config.data.max_eval_samples,
        "epochs": config.optim.epochs,
        "max-steps": config.optim.max_steps,
        "batch-size": config.optim.batch_size,
        "eval-batch-size": config.optim.eval_batch_size,
        "gradient-accumulation": config.optim.gradient_accumulation,
        "early-stopping": config.run.early_stopping,
        "logging-steps": config.run.logging_steps,
        "keep-checkpoints": config.run.keep_checkpoints,
    }
