"""A finished run's classifier, ready for new texts."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from lorabench.checkpoint.adapter import find_adapter, load_adapter
from lorabench.data.batching import PaddedCollator, tokenize
from lorabench.data.task import Rows
from lorabench.data.tokenizer import pad_id
from lorabench.distributed.ranks import Ranks
from lorabench.errors import ConfigError
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.machine.precision import DTYPES
from lorabench.models.build import load_trained_classifier
from lorabench.packed.choice import choose_forward
from lorabench.step.evaluation import predict_logits
from lorabench.training.prediction import PREDICT_BATCH_SIZE, FinishedRun


class Predictor:
    """The best adapter of a finished run on its base model: on the GPU in the run's precision if there is one, else in
    float32.

    Args:
        trust_remote_code: run Python code that comes with the base model; what the run did is no consent.

    Attributes:
        model: the adapted model, as PEFT made it.
        tokenizer: the adapter's own.

    Raises:
        ConfigError: the run has no adapter, or its base model cannot be had.
    """

    def __init__(self, run: FinishedRun, trust_remote_code: bool = False) -> None:
        adapter, config = adapter_of(run), run.config
        if not os.path.isdir(base_of(adapter)):
            prefer_cache_if_unreachable()
        nf4 = config.model.quantize == "nf4"
        if nf4 and find_spec("bitsandbytes") is None:
            raise ConfigError("--run: its base model is held in 4 bits; expected `pip install bitsandbytes` before")
        on_gpu = torch.cuda.is_available()
        self._run = run
        self._device = torch.device("cuda" if on_gpu else "cpu")
        # As the run evaluated.
        self._packs = on_gpu and run.packs
        compute_dtype = DTYPES[run.precision] if on_gpu else torch.float32
        self._autocast = None if compute_dtype == torch.float32 else compute_dtype
        self._classifier, self.tokenizer = load_trained_classifier(
            adapter,
            len(run.labels),
            self._device,
            torch.float32 if config.model.frozen_dtype == "fp32" else compute_dtype,
            trust_remote_code,
            quantized_from=DTYPES[run.precision] if nf4 else None,
        )
        self.model = self._classifier.adapted
        # Once more, now into float32: a half-precision base would have rounded the head on the way in.
        load_adapter(self.model, adapter)

    def logits(self, rows: Rows, origin: str, batch_size: int = PREDICT_BATCH_SIZE) -> torch.Tensor:
        """Logits of `rows`, [rows, classes] float32 on the CPU.

        A row's do not depend on the others: packed or padded, its tokens attend to each other only, and it is pooled
        at one of them.

        Args:
            origin: where the rows come from, for messages.
            batch_size: rows per forward pass, where they are padded.
        """
        tokens = tokenize(rows, self.tokenizer, self._run.config.data.max_length, origin)
        data = PaddedCollator(tokens, (1.0,) * len(self._run.labels), pad_id(self.tokenizer))
        longest = max(tokens.lengths)
        forward = choose_forward(self._classifier, self._device, self._autocast, longest, self._packs)
        return predict_logits(forward, data, batch_size, Ranks(self._device))


def adapter_of(run: FinishedRun) -> Path:
    """The folder of a run's best adapter.

    Raises:
        ConfigError: there is none.
    """
    adapter = find_adapter(run.folder)
    if adapter is None:
        raise ConfigError(f"--run {run.folder}: no adapter there (status {run.status}; random weights save none)")
    return adapter


def base_of(adapter: Path) -> str:
    """What PEFT loads the base model of an adapter from: a folder or a Hub id."""
    try:
        return str(
            json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{adapter}: no readable adapter_config.json ({error})") from None
