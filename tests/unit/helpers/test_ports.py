"""A held port is one at which ranks can meet, and nobody else's."""

import errno
import socket
from datetime import timedelta

import pytest
from limits import HANG_S
from ports import held_port
from torch.distributed import TCPStore


@pytest.mark.parametrize("use_libuv", [True, False])
def test_ranks_can_meet_at_a_held_port(use_libuv: bool) -> None:
    with held_port() as port:
        limit = timedelta(seconds=HANG_S)
        store = TCPStore("127.0.0.1", port, 1, is_master=True, timeout=limit, use_libuv=use_libuv)
        store.set("key", "value")
        assert store.get("key") == b"value"


def test_a_held_port_is_given_to_nobody_else() -> None:
    with held_port() as port, socket.socket() as other:
        with pytest.raises(OSError) as raised:
            other.bind(("127.0.0.1", port))
        assert raised.value.errno == errno.EADDRINUSE
