"""The best adapter of a run: kept when the validation score improves, restored and proved at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorabench.catalog.metrics import metrics_in
from lorabench.checkpoint import adapter as checkpoint
from lorabench.checkpoint.card import Reading, model_card
from lorabench.checkpoint.checksums import checksums
from lorabench.config.defaults import is_synthetic
from lorabench.config.saved_adapter import ADAPTER_WEIGHTS, CARD_FILE
from lorabench.config.template import parse_template
from lorabench.data.batching import Batch, MicroBatch, PaddedCollator, longest_first
from lorabench.data.tokenizer import pad_id
from lorabench.distributed.setting import Setting
from lorabench.errors import RunError
from lorabench.files import write_text_atomic
from lorabench.models.reload import reload_arguments
from lorabench.models.source import published_source
from lorabench.results.calibration import temperature_words, threshold_words
from lorabench.results.class_table import name_cells
from lorabench.results.run_folder import ADAPTER_FOLDER, VALIDATION_PREDICTIONS_FILE
from lorabench.results.tracking import Record
from lorabench.step.evaluation import predict_logits
from lorabench.training.assembly import Built, Inputs
from lorabench.training.job import Progress
from lorabench.training.prediction import write_predictions
from lorabench.units import GB

# Largest difference between logits of the adapter in memory and of the one read back: the same numbers in the same
# batches, so only what kernels vary from call to call.
RELOAD_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# The same, relative to the largest logit, between devices and batches of other shapes, and for a base model that the
# run held in half precision and the card's call does not.
CALL_TOLERANCE = {"fp32": 2e-3, "fp16": 0.1, "bf16": 0.3}
# Weights up to so many bytes in float32 are loaded once more for the card's call, and so many rows go through.
CALLED_BYTES = 2 * GB
CALLED_ROWS = 2
# Updates after which every trainable tensor must have moved: the first one of a warm-up has a learning rate of 0, and
# LoRA's A has no gradient before B has left zero.
UPDATES_UNTIL_ALL_MOVE = 3
# Evaluation batches per rank whose logits are compared after reloading.
RELOAD_BATCHES = 2


class BestAdapter:
    """Keeps adapter and head of the best evaluation, in memory on every rank and on disk from the first.

    Args:
        folder: the run's output folder; `adapter/` and what it predicts for the validation rows are written into it,
            unless the weights are random.
    """

    def __init__(self, setting: Setting, inputs: Inputs, built: Built, folder: Path) -> None:
        self._setting = setting
        self._inputs = inputs
        self._built = built
        self._folder = folder
        self._initial = self._read()
        self._best: dict[str, torch.Tensor] | None = None
        self._best_logits: torch.Tensor | None = None
        self._is_comparable = True

    @property
    def validation_logits(self) -> torch.Tensor | None:
        """Of the best evaluation, [rows, classes] on the CPU, the same on every rank; None where there was none."""
        return self._best_logits

    @property
    def _comparable_logits(self) -> torch.Tensor | None:
        """The same, where they came of the batches that this launch evaluates in."""
        return self._best_logits if self._is_comparable else None

    def save(self, record: Record, logits: torch.Tensor) -> None:
        """Keep the present adapter. A collective call.

        Args:
            record: the evaluation that makes it the best.
            logits: validation logits [rows, classes] of that evaluation.
        """
        if self._setting.shape_only:
            return
        self._best, self._best_logits, self._is_comparable = self._read(), logits, True
        self._write(record, logits)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint has to keep of it; None before the first evaluation."""
        if self._best is None:
            return None
        return {"adapter": self._best, "logits": self._best_logits, "layout": self._layout()}

    def load_state(self, state: Mapping[str, Any] | None, record: Record | None) -> None:
        """Inverse of `state`. A collective call.

        The folder is written anew: a run that was killed between saving a better adapter and its checkpoint left that
        one there, and need not find it again.

        Args:
            record: the best evaluation so far.
        """
        if state is None or record is None:
            return
        self._best, self._best_logits = state["adapter"], state["logits"]
        # Other batches round in other places, in half precision by more than a fault would.
        self._is_comparable = state["layout"] == self._layout()
        self._write(record, state["logits"])

    def check_movement(self, progress: Progress) -> None:
        """Refuse a training that left a trainable tensor as it was. A collective call.

        Raises:
            RunError: names the tensors.
        """
        if progress.step - progress.skipped_steps < UPDATES_UNTIL_ALL_MOVE:
            return
        unmoved = checkpoint.unmoved_parameters(self._initial, self._read())
        if unmoved:
            raise RunError(
                f"{len(unmoved)} trainable tensors did not change in training ({', '.join(unmoved[:3])}, ...)"
            )

    def restore(self) -> dict[str, Any] | None:
        """Put the best adapter back, and prove that the file holds it. A collective call.

        Returns:
            The record's `adapter`: its folder, the SHA-256 of its weights, the checksums of all its files, and the
            largest difference between validation logits before saving and after reloading (None where the run went on
            with other evaluation batches since); None where no adapter was kept.

        Raises:
            RunError: the file differs from what was in memory, or the reloaded adapter gives other logits.
        """
        if self._best is None:
            return None
        folder, best = self._folder / ADAPTER_FOLDER, self._best
        self._setting.ranks.on_main(lambda: checkpoint.check_saved(folder, best))
        self._setting.ranks.on_main(lambda: self._check_call(folder, best))
        with self._setting.strategy.whole_parameters(self._built.classifier, modify=True):
            checkpoint.load_state(self._built.classifier.adapted, best)
        expected = self._comparable_logits
        difference = None if expected is None else self._compare(expected)
        files = self._setting.ranks.on_main(lambda: checksums(folder))
        return {
            "folder": ADAPTER_FOLDER, "sha256": files[ADAPTER_WEIGHTS], "files": files,
            "reload_difference": difference,
        }  # fmt: skip

    def write_card(self, record: Record, calibration: Mapping[str, Any] | None) -> None:
        """Write the adapter's card once more, with what is known at the end. A collective call.

        Args:
            record: the best evaluation.
            calibration: the record's; None: the card says it all.
        """
        if self._best is None or calibration is None:
            return
        path, card = self._folder / ADAPTER_FOLDER / CARD_FILE, self._card(record, calibration)
        self._setting.ranks.on_main(lambda: write_text_atomic(path, card))

    def _check_call(self, folder: Path, best: Mapping[str, torch.Tensor]) -> None:
        """Make the card's call, where a second copy of the model is small: in host memory, in full precision."""
        config = self._setting.config.model
        held = self._inputs.weights.total * torch.float32.itemsize
        expected = self._comparable_logits
        if held > CALLED_BYTES or config.quantize != "none" or config.trust_remote_code or expected is None:
            return
        collator = self._inputs.collators["validation"]
        # A text that holds the pad token is read by transformers as if it ended there, or began later.
        texts = collator.data.input_ids
        rows = [row for row, ids in enumerate(texts) if collator.pad_token_id not in ids][:CALLED_ROWS]
        checkpoint.check_call(
            folder,
            self._reload_arguments(),
            best,
            [_call_of(collator(MicroBatch([row], 1))) for row in rows],
            expected[rows],
            CALL_TOLERANCE[self._setting.precision],
        )

    def _compare(self, expected: torch.Tensor) -> float:
        """Largest difference of the model's logits now from those of the best evaluation, on some of its batches."""
        rows, subset = self._longest_rows()
        logits = predict_logits(
            self._built.execution.forward,
            subset,
            self._setting.config.optim.eval_batch_size,
            self._setting.ranks,
            self._setting.may_halve,
        )
        difference = (logits - expected[rows]).abs().max().item()
        tolerance = RELOAD_TOLERANCE[self._setting.precision]
        if not difference <= tolerance:
            raise RunError(f"the reloaded adapter's logits differ by {difference:.2g}, more than {tolerance:g}")
        return difference

    def _layout(self) -> list[int | str]:
        """What the batches of an evaluation, and so the rounding of its logits, depend on."""
        setting = self._setting
        return [
            setting.ranks.world_size, setting.config.optim.eval_batch_size, setting.strategy.name,
            self._built.execution.name,
        ]  # fmt: skip

    def _write(self, record: Record, logits: torch.Tensor) -> None:
        state, card = self._best, self._card(record)
        if state is None:
            raise RuntimeError("there is no best adapter to write")
        adapted, tokenizer = self._built.classifier.adapted, self._inputs.tokenizer
        labels, rows = self._setting.data.labels, self._setting.data.validation
        self._setting.ranks.on_main(
            lambda: checkpoint.save_adapter(self._folder, adapted, state, tokenizer, card, labels)
        )
        path = self._folder / VALIDATION_PREDICTIONS_FILE
        self._setting.ranks.on_main(lambda: write_predictions(path, rows.ids, labels, logits, rows.labels))

    def _read(self) -> dict[str, torch.Tensor]:
        with self._setting.strategy.whole_parameters(self._built.classifier):
            return checkpoint.adapter_state(self._built.classifier.adapted)

    def _longest_rows(self) -> tuple[list[int], PaddedCollator]:
        """The first validation batches of each rank, which come out in the same composition as in the evaluation."""
        collator = self._inputs.collators["validation"]
        count = RELOAD_BATCHES * self._setting.config.optim.eval_batch_size * self._setting.ranks.world_size
        rows = longest_first(collator.data.lengths)[:count]
        return rows, PaddedCollator(collator.data.select(rows), collator.class_weights, collator.pad_token_id)

    def _reload_arguments(self) -> dict[str, Any]:
        origin = self._built.classifier.origin
        return reload_arguments(
            self._inputs.saved_config,
            self._setting.data.labels,
            pad_id(self._inputs.tokenizer),
            resized=origin is not None and origin.resized,
        )

    def _card(self, record: Record, calibration: Mapping[str, Any] | None = None) -> str:
        config, data = self._setting.config, self._setting.data
        scores = ", ".join(f"{name} {record[name]:.4f}" for name in metrics_in("card") if name in record)
        facts = {
            "task": f"{config.data.task}{' (synthetic)' if is_synthetic(config.data) else ''}",
            "validation": f"{scores} on {record['rows']} rows after epoch {record['epoch']:g}",
            "precision, recall and F1": "macro averages"
            if data.positive is None
            else f"of class {name_cells(data.labels[data.positive])}",
            **({} if calibration is None else _calibration_facts(calibration)),
            "LoRA": f"r={config.lora.lora_r}, alpha={config.lora.lora_alpha}, targets {config.lora.lora_targets}",
            "trainable parameters": f"{self._built.counts.trainable:,}",
            "rows are cut at": f"{config.data.max_length} tokens",
        }
        base: Any = self._built.classifier.adapted.get_base_model()
        template = None if config.data.template is None else parse_template(config.data.template)
        return model_card(
            published_source(config.model),
            data.labels,
            self._reload_arguments(),
            Reading(config.data.max_length, data.train.pairs is not None, template),
            facts,
            quantization=getattr(base.config, "quantization_config", None),
        )


def _calibration_facts(calibration: Mapping[str, Any]) -> dict[str, str]:
    """What was fitted to the scores and is in no weight, by name."""
    threshold = threshold_words(calibration)
    words = {"threshold": threshold, "calibration": temperature_words(calibration)}
    return {f"{name} (not in the weights)": text for name, text in words.items() if text is not None}


def _call_of(batch: Batch) -> dict[str, torch.Tensor]:
    """The keywords of the call of a transformers model; the mask of a row alone says nothing."""
    types = {} if batch.token_types is None else {"token_type_ids": batch.token_types}
    return {"input_ids": batch.input_ids, **types}
