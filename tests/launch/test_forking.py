"""Ranks that tests fork are told what `accelerate launch` tells its own."""

import json
import os
from pathlib import Path

import forking
import pytest
import torch
from launching import CONFIGS, ROOT, explain, launch

# Of the process or the meeting place, and not of what was asked for.
OWN = {"MASTER_PORT", "PWD", "OLDPWD", "_", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"}
# About its agent, groups and roles, and about NCCL.
TORCHRUN = ("TORCHELASTIC_", "GROUP_", "ROLE_", "TORCH_NCCL_")


def write_environment(folder: str) -> None:
    """As a rank."""
    path = Path(folder) / f"{os.environ['RANK']}.json"
    path.write_text(json.dumps(dict(os.environ)), encoding="utf-8")


@pytest.mark.parametrize("config", ["cpu_2ranks", "zero3", "fsdp2"])
def test_the_environment_is_that_of_a_launch(config: str, tmp_path: Path) -> None:
    real, forked = tmp_path / "real", tmp_path / "forked"
    program = tmp_path / "program.py"
    real.mkdir()
    forked.mkdir()
    program.write_text(
        "import json, os, pathlib\n"
        f"path = pathlib.Path({str(real)!r}) / (os.environ['RANK'] + '.json')\n"
        "path.write_text(json.dumps(dict(os.environ)))\n"
    )
    launched = launch(["--config_file", CONFIGS / f"{config}.yaml"], [program], ROOT)
    assert launched.returncode == 0, explain(launched)
    ended = forking.run(write_environment, [str(forked)], ranks=2, config=config)
    assert ended.code == 0, ended
    for rank in range(2):
        told, mine = (json.loads((folder / f"{rank}.json").read_text()) for folder in (real, forked))
        differing = {name for name in told.keys() | mine.keys() if told.get(name) != mine.get(name)}
        assert {name for name in differing if not name.startswith(TORCHRUN)} <= OWN


def join(folder: str) -> None:
    """As a rank of DeepSpeed."""
    import deepspeed

    os.environ["TORCH_EXTENSIONS_DIR"] = folder
    deepspeed.init_distributed(dist_backend="gloo")
    torch.distributed.destroy_process_group()


def test_ranks_of_deepspeed_compile_nothing(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    ended = forking.run(join, [str(tmp_path)], ranks=2, config="zero3")
    assert ended.code == 0, ended
    assert list(tmp_path.iterdir()) == []
