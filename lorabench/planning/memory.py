"""The memory of a run, phase by phase: its own code without storage, played on the allocator's books."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from lorabench.catalog.families import family_of
from lorabench.machine.precision import DTYPES
from lorabench.models.build import Placement
from lorabench.models.classifier import find_blocks
from lorabench.packed.attention import TILES
from lorabench.packed.captured import CAPTURE_S, LOOKED_AT, PASSES_PER_LENGTH
from lorabench.packed.packs import (
    LONGEST_MASKED_PACK,
    LONGEST_PACK,
    choose_lengths,
    make_pack,
    split_to_fit,
)
from lorabench.packed.tiles import attention_shape
from lorabench.planning.allocator import MIB, OutOfMemory
from lorabench.planning.holdings import Holdings, measure, side_by_side
from lorabench.planning.passes import Model
from lorabench.planning.playback import GRAPHS, Peak, Playback
from lorabench.planning.rates import pass_seconds, rates_of
from lorabench.planning.shape import META, build_shape, read_config
from lorabench.planning.terms import (
    PHASES,
    Amount,
    Phase,
    PhasePlan,
    Term,
    exactly,
    largest,
)
from lorabench.planning.unrolling import Unrolled, between
from lorabench.planning.workload import Workload
from lorabench.step.optimizer import total_steps
from lorabench.units import GB

# What cuBLAS keeps for each stream and thread that multiplies: on Hopper and later, and elsewhere.
WORKSPACE = 32 * MIB
SMALL_WORKSPACE = 8 * MIB + 128 * 1024
FLOAT = 4
# Steps that are played, beside the one that computes most.
PLAYED = 24


@dataclass(frozen=True)
class Execution:
    """How steps run.

    Attributes:
        captured: as CUDA graphs over packs.
        recomputed: how many blocks recompute their activations.
        blocks: of the model.
        lengths: tokens of packs, rising; none for padded batches.
        reason: why, in a few words.
    """

    captured: bool
    recomputed: int
    blocks: int
    lengths: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class MemoryPlan:
    """What a run takes of each GPU; all GPUs of a run take alike.

    Attributes:
        capacity: bytes of a card, or of the run's limit.
        limited: it is the run's limit, which counts what PyTorch's allocator holds and nothing else.
        runs_out: in which phase the allocator could not serve the run within the limit; None where it could.
    """

    workload: Workload
    execution: Execution
    holdings: Holdings
    phases: tuple[PhasePlan, ...]
    capacity: int
    limited: bool
    runs_out: Phase | None = None

    @property
    def worst(self) -> PhasePlan:
        """The phase that takes the most."""
        return largest(self.phases)

    def taken(self, phase: PhasePlan) -> Amount:
        """What of a phase counts against the capacity."""
        return phase.reserved if self.limited else phase.device

    @property
    def verdict(self) -> str:
        """`fits`, `tight` or `does not fit`."""
        most = [self.taken(phase) for phase in self.phases]
        if self.runs_out is not None or max(amount.expected for amount in most) > self.capacity:
            return "does not fit"
        return "fits" if max(amount.high for amount in most) <= self.capacity else "tight"

    def reserved(self, *names: Phase) -> Amount:
        """The most that the allocator holds in some phases."""
        chosen = [phase.reserved for phase in self.phases if phase.phase in names]
        return max(chosen, key=lambda amount: amount.expected)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in GB of 10^9 bytes."""
        execution = self.execution
        return {
            "verdict": self.verdict,
            "expected_gb": max(self.taken(phase).expected for phase in self.phases) / GB,
            "capacity_gb": self.capacity / GB,
            "capacity_is_limit": self.limited,
            "runs_out": self.runs_out,
            "execution": "captured" if execution.captured else "eager",
            "execution_reason": execution.reason,
            "recomputed_blocks": execution.recomputed,
            "blocks": execution.blocks,
            "pack_lengths": list(execution.lengths),
            "lengths": self.workload.lengths.origin,
            "phases": [phase.to_json() for phase in self.phases],
        }


