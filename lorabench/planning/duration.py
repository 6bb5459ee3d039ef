"""How long a run takes: its passes on a card's rates, and what crosses between cards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.packed.captured import COMPILE_S, COMPILED_SAVES
from lorabench.planning.memory import Planner
from lorabench.planning.rates import Rates, pass_seconds, rates_of
from lorabench.planning.result import MemoryPlan
from lorabench.planning.terms import Amount
from lorabench.step.optimizer import total_steps

# What a step's time may turn out as, beside what is expected: captured steps are the GPU's own, eager ones the host's.
CAPTURED_SPREAD = (0.8, 1.25)
EAGER_SPREAD = (0.5, 2.0)
# Kernels of an update that are not of a pass: clipping, AdamW, copies of rows and losses.
UPDATE_KERNELS = 40


@dataclass(frozen=True)
class Duration:
    """Seconds.

    Attributes:
        step: of one optimizer step.
        steps: of the run.
        evaluation: of one evaluation.
        run: of all steps and evaluations.
        source: where the card's rates are from.
    """

    step: Amount
    steps: int
    evaluation: float
    run: Amount
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, in seconds."""
        names = ("low", "expected", "high")
        return {
            "step_s": {name: getattr(self.step, name) for name in names},
            "steps": self.steps,
            "evaluation_s": self.evaluation,
            "run_s": {name: getattr(self.run, name) for name in names},
            "rates": self.source,
        }


def plan_duration(planner: Planner, plan: MemoryPlan) -> Duration:
    """The time of the run that `plan` is of."""
    return _Clock(planner, plan).duration()


class _Clock:
    def __init__(self, planner: Planner, plan: MemoryPlan) -> None:
        self._planner, self._plan = planner, plan
        self._workload = planner.workload
        self._rates: Rates = rates_of(planner.workload.cards.gpu)

    def duration(self) -> Duration:
        optim = self._workload.config.optim
        captured = self._plan.execution.captured
        steps = total_steps(optim, self._workload.steps_per_epoch)
        passes = optim.gradient_accumulation * (self._pass() + self._gathering())
        plain = passes + self._update()
        compiled_saves = COMPILED_SAVES * passes * steps if captured else 0.0
        compiles = compiled_saves > COMPILE_S
        step = plain - (COMPILED_SAVES * passes if compiles else 0.0)
        low, high = CAPTURED_SPREAD if captured else EAGER_SPREAD
        evaluation = self._evaluation()
        evaluations = -(-steps // self._workload.steps_per_epoch) + 1
        amount = Amount(low * step, step, high * step)
        once = COMPILE_S if compiles else 0.0
        run = Amount(*(value * steps + evaluations * evaluation + once for value in (amount.low, step, amount.high)))
        return Duration(amount, steps, evaluation, run, self._rates.source)

    def _pass(self) -> float:
        """Of the usual micro-batch."""
        batches, recomputed = self._workload.micro_batches(), self._plan.execution.recomputed
        if self._plan.execution.captured:
            lengths = self._plan.execution.lengths
            totals = self._planner.pack_totals(self._plan.execution.longest_pack)
            total = _usual(totals)
            length = next((length for length in lengths if length >= total), lengths[-1])
            recorded = self._planner.pack_pass(length, self._workload.config.optim.batch_size, recomputed)
            seconds = pass_seconds(recorded.cost, length, self._rates, True, self._workload.precision)
            return len(totals) / len(batches) * seconds
        widest = sorted(batches, key=lambda batch: len(batch) * max(batch))[len(batches) // 2]
        recorded = self._planner.padded_pass(widest, recomputed > 0, trains=True)
        tokens = len(widest) * max(widest)
        return pass_seconds(recorded.cost, tokens, self._rates, False, self._workload.precision, recomputed > 0)

    def _evaluation(self) -> float:
        """Of all validation rows that one rank computes."""
        lengths = self._workload.lengths.evaluation
        if self._plan.execution.captured:
            tokens, texts = self._planner.evaluation_pack()
            recorded = self._planner.pack_pass(tokens, texts, 0, trains=False)
            return sum(lengths) / tokens / self._workload.cards.count * self._seconds(recorded.cost, tokens)
        batches = self._workload.evaluation_batches()
        usual = batches[len(batches) // 2]
        recorded = self._planner.padded_pass(usual, False, trains=False)
        return len(batches) * self._seconds(recorded.cost, len(usual) * max(usual))

    def _seconds(self, cost: Any, tokens: int) -> float:
        return pass_seconds(cost, tokens, self._rates, False, self._workload.precision)

    def _gathering(self) -> float:
        """Split weights cross to every card for the forward pass and once more for the backward pass."""
        workload, held = self._workload, self._planner.holdings
        ranks = workload.cards.count
        if not workload.splits_weights or ranks == 1:
            return 0.0
        away = (sum(held.frozen) + sum(held.quantized)) * (ranks - 1) / ranks
        return 2 * away / (1e9 * workload.cards.gpu.link)

    def _update(self) -> float:
        held, ranks = self._planner.holdings, self._workload.cards.count
        moved = 4 * held.trained_count
        reduced = 2 * moved / (1e9 * self._workload.cards.gpu.link) if ranks > 1 else 0.0
        return 8 * moved / self._rates.traffic + UPDATE_KERNELS * self._rates.launched_s + reduced


def _usual(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
