"""The wire server: `python -m tests.support.wire.server --port 0` prints its port and serves until it is ended.

A provider NAME is at `http://127.0.0.1:PORT/p/NAME` + the tail its base_url has (`base_url`); plain `/v1/embeddings`
is openai too. POST /_plan sets what goes wrong (plan.py), GET /_truth says what was asked, answered and billed, and
how many requests are held, GET /_batches what was uploaded and made (batches.py), GET /_invoice how often each text
was billed at which tier, POST /_reset forgets all.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import math
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from email.utils import formatdate
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.support.wire import vectors
from tests.support.wire.batch_service import BatchService, Lost
from tests.support.wire.batches import Batch, Line
from tests.support.wire.dialects import DIALECTS, TEI_INFO, Asked, Bad, Dialect, Work
from tests.support.wire.plan import Plan

MAX_HANG_S = 600.0
_NAN = "@@NaN@@"
_REASONS = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests"}


@dataclass
class Billed:
    """One request as the server remembers it: the truth an invoice would be made of."""

    number: int
    protocol: str
    model: str
    status: int
    items: int
    tokens_billed: int
    text_hashes: list[str]
    fault: str
    input_type: str | None = None
    dimensions: int | None = None
    key: str | None = None
    tier: str = "standard"
    batch: str | None = None
    line: str | None = None


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Reset(Exception):
    """Close the connection without an answer."""


class Server:
    """Answers, counts, and goes wrong as planned."""

    def __init__(self) -> None:
        self.plan = Plan()
        self.truth: list[Billed] = []
        self.batches = BatchService(self._bill_line)
        self._servers: list[asyncio.Server] = []
        self._next_plan = asyncio.Event()
        self._held = 0

    async def start(self, port: int = 0) -> int:
        """Listen on 127.0.0.1; the port that was taken."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=512)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        self.batches.register.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while (request := await read(reader)) is not None:
                await self._respond(request, writer)
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (Reset, Lost):
            reset(writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if called := self.batches.route(request.method, request.path):
            one, match, what = called
            answer = await self.batches.answer(one, match, what, request.headers, request.path, request.body)
            await send(writer, *answer)
            return
        if request.path.startswith("/_") or request.method == "GET":
            if request.path == "/_reset":
                await settled()
            await send(writer, *self._control(request))
            return
        for one in DIALECTS:
            if match := one.path.fullmatch(request.path):
                await self._embed(one, match, request, writer)
                return
        await send(writer, 404, {}, {"error": {"message": f"no such path: {request.path}"}})

    def _control(self, request: Request) -> tuple[int, dict[str, str], Any]:
        if request.path == "/_plan" and request.method == "POST":
            self._set_plan(Plan(**orjson.loads(request.body)))
            return 200, {}, {}
        if request.path == "/_reset":
            self.truth = []
            self.batches.register.clear()
            self._set_plan(Plan())
            return 200, {}, {}
        if request.path.startswith("/_signed/"):
            return self.batches.signed(request.path.removeprefix("/_signed/"), request.headers)
        if request.path == "/_batches":
            return 200, {}, self.batches.register.truth()
        if request.path == "/_invoice":
            return 200, {}, invoice(self.truth)
        if request.path == "/_truth":
            return 200, {}, {"requests": [asdict(one) for one in self.truth], "held": self._held}
        if request.path == "/p/tei/info":
            return 200, {}, TEI_INFO
        if request.path.endswith("/models"):
            return 200, {}, {"object": "list", "data": [{"id": "local-model", "object": "model"}]}
        return 404, {}, {"error": {"message": f"no such path: {request.path}"}}

    def _set_plan(self, plan: Plan) -> None:
        self.plan = plan
        self.batches.set_plan(plan)
        self._next_plan.set()
        self._next_plan = asyncio.Event()

    async def _embed(self, one: Dialect, match: Any, request: Request, writer: asyncio.StreamWriter) -> None:
        step = self.plan.next(one.name)
        truth = self.truth  # what was sent before a reset is no part of what comes after it
        fault = step["fault"]
        key = request.headers.get(one.key_header, request.headers.get("authorization", "")).removeprefix("Bearer ")
        try:
            asked = one.read(match, request.headers, orjson.loads(request.body))
        except (Bad, KeyError, TypeError, ValueError) as error:
            self._remember(truth, one, Asked("?", []), 400, 0, "bad", key)
            await send(writer, *one.refuse("bad", {"why": str(error), **step}))
            return
        if (planned := self.plan.of(asked.texts)) is not None:
            step, fault = planned, planned["fault"]
        if self.plan.is_held():
            self._held += 1
            await self._next_plan.wait()
            self._held -= 1
        if self.plan.latency_s:
            await asyncio.sleep(self.plan.latency_s)
        if (kind := self._refused(asked, request, key, fault)) is not None:
            if kind in ("reset", "lost"):
                billed = sum(vectors.billed(text) for text in asked.texts) if kind == "lost" else 0
                self._remember(truth, one, asked, 0, billed, kind, key)
                raise Reset
            status, headers, body = one.refuse(kind, {"key": key, **step})
            if fault in ("rate", "status"):
                headers = {**headers, **wait_headers(step)}
            status = step.get("status", status)
            self._remember(truth, one, asked, status, 0, fault if kind == fault else kind, key)
            await send(writer, status, headers, body)
            return
        if fault == "hang_before":
            self._remember(truth, one, asked, 0, 0, fault, key)
            await asyncio.sleep(min(step.get("seconds", 5), MAX_HANG_S))
            raise Reset
        if fault in ("reset_before", "redirect"):
            self._remember(truth, one, asked, 307 if fault == "redirect" else 0, 0, fault, key)
            if fault == "reset_before":
                raise Reset
            await send(writer, 307, {"location": step.get("location", "http://127.0.0.1:9/elsewhere")}, b"")
            return
        tokens = sum(vectors.billed(text) for text in asked.texts)
        await self._answer(truth, one, asked, step, tokens, key, writer)

    def _refused(self, asked: Asked, request: Request, key: str, fault: str) -> str | None:
        plan = self.plan
        total = [vectors.billed(text) for text in asked.texts]
        if plan.keys is not None and key not in plan.keys:
            return "unauthorized"
        if plan.is_too_fast(time.monotonic()):
            return "rate"
        if plan.max_bytes is not None and len(request.body) > plan.max_bytes:
            return "too_large"
        if plan.max_items is not None and len(asked.texts) > plan.max_items:
            return "too_many"
        if plan.max_tokens is not None and any(count > plan.max_tokens for count in total):
            return "too_long"
        if plan.max_request_tokens is not None and sum(total) > plan.max_request_tokens:
            return "too_large"
        if any(isinstance(text, str) and text in plan.poison for text in asked.texts):
            return plan.poison_kind
        if fault == "base64_refused":
            return "base64" if asked.base64 else None
        if fault == "status":
            return "server"
        refusals = ("rate", "quota", "unauthorized", "forbidden", "not_found", "too_large", "too_long")
        return fault if fault in refusals else None

    async def _answer(
        self,
        truth: list[Billed],
        one: Dialect,
        asked: Asked,
        step: dict[str, Any],
        tokens: int,
        key: str,
        writer: asyncio.StreamWriter,
    ) -> None:
        fault = step["fault"]
        native = self.plan.dimensions or vectors.width(asked.model)
        space = self.plan.spaces.get(asked.model, "")
        texts = [text if isinstance(text, str) else vectors.tokens_text(text) for text in asked.texts]
        rows = list(vectors.matrix(texts, native, asked.dimensions, space))
        number = len(truth) + 1
        work = Work(asked, rows, list(range(len(rows))), tokens, f"req-{number}")
        work.headers["x-request-id"] = work.request_id
        spoil(work, step)
        body = orjson.dumps(one.write(work), option=orjson.OPT_SERIALIZE_NUMPY)
        body = body.replace(f'"{_NAN}"'.encode(), b"NaN")
        if fault == "error_200":
            body = orjson.dumps(one.refuse("server", {})[2])
        if fault == "says":
            status, headers, body = says(step, body, key)
            self._remember(truth, one, asked, status, tokens if status == 200 else 0, fault, key)
            await send(writer, status, {**work.headers, **headers}, body)
            return
        self._remember(truth, one, asked, 0 if fault in ("reset_after", "hang") else 200, tokens, fault, key)
        if fault == "reset_after":
            raise Reset
        if fault == "hang":
            await asyncio.sleep(min(step.get("seconds", 5), MAX_HANG_S))
            raise Reset
        if fault == "truncated":
            body = body[: len(body) * 2 // 3]
        if fault == "html":
            work.headers["content-type"] = "text/html"
            body = b"<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>"
        if fault == "huge":
            body = b" " * int(step.get("bytes", 200_000_000)) + body
        await send(writer, 200, work.headers, body, over_s=step.get("seconds", 2) if fault == "drip" else 0)

    def _bill_line(self, batch: Batch, line: Line) -> None:
        dialect = next(one for one in DIALECTS if one.name == batch.dialect)
        self._remember(self.truth, dialect, line.asked, 200, line.tokens, "ok", batch.key)
        billed = self.truth[-1]
        billed.tier, billed.batch, billed.line = "batch", batch.id, line.id

    def _remember(
        self, truth: list[Billed], one: Dialect, asked: Asked, status: int, tokens: int, fault: str, key: str
    ) -> None:
        hashes = [
            blake2b(
                (text if isinstance(text, str) else vectors.tokens_text(text)).encode("utf-8", "surrogatepass"),
                digest_size=16,
            ).hexdigest()
            for text in asked.texts
        ]
        truth.append(
            Billed(
                number=len(truth) + 1,
                protocol=one.name,
                model=asked.model,
                status=status,
                items=len(asked.texts),
                tokens_billed=tokens,
                text_hashes=hashes,
                fault=fault,
                input_type=asked.input_type,
                dimensions=asked.dimensions,
                key=key[-4:] if key else None,
            )
        )


def invoice(truth: list[Billed]) -> dict[str, Any]:
    """What was billed: tokens by model and tier, and by text how often at which tier."""
    texts: dict[str, dict[str, int]] = {}
    models: dict[str, dict[str, int]] = {}
    for one in truth:
        if not one.tokens_billed:
            continue
        spent = models.setdefault(one.model, {"standard": 0, "batch": 0})
        spent[one.tier] += one.tokens_billed
        for text_hash in one.text_hashes:
            times = texts.setdefault(text_hash, {"standard": 0, "batch": 0})
            times[one.tier] += 1
    return {"models": models, "texts": texts}


def spoil(work: Work, step: dict[str, Any]) -> None:
    """Change what is about to be answered as the fault says."""
    fault, rows = step["fault"], work.rows
    match fault:
        case "count":
            del rows[-1], work.index[-1]
        case "extra":
            rows.append(rows[-1])
            work.index.append(len(rows) - 1)
        case "empty":
            rows.clear()
            work.index.clear()
        case "shuffled":
            rows.reverse()
            work.index.reverse()
        case "duplicate" if len(rows) > 1:
            work.index[-1] = 0
        case "no_index":
            work.index[:] = [None] * len(rows)
        case "no_index_0":
            work.index[0] = None
        case "index_from_1":
            work.index[:] = [place + 1 for place in work.index]
        case "usage_missing":
            work.usage = None
        case "usage_zero":
            work.usage = 0
        case "usage_string":
            work.usage = str(work.usage)
        case "usage_characters":
            work.usage = sum(len(text) for text in work.asked.texts)
        case "zero":
            rows[0] = np.zeros_like(rows[0])
        case "width":
            rows[:] = [row[:-1] for row in rows]
        case "ragged":
            rows[-1] = rows[-1][:-1]
        case "floats":
            work.asked.base64 = False
        case "other_model":
            work.asked.model = step.get("model", "another-model")
        case "nan":
            rows[0] = broken(rows[0], math.nan, work.asked.base64)
        case "null":
            rows[0] = None if work.asked.base64 else [None, *rows[0].tolist()[1:]]
        case "string_numbers":
            rows[0] = [str(number) for number in rows[0].tolist()]
        case "base64_length":
            rows[0] = base64.b64encode(rows[0].tobytes()[:-2]).decode()
        case _:
            pass


def says(step: dict[str, Any], body: bytes, key: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body that the plan wants: its own body, or the good one with more in it.

    `{key}` is the key that was sent, without its scheme.
    """
    step = orjson.loads(orjson.dumps(step).replace(b"{key}", key.rpartition(" ")[2].encode()))
    if "body" in step:
        body = step["body"].encode()
    elif "more" in step:
        body = orjson.dumps({**orjson.loads(body), **step["more"]})
    return step.get("status", 200), step.get("headers", {}), body


def broken(row: np.ndarray, value: float, as_base64: bool) -> Any:
    if as_base64:
        return np.concatenate([[value], row[1:]]).astype("<f4")
    return [_NAN, *row.tolist()[1:]]


def wait_headers(step: dict[str, Any]) -> dict[str, str]:
    """The kinds of headers in which providers say when to come back."""
    seconds = step.get("seconds", 1)
    forms = {
        "seconds": {"retry-after": f"{seconds:g}"},
        "date": {"retry-after": formatdate(math.ceil(time.time() + seconds), usegmt=True)},
        "ms": {"retry-after-ms": str(int(seconds * 1000))},
        "reset": {
            "x-ratelimit-limit-requests": "3000",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{int(seconds * 1000)}ms",
            "x-ratelimit-remaining-tokens": "9000",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        "unix": {"x-ratelimit-reset": str(int(time.time() + seconds))},
        "garbage": {"retry-after": "soon"},
    }
    return forms.get(step.get("form", "seconds" if "seconds" in step else "none"), {})


async def read(reader: asyncio.StreamReader) -> Request | None:
    """One HTTP/1.1 request, None when the connection is over."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def send(
    writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: Any, over_s: float = 0
) -> None:
    """Write one answer; in twenty pieces over `over_s` seconds when that is not 0."""
    packed = body if isinstance(body, bytes) else b"" if isinstance(body, Path) else orjson.dumps(body)
    sent = {"content-type": "application/json", "date": formatdate(usegmt=True), **headers}
    sent["content-length"] = str(body.stat().st_size if isinstance(body, Path) else len(packed))
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}", *(f"{n}: {v}" for n, v in sent.items())]
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
    if isinstance(body, Path):
        await send_file(writer, body)
    pieces = 20 if over_s else 1
    step = max(1, math.ceil(len(packed) / pieces))
    for start in range(0, len(packed), step):
        writer.write(packed[start : start + step])
        await writer.drain()
        if over_s:
            await asyncio.sleep(min(over_s, MAX_HANG_S) / pieces)
    await writer.drain()


async def send_file(writer: asyncio.StreamWriter, path: Path) -> None:
    """A file, piece by piece: results may be larger than memory should be."""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            writer.write(piece)
            await writer.drain()


async def settled() -> None:
    """Until all that was sent by now is read: what a client sent before it died is not billed to the next one."""
    for _ in range(20):  # a connection is accepted, read from and answered in a few turns of the loop
        await asyncio.sleep(0)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: the peer reads "connection reset", not an end of file."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve(port: int, with_parent: bool) -> None:
    """Serve until the process is ended, or until standard input is closed, as it is when the parent dies."""
    server = Server()
    print(await server.start(port), flush=True)
    if with_parent:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    else:
        await asyncio.Event().wait()
    await server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--with-parent", action="store_true", help="end when standard input is closed")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, arguments.with_parent))
