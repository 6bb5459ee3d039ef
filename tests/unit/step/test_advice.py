"""What is said where memory ran out, word for word."""

from typing import Any

import pytest

from lorabench.step.execution import out_of_memory_advice

SPLIT = "weights split over GPUs (zero3.yaml, fsdp2.yaml)"
MORE = "more GPUs, or weights in host memory (zero3_offload.yaml, fsdp2_offload.yaml)"
SMALLER = "a smaller --batch-size with more --gradient-accumulation (the same effective batch and loss)"
TOGETHER = (
    "a smaller --batch-size with more --gradient-accumulation (the same effective batch and loss; under a sharded "
    "strategy ranks cannot agree on one within a step)"
)


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        (dict(phase="load"), f"--quantize nf4, or {SPLIT}"),
        (dict(phase="load", sharded=True), f"--quantize nf4, or {MORE}"),
        (dict(phase="train"), f"{SMALLER}, --gradient-checkpointing on, --quantize nf4, or {SPLIT}"),
        (dict(phase="train", sharded=True), f"{TOGETHER}, --gradient-checkpointing on, --quantize nf4, or {MORE}"),
        (dict(phase="train", row_by_row=True), f"--gradient-checkpointing on, --quantize nf4, or {SPLIT}"),
        (
            dict(phase="train", may_shrink=False),
            f"--on-oom shrink, {SMALLER}, --gradient-checkpointing on, --quantize nf4, or {SPLIT}",
        ),
        (dict(phase="eval"), f"a smaller --eval-batch-size, --quantize nf4, or {SPLIT}"),
        (
            dict(phase="eval", captured=True),
            f"--execution eager with a small --eval-batch-size, --quantize nf4, or {SPLIT}",
        ),
        (dict(phase="eval", row_by_row=True), f"--quantize nf4, or {SPLIT}"),
    ],
)
def test_what_to_try_is_what_may_help(asked: dict[str, Any], tried: str) -> None:
    said = out_of_memory_advice("CUDA out of memory.\nTried this", **{"sharded": False, **asked})
    assert said == f"out of GPU memory: CUDA out of memory. Try {tried}"


@pytest.mark.parametrize("said", ["", "  \n "])
def test_an_error_without_a_word_is_no_gap(said: str) -> None:
    assert out_of_memory_advice(said, "load", False).startswith("out of GPU memory: no details. Try ")
