"""`embedctl serve` in a process of its own, as clients reach it; and what must hold of its ledger."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tests.support import forked
from tests.support.wire.client import Wire

MODEL = "text-embedding-3-small"
JSON = "application/json"


@dataclass(frozen=True)
class Reply:
    """An answer, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's word."""
        error = self.json["error"]
        return error if isinstance(error, str) else error["code"]


@dataclass
class Serving:
    """A running server.

    Attributes:
        folder: Holds its home.
        address: Whence it is asked; "": from another one each time, so that no failure of before counts.
    """

    process: forked.Forked
    base: str
    folder: Path
    environment: dict[str, str]
    address: str = ""

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    @property
    def home(self) -> Path:
        return self.folder / "state"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = 60,
        raw: bytes | None = None,
        **headers: str,
    ) -> Reply:
        """One request over a connection of its own; header names with underscores for dashes."""
        address = self.address or f"127.0.{random.randrange(256)}.{random.randrange(1, 255)}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s, source_address=(address, 0))
        sent = {"Content-Type": JSON} if body is not None or raw is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())

    def embed(
        self, inputs: Any = "one small text", *, door: str = "/v1", key: str = "", headers: Any = None, **more: Any
    ) -> Reply:
        """POST /embeddings."""
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": MODEL, "input": inputs, **more}
        return self.ask("POST", f"{door}/embeddings", body, **sent, **(headers or {}))

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 40) -> int:
        """End it with a signal; its exit code, negative when the signal ended it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def log(self) -> list[dict[str, Any]]:
        """What it has logged by now."""
        text = (self.folder / "log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """A command in the same home."""
        return embedctl(self.folder, self.environment, *words)

    def key(self, *flags: object, workspace: str = "acme") -> str:
        """A new key, which the server knows of when this returns."""
        made = make_key(self.folder, self.environment, *flags, workspace=workspace)
        until(lambda: self.ask("GET", "/v1/models").status == 401)
        until(lambda: self.ask("GET", "/v1/models", Authorization=f"Bearer {made}").status == 200)
        return made

    def ledger(self, query: str) -> list[tuple[Any, ...]]:
        """What the ledger answers, once all that waits is taken in; the server must have spooled it."""
        done = self.run("usage", "ingest")
        assert done.returncode == 0, done.stderr
        with duckdb.connect(str(self.home / "usage.duckdb"), read_only=True) as connection:
            return connection.execute(query).fetchall()


def environment(folder: Path, wire: Wire | None, **more: str) -> dict[str, str]:
    """Of a server and of commands in the same home."""
    found = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")},
        "HOME": str(folder / "home"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "EMBEDCTL_HOME": str(folder / "state"),
        "EMBEDCTL_CANARY": "off",
        "OPENAI_API_KEY": "sk-provider-0123456789abcdef",
    }
    if wire is not None:
        found["OPENAI_BASE_URL"] = wire.base_url()
    return found | more


def embedctl(folder: Path, env: Mapping[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """A command, ended."""
    return forked.run(folder, env, *words)


def make_key(folder: Path, env: Mapping[str, str], *flags: object, workspace: str = "acme") -> str:
    """A new key in this home."""
    done = embedctl(folder, env, "keys", "create", "--workspace", workspace, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


def write_settings(folder: Path, text: str) -> Path:
    """The user's settings of this home."""
    path = folder / "config" / "embedctl" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


@contextmanager
def serving(
    folder: Path,
    wire: Wire | None,
    *flags: object,
    settings: str = "",
    constants: Mapping[str, Any] | None = None,
    **more: str,
) -> Iterator[Serving]:
    """A server in a process of its own, ended with the block.

    Args:
        constants: `module:NAME` → what it is there.
        more: Environment variables.
    """
    folder.mkdir(exist_ok=True)
    if settings:
        write_settings(folder, settings)
    env = environment(folder, wire, **more)
    with started(folder, env, *flags, constants=constants) as server:
        yield server


@contextmanager
def started(
    folder: Path, env: dict[str, str], *flags: object, constants: Mapping[str, Any] | None = None
) -> Iterator[Serving]:
    """The same, in a home that is there."""
    with tempfile.NamedTemporaryFile() as out:
        words = ("serve", "--port", "0", *flags)
        log = folder / "log"
        process = forked.Forked(folder, env, words, out=Path(out.name), err=log, constants=constants)
        line = process.first_line()
    try:
        assert line.startswith("listening on http"), (folder / "log").read_text()
        yield Serving(process, line.split()[-1], folder, env)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(holds: Callable[[], bool], *, seconds: float = 120) -> None:
    """Wait until something holds; how long that takes is nobody's business, but for ever is."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


BILL = """
SELECT coalesce(sum(tokens_total) FILTER (billable = 'yes' AND entry_kind = 'usage'), 0)::BIGINT,
       coalesce(sum(tokens_estimated) FILTER (billable = 'unknown' AND entry_kind = 'usage'), 0)::BIGINT,
       count(*) FILTER (entry_kind = 'usage'), count(*) FILTER (entry_kind = 'cache_hit')
FROM usage_event
"""


@dataclass
class Bill:
    """What the ledger says in all."""

    confirmed: int
    unknown: int
    attempts: int
    hits: int
    more: dict[str, Any] = field(default_factory=dict)


def bill(server: Serving) -> Bill:
    """Of a server that has ended."""
    return Bill(*server.ledger(BILL)[0])
