"""A model's local folder by the names, sizes and headers of its files: by JSON and the file system alone.

No library of models is imported, so that a folder without a model is refused in no time.
"""

import json
import re
from pathlib import Path
from typing import Any

from lorabench.catalog.models import MODELS
from lorabench.config.model_size import read_headers
from lorabench.config.run_config import ModelConfig
from lorabench.config.saved_adapter import ADAPTER_SETTINGS, read_saved_adapter
from lorabench.errors import ConfigError
from lorabench.files import LFS_ISSUE, is_address, is_lfs_pointer
from lorabench.models.source import model_source, pinned_folder, pinned_revision
from lorabench.wording import counted, listed

MODEL_EXPECTATION = (
    "Expected a model on the Hub, the path of a local folder, or --weights random for a preset's memory and time"
)
IS_ADAPTER = "that is an adapter; --adapter FOLDER goes on from it"
WEIGHTS_FILE = "model.safetensors"
CONFIGURATION = "config.json"
# What tokenizers of transformers keep their words in.
_VOCABULARY = re.compile(
    r"tokenizer\.json|vocab|merges|codes|bpe|spm|spiece|sentencepiece|tekken|tiktoken|dict\.txt|\.model$",
    re.IGNORECASE,
)
# Of configurations, tokenizers and code; files of weights have other ones, and not all that are there are read.
_READ_SUFFIXES = (".json", ".txt", ".model", ".spm", ".tiktoken", ".vocab", ".bpe", ".codes", ".py", ".jinja")
# What weights can be trained on in. Other kinds hold numbers that stand for weights by scales, and are said to by a
# quantization_config.
_WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
_OF_ADAPTER = re.compile(r"\.lora_\w+(\.|$)")
_PART_OF_WEIGHTS = re.compile(r".*-\d+-of-\d+\.safetensors")


def folder_issues(config: ModelConfig) -> list[str]:
    """What is wrong with where a model is said to be, and with the files there; nothing is asked of the Hub."""
    if config.weights == "random" and config.model in MODELS:
        return []
    issue = place_issue(config)
    if issue is not None:
        return [issue]
    folder = Path(model_source(config))
    if not folder.is_dir():
        return []
    issues = _pointer_issues(config, folder)
    settings = read_settings(folder)
    if settings is None and not is_lfs_pointer(folder / CONFIGURATION):
        expected = "expected the folder of a model for transformers"
        return [f"--model {config.model}: its {CONFIGURATION} is no JSON object; {expected}"]
    settings = settings or {}
    is_quantized = settings.get("quantization_config") is not None
    issues += weights_issues(config, settings.get("transformers_weights"), is_quantized)
    if not config.trust_remote_code and not any(_VOCABULARY.search(path.name) for path in folder.iterdir()):
        issues.append(f"--model {config.model}: no tokenizer there; expected a tokenizer.json beside its config.json")
    return issues


