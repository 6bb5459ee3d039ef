"""What passes allocate, found without storage, beside what they do allocate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DECODERS, SHAPES, UNPACKABLE, build_tiny

from lorabench.config.run_config import ModelConfig
from lorabench.planning.memory import Planner
from lorabench.planning.passes import Model, choose_depth
from lorabench.planning.recording import Recorder, without_storage
from lorabench.planning.shape import put_on_cpu
from lorabench.planning.unrolling import NotAlike, Unrolled, between, unroll
from lorabench.step.loss import LOSS

ROWS, TOKENS = 3, 11


def take_step(classifier: Any, recorder: Recorder) -> int:
    """A step over a padded batch, recorded. Returns the bytes that the forward pass left behind."""
    ids, mask = torch.ones(ROWS, TOKENS, dtype=torch.int64), torch.ones(ROWS, TOKENS, dtype=torch.int64)
    mask[0, 5:] = 0
    labels, weights = torch.zeros(ROWS, dtype=torch.int64), torch.ones(ROWS)
    classifier.train()
    recorder.ignore(*classifier.parameters(), *classifier.buffers(), ids, mask, labels, weights)
    with recorder:
        loss = LOSS.of_rows(classifier(ids, mask), labels, weights).sum()
        held = sum(alive(recorder).values())
        loss.backward()
    return held


def put_on_meta(classifier: torch.nn.Module) -> None:
    for module in classifier.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                meta = torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = meta
        for table in (module._buffers, module.__dict__):
            for name, value in list(table.items()):
                if isinstance(value, torch.Tensor):
                    table[name] = value.to("meta")


def alive(recorder: Recorder) -> dict[int, int]:
    found: dict[int, int] = {}
    for number, size in recorder.trace.events:
        if size:
            found[number] = size
        else:
            del found[number]
    return found


@pytest.mark.parametrize("family", [name for name in SHAPES if name not in ("deberta-v2", "gemma3")])
def test_without_storage_a_step_allocates_what_it_does_with(family: str, tiny_folders: Callable[..., Path]) -> None:
    """With attention in plain products and without dropout, where CUDA and the CPU do the same."""
    model = ModelConfig(attn_implementation="eager")
    folder = tiny_folders(family)
    real, fake = (build_tiny(folder, model=model) for _ in range(2))
    put_on_meta(fake)
    recorded, shape_only = Recorder(), Recorder(answers=False)
    expected = take_step(real, recorded)
    with without_storage():
        put_on_cpu(fake)
        found = take_step(fake, shape_only)
    assert found == expected > 0
    births = [[size for _, size in recorder.trace.events if size] for recorder in (recorded, shape_only)]
    assert births[0] == births[1]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_autograd_saves_is_what_stands_when_the_forward_pass_is_over(
    family: str, tiny_folders: Callable[..., Path]
) -> None:
    """Counted a second way, by the hooks that autograd calls for each tensor that it keeps."""
    classifier = build_tiny(tiny_folders(family), model=ModelConfig(attn_implementation="eager"))
    known = {tensor.untyped_storage()._cdata for tensor in (*classifier.parameters(), *classifier.buffers())}
    saved: dict[int, int] = {}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    recorder = Recorder()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = take_step(classifier, recorder)
    ids = 3 * 8 * ROWS * TOKENS  # saved, and given from outside
    assert sum(saved.values()) - ids <= held <= 1.1 * sum(saved.values())


def peak(passes: Unrolled) -> tuple[int, int]:
    """The most bytes that stand at once, and those that are left."""
    sizes: dict[int, int] = {}
    now = most = 0
    for number, size in passes.events:
        now += size or -sizes.pop(number)
        if size:
            sizes[number] = size
        most = max(most, now)
    return most, now


@pytest.fixture
def planner(workload: Any) -> Callable[..., Planner]:
    """A planner of a model of so many blocks, recorded whole or by a few of them."""

    def make(family: str, alike: bool, blocks: int = 7, **asked: Any) -> Planner:
        made = Planner(workload(family, changes={"num_hidden_layers": blocks}, **asked))
        made.model._alike = alike
        return made

    return make


@pytest.mark.parametrize("family", ["llama", "roberta"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_few_blocks_stand_for_all_of_a_padded_pass(
    family: str, recomputes: bool, planner: Callable[..., Planner]
) -> None:
    few, all_of_them = (
        planner(family, alike).model.padded(ROWS, TOKENS, False, recomputes) for alike in (True, False)
    )
    assert peak(few) == peak(all_of_them) and peak(few)[1] == 0
    assert few.cost == all_of_them.cost


@pytest.mark.parametrize("family", ["llama", "roberta"])
@pytest.mark.parametrize(("blocks", "recomputed"), [(7, 0), (11, 5), (7, 7)])
def test_few_blocks_stand_for_all_of_a_pack(
    family: str, blocks: int, recomputed: int, planner: Callable[..., Planner]
) -> None:
    few, all_of_them = (planner(family, alike, blocks).pack_pass(32, 4, recomputed) for alike in (True, False))
    assert peak(few)[0] == peak(all_of_them)[0]
    # Of more blocks more groups of joint weights are renewed in each pass.
    assert few.cost.products == all_of_them.cost.products
    assert few.cost.operations == pytest.approx(all_of_them.cost.operations, abs=6)


@pytest.mark.parametrize("family", [name for name in DECODERS if name not in (*UNPACKABLE, "gemma3")])
def test_every_family_has_passes_that_end_with_nothing(family: str, workload: Any) -> None:
    made = Planner(workload(family))
    assert peak(made.padded_pass([TOKENS] * ROWS, False, trains=True))[1] == 0
    assert peak(made.padded_pass([TOKENS] * ROWS, False, trains=False))[1] == 0


def test_a_width_between_two_has_what_lies_between(planner: Callable[..., Planner]) -> None:
    made = planner("llama", True)
    low, middle, high = (made.model.padded(ROWS, tokens, False, False) for tokens in (9, 13, 17))
    found = between(low, high, 0.5)
    assert found is not None
    assert peak(found)[0] == pytest.approx(peak(middle)[0], rel=0.01)
    assert between(low, made.model.padded(ROWS, 17, True, False), 0.5) is None, "without a mask it is another pass"


def test_blocks_that_are_not_alike_are_told(planner: Callable[..., Planner]) -> None:
    recorder = Recorder()
    recorder.mark("forward", 0)
    number = recorder.note(8)
    recorder.mark("forward", 1)
    recorder.forget(number)
    recorder.mark("end")
    with pytest.raises(NotAlike):
        unroll(recorder.trace, (1, 3))


def test_of_few_blocks_each_is_recorded() -> None:
    assert choose_depth(3, 0, True).repeats == (1, 1, 1)
    assert choose_depth(20, 0, True).repeats == (1, 1, 17, 1)
    assert choose_depth(20, 8, True).repeats == (1, 1, 5, 1, 1, 1, 9, 1)
    assert choose_depth(20, 8, True).recomputed == 4
    assert choose_depth(6, 2, False).repeats == (1,) * 6


def test_a_model_is_as_it_was_after_planning() -> None:
    import transformers.masking_utils as masking

    before = (torch.autograd._engine_run_backward, masking.is_tracing)  # pyright: ignore
    with without_storage():
        assert masking.is_tracing is not before[1]
    assert (torch.autograd._engine_run_backward, masking.is_tracing) == before  # pyright: ignore
    assert isinstance(Model, type)
