"""Over which network interface the hosts of a launch talk to each other."""

import os
import socket

import psutil

# Reserved for documentation: nobody answers there, and nothing is sent; the route to it is the default one.
_ELSEWHERE = "192.0.2.1"


def choose_interface() -> None:
    """Tell gloo the interface that leads to the first machine, where there are several and nobody has said it.

    Left alone, gloo takes the interface of the host's own name, which many systems map to the loopback. To be called
    before any process group exists.
    """
    ranks, here = (int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks > here:
        interface = interface_towards(os.environ.get("MASTER_ADDR", ""))
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_towards(address: str) -> str | None:
    """The network interface from which this machine reaches `address`; None if there is no telling.

    The first machine may map its own name to the loopback, where no other machine would reach it: then the default
    route's interface is taken.
    """
    own = _own_address(address)
    if own is not None and is_loopback(own) and not is_loopback(address):
        own = _own_address(_ELSEWHERE)
    for name, addresses in psutil.net_if_addrs().items():
        if own is not None and any(entry.address == own for entry in addresses):
            return name
    return None


def is_loopback(address: str) -> bool:
    """Whether an address stays on this machine whatever a machine's own name stands for."""
    return address == "localhost" or address.startswith("127.")


def _own_address(towards: str) -> str | None:
    """This machine's address on the route to another; a datagram socket only looks the route up."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))
            return probe.getsockname()[0]
    except OSError:
        return None
