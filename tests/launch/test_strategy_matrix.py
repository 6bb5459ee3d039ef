"""The same numbers under every shipped strategy that a CPU can execute; `pytest -s` prints the table."""

from pathlib import Path

import comparing
import pytest
from comparing import STRATEGIES, Comparison

MODELS = ("tiny-llama", "tiny-bert")
EVERY_CASE = [pytest.param(config, model, id=f"{config}-{model}") for config in STRATEGIES for model in MODELS]


@pytest.fixture(scope="module")
def comparisons(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Comparison]:
    folders = [models["llama"], models["bert"]]
    return comparing.compare_on_cpu(STRATEGIES, folders, tmp_path_factory.mktemp("strategies"))


@pytest.mark.slow
@pytest.mark.parametrize(("config", "model"), EVERY_CASE)
def test_two_ranks_give_the_run_of_one_process(
    config: str, model: str, comparisons: dict[tuple[str, str], Comparison]
) -> None:
    if (config, model) not in comparisons:
        pytest.skip("DeepSpeed on the CPU builds an operator: needs g++")
    record = comparing.assert_run_of_one_process(comparisons[config, model])
    assert [scores["rows"] for scores in (record["before"], *record["history"])] == [11] * 3


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
