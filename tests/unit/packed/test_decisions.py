"""What a run's packs are decided to be, for given texts, times and free memory, and what is said of it."""

from collections.abc import Sequence
from typing import Any

import adapted
import pytest
import torch
from toys import CPU, OneRank

from lorabench.data.batching import PaddedCollator, StepPlan, TokenizedRows
from lorabench.packed import captured
from lorabench.packed.captured import CapturedExecution, PackPlan
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.memory import MemorySetting
from lorabench.packed.packs import LONGEST_PACK
from lorabench.packed.passes import PackedPasses

NOTHING: Any = None


class Graphs:
    """Graphs of which only times matter: a millisecond a token, but for some lengths.

    Attributes:
        passes: what they were made of.
        seconds: of lengths that take another time.
        captured: lengths, in the order that they were captured in.
        timed: texts of each pack that was timed, and the most tokens that one of them may have.
    """

    def __init__(self, passes: PackedPasses) -> None:
        self.passes = passes
        self.seconds: dict[int, float] = {}
        self.captured: list[int] = []
        self.timed: list[tuple[int, int]] = []

    def time(self, pack: Any) -> float:
        self.timed.append((len(pack.labels), pack.longest))
        return self.seconds[pack.length] if pack.length in self.seconds else 1e-3 * pack.length

    def capture(self, pack: Any) -> None:
        self.captured.append(pack.length)

    def forget(self, pack: Any) -> None: ...

    def release(self) -> None: ...


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> PackedPasses:
    """Of two blocks."""
    return PackedPasses(PackedClassifier(adapted.build(tmp_path_factory.mktemp("llama"), "llama")))


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "GraphedPasses", Graphs)


def make(passes: PackedPasses, lengths: Sequence[int], batch_size: int = 1, **settings: Any) -> tuple[Any, list[str]]:
    """A captured execution of texts of these lengths, and what it says."""
    said: list[str] = []
    data = PaddedCollator(TokenizedRows([[1] * n for n in lengths], [0] * len(lengths), 0), (1.0, 1.0), 0)
    plan = StepPlan(data.data.lengths, batch_size, 1, world_size=1, rank=0, seed=0)
    asked: Any = {"use_graphs": True, "steps": 100, "checkpointing": "off", "say": said.append, **settings}
    asked.setdefault("complain", said.append)
    ranks: Any = OneRank()
    return CapturedExecution(passes, NOTHING, data, plan, ranks, **asked), said


@pytest.mark.parametrize(
    ("steps", "can_compile", "decided", "compiled_s", "plain_s"),
    [
        # 60 x 128 and 40 x 256 tokens: 17.92 s. A length: 0.25 s and seven passes of 256 tokens, 2.042 s; of the two,
        # 4.08 s. Compiled: 0.68 x 17.92 = 12.19 s, 6 s to compile, and 2 x (0.25 + 0.68 x 1.792) = 2.94 s.
        (100, True, "128, 256 tokens, compiled", 21, 22),
        (100, False, "128, 256 tokens, not compiled", 21, 22),
        # A fifth of it, in which a length of their own would save packs of 128 tokens 1.5 s of the 2 s that it takes:
        # 20 x 256 tokens, and one length.
        (20, True, "256 tokens, not compiled", 11, 7),
        # Ten times the first.
        (1000, True, "128, 256 tokens, compiled", 131, 183),
    ],
)
def test_lengths_and_compiling_must_pay_within_the_run(
    steps: int,
    can_compile: bool,
    decided: str,
    compiled_s: int,
    plain_s: int,
    passes: PackedPasses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PackedPasses, "can_compile", can_compile)
    execution, said = make(passes, [128] * 60 + [256] * 40, steps=steps)
    execution._decide()
    estimate = f"about {steps} passes would take {compiled_s} s compiled, compiling included, and {plain_s} s not"
    assert said == [f"packs of {decided}: {estimate}"]
    assert passes.compiled is decided.endswith(", compiled")


