"""The runs of `memory_plan`: one model in many settings, without drawing its weights again."""

import dataclasses
import gc
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.launch_state import LaunchState
from benchmarks.patching import after_call
from lorabench.catalog.gpus import GPUS, GpuPreset, card_here
from lorabench.config.command_line import parse_run_config
from lorabench.data.batching import PaddedCollator, TokenizedRows, Window
from lorabench.data.task import load_task
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.setting import enter_launch
from lorabench.machine.meters import is_out_of_memory
from lorabench.models.classifier import SequenceClassifier
from lorabench.planning.duration import plan_duration
from lorabench.planning.lengths import TWEETS, spread_lengths
from lorabench.planning.memory import Planner
from lorabench.planning.rehearsal import PLAYED
from lorabench.planning.terms import TRAINING
from lorabench.planning.workload import Cards, RowLengths, Workload
from lorabench.step.evaluation import predict_logits
from lorabench.training import assembly
from lorabench.training.assembly import Built, Inputs, prepare_inputs
from lorabench.training.recomputation import AskPlan
from lorabench.units import GB

if TYPE_CHECKING:
    from benchmarks.memory_plan import Combination

FILLED = 512
COMPARED = ("eval", "train", "peak")
ROWS = 2000
EVALUATION_ROWS = 200
TIMED_STEPS = 3


def planned_row(row: dict[str, Any]) -> dict[str, Any]:
    """A measured row with its plan, and how far that is off. Needs no GPU."""
    from benchmarks.memory_plan import Combination

    item, began = Combination.of_row(row), time.monotonic()
    gpu = GpuPreset(**{**row["gpu"], "capability": tuple(row["gpu"]["capability"])})
    planner = planner_of(item, gpu)
    plan = planner.plan()
    train, evaluation = plan.reserved(*TRAINING), plan.reserved("eval")
    peak = max(train, evaluation, key=lambda amount: amount.expected)
    planned = {
        "train": train.to_json(), "eval": evaluation.to_json(), "peak": peak.to_json(), **plan.to_json(),
        "plan_seconds": time.monotonic() - began, "step_s": plan_duration(planner, plan).step.expected,
    }  # fmt: skip
    errors = {
        phase: planned[phase]["expected_gb"] / row["measured"][phase] - 1 for phase in COMPARED
    } if row["status"] == "measured" else {}  # fmt: skip
    return {**row, "planned": planned, "error": errors}


def planner_of(item: "Combination", gpu: GpuPreset) -> Planner:
    """What plans it on such a GPU."""
    config, lengths = parse_run_config(item.flags()), row_lengths(item.lengths)
    return Planner(Workload(config, item.precision, lengths, Cards(gpu), "single_gpu"))


def fits(item: "Combination") -> bool:
    """Whether it is said to fit on an H100, within its limit."""
    return planner_of(item, GPUS["h100"]).plan().verdict == "fits"


def row_lengths(kind: str) -> RowLengths:
    """Tokens of the rows that are trained on and evaluated."""
    quantiles = TWEETS if kind == "tweets" else (FILLED, FILLED)
    train = spread_lengths(quantiles, ROWS, FILLED)
    return RowLengths(train, spread_lengths(quantiles, EVALUATION_ROWS, FILLED, seed=1), kind)


