"""Two machines for real: network namespaces, joined by a veth pair, that share the disk and nothing else.

Each has its own network, loopback and host name, and starts its own `accelerate launch`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comparing
import forking
import pytest
from launching import CONFIGS, ROOT, offline_environment, read_json
from limits import HANG_S

from lorabench import cli

ADDRESSES = ("10.203.0.1", "10.203.0.2")
PORT = 29500
TOLERANCE = 1e-4
# A host name for the node in whose namespace it runs; then the command itself.
AS_HOST = 'hostname "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Node:
    """One of the two machines.

    Attributes:
        rank: its `--machine_rank`.
        namespace: its network namespace, and its host name.
        interface: its end of the veth pair.
    """

    rank: int
    namespace: str
    interface: str

    def start(self, command: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
        """Run a command on it, in the project's folder; what it prints goes to `log`."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", AS_HOST, "sh", self.namespace]
        environment = offline_environment(
            CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME=self.interface
        )
        with log.open("wb") as output:
            return subprocess.Popen(
                [*inside, *map(str, command)], cwd=ROOT, env=environment, stdout=output, stderr=output
            )


def ip(*words: str) -> None:
    """Run `ip`. Raises `CalledProcessError`, with what it printed, if it fails."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=HANG_S)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other at `ADDRESSES`; gone afterwards, with whatever still runs on them."""
    missing = [tool for tool in ("ip", "unshare", "hostname") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"network namespaces need {', '.join(missing)} (Debian: iproute2, util-linux, hostname)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    pair = tuple(Node(i, f"lorabench-{os.getpid()}-node{i}", f"lb{os.getpid() % 10**8}n{i}") for i in range(2))
    try:
        try:
            for node in pair:
                ip("netns", "add", node.namespace)
            near, far = pair
            ends = (near.interface, "netns", near.namespace, far.interface, "netns", far.namespace)
            ip("link", "add", *ends[:3], "type", "veth", "peer", "name", *ends[3:])
            for node, address in zip(pair, ADDRESSES, strict=True):
                ip("-n", node.namespace, "address", "add", f"{address}/30", "dev", node.interface)
                ip("-n", node.namespace, "link", "set", node.interface, "up")
                ip("-n", node.namespace, "link", "set", "lo", "up")
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
        yield pair
    finally:
        for node in pair:
            remove(node)


def remove(node: Node) -> None:
    """End what still runs in the namespace, and delete it; the veth pair goes with it."""
    found = subprocess.run(["ip", "netns", "pids", node.namespace], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", node.namespace], capture_output=True, check=False)


def launch_on_both(
    nodes: tuple[Node, Node], options: Sequence[object], program: Sequence[object], logs: Path
) -> list[int]:
    """`accelerate launch` on both nodes, one rank on each. Returns the launchers' exit codes."""
    machines = ["--num_machines", 2, "--num_processes", 2, "--main_process_ip", ADDRESSES[0]]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *machines, "--main_process_port", PORT]
    logs.mkdir(parents=True, exist_ok=True)
    launchers = [
        node.start([*command, "--machine_rank", node.rank, *program], logs / f"node{node.rank}.log") for node in nodes
    ]
    try:
        return [launcher.wait(HANG_S) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()


@pytest.fixture(scope="module")
def base(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the run of one process to compare with."""
    folder = tmp_path_factory.mktemp("nodes")
    comparing.runs_of_one_process([models["llama"]], folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("config", "strategy"), [("two_nodes_ddp", "DDP"), ("zero2", "DeepSpeed ZeRO-2")])
def test_two_nodes_give_the_run_of_one_process(
    config: str, strategy: str, nodes: tuple[Node, Node], base: Path, models: dict[str, Path]
) -> None:
    def launch(config: str, program: Sequence[str]) -> None:
        logs = base / f"{config}-logs"
        codes = launch_on_both(nodes, ["--config_file", CONFIGS / f"{config}.yaml"], program, logs)
        assert codes == [0, 0], "\n".join(path.read_text()[-4000:] for path in sorted(logs.iterdir()))

    comparing.train_models(launch, config, [models["llama"]], base, ranks=2)
    run = base / config / models["llama"].name
    found = comparing.compare_with(config, run, base / "here")
    assert found.failure is None
    record = read_json(run / "run.json")
    assert (record["strategy"], record["world_size"], record["status"]) == (strategy, 2, "completed")
    hosts = [(entry["rank"], entry["host"]) for entry in record["memory"]]
    assert hosts == [(node.rank, node.namespace) for node in nodes]
    assert max(found.loss, found.grad_norm, found.scores, found.reload) <= TOLERANCE
    assert record["best"]["rows"] == comparing.VALIDATION_ROWS


def test_a_folder_in_use_is_refused_on_both_nodes(models: dict[str, Path], tmp_path: Path) -> None:
    """A node that refused alone would leave the other one waiting for it: ranks that are each the first of a node."""
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").touch()
    flags = comparing.run_flags(models["llama"], tmp_path, used, ranks=2)
    ended = forking.run(cli.train, [flags], 2, "cpu_2ranks", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    assert ended.code == 2, ended
    for said in (ended.stderr, ended.others):
        assert said.count(f"--output-dir {used}: in use") == 1, ended
