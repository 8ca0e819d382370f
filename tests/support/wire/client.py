"""Start the wire server in its own process, plan faults, read the truth."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.support.wire import vectors

BASES = {
    "openai": "/v1",
    "gateway": "/v1",
    "voyage": "/v1",
    "mistral": "/v1",
    "jina": "/v1",
    "nomic": "/v1",
    "tldw": "/api/v1",
    "deepinfra": "/v1/openai",
}


@dataclass(frozen=True)
class Wire:
    """A running wire server.

    Attributes:
        port: On 127.0.0.1.
    """

    port: int

    def base_url(self, protocol: str = "openai") -> str:
        """What a provider of this protocol has as its base_url."""
        return f"http://127.0.0.1:{self.port}/p/{protocol}{BASES.get(protocol, '')}"

    def plan(self, **plan: Any) -> None:
        """Replace the running plan (plan.py)."""
        self._call("/_plan", orjson.dumps(plan))

    def reset(self) -> None:
        """Forget plan and truth."""
        self._call("/_reset", b"{}")

    def truth(self) -> list[dict[str, Any]]:
        """Every request since the last reset, as `server.Billed` has it."""
        return orjson.loads(self._call("/_truth"))["requests"]

    def held(self) -> int:
        """Requests that wait for the next plan."""
        return int(orjson.loads(self._call("/_truth"))["held"])

    def billed(self) -> int:
        """Tokens on the invoice."""
        return sum(one["tokens_billed"] for one in self.truth())

    def batches(self) -> dict[str, Any]:
        """{"uploads": […], "batches": […]}: all since the last reset, as `Register.truth` has it."""
        return orjson.loads(self._call("/_batches"))

    def invoice(self) -> dict[str, Any]:
        """{"models": {model: {tier: tokens}}, "texts": {hash: {tier: times}}}; tiers are standard and batch."""
        return orjson.loads(self._call("/_invoice"))

    def bought(self, text: str) -> dict[str, int]:
        """How often one text was billed, at each tier."""
        return self.invoice()["texts"].get(hash_of(text), {"standard": 0, "batch": 0})

    def _call(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return answer.read()


@contextmanager
def started() -> Iterator[Wire]:
    """A wire server in its own process, ended with the block."""
    command = [sys.executable, "-m", "tests.support.wire.server", "--port", "0", "--with-parent"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Wire(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def expected(texts: list[str], model: str, dimensions: int | None = None, space: str = "") -> np.ndarray:
    """The vectors that the server answers with, float32, shape (n, dimensions)."""
    return vectors.matrix(texts, vectors.width(model), dimensions, space)


def hash_of(text: str) -> str:
    """As it stands in the truth's text_hashes."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
