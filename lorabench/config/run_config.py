"""What a run is asked to do: one frozen dataclass per concern, kept as JSON in `run.json`.

The docstring under a field is its help text on the command line. Precedence: default < model preset < task preset <
recipe < flag; `defaults` builds the instance that the command line then overrides. Nothing here imports torch.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from lorabench.catalog.metrics import metrics_in
from lorabench.catalog.recipes import ORIGINAL, RECIPES
from lorabench.catalog.settings import Checkpointing, Quantization, SplitMethod
from lorabench.catalog.trackers import TRACKERS
from lorabench.config.values import compose_names, convert

Weights = Literal["pretrained", "random"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
FrozenDtype = Literal["auto", "fp32"]
AttentionImplementation = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"]
LoraBias = Literal["none", "all", "lora_only"]
Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine"]
ExecutionChoice = Literal["auto", "eager", "captured"]
OnOutOfMemory = Literal["shrink", "stop"]
# Choices that the catalog gives when this is imported; a type checker takes them for any text.
if TYPE_CHECKING:
    BestMetric = str
    RecipeName = str
    Tracker = str
else:
    BestMetric = Literal[*metrics_in("best_metric")]
    RecipeName = Literal[*RECIPES]
    Tracker = Literal["none", *TRACKERS]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights are held."""

    model: str = "roberta-large"
    """Preset name (see `lorabench models`), Hub id, or path of a local folder."""
    adapter: Path | None = None
    """Folder of a saved LoRA adapter to go on from: rank, alpha, targets and bias are its own, and so is the model,
    unless --model says where that is."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    weights: Weights = "pretrained"
    """`random` builds the real shape without a download: memory and time are real, scores are n/a."""
    precision: Precision = "auto"
    """Compute dtype. `auto`: the launcher's fp16 or bf16; else the preset's on CUDA and fp32 on CPU."""
    frozen_dtype: FrozenDtype = "auto"
    """Dtype of the frozen weights. `auto`: the compute dtype; `fp32`: full precision under autocast."""
    quantize: Quantization = "none"
    """`nf4` holds the frozen linear layers in 4 bits (QLoRA, arXiv:2305.14314), double quantisation included; head,
    embeddings and norms keep the compute dtype. Needs bitsandbytes."""
    attn_implementation: AttentionImplementation = "auto"
    """Attention kernels; `auto` leaves the choice to transformers."""
    gradient_checkpointing: Checkpointing = "auto"
    """Recompute activations in the backward pass: less memory, more time. `auto`, in captured steps: in as many blocks
    as the free memory asks for; in eager ones: in all, where a rank's frozen weights take more than half of its GPU's
    memory, or of --gpu-memory-limit, or are kept in host memory."""
    base_dropout: float | None = None
    """Dropout inside the frozen model while training, in [0, 1); default: its own (0.1 in BERT and RoBERTa)."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Off unless you say so."""


