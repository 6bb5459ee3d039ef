"""Optimizer steps over packs, as CUDA graphs where there is a GPU."""

from collections.abc import Callable, Sequence
from itertools import islice

import torch

from lorabench.batching import MicroBatch, PaddedCollator, StepPlan
from lorabench.config import Checkpointing, OnOutOfMemory
from lorabench.execution import EagerExecution, RowLosses, WindowPasses
from lorabench.gradients import Gradients
from lorabench.graphs import GraphedPasses
from lorabench.packing import Packer, choose_lengths
from lorabench.passes import PackedPasses
from lorabench.ranks import Ranks

# Windows that the lengths of packs are chosen from.
LOOKED_AT = 2000
# Seconds to compile a length of pack, and the share of an uncompiled pass that this saves. Measured on an H200, torch
# 2.11: 3.4-6 s; 32.5 -> 20.9 ms and 25.4 -> 16.1 ms (Llama-2-7B, 384 and 256 tokens), 6.7 -> 5.1 ms (RoBERTa-large).
COMPILE_S = 5.0
COMPILED_SAVES = 0.25
# Part of the free memory that activations may take.
MEMORY_SHARE = 0.8


class CapturedExecution(EagerExecution):
    """Runs steps over packs.

    Args:
        passes: forward and backward of a pack.
        gradients: the strategy's side, over `passes.flat`.
        use_graphs: capture passes as CUDA graphs; without, they run as they are, on any device.
        steps: optimizer steps of the whole run, for whether compiling pays.
        checkpointing: which blocks recompute their activations: none, all, or as many as memory asks for.
        say: tells the user what was decided.
    """

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
        checkpointing: Checkpointing = "off",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(passes.packed.classifier, gradients, data, plan, ranks, on_out_of_memory)
        self._passes = passes
        self._graphs = GraphedPasses(passes) if use_graphs else None
        self._steps = steps
        self._checkpointing: Checkpointing = checkpointing
        self._say = say
        self._packer: Packer | None = None

    def _run_passes(self, micro_batches: Sequence[MicroBatch], total_weight: float) -> WindowPasses:
        if self._packer is None or self._packer.texts != self.batch_size:
            self._packer = self._prepare()
        passes, run = self._passes, self._passes.run if self._graphs is None else self._graphs.run
        passes.loss.zero_()
        passes.total_weight.fill_(total_weight)
        done = WindowPasses(passes.loss)
        for micro_batch in micro_batches:
            if micro_batch.real == 0:
                continue  # nothing waits for this rank inside a pass
            for pack in self._packer(micro_batch):
                losses = run(pack)
                done.counts.add(rows=len(pack.rows), tokens=pack.tokens, padded_tokens=pack.length)
                done.rows.append(RowLosses(pack.rows, losses[: len(pack.rows)].clone()))
        done.loss_share = passes.loss.clone()
        return done

    def _shrink(self, problem: str | None) -> None:
        if self._graphs is not None:
            self._graphs.release()
        self._packer = None
        super()._shrink(problem)

    def _prepare(self) -> Packer:
        """Choose the lengths of packs, how many blocks recompute, and whether to compile."""
        lengths = self._data.data.lengths
        totals = [
            sum(lengths[row] for row in micro_batch.rows)
            for window in islice(self._plan.epoch(0), LOOKED_AT)
            for micro_batch in self._plan.deal(window, self.batch_size)
        ]
        packer = Packer(self._data, choose_lengths(totals, max(lengths)), self.batch_size, max(lengths))
        blocks = len(self._passes.packed.blocks)
        self._passes.checkpointed = {"off": 0, "on": blocks, "auto": 0}[self._checkpointing]
        if self._graphs is None:
            return packer
        self._graphs.release()
        if self._checkpointing == "auto":
            self._passes.checkpointed = self._blocks_to_checkpoint(packer)
        packs = self._steps * len(totals) / min(LOOKED_AT, self._plan.steps_per_epoch)
        self._passes.compiled = self._compiling_pays(packer, packs)
        return packer

    def _blocks_to_checkpoint(self, packer: Packer) -> int:
        """How many blocks must recompute their activations for the longest pack to fit into the free memory.

        Measured by a forward pass of the shortest pack.
        """
        device, shortest, longest = self._ranks.device, packer.lengths[0], packer.lengths[-1]
        torch.cuda.empty_cache()
        held = self._passes.measure_activations(packer.example(shortest).to(device))
        needed = held * longest / shortest
        free, _ = torch.cuda.mem_get_info(device)
        blocks = len(self._passes.packed.blocks)
        count = min(blocks, max(0, -int(-blocks * (1 - MEMORY_SHARE * free / needed) // 1)))
        if count:
            self._say(
                f"{count} of {blocks} blocks recompute their activations: a pack of {longest} tokens would hold "
                f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
            )
        return count

    def _compiling_pays(self, packer: Packer, packs: float) -> bool:
        """Whether the run has packs enough for what compiling saves to exceed what it takes."""
        self._passes.compiled = False
        pass_s = self._graphs.time(packer.example(packer.lengths[0])) if self._graphs is not None else 0.0
        saved, taken = COMPILED_SAVES * pass_s * packs, COMPILE_S * len(packer.lengths)
        pays = saved > taken
        lengths = ", ".join(map(str, packer.lengths))
        self._say(
            f"packs of {lengths} tokens, {'compiled' if pays else 'not compiled'}: a pass takes "
            f"{1e3 * pass_s:.1f} ms, so compiling would save about {saved:.0f} s of this run and take {taken:.0f} s"
        )
        if pays and self._graphs is not None:
            self._graphs.release()
        return pays
