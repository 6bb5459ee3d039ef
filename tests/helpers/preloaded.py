"""What the process imports that others are forked from: all that a run imports sooner or later, which takes long."""

import gc
import importlib
import importlib.util

import numpy as np
import uncompiled
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lorabench.catalog.metrics import Answers, compute_metrics
from lorabench.config.command_line import parse_run_config

IMPORTED = (
    "resuming", "several_runs", "exactness", "lorabench.training.run", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "peft.tuners.lora", "PIL.PngImagePlugin", "rich._emoji_codes",
    "sklearn.metrics", "sklearn.model_selection", "torch.utils.serialization.config",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    "transformers.models.roberta.modeling_roberta", "typeguard", "tyro._backends._tyro_backend",
)  # fmt: skip
# Where their packages are installed.
OPTIONAL = {
    "deepspeed": (
        "deepspeed.ops.op_builder.all_ops", "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.runtime.superoffload.superoffload_stage3", "deepspeed.runtime.zero.muon.original_muon",
    ),
    "bitsandbytes": ("peft.tuners.lora.bnb",),
}  # fmt: skip

for name in IMPORTED:
    importlib.import_module(name)
for package, names in OPTIONAL.items():
    if importlib.util.find_spec(package) is not None:
        for name in names:
            importlib.import_module(name)
if importlib.util.find_spec("deepspeed") is not None:
    uncompiled.leave_out()
# What a process makes once, without a number of PyTorch's: patterns of names, a parser, what metrics look up.
get_checkpoint_conversion_mapping("bert")
parse_run_config(["--task", "sample"])
compute_metrics(Answers(np.arange(2), np.arange(2), 2, 1))
# Those that are forked need not look through it when they free memory, which would also copy it.
gc.collect()
gc.freeze()
