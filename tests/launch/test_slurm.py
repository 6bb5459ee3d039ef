"""The Slurm script under stand-ins for `srun` and `scontrol`: one launcher per node, and a job that goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import comparing
import psutil
import pytest
import resuming
from launching import ROOT, explain, offline_environment, read_json
from limits import HANG_S

SCRIPT = ROOT / "scripts" / "slurm_two_nodes.sh"
JOB = "4711"
EPOCHS = 25  # of three steps
# Two tasks on this machine, each of which believes that it is a node.
SRUN = """#!/usr/bin/env bash
while [ "$1" != bash ]; do echo "srun $1" >>"$CALLS"; shift; done
for i in 0 1; do SLURM_NODEID=$i "$@" & tasks[i]=$!; done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
if [ "$1" = show ]; then printf '127.0.0.1\\n127.0.0.1\\n'; fi
"""
# In the place of the environment's python: notes the launch, and leaves a record with the status STATUS.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec {python} "$@"; fi
echo "node $SLURM_NODEID: $*" >>"$CALLS"
mkdir -p "$OUTPUT_DIR"
if [ "$SLURM_NODEID" = 0 ] && [ -n "${{STATUS:-}}" ]; then
    printf '{{"status": "%s"}}' "$STATUS" >"$OUTPUT_DIR/run.json"
fi
exit "${{CODE:-0}}"
"""


@dataclass
class Cluster:
    """Where the stand-ins are, and what was called."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls.log"
        return log.read_text().splitlines() if log.exists() else []

    def submit(self, *flags: str, **variables: str) -> subprocess.Popen[str]:
        """Start the job's script, as Slurm does: a copy in another folder."""
        copy = self.folder / "slurm_script"
        shutil.copy(SCRIPT, copy)
        given = {
            "PATH": os.pathsep.join([str(self.folder), os.environ["PATH"]]), "CALLS": str(self.folder / "calls.log"),
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_CPUS_PER_TASK": "16", "OUTPUT_DIR": str(self.run_dir), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        environment = offline_environment(**{**given, **self.variables, **variables})
        return subprocess.Popen(
            ["bash", str(copy), *flags], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The job's script to its end."""
        return end(self.submit(*flags, **variables))


def end(job: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        stdout, stderr = job.communicate(timeout=HANG_S)
    finally:
        if job.poll() is None:
            for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                process.kill()
    return subprocess.CompletedProcess(job.args, job.returncode, stdout, stderr)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A cluster whose jobs find a python that only notes what it is asked to run."""
    made = Cluster(tmp_path, {"LORABENCH_VENV": str(tmp_path / "venv"), "SLURM_GPUS_ON_NODE": "8"})
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for path, text in (
        (tmp_path / "srun", SRUN), (tmp_path / "scontrol", SCONTROL), (python, PYTHON.format(python=sys.executable)),
    ):  # fmt: skip
        path.write_text(text)
        path.chmod(0o755)
    return made


def launches(cluster: Cluster) -> list[str]:
    return sorted(line for line in cluster.calls if line.startswith("node"))


def test_one_launcher_per_node_meets_at_the_first_host(cluster: Cluster) -> None:
    result = cluster.run("--config_file", "two_nodes_zero3.yaml", "--text-column", "two words", STATUS="completed")
    assert result.returncode == 0, explain(result)
    for rank, line in enumerate(launches(cluster)):
        assert line == (
            f"node {rank}: -m lorabench.launch --machine_rank {rank} --config_file two_nodes_ddp.yaml "
            "--num_machines 2 --num_processes 16 --main_process_ip 127.0.0.1 --main_process_port 24711 "
            f"--config_file two_nodes_zero3.yaml --text-column two words --output-dir {cluster.run_dir}"
        )
    assert len(launches(cluster)) == 2
    # srun gives a task one CPU unless it is told.
    assert "srun --cpus-per-task=16" in cluster.calls
    assert not [call for call in cluster.calls if "requeue" in call]


def test_an_interrupted_job_goes_back_into_the_queue_and_goes_on(cluster: Cluster) -> None:
    assert cluster.run(STATUS="interrupted", CODE="1").returncode == 1
    assert cluster.calls[-1] == f"scontrol requeue {JOB}"
    assert cluster.run(STATUS="completed").returncode == 0
    assert [line.endswith("--resume") for line in launches(cluster)] == [False, True, False, True]
    before = len(launches(cluster))
    result = cluster.run()
    assert result.returncode == 0 and "is complete" in result.stdout
    assert len(launches(cluster)) == before


@pytest.mark.parametrize("status", ["failed", ""])
def test_a_job_that_failed_stays_out_of_the_queue(cluster: Cluster, status: str) -> None:
    assert cluster.run(STATUS=status, CODE="3").returncode == 3
    assert not [call for call in cluster.calls if "requeue" in call]


def test_the_runs_folder_is_the_jobs(cluster: Cluster) -> None:
    result = cluster.run("--output-dir", "elsewhere")
    assert result.returncode == 2 and "expected OUTPUT_DIR=FOLDER" in result.stderr
    assert cluster.calls == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    result = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pkill") is None, reason="the script needs pkill (Debian: procps)")
def test_a_job_at_its_time_limit_leaves_a_checkpoint_and_goes_on(cluster: Cluster, models: dict[str, Path]) -> None:
    """Real launchers; as under Slurm, every process of the step gets SIGUSR1. How the script goes on is told above."""
    flags = comparing.run_flags(models["bert"], cluster.folder, cluster.run_dir, ranks=2, epochs=EPOCHS)
    at = flags.index("--output-dir")
    flags = flags[:at] + flags[at + 2 :]
    real = {"LORABENCH_VENV": sys.prefix, "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": str(os.getpid())}
    job = cluster.submit(*flags, **real)
    try:
        wait_for(lambda: (cluster.run_dir / "metrics.jsonl").exists(), job)
        wait_for(lambda: (cluster.run_dir / "metrics.jsonl").read_bytes().count(b"\n") >= 6, job)
        for process in step_processes(job):
            process.send_signal(signal.SIGUSR1)
        result = end(job)
    finally:
        if job.poll() is None:
            end(job)
    record = read_json(cluster.run_dir / "run.json")
    assert result.returncode != 0 and record["status"] == "interrupted", explain(result)
    assert 0 < record["steps"] < EPOCHS * 3
    assert cluster.calls[-1] == f"scontrol requeue {os.getpid()}"
    assert list((cluster.run_dir / "checkpoints").iterdir())
    ended = resuming.run(resuming.resumed([*flags, "--output-dir", str(cluster.run_dir)]), ranks=2)
    assert ended.code == 0, ended
    again = read_json(cluster.run_dir / "run.json")
    assert (again["status"], again["steps"], again["world_size"]) == ("completed", EPOCHS * 3, 2)
    assert [entry["step"] for entry in again["resumed"]] == [record["steps"]]
    steps = [line["step"] for line in comparing.events(cluster.run_dir) if line["event"] == "train"]
    assert steps == list(range(1, EPOCHS * 3 + 1))


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    until = time.monotonic() + HANG_S
    while not condition():
        assert job.poll() is None and time.monotonic() < until, "the job ended, or did nothing"
        time.sleep(0.02)


def step_processes(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """What Slurm signals: all that `srun` started, but not `srun` and the script."""
    family = psutil.Process(job.pid).children(recursive=True)
    (srun,) = [process for process in family if re.search(r"/srun\b", " ".join(process.cmdline()))]
    return srun.children(recursive=True)
