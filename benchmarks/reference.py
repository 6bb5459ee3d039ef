"""Training the usual way, for comparison: transformers' Trainer with PEFT, as found and as well tuned as it gets."""

import copy
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.launch_state import LaunchState
from benchmarks.workload import WindowRun, Workload, fill_weights
from lorabench.catalog.models import MODELS
from lorabench.config.run_config import Precision
from lorabench.data.batching import TokenizedRows, Window
from lorabench.machine.meters import Stopwatch
from lorabench.machine.precision import DTYPES
from lorabench.models.classifier import head_names, trained_copies
from lorabench.models.description import lora_targets, model_arguments


@dataclass(frozen=True)
class Recipe:
    """How a Trainer is set up.

    Attributes:
        weights: dtype of the frozen weights; adapter and head are float32.
        autocast: compute dtype; fp32 for none.
        checkpointing: recompute activations in the backward pass.
        grouped: rows of like length share a batch.
        optimizer: the Trainer's name of it.
        workers: processes that prepare batches.
        filter_losses: replace non-finite losses in the log, the Trainer's default; reads each loss from the device.
    """

    weights: Precision
    autocast: Precision
    checkpointing: bool = False
    grouped: bool = False
    optimizer: str = "adamw_torch"
    workers: int = 0
    filter_losses: bool = True

    def describe(self) -> str:
        """In a few words."""
        parts = [
            f"{self.weights} weights",
            f"{self.autocast} autocast" if self.autocast != "fp32" else "no autocast",
            "checkpointing" if self.checkpointing else "no checkpointing",
            "grouped by length" if self.grouped else "rows in order",
            self.optimizer,
            f"{self.workers} loader workers",
        ]
        return ", ".join(parts)


TUNED_RECIPE = Recipe(
    weights="bf16", autocast="bf16", grouped=True, optimizer="adamw_torch_fused", workers=2, filter_losses=False
)


def trainer_recipe(name: Literal["reference", "tuned"], workload: Workload) -> Recipe:
    """A Trainer's set-up for a workload, whatever dtype the package computes in.

    The reference is what the original experiments ran: float32 weights under fp16 autocast; without it where they ran
    in float32, and on the CPU, which has no fp16.
    """
    if name == "tuned":
        return TUNED_RECIPE
    preset = MODELS.get(workload.config.model.model)
    precision = preset.precision if preset else workload.precision
    plain = precision == "fp32" or workload.device.type == "cpu"
    return Recipe(weights="fp32", autocast="fp32" if plain else "fp16", checkpointing=True)


