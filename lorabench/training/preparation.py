"""What a strategy asks of the model: where it is built, whether it recomputes activations, and how it is wrapped."""

import torch

from lorabench.distributed import accelerator as distributed
from lorabench.distributed import sharding
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.setting import Setting
from lorabench.distributed.strategies import is_deepspeed, splits_weights
from lorabench.errors import ConfigError
from lorabench.models.build import Placement
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.footprint import WeightCount
from lorabench.models.quantization import hold_plainly
from lorabench.step.optimizer import build_optimizer
from lorabench.units import GB

# Frozen weights above this share of the GPU's memory leave little for activations: recompute those.
CHECKPOINTING_SHARE = 0.5


def use_checkpointing(setting: Setting, weights: WeightCount, frozen_dtype: torch.dtype) -> bool:
    """The flag; under `auto`, whether some rank's GPU is short of memory. The CPU recomputes nothing by itself.

    A collective call. All ranks decide alike: with sharded weights, recomputing on some of them only would have those
    wait for ever.
    """
    choice = setting.config.model.gradient_checkpointing
    if choice != "auto":
        return choice == "on"
    return setting.ranks.any(setting.ranks.device.type == "cuda" and _is_short(setting, weights, frozen_dtype))


def _is_short(setting: Setting, weights: WeightCount, frozen_dtype: torch.dtype) -> bool:
    """Whether the frozen weights take more than half of what this rank may have of its GPU, or have been put outside.

    Of split weights the rank's own part counts. The blocks that are whole while they compute are few at any time, and
    left to the other half.
    """
    if distributed.offloads_weights(setting.strategy, setting.accelerator):
        # The GPU holds none of them but the blocks that compute. Yet whoever offloads says that its memory is short
        # for this model, and so for its activations, and a batch that does not fit ends a run with split weights.
        # Time goes into moving weights between host and GPU; recomputing adds little to it.
        return True
    ranks = setting.ranks.world_size if splits_weights(setting.strategy) else 1
    held = weights.held_bytes(frozen_dtype.itemsize, setting.config.model.quantize == "nf4", ranks)
    _, capacity = torch.cuda.mem_get_info(setting.ranks.device)
    limit = setting.config.run.gpu_memory_limit
    if limit is not None:
        capacity = min(capacity, limit * GB)
    return held > CHECKPOINTING_SHARE * capacity


def place_model(setting: Setting, frozen_dtype: torch.dtype, checkpointing: bool) -> Placement:
    """Where and in which dtypes the strategy wants the model to be built."""
    splits = splits_weights(setting.strategy)
    return Placement(
        device=setting.ranks.device,
        frozen_dtype=frozen_dtype,
        trainable_dtype=distributed.trainable_dtype(setting.strategy, setting.precision),
        # 4-bit weights are quantised where they are used, and small.
        load_on_cpu=splits and setting.config.model.quantize == "none",
        checkpointing=checkpointing,
        # FSDP shards no tensors of whole numbers.
        quant_storage=frozen_dtype if setting.strategy == "FSDP2" else torch.uint8,
        regathers=splits,
    )


def prepare(setting: Setting, classifier: SequenceClassifier) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Hand the classifier to the strategy, and build its optimizer over the parameters that the strategy holds.

    Returns:
        The model that computes, and accelerate's optimizer.
    """
    accelerator, ranks, optim = setting.accelerator, setting.ranks, setting.config.optim
    fused = ranks.device.type == "cuda"
    if is_deepspeed(setting.strategy):
        return accelerator.prepare(classifier, build_optimizer(classifier, optim, fused))
    if ranks.spans_machines:
        check_same_weights(classifier, ranks)
    if setting.strategy == "FSDP2":
        hold_plainly(classifier)
        sharding.shard(classifier, classifier.body, distributed.fsdp_plugin(accelerator), ranks.device)
    # In evaluation mode accelerate adds autocast, and not DistributedDataParallel: gradients cross ranks in one piece.
    prepared = accelerator.prepare_model(classifier, device_placement=False, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(build_optimizer(classifier, optim, fused), device_placement=False)
    return prepared, optimizer


def check_same_weights(classifier: torch.nn.Module, ranks: Ranks) -> None:
    """Refuse machines that loaded different weights: nothing later would even them out. A collective call.

    Raises:
        ConfigError: a file differs from one machine to the next.
    """
    # Bits as whole numbers: their sum depends on no order of summation.
    parameters = (parameter.detach().contiguous().flatten() for parameter in classifier.parameters())
    sums = [int(parameter.view(torch.uint8).sum(dtype=torch.int64)) for parameter in parameters]
    if any(other != sums for other in ranks.gather(sums)):
        raise ConfigError("--model: the ranks loaded different weights; expected the same files on every machine")