def test_a_length_must_save_a_hundredth_of_the_time_of_a_longer_one(passes: PackedPasses) -> None:
    execution, _ = make(passes, [16, 32, 48])
    graphs = Graphs(passes)
    graphs.seconds = {48: 100.0, 32: 99.0, 16: 98.99}
    assert execution._leave_out_slow_lengths(graphs, [16, 32, 48]) == [16, 48]
    assert graphs.timed == [(1, 48)] * 3, "as the run's packs will be"


@pytest.mark.parametrize("batch_size", [3, 1])
def test_lengths_are_those_of_the_first_windows_in_the_micro_batches_that_fit(
    batch_size: int, passes: PackedPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "LOOKED_AT", 1)
    lengths = [16 * n for n in range(1, 13)]
    execution, said = make(passes, lengths, batch_size=3, steps=10**6)
    execution.batch_size = batch_size
    first, later = (next(iter(execution._plan.epoch(epoch))).rows for epoch in (0, 1))
    totals = [sum(lengths[row] for row in rows) for rows in (first, later)]
    assert max(lengths) < totals[0] != totals[1] and 11 not in first
    expected = [totals[0]] if batch_size == 3 else sorted([*(lengths[row] for row in first), 192])
    assert execution._decide() == expected
    passes_of_run = 10**6 * (1 if batch_size == 3 else 3)
    assert f"about {passes_of_run} passes would take" in said[0]


@pytest.mark.parametrize(
    ("free", "blocks", "line"),
    [
        (1.5e9, 1, "1 of 2 blocks recompute their activations: a pack of 256 tokens would hold 2.0 GB and 1.5 GB are "
         "free"),
        (0.5e9, 2, "2 of 2 blocks recompute their activations: a pack of 256 tokens would hold 2.0 GB and 0.5 GB are "
         "free"),
        (2.5e9, 0, None),
        (None, 0, None),
    ],
)  # fmt: skip
def test_blocks_recompute_by_what_the_shortest_pack_holds_and_the_longest_would(
    free: float | None, blocks: int, line: str | None, passes: PackedPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "free_bytes", {CPU: free}.__getitem__)

    def measure(passes: PackedPasses, pack: Any) -> float:
        assert passes.checkpointed == 0 and not passes.compiled
        assert pack.length == 128
        return 1e9

    monkeypatch.setattr(PackedPasses, "measure_activations", measure)
    execution, said = make(passes, [128, 192, 256] * 20, steps=1000, checkpointing="auto")
    assert execution._decide() == [128, 192, 256]
    assert passes.checkpointed == blocks and execution.recomputes is (blocks > 0)
    assert said[:-1] == ([line] if line else [])


# Bytes that a token of a pass holds, of all blocks.
TOKEN_BYTES = 1e7


def scripted(monkeypatch: pytest.MonkeyPatch, free: float) -> list[int]:
    """Free memory, and a pass that holds `TOKEN_BYTES` a token. Returns the lengths of packs that are measured."""
    monkeypatch.setattr(captured, "free_bytes", {CPU: free}.__getitem__)
    measured: list[int] = []

    def measure(passes: PackedPasses, pack: Any) -> float:
        measured.append(pack.length)
        if TOKEN_BYTES * pack.length > free:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return TOKEN_BYTES * pack.length

    monkeypatch.setattr(PackedPasses, "measure_activations", measure)
    return measured


