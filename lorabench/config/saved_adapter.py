"""A saved LoRA adapter to go on from (`--adapter`): what its configuration says, and what could not be meant."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.catalog.models import MODELS, preset_of
from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError, IssueList, first_line
from lorabench.files import LFS_ISSUE, is_lfs_pointer

ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Beside an adapter of this package: its classes, in the order of the head's rows.
CLASSES_FILE = "classes.json"
CARD_FILE = "README.md"
# Of the head to be, and of adapters that were trained without one: LoRA fits below another head.
TASK_TYPES = ("SEQ_CLS", "CAUSAL_LM")
_READ = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "bias"),
    *("target_modules", "exclude_modules", "modules_to_save"),
)
# Fields of PEFT's configuration that are set and change nothing of what is trained here.
_WITHOUT_EFFECT = (
    *("auto_mapping", "peft_version", "inference_mode", "init_lora_weights", "megatron_core", "qalora_group_size"),
    *("loftq_config", "fan_in_fan_out", "ensure_weight_tying"),
)


# Words of `init_lora_weights` that leave the model as it is; others, as PiSSA's, take from it what they put into LoRA.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class SavedAdapter:
    """What a saved adapter is.

    Attributes:
        folder: its folder.
        base: the model that it was trained on: a Hub id or a path.
        revision: of that model on the Hub.
        task_type: PEFT's word for what it was trained for.
        labels: its classes in the order of its head's rows; empty where nobody says.
    """

    folder: Path
    base: str
    revision: str | None
    task_type: str
    r: int
    alpha: int
    bias: str
    targets: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Its model as `--model` would name it."""
        return next((name for name, preset in MODELS.items() if preset.hub_id == self.base), self.base)

    def settings(self) -> dict[str, Any]:
        """Fields of a run's configuration that it decides, and the revision of its model."""
        return {
            "lora_r": self.r,
            "lora_alpha": self.alpha,
            "lora_bias": self.bias,
            "lora_targets": ",".join(self.targets),
            "revision": self.revision,
        }


