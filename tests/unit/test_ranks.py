"""How the hosts of a launch over several machines find each other."""

import socket
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch
from accelerate import Accelerator

from lorabench import ranks
from lorabench.errors import PeerLostError
from lorabench.ranks import Ranks, interface_towards


def addresses(monkeypatch: pytest.MonkeyPatch, own: str, **interfaces: list[str]) -> list[Any]:
    """This machine reaches everything from `own`; what was connected to is returned."""
    connected: list[Any] = []

    class Probe:
        def __enter__(self) -> "Probe":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def connect(self, address: Any) -> None:
            connected.append(address)

        def getsockname(self) -> tuple[str, int]:
            return own, 1

    table = {name: [entry_of(address) for address in entries] for name, entries in interfaces.items()}
    monkeypatch.setattr(socket, "socket", lambda *_: Probe())
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: table)
    return connected


def entry_of(address: str) -> SimpleNamespace:
    return SimpleNamespace(address=address, family=socket.AF_INET6 if ":" in address else socket.AF_INET)


@pytest.mark.parametrize(("outward", "expected"), [(["eth0"], "eth0"), (["eth0", "ib0"], None)])
def test_a_first_machine_whose_own_name_is_its_loopback_takes_the_only_way_out(
    outward: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian maps a host's own name to 127.0.1.1: there no other machine could meet it."""
    known = {name: [f"10.0.{i}.5", "fe80::1"] for i, name in enumerate(outward)}
    addresses(monkeypatch, "127.0.1.1", lo=["127.0.0.1", "::1"], **known)
    assert interface_towards("node1") == expected


def test_the_interface_of_the_route_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = addresses(monkeypatch, "10.0.0.5", lo=["127.0.0.1"], eth0=["192.168.1.5"], ib0=["10.0.0.5", "fe80::1"])
    assert interface_towards("10.0.0.1") == "ib0"
    assert [address for address, _ in connected] == ["10.0.0.1"]


def test_an_address_that_no_interface_has_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses(monkeypatch, "10.0.0.9", lo=["127.0.0.1"], eth0=["10.0.0.5"])
    assert interface_towards("10.0.0.1") is None


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_machines_that_are_processes_of_one_host_meet_on_its_loopback(address: str) -> None:
    found = interface_towards(address)
    assert found is not None
    assert "127.0.0.1" in [entry.address for entry in psutil.net_if_addrs()[found]]


def test_a_name_that_cannot_be_resolved_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert interface_towards("no-such-host.invalid") is None


# --- a peer that is gone


def test_a_question_that_a_lost_rank_cannot_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ranks, "_build_host_group", lambda spans_machines: object())
    monkeypatch.setattr(ranks.distributed, "all_reduce", broken)
    with pytest.raises(PeerLostError, match="another rank has ended"):
        Ranks(launched(2)).any(False)


# --- which machines


def launched(world_size: int) -> Accelerator:
    return cast(
        Accelerator,
        SimpleNamespace(
            process_index=1, num_processes=world_size, device=torch.device("cpu"), is_main_process=False
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("local", "world_size", "spans"),
    [("4", 8, True), ("1", 2, True), ("8", 8, False), (None, 2, False), ("", 2, False)],
)
def test_a_launch_spans_machines_when_fewer_ranks_are_here_than_there_are(
    local: str | None, world_size: int, spans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    asked: list[bool] = []
    monkeypatch.setattr(ranks, "_build_host_group", lambda spans_machines: asked.append(spans_machines))
    assert Ranks(launched(world_size)).spans_machines is spans
    assert asked == [spans]


@pytest.mark.parametrize(
    ("spans", "chosen", "expected"), [(True, None, "ib0"), (True, "eth7", "eth7"), (False, None, None)]
)
def test_gloo_takes_that_interface_unless_one_was_chosen(
    spans: bool, chosen: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MASTER_ADDR": "10.0.0.1", **({} if chosen is None else {"GLOO_SOCKET_IFNAME": chosen})}
    monkeypatch.setattr(ranks.os, "environ", environment)
    monkeypatch.setattr(ranks, "interface_towards", {"10.0.0.1": "ib0"}.__getitem__)
    monkeypatch.setattr(ranks.distributed, "new_group", lambda backend: seen.append((backend, dict(environment))))
    seen: list[tuple[str, dict[str, str]]] = []
    with pytest.raises(RuntimeError, match="not in a group"):
        ranks._build_host_group(spans)
    assert seen[0][0] == "gloo" and seen[0][1].get("GLOO_SOCKET_IFNAME") == expected