@pytest.fixture
def may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take packs of 4,096 tokens."""
    monkeypatch.setattr(PackedClassifier, "longest_pack", lambda packed, longest_text: LONGEST_PACK)


# Batches of 8 texts of 1,200 tokens: packs of 3, or of 1.
LONG = [1200] * 80


@pytest.mark.usefixtures("may_be_long")
@pytest.mark.parametrize(
    ("free", "checkpointing", "longest", "blocks"),
    [
        (46e9, "auto", 3600, 0),
        (44e9, "auto", 1200, 0),
        (16e9, "auto", 1200, 0),
        (14e9, "auto", 1200, 1),
        (13e9, "off", 1200, 0),
        (44e9, "off", 1200, 0),
        (44e9, "on", 1200, 2),
        (1e9, "auto", 1200, 2),
    ],
)
def test_packs_are_shortened_before_blocks_recompute(
    free: float,
    checkpointing: str,
    longest: int,
    blocks: int,
    passes: PackedPasses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four fifths of what is free may be used: 36 GB of 45, 12 GB of 15."""
    measured = scripted(monkeypatch, free)
    execution, said = make(passes, LONG, batch_size=8, checkpointing=checkpointing)
    chosen = execution._decide()
    assert (chosen[-1], passes.checkpointed, measured) == (longest, blocks, [1200])
    shortened = [line for line in said if "packs have at most" in line]
    holds = "would hold 36.0 GB" if free > 12e9 else "holds too much"
    because = f"a pack of 3600 tokens {holds} and {free / 1e9:.1f} GB are free"
    assert shortened == ([] if longest == 3600 else [f"packs have at most 1808 tokens for want of memory: {because}"])


