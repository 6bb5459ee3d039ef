"""A finished run's classifier, ready for new texts."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorabench.checkpoint.adapter import load_adapter
from lorabench.data.batching import PaddedCollator, tokenize
from lorabench.data.task import Rows
from lorabench.data.tokenizer import pad_id
from lorabench.distributed.ranks import Ranks
from lorabench.errors import ConfigError
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.machine.precision import DTYPES
from lorabench.models.build import classify_with, load_adapted
from lorabench.models.source import local_source
from lorabench.packed.choice import choose_forward
from lorabench.step.evaluation import predict_logits
from lorabench.training.prediction import PREDICT_BATCH_SIZE, FinishedRun

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def load_model(run: FinishedRun, trust_remote_code: bool = False) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    """The best adapter of a finished run on its base model, as plain PEFT loads it, and its tokenizer.

    On the GPU in the run's precision if there is one, else in float32; LoRA's matrices are in float32 everywhere.

    Args:
        trust_remote_code: run Python code that comes with the base model; what the run did is no consent.

    Raises:
        ConfigError: the run has no adapter, or its base model cannot be had.
    """
    adapter, config = run.find_adapter(), run.config
    if not Path(local_source(*base_of(adapter))).is_dir():
        prefer_cache_if_unreachable()
    nf4 = config.model.quantize == "nf4"
    if nf4 and find_spec("bitsandbytes") is None:
        raise ConfigError("--run: its base model is held in 4 bits; expected `pip install bitsandbytes` before")
    return load_adapted(
        adapter,
        run.labels,
        choose_device(),
        frozen_dtype(run),
        trust_remote_code,
        quantized_from=DTYPES[run.precision] if nf4 else None,
    )


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(run: FinishedRun) -> torch.dtype:
    """What a finished run's model computes in: the run's precision on a GPU, else float32."""
    return DTYPES[run.precision] if choose_device().type == "cuda" else torch.float32


def frozen_dtype(run: FinishedRun) -> torch.dtype:
    """Dtype of the frozen weights: what the model computes in, unless the run held them in float32."""
    return torch.float32 if run.config.model.frozen_dtype == "fp32" else compute_dtype(run)


class Predictor:
    """The best adapter of a finished run, which computes as it did in the run's evaluations.

    Args:
        trust_remote_code: see `load_model`.

    Raises:
        ConfigError: the run has no adapter, or its base model cannot be had.
    """

    def __init__(self, run: FinishedRun, trust_remote_code: bool = False) -> None:
        adapted, self._tokenizer = load_model(run, trust_remote_code)
        self._run = run
        self._device = choose_device()
        dtype = compute_dtype(run)
        self._autocast = None if dtype == torch.float32 else dtype
        self._classifier = classify_with(adapted, frozen_dtype(run))
        load_adapter(adapted, run.find_adapter())

    def logits(self, rows: Rows, origin: str, batch_size: int = PREDICT_BATCH_SIZE) -> torch.Tensor:
        """Logits of `rows`, [rows, classes] float32 on the CPU.

        A row's do not depend on the others: packed or padded, its tokens attend to each other only, and it is pooled
        at one of them. A batch that does not fit is tried in halves.

        Args:
            origin: where the rows come from, for messages.
            batch_size: rows per forward pass, where they are padded.
        """
        tokens = tokenize(rows, self._tokenizer, self._run.config.data.max_length, origin)
        data = PaddedCollator(tokens, (1.0,) * len(self._run.labels), pad_id(self._tokenizer))
        packs = self._device.type == "cuda" and self._run.packs
        types = tokens.token_types is not None
        forward = choose_forward(self._classifier, self._device, self._autocast, max(tokens.lengths), packs, types)
        return predict_logits(forward, data, batch_size, Ranks(self._device), may_halve=True)


def base_of(adapter: Path) -> tuple[str, str | None]:
    """What PEFT loads the base model of an adapter from, a folder or a Hub id, and its revision."""
    try:
        settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return str(settings["base_model_name_or_path"]), settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{adapter}: no readable adapter_config.json ({error})") from None
