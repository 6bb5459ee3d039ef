"""The same numbers under every shipped strategy that a CPU can execute; `pytest -s` prints the table."""

from pathlib import Path

import comparing
import pytest
from comparing import STRATEGIES, Comparison

# By `accelerate launch`, each engine once; of the others, only the launch file is another. DDP: test_end_to_end.py.
LAUNCHED = ("zero3", "fsdp2")


@pytest.fixture(scope="module")
def folders(models: dict[str, Path]) -> list[Path]:
    return [models["llama"], models["bert"]]


@pytest.fixture(scope="module")
def one_process(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comparing.runs_of_one_process(folders, tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize("config", STRATEGIES)
def test_two_ranks_give_the_run_of_one_process(
    config: str, folders: list[Path], one_process: Path, tmp_path: Path
) -> None:
    start = comparing.launch_on_cpu if config in LAUNCHED else comparing.fork_on_cpu
    for record in comparing.assert_run_of_one_process_on_cpu(start, config, folders, one_process, tmp_path):
        assert [scores["rows"] for scores in (record["before"], *record["history"])] == [11] * 3


@pytest.mark.slow
def test_adapters_that_zero3_splits_and_fetches_ahead_are_saved(folders: list[Path], tmp_path: Path) -> None:
    """Of r = 16 the matrices have more numbers than DeepSpeed keeps whole."""
    one_process = comparing.runs_of_one_process(folders[:1], tmp_path / "one", lora_r=16)
    comparing.assert_run_of_one_process_on_cpu(
        comparing.fork_on_cpu, "zero3", folders[:1], one_process, tmp_path, lora_r=16
    )


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
