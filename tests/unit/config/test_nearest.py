"""A name that is no flag leads to the flag that was meant, also where another tool has given it its name."""

import dataclasses

import pytest
import transformers
from peft import LoraConfig

from lorabench.config import nearest
from lorabench.config.nearest import meant
from lorabench.config.run_config import flag_types
from lorabench.experiments.plan_file import no_flag
from lorabench.training.prediction import PredictOptions

RUN = flag_types()
PREDICT = [field.name for field in dataclasses.fields(PredictOptions)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("per_device_train_batch_size", "; did you mean batch_size?"),
        ("per_device_eval_batch_size", "; did you mean eval_batch_size?"),
        ("num_train_epochs", "; did you mean epochs?"),
        ("LR", "; did you mean learning_rate?"),
        ("target_modules", "; did you mean lora_targets?"),
        ("report_to", "; did you mean track?"),
        ("modle", "; did you mean model?"),
        ("bf16", "; expected --precision bf16"),
        ("load_in_4bit", "; expected --quantize nf4"),
        ("warmup_steps", "; expected --warmup-ratio, a share of all steps"),
        ("save_strategy", "; each epoch ends with an evaluation and a checkpoint"),
        ("num_processes", "; launchers take it: ./launch.sh, accelerate launch"),
        ("zzz", ""),
    ],
)
def test_names_of_other_tools_lead_to_the_flag(name: str, said: str) -> None:
    assert meant(name, RUN) == said
    assert no_flag(name) == f"no flag of a run{said}"


def test_a_flag_that_the_command_lacks_is_never_advised() -> None:
    assert meant("lr", PREDICT) == "" and meant("bf16", PREDICT) == "" and meant("save_strategy", PREDICT) == ""
    assert meant("per_device_eval_batch_size", PREDICT, lambda name: f"<{name}>") == "; did you mean <batch_size>?"


def test_each_foreign_name_stands_for_one_thing_and_is_no_flag_of_ours() -> None:
    names = [name for names in nearest._ELSEWHERE.values() for name in names.split()] + list(nearest._SENTENCES)
    assert len(names) == len(set(names))
    assert set(names) & RUN.keys() == {"test_file", "model", "adapter", "output_dir"}  # of training
    known = {*RUN, *PREDICT}
    assert {*nearest._ELSEWHERE, *(flag for flag, _ in nearest._SENTENCES.values())} <= known


def test_what_trainers_call_their_settings_is_known_as_they_spell_it() -> None:
    """Names that the installed libraries have, so that a misspelt one here is noticed."""
    theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    theirs |= {field.name for field in dataclasses.fields(LoraConfig)}
    ours = {name for name in theirs if meant(name, ()) == "" and name in nearest._NAMES}
    assert ours >= {
        "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "lr_scheduler_type",
        "gradient_accumulation_steps", "report_to", "save_total_limit", "metric_for_best_model", "r", "bias",
        "target_modules", "run_name", "resume_from_checkpoint",
    }  # fmt: skip
