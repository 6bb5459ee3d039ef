"""The same numbers under every shipped strategy that a CPU can execute; `pytest -s` prints the table."""

import shutil
from pathlib import Path

import comparing
import pytest
from comparing import Comparison

NAMES = {
    "cpu_2ranks": "DDP", "zero1": "DeepSpeed ZeRO-1", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3",
    "zero3_offload": "DeepSpeed ZeRO-3", "fsdp2": "FSDP2",
}  # fmt: skip
MODELS = ("tiny-llama", "tiny-bert")
TOLERANCE = 1e-4  # relative, of float32 sums in another order
MISSING_COMPILER = shutil.which("g++") is None
EVERY_CASE = [pytest.param(config, model, id=f"{config}-{model}") for config in NAMES for model in MODELS]


@pytest.fixture(scope="module")
def comparisons(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Comparison]:
    configs = [config for config in NAMES if not (MISSING_COMPILER and config.startswith("zero"))]
    folders = [models["llama"], models["bert"]]
    base = tmp_path_factory.mktemp("strategies")
    found = comparing.compare_strategies(comparing.launch_on_cpu, "cpu", configs, folders, base)
    print(f"\n\n{comparing.markdown_table(found, reload_tolerance=TOLERANCE)}\n")
    return {(item.config, item.model): item for item in found}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "model"), EVERY_CASE)
def test_two_ranks_give_the_run_of_one_process(
    config: str, model: str, comparisons: dict[tuple[str, str], Comparison]
) -> None:
    if (config, model) not in comparisons:
        pytest.skip("DeepSpeed on the CPU builds an operator: needs g++")
    found = comparisons[config, model]
    assert found.failure is None
    record = found.record
    assert record is not None
    assert (record["strategy"], record["world_size"], record["status"]) == (NAMES[config], 2, "completed")
    assert record["steps"] == 2 * 3, "two windows of sixteen rows and one of five, twice"
    assert [scores["rows"] for scores in (record["before"], *record["history"])] == [11] * 3
    assert found.loss <= TOLERANCE
    assert found.grad_norm <= TOLERANCE
    assert found.scores <= TOLERANCE
    assert found.adapter <= 1e-4
    assert [entry["rank"] for entry in record["memory"]] == [0, 1] and min(found.memory_gb) > 0.1
    assert found.reload <= TOLERANCE


def test_the_table_has_a_line_for_what_failed() -> None:
    printed = "exit 1\nlorabench train: error: no such GPU\nTraceback ...\nChildFailedError: \n====\n"
    record = {"strategy": "DDP", "memory": [{"phases": {"train": {"allocated_gb": None, "rss_gb": 0.5}}}] * 2}
    table = comparing.markdown_table(
        [
            Comparison("zero1", "tiny-bert", printed),
            Comparison("ddp", "tiny-bert", None, record, 1e-7, 2e-7, 0.0, 0.0, 3e-3),
        ],
        reload_tolerance=1e-4,
    )
    failed, differs = table.splitlines()[2:]
    assert failed == "| n/a | zero1.yaml | tiny-bert | failed: lorabench train: error: no such GPU | | | | |"
    assert differs.endswith("| 1e-07 | 2e-07 | 0e+00 | 1: 0.50 GB 2: 0.50 GB | NO (3e-03) |")
