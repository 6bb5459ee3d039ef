"""What a piece of code would allocate on a GPU, found by running it on tensors that have shapes and no storage.

`Recorder` notes each storage that comes into being and that goes, in order. The tensors are PyTorch's fake ones, on
the CPU by name, so that no GPU is needed and none is touched; where CUDA computes otherwise than the CPU and takes
other memory for it (dropout's mask, attention kernels, what autocast computes in float32), `_AsOnCuda` puts that in.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
# Up to so many tokens bitsandbytes multiplies 4-bit weights as they are.
FUSED_TOKENS = 256
# Floating-point operations below which a matrix product leaves most of a large GPU idle: a few microseconds' worth.
SHORT_PRODUCT = 4e9


@dataclass
class Trace:
    """Allocations in order.

    Attributes:
        events: (number of the storage, bytes); with 0 bytes the storage goes.
        marks: what began at which place in `events`, in order: ("forward", 3) is the forward pass of block 3, and
            ("head", 0) all between the last block's forward and backward pass.
        costs: what was computed up to each mark, and up to the end.
    """

    events: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[str, int, int]] = field(default_factory=list)
    costs: list["Cost"] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """What operations take, whatever the GPU.

    Attributes:
        operations: how many ran: each is a kernel, or a few.
        products: floating-point operations of the matrix products.
        product_traffic: bytes that these read and write.
        traffic: bytes that the other operations do.
        short_products: how many products are over before their arithmetic counts.
    """

    operations: int = 0
    products: int = 0
    product_traffic: int = 0
    traffic: int = 0
    short_products: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.operations + other.operations,
            self.products + other.products,
            self.product_traffic + other.product_traffic,
            self.traffic + other.traffic,
            self.short_products + other.short_products,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return self + other.times(-1)

    def times(self, factor: int) -> "Cost":
        """So many times the same."""
        values = (self.operations, self.products, self.product_traffic, self.traffic, self.short_products)
        return Cost(*(factor * value for value in values))


class Recorder(TorchDispatchMode):
    """Notes storages while it is entered. What was there before does not count.

    Args:
        answers: what code is told that asks whether all numbers of a tensor are true, as whether a batch is full.
    """

    def __init__(self, answers: bool = False) -> None:
        super().__init__()
        self.trace = Trace()
        self.cost = Cost()
        self._answers = answers
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._next = 0

    def mark(self, kind: str, block: int = 0) -> None:
        """From here on, it is the pass of that kind of that block."""
        self.trace.marks.append((kind, block, len(self.trace.events)))
        self.trace.costs.append(self.cost)

    def ignore(self, *tensors: torch.Tensor) -> None:
        """These storages are there already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known.setdefault(id(storage), (-1, weakref.ref(storage, self._forget(id(storage)))))

    def note(self, size: int) -> int:
        """Something of `size` bytes is there, beside all tensors. Returns its number."""
        self._next += 1
        self.trace.events.append((self._next, size))
        return self._next

    def forget(self, number: int) -> None:
        """It is gone."""
        self.trace.events.append((number, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._answers
        hidden = _HIDDEN.get(func._schema.name)
        extra = hidden(*args, **kwargs) if hidden else 0
        number = self.note(extra) if extra else None
        output = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        new = [self._note_storage(tensor) for tensor in outputs]
        if number is not None:
            self.forget(number)
        if any(new) or _is_in_place(func):
            self._count(func, args, outputs)
        return output

    def _note_storage(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return False
        number = self.note(storage.nbytes()) if storage.nbytes() else -1
        self._known[key] = (number, weakref.ref(storage, self._forget(key)))
        return True

    def _forget(self, key: int) -> Callable[[Any], None]:
        def gone(reference: Any) -> None:
            number, _ = self._known.pop(key)
            if number >= 0:
                self.forget(number)

        return gone

    def _count(self, func: Any, args: Any, outputs: list[torch.Tensor]) -> None:
        read = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *outputs))
        if func in _PRODUCTS:
            left, right = [tensor for tensor in read if tensor.dim() >= 2][-2:]
            arithmetic = 2 * left.numel() * right.shape[-1]
            self.cost += Cost(1, arithmetic, moved, short_products=int(arithmetic < SHORT_PRODUCT))
        elif func._schema.name == "bitsandbytes::gemm_4bit":
            # The weights are read packed, written expanded, and read again.
            count = math.prod(args[2])
            self.cost += Cost(2, 2 * args[0].numel() * args[2][0], moved + 2 * count * args[0].element_size())
        elif func._schema.name in _DEQUANTIZED:
            # The weights are written in the compute dtype and read again; what they are read from is in `moved`.
            count = args[0].shape[1] * outputs[0].shape[1]
            self.cost += Cost(2, 2 * len(args[0]) * count, moved + 2 * count * args[0].element_size())
        else:
            self.cost += Cost(1, 0, 0, moved)


# They are products of x and of the output's gradient with a weight of [outputs, columns].
_DEQUANTIZED = ("lorabench::dequantized_linear", "lorabench::dequantized_product")
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default)


