"""The classifier as a module: pooling, a head in its own precision, its blocks, and how many parameters it has."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

if TYPE_CHECKING:
    from lorabench.models.head import HeadOrigin
    from lorabench.models.weight_source import UnfilledWeights


class SequenceClassifier(nn.Module):
    """A PEFT-adapted transformers classifier: (input_ids, attention_mask[, token_type_ids]) -> logits in float32.

    Decoders are pooled at the last token of the attention mask, not at the last token that differs from the pad id:
    with pad = eos the latter picks another token for rows that end in eos.

    Args:
        adapted: the adapted model; its base keeps the names under which plain PEFT saves and reloads.
        origin: where its head's rows come from.
        unfilled: frozen weights that are not there yet; None where all are.
    """

    def __init__(
        self, adapted: PeftModel, origin: "HeadOrigin | None" = None, unfilled: "UnfilledWeights | None" = None
    ) -> None:
        super().__init__()
        self.origin = origin
        self.unfilled = unfilled
        # Why all weights are there although a strategy would fill its parts of them; None where that is not so.
        self.whole_because: str | None = None
        self.adapted = adapted
        base: Any = adapted.get_base_model()
        # That of the text part, where there are several. DeepSpeed sizes its buckets by the hidden size in it.
        self.config = base.config.get_text_config()
        self.pools_last_token = hasattr(base, "score")
        for name in head_names(base):
            _compute_in_own_dtype(getattr(base, name))

    @property
    def body(self) -> nn.Module:
        """The base model below the head."""
        base: Any = self.adapted.get_base_model()
        return getattr(base, base.base_model_prefix)

    def recompute_activations(self) -> None:
        """From now on blocks keep what they are given, and compute the rest anew in the backward pass."""
        base: Any = self.adapted.get_base_model()
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [rows, classes] of input_ids, attention_mask and types, all [rows, tokens]; None: all types are 0."""
        base: Any = self.adapted.get_base_model()
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if not self.pools_last_token:
            return base(**inputs).logits.float()
        hidden = self.body(**inputs, use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        return base.score(hidden[rows, last_token(attention_mask)]).float()


def last_token(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each row's last attended token, [rows], whichever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * positions).argmax(dim=1)


def _compute_in_own_dtype(head: nn.Module) -> None:
    """Keep autocast out of the head: its few logits decide, and half precision would round them."""
    inner = head.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # The trained copy comes last, after the original that PEFT keeps beside it.
        *_, dtype = (parameter.dtype for parameter in head.parameters())
        with torch.autocast(hidden.device.type, enabled=False):
            return inner(hidden.to(dtype), *args, **kwargs)

    head.forward = forward


def head_names(base: nn.Module) -> list[str]:
    """Top-level modules beside the body that have parameters: what a classifier adds to its base model."""
    return [
        name
        for name, module in base.named_children()
        if name != getattr(base, "base_model_prefix", None) and any(True for _ in module.parameters())
    ]


@torch.no_grad()
def neighbour_effect(classifier: SequenceClassifier, rows: Sequence[Sequence[int]], pad_token_id: int) -> float:
    """How much a row's logits depend on the rows that it is padded with, relative to the largest logit.

    Args:
        rows: token ids of a few texts of different lengths.
        pad_token_id: fills them up, on the right.
    """
    device = next(classifier.parameters()).device
    width = max(map(len, rows)) + 1
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    was_training = classifier.training
    classifier.eval()
    try:
        together = classifier(ids, mask)
        alone = []
        for row, own in zip(ids, rows, strict=True):
            tokens = row[None, : len(own)]
            alone.append(classifier(tokens, torch.ones_like(tokens)))
    finally:
        classifier.train(was_training)
    return ((together - torch.cat(alone)).abs().max() / together.abs().max().clamp_min(1e-6)).item()


def find_blocks(body: nn.Module) -> tuple[nn.Module, nn.ModuleList] | None:
    """The module that runs a model's transformer blocks, and the blocks in order; None where there is no such list.

    Architectures differ in its name, so it is found by its shape: of all lists of modules it is the one with the most
    parameters. Its length tells less: a mixture of experts may have more experts in each block than blocks. The blocks
    may be of several kinds, as where attention and state-space layers alternate.
    """
    stacks = [
        (owner, blocks)
        for owner in body.modules()
        for blocks in owner.children()
        # A list of lists runs nothing itself; those inside it are looked at in their turn.
        if isinstance(blocks, nn.ModuleList) and not any(isinstance(block, nn.ModuleList) for block in blocks)
    ]
    # Of lists with equally many parameters, one within the other, the outer one comes first.
    found = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()), default=None)
    return found if found and len(found[1]) else None


def trained_copies(adapted: PeftModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are trained whole, with their names in the base model; PEFT keeps the original beside each."""
    for path, module in adapted.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copied in module.modules_to_save.children():
                yield path, copied


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters as the model is used: the head counted once, though PEFT keeps two copies.

    Attributes:
        base: base model and head.
        adapter: LoRA matrices.
        trainable: LoRA matrices, head and whatever else trains.
    """

    base: int
    adapter: int
    trainable: int

    @property
    def total(self) -> int:
        """Base, head and adapter."""
        return self.base + self.adapter

    @property
    def trainable_percent(self) -> float:
        """Share of the total that trains, in percent."""
        return 100 * self.trainable / self.total


def logical_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole weight that a parameter stands for: packed 4-bit weights and ZeRO-3 shards have another."""
    packed = getattr(parameter, "quant_state", None)
    return tuple(packed.shape if packed is not None else getattr(parameter, "ds_shape", parameter.shape))


def count_parameters(adapted: PeftModel) -> ParameterCounts:
    """Logical sizes, whatever is packed (4 bits), or only a shard or an empty stand-in on this rank (ZeRO-3)."""
    base = adapter = trainable = 0
    for name, parameter in adapted.named_parameters():
        size = math.prod(logical_shape(parameter))
        if "lora_" in name:
            adapter += size
        elif ".modules_to_save." not in name:
            base += size
        if parameter.requires_grad:
            trainable += size
    return ParameterCounts(base=base, adapter=adapter, trainable=trainable)
