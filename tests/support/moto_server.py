"""moto's S3 on a free port. `python -m tests.support.moto_server`: prints the port, ends with stdin.

moto looks whether a name is free, and puts, in two steps: of many racers two may win, which no real S3 allows. Here it
takes one put at a time.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer


def one_at_a_time(name: str) -> None:
    """Let a method of the server's be called by one thread at a time."""
    call, lock = getattr(S3Response, name), threading.Lock()

    def locked(self: S3Response, *args: Any, **more: Any) -> Any:
        with lock:
            return call(self, *args, **more)

    setattr(S3Response, name, locked)


if __name__ == "__main__":
    one_at_a_time("put_object")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
