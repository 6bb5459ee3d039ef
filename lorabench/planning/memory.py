"""The memory of a run, phase by phase: its own code without storage, played on the allocator's books."""

import copy
from collections.abc import Callable, Sequence

import torch
from transformers import PretrainedConfig

from lorabench.catalog.families import family_of
from lorabench.machine.precision import DTYPES
from lorabench.models.build import Placement
from lorabench.models.classifier import find_blocks
from lorabench.packed.attention import TILES
from lorabench.packed.captured import CAPTURE_S, LOOKED_AT, PASSES_PER_LENGTH
from lorabench.packed.flash import OLDEST, can_hold
from lorabench.packed.memory import MemorySetting, first_that_fits, pack_limits
from lorabench.packed.packs import (
    LONGEST_MASKED_PACK,
    LONGEST_PACK,
    choose_lengths,
    longest_length,
    make_pack,
    pack_totals,
    split_to_fit,
)
from lorabench.packed.tiles import AttentionShape, attention_shape
from lorabench.planning.allocator import OutOfMemory
from lorabench.planning.holdings import measure
from lorabench.planning.itemised import itemise
from lorabench.planning.passes import Model
from lorabench.planning.playback import Peak, Playback
from lorabench.planning.rates import pass_seconds, rates_of
from lorabench.planning.rehearsal import Rehearsal
from lorabench.planning.result import Execution, MemoryPlan
from lorabench.planning.shape import META, build_shape, read_config
from lorabench.planning.terms import (
    PHASES,
    Phase,
)
from lorabench.planning.unrolling import Unrolled
from lorabench.planning.workload import Workload
from lorabench.step.optimizer import total_steps


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
        self.model_config = model_config or read_config(config.model, workload.lengths.classes)
        frozen = torch.float32 if config.model.frozen_dtype == "fp32" else DTYPES[workload.precision]
        trainable = DTYPES[workload.precision] if workload.by_deepspeed else torch.float32
        placement = Placement(
            device=META, frozen_dtype=frozen, trainable_dtype=trainable, regathers=workload.splits_weights
        )
        self.frozen_dtype = frozen
        self.trainable_dtype = trainable
        # DeepSpeed computes in the weights' own dtype.
        autocast = None if workload.precision == "fp32" or workload.by_deepspeed else DTYPES[workload.precision]
        self.autocast = autocast
        whole = build_shape(config, self.model_config, placement)
        found = find_blocks(whole.body)
        blocks = [] if found is None else list(found[1])
        self.blocks = len(blocks)
        shapes = {tuple(tuple(p.shape) for p in block.parameters()) for block in blocks}
        kinds = set(getattr(self.model_config.get_text_config(), "layer_types", None) or ())
        self.captured, self.reason = self._choose_execution()
        self.tile = self._find_tile() if self.captured else 0
        compute = autocast or torch.float32
        self.holdings = measure(whole, compute if self.captured else None)
        self.model = Model(
            config, self.model_config, placement, autocast, len(shapes) == 1 and len(kinds) <= 1, self.blocks
        )
        self._recorded: dict[object, Unrolled] = {}
        self._trains: dict[tuple[int, int], bool] = {}

    def on(self, workload: Workload) -> "Planner":
        """The same on other cards of as many GPUs; what has been recorded holds for all."""
        other = copy.copy(self)
        other.workload, other._trains = workload, {}
        return other

    @property
    def capacity(self) -> tuple[int, bool]:
        """Bytes that there are, and whether that is the run's limit."""
        limit = self.workload.limit_bytes
        card = self.workload.cards.gpu.memory_bytes
        return (limit, True) if limit is not None and limit < card else (card, False)

    def plan(self) -> MemoryPlan:
        """The plan, with packs as long, and as many blocks recomputed, as the settings say, or memory asks for."""
        choice, most = self.workload.config.model.gradient_checkpointing, self.most_tokens()
        if choice != "auto":
            counts: Sequence[int] = (self.blocks if choice == "on" else 0,)
        else:
            counts = range(self.blocks + 1) if self.captured else (0, self.blocks)
        limits = pack_limits(most, self.workload.lengths.longest, self._reach) if self.captured else (most,)
        # No setting helps weights that do not fit, and each that is tried takes seconds.
        fits = self._trains_with if self.loading().loads else _never
        limit, count = first_that_fits(limits, counts, fits)
        return self.plan_with(count, limit)

    def loading(self) -> MemoryPlan:
        """The plan up to the end of loading: it takes no time, for no pass is recorded."""
        capacity, limited = self.capacity
        runs_out: Phase | None = None
        try:
            peak = self._load_peak(capacity if limited else None)
        except OutOfMemory:
            runs_out, peak = "load", self._load_peak(None)
        phases = (itemise("load", peak, self.workload.cards, self.captured),)
        execution = Execution(self.captured, 0, self.blocks, (), self.reason)
        return MemoryPlan(self.workload, execution, self.holdings, phases, capacity, limited, runs_out)

    def _load_peak(self, limit: int | None) -> Peak:
        """What loading takes. Raises `OutOfMemory` where that is more than the limit, if there is one."""
        play, peak = Playback(limit), Peak()
        _, run = next(Rehearsal(self, play, MemorySetting(None, 0), evaluates=False).phases())
        with play.phase(peak):
            run()
        return peak

    def _trains_with(self, limit: int, recomputed: int) -> bool:
        """Whether training fits: an evaluation helps itself, by halving its batches, and recomputing is none."""
        key = (limit, recomputed)
        if key not in self._trains:
            self._trains[key] = self.plan_with(recomputed, limit, evaluates=False).verdict == "fits"
        return self._trains[key]

    def plan_with(self, recomputed: int, limit: int | None = None, evaluates: bool = True) -> MemoryPlan:
        """The plan, where so many blocks recompute.

        Args:
            limit: what lengths of packs do not exceed; None for `most_tokens`.
            evaluates: the run evaluates as well as it trains.
        """
        memory = MemorySetting(limit if limit and limit < self.most_tokens() else None, recomputed)
        capacity, limited = self.capacity
        play = Playback(capacity if limited else None)
        peaks: dict[Phase, Peak] = {}
        runs_out: Phase | None = None
        try:
            for phase, run in Rehearsal(self, play, memory, evaluates).phases():
                runs_out, peak = phase, Peak()
                try:
                    with play.phase(peak):
                        run()
                finally:
                    if phase not in peaks or peak.reserved > peaks[phase].reserved:
                        peaks[phase] = peak  # the worse of several times
            runs_out = None
        except OutOfMemory:
            if runs_out == "load":  # what they need, not how many went in before the first that did not
                peaks["load"] = self._load_peak(None)
        cards = self.workload.cards
        phases = tuple(itemise(name, peaks[name], cards, self.captured) for name in PHASES if name in peaks)
        lengths = tuple(self.pack_lengths(memory)) if self.captured else ()
        execution = Execution(self.captured, recomputed, self.blocks, lengths, self.reason, memory.longest_pack)
        return MemoryPlan(self.workload, execution, self.holdings, phases, capacity, limited, runs_out)

    # How steps run -------------------------------------------------------------------------------------------------

    def _choose_execution(self) -> tuple[bool, str]:
        """Whether steps are captured, as `packed.choice` decides without trying, and why."""
        workload, family = self.workload, family_of(self.model_config.model_type)
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
        """The tile of attention within texts, as `packed.tiles` would find one; 0 for none."""
        text, longest = self.model_config.get_text_config(), self.workload.lengths.longest
        sees_all = (getattr(text, "sliding_window", None) or longest) >= longest
        shape = self._attention_shape()
        if shape is None or shape.size not in (16, 32, 64, 128) or not sees_all:
            return 0
        return shape.largest if longest <= TILES[-1] else 0

    def _attention_shape(self) -> AttentionShape | None:
        """What kernels of attention are asked for; None where they cannot be."""
        dtype = self.autocast or self.frozen_dtype
        text, longest = self.model_config.get_text_config(), self.workload.lengths.longest
        return None if dtype == torch.float32 else attention_shape(text, dtype, True, longest)

    @property
    def flash(self) -> bool:
        """Whether texts that fit into no tile need no mask either, as `packed.flash` would find."""
        shape = self._attention_shape() if self.captured and not self.tile else None
        return shape is not None and can_hold(shape.size) and self.workload.cards.gpu.capability >= OLDEST

    def longest_pack(self) -> int:
        """Tokens of the longest pack of several texts."""
        return LONGEST_PACK if self.tile or self.flash else LONGEST_MASKED_PACK

    def most_tokens(self) -> int:
        """What lengths of packs do not exceed, whatever the memory."""
        return longest_length(self.workload.lengths.longest, self.longest_pack())

    def pack_totals(self, limit: int | None = None) -> list[int]:
        """Tokens of each pack of the first steps, but for padding.

        Args:
            limit: what lengths of packs do not exceed; None for `most_tokens`.
        """
        return pack_totals(self.workload.micro_batches(), limit or self.most_tokens())

    def _reach(self, limit: int) -> int:
        """The longest length that packs have under a limit."""
        return choose_lengths(self.pack_totals(limit), self.workload.lengths.longest)[-1]

    def pack_lengths(self, memory: MemorySetting) -> list[int]:
        """Lengths that packs have: as many as are worth their capture, as `packed.captured` weighs them."""
        workload, texts = self.workload, self.workload.config.optim.batch_size
        totals, longest = self.pack_totals(memory.longest_pack), workload.lengths.longest
        (usual,) = choose_lengths(totals, longest, most=1)
        rates = rates_of(workload.cards.gpu)
        pass_s = pass_seconds(
            self.pack_pass(usual, texts, memory.recomputed_blocks).cost, usual, rates, True, workload.precision
        )
        steps = total_steps(workload.config.optim, workload.steps_per_epoch)
        runs = steps / min(LOOKED_AT, workload.steps_per_epoch)
        length_s = CAPTURE_S + PASSES_PER_LENGTH * pass_s
        return choose_lengths(totals, longest, price=length_s / (pass_s / usual) / runs)

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
            ("pack", length, texts, recomputed, trains, self.flash),
            lambda: self.model.packed(pack, self.tile, self.flash, recomputed, trains),
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


def _never(limit: int, recomputed: int) -> bool:
    """What fits where the weights do not."""
    return False


class _Texts:
    """Texts of one length, of which packs are made."""

    def __init__(self, length: int, count: int) -> None:
        from lorabench.data.batching import TokenizedRows

        self.data = TokenizedRows([[0] * length] * count, [0] * count, cut_rows=0)
        self.class_weights: Sequence[float] = (1.0,)
        self.pad_token_id = 0