def plan_memory(workload: Workload, model_config: PretrainedConfig | None = None) -> MemoryPlan:
    """What a run takes of each GPU.

    Args:
        model_config: of the model, with the classes of the data and a pad token; by default it is read.

    Raises:
        ConfigError: the model cannot be had.
    """
    return Planner(workload, model_config).plan()


class Planner:
    """Plans one workload; passes that are asked for again are recorded once."""

    def __init__(self, workload: Workload, model_config: PretrainedConfig | None = None) -> None:
        self.workload = workload
        config = workload.config
        self._model_config = model_config or read_config(config.model, workload.lengths.classes)
        frozen = torch.float32 if config.model.frozen_dtype == "fp32" else DTYPES[workload.precision]
        trainable = DTYPES[workload.precision] if workload.by_deepspeed else torch.float32
        placement = Placement(
            device=META, frozen_dtype=frozen, trainable_dtype=trainable, regathers=workload.splits_weights
        )
        self._frozen = frozen
        self._trainable = trainable
        # DeepSpeed computes in the weights' own dtype.
        autocast = None if workload.precision == "fp32" or workload.by_deepspeed else DTYPES[workload.precision]
        self.autocast = autocast
        whole = build_shape(config, self._model_config, placement)
        found = find_blocks(whole.body)
        blocks = [] if found is None else list(found[1])
        self.blocks = len(blocks)
        shapes = {tuple(tuple(p.shape) for p in block.parameters()) for block in blocks}
        kinds = set(getattr(self._model_config.get_text_config(), "layer_types", None) or ())
        self.captured, self.reason = self._choose_execution()
        self.tile = self._find_tile() if self.captured else 0
        compute = autocast or torch.float32
        self.holdings = measure(whole, compute if self.captured else None)
        self.model = Model(
            config, self._model_config, placement, autocast, len(shapes) == 1 and len(kinds) <= 1, self.blocks
        )
        self._recorded: dict[object, Unrolled] = {}

    def on(self, workload: Workload) -> "Planner":
        """The same on other cards of as many GPUs; what has been recorded holds for all."""
        other = copy.copy(self)
        other.workload = workload
        return other

    @property
    def compiles(self) -> bool:
        """Whether captured steps may compile blocks: not those with 4-bit weights."""
        return self.captured and self.workload.config.model.quantize == "none"

    @property
    def capacity(self) -> tuple[int, bool]:
        """Bytes that there are, and whether that is the run's limit."""
        limit = self.workload.limit_bytes
        card = self.workload.cards.gpu.memory_bytes
        return (limit, True) if limit is not None and limit < card else (card, False)

    def plan(self) -> MemoryPlan:
        """The plan, with as many blocks recomputed as the settings say, or memory asks for."""
        choice = self.workload.config.model.gradient_checkpointing
        if choice != "auto":
            return self.plan_with(self.blocks if choice == "on" else 0)
        return self._plan_auto()

    def _plan_auto(self) -> MemoryPlan:
        """The fewest blocks that recompute and let the run fit."""
        plan = self.plan_with(0)
        if self._fits(plan):
            return plan
        if not self.captured:
            return self.plan_with(self.blocks)
        least, most = 0, self.blocks
        best = self.plan_with(most)
        if not self._fits(best):
            return best
        while most - least > 1:
            middle = (least + most) // 2
            tried = self.plan_with(middle)
            if self._fits(tried):
                most, best = middle, tried
            else:
                least = middle
        return best

    @staticmethod
    def _fits(plan: MemoryPlan) -> bool:
        return plan.verdict == "fits"

    def plan_with(self, recomputed: int) -> MemoryPlan:
        """The plan, where so many blocks recompute."""
        capacity, limited = self.capacity
        play = Playback(capacity if limited else None)
        peaks: dict[Phase, Peak] = {}
        runs_out: Phase | None = None
        steps = self._captured(play, recomputed) if self.captured else self._eager(play, recomputed)
        try:
            for phase, run in steps:
                runs_out, peak = phase, Peak()
                try:
                    with play.phase(peak):
                        run()
                finally:
                    if phase not in peaks or peak.reserved > peaks[phase].reserved:
                        peaks[phase] = peak  # the worse of several times
            runs_out = None
        except OutOfMemory:
            pass
        phases = tuple(self._itemise(name, peaks[name]) for name in PHASES if name in peaks)
        lengths = self.pack_lengths(recomputed) if self.captured else ()
        execution = Execution(self.captured, recomputed, self.blocks, tuple(lengths), self.reason)
        return MemoryPlan(self.workload, execution, self.holdings, phases, capacity, limited, runs_out)

    # How steps run -------------------------------------------------------------------------------------------------

    def _choose_execution(self) -> tuple[bool, str]:
        """Whether steps are captured, as `packed.choice` decides without trying, and why."""
        workload, family = self.workload, family_of(self._model_config.model_type)
        asked = workload.config.optim.execution
        if asked == "eager":
            return False, "as asked for"
        if workload.meets_in_steps:
            return False, f"{workload.strategy} exchanges weights or gradients inside a step"
        if family is not None and family.no_packs is not None:
            return False, f"takes no packs: {family.no_packs}"
        if workload.config.model.attn_implementation not in ("auto", "sdpa", "eager"):
            return False, f"attention {workload.config.model.attn_implementation} takes no block mask"
        return True, "packed rows, CUDA graphs"

    def _find_tile(self) -> int:
        """The tile of attention within texts, as `packed.tiles` would find one; 0 for a mask."""
        dtype = self.autocast or self._frozen
        text, longest = self._model_config.get_text_config(), self.workload.lengths.longest
        shape = attention_shape(text, dtype, True, longest)
        sees_all = (getattr(text, "sliding_window", None) or longest) >= longest
        if shape is None or shape.size not in (16, 32, 64, 128) or dtype == torch.float32 or not sees_all:
            return 0
        return shape.largest if longest <= TILES[-1] else 0

    def longest_pack(self) -> int:
        """Tokens of the longest pack of several texts."""
        return LONGEST_PACK if self.tile else LONGEST_MASKED_PACK

    def pack_lengths(self, recomputed: int) -> list[int]:
        """Lengths that packs have: as many as are worth their capture, as `packed.captured` weighs them.

        Args:
            recomputed: how many blocks recompute.
        """
        workload, texts = self.workload, self.workload.config.optim.batch_size
        totals = [sum(batch) for batch in workload.micro_batches()]
        longest = workload.lengths.longest
        (usual,) = choose_lengths(totals, longest, self.longest_pack(), most=1)
        rates = rates_of(workload.cards.gpu)
        pass_s = pass_seconds(self.pack_pass(usual, texts, recomputed).cost, usual, rates, True, workload.precision)
        steps = total_steps(workload.config.optim, workload.steps_per_epoch)
        runs = steps / min(LOOKED_AT, workload.steps_per_epoch)
        length_s = CAPTURE_S + PASSES_PER_LENGTH * pass_s
        return choose_lengths(totals, longest, self.longest_pack(), price=length_s / (pass_s / usual) / runs)

    # What runs, in order -------------------------------------------------------------------------------------------

    def _load(self, play: Playback) -> None:
        self._load_weights(play)
        play.memory.empty_cache()

    def _load_weights(self, play: Playback) -> None:
        held = self.holdings
        weights = (*held.frozen, *held.quantized, *held.scales)
        if self.workload.config.model.weights == "pretrained" and not self.workload.splits_weights:
            # transformers takes room for all of them at once, and cuts them out of it.
            play.memory.give(play.memory.take(sum(weights)))
        if self.workload.splits_weights:
            self._load_shards(play)
            return
        play.hold("frozen weights", held.frozen)
        if held.quantized:
            # Each layer is there in 16 bits until it is packed, and once more while its scales are found.
            largest_layer = 2 * max(held.quantized) * self._frozen.itemsize
            for piece in [play.memory.take(largest_layer) for _ in range(2)]:
                play.memory.give(piece)
        play.hold("4-bit weights", held.quantized)
        play.hold("4-bit scales", held.scales)
        play.hold("adapter and head", held.trained)

    def _load_shards(self, play: Playback) -> None:
        held, ranks = self.holdings, self.workload.cards.count
        whole = sum(held.frozen) + sum(held.quantized)
        if not self.workload.offloads:
            blocks = max(1, self.blocks)
            play.hold("frozen weights", [whole // ranks // blocks] * blocks)
        play.hold("4-bit scales", held.scales)
        play.hold("adapter and head", [sum(held.trained) // ranks])

    def _optimizer(self, play: Playback) -> None:
        trained, ranks = self.holdings.trained_count, self.workload.cards.count
        if self.workload.offloads:
            return
        if self.workload.by_deepspeed:
            # Float32 masters and two moments of this rank's part.
            play.hold("optimizer state", [FLOAT * trained // ranks] * 3)
        elif self.workload.splits_weights:
            play.hold("optimizer state", [FLOAT * trained // ranks] * 2)
        else:
            play.hold("optimizer state", [FLOAT * count for count in self._trained_counts() for _ in range(2)])

    def _trained_counts(self) -> list[int]:
        return [size // self._trainable.itemsize for size in self.holdings.trained]

    def _eager(self, play: Playback, recomputed: int) -> Iterator[tuple[Phase, Callable[[], None]]]:
        recomputes = recomputed > 0
        batches = self.workload.micro_batches()
        widest = self._widths(batches)[-1]

        def evaluate() -> None:
            play.play(self.padded_pass(self._widths(self.workload.evaluation_batches())[-1], False, trains=False))

        yield "load", lambda: self._load(play)
        play.hold("workspaces", [self._workspace()])
        play.hold("gathered blocks", self._gathered())
        yield "eval", evaluate
        play.hold("gradients", self._gradients())
        play.hold("workspaces", [self._workspace()])
        first = self.padded_pass(batches[0], recomputes, trains=True)
        yield "train_backward", lambda: play.play(first)
        yield "optimizer", lambda: self._optimizer(play)
        yield "train_backward", lambda: self._play_steps(play, batches, widest, recomputes)
        yield "train_forward", lambda: play.play(self.padded_pass(widest, recomputes, trains=True).forward())
        yield "eval", evaluate
        yield "save", lambda: None

    def _play_steps(
        self, play: Playback, batches: Sequence[Sequence[int]], widest: Sequence[int], recomputes: bool
    ) -> None:
        """The first steps of the run, and the one that computes most: what one leaves may not do for the next."""
        whole = [batch for batch in batches if len(batch) == len(widest)]
        played = [*whole[:PLAYED], widest]
        narrowest = min(played, key=max)
        low, high = (self.padded_pass(batch, recomputes, trains=True) for batch in (narrowest, widest))
        for batch in played if max(narrowest) < max(widest) else played[:2]:
            share = (max(batch) - max(narrowest)) / max(1, max(widest) - max(narrowest))
            play.play(between(low, high, share) or self.padded_pass(batch, recomputes, trains=True))

    def _captured(self, play: Playback, recomputed: int) -> Iterator[tuple[Phase, Callable[[], None]]]:
        def evaluate() -> None:
            play.play(self.pack_pass(*self.evaluation_pack(), 0, trains=False))

        yield "load", lambda: self._load_captured(play)
        play.hold("workspaces", [self._workspace()])
        yield "eval", evaluate
        lengths = self.pack_lengths(recomputed)
        yield "capture", lambda: self._capture(play, lengths, recomputed)
        yield "train_forward", lambda: None
        yield "train_backward", lambda: None
        yield "optimizer", lambda: self._optimizer(play)
        yield "eval", evaluate
        yield "save", lambda: None

    def _load_captured(self, play: Playback) -> None:
        self._load(play)
        held = self.holdings
        weights = play.pieces("frozen weights")
        for group in side_by_side(held.joints):
            old = [weights[place] for joint in group for place in joint.weights]
            play.exchange("frozen weights", old, sum(joint.joint for joint in group))
        # Values and gradients lie in one buffer each; what computes with them has a copy in its own dtype.
        play.hold("gradients", [FLOAT * held.trained_count])
        play.hold("adapter and head", [FLOAT * held.trained_count])
        play.release("adapter and head", play.pieces("adapter and head")[: len(held.trained)])
        if held.joints and any(joint.has_lora for joint in held.joints):
            play.hold("working copies", [(self.autocast or torch.float32).itemsize * held.trained_count])

    def _capture(self, play: Playback, lengths: Sequence[int], recomputed: int) -> None:
        """The graphs of all lengths, from the longest on; before each a pass is run as it is."""
        texts = self.workload.config.optim.batch_size
        play.memory.empty_cache()
        play.hold("workspaces", [self._workspace()] * 2, "side")
        play.hold("copies while capturing", [FLOAT * self.holdings.trained_count])
        play.memory.graphs.add(GRAPHS)
        for length in list(reversed(lengths))[:2]:
            passes = self.pack_pass(length, texts, recomputed)
            play.play(passes, "side")
            play.memory.empty_cache()
            play.play(passes, GRAPHS)
        play.release("copies while capturing")

    # Passes --------------------------------------------------------------------------------------------------------

    def padded_pass(self, batch: Sequence[int], recomputes: bool, trains: bool) -> Unrolled:
        """A recorded pass over padded rows of so many tokens."""
        width = max(batch)
        return self._once(
            ("padded", len(batch), width, min(batch) == width, recomputes, trains),
            lambda: self.model.padded(len(batch), width, min(batch) == width, recomputes, trains),
        )

    def pack_pass(self, length: int, texts: int, recomputed: int, trains: bool = True) -> Unrolled:
        """A recorded pass over a pack of so many tokens."""
        each = max(1, min(self.workload.lengths.longest, length // max(1, texts)))
        longest = self.workload.lengths.longest
        pack = make_pack(_Texts(each, texts), range(texts), max(length, each * texts), texts, longest=longest)
        return self._once(
            ("pack", length, texts, recomputed, trains),
            lambda: self.model.packed(pack, self.tile, recomputed, trains),
        )

    def _once(self, key: object, record: Callable[[], Unrolled]) -> Unrolled:
        if key not in self._recorded:
            self._recorded[key] = record()
        return self._recorded[key]

    def evaluation_pack(self) -> tuple[int, int]:
        """Tokens and texts of the fullest pass of an evaluation."""
        lengths = sorted(self.workload.lengths.evaluation, reverse=True)[:: self.workload.cards.count]
        run = split_to_fit(range(len(lengths)), lengths.__getitem__, self.longest_pack())[0]
        return -(-sum(lengths[row] for row in run) // 8) * 8, len(run)

    @staticmethod
    def _widths(batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Batches by the numbers that they compute, padding included."""
        return sorted(batches, key=lambda batch: (len(batch) * max(batch), min(batch) < max(batch)))

    # What strategies and libraries add -----------------------------------------------------------------------------

    def _workspace(self) -> int:
        return WORKSPACE if self.workload.cards.gpu.capability >= (9, 0) else SMALL_WORKSPACE

    def _gradients(self) -> list[int]:
        trained, ranks = self.holdings.trained_count, self.workload.cards.count
        if self.workload.strategy == "fsdp2":
            return [FLOAT * trained // ranks]
        return [self._trainable.itemsize * trained]

    def _gathered(self) -> list[int]:
        """Whole weights of the blocks that compute, or are about to; the table of embeddings is one of them."""
        held = self.holdings
        if not self.workload.splits_weights:
            return self._buckets()
        if self.workload.by_deepspeed:
            # It keeps up to 10^9 numbers whole while they will soon be used again.
            live = min(GB * self._frozen.itemsize, sum(held.frozen) + sum(held.quantized))
            return [held.block_bytes] * max(1, int(live // max(1, held.block_bytes))) + self._buckets()
        # One block computes, the next one is on its way, and each arrives in a buffer before it is cut up.
        return [max(held.block_bytes, held.embedding_bytes)] * 2 + [held.block_bytes]

    def _buckets(self) -> list[int]:
        """Where DeepSpeed collects gradients before they cross ranks: two, so that one can travel."""
        if not self.workload.by_deepspeed:
            return []
        width = getattr(self._model_config.get_text_config(), "hidden_size", 0)
        return [width * width * self._trainable.itemsize] * 2

    # Terms ---------------------------------------------------------------------------------------------------------

    def _itemise(self, phase: Phase, peak: Peak) -> PhasePlan:
        terms = [Term(name, exactly(size), _SENTENCES[name]) for name, size in peak.held.items() if size]
        if peak.activations:
            amount = Amount(0.97 * peak.activations, peak.activations, 1.03 * peak.activations)
            terms.append(Term("activations", amount, _SENTENCES["activations"]))
        if peak.temporaries:
            amount = Amount(0.8 * peak.temporaries, peak.temporaries, 1.3 * peak.temporaries)
            terms.append(Term("temporaries", amount, _SENTENCES["temporaries"]))
        slack = max(0, peak.reserved - peak.allocated)
        graphs = min(slack, max(0, peak.graphs))
        if graphs:
            amount = Amount(0.97 * graphs, graphs, 1.03 * graphs)
            terms.append(Term("graphs", amount, _SENTENCES["graphs"]))
            slack -= graphs
        spread = 0.01 * peak.reserved
        terms.append(
            Term("allocator slack", Amount(0.5 * slack, slack, 1.2 * slack + spread), _SENTENCES["allocator slack"])
        )
        terms.append(Term("CUDA context", self._context(), _SENTENCES["CUDA context"], outside=True))
        if self.workload.cards.count > 1:
            amount = Amount(0.2 * GB, 0.5 * GB, 1.0 * GB)
            terms.append(Term("NCCL", amount, _SENTENCES["NCCL"], outside=True))
        return PhasePlan(phase, tuple(terms), peak.allocated)

    def _context(self) -> Amount:
        newer = self.workload.cards.gpu.capability >= (9, 0)
        likely = (0.8 if newer else 0.5) + (0.2 if self.captured else 0.0)
        return Amount(0.7 * likely * GB, likely * GB, 1.4 * likely * GB)


class _Texts:
    """Texts of one length, of which packs are made."""

    def __init__(self, length: int, count: int) -> None:
        from lorabench.data.batching import TokenizedRows

        self.data = TokenizedRows([[0] * length] * count, [0] * count, cut_rows=0)
        self.class_weights: Sequence[float] = (1.0,)
        self.pad_token_id = 0


_SENTENCES = {
    "frozen weights": "Weights that do not train, in the dtype that they are held in; of split ones this GPU's part.",
    "4-bit weights": "Linear layers of the body in nf4: half a byte per weight.",
    "4-bit scales": "An 8-bit scale per 64 weights, a 32-bit one per 256 of those, and their codes.",
    "adapter and head": "LoRA's matrices and the head, which train.",
    "gradients": "One number for each that trains, in one buffer.",
    "working copies": "Adapter and head once more in the dtype that joint products compute in.",
    "optimizer state": "AdamW's two moments of each number that trains, in float32; under DeepSpeed masters as well.",
    "workspaces": "cuBLAS keeps one for each stream and thread that multiplies.",
    "gathered blocks": "Whole weights of blocks that compute or are about to, and the buffers that they travel in.",
    "copies while capturing": "What a pass adds to, kept to be put back.",
    "activations": "What the forward pass leaves for the backward pass, counted by running the model without storage.",
    "temporaries": "What operations of the worst moment hold beside that.",
    "graphs": "The memory that all CUDA graphs share, activations of a captured pass: it stays while they do.",
    "allocator slack": "Pieces of PyTorch's segments that fit nothing else.",
    "CUDA context": "The driver's own, with the code of all kernels; not counted by --gpu-memory-limit.",
    "NCCL": "Buffers of the library that the GPUs meet through.",
}  # fmt: skip