class WeightedTrainer(Trainer):
    """Class-weighted cross-entropy, as such Trainers are written, over rows in the order of the data set.

    Right only without accumulation on one process: elsewhere a Trainer scales this loss.
    """

    def __init__(self, class_weights: Sequence[float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.class_weights = torch.tensor(class_weights, device=self.args.device)
        self.losses: list[torch.Tensor] = []

    def compute_loss(
        self, model: Any, inputs: Mapping[str, torch.Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = outputs.logits.float()
        loss = torch.nn.functional.cross_entropy(logits, inputs["labels"], weight=self.class_weights)
        self.losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class WindowClock(TrainerCallback):
    """A stopwatch that runs from the end of the warm-up's last step to the end of the last one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start_after(0, 0)

    def start_after(self, warmup: int, steps: int) -> None:
        """Set for the next training."""
        self._first, self._last = warmup, warmup + steps
        self.watch = Stopwatch(self._device)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._see(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._see(state.global_step)

    def _see(self, step: int) -> None:
        if step == self._first:
            self.watch.start()
        elif step == self._last:
            self.watch.stop()


class TrainerContestant:
    """A Trainer with its model, trained window by window; the optimizer and the loss scale live on between them."""

    def __init__(self, workload: Workload, recipe: Recipe) -> None:
        self._workload = workload
        self._recipe = recipe
        self._launch = LaunchState()
        self._clock = WindowClock(workload.device)
        # A Trainer insists on a folder, and puts nothing into it here.
        self._folder = tempfile.TemporaryDirectory(prefix="step-time-")
        with self._launch.active():
            self._trainer = self._build_trainer(build_adapted(workload, recipe))

    def run(self, windows: Sequence[Window], warmup: Sequence[Window] = ()) -> WindowRun:
        """See `Contestant`. Grouping sorts the rows of `windows`: a Trainer sorts those of 50 steps at a time."""
        rows = self._workload.rows
        size = self._workload.config.optim.batch_size
        first, steps = ([window.rows for window in part] for part in (warmup, windows))
        if self._recipe.grouped:
            steps = group_by_length(windows, rows.lengths, size)
            first = steps[: len(warmup)]  # the longest come first
        trainer = self._trainer
        trainer.train_dataset = as_examples(rows, list(itertools.chain(*first, *steps)))
        trainer.args.max_steps = len(first) + len(steps)
        trainer.losses.clear()
        self._clock.start_after(len(first), len(steps))
        with self._launch.active():
            trainer.train()
        return WindowRun(self._clock.watch.seconds, torch.stack(trainer.losses).tolist())

    def evaluate(self) -> float:
        """Seconds of one evaluation of the validation rows."""
        tokens = self._workload.inputs.tokens["validation"]
        watch = Stopwatch(self._workload.device)
        watch.start()
        with self._launch.active():
            self._trainer.evaluate(as_examples(tokens, range(len(tokens))))
        watch.stop()
        return watch.seconds

    def _build_trainer(self, model: torch.nn.Module) -> WeightedTrainer:
        optim = self._workload.config.optim
        recipe = self._recipe
        arguments = TrainingArguments(
            output_dir=self._folder.name,
            per_device_train_batch_size=optim.batch_size,
            per_device_eval_batch_size=optim.eval_batch_size,
            learning_rate=optim.learning_rate,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            lr_scheduler_type=optim.lr_scheduler,
            optim=recipe.optimizer,
            seed=optim.seed,
            fp16=recipe.autocast == "fp16",
            bf16=recipe.autocast == "bf16",
            use_cpu=self._workload.device.type == "cpu",
            dataloader_num_workers=recipe.workers,
            dataloader_pin_memory=self._workload.device.type == "cuda",
            logging_nan_inf_filter=recipe.filter_losses,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        trainer = WeightedTrainer(
            self._workload.data.class_weights or (1.0,) * len(self._workload.data.labels),
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(self._workload.inputs.tokenizer),
            callbacks=[self._clock],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def build_adapted(workload: Workload, recipe: Recipe) -> torch.nn.Module:
    """The base model with PEFT's LoRA and a float32 head, random weights, as the workload's flags describe it."""
    config = workload.config
    arguments = model_arguments(config.model, DTYPES[recipe.weights])
    with workload.device:
        base = AutoModelForSequenceClassification.from_config(copy.deepcopy(workload.inputs.model_config), **arguments)
    base.config.use_cache = False
    if recipe.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    settings = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.lora.lora_r,
        lora_alpha=config.lora.lora_alpha,
        lora_dropout=config.lora.lora_dropout,
        bias=config.lora.lora_bias,
        target_modules=lora_targets(config.lora, base.config.model_type),
        modules_to_save=head_names(base),
    )
    adapted = get_peft_model(base, settings)
    for _, head in trained_copies(adapted):
        head.float()
    fill_weights(adapted, config.optim.seed)
    return adapted


def group_by_length(windows: Sequence[Window], lengths: Sequence[int], size: int) -> list[list[int]]:
    """The rows of `windows`, longest first, in batches of `size`."""
    rows = sorted((row for window in windows for row in window.rows), key=lambda row: -lengths[row])
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def as_examples(tokens: TokenizedRows, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Rows as a data collator takes them."""
    return [
        {
            "input_ids": tokens.input_ids[row],
            "attention_mask": [1] * len(tokens.input_ids[row]),
            "labels": tokens.labels[row],
        }
        for row in rows
    ]
