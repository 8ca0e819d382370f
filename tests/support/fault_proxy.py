"""A proxy in front of a store that does to puts what networks and stores do."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal[
    "drop answer", "drop request", "conflict", "unavailable", "denied", "not implemented", "slow", "expired",
    "other token", "wrong clock", "other region", "malformed", "full", "quota",
]  # fmt: skip

_ANSWERS: dict[Fault, tuple[int, str]] = {
    "conflict": (409, "ConditionalRequestConflict"),
    "unavailable": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "not implemented": (501, "NotImplemented"),
    "expired": (400, "ExpiredToken"),
    "other token": (400, "InvalidToken"),
    "wrong clock": (403, "RequestTimeTooSkewed"),
    "other region": (301, "PermanentRedirect"),
    "malformed": (400, "AuthorizationHeaderMalformed"),
    "full": (507, "XMinioStorageFull"),
    "quota": (403, "QuotaExceeded"),
}


@dataclass
class FaultProxy:
    """Runs in a thread of the test.

    Attributes:
        faults: What happens to the next puts, one each; then they pass.
        always: What happens to every request, whatever it is.
        slow_s: What "slow" means.
        puts: Names that were put to, in order, with what was done.
    """

    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    slow_s: float = 0.03
    puts: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """What happens to this request."""
        with self.lock:
            fault = self.always or (self.faults.pop(0) if method == "PUT" and self.faults else None)
            if method == "PUT":
                self.puts.append((path, fault or "passed"))
            return fault


@contextmanager
def fault_proxy(upstream: int) -> Iterator[FaultProxy]:
    """A proxy before 127.0.0.1:`upstream`."""
    proxy = FaultProxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet: else each answer waits 40 ms for an acknowledgement

        def log_message(self, *said: Any) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.next_fault(self.command, self.path)
            if fault == "drop request":
                return self._hang_up()
            if fault == "slow":
                time.sleep(proxy.slow_s)
            if fault in _ANSWERS:
                status, code = _ANSWERS[fault]
                said = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said)
                return None
            to = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            to.request(self.command, self.path, body, dict(self.headers.items()))
            answer = to.getresponse()
            content = answer.read()
            to.close()
            if fault == "drop answer":
                return self._hang_up()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
            return None

        def _hang_up(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
