"""Each use of what PyTorch and transformers do not promise to keep: a test that fails says which has changed."""

import inspect
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForSequenceClassification

from lorabench.packed.internals import RANDOM_OPERATIONS, attending_by, attention_of, mark_varying


class Noted(TorchDispatchMode):
    """Which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def test_a_marked_dimension_varies_without_new_code() -> None:
    torch._dynamo.reset()
    compiled = []

    def count(graph: Any, example: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=count, dynamic=False)
    for length in (5, 6, 9):
        x = torch.ones(length, 3)
        mark_varying(x, 0)
        assert torch.equal(double(x), 2 * x)
    assert len(compiled) == 1


def test_the_compilers_workers_start_without_being_told_anything() -> None:
    from torch._inductor.async_compile import maybe_warm_pool

    assert not inspect.signature(maybe_warm_pool).parameters


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.5, True),
        lambda x: torch.native_dropout(x, 0.5, True),
        lambda x: x.clone().bernoulli_(0.5),
        lambda x: torch.randint(9, (2,)),
        lambda x: torch.randint(1, 9, (2,)),
    ],
    ids=["dropout", "native dropout", "bernoulli", "randint", "randint from"],
)
def test_what_draws_is_known(draw: Any) -> None:
    with Noted() as noted:
        draw(torch.ones(4))
    assert set(noted.operations) & set(RANDOM_OPERATIONS)


def test_a_generator_can_be_given_a_state_that_graphs_share() -> None:
    assert callable(torch.Generator.graphsafe_set_state) and callable(torch.Generator.clone_state)
    assert hasattr(torch.cuda, "default_generators")


def test_the_operations_of_flash_attention_take_what_they_are_given() -> None:
    """By place up to what the names begin with."""
    forward = torch.ops.aten._flash_attention_forward.default._schema
    backward = torch.ops.aten._flash_attention_backward.default._schema
    names = [argument.name for argument in forward.arguments]
    assert names[:10] == [
        "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
        "return_debug_mask",
    ]  # fmt: skip
    assert {"scale", "window_size_left", "window_size_right"} <= set(names)
    assert [found.name for found in forward.returns][:3] == ["output", "softmax_logsumexp", "rng_state"]
    names = [argument.name for argument in backward.arguments]
    assert names[:14] == [
        "grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k", "max_q", "max_k",
        "dropout_p", "is_causal", "rng_state", "unused",
    ]  # fmt: skip
    assert {"scale", "window_size_left", "window_size_right"} <= set(names)


def test_modules_look_their_attention_up_by_the_configurations_word() -> None:
    called = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any) -> Any:
        called.append(attention_mask)
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2), None

    AttentionInterface.register("lorabench_test_of_internals", attend)
    model = AutoModelForSequenceClassification.from_config(tiny.tiny_config("llama")).eval()
    mask = torch.zeros(1, 1, 3, 2, dtype=torch.int32)
    before = attention_of(model.config)
    ids = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        with attending_by(model.config, "lorabench_test_of_internals"):
            model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        model.model(input_ids=ids, use_cache=False)
    assert attention_of(model.config) == before
    assert len(called) == model.config.num_hidden_layers
    assert all(given is mask for given in called), "a mask of four dimensions is passed on as it is"
