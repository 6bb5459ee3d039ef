"""Models are those of the experiments, of known families; a model that is one new entry trains."""

import json
from pathlib import Path

import pytest
import tiny

from lorabench import cli
from lorabench.catalog import models
from lorabench.catalog.families import FAMILIES
from lorabench.catalog.metrics import metrics_in
from lorabench.catalog.models import MODELS, ModelPreset
from lorabench.catalog.settings import Settings
from lorabench.config.command_line import parse_run_config
from lorabench.config.run_config import RunConfig
from lorabench.launch.launcher import ModelSize, measure_model
from lorabench.models.footprint import NF4_BITS


@pytest.mark.parametrize(
    ("model", "hub_id", "precision", "targets", "parameters"),
    [
        ("roberta-large", "FacebookAI/roberta-large", "fp32", ("query", "value"), 355_361_794),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", "fp16", ("q_proj", "v_proj"), 7_110_668_288),
        ("llama2-7b", "meta-llama/Llama-2-7b-hf", "fp16", ("q_proj", "v_proj"), 6_607_351_808),
        ("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", "bf16", ("q_proj", "v_proj"), 7_504_932_864),
    ],
)
def test_models_are_those_of_the_experiments(
    model: str, hub_id: str, precision: str, targets: tuple[str, ...], parameters: int
) -> None:
    preset = MODELS[model]
    assert (preset.hub_id, preset.precision, preset.base_parameters) == (hub_id, precision, parameters)
    assert FAMILIES[preset.model_type].targets == targets


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_of_a_known_family_and_changes_defaults_that_there_are(name: str) -> None:
    preset = MODELS[name]
    assert preset.model_type in FAMILIES
    fields = {key for section in RunConfig().to_json().values() for key in section}
    assert set(preset.settings) <= fields and set(Settings.__annotations__) <= fields
    assert preset.settings.get("best_metric", "f1") in metrics_in("best_metric")


# --- a model that is one new entry


def test_a_model_that_is_one_entry_trains_on_random_weights_and_is_counted_by_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"vocab_size": 8192, **tiny.SHAPES["bert"]}
    toy = ModelPreset(
        hub_id="owner/toy", model_type="bert", precision="bf16", base_parameters=300_000, shape=shape,
        settings=Settings(lora_r=3, lora_alpha=6),
    )  # fmt: skip
    monkeypatch.setitem(models._MODELS, "toy", toy)
    assert measure_model(parse_run_config(["--model", "toy"], launching=True)) == ModelSize("toy", 600_000, "bf16")
    linear = 2 * (4 * tiny.HIDDEN**2 + 2 * tiny.HIDDEN * 48)
    nf4 = round((300_000 - linear) * 2 + linear * NF4_BITS / 8)
    assert measure_model(parse_run_config(["--model", "toy", "--quantize", "nf4"], launching=True)) == ModelSize(
        "toy", nf4, "nf4"
    )
    run = tmp_path / "run"
    flags = ["--model", "toy", "--weights", "random", "--task", "sample", "--max-train-samples", "16"]
    assert tiny.train_in_process([*flags, "--max-length", "64", "--epochs", "1", "--output-dir", str(run)]) == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["model"]["name"], record["config"]["lora"]["lora_r"]) == ("completed", "toy", 3)
    assert cli.main(["models"]) == 0
    assert "owner/toy" in capsys.readouterr().out
