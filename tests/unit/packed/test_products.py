"""Products that are cut in two: when, and that their numbers and gradients are those of whole ones."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from adapted import ROWS, build, make_rows
from hypothesis import given
from hypothesis import strategies as st

from lorabench.packed import products
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses
from lorabench.packed.products import frozen_linear, may_cut, multiply


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut small products, too."""
    monkeypatch.setattr(products, "SHALLOWEST", 2)
    monkeypatch.setattr(products, "ALIGNMENT", 1)


@given(rows=st.integers(1, 9), half=st.integers(1, 6), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_cut_product_is_the_whole_one(rows: int, half: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, m, generator=generator) for n, m in ((rows, 2 * half), (2 * half, columns)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SHALLOWEST", 2)
        patch.setattr(products, "ALIGNMENT", 1)
        cut, transposed = multiply(left, right, 100), multiply(left, right.t().contiguous().t(), 100)
    torch.testing.assert_close(cut, left @ right)
    torch.testing.assert_close(transposed, left @ right)


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "units", "cuts"),
    [
        (288, 12288, 4128, 132, True),
        (384, 22016, 4096, 132, True),
        (385, 22016, 4096, 132, False),
        (288, 4096, 4096, 132, False),
        (288, 11000, 4096, 132, False),
        (288, 11008, 4096, 84, False),
        (128, 11008, 4096, 84, True),
        (8, 11008, 4096, 0, False),
        # As deep as needs be, and as many blocks as may be: four of 128 x 128 on five multiprocessors.
        (256, 6144, 256, 5, True),
        (256, 6128, 256, 5, False),
        (256, 6152, 256, 5, False),
        # A part of a block is one more.
        (256, 6144, 257, 5, False),
        (257, 6144, 256, 5, False),
    ],
)
def test_deep_products_with_few_outputs_are_cut(rows: int, depth: int, columns: int, units: int, cuts: bool) -> None:
    assert products._cuts(rows, depth, columns, units) == cuts  # pyright: ignore


class OnGpu:
    """A weight as if on a GPU of 132 multiprocessors."""

    def __init__(self, dtype: torch.dtype, *shape: int) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda", 0), dtype, torch.Size(shape)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))


@pytest.mark.parametrize(
    ("dtype", "shape", "cut"),
    [
        (torch.bfloat16, (4096, 11008), True),
        (torch.float16, (12288, 4096), True),
        (torch.float16, (4096, 4096), False),
        (torch.float16, (6144, 8), True),
        (torch.float16, (6136, 8), False),
        (torch.float32, (4096, 11008), False),
    ],
)
def test_weights_of_16_bits_with_a_long_side_may_be_cut(
    dtype: torch.dtype, shape: tuple[int, int], cut: bool, gpu: None
) -> None:
    assert may_cut(OnGpu(dtype, *shape)) == cut  # type: ignore[arg-type]


def test_the_multiprocessors_are_those_of_the_weights_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {torch.device("cuda", 0): 132, torch.device("cuda", 1): 78}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=counts[device])
    )
    weight = OnGpu(torch.bfloat16, 8, 8)
    assert products.multiprocessors(weight) == 132  # type: ignore[arg-type]
    weight.device = torch.device("cuda", 1)
    assert products.multiprocessors(weight) == 78  # type: ignore[arg-type]


def test_nothing_is_cut_on_the_cpu() -> None:
    assert products.multiprocessors(torch.zeros(1, 16384, dtype=torch.bfloat16)) == 0


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("allow_fp16_reduced_precision_reduction", torch.bfloat16),
        ("allow_bf16_reduced_precision_reduction", torch.float16),
    ],
)
def test_nothing_is_cut_where_sums_of_16_bits_are_forbidden(rule: str, left: torch.dtype, gpu: None) -> None:
    setattr(torch.backends.cuda.matmul, rule, False)
    try:
        cut = [d for d in (torch.float16, torch.bfloat16) if products.multiprocessors(OnGpu(d, 8, 8))]  # type: ignore[arg-type]
    finally:
        setattr(torch.backends.cuda.matmul, rule, True)
    assert cut == [left]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("units", [0, 1, 100])
def test_a_frozen_layer_has_the_gradient_of_a_plain_one(units: int, biased: bool, shallow: None) -> None:
    x = torch.randn(5, 6, requires_grad=True)
    weight, bias = torch.randn(8, 6), torch.randn(8) if biased else None
    expected = F.linear(x, weight, bias)
    found = frozen_linear(x, weight, bias, units)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn(5, 8)
    (wanted,) = torch.autograd.grad(expected, x, gradient)
    (got,) = torch.autograd.grad(found, x, gradient)
    torch.testing.assert_close(got, wanted)


def run_packs(folder: Path, family: str, compiled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of two packs, and the gradient of both."""
    classifier = build(folder, family)
    rows, passes = make_rows(family, classifier), PackedPasses(PackedClassifier(classifier))
    passes.compiled = compiled
    losses = [passes.run(make_pack(rows, range(ROWS), length, ROWS)).clone() for length in (96, 136)]
    return torch.cat(losses), passes.flat.buffer


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, int]:
    """How many frames the compiler has dealt with, by how: on the CPU its own code is left out, which takes long."""
    compile_blocks = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: compile_blocks(call, backend="aot_eager", dynamic=False))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters["frames"]


@pytest.fixture
def many_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU on which products of this size are cut."""
    for module in ("lowrank", "products"):
        monkeypatch.setattr(f"lorabench.packed.{module}.multiprocessors", lambda weight, dtype=None: 132)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_cut_products_change_no_gradient(
    family: str, compiled: bool, shallow: None, frames: Mapping[str, int], request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    losses, gradient = run_packs(tmp_path / "whole", family)
    request.getfixturevalue("many_multiprocessors")
    cuts, decide = [], products._cuts  # pyright: ignore
    if not compiled:
        monkeypatch.setattr(products, "_cuts", lambda *shape: cuts.append(decide(*shape)) or cuts[-1])
    cut_losses, cut_gradient = run_packs(tmp_path / "cut", family, compiled)
    torch.testing.assert_close(cut_losses, losses, rtol=1e-5, atol=1e-6)
    assert (cut_gradient - gradient).norm() <= 1e-5 * gradient.norm()
    if compiled:
        assert frames["ok"] == 1 and not torch._dynamo.utils.counters["graph_break"]
    else:
        assert all(cuts)
        # Two packs through two blocks, forth and back: three products without LoRA in each; those with it come on top.
        assert len(cuts) > 2 * 2 * 2 * 3


def test_two_lengths_of_which_one_is_not_cut_have_code_of_their_own(
    shallow: None,
    frames: Mapping[str, int],
    many_multiprocessors: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(products, "BUSY", 1 / 132)
    run_packs(tmp_path, "llama", compiled=True)
    assert frames["ok"] == 2 and not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "units", "cut"),
    [(2, 6144, 3, 10, True), (2, 6144, 3, 1, False), (130, 6144, 3, 2, False), (2, 4096, 6144, 100, False)],
)
def test_what_is_cut_is_decided_by_the_products_own_shape(
    rows: int, depth: int, columns: int, units: int, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, in_two = [], products._multiply_in_two  # pyright: ignore
    monkeypatch.setattr(products, "_multiply_in_two", lambda *factors: done.append(factors) or in_two(*factors))
    left, right = torch.ones(rows, depth), torch.ones(depth, columns)
    for product in (multiply(left, right, units), frozen_linear(left, right.t(), None, units)):
        assert torch.equal(product, torch.full((rows, columns), float(depth)))
    assert len(done) == (2 if cut else 0)
