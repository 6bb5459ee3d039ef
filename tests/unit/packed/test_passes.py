"""What passes compute with: scaled losses, aligned gradients, copies in the computation's dtype, compiled blocks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import ROWS, build, make_rows

from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses, _compiled


def test_the_loss_is_scaled_for_the_backward_pass_alone(tmp_path: Path) -> None:
    found = []
    for scale_loss in (None, lambda loss: 8 * loss):
        classifier = build(tmp_path, "llama")
        passes = PackedPasses(PackedClassifier(classifier), scale_loss=scale_loss)
        losses = passes.run(make_pack(make_rows("llama", classifier), range(ROWS), 96, ROWS))
        found.append((losses, passes.loss, passes.flat.buffer))
    (losses, loss, gradient), (scaled_losses, scaled_loss, scaled_gradient) = found
    assert torch.equal(scaled_losses, losses) and torch.equal(scaled_loss, loss)
    torch.testing.assert_close(scaled_gradient, 8 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_and_what_is_computed_with_start_at_multiples_of_8_numbers(rank: int, tmp_path: Path) -> None:
    """Fast kernels want rows of 16 bit at multiples of 16 bytes, however many numbers a parameter has."""
    classifier = build(tmp_path, "bert", rank, hidden_size=36)
    PackedPasses(PackedClassifier(classifier))
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    assert any(parameter.numel() % 8 for parameter in parameters)
    for parameter in parameters:
        assert parameter.grad is not None
        assert parameter.storage_offset() % 8 == 0 == parameter.grad.storage_offset() % 8


def test_blocks_in_16_bits_compute_with_copies_in_16_bits(tmp_path: Path) -> None:
    found = []
    for autocast in (None, torch.bfloat16):
        classifier = build(tmp_path, "llama")
        for parameter in classifier.parameters():
            if not parameter.requires_grad and autocast is not None:
                parameter.data = parameter.data.to(autocast)
        passes = PackedPasses(PackedClassifier(classifier, autocast))
        assert passes.joined > 0
        assert {leaf.dtype for leaf in passes._leaves} == {autocast or torch.float32}
        passes.run(make_pack(make_rows("llama", classifier), range(ROWS), 96, ROWS))
        found.append(passes.flat.buffer)
    exact, rounded = found
    assert rounded.dtype == torch.float32
    assert 1e-4 * exact.norm() < (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_compiled_block_is_told_which_sizes_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others may be numbers in its code, which is compiled in a fraction of the time."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda call, **how: asked.append(how) or call)
    run = _compiled(lambda x, factor, mask, pair: (x * factor + mask.sum(), pair))
    x, mask, cosine, sine = torch.ones(1, 5, 3), torch.ones(1, 1, 5, 5), torch.ones(5), torch.zeros(1, 5, 4)
    output, pair = run(x, 2, mask=mask, pair=(cosine, sine))
    assert torch.equal(output, torch.full((1, 5, 3), 27.0)) and pair == (cosine, sine)
    assert asked[0]["dynamic"] is False
    marked = [getattr(tensor, "_dynamo_weak_dynamic_indices", set()) for tensor in (x, mask, cosine, sine)]
    assert marked == [{1}, {2, 3}, {0}, {1}]
