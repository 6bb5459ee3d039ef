"""The defaults that an entry of the catalog may change, and the words that its fields take."""

from typing import Literal, TypedDict

ComputeDtype = Literal["fp32", "fp16", "bf16"]
Quantization = Literal["none", "nf4"]
Checkpointing = Literal["auto", "on", "off"]
SplitMethod = Literal["random", "stratified"]


class Settings(TypedDict, total=False):
    """Defaults that a model or a task changes, by the field's name in `config.run_config`."""

    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str
    text_column: str
    label_column: str
    positive_label: str
    split: SplitMethod
    max_length: int
    class_weights: str
    epochs: int
    batch_size: int
    eval_batch_size: int
    gradient_accumulation: int
    learning_rate: float
    lr_scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    logging_steps: int
    early_stopping: int
    best_metric: str
    gradient_checkpointing: Checkpointing
    quantize: Quantization