class Runs:
    """One model, built once.

    Args:
        flags: of any of the runs.
    """

    def __init__(self, flags: list[str]) -> None:
        self._launch = LaunchState()
        config = parse_run_config(flags)
        self._data = load_task(config.data, config.optim.seed)
        with self._launch.active():
            self._setting = enter_launch(config, self._data)
            self._inputs = prepare_inputs(self._setting)
        self._classifier: SequenceClassifier | None = None
        self._device = self._setting.ranks.device
        properties = torch.cuda.get_device_properties(self._device)
        capability = (properties.major, properties.minor)
        self._gpu = card_here(properties.name, properties.total_memory >> 20, capability)

    def measure(self, item: "Combination") -> dict[str, Any]:
        """Run one combination."""
        began = time.monotonic()
        try:
            measured, facts = self._run(item, row_lengths(item.lengths))
        except Exception as error:  # any, so that the others are measured
            gone = is_out_of_memory(error) or "out of GPU memory" in str(error)
            status = "oom" if gone else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if not gone:
                traceback.print_exc()
            measured, facts = {}, {}
        else:
            status = "measured"
        finally:
            self._forget()
        return {
            "status": status, "planned": {}, "measured": measured, "error": {}, **facts,
            "gpu": dataclasses.asdict(self._gpu), "torch": torch.__version__, "seconds": time.monotonic() - began,
        }  # fmt: skip

    def _run(self, item: "Combination", lengths: RowLengths) -> tuple[dict[str, float], dict[str, Any]]:
        config = parse_run_config(item.flags())
        answer = None
        if item.recompute == "auto":
            execution = planner_of(item, self._gpu).plan().execution
            names = {True: "captured", False: "eager"}
            answer = {
                "execution": names[execution.captured], "longest_pack": execution.longest_pack,
                "recomputed_blocks": execution.recomputed,
            }  # fmt: skip
        torch._C._cuda_clearCublasWorkspaces()
        _settle()
        with self._launch.active():
            limit = 1.0 if item.limit_gb is None else item.limit_gb * GB / torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(limit)
            setting = dataclasses.replace(self._setting, config=config)
            inputs = self._given_rows(lengths)
            built = self._build(setting, inputs, lambda seconds: answer)
            measured = {"load": torch.cuda.max_memory_reserved() / GB}
            _settle()
            self._evaluate(built, inputs, setting.ranks)
            first_evaluation = torch.cuda.max_memory_reserved() / GB
            torch.cuda.reset_peak_memory_stats()
            step_s = _train(built)
            measured |= {
                "train": torch.cuda.max_memory_reserved() / GB,
                "train_allocated": torch.cuda.max_memory_allocated() / GB,
                "device": _device_bytes() / GB,
                "reserved_at_end": torch.cuda.memory_reserved() / GB,
            }
            torch.cuda.reset_peak_memory_stats()
            self._evaluate(built, inputs, setting.ranks)
            measured["eval"] = max(first_evaluation, torch.cuda.max_memory_reserved() / GB)
            measured["peak"] = max(measured["eval"], measured["train"])
            facts = {
                "execution_ran": built.execution.name, "execution_reason": built.reason, "step_s": step_s,
                "packs": built.execution.state(), "recomputes": built.execution.recomputes,
            }  # fmt: skip
            self._detach(built)
        return measured, facts

    def _given_rows(self, lengths: RowLengths) -> Inputs:
        pad = self._inputs.collators["train"].pad_token_id
        collators = {
            split: PaddedCollator(
                TokenizedRows([[5] * count for count in counts], [0] * len(counts), cut_rows=0),
                self._setting.class_weights,
                pad,
            )
            for split, counts in (("train", lengths.train), ("validation", lengths.evaluation))
        }
        return dataclasses.replace(self._inputs, collators=collators)

    def _build(self, setting: Any, inputs: Inputs, ask_plan: AskPlan | None) -> Built:
        """Everything as a run builds it, around the classifier that is there."""
        if self._classifier is None:
            kept: list[SequenceClassifier] = []
            with after_call(assembly, "build_classifier", kept.append):
                built = assembly.build(setting, inputs, ask_plan)
            (self._classifier,) = kept
            return built
        classifier, real = self._classifier, assembly.build_classifier

        def again(*asked: Any) -> SequenceClassifier:
            base: Any = classifier.adapted.get_base_model()
            base.gradient_checkpointing_disable()
            return classifier

        assembly.build_classifier = again
        try:
            return assembly.build(setting, inputs, ask_plan)
        finally:
            assembly.build_classifier = real

    def _evaluate(self, built: Built, inputs: Inputs, ranks: Ranks) -> None:
        size = self._setting.config.optim.eval_batch_size
        predict_logits(built.execution.forward, inputs.collators["validation"], size, ranks, may_halve=False)
        built.prepared.train()

    def _detach(self, built: Built) -> None:
        detach = getattr(built.execution.forward, "detach", None)
        if detach is not None:
            detach()

    def _forget(self) -> None:
        """The classifier stays; gradients, optimizer and graphs go."""
        if self._classifier is not None:
            for parameter in self._classifier.parameters():
                parameter.grad = None
            # accelerate wraps the forward method of what it prepares.
            self._classifier.__dict__.pop("forward", None)
            for name in ("_original_forward", "_is_accelerate_prepared"):
                self._classifier.__dict__.pop(name, None)
        accelerator = self._setting.strategy.accelerator
        for kept in (accelerator._models, accelerator._optimizers, accelerator._schedulers):
            kept.clear()
        torch._dynamo.reset()
        torch._C._cuda_clearCublasWorkspaces()
        _settle()


def _settle() -> None:
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def _train(built: Built) -> float:
    """The first steps of a run and the one of the most padded tokens, then the usual one, timed. Returns its seconds.

    The same steps that a plan plays.
    """
    plan, lengths = built.plan, built.plan.lengths
    whole = [window for window in plan.epoch(0) if len(window.rows) == plan.effective_batch]
    by_width = sorted(whole, key=lambda window: max(lengths[row] for row in window.rows))
    by_tokens = sorted(whole, key=lambda window: sum(lengths[row] for row in window.rows))
    usual = by_tokens[len(by_tokens) // 2]
    built.prepared.train()
    alike = len(set(lengths)) == 1
    for window in (*whole[: 1 if alike else PLAYED], by_width[-1], by_tokens[-1]):
        built.execution.step(window)
    torch.cuda.synchronize()
    return min(_timed(built, usual) for _ in range(TIMED_STEPS))


def _device_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def _timed(built: Built, window: Window) -> float:
    began = time.perf_counter()
    built.execution.step(window)
    torch.cuda.synchronize()
    return time.perf_counter() - began