@pytest.mark.usefixtures("may_be_long")
@pytest.mark.parametrize(
    ("planned", "longest", "blocks"),
    [
        (MemorySetting(None, 0), 3600, 0),
        (MemorySetting(1808, 0), 1200, 0),
        (MemorySetting(1808, 1), 1200, 1),
        (MemorySetting(8192, 0), 3600, 0),
        (MemorySetting(600, 0), 1200, 0),
    ],
)
def test_a_plan_says_how_long_packs_are_and_how_many_blocks_recompute(
    planned: MemorySetting, longest: int, blocks: int, passes: PackedPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = scripted(monkeypatch, 1e9)
    execution, said = make(passes, LONG, batch_size=8, checkpointing="auto", planned=planned)
    assert execution._decide()[-1] == longest
    assert passes.checkpointed == blocks and measured == []
    limit = max(planned.longest_pack or 0, 1200)
    expected = [f"packs have at most {limit} tokens for want of memory, as planned"] if longest == 1200 else []
    expected += [f"{blocks} of 2 blocks recompute their activations, as planned"] if blocks else []
    assert said[:-1] == expected


@pytest.mark.usefixtures("may_be_long")
def test_a_plan_is_of_the_batch_that_it_was_made_for(passes: PackedPasses, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on with another batch measures, unless its packs are kept."""
    measured = scripted(monkeypatch, 1e9)
    execution, _ = make(passes, LONG, batch_size=8, checkpointing="auto", planned=MemorySetting(None, 0))
    execution.batch_size = 4
    assert execution._decide() == [1200] and passes.checkpointed == 2 and measured == [1200]


@pytest.mark.usefixtures("may_be_long")
def test_other_errors_of_measuring_are_not_taken_for_a_lack_of_memory(
    passes: PackedPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 1e9)

    def broken(passes: PackedPasses, pack: Any) -> float:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(PackedPasses, "measure_activations", broken)
    execution, _ = make(passes, LONG, batch_size=8)
    with pytest.raises(RuntimeError, match="shapes differ"):
        execution._decide()


class Lacking:
    """Gradients of a strategy, and what is asked of them when a step fails."""

    recoverable = True

    def __init__(self) -> None:
        self.discarded = 0

    def discard(self) -> None:
        self.discarded += 1


def run_out(execution: Any, problem: str | None = "out") -> tuple[int, int, int]:
    """What the longest pack, the number of recomputing blocks and the batch are once memory has run out."""
    execution._shrink(problem)
    if execution._packer is None:
        execution._packer = execution._prepare()
    return execution._packer.lengths[-1], execution._passes.checkpointed, execution.batch_size


@pytest.mark.usefixtures("may_be_long")
@pytest.mark.parametrize(
    ("checkpointing", "expected"),
    [
        ("auto", [(1600, 0, 8), (800, 0, 8), (400, 0, 8), (400, 2, 8), (400, 2, 4)]),
        ("off", [(1600, 0, 8), (800, 0, 8), (400, 0, 8), (400, 0, 4)]),
    ],
)
def test_out_of_memory_shortens_packs_then_recomputes_then_halves(
    checkpointing: str, expected: list[tuple[int, int, int]], passes: PackedPasses
) -> None:
    """Batches of 8 texts of 400 tokens: packs of 8, 4, 2 and 1 of them."""
    execution, said = make(passes, [400] * 40, batch_size=8, checkpointing=checkpointing)
    execution._gradients = Lacking()
    execution._packer = execution._prepare()
    assert execution._packer.lengths == [3200]
    del said[:]
    assert [run_out(execution) for _ in expected] == expected
    limits = [int(line.split()[7]) for line in said if "packs have at most" in line]
    assert limits == [1600, 800, 512]
    assert execution._gradients.discarded == len(expected)


@pytest.mark.usefixtures("may_be_long")
def test_a_resumed_run_shortens_the_packs_that_it_took_over(passes: PackedPasses) -> None:
    execution, said = make(passes, LONG, batch_size=8, checkpointing="auto")
    execution._gradients = Lacking()
    execution.load_state(PackPlan(8, (2400,), False, 1, True).to_json())
    execution._packer = execution._prepare()
    assert execution._packer.lengths == [2400]
    assert run_out(execution) == (1200, 1, 8)
    assert "memory ran out: packs have at most 1200 tokens from now on" in said
    assert PackPlan.from_json(execution.state()) == PackPlan(8, (1200,), passes.compiled, 1, True)


@pytest.mark.usefixtures("may_be_long")
def test_ranks_of_unlike_packs_recompute_and_halve_together(passes: PackedPasses) -> None:
    """This one has memory, or packs that cannot be shorter, while another one's can be; then no one's can."""
    execution, _ = make(passes, LONG, batch_size=8, checkpointing="auto")
    execution._gradients = Lacking()
    execution._packer = kept = execution._prepare()
    execution._ranks = OneRank(elsewhere=(True, True, True, False))
    assert run_out(execution, None) == (3600, 0, 8) and execution._packer is kept
    assert run_out(execution, "out") == (1200, 0, 8)
    assert run_out(execution, "out") == (1200, 0, 8)
    assert run_out(execution, None) == (1200, 2, 8)


@pytest.mark.usefixtures("may_be_long")
def test_an_evaluation_is_dealt_alike_on_ranks_of_unlike_packs(passes: PackedPasses) -> None:
    lengths = [1200] * 33
    unlike = []
    for limit in (None, 1200):
        execution, _ = make(passes, LONG, batch_size=8)
        execution._limit = limit
        assert execution._decide()[-1] == (limit or 3600)
        unlike.append([len(execution.forward.deal(lengths, 8, 2, rank)) for rank in (0, 1)])
    assert unlike[0] == unlike[1] == [6, 6]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "lengths", "taken"),
    [
        (1, (32, 64, 128, 256), True),
        (1, (32, 64, 512), True),
        (1, (32, 64, 128, 255), False),
        (2, (32, 64, 128, 256), False),
    ],
)
def test_a_plan_is_kept_to_where_its_longest_pack_holds_the_longest_text(
    batch_size: int, lengths: tuple[int, ...], taken: bool, compiled: bool, passes: PackedPasses
) -> None:
    execution, said = make(passes, [16, 256], steps=1)
    execution.load_state(PackPlan(batch_size, lengths, compiled, 0, True).to_json())
    packer = execution._prepare()
    assert execution._graphs.passes is passes
    assert tuple(packer.lengths) == (lengths if taken else (256,))
    # What compiled code looks like depends on what it is compiled for first.
    assert execution._graphs.captured == ([lengths[-1]] if taken and compiled else [])
    assert passes.compiled is (taken and compiled)
    assert (said == []) is taken
    execution._packer = packer
    assert PackPlan.from_json(execution.state()).graphs


def test_without_a_gpu_there_are_no_graphs(passes: PackedPasses) -> None:
    execution, said = make(passes, [16, 256], use_graphs=False)
    assert execution._decide() == [16, 256] and said == []
    assert execution._graphs is None
