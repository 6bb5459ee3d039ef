"""Training the way one writes it by hand: a loop over padded batches of a PEFT model, 4 bits by bitsandbytes."""

import copy
from collections.abc import Sequence

import torch

from benchmarks.launch_state import LaunchState
from benchmarks.workload import WindowRun, Workload, fill_weights
from lorabench.data.batching import MicroBatch, PaddedCollator, Window
from lorabench.errors import ConfigError
from lorabench.machine.meters import Stopwatch
from lorabench.machine.precision import DTYPES
from lorabench.models.build import Placement, build_classifier


class PlainLoopContestant:
    """Forward, backward, clip, step, for each batch; weights, adapter and checkpointing as the workload's flags say.

    Raises:
        ConfigError: the workload has no 4-bit weights.
    """

    def __init__(self, workload: Workload) -> None:
        config = workload.config
        if config.model.quantize == "none":
            raise ConfigError("qlora: expected a workload with 4-bit weights, as --texts reclor")
        self._device = workload.device
        self._precision = DTYPES[workload.precision]
        self._clip = config.optim.max_grad_norm
        recomputes = config.model.gradient_checkpointing == "on"
        placement = Placement(device=workload.device, frozen_dtype=self._precision, checkpointing=recomputes)
        inputs, seed = workload.inputs, config.optim.seed
        with LaunchState().active():
            classifier = build_classifier(
                config.model, config.lora, copy.deepcopy(inputs.model_config), placement, seed, inputs.head
            )
        fill_weights(classifier, seed)
        self._model = classifier.adapted.train()
        weights = workload.data.class_weights or (1.0,) * len(workload.data.labels)
        self._class_weights = torch.tensor(weights, device=workload.device)
        self._collate = PaddedCollator(workload.rows, weights, inputs.model_config.pad_token_id or 0)
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=config.optim.learning_rate, weight_decay=config.optim.weight_decay
        )

    def run(self, windows: Sequence[Window], warmup: Sequence[Window] = ()) -> WindowRun:
        """See `Contestant`."""
        watch = Stopwatch(self._device)
        losses = [self._step(window) for window in warmup]
        watch.start()
        losses += [self._step(window) for window in windows]
        watch.stop()
        return WindowRun(watch.seconds, losses)

    def _step(self, window: Window) -> float:
        batch = self._collate(MicroBatch(list(window.rows), len(window.rows))).to(self._device)
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            logits = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), batch.labels, weight=self._class_weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()
