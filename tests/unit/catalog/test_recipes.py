"""Recipes: what they set, what wins over them, and how the learning rate goes by size."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny

from lorabench.catalog.models import MODELS
from lorabench.catalog.recipes import ORIGINAL, RECIPES, SET_BY_RECIPES, Recipe
from lorabench.catalog.settings import Settings
from lorabench.config.command_line import parse_run_config, parse_train_command
from lorabench.config.config_file import config_text
from lorabench.config.defaults import resolve_defaults
from lorabench.config.keywords import build_run_config
from lorabench.config.model_size import known_parameters
from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError

STRONG = {
    "recipe": "strong", "lora_targets": "all-linear", "lora_r": 16, "lora_alpha": 32, "lr_scheduler": "linear",
    "warmup_ratio": 0.06, "max_grad_norm": 1.0,
}  # fmt: skip


def flat(config: RunConfig) -> dict[str, Any]:
    return {key: value for section in config.to_json().values() for key, value in section.items()}


def parse(*words: str) -> dict[str, Any]:
    return flat(parse_run_config(["--task", "sample", *words], launching=True))


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_every_entry_sets_what_there_is_and_knows_every_size(recipe: Recipe) -> None:
    assert set(recipe.settings) <= set(Settings.__annotations__)
    if recipe.learning_rates:
        sizes, rates = zip(*recipe.learning_rates, strict=True)
        assert list(sizes) == sorted(sizes) and sizes[-1] == math.inf
        assert list(rates) == sorted(rates, reverse=True), "larger models take smaller steps"


@pytest.mark.parametrize("model", MODELS)
def test_the_original_changes_no_setting(model: str) -> None:
    plain = {**flat(RunConfig()), **MODELS[model].settings, "model": model}
    assert flat(resolve_defaults(model, "custom")) == {**plain, "task": "custom", "recipe": ORIGINAL}
    assert parse("--model", model) == parse("--model", model, "--recipe", "original")


@pytest.mark.parametrize(
    ("model", "rate"),
    [("minilm", 1e-3), ("roberta-large", 3e-4), ("llama2-7b", 2e-4), ("mistral-7b", 2e-4), ("llama3-8b", 2e-4)],
)
def test_the_strong_one_wins_over_presets_and_leaves_the_rest_alone(model: str, rate: float) -> None:
    original, strong = parse("--model", model), parse("--model", model, "--recipe", "strong")
    changes = {name: value for name, value in strong.items() if value != original[name]}
    assert changes == {name: value for name, value in {**STRONG, "learning_rate": rate}.items() if name in changes}
    assert {**strong, **STRONG, "learning_rate": rate} == strong


@pytest.mark.parametrize(
    ("parameters", "rate"), [(1, 1e-3), (50e6, 1e-3), (50e6 + 1, 5e-4), (1e9, 3e-4), (13e9, 2e-4), (70e9, 1e-4)]
)
def test_the_rate_goes_by_size(parameters: float, rate: float) -> None:
    assert RECIPES["strong"].learning_rate(int(parameters)) == rate
    assert RECIPES[ORIGINAL].learning_rate(int(parameters)) is None


def test_whatever_is_asked_for_wins(tmp_path: Path) -> None:
    flags = ("--model", "minilm", "--recipe", "strong", "--lora-r", "4", "--learning-rate", "0.01")
    found = parse(*flags, "--lr-scheduler", "cosine")
    assert (found["lora_r"], found["learning_rate"], found["lr_scheduler"]) == (4, 0.01, "cosine")
    assert (found["lora_alpha"], found["max_grad_norm"]) == (32, 1.0)

    file = tmp_path / "run.yaml"
    file.write_text("recipe: strong\nlora_alpha: 8\n", encoding="utf-8")
    found = parse("--model", "minilm", "--config", str(file))
    assert (found["recipe"], found["lora_alpha"], found["lora_r"], found["learning_rate"]) == ("strong", 8, 16, 1e-3)
    assert parse("--model", "minilm", "--config", str(file), "--recipe", "original")["lora_r"] == 8

    found = flat(build_run_config({"model": "minilm", "task": "sample", "recipe": "strong", "max_grad_norm": 2.0}))
    assert (found["lora_targets"], found["max_grad_norm"]) == ("all-linear", 2.0)


def test_a_runs_file_asks_for_the_same_run_again(tmp_path: Path) -> None:
    config = parse_run_config(["--model", "minilm", "--task", "sample", "--recipe", "strong", "--lora-r", "4"])
    (tmp_path / "config.yaml").write_text(config_text(config), encoding="utf-8")
    assert parse_run_config(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(("before", "after"), [("original", "strong"), ("strong", "original")])
def test_a_recipe_of_a_flag_takes_the_place_of_the_files(before: str, after: str, tmp_path: Path) -> None:
    kept = ("--model", "minilm", "--task", "sample", "--epochs", "9", "--lora-dropout", "0.3")
    path = tmp_path / "config.yaml"
    path.write_text(config_text(parse_run_config([*kept, "--recipe", before])), encoding="utf-8")
    words = ["--config", str(path), "--recipe", after]
    assert parse_run_config(words) == parse_run_config([*kept, "--recipe", after])
    assert build_run_config({"recipe": after}, path) == parse_run_config(words)
    assert parse_run_config([*words, "--lora-r", "4", "--learning-rate", "0.5"]) == parse_run_config(
        [*kept, "--recipe", after, "--lora-r", "4", "--learning-rate", "0.5"]
    )


def test_the_recipe_that_a_file_has_already_leaves_its_values(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for recipe, line in (("strong", "recipe: strong\n"), ("original", "")):
        path.write_text(f"model: minilm\nlora_r: 4\n{line}", encoding="utf-8")
        assert parse("--config", str(path), "--recipe", recipe)["lora_r"] == 4


def test_recipes_set_no_more_than_the_docs_say_a_flag_of_them_takes_from_a_file() -> None:
    of_lora = {"lora_r", "lora_alpha", "lora_targets"}
    assert of_lora | {"learning_rate", "lr_scheduler", "warmup_ratio", "max_grad_norm"} == SET_BY_RECIPES


def test_unknown_recipes_are_refused_with_those_that_there_are() -> None:
    expected = f"expected {' or '.join(map(repr, RECIPES))}"
    with pytest.raises(ConfigError, match=f"--recipe stronger: {expected}"):
        parse_train_command(["--model", "minilm", "--task", "sample", "--recipe", "stronger"])
    with pytest.raises(ConfigError, match=expected):
        build_run_config({"model": "minilm", "task": "sample", "recipe": "stronger"})


def test_a_folders_model_is_as_large_as_its_files_say(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    assert 0 < (known_parameters(str(folder)) or 0) < 1e6
    assert parse("--model", str(folder), "--recipe", "strong")["learning_rate"] == 1e-3
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    assert known_parameters(str(folder)) is None


def test_a_shard_that_lacks_leaves_the_size_unknown(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors"}}', encoding="utf-8")
    assert known_parameters(str(folder)) is not None
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', encoding="utf-8")
    assert known_parameters(str(folder)) is None


def test_help_is_there_for_a_model_of_unknown_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--model", "owner/name", "--recipe", "strong", "--help")
    assert not ended.value.code
    assert "--recipe strong;" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_size_that_nobody_knows_asks_for_the_learning_rate() -> None:
    with pytest.raises(ConfigError, match=r"--recipe strong: .* of owner/name is not known .* --learning-rate"):
        parse("--model", "owner/name", "--recipe", "strong")
    with pytest.raises(ConfigError, match=r"0\.001 up to 50 M, .*, 0\.0001 beyond\)"):
        build_run_config({"model": "owner/name", "task": "sample", "recipe": "strong"})
    with pytest.raises(ConfigError) as raised:
        parse("--model", "owner/name", "--recipe", "strong", "--epochs", "0")
    assert [issue.partition(":")[0] for issue in raised.value.issues] == ["--recipe strong", "--epochs 0"]
    with pytest.raises(ConfigError) as raised:
        parse("--model", "owner/name", "--recipe", "strong", "--epochs", "many")
    assert [issue.partition(":")[0] for issue in raised.value.issues] == ["--epochs many", "--recipe strong"]
    found = parse("--model", "owner/name", "--recipe", "strong", "--learning-rate", "1e-4")
    assert (found["learning_rate"], found["lora_r"]) == (1e-4, 16)
    assert parse("--model", "owner/name")["learning_rate"] == RunConfig().optim.learning_rate
    with pytest.raises(ConfigError, match="minilm"):  # what is wrong is the name
        parse("--model", "minlm", "--recipe", "strong")