@dataclass(frozen=True, kw_only=True)
class LoraArgs:
    """The adapter (Hu et al. 2021, arXiv:2106.09685)."""

    lora_r: int = 8
    """Rank of the update."""
    lora_alpha: int = 16
    """The update is scaled by alpha / r."""
    lora_dropout: float = 0.1
    """Dropout on the adapter's input, in [0, 1)."""
    lora_bias: LoraBias = "none"
    """Which bias terms train beside the adapter."""
    lora_targets: str = "auto"
    """Comma-separated module names, `all-linear`, or `auto`: the architecture's attention projections."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the texts come from."""

    task: str = "disaster-tweets"
    """Preset (disaster-tweets, reclor, sample, custom), or the Hub id or folder of a data set. Naming columns without
    naming a task selects `custom`."""
    train_file: Path | None = None
    """CSV, JSON lines, JSON array or Parquet; replaces the task's own training data."""
    validation_file: Path | None = None
    """Rows to evaluate on after each epoch; without it, a share of the training rows is held out."""
    test_file: Path | None = None
    """Predicted at the end, with the best adapter, into `test_predictions.csv`; scored, if it is labelled."""
    delimiter: str | None = None
    """The character between the fields of CSV and TSV files, or `tab`; default: found out, where that is safe."""
    encoding: str | None = None
    """Encoding of text files, such as cp1252; default: UTF-8, or what the file's byte order mark says."""
    dataset_config: str | None = None
    """Which configuration of a data set on the Hub or in a folder."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a data set on the Hub."""
    train_split: str | None = None
    """Split of the data set to train on, if its name does not say so, or rows of it, as in train[:90%]."""
    validation_split: str | None = None
    """Split of the data set to evaluate on."""
    test_split: str | None = None
    """Split of the data set to test on."""
    validation_share: float = 0.2
    """Share of the training rows that is held out where there are no validation rows."""
    split: SplitMethod = "stratified"
    """How rows are held out, and samples drawn: `stratified`, in the classes' proportions, or `random`, as in the
    original experiments."""
    split_seed: int = 42
    """Seed of the rows that are held out; --seed does not change them, so that runs compare on the same rows."""
    drop_duplicates: bool = False
    """Take out of the training rows those whose text stands in validation or test, and repeated ones."""
    text_column: str = "text"
    """Column with the text; two with a comma between them are read as a pair, as the model's tokenizer joins one."""
    template: str | None = None
    """Joins columns into one text, as in "{keyword}: {text}"; `{{` and `}}` are braces. In place of --text-column."""
    label_column: str = "label"
    """Column with the label; strings or whole numbers, any number of classes."""
    numeric_classes: bool = False
    """Take numbers with decimals, such as 0.5, as names of classes; else they are refused as values to predict."""
    positive_label: str | None = None
    """Of two classes, the one that precision, recall and F1 are about (default: the second, in the data set's own
    order if it has one, else sorted)."""
    max_length: int = 512
    """Longest row in tokens; longer rows are cut and counted."""
    max_train_samples: int | None = None
    """Use only that many training rows, drawn with the seed."""
    max_eval_samples: int | None = None
    """Use only that many validation rows, drawn with the seed."""
    class_weights: str = "balanced"
    """Weights of the cross-entropy: `balanced` (n / (classes * count)), `none`, or one number per class: W0,W1,..."""

    def __post_init__(self) -> None:
        compose_names(self, "text_column", "template", "label_column")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How long and how fast."""

    recipe: RecipeName = ORIGINAL
    """Settings of LoRA and optimizer together. `original`: those of model and task, as published or tried. `strong`:
    LoRA on all linear layers with rank 16 and alpha 32, a learning rate by the size of the model, warm-up and linear
    decay, clipping at 1. Flags win over it, and it over the settings of model and task; given as a flag, it also wins
    over what a file with another recipe says of all these."""
    epochs: int = 5
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after that many optimizer steps."""
    batch_size: int = 8
    """Rows per device and micro-batch."""
    eval_batch_size: int = 8
    """Rows per device in evaluation. Without effect where steps are captured: evaluation is packed, too, up to a
    number of tokens."""
    gradient_accumulation: int = 1
    """Micro-batches per optimizer step; the effective batch is batch size x accumulation x ranks."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    lr_scheduler: Scheduler = "constant"
    """Schedule of the learning rate."""
    warmup_ratio: float = 0.1
    """Share of the steps that warm up; without effect under `constant`."""
    weight_decay: float = 0.001
    """AdamW's decoupled weight decay; biases and one-dimensional weights are exempt."""
    max_grad_norm: float = 0.3
    """Gradients are clipped to this global norm."""
    execution: ExecutionChoice = "auto"
    """How steps run: `captured` packs texts without padding and replays CUDA graphs (one GPU, data parallel); `eager`
    always works; `auto` is captured where that is possible."""
    seed: int = 42
    """Seed of initialisation, dropout and the order of rows; rows are held out by --split-seed."""

    def effective_batch(self, world_size: int) -> int:
        """Rows of a full optimizer step over all ranks."""
        return self.batch_size * self.gradient_accumulation * world_size


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is measured and kept."""

    best_metric: BestMetric = "f1"
    """Which validation score chooses the adapter that is kept."""
    early_stopping: int | None = None
    """Stop after that many epochs without a better score."""
    logging_steps: int = 1
    """Optimizer steps between two records of the training loss."""
    output_dir: Path | None = None
    """Folder for results; default: runs/MODEL-TASK-TIME."""
    resume: bool = False
    """Go on from the newest checkpoint in --output-dir; the same command but for this flag, and for how the effective
    batch is split."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    on_oom: OnOutOfMemory = "shrink"
    """When a GPU runs out of memory: `shrink` halves the batch per device and doubles the accumulation, on all ranks
    (one process and data parallel; the effective batch and the loss stay), `stop` ends the run."""
    gpu_memory_limit: float | None = None
    """GB (10^9 bytes) of each GPU that the run may take, to try out a smaller card."""
    memory_snapshot: bool = False
    """Record every allocation of GPU memory: per rank a snapshot for pytorch.org/memory_viz and a picture over time,
    in OUTPUT_DIR/memory. A lack of memory is in them, too."""
    track: Tracker = "none"
    """Experiment tracker; wandb runs offline without an API key."""
    track_project: str = "lorabench"
    """Project of the tracker that the run is shown in."""
    track_name: str | None = None
    """The run's name there; default: that of its folder."""
    track_tags: str | None = None
    """Words to find the run by there, with commas between them; where a tracker has no tags, in its configuration."""
    track_group: str | None = None
    """What the run is shown together with there."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, resolved: presets applied, every field set."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraArgs = field(default_factory=LoraArgs)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunOptions = field(default_factory=RunOptions)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, one object per concern; paths become strings."""
        return {
            section.name: {
                key: str(value) if isinstance(value, Path) else value
                for key, value in dataclasses.asdict(getattr(self, section.name)).items()
            }
            for section in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunConfig":
        """Inverse of `to_json`.

        Raises:
            TypeError: unknown or missing sections, unknown fields, a value of another type.
        """
        names = {section.name for section in dataclasses.fields(cls)}
        if set(data) != names:
            raise TypeError(f"sections {', '.join(sorted(data))}; expected {', '.join(sorted(names))}")
        if not all(isinstance(data[name], dict) for name in names):
            raise TypeError("expected an object for each section")
        sections = {}
        for name, section_type in get_type_hints(cls).items():
            hints = get_type_hints(section_type)
            values = {}
            for key, value in data[name].items():
                try:
                    values[key] = convert(value, hints[key]) if key in hints else value
                except (TypeError, OverflowError) as error:
                    raise TypeError(f"{name}.{key} = {value!r}: expected {error}") from None
            sections[name] = section_type(**values)
        return cls(**sections)


def flag_types() -> dict[str, Any]:
    """The type of each flag of a run, in the order of the configuration."""
    sections = get_type_hints(RunConfig).values()
    return {name: hint for section in sections for name, hint in get_type_hints(section).items()}
