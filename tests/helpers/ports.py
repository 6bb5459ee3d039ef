"""Ports for ranks to meet at, which no other process of this machine is given meanwhile."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A port of this machine: the system gives it to nobody else while it is held here.

    Who knows its number may listen on it all the same, if it asks for SO_REUSEADDR as PyTorch's stores do: the port is
    bound here, and nobody listens on it. A port that was merely free a moment ago may be another test's by then.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
