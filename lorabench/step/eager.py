"""Optimizer steps over padded batches, through PyTorch's eager mode, under any strategy."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from lorabench.config.run_config import OnOutOfMemory
from lorabench.data.batching import MicroBatch, PaddedCollator, StepPlan, Window
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategy import Gradients
from lorabench.errors import RankError, RunError
from lorabench.machine.meters import is_out_of_memory
from lorabench.step.evaluation import Forward, PaddedForward
from lorabench.step.execution import RandomState, RowLosses, StepOutcome, WindowPasses, out_of_memory_advice
from lorabench.step.loss import LOSS, Loss


class EagerExecution:
    """Runs steps over padded batches.

    Args:
        model: prepared classifier, (input_ids, attention_mask[, token_type_ids]) -> logits.
        gradients: the strategy's side.
        data: makes batches of training rows.
        plan: deals a window's rows to ranks and micro-batches.
        on_out_of_memory: "shrink" runs a window again in halved micro-batches, on all ranks, where the strategy can.
        recomputes: whether the model recomputes activations in the backward pass.
        loss: what is trained.
        recompute: has the model recompute activations, where memory may ask for it; None where that is settled.
    """

    name: Literal["eager", "captured"] = "eager"

    def __init__(
        self,
        model: torch.nn.Module,
        gradients: Gradients,
        data: PaddedCollator,
        plan: StepPlan,
        ranks: Ranks,
        on_out_of_memory: OnOutOfMemory = "shrink",
        recomputes: bool = False,
        loss: Loss = LOSS,
        recompute: Callable[[], None] | None = None,
    ) -> None:
        self._recomputes = recomputes
        self._recompute = recompute
        self._model = model
        self._loss = loss
        self.forward: Forward = PaddedForward(model, ranks.device)
        self._gradients = gradients
        self._data = data
        self._plan = plan
        self._ranks = ranks
        self._may_shrink = on_out_of_memory == "shrink"
        self.batch_size = plan.batch_size

    @property
    def recomputes(self) -> bool:
        """Whether the model recomputes activations in the backward pass."""
        return self._recomputes

    def state(self) -> dict[str, Any] | None:
        return None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Padded batches are decided by the plan alone."""

    def step(self, window: Window) -> StepOutcome:
        """One optimizer step.

        The loss is sum(w_i * l_i) / sum(w_i) over all rows of the window, whatever the number of micro-batches and
        ranks: each micro-batch's weighted sum is divided by the window's total weight.

        Raises:
            RunError: out of memory, and the strategy or `--on-oom` allows no smaller micro-batches, or they are of
                one row already.
        """
        start = RandomState.read(self._ranks.device)
        while True:
            passes = problem = None
            try:
                passes = self._run_passes(self._plan.deal(window, self.batch_size), self._data.total_weight(window))
            except RuntimeError as error:
                # Kept as text: the traceback would hold on to the activations of the passes that failed.
                problem = self._lack_of_memory(error)
            failed_somewhere = self._gradients.recoverable and self._ranks.any(problem is not None)
            if passes is not None and not failed_somewhere:
                break
            self._shrink(problem)
            start.restore(self._ranks.device)
        self._gradients.reduce()
        return StepOutcome(passes.loss_share, self._gradients.step(), passes.rows, passes.counts, self.batch_size)

    def _lack_of_memory(self, error: RuntimeError) -> str:
        """What the allocator said, if that is what went wrong and the window can be run again.

        Raises:
            RankError: it cannot: the other ranks wait in a collective operation of a pass, and cannot be asked. This
                one leaves, and the launcher ends them.
            RuntimeError: the error itself, if it is another one.
        """
        if not is_out_of_memory(error):
            raise error
        if not self._gradients.recoverable:
            raise RankError(out_of_memory_advice(str(error), "train", sharded=True)) from error
        return str(error)

    def _run_passes(self, micro_batches: Sequence[MicroBatch], total_weight: float) -> "WindowPasses":
        device = self._ranks.device
        passes = WindowPasses(torch.zeros((), device=device))
        for i, micro_batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            batch = self._data(micro_batch)
            passes.counts.add(rows=len(batch.rows), tokens=batch.tokens, padded_tokens=batch.input_ids.numel())
            on_device = batch.to(device)
            with self._gradients.forward_context(last):
                logits = self._model(*on_device.inputs)
                losses = self._loss.of_rows(logits, on_device.labels, on_device.weights)
                loss = losses.sum() / total_weight
                self._gradients.backward(loss, last)
            passes.loss_share += loss.detach()
            passes.rows.append(RowLosses(batch.rows, losses.detach()[: len(batch.rows)]))
        return passes

    def _shrink(self, problem: str | None) -> None:
        """Recompute activations, which costs less than what comes next: halve the micro-batches; from this window on.

        Raises:
            RunError: that is not wanted, or not possible.
        """
        self._clear()
        if self._recompute is not None and not self._recomputes:
            self._recompute()
            self._recomputes = True
            return
        if not self._may_shrink or self.batch_size == 1:
            said = "on another rank" if problem is None else problem
            one = self.batch_size == 1
            raise RunError(out_of_memory_advice(said, "train", False, row_by_row=one, may_shrink=self._may_shrink))
        self.batch_size = -(-self.batch_size // 2)

    def _clear(self) -> None:
        """Leave nothing of a step that failed."""
        self._gradients.discard()
        gc.collect()
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()
