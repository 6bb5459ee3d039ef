"""A finished run's classifier, ready for new texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorabench.checkpoint.adapter import load_adapter
from lorabench.data.batching import MicroBatch, PaddedCollator, tokenize
from lorabench.data.task import Rows
from lorabench.data.texts import name_rows
from lorabench.data.tokenizer import pad_id
from lorabench.distributed.ranks import Ranks
from lorabench.errors import RunError
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.machine.meters import is_out_of_memory
from lorabench.machine.precision import DTYPES
from lorabench.models.build import classify_with, load_adapted
from lorabench.models.source import local_source
from lorabench.packed.choice import choose_forward
from lorabench.packed.classifier import PackedForward
from lorabench.step.evaluation import Forward, predict_logits
from lorabench.training.prediction import PREDICT_BATCH_SIZE, FinishedRun, base_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowLogits:
    """What the model says of some rows.

    Attributes:
        logits: [rows, classes] float32 on the CPU.
        cut_rows: how many of them were longer than the run's `--max-length`.
    """

    logits: torch.Tensor
    cut_rows: int


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


class RowPredictor:
    """The best adapter of a finished run, which computes as it did in the run's evaluations.

    Args:
        trust_remote_code: see `load_model`.

    Raises:
        ConfigError: the run has no adapter, or its base model cannot be had.
        RunError: the model does not fit into memory.
    """

    def __init__(self, run: FinishedRun, trust_remote_code: bool = False) -> None:
        with out_of_memory_said("the model does not fit into memory"):
            adapted, self._tokenizer = load_model(run, trust_remote_code)
            self._classifier = classify_with(adapted, frozen_dtype(run))
            load_adapter(adapted, run.find_adapter())
        self._run = run
        self._device = choose_device()
        dtype = compute_dtype(run)
        self._autocast = None if dtype == torch.float32 else dtype
        self._packs = self._device.type == "cuda" and run.packs
        self._forward: Forward | None = None
        self._prepared_for, self._with_types = 0, False

    def logits(
        self,
        rows: Rows,
        origin: str,
        batch_size: int = PREDICT_BATCH_SIZE,
        report: Callable[[int], None] = lambda rows: None,
    ) -> RowLogits:
        """Logits of `rows`, which are at least one.

        A row's do not depend on the others: packed or padded, its tokens attend to each other only, and it is pooled
        at one of them. A batch that does not fit is tried in halves.

        Args:
            origin: where the rows come from, for messages.
            batch_size: rows per forward pass, where they are padded.
            report: called after each pass with its number of rows.

        Raises:
            ConfigError: a row cannot be cut to the run's length.
            RunError: not even one row fits into memory, or a row's logits are no numbers.
        """
        tokens = tokenize(rows, self._tokenizer, self._run.config.data.max_length, origin)
        data = PaddedCollator(tokens, (1.0,) * len(self._run.labels), pad_id(self._tokenizer))
        longest = max(tokens.lengths)
        with out_of_memory_said(f"not even one row of {origin} fits, whose longest has {longest} tokens"):
            forward = _Reporting(self._forward_for(longest, tokens.token_types is not None), report)
            logits = predict_logits(forward, data, batch_size, Ranks(self._device), may_halve=True)
        broken = [rows.ids[i] for i in (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()]
        if broken:
            raise RunError(f"{origin}: the model's logits of {name_rows(broken)} are no finite numbers")
        return RowLogits(logits, tokens.cut_rows)

    def _forward_for(self, longest: int, types: bool) -> Forward:
        """How logits are computed: chosen anew only for texts that are longer than any before, or with other types.

        Args:
            longest: tokens of the longest text.
            types: whether tokens have types.
        """
        if self._forward is None or longest > self._prepared_for or types != self._with_types:
            if isinstance(self._forward, PackedForward):
                self._forward.detach()
            self._forward = choose_forward(self._classifier, self._device, self._autocast, longest, self._packs, types)
            self._prepared_for, self._with_types = longest, types
        return self._forward


@dataclass(frozen=True)
class _Reporting:
    """A forward that says after each pass how many rows it had."""

    forward: Forward
    report: Callable[[int], None]

    @property
    def model(self) -> torch.nn.Module:
        return self.forward.model

    def deal(self, lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
        return self.forward.deal(lengths, batch_size, world_size, rank)

    def logits(self, data: PaddedCollator, micro_batch: MicroBatch) -> torch.Tensor:
        logits = self.forward.logits(data, micro_batch)
        self.report(micro_batch.real)
        return logits


@contextmanager
def out_of_memory_said(what: str) -> Iterator[None]:
    """Turns a lack of memory inside into one sentence, which begins with `what`. Raises `RunError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
        if not on_cpu and not is_out_of_memory(error):
            raise
        advice = "more memory" if on_cpu else "a GPU with more free memory, or CUDA_VISIBLE_DEVICES= for the CPU"
        raise RunError(f"out of memory: {what}; expected {advice}") from None