def _pointer_issues(config: ModelConfig, folder: Path) -> list[str]:
    """A sentence for each file of a folder that Git LFS has not fetched, of those that any run reads."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _READ_SUFFIXES)
    return [f"--model {config.model}: {name} {LFS_ISSUE}" for name in names if is_lfs_pointer(folder / name)]


def place_issue(config: ModelConfig) -> str | None:
    """What is wrong with where a model is said to be, on the Hub or in a folder, by its name and its folder's files.

    What can only be a path, and is none of a folder, libraries would take for a malformed Hub id.
    """
    subject, source = f"--model {config.model}", model_source(config)
    if Path(source).is_dir():
        if config.revision is not None:
            return f"--revision {config.revision}: {subject} is a folder; expected a Hub model"
        if (Path(source) / ADAPTER_SETTINGS).is_file():
            return f"{subject}: {IS_ADAPTER}"
        if not (Path(source) / CONFIGURATION).is_file() and (Path(source) / "adapter" / ADAPTER_SETTINGS).is_file():
            return f"{subject}: the folder of a run; --adapter {config.model}/adapter goes on from its adapter"
        if not (Path(source) / CONFIGURATION).is_file():
            return f"{subject}: no {CONFIGURATION} there; expected the folder of a model for transformers"
        return None
    if is_address(source):
        return f"{subject}: an address; expected a Hub id (owner/name) or a local folder"
    if Path(source).is_file():
        return f"{subject}: a file; expected the folder of a model for transformers"
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/"):
        return f"{name_model(config)}: no such folder. {expected_model(config)}"
    return None


def name_model(config: ModelConfig) -> str:
    """What a message calls the model: the flag and its value, or where an adapter to go on from names it."""
    if _is_adapters(config):
        return f"--adapter {config.adapter}: its base model {config.model} (by its {ADAPTER_SETTINGS})"
    return f"--model {config.model}"


def expected_model(config: ModelConfig) -> str:
    """What a message expects in place of a model that is not there."""
    if _is_adapters(config):
        return "--model FOLDER says where it is now"
    if config.adapter is not None:
        return f"Expected the model that --adapter {config.adapter} was trained on"
    return MODEL_EXPECTATION


def _is_adapters(config: ModelConfig) -> bool:
    """Whether a model is the one that the adapter to go on from names, by that name."""
    try:
        saved = read_saved_adapter(config.adapter)
    except ConfigError:  # said where the flags are checked
        return False
    return saved is not None and config.model in (saved.base, saved.model)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The fields of a folder's `config.json`; None where it is no JSON object, or not there."""
    try:
        found = json.loads((folder / CONFIGURATION).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def weights_issues(config: ModelConfig, named: str | None, is_quantized: bool = False) -> list[str]:
    """What is wrong with a checkpoint's weights by the names, sizes and headers of its files, where these are here.

    Those of the Hub are whole, and transformers chooses among them; what is in them is looked at once they are in the
    cache.

    Args:
        named: a file that the configuration names for them, which is left to transformers.
        is_quantized: the configuration says how its numbers stand for weights.
    """
    folder = pinned_folder(config)
    if config.weights == "random" or folder is None:
        return []
    if not Path(model_source(config)).is_dir():
        return [] if named else [f"{name_model(config)}: {issue}" for issue in _tensor_issues(folder, is_quantized)]
    pickled = _pickle_issues(config, folder)
    if named is not None or pickled:
        return pickled
    subject, whole = f"--model {config.model}", folder / WEIGHTS_FILE
    index = folder / f"{WEIGHTS_FILE}.index.json"
    shards = _indexed(index)
    if whole.is_file():
        others = sorted(str(name) for name in shards or () if name != whole.name and (folder / str(name)).is_file())
        if others:
            return [
                f"{subject}: {whole.name} there, and weights in parts ({listed(others, most=1)}, by {index.name}); "
                "expected one of the two"
            ]
        shards = [whole.name]
    elif not index.is_file():
        return [f"{subject}: {_no_weights(folder)}"]
    elif shards is None:
        return [f"{subject}: {index.name} is no index of weights; expected one with a weight_map"]
    lacking = [name for name in shards if not (folder / str(name)).is_file()]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return [f"{subject}: {index.name} names {lacking[0]}{more}, not there; expected all files of its weights"]
    broken = [
        f"{subject}: {name} {wrong}; expected a whole file"
        for name in shards
        if (wrong := _safetensors_issue(folder / name)) is not None
    ]
    return broken or [f"{subject}: {issue}" for issue in _tensor_issues(folder, is_quantized)]


def fetch_weights(config: ModelConfig, named: str | None) -> None:
    """Have the weights of a Hub model in the cache, so that what is in them can be looked at before they are loaded.

    They are those that transformers would load; what cannot be had is left to it, and said then.

    Args:
        named: see `weights_issues`.
    """
    source = model_source(config)
    if config.weights == "random" or named is not None or Path(source).is_dir():
        return
    from transformers.utils.hub import cached_file, cached_files

    asked: dict[str, Any] = {"revision": pinned_revision(config), "_raise_exceptions_for_missing_entries": False}
    try:
        if cached_file(source, WEIGHTS_FILE, **asked) is None:
            index = cached_file(source, f"{WEIGHTS_FILE}.index.json", **asked)
            cached_files(source, [] if index is None else _indexed(Path(index)) or [], **asked)
    except (OSError, ValueError):
        return


def _indexed(index: Path) -> list[Any] | None:
    """The files of weights that an index names; None where there is none, or one of another form."""
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _no_weights(folder: Path) -> str:
    parts = sorted(path.name for path in folder.iterdir() if _PART_OF_WEIGHTS.fullmatch(path.name))
    if parts:
        return (
            f"{listed(parts, most=1)} without a {WEIGHTS_FILE}.index.json; expected that, and all files that it names"
        )
    return f"no weights there; expected {WEIGHTS_FILE} beside its config.json"


def _tensor_issues(folder: Path, is_quantized: bool) -> list[str]:
    """What of a checkpoint's tensors, by their names and dtypes, would be trained on as something else than it is."""
    tensors = read_headers(folder) or {}
    adapters = [name for name in tensors if _OF_ADAPTER.search(name)]
    odd = [
        name
        for name, tensor in tensors.items()
        if tensor.dtype not in _WEIGHT_DTYPES and (name.endswith(".weight") or tensor.dtype.startswith("F"))
    ]
    issues = []
    if adapters:
        issues.append(
            f"its checkpoint also holds {counted(len(adapters), 'tensor')} of a LoRA adapter ({adapters[0]}, ...), "
            "which would be left out; expected a model that it is merged into, or without it"
        )
    if odd and not is_quantized:
        issues.append(
            f"its checkpoint holds {odd[0]} in {tensors[odd[0]].dtype}, which is quantised, and its {CONFIGURATION} "
            "has no quantization_config that says how; expected the original weights (F32, F16 or BF16)"
        )
    return issues


def _pickle_issues(config: ModelConfig, folder: Path) -> list[str]:
    """What is said of a local checkpoint whose weights are a pickle, which runs what its author wrote as it loads."""
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not pickles or any(folder.glob("*.safetensors")):
        return []
    return [
        f"--model {config.model}: its weights are a pickle ({pickles[0]}), which can run code; expected "
        "model.safetensors. If you trust its author, convert it: AutoModel.from_pretrained(FOLDER, "
        "use_safetensors=False).save_pretrained(NEW_FOLDER), with the Auto class of its own head"
    ]


def _safetensors_issue(path: Path) -> str | None:
    """What is wrong with a file by its header: eight bytes with its length, then JSON with the places of tensors."""
    if is_lfs_pointer(path):
        return LFS_ISSUE
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"is cut short, or no safetensors ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "has a damaged header"
    told = 8 + length + end
    return None if size == told else f"has {size} bytes where its header tells of {told}"
