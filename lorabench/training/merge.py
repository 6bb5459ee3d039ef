"""`lorabench merge`: a finished run's adapter and its base model as one plain model, which needs no PEFT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorabench.config.command_line import ConfigOption
from lorabench.errors import ConfigError, IssueList, RunError
from lorabench.harmless import printable
from lorabench.machine.hub import explain_hub_error, is_offline, prefer_cache_if_unreachable
from lorabench.results.outputs import folder_issues, writing_folder
from lorabench.training.prediction import FinishedRun

MergeDtype = Literal["auto", "fp32", "bf16", "fp16"]
MERGE_FILE = "merge.json"
"""Tells a merged model's folder from any other, and how it was made."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions(ConfigOption):
    """A finished run as a plain model: base, best adapter and head in one folder that loads without PEFT."""

    run: Path
    """Folder of the run, with run.json and adapter/; or that run.json."""
    output: Path
    """Folder to write: weights, configuration with the names of the classes, tokenizer, model card."""
    overwrite: bool = False
    """Replace --output where it is an earlier merged model."""
    dtype: MergeDtype = "auto"
    """Dtype of the weights that are written. `auto`: that of the base model's checkpoint; of 4-bit ones, what they
    computed in."""
    push_to_hub: str | None = None
    """Upload the folder to this repository of the Hub, too, as owner/name; a new one is private."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base model. Off unless you say so."""


def merge(options: MergeOptions) -> list[str]:
    """Merge, prove that the folder gives the same logits, and only then give it its name.

    Returns:
        What was done, in lines.

    Raises:
        ConfigError: all that is wrong with run, output and repository, before a model is loaded.
        RunError: logits differ, memory or disk ran out: nothing is at the output's name then; or the upload failed.
    """
    run = check(options)
    # Heavy imports, only for input that is known to be good.
    from lorabench.training.merged_model import write_merged

    with writing_folder(options.output, options.overwrite, MERGE_FILE) as staging:
        lines = [f"note       {remark}" for remark in run.remarks()]
        lines += write_merged(run, staging, options.dtype, options.trust_remote_code)
    lines.append(f"wrote      {options.output}")
    if options.push_to_hub is not None:
        lines.append(f"uploaded   {push(options.output, options.push_to_hub)}")
    return [printable(line) for line in lines]


def check(options: MergeOptions) -> FinishedRun:
    """The run, if it can be merged and the results can be put where they are asked for.

    Raises:
        ConfigError: everything that is wrong, together.
    """
    issues = IssueList()
    issues.extend(folder_issues(options.output, options.overwrite, MERGE_FILE))
    if options.push_to_hub is not None:
        issues.extend(push_issues(options.push_to_hub))
    try:
        run = FinishedRun.read_loadable(options.run)
    except ConfigError as error:
        raise ConfigError([*issues, *error.issues]) from None
    issues.raise_if_any()
    return run


def push_issues(repository: str) -> list[str]:
    """What keeps a folder from being uploaded, as far as that is known without asking for the repository."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    flag = f"--push-to-hub {repository}"
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return [f"{flag}: expected the name of a repository, as owner/name"]
    prefer_cache_if_unreachable()
    if is_offline():
        return [
            f"{flag}: the Hub cannot be reached (or HF_HUB_OFFLINE is set); expected a connection, or no such flag"
        ]
    if not get_token():
        return [f"{flag}: no token to write with; expected `hf auth login` or HF_TOKEN before"]
    return []


def push(folder: Path, repository: str) -> str:
    """Upload a folder. Returns the repository's address. Raises `RunError`, with the folder that stays."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Merged by lorabench")
    except Exception as error:  # whatever the service and its client can raise
        reason = explain_hub_error(error)
        raise RunError(f"--push-to-hub {repository}: {reason}; the merged model is in {folder}") from error
    return str(address)
