"""Ranks that fill their parts of a model have the weights of one process, bit by bit, and no more than their parts."""

import json
from pathlib import Path

import filled
import forking
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

STRATEGIES = ("fsdp2", "zero3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models without a head in one file, and one with a head in several."""
    base = tmp_path_factory.mktemp("models")
    headed = tiny.tiny_config("roberta", num_labels=2)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(headed)
    tiny.stir_vectors(model)
    model.save_pretrained(base / "roberta", max_shard_size="60KB")
    tiny.tiny_tokenizer("roberta").save_pretrained(base / "roberta")
    assert len(list((base / "roberta").glob("*.safetensors"))) > 2
    return [tiny.save_tiny(base / "llama", "llama"), tiny.save_tiny(base / "bert", "bert"), base / "roberta"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return tiny.write_rows(folder / "train.csv", 16), tiny.write_rows(folder / "validation.csv", 8, seed=1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_fsdp2_splits_the_weights_of_one_process(ranks: int, folders: list[Path], tmp_path: Path) -> None:
    read = [(str(folder), "pretrained") for folder in folders]
    drawn = [(name, "random") for name in ("llama", "bert", "modernbert", "gemma3")]
    ended = forking.run(filled.compare_fsdp2, [tmp_path / "meeting", [*read, *drawn]], ranks)
    assert ended.code == 0, f"{ended}\n{ended.others}"


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_begins_with_the_weights_of_one_process(
    strategy: str, ranks: int, folders: list[Path], rows: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = [(str(folder), "pretrained") for folder in folders] + [("minilm", "random")]
    flags = [
        tiny.run_flags(model, *rows, tmp_path / f"run{i}", weights=weights, max_steps=1, batch_size=2)
        for i, (model, weights) in enumerate(asked)
    ]
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    ended = forking.run(filled.compare_in_runs, [tmp_path / "flags.json"], ranks, strategy)
    assert ended.code == 0, f"{ended}\n{ended.others}"
    assert ended.stdout.count("the same: ") == len(asked)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_ranks_together_hold_the_model_once(
    strategy: str, weights: str, rows: tuple[Path, Path], tmp_path: Path
) -> None:
    """180 MB over two ranks, where PEFT's and DeepSpeed's own objects take 10 more on each. A small run before it has
    imported and allocated what every run does.
    """
    shape = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=20, num_attention_heads=8)
    large, small = (tmp_path / name for name in ("large", "small"))
    tiny.save_tiny(large, "llama", stirred=False, **shape)
    tiny.save_tiny(small, "llama")
    flags = [
        tiny.run_flags(model, *rows, tmp_path / f"run-{model.name}", weights=weights, max_steps=1, batch_size=1)
        for model in (small, large)
    ]
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    told = tmp_path / "memory"
    ended = forking.run(filled.measure_memory, [tmp_path / "flags.json", told, True], 2, strategy)
    assert ended.code == 0, f"{ended}\n{ended.others}"
    taken, whole = zip(*(json.loads(Path(f"{told}.{rank}").read_text()) for rank in range(2)), strict=True)
    print(strategy, weights, [round(taken_here / whole[0], 3) for taken_here in taken], round(whole[0] / 1e6), "MB")
    assert 1.5e8 < whole[0] < 3e8
    assert sum(taken) < 1.3 * whole[0]
