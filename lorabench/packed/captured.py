"""Optimizer steps over packs, as CUDA graphs where there is a GPU."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from typing import Any, Literal

import torch

from lorabench.config.run_config import Checkpointing, OnOutOfMemory
from lorabench.data.batching import MicroBatch, PaddedCollator, StepPlan
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategy import Gradients
from lorabench.machine.meters import Throughput, free_bytes, is_out_of_memory
from lorabench.packed.classifier import PackedForward
from lorabench.packed.graphs import TIMED, CaptureError, CompileError, GraphedPasses
from lorabench.packed.memory import (
    SHORTEST_PACK,
    MemorySetting,
    first_that_fits,
    fits_measured,
    pack_limits,
    shorter_pack,
)
from lorabench.packed.packs import Pack, Packer, choose_lengths, example_pack, longest_length, pack_totals
from lorabench.packed.passes import PackedPasses
from lorabench.step.eager import EagerExecution
from lorabench.step.evaluation import Forward
from lorabench.step.execution import RandomState, RowLosses, WindowPasses
from lorabench.units import GB

# Windows that the lengths of packs are chosen from.
LOOKED_AT = 2000
# Seconds to capture a length of pack, and to compile for all lengths, with the compiler's processes started before;
# and the share of an uncompiled pass that compiling saves. Measured on an H100, torch 2.11: 0.1-0.3 s; 5.1 s of
# RoBERTa-large and 6.5 s of Llama-2-7B; 0.31 of RoBERTa-large in bf16, 0.11 in fp32, and 0.30-0.38 of Llama-2-7B.
CAPTURE_S = 0.25
COMPILE_S = 6.0
COMPILED_SAVES = 0.32
# Passes that it takes to capture and time a length, where they are short; and the part of its time that a length must
# save over a longer one, which is more than what timings differ by.
PASSES_PER_LENGTH = 2 + TIMED
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class PackPlan:
    """How a run's packs run: what measured times and free memory decided before the first captured step.

    Dropout draws other numbers for packs of another length and in compiled blocks, so a run that goes on keeps it.

    Attributes:
        batch_size: rows per rank and micro-batch that it was made for.
        lengths: tokens that packs may have, rising.
        compiled: the blocks are compiled.
        recomputed_blocks: how many blocks, from the first, recompute their activations.
        graphs: passes are CUDA graphs.
    """

    batch_size: int
    lengths: tuple[int, ...]
    compiled: bool
    recomputed_blocks: int
    graphs: bool

    def to_json(self) -> dict[str, Any]:
        """As `run.json` and checkpoints hold it."""
        return {**asdict(self), "lengths": list(self.lengths)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PackPlan":
        """The reverse of `to_json`."""
        return cls(**{**values, "lengths": tuple(values["lengths"])})


class CapturedExecution(EagerExecution):
    """Runs steps over packs.

    Args:
        passes: forward and backward of a pack.
        gradients: the strategy's side, over `passes.flat`.
        use_graphs: capture passes as CUDA graphs; without, they run as they are, on any device.
        steps: optimizer steps of the whole run, for whether compiling pays.
        checkpointing: which blocks recompute their activations: none, all, or as many as memory asks for.
        planned: what memory asks of packs of the plan's micro-batches; None leaves that to what a pass is measured to
            hold.
        say: tells the user what was decided.
        complain: tells the user, from any rank, what did not work.
        done: told which stages of the start are over.
    """

    name: Literal["eager", "captured"] = "captured"

    def __init__(
        self,
        passes: PackedPasses,
        gradients: Gradients,
        data: PaddedCollator,
        plan: StepPlan,
        ranks: Ranks,
        on_out_of_memory: OnOutOfMemory = "shrink",
        *,
        use_graphs: bool,
        steps: int,
        checkpointing: Checkpointing,
        planned: MemorySetting | None = None,
        say: Callable[[str], None] = lambda line: None,
        complain: Callable[[str], None] = lambda line: None,
        done: Callable[[str], None] = lambda stage: None,
    ) -> None:
        recompute = self._recompute_all if checkpointing == "auto" else None
        super().__init__(passes.packed.classifier, gradients, data, plan, ranks, on_out_of_memory, recompute=recompute)
        self.forward: Forward = PackedForward(passes.packed, ranks.device)
        self._passes = passes
        self._graphs = GraphedPasses(passes) if use_graphs else None
        self._steps = steps
        self._checkpointing: Checkpointing = checkpointing
        self._planned = planned
        passes.checkpointed = len(passes.packed.blocks) if checkpointing == "on" else 0
        self._say = say
        self._complain = complain
        self._done = done
        self._longest_text = max(data.data.lengths)
        # What lengths of packs do not exceed: decided once, and lowered where memory runs out all the same.
        self._limit: int | None = None
        self._packer: Packer | None = None
        self._given: PackPlan | None = None

    @property
    def recomputes(self) -> bool:
        """Whether any block recomputes its activations."""
        return self._passes.checkpointed > 0

    def state(self) -> dict[str, Any] | None:
        if self._packer is None:
            return None
        passes = self._passes
        lengths = tuple(self._packer.lengths)
        graphs = self._graphs is not None
        return PackPlan(self.batch_size, lengths, passes.compiled, passes.checkpointed, graphs).to_json()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._given = PackPlan.from_json(state)

    def _run_passes(self, micro_batches: Sequence[MicroBatch], total_weight: float) -> WindowPasses:
        if self._packer is None or self._packer.texts != self.batch_size:
            self._packer = self._prepare()
        passes = self._passes
        passes.loss.zero_()
        passes.total_weight.fill_(total_weight)
        rows, counts = [], Throughput()
        for micro_batch in micro_batches:
            if micro_batch.real == 0:
                continue  # nothing waits for this rank inside a pass
            for pack in self._packer(micro_batch):
                losses = self._run(pack)
                counts.add(rows=len(pack.rows), tokens=pack.tokens, padded_tokens=pack.length)
                rows.append(RowLosses(pack.rows, losses[: len(pack.rows)].clone()))
        return WindowPasses(passes.loss.clone(), rows, counts)

    def _run(self, pack: Pack) -> torch.Tensor:
        """One pass: of compiled blocks and as a graph, where that was decided and works."""
        while self._graphs is not None:
            with self._doing_without_what_fails():
                return self._graphs.run(pack)
        return self._passes.run(pack.to(self._ranks.device))

    @contextmanager
    def _doing_without_what_fails(self) -> Iterator[None]:
        """Should compiling or capturing fail inside, passes run without it from now on."""
        try:
            yield
        except (CompileError, CaptureError) as error:
            self._passes.compiled = False  # without graphs, too: nothing else is worth it
            if self._graphs is not None:
                self._graphs.release()
            if isinstance(error, CompileError):
                self._complain(f"packs run uncompiled: compiling failed ({error})")
            else:
                self._graphs = None
                self._complain(f"packs run without graphs: capturing one failed ({error})")

    def _shrink(self, problem: str | None) -> None:
        """Shorten packs where memory ran out; where they cannot be shorter, as `EagerExecution` does.

        Ranks need not have packs of one length, yet they recompute and halve together: as long as one that is short of
        memory can shorten its packs, the others take the step again as they are.
        """
        shorter = None if problem is None else self._shorter_pack()
        shortens = self._ranks.any(shorter is not None)
        if shorter is not None or not shortens:
            if self._graphs is not None:
                self._graphs.release()
            self._packer = None
        if not shortens:
            super()._shrink(problem)
            return
        self._clear()
        if shorter is not None:
            self._limit, self._given = shorter, None
            self._complain(f"memory ran out: packs have at most {shorter} tokens from now on")

    def _shorter_pack(self) -> int | None:
        limit = self._most_tokens() if self._limit is None else self._limit
        longest = self._reach(limit) if self._packer is None else self._packer.lengths[-1]
        return shorter_pack(longest, self._longest_text)

    def _recompute_all(self) -> None:
        blocks = len(self._passes.packed.blocks)
        self._passes.checkpointed = blocks
        self._say(f"memory ran out: all {blocks} blocks recompute their activations from now on")

    def _prepare(self) -> Packer:
        """Choose the lengths of packs, how many blocks recompute, and whether to compile."""
        # A run that is resumed prepares at another step; its dropout must be the same.
        random = RandomState.read(self._ranks.device)
        given = self._given
        if given is not None and given.batch_size == self.batch_size and given.lengths[-1] >= self._longest_text:
            lengths = self._take_over(given)
        else:
            lengths = self._decide()
        random.restore(self._ranks.device)
        return self._make_packer(lengths)

    def _take_over(self, plan: PackPlan) -> list[int]:
        self._limit = plan.lengths[-1]
        if self._checkpointing == "auto" and not self._recomputes:
            self._passes.checkpointed = plan.recomputed_blocks
        self._passes.compiled = plan.compiled and self._graphs is not None and self._passes.can_compile
        if self._passes.compiled and self._graphs is not None:
            # Code is made with the first length in mind, so it is the same one as before.
            with self._doing_without_what_fails():
                self._graphs.capture(self._example(plan.lengths[-1]))
        return list(plan.lengths)

    def _decide(self) -> list[int]:
        passes = self._passes
        passes.compiled = False
        if self._graphs is None:
            return self._choose_lengths(self._totals())
        self._graphs.release()
        if self._limit is None:
            self._limit = self._save_memory()
        totals = self._totals()
        chosen, estimate = self._choose_lengths(totals), "not timed"
        with self._doing_without_what_fails():
            runs = self._steps / min(LOOKED_AT, self._plan.steps_per_epoch)
            chosen, passes.compiled, estimate = self._weigh_compiling(self._graphs, totals, runs)
            self._done("timing packs")
            chosen = self._leave_out_slow_lengths(self._graphs, chosen)
            self._done("compiling and capturing" if passes.compiled else "capturing")
        how = "compiled" if passes.compiled else "not compiled"
        self._say(f"packs of {', '.join(map(str, chosen))} tokens, {how}: {estimate}")
        return chosen

    def _most_tokens(self) -> int:
        """What lengths of packs do not exceed, whatever the memory."""
        return longest_length(self._longest_text, self._passes.packed.longest_pack(self._longest_text))

    def _totals(self, limit: int | None = None) -> list[int]:
        """Tokens of each pack of the first windows.

        Args:
            limit: what lengths of packs do not exceed, by default what was decided.
        """
        lengths = self._data.data.lengths
        limit = limit or self._limit or self._most_tokens()
        micro_batches = (
            [lengths[row] for row in micro_batch.rows]
            for window in islice(self._plan.epoch(0), LOOKED_AT)
            for micro_batch in self._plan.deal(window, self.batch_size)
        )
        return pack_totals(micro_batches, limit)

    def _reach(self, limit: int) -> int:
        """The longest length that packs have under a limit."""
        return self._choose_lengths(self._totals(limit))[-1]

    def _choose_lengths(self, totals: Sequence[int], **thrift: Any) -> list[int]:
        return choose_lengths(totals, self._longest_text, **thrift)

    def _make_packer(self, lengths: Sequence[int]) -> Packer:
        return Packer(self._data, lengths, self.batch_size, self._longest_text)

    def _example(self, length: int) -> Pack:
        return example_pack(self._data, length, self.batch_size, self._longest_text)

    def _save_memory(self) -> int:
        """Have blocks recompute as memory asks for. Returns what lengths of packs may not exceed, for the same reason.

        As planned; else by what a forward pass of a short pack is measured to hold.
        """
        most, chooses = self._most_tokens(), self._checkpointing == "auto"
        blocks = len(self._passes.packed.blocks)
        planned = self._planned if self.batch_size == self._plan.batch_size else None
        if planned is None:
            limit, count, why = self._measure_what_fits(range(blocks + 1) if chooses else [self._passes.checkpointed])
        else:
            count, why = planned.recomputed_blocks, ", as planned"
            limit = min(most, longest_length(self._longest_text, planned.longest_pack or most))
        if limit < most:
            self._say(f"packs have at most {limit} tokens for want of memory{why}")
        if chooses:
            self._passes.checkpointed = count
            if count:
                self._say(f"{count} of {blocks} blocks recompute their activations{why}")
        return limit

    def _measure_what_fits(self, counts: Sequence[int]) -> tuple[int, int, str]:
        """A limit of packs' lengths and a number of blocks that recompute, which fit, and why these.

        Args:
            counts: of blocks that may recompute, rising.
        """
        device, most = self._ranks.device, self._most_tokens()
        if free_bytes(device) is None:
            return most, counts[0], ""
        self._passes.checkpointed = counts[0]
        short = min(self._choose_lengths(self._totals())[0], longest_length(self._longest_text, SHORTEST_PACK))
        torch.cuda.empty_cache()
        held = self._measure_activations(short)
        torch.cuda.empty_cache()  # graphs have a pool of their own, and could not use what this pass leaves
        free, reach = free_bytes(device) or 0, cache(self._reach)
        fits = fits_measured(held / short, free, counts, reach)
        limit, count = first_that_fits(pack_limits(most, self._longest_text, reach), counts, fits)
        longest = reach(most)
        holds = f"would hold {held * longest / short / GB:.1f} GB" if held < math.inf else "holds too much"
        return limit, count, f": a pack of {longest} tokens {holds} and {free / GB:.1f} GB are free"

    def _measure_activations(self, length: int) -> float:
        """Bytes that a pass of a pack of that length holds; infinitely many where there are not as many."""
        try:
            return self._passes.measure_activations(self._example(length).to(self._ranks.device))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return math.inf

    def _leave_out_slow_lengths(self, graphs: GraphedPasses, lengths: Sequence[int]) -> list[int]:
        """Without those whose passes take as long as those of a longer one: for some sizes the kernels are poor."""
        kept: list[int] = []
        least = math.inf
        for length in reversed(lengths):
            example = self._example(length)
            seconds = graphs.time(example)
            if seconds < (1 - LEAST_GAIN) * least:
                kept, least = [length, *kept], seconds
            else:
                graphs.forget(example)
        return kept

    def _weigh_compiling(
        self, graphs: GraphedPasses, totals: Sequence[int], runs_of_totals: float
    ) -> tuple[list[int], bool, str]:
        """The lengths of packs, and whether the run is long enough for what compiling saves to exceed what it takes.

        Args:
            totals: tokens of some of the run's packs.
            runs_of_totals: how many times as many the run has.

        Returns:
            Lengths, whether blocks are to be compiled, and the estimate in words.
        """
        (usual,) = self._choose_lengths(totals, most=1)
        pass_s = graphs.time(self._example(usual))
        graphs.release()
        packs = len(totals) * runs_of_totals
        options = []
        for compiles, usual_s, once_s in ((False, pass_s, 0.0), (True, (1 - COMPILED_SAVES) * pass_s, COMPILE_S)):
            token_s = usual_s / usual
            length_s = CAPTURE_S + PASSES_PER_LENGTH * usual_s
            lengths = self._choose_lengths(totals, price=length_s / token_s / runs_of_totals)
            tokens = sum(next(length for length in [*lengths, total] if length >= total) for total in totals)
            seconds = tokens * runs_of_totals * token_s + once_s + length_s * len(lengths)
            options.append((seconds, lengths, compiles))
        plain, compiled = options
        _, lengths, compiles = min(options) if self._passes.can_compile else plain
        estimate = (
            f"about {packs:.0f} passes would take {compiled[0]:.0f} s compiled, compiling included, and "
            f"{plain[0]:.0f} s not"
        )
        return lengths, compiles, estimate
