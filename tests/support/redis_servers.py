"""A real Redis, Debian's, on a free port of this machine."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

SERVER = shutil.which("redis-server")
PASSWORD = "CANARY-redis-password"


@dataclass
class RedisServer:
    """A running one."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    @property
    def client(self) -> Any:
        return redis.Redis.from_url(self.url, protocol=2)

    def kept(self) -> list[bytes]:
        with self.client as client:
            return sorted(client.keys())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """With a password, and nothing on the disk; ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(SERVER), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "",
        "--appendonly", "no", "--dir", str(folder),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = RedisServer(port, process)
    try:
        end = time.monotonic() + 120
        while True:
            with suppress(redis.RedisError), found.client as client:
                client.ping()
                break
            assert time.monotonic() < end, "redis-server does not start"
            time.sleep(0.02)
        yield found
    finally:
        if process.poll() is None:
            found.kill()
