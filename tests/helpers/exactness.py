"""Losses, gradients and evaluations of many cases through the package's own functions, on this launch's ranks."""

import dataclasses
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import nn

from lorabench.config.run_config import DataConfig, LoraArgs, ModelConfig, OptimConfig, RunConfig
from lorabench.data.batching import StepPlan
from lorabench.data.task import Rows, TaskData
from lorabench.distributed.setting import Setting, enter_launch
from lorabench.distributed.strategy import Gradients
from lorabench.results.tracking import NullSink
from lorabench.step.eager import EagerExecution
from lorabench.step.scores import Scores
from lorabench.training.assembly import Inputs, build, prepare_inputs
from lorabench.training.job import Job
from lorabench.training.loop import predict, score_split

WEIGHTS = (1.0, 4.0)
# Full windows only; a short last one of five rows; a last one of one row, fewer than the ranks.
TRAINING_ROWS = (32, 37, 33)
# (batch size, accumulation) by number of ranks; the effective batch is 16, for three ranks 18.
LAYOUTS = {1: ((16, 1), (4, 4), (1, 16), (18, 1)), 2: ((2, 4), (8, 1), (1, 8)), 3: ((3, 2), (6, 1))}
EVALUATION_ROWS = (11, 29)
EVALUATION_BATCHES = (1, 4, 5, 8, 64)
# One that clips every window of these models and one that clips none.
MAX_GRAD_NORMS = (0.05, 1e4)


class Recorder(torch.optim.SGD):
    """Keeps the clipped gradients of each step and updates nothing, so that all steps start from the same weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([p for p in model.parameters() if p.requires_grad], lr=0.0)
        self.clipped: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.clipped.append(torch.cat([p.grad.flatten().clone() for p in parameters]))


class BeforeClipping:
    """The strategy's gradients, kept as they are before clipping, when they have crossed ranks."""

    def __init__(self, inner: Gradients, model: nn.Module) -> None:
        self._inner = inner
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.whole: list[torch.Tensor] = []
        self.recoverable = inner.recoverable
        self.forward_context, self.backward = inner.forward_context, inner.backward
        self.reduce = inner.reduce

    def step(self) -> torch.Tensor:
        gradients = [p.grad for p in self._parameters]
        self.whole.append(torch.cat([g.flatten().clone() for g in gradients if g is not None]))
        return self._inner.step()


def make_data(train: int, validation: int) -> TaskData:
    def rows(count: int, seed: int) -> Rows:
        texts = tiny.texts(count, seed)
        labels = [int(label) for label in tiny.labels(count)]
        return Rows([str(i) for i in range(count)], texts, labels, [(0, len(text)) for text in texts])

    return TaskData(rows(train, 1), rows(validation, 2), None, ("0", "1"), 1, WEIGHTS)


def make_config(folder: str, max_grad_norm: float) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model=folder, precision="fp32"),
        lora=LoraArgs(lora_dropout=0.0),
        data=DataConfig(task="custom", max_length=64),
        optim=OptimConfig(max_grad_norm=max_grad_norm, batch_size=1),
    )


def make_classifier(setting: Setting, inputs: Inputs) -> Any:
    built = build(setting, inputs)
    tiny.stir_adapter(built.classifier)
    balance_head(built.classifier.adapted, inputs.tokenizer)
    return built


def balance_head(adapted: Any, tokenizer: Any) -> None:
    """Shift the head's bias, where it has one, so that both classes are predicted: a random head may know only one."""
    biases = [p for name, p in adapted.named_parameters() if name.endswith("modules_to_save.default.bias")]
    if not biases:
        return
    adapted.eval()
    with torch.no_grad():
        logits = [adapted(torch.tensor([tokenizer(text).input_ids])).logits[0] for text in tiny.texts(20, seed=8)]
        biases[-1] -= torch.stack(logits).median(0).values


def training_case(setting: Setting, inputs: Inputs, built: Any, batch_size: int, accumulation: int) -> dict[str, Any]:
    """One epoch's windows: rows, loss over ranks, norm, gradients before and after clipping."""
    ranks, collator = setting.ranks, inputs.collators["train"]
    optimizer = Recorder(built.classifier)
    clip = setting.config.optim.max_grad_norm
    inner = setting.strategy.gradients(built.prepared, optimizer, clip, ranks)
    gradients = BeforeClipping(inner, built.classifier)
    lengths = inputs.tokens["train"].lengths
    plan = StepPlan(lengths, batch_size, accumulation, ranks.world_size, ranks.rank, seed=3)
    execution = EagerExecution(built.prepared, gradients, collator, plan, ranks)
    rows, losses, norms = [], [], []
    built.prepared.train()
    for window in plan.epoch(0):
        outcome = execution.step(window)
        rows.append(window.rows)
        losses.append(ranks.sum(outcome.loss_share).item())
        norms.append(outcome.grad_norm.item())
    return {"rows": rows, "loss": losses, "norm": norms, "whole": gradients.whole, "clipped": optimizer.clipped}


def evaluation_case(setting: Setting, inputs: Inputs, built: Any, batch_size: int) -> tuple[torch.Tensor, Scores]:
    """Logits and scores of the validation rows."""
    config = setting.config
    optim = dataclasses.replace(config.optim, eval_batch_size=batch_size)
    setting = dataclasses.replace(setting, config=dataclasses.replace(config, optim=optim))
    nothing: Any = None
    job = Job(setting, inputs, built, nothing, NullSink(), nothing, nothing, lambda: None)
    data = inputs.collators["validation"]
    logits = predict(job, data)
    return logits, score_split(job, logits, data.data.labels)


def run_cases(folders: list[str]) -> dict[tuple[Any, ...], Any]:
    results: dict[tuple[Any, ...], Any] = {}
    first = enter_launch(make_config(folders[0], 1.0), make_data(32, 11))
    results["world_size",] = first.ranks.world_size
    for folder in folders:
        name = Path(folder).name
        for max_grad_norm in MAX_GRAD_NORMS:
            config = make_config(folder, max_grad_norm)
            built = None
            for count in TRAINING_ROWS:
                setting = dataclasses.replace(first, config=config, data=make_data(count, 11))
                inputs = prepare_inputs(setting)
                built = built or make_classifier(setting, inputs)
                for layout in LAYOUTS[first.ranks.world_size]:
                    key = ("train", name, count, layout, max_grad_norm)
                    results[key] = training_case(setting, inputs, built, *layout)
        for count in EVALUATION_ROWS:
            setting = dataclasses.replace(first, config=make_config(folder, 1.0), data=make_data(32, count))
            inputs = prepare_inputs(setting)
            built = make_classifier(setting, inputs)
            for batch_size in EVALUATION_BATCHES:
                logits, scores = evaluation_case(setting, inputs, built, batch_size)
                everywhere = first.ranks.gather(logits.tolist())
                assert all(other == everywhere[0] for other in everywhere), "ranks disagree on the logits"
                results["eval", name, count, batch_size] = {"logits": logits, "scores": scores.to_json()}
    return results


def write_cases(output: str, folders: list[str]) -> None:
    """Every rank has the same numbers; the first one writes them (torch.save)."""
    results = run_cases(folders)
    from accelerate import PartialState

    if PartialState().is_main_process:
        torch.save(results, output)
    PartialState().wait_for_everyone()
