"""What was meant by a name that is no flag: what other tools call one, else the flag that is written most like it."""

import difflib
from collections.abc import Callable, Iterable, Mapping

# Flag -> its names in transformers' TrainingArguments, PEFT's LoraConfig, TRL, and scripts around them.
_ELSEWHERE: Mapping[str, str] = {
    "model": "model_name_or_path model_name pretrained_model_name_or_path base_model base_model_name_or_path",
    "revision": "model_revision",
    "precision": "torch_dtype dtype mixed_precision",
    "attn_implementation": "attention_implementation",
    "lora_r": "r rank lora_rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_bias": "bias",
    "lora_targets": "target_modules lora_target lora_target_modules",
    "adapter": "adapter_name_or_path peft_model_id lora_path",
    "task": "dataset dataset_name dataset_name_or_path dataset_path data_dir task_name",
    "train_file": "train_path train_data train_data_file train_dataset data_files",
    "validation_file": "eval_file dev_file val_file valid_file eval_data_file eval_dataset validation_data val_data",
    "dataset_config": "dataset_config_name",
    "text_column": "text_field dataset_text_field text_column_name text_column_names text_col text_key input_column",
    "label_column": "label_field label_column_name label_col label_key target_column target",
    "positive_label": "pos_label",
    "max_length": "max_seq_length max_seq_len max_sequence_length max_len cutoff_len model_max_length",
    "validation_share": "test_size val_size validation_size validation_split_percentage val_split_ratio dev_ratio",
    "class_weights": "class_weight weighted_loss",
    "epochs": "num_train_epochs num_epochs n_epochs num_epoch max_epochs",
    "batch_size": "per_device_train_batch_size per_gpu_train_batch_size train_batch_size micro_batch_size bs",
    "eval_batch_size": "per_device_eval_batch_size per_gpu_eval_batch_size test_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps grad_accum accumulate_grad_batches accumulation_steps",
    "learning_rate": "lr",
    "lr_scheduler": "lr_scheduler_type scheduler scheduler_type",
    "weight_decay": "wd",
    "max_grad_norm": "gradient_clipping gradient_clip_val clip_grad_norm max_norm",
    "best_metric": "metric_for_best_model",
    "early_stopping": "early_stopping_patience patience",
    "logging_steps": "log_every_n_steps log_steps log_interval",
    "output_dir": "save_dir results_dir checkpoint_dir",
    "resume": "resume_from_checkpoint",
    "keep_checkpoints": "save_total_limit",
    "track": "report_to logger log_with",
    "track_project": "project wandb_project project_name",
    "track_name": "run_name wandb_name",
    "run": "run_dir run_folder model adapter",
    "input": "input_file test_file predict_file",
    "output": "output_file output_path output_dir out",
}
_NAMES = {name: flag for flag, names in _ELSEWHERE.items() for name in names.split()}
# Of what is a value here, a matter of course, or somebody else's: (a flag that a command with it has, the sentence).
_SENTENCES: Mapping[str, tuple[str, str]] = {
    **{name: ("precision", f"expected --precision {name}") for name in ("fp16", "bf16", "fp32")},
    **{name: ("quantize", "expected --quantize nf4") for name in ("load_in_4bit", "use_4bit", "qlora")},
    "load_in_8bit": ("quantize", "8 bits are not offered; expected --quantize nf4, which is 4 bits"),
    **{name: ("warmup_ratio", "expected --warmup-ratio, a share of all steps") for name in ("warmup_steps", "warmup")},
    **{
        name: ("keep_checkpoints", "each epoch ends with an evaluation and a checkpoint")
        for name in ("save_strategy", "save_steps", "eval_strategy", "evaluation_strategy", "eval_steps", "do_eval")
    },
    "load_best_model_at_end": ("best_metric", "the best adapter is always kept, by --best-metric"),
    "num_labels": ("label_column", "the classes are those of --label-column"),
    **{
        name: ("batch_size", "launchers take it: ./launch.sh, accelerate launch")
        for name in ("config_file", "num_processes", "num_machines", "deepspeed", "fsdp", "multi_gpu")
    },
}


def meant(name: str, known: Iterable[str], write: Callable[[str], str] = str) -> str:
    """The end of a sentence about an unknown name: `; did you mean --epochs?`; empty where nothing is near.

    Args:
        name: with underscores.
        known: names that there are.
        write: how a name is written in the message.
    """
    names, wanted = set(known), name.lower()
    flag, sentence = _SENTENCES.get(wanted, ("", ""))
    if flag in names:
        return f"; {sentence}"
    nearest = difflib.get_close_matches(_NAMES.get(wanted, name), sorted(names), n=1)
    return f"; did you mean {write(nearest[0])}?" if nearest else ""
