"""Over which interface the hosts of a launch find each other."""

import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lorabench.machine import network
from lorabench.machine.network import choose_interface, interface_towards


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


def test_a_first_machine_whose_own_name_is_its_loopback_takes_the_default_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian maps a host's own name to 127.0.1.1: there no other machine could meet it."""
    routes = {"node1": "127.0.1.1", network._ELSEWHERE: "10.0.1.5"}
    known = {"eth0": ["10.0.0.5"], "ib0": ["10.0.1.5", "fe80::1"]}
    addresses(monkeypatch, "", lo=["127.0.0.1", "::1"], **known)
    monkeypatch.setattr(network, "_own_address", routes.get)
    assert interface_towards("node1") == "ib0"


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


@pytest.mark.parametrize(
    ("ranks", "here", "chosen", "expected"),
    [("4", "2", None, "ib0"), ("4", "2", "eth7", "eth7"), ("2", "2", None, None), (None, None, None, None)],
)
def test_gloo_takes_that_interface_on_several_machines_unless_one_was_chosen(
    ranks: str | None, here: str | None, chosen: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "MASTER_ADDR": "10.0.0.1", "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": here, "GLOO_SOCKET_IFNAME": chosen,
    }  # fmt: skip
    environment = {name: value for name, value in given.items() if value is not None}
    monkeypatch.setattr(network.os, "environ", environment)
    monkeypatch.setattr(network, "interface_towards", {"10.0.0.1": "ib0"}.__getitem__)
    choose_interface()
    assert environment.get("GLOO_SOCKET_IFNAME") == expected