def _is_in_place(func: Any) -> bool:
    return func._schema.is_mutable


def _flash_backward(gradient: torch.Tensor, query: torch.Tensor, *others: Any, **keywords: Any) -> int:
    """FlashAttention-2's float32 sum of query gradients; rows and head sizes are rounded up."""
    batch, heads, rows, size = query.shape
    return 4 * batch * heads * (-(-rows // 128) * 128) * (-(-size // 32) * 32)


def _flash_within_texts_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor,
    *others: Any,
) -> int:  # fmt: skip
    """The same sum with rows of their own behind each text, and sums of rows; and the gradients of shared keys."""
    _, heads, rows, size = query.shape
    padded, step = rows + 128 * (offsets.shape[2] - 1), 32 if size <= 128 else 64
    shared = key.shape[1] < heads
    return 4 * heads * padded * (-(-size // step) * step + 1) + 2 * shared * query.numel() * query.element_size()


def _efficient_backward(gradient: torch.Tensor, query: torch.Tensor, *others: Any, **keywords: Any) -> int:
    """The memory-efficient kernel's row sums, and its float32 gradients where it adds them up in several parts."""
    batch, heads, rows, _ = query.shape
    return 4 * batch * heads * rows + 4 * query.numel()


def _expanded(hidden: torch.Tensor, packed: torch.Tensor, shape: Any, *others: Any, **keywords: Any) -> int:
    """The weights in the compute dtype and their scales in float32, where a 4-bit product is of many tokens."""
    count = math.prod(shape)
    fused = hidden.numel() // hidden.shape[-1] <= FUSED_TOKENS
    return 0 if fused else count * hidden.element_size() + count // 16


# What some kernels take while they run, and no tensor tells of, by the operation's name.
_HIDDEN: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "lorabench::flash_within_texts_backward": _flash_within_texts_backward,
    "bitsandbytes::gemm_4bit": _expanded,
}


class _AsOnCuda(TorchFunctionMode):
    """Operations that take other memory on CUDA than on the CPU, as CUDA would run them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.dropout, torch.dropout, torch.dropout_):
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_widened(value) for value in args)
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


# Of CUDA's list of what autocast computes in float32, those that classifiers run and the CPU's list lacks.
_IN_FLOAT32 = {
    F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax, F.log_softmax, F.cross_entropy,
    torch.rsqrt, torch.Tensor.rsqrt, torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.exp, torch.Tensor.exp,
    torch.sum, torch.Tensor.sum, torch.cumsum, torch.Tensor.cumsum, F.softplus, torch.norm,
}  # fmt: skip


def _widened(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """One kernel, which keeps a mask of a byte per number."""
    if not training or not 0 < p < 1:
        return input
    return torch.native_dropout(input, p, True)[0]


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The kernel that CUDA would take: flash attention without a mask, in 16 bits; else the memory-efficient one."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        attn_mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(dtype)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if attn_mask is None and half:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(times, 1) for tensor in (key, value))
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, float("-inf"))
        bias = _aligned(bias).expand(*query.shape[:2], query.shape[2], key.shape[2])
    wants = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, wants, dropout_p, is_causal, scale=scale
    )[0]


def _aligned(bias: torch.Tensor) -> torch.Tensor:
    """The kernel reads rows that start at multiples of 16 bytes, so others are copied with a margin."""
    width = bias.shape[-1]
    if width % 8 == 0:
        return bias
    return F.pad(bias, (0, 8 - width % 8))[..., :width]


@contextmanager
def without_storage() -> Iterator[None]:
    """Inside, new tensors have no storage, and operations compute shapes only, those that CUDA would compute."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_AsOnCuda())
        # A mode is left while it handles a function, and `backward` is one: what is recomputed there needs it, too.
        run_backward = torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]

        def run_as_on_cuda(*args: Any, **kwargs: Any) -> Any:
            with _AsOnCuda():
                return run_backward(*args, **kwargs)

        stack.enter_context(mock.patch("torch.autograd._engine_run_backward", run_as_on_cuda))
        # Asked of no device in particular, it answers for CUDA; PEFT's 4-bit layers ask before they cast to float32.
        is_enabled = torch.is_autocast_enabled
        stack.enter_context(mock.patch("torch.is_autocast_enabled", lambda device="cpu": is_enabled(device)))
        with contextlib.suppress(ImportError, AttributeError):
            # It takes tensors without storage for a graph being traced, and would give masks to full batches, too.
            stack.enter_context(mock.patch("transformers.masking_utils.is_tracing", lambda tensor=None: False))
        yield
