"""A run's base model, adapter and head merged into one plain model, written, read back and compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from lorabench import __version__
from lorabench.checkpoint.adapter import load_adapter
from lorabench.checkpoint.merged_card import MergeFacts, base_licence, merged_card
from lorabench.errors import RunError
from lorabench.files import share_mode
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.machine.precision import DTYPES
from lorabench.models.build import classify_with, load_adapted
from lorabench.models.source import fingerprint_files, local_source
from lorabench.results.run_folder import read_run
from lorabench.training.merge import MERGE_FILE, MergeDtype
from lorabench.training.prediction import FinishedRun, base_of
from lorabench.training.predictor import choose_device, out_of_memory_said

# Largest difference of logits in float32, relative to the largest of them, or to 1.
TOLERANCE = 1e-5
# What a licence asks to be handed on with a model.
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# Texts whose logits are compared: of one token and of many, padded beside each other.
_TEXTS = (
    "Smoke over the harbour.",
    "yes",
    "Roads are closed after the flood; two bridges, 14 houses and the old mill are under water, says the mayor.",
    "Nothing happened here today, and nothing is expected to happen tomorrow.",
    "?! 3.5 #fire @home http://example.org/a?b=c",
    "Überall Rauch, überall Feuer - заводы горят",
)


def write_merged(run: FinishedRun, folder: Path, dtype: MergeDtype, trust_remote_code: bool) -> list[str]:
    """Write the merged model of a run, once it is proved to give the logits of base model and adapter.

    Args:
        folder: new and empty.

    Returns:
        What was done, in lines.

    Raises:
        ConfigError: the base model cannot be had.
        RunError: logits differ, or the model does not fit into memory.
    """
    if not Path(local_source(*base_of(run.find_adapter()))).is_dir():
        prefer_cache_if_unreachable()
    with out_of_memory_said("the model in float32, which is what it is merged in, does not fit"):
        plain, tokenizer, expected = merge_in_memory(run, trust_remote_code)
        held_as = _stored_dtype(run, plain) if dtype == "auto" else dtype
        _check("the merged model", _logits(plain, tokenizer, run), expected)
        for parameter in plain.parameters():
            parameter.data = parameter.data.to(DTYPES[held_as])
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for parameter in plain.parameters():
            parameter.data = parameter.data.float()
        rounded = _logits(plain, tokenizer, run)
        del plain
        reloaded = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=trust_remote_code
        ).eval()
        found = _logits(reloaded, tokenizer, run)
    _check("the merged model, read back,", found, expected if held_as == "fp32" else rounded)
    names = tuple(reloaded.config.id2label[row] for row in range(len(run.labels)))
    if names != run.labels:
        raise RunError(f"the merged model calls its classes {names}, not {run.labels}")
    facts = MergeFacts(held_as, _difference(found, expected), run.config.model.quantize == "nf4")
    _write_about(run, folder, facts)
    return _lines(run, folder, facts)


def merge_in_memory(
    run: FinishedRun, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, torch.Tensor]:
    """The merged model in float32 on the CPU, its tokenizer, and the logits that base model and adapter give.

    A 4-bit base gives them in 4 bits, computing in float32; what is merged are the weights that its own stand for.
    """
    nf4 = run.config.model.quantize == "nf4"
    device = choose_device() if nf4 else torch.device("cpu")
    load: Callable[..., Any] = lambda **how: _load(run, device, trust_remote_code, **how)  # noqa: E731
    adapted, tokenizer = load()
    # As the run cut its rows: what `truncation=True` of a pipeline goes by.
    tokenizer.model_max_length = run.config.data.max_length
    expected = _logits(adapted, tokenizer, run)
    if nf4:
        del adapted
        adapted, _ = load(expanded=True)
    plain = adapted.merge_and_unload(safe_merge=True)
    return plain.to("cpu").eval(), tokenizer, expected


def _load(run: FinishedRun, device: torch.device, trust_remote_code: bool, **how: bool) -> tuple[Any, Any]:
    """Base model and adapter, all of which computes in float32."""
    adapter = run.find_adapter()
    quantized_from = DTYPES[run.precision] if run.config.model.quantize == "nf4" else None
    adapted, tokenizer = load_adapted(
        adapter, run.labels, device, torch.float32, trust_remote_code, quantized_from=quantized_from, **how
    )
    classify_with(adapted, torch.float32)
    load_adapter(adapted, adapter)  # a base in half precision has rounded the head on the way in
    return adapted, tokenizer


def _stored_dtype(run: FinishedRun, plain: PreTrainedModel) -> MergeDtype:
    """What the base model's checkpoint is held in; of 4-bit weights, what they computed in."""
    from transformers import AutoConfig

    if run.config.model.quantize == "nf4":
        return run.precision  # pyright: ignore[reportReturnType]
    base, revision = base_of(run.find_adapter())
    source = local_source(base, revision)
    own = AutoConfig.from_pretrained(source, revision=None if Path(source).is_dir() else revision)
    stored = getattr(own, "dtype", None) or getattr(own.get_text_config(), "dtype", None)
    return next((name for name, kind in DTYPES.items() if kind == stored), "fp32")  # pyright: ignore[reportReturnType]


def _logits(model: Any, tokenizer: PreTrainedTokenizerBase, run: FinishedRun) -> torch.Tensor:
    """[texts, classes] in float32 on the CPU."""
    seconds: dict[str, Any] = {"text_pair": list(reversed(_TEXTS))} if run.pairs else {}
    inputs = tokenizer(
        list(_TEXTS), **seconds, truncation=True, max_length=run.config.data.max_length, padding=True,
        return_tensors="pt",
    ).to(next(model.parameters()).device)  # fmt: skip
    with torch.no_grad():
        return model(**inputs).logits.float().cpu()


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


def _check(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = _difference(found, expected)
    if not difference <= TOLERANCE:
        raise RunError(
            f"{what} gives logits that differ by {difference:.2g} in float32; expected {TOLERANCE:g} at most"
        )


def _write_about(run: FinishedRun, folder: Path, facts: MergeFacts) -> None:
    """Model card, the files of the base model's licence, and how the folder was made."""
    adapter = run.find_adapter()
    base, revision = base_of(adapter)
    source = Path(local_source(base, revision))
    if source.is_dir():
        for pattern in _LICENCE_FILES:
            for path in source.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
    card = merged_card(read_run(run.folder), base, base_licence(base, revision), facts)
    readme = folder / "README.md"
    readme.write_text(card, encoding="utf-8")
    made = {
        "lorabench": __version__, "run": str(run.folder), "base_model": base, "revision": revision,
        "adapter": fingerprint_files(adapter), "dtype": facts.dtype, "dequantized": facts.dequantized,
        "logit_difference": facts.difference,
    }  # fmt: skip
    (folder / MERGE_FILE).write_text(json.dumps(made, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    share_mode(folder, readme)


def _lines(run: FinishedRun, folder: Path, facts: MergeFacts) -> list[str]:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    lines = [f"merged     {run.folder}: {size / 1e6:,.1f} MB in {facts.dtype}"]
    if facts.dequantized:
        lines.append(
            "dequantised: the base model was held in 4 bits (nf4), and what is merged are the plain weights that "
            "those stand for, not its checkpoint's"
        )
    said = f"of {len(_TEXTS)} texts differ by {facts.difference:.2g} from those of base model and adapter"
    why = "" if facts.dtype == "fp32" else f", by rounding to {facts.dtype}; before it by less than {TOLERANCE:g}"
    lines.append(f"checked    without PEFT, logits {said}{why}")
    return lines
