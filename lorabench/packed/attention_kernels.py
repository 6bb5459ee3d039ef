"""The Triton kernels of `attention`: one program per text and head. Importing this needs Triton.

A text is held in the smallest of the tiles of 32, 64 and 128 tokens that it fits into. Registers and shared memory are
those of the largest one in the code, so kernels come with each tile as the largest; longer texts they skip.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl

# Arguments of any value; code for some of their values would gain nothing.
_VARYING = ("texts", "heads")


@triton.jit
def _load(base, rows, dims, row_stride, inside):
    return tl.load(base + rows[:, None] * row_stride + dims[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _load_first(base, rows, dims, row_stride, inside):
    """What will be loaded again: held in the cache rather than in the program. Loads of two kinds are never merged."""
    pointers = base + rows[:, None] * row_stride + dims[None, :]
    return tl.load(pointers, mask=inside[:, None], other=0.0, eviction_policy="evict_last")


@triton.jit
def _store(base, rows, dims, row_stride, inside, value):
    tl.store(base + rows[:, None] * row_stride + dims[None, :], value.to(base.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _clear(base, start, end, row_stride, DIM: tl.constexpr):
    dims = tl.arange(0, DIM)
    for row in range(start, end, 32):
        rows = row + tl.arange(0, 32)
        _store(base, rows, dims, row_stride, rows < end, tl.zeros((32, DIM), dtype=tl.float32))


@triton.jit
def _weights(q, k, scaling, inside, BLOCK: tl.constexpr, CAUSAL: tl.constexpr):
    """Softmax of the scores, [BLOCK, BLOCK]."""
    here = tl.arange(0, BLOCK)
    allowed = inside[None, :]
    if CAUSAL:
        allowed = allowed & (here[None, :] <= here[:, None])
    scores = tl.where(allowed, tl.dot(q, tl.trans(k)) * scaling, -1.0e30)
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def _kept(seed, text, head, heads, dropout, BLOCK: tl.constexpr, LONGEST: tl.constexpr):
    """Dropout's factor for each weight, [BLOCK, BLOCK], the same in both passes."""
    here = tl.arange(0, BLOCK)
    offsets = ((text * heads + head) * LONGEST + here[:, None]) * LONGEST + here[None, :]
    return tl.where(tl.rand(seed, offsets) >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def _forward_text(
    q, k, v, o, seed, start, end, text, head, heads, q_row, k_row, v_row, o_row, scaling, dropout,
    DIM: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, BLOCK: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    rows, dims = start + tl.arange(0, BLOCK), tl.arange(0, DIM)
    inside = rows < end
    weights = _weights(
        _load(q, rows, dims, q_row, inside), _load(k, rows, dims, k_row, inside), scaling, inside, BLOCK, CAUSAL
    )
    if DROPOUT:
        weights = weights * _kept(seed, text, head, heads, dropout, BLOCK, LONGEST)
    values = _load(v, rows, dims, v_row, inside)
    _store(o, rows, dims, o_row, inside, tl.dot(weights.to(values.dtype), values))


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    q, k, v, o, bounds, seeds, texts, heads, group, scaling, dropout,
    q_head, q_row, k_head, k_row, v_head, v_row, o_head, o_row,
    DIM: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, LARGEST: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(bounds + 2 * text), tl.load(bounds + 2 * text + 1)
    seed = tl.load(seeds)
    q, o = q + head * q_head, o + head * o_head
    k, v = k + (head // group) * k_head, v + (head // group) * v_head
    if text == texts:
        _clear(o, start, end, o_row, DIM)
    elif end - start <= 32:
        if start < end:
            _forward_text(q, k, v, o, seed, start, end, text, head, heads, q_row, k_row, v_row, o_row, scaling,
                          dropout, DIM, CAUSAL, DROPOUT, 32, LONGEST)  # fmt: skip
    elif end - start <= 64:
        if LARGEST >= 64:
            _forward_text(q, k, v, o, seed, start, end, text, head, heads, q_row, k_row, v_row, o_row, scaling,
                          dropout, DIM, CAUSAL, DROPOUT, 64, LONGEST)  # fmt: skip
    else:
        if LARGEST >= 128:
            _forward_text(q, k, v, o, seed, start, end, text, head, heads, q_row, k_row, v_row, o_row, scaling,
                          dropout, DIM, CAUSAL, DROPOUT, 128, LONGEST)  # fmt: skip


@triton.jit
def _backward_text(
    do, q, k, v, dq, dk, dv, seed, start, end, text, first_head, heads, group,
    do_head, do_row, q_head, q_row, k_row, v_row, dq_head, dq_row, dk_row, dv_row, scaling, dropout,
    DIM: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, BLOCK: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    rows, dims = start + tl.arange(0, BLOCK), tl.arange(0, DIM)
    inside = rows < end
    key_gradient = tl.zeros((BLOCK, DIM), dtype=tl.float32)
    value_gradient = tl.zeros((BLOCK, DIM), dtype=tl.float32)
    for member in range(group):
        head = first_head + member
        # Each input is loaded where it is needed, if twice: all at once exceed the shared memory of most cards.
        queries = _load_first(q + head * q_head, rows, dims, q_row, inside)
        weights = _weights(queries, _load_first(k, rows, dims, k_row, inside), scaling, inside, BLOCK, CAUSAL)
        gradient = _load(do + head * do_head, rows, dims, do_row, inside)
        inner = tl.dot(gradient, tl.trans(_load(v, rows, dims, v_row, inside)))
        if DROPOUT:
            kept = _kept(seed, text, head, heads, dropout, BLOCK, LONGEST)
            inner = inner * kept
            value_gradient += tl.dot(tl.trans((weights * kept).to(gradient.dtype)), gradient)
        else:
            value_gradient += tl.dot(tl.trans(weights.to(gradient.dtype)), gradient)
        inner = (weights * (inner - tl.sum(weights * inner, 1)[:, None]) * scaling).to(gradient.dtype)
        keys = _load(k, rows, dims, k_row, inside)
        _store(dq + head * dq_head, rows, dims, dq_row, inside, tl.dot(inner, keys))
        key_gradient += tl.dot(tl.trans(inner), _load(q + head * q_head, rows, dims, q_row, inside))
    _store(dk, rows, dims, dk_row, inside, key_gradient)
    _store(dv, rows, dims, dv_row, inside, value_gradient)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kernel(
    do, q, k, v, dq, dk, dv, bounds, seeds, texts, heads, group, scaling, dropout,
    do_head, do_row, q_head, q_row, k_head, k_row, v_head, v_row,
    dq_head, dq_row, dk_head, dk_row, dv_head, dv_row,
    DIM: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, LARGEST: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    text, key_head = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(bounds + 2 * text), tl.load(bounds + 2 * text + 1)
    seed = tl.load(seeds)
    first = key_head * group
    k, v = k + key_head * k_head, v + key_head * v_head
    dk, dv = dk + key_head * dk_head, dv + key_head * dv_head
    if text == texts:
        _clear(dk, start, end, dk_row, DIM)
        _clear(dv, start, end, dv_row, DIM)
        for member in range(group):
            _clear(dq + (first + member) * dq_head, start, end, dq_row, DIM)
    elif end - start <= 32:
        if start < end:
            _backward_text(do, q, k, v, dq, dk, dv, seed, start, end, text, first, heads, group, do_head, do_row,
                           q_head, q_row, k_row, v_row, dq_head, dq_row, dk_row, dv_row, scaling, dropout,
                           DIM, CAUSAL, DROPOUT, 32, LONGEST)  # fmt: skip
    elif end - start <= 64:
        if LARGEST >= 64:
            _backward_text(do, q, k, v, dq, dk, dv, seed, start, end, text, first, heads, group, do_head, do_row,
                           q_head, q_row, k_row, v_row, dq_head, dq_row, dk_row, dv_row, scaling, dropout,
                           DIM, CAUSAL, DROPOUT, 64, LONGEST)  # fmt: skip
    else:
        if LARGEST >= 128:
            _backward_text(do, q, k, v, dq, dk, dv, seed, start, end, text, first, heads, group, do_head, do_row,
                           q_head, q_row, k_row, v_row, dq_head, dq_row, dk_row, dv_row, scaling, dropout,
                           DIM, CAUSAL, DROPOUT, 128, LONGEST)  # fmt: skip


# The stride of dropout's random numbers, the same for all tiles.
_LONGEST = 128
# To load ahead for the next head of a group would take shared memory for each stage.
_STAGES = 1


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its last dimension next to each other in memory, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, seed: torch.Tensor,
    scaling: float, causal: bool, dropout: float, largest: int,
) -> torch.Tensor:  # fmt: skip
    """See `attention.attend_within_texts`."""
    query, key, value = _rows(query), _rows(key), _rows(value)
    heads, tokens, size = query.shape
    output = query.new_empty(tokens, heads, size)
    texts = bounds.shape[2] - 1
    _forward_kernel[(texts + 1, heads)](
        query, key, value, output, bounds, seed, texts, heads, heads // len(key), scaling, dropout,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        output.stride(1), output.stride(0),
        DIM=size, CAUSAL=causal, DROPOUT=dropout > 0, LARGEST=largest, LONGEST=_LONGEST,
        num_warps=4, num_stages=_STAGES,
    )  # fmt: skip
    return output


def backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor,
    seed: torch.Tensor, scaling: float, causal: bool, dropout: float, largest: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of query, key and value, in their shapes.

    Args:
        gradient: of the output, [tokens, heads, size].
    """
    gradient, query, key, value = _rows(gradient), _rows(query), _rows(key), _rows(value)
    heads, tokens, size = query.shape
    found = [t.new_empty(tokens, len(t), size).transpose(0, 1) for t in (query, key, value)]
    texts = bounds.shape[2] - 1
    strides = [
        stride for t in (gradient.transpose(0, 1), query, key, value, *found) for stride in (t.stride(0), t.stride(1))
    ]
    _backward_kernel[(texts + 1, len(key))](
        gradient, query, key, value, *found, bounds, seed, texts, heads, heads // len(key), scaling, dropout, *strides,
        DIM=size, CAUSAL=causal, DROPOUT=dropout > 0, LARGEST=largest, LONGEST=_LONGEST,
        num_warps=8, num_stages=_STAGES,
    )  # fmt: skip
    return found[0], found[1], found[2]
