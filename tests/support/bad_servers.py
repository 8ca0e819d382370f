"""Servers that are none: they take a connection and do not behave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SAYS = {
    "silent": b"",
    "nonsense": b"\x00\xff\xfe nonsense, and no line end",
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "not_here": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 7\r\n\r\nwelcome",
    "busy": b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    "endless": b"+" + b"a" * 65_536,
}
"""What each says to whoever connects; `endless` again and again, `silent` nothing, and none of them hangs up."""


@contextmanager
def bad_server(kind: str) -> Iterator[int]:
    """Its port; `refuses`: nobody listens there."""
    if kind == "refuses":
        with socket.socket() as nobody:  # bound, and not listening: no other server gets the port meanwhile
            nobody.bind(("127.0.0.1", 0))
            yield nobody.getsockname()[1]
        return
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    over, open_ones = threading.Event(), []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):
            if kind in ("http", "not_here", "page", "busy"):
                connection.recv(65_536)
            connection.sendall(SAYS[kind])
            while kind == "endless" and not over.is_set():
                connection.sendall(SAYS[kind][1:])
            over.wait()

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                open_ones.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield port
    finally:
        over.set()
        for one in (listening, *open_ones):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
