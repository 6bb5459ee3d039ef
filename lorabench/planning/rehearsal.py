"""A run, rehearsed on the allocator's books: everything that takes memory, in the order of the phases."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lorabench.packed.memory import MemorySetting
from lorabench.planning.allocator import MIB, OutOfMemory
from lorabench.planning.holdings import side_by_side
from lorabench.planning.playback import GRAPHS, Playback
from lorabench.planning.terms import Phase
from lorabench.planning.unrolling import Unrolled, between

if TYPE_CHECKING:
    from lorabench.planning.memory import Planner

# What cuBLAS keeps for each stream and thread that multiplies: on Hopper and later, and elsewhere.
WORKSPACE = 32 * MIB
SMALL_WORKSPACE = 8 * MIB + 128 * 1024
FLOAT = 4
# How many numbers DeepSpeed keeps whole at the most (`stage3_max_live_parameters`).
KEPT_NUMBERS = 10**9
# Steps that are played, beside the one that computes most.
PLAYED = 24


class Rehearsal:
    """One run of a planner's workload.

    Args:
        planner: knows what is held, and has passes recorded.
        play: the books.
        memory: how long packs may be, and how many blocks recompute.
        evaluates: the run evaluates as well as it trains.
    """

    def __init__(self, planner: "Planner", play: Playback, memory: MemorySetting, evaluates: bool) -> None:
        self._planner = planner
        self._workload = planner.workload
        self._play = play
        self._memory = memory
        self._recomputed = memory.recomputed_blocks
        self._evaluates = evaluates

    def phases(self) -> Iterator[tuple[Phase, Callable[[], None]]]:
        """What runs in each phase, in order; some phases come several times."""
        phases = self._captured() if self._planner.captured else self._eager()
        return ((phase, run) for phase, run in phases if self._evaluates or phase != "eval")

    def _load(self) -> None:
        self._load_weights()
        self._play.memory.empty_cache()

    def _load_weights(self) -> None:
        held = self._planner.holdings
        weights = (*held.frozen, *held.quantized, *held.scales)
        if self._workload.config.model.weights == "pretrained" and not self._workload.splits_weights:
            # transformers takes room for all of them at once, and cuts them out of it.
            self._play.memory.give(self._play.memory.take(sum(weights)))
        if self._workload.splits_weights:
            self._load_shards()
            return
        self._play.hold("frozen weights", held.frozen)
        if held.quantized:
            # Each layer is there in 16 bits until it is packed, and once more while its scales are found.
            largest_layer = 2 * max(held.quantized) * self._planner.frozen_dtype.itemsize
            for piece in [self._play.memory.take(largest_layer) for _ in range(2)]:
                self._play.memory.give(piece)
        self._play.hold("4-bit weights", held.quantized)
        self._play.hold("4-bit scales", held.scales)
        self._play.hold("adapter and head", held.trained)

    def _load_shards(self) -> None:
        held, ranks = self._planner.holdings, self._workload.cards.count
        whole = sum(held.frozen) + sum(held.quantized)
        if not self._workload.offloads:
            blocks = max(1, self._planner.blocks)
            self._play.hold("frozen weights", [whole // ranks // blocks] * blocks)
        self._play.hold("4-bit scales", held.scales)
        self._play.hold("adapter and head", [sum(held.trained) // ranks])
        if not held.quantized:
            for piece in [self._play.memory.take(size) for size in self._passing()]:
                self._play.memory.give(piece)

    def _passing(self) -> list[int]:
        """What is whole for a moment while each rank fills its parts of plain weights: a block or the embeddings until
        they are split, under ZeRO-3 one weight; and a block, or the embeddings, while random weights are drawn.
        """
        held = self._planner.holdings
        unit = max(held.block_bytes, held.embedding_bytes)
        drawn = [unit] if self._workload.config.model.weights == "random" else []
        return [max(held.frozen, default=0) if self._workload.by_deepspeed else unit, *drawn]

    def _optimizer(self) -> None:
        trained, ranks = self._planner.holdings.trained_count, self._workload.cards.count
        if self._workload.offloads:
            return
        if self._workload.by_deepspeed:
            # Float32 masters and two moments of this rank's part.
            self._play.hold("optimizer state", [FLOAT * trained // ranks] * 3)
        elif self._workload.splits_weights:
            self._play.hold("optimizer state", [FLOAT * trained // ranks] * 2)
        else:
            self._play.hold("optimizer state", [FLOAT * count for count in self._trained_counts() for _ in range(2)])

    def _trained_counts(self) -> list[int]:
        return [size // self._planner.trainable_dtype.itemsize for size in self._planner.holdings.trained]

    def _eager(self) -> Iterator[tuple[Phase, Callable[[], None]]]:
        recomputes = self._recomputed > 0
        batches = self._workload.micro_batches()
        widest, widest_evaluated = _widest(batches), _widest(self._workload.evaluation_batches())

        def evaluate() -> None:
            self._halving(len(widest_evaluated), lambda rows: widest_pass(widest_evaluated[:rows]))

        def widest_pass(batch: Sequence[int]) -> Unrolled:
            return self._planner.padded_pass(batch, False, trains=False)

        yield "load", self._load
        self._play.hold("workspaces", [self._workspace()])
        self._play.hold("gathered blocks", self._gathered())
        yield "eval", evaluate
        self._play.hold("gradients", self._gradients())
        self._play.hold("workspaces", [self._workspace()])
        first = self._planner.padded_pass(batches[0], recomputes, trains=True)
        yield "train_backward", lambda: self._play.play(first)
        yield "optimizer", self._optimizer
        yield "train_backward", lambda: self._play_steps(batches, widest, recomputes)
        computed = self._planner.padded_pass(widest, recomputes, trains=True)
        yield "train_forward", lambda: self._play.play(computed.forward())
        yield "eval", evaluate
        yield "save", lambda: None

    def _halving(self, rows: int, record: Callable[[int], Unrolled]) -> None:
        """Play a pass of an evaluation, which halves its batches where memory is short and the strategy lets it."""
        while True:
            try:
                self._play.play(record(rows))
                return
            except OutOfMemory:
                if rows == 1 or self._workload.meets_in_steps:
                    raise
                rows = -(-rows // 2)

    def _play_steps(self, batches: Sequence[Sequence[int]], widest: Sequence[int], recomputes: bool) -> None:
        """The first steps of the run, and the one that computes most: what one leaves may not do for the next."""
        whole = [batch for batch in batches if len(batch) == len(widest)]
        played = [*whole[:PLAYED], widest]
        narrowest = min(played, key=max)
        low, high = (self._planner.padded_pass(batch, recomputes, trains=True) for batch in (narrowest, widest))
        for batch in played if max(narrowest) < max(widest) else played[:2]:
            share = (max(batch) - max(narrowest)) / max(1, max(widest) - max(narrowest))
            self._play.play(between(low, high, share) or self._planner.padded_pass(batch, recomputes, trains=True))

    def _captured(self) -> Iterator[tuple[Phase, Callable[[], None]]]:
        tokens, texts = self._planner.evaluation_pack()

        def evaluate() -> None:
            self._halving(texts, lambda rows: self._planner.pack_pass(tokens * rows // texts, rows, 0, trains=False))

        yield "load", self._load_captured
        self._play.hold("workspaces", [self._workspace()])
        yield "eval", evaluate
        lengths = self._planner.pack_lengths(self._memory)
        yield "capture", lambda: self._capture(lengths)
        yield "train_forward", lambda: None
        yield "train_backward", lambda: None
        yield "optimizer", self._optimizer
        yield "eval", evaluate
        yield "save", lambda: None

    def _load_captured(self) -> None:
        self._load()
        held = self._planner.holdings
        weights = self._play.pieces("frozen weights")
        for group in side_by_side(held.joints):
            old = [weights[place] for joint in group for place in joint.weights]
            self._play.exchange("frozen weights", old, sum(joint.joint for joint in group))
        if held.dequantized:
            self._play.hold("dequantised weights", [held.dequantized])
        # Values and gradients lie in one buffer each; what computes with them has a copy in its own dtype.
        self._play.hold("gradients", [FLOAT * held.trained_count])
        self._play.hold("adapter and head", [FLOAT * held.trained_count])
        self._play.release("adapter and head", self._play.pieces("adapter and head")[: len(held.trained)])
        if held.joints and any(joint.has_lora for joint in held.joints):
            computes_in = self._planner.autocast or torch.float32
            self._play.hold("working copies", [computes_in.itemsize * held.trained_count])

    def _capture(self, lengths: Sequence[int]) -> None:
        """The graphs of the two longest lengths, which hold shorter ones' memory; before each a pass as it is."""
        texts = self._workload.config.optim.batch_size
        self._play.memory.empty_cache()
        self._play.hold("workspaces", [self._workspace()] * 2, "side")
        self._play.hold("copies while capturing", [FLOAT * self._planner.holdings.trained_count])
        self._play.memory.graphs.add(GRAPHS)
        for length in list(reversed(lengths))[:2]:
            passes = self._planner.pack_pass(length, texts, self._recomputed)
            self._play.play(passes, "side")
            self._play.memory.empty_cache()
            self._play.play(passes, GRAPHS)
        self._play.release("copies while capturing")

    # What strategies and libraries add -----------------------------------------------------------------------------

    def _workspace(self) -> int:
        return WORKSPACE if self._workload.cards.gpu.capability >= (9, 0) else SMALL_WORKSPACE

    def _gradients(self) -> list[int]:
        trained, ranks = self._planner.holdings.trained_count, self._workload.cards.count
        if self._workload.strategy == "fsdp2":
            return [FLOAT * trained // ranks]
        return [self._planner.trainable_dtype.itemsize * trained]

    def _gathered(self) -> list[int]:
        """Whole weights of the blocks that compute, or are about to; the table of embeddings is one of them."""
        held = self._planner.holdings
        if not self._workload.splits_weights:
            return self._buckets()
        if self._workload.by_deepspeed:
            # It keeps numbers whole while they will soon be used again.
            live = min(KEPT_NUMBERS * self._planner.frozen_dtype.itemsize, sum(held.frozen) + sum(held.quantized))
            return [held.block_bytes] * max(1, int(live // max(1, held.block_bytes))) + self._buckets()
        # One block computes, the next one is on its way, and each arrives in a buffer before it is cut up.
        return [max(held.block_bytes, held.embedding_bytes)] * 2 + [held.block_bytes]

    def _buckets(self) -> list[int]:
        """Where DeepSpeed collects gradients before they cross ranks: two, so that one can travel."""
        if not self._workload.by_deepspeed:
            return []
        width = getattr(self._planner.model_config.get_text_config(), "hidden_size", 0)
        return [width * width * self._planner.trainable_dtype.itemsize] * 2


def _widest(batches: Sequence[Sequence[int]]) -> Sequence[int]:
    """The batch that computes the most numbers, padding included; of several one whose rows differ."""
    return max(batches, key=lambda batch: (len(batch) * max(batch), min(batch) < max(batch)))
