"""What the process imports that others are forked from: all that a run imports sooner or later, which takes long."""

import gc
import importlib
import importlib.util

import uncompiled

IMPORTED = (
    "resuming", "several_runs", "exactness", "lorabench.training.run", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "peft.tuners.lora", "PIL.PngImagePlugin", "sklearn.metrics",
    "sklearn.model_selection",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    "transformers.models.roberta.modeling_roberta", "typeguard", "tyro._backends._tyro_backend",
)  # fmt: skip
# Where their packages are installed.
OPTIONAL = {"deepspeed": "deepspeed.ops.op_builder.all_ops", "bitsandbytes": "peft.tuners.lora.bnb"}

for name in IMPORTED:
    importlib.import_module(name)
for package, name in OPTIONAL.items():
    if importlib.util.find_spec(package) is not None:
        importlib.import_module(name)
if importlib.util.find_spec("deepspeed") is not None:
    uncompiled.leave_out()
# Those that are forked need not look through it when they free memory, which would also copy it.
gc.collect()
gc.freeze()