def read_saved_adapter(folder: str | Path | None) -> SavedAdapter | None:
    """What the folder's files say; None where no adapter is asked for.

    Raises:
        ConfigError: it is no LoRA adapter, or one of a kind that training here would change.
    """
    if folder is None:
        return None
    path = Path(folder)
    settings = _read_json(path, ADAPTER_SETTINGS)
    issues = IssueList()
    for issue in _kind_issues(settings):
        issues.add(f"--adapter {folder}: {issue}")
    if not (path / ADAPTER_WEIGHTS).is_file():
        issues.add(f"--adapter {folder}: no {ADAPTER_WEIGHTS} there")
    elif is_lfs_pointer(path / ADAPTER_WEIGHTS):
        issues.add(f"--adapter {folder}: {ADAPTER_WEIGHTS} {LFS_ISSUE}")
    issues.raise_if_any()
    return SavedAdapter(
        folder=path,
        base=settings["base_model_name_or_path"],
        revision=settings.get("revision"),
        task_type=settings["task_type"],
        r=settings["r"],
        alpha=settings["lora_alpha"],
        bias=settings.get("bias", "none"),
        targets=tuple(sorted(settings["target_modules"])),
        labels=_read_classes(path) if (path / CLASSES_FILE).is_file() else (),
    )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if is_lfs_pointer(folder / name):
        raise ConfigError(f"--adapter {folder}: {name} {LFS_ISSUE}")
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        if (folder / "adapter" / ADAPTER_SETTINGS).is_file():
            raise ConfigError(f"--adapter {folder}: the folder of a run; expected {folder / 'adapter'}") from None
        raise ConfigError(
            f"--adapter {folder}: expected the folder of a saved adapter, with a readable {name} ({error.strerror})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"--adapter {folder}: {name} is damaged ({first_line(error)}); expected the JSON that was saved"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"--adapter {folder}: {name} is damaged (no JSON object); expected the JSON that was saved")
    return found


def _read_classes(folder: Path) -> tuple[str, ...]:
    labels = _ordered(_read_json(folder, CLASSES_FILE).get("id2label"))
    if len(set(labels)) < max(len(labels), 1):
        raise ConfigError(
            f'--adapter {folder}: {CLASSES_FILE} does not name the classes; expected id2label, as in {{"0": "no", '
            '"1": "yes"}, each name once'
        )
    return labels


def _ordered(names: Any) -> tuple[str, ...]:
    """Names by row, `{"0": "no", "1": "yes"}` -> `("no", "yes")`; empty where they are of another form."""
    if not isinstance(names, Mapping) or {str(row) for row in range(len(names))} != set(names):
        return ()
    return tuple(str(names[str(row)]) for row in range(len(names)))


def _kind_issues(settings: Mapping[str, Any]) -> list[str]:
    """What keeps training from going on with an adapter as it is."""
    if settings.get("peft_type") != "LORA":
        return [f"its type is {settings.get('peft_type')!r}; expected LORA"]
    if settings.get("task_type") not in TASK_TYPES:
        return [f"its task is {settings.get('task_type')!r}; expected {' or '.join(TASK_TYPES)}"]
    issues = []
    if not isinstance(settings.get("base_model_name_or_path"), str):
        issues.append("it does not name the model that it was trained on")
    for name in ("r", "lora_alpha"):
        if not isinstance(settings.get(name), int) or settings[name] < 1:
            issues.append(f"{name} is {settings.get(name)!r}; expected a whole number of at least 1")
    if settings.get("bias", "none") not in ("none", "all", "lora_only"):
        issues.append(f"bias is {settings['bias']!r}; expected none, all or lora_only")
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        issues.append(f"target_modules is {targets!r}; expected a list of names")
    start = settings.get("init_lora_weights", True)
    if not (isinstance(start, bool | None) or start in _PLAIN_STARTS):
        issues.append(f"init_lora_weights is {start!r}, by which PEFT changed the model below; expected plain LoRA")
    odd = [name for name, value in settings.items() if value and name not in _READ and name not in _WITHOUT_EFFECT]
    if odd:
        issues.append(f"it is LoRA with {', '.join(sorted(odd))}; expected plain LoRA")
    return issues


def adapter_issues(config: RunConfig) -> list[str]:
    """What contradicts the adapter to go on from.

    Raises:
        ConfigError: see `read_saved_adapter`.
    """
    saved = read_saved_adapter(config.model.adapter)
    if saved is None:
        return []
    issues, lora = IssueList(), config.lora
    for flag, given, own in (
        ("lora-r", lora.lora_r, saved.r),
        ("lora-alpha", lora.lora_alpha, saved.alpha),
        ("lora-bias", lora.lora_bias, saved.bias),
    ):
        issues.check(given == own, f"--{flag} {given}: --adapter {saved.folder} has {own}; expected that, or no flag")
    given = sorted(name.strip() for name in lora.lora_targets.split(","))
    own = ",".join(saved.targets)
    issues.check(
        given == list(saved.targets),
        f"--lora-targets {lora.lora_targets}: --adapter {saved.folder} has {own}; expected that, or no flag",
    )
    issues.check(
        config.model.weights == "pretrained", "--weights random: --adapter goes on from a trained model; expected one"
    )
    issues.check(_agree(config.model.model, saved.base), other_model_issue(config.model.model, saved))
    return list(issues)


def other_model_issue(model: str, saved: SavedAdapter) -> str:
    """What is said of a model that is not the one that an adapter was trained on."""
    return f"--model {model}: --adapter {saved.folder} was trained on {saved.base}; expected that, or no --model"


def _agree(model: str, base: str) -> bool:
    """Whether two names can be of one model.

    A path that is not on this machine may be that of any, and a folder may hold any: its files are compared later
    (`training.provenance.check_start`).
    """
    if not os.path.isdir(base) and os.path.isabs(base):
        return True
    return os.path.isdir(model) or is_same_model(model, base)


def is_same_model(model: str, base: str) -> bool:
    """Whether two names are of one model: one folder, or one model of the Hub."""
    return _identity(model) == _identity(base)


def _identity(model: str) -> str:
    if os.path.isdir(model):
        return os.path.realpath(model)
    preset = preset_of(model)
    return model if preset is None else preset.hub_id
