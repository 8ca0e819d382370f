"""The bundled model behind an OpenAI-compatible server, which can be changed in the ways that a provider's may be."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from embedctl.tokens import asset, tokenizer_file

States = list[NDArray[np.float32]]
"""For each text: what the model makes of its tokens, shape (tokens, 384)."""

MATRICES = (384 * 384, 384 * 1536, 30522 * 384)
"""Numbers in the model's matrices, kept as bytes."""


def rounded(numbers: NDArray[Any], bits: int) -> NDArray[Any]:
    """Numbers with so many bits behind the first: 10 are half precision, 7 bfloat16, 3 fp8 (e4m3), 2 fp8 (e5m2)."""
    fraction, exponent = np.frexp(np.asarray(numbers, np.float64))
    return np.ldexp(np.round(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


@cache
def _session(bits: int | None = None) -> Any:
    """The model; with `bits`, its matrices rounded."""
    content = asset("minilm/model.onnx").read_bytes()
    return onnxruntime.InferenceSession(content if bits is None else _coarse(content, bits))


def _coarse(content: bytes, bits: int) -> bytes:
    """The model's file with the bytes of its matrices rounded: `raw_data` is field 9 of a TensorProto."""
    whole, places = bytearray(content), 0
    for size in MATRICES:
        mark, at = b"\x4a" + _varint(size), 0
        while (at := content.find(mark, at)) >= 0:
            start = at + len(mark)
            signed = np.frombuffer(content, np.uint8, size, start).astype(np.int16) - 127  # about the zero point
            whole[start : start + size] = np.clip(rounded(signed, bits) + 127, 0, 255).astype(np.uint8).tobytes()
            places, at = places + 1, start + size
    assert places, "no matrix was found"
    return bytes(whole)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@cache
def _tokenizer(lower: bool = True) -> Any:
    from tokenizers import Tokenizer

    if lower:
        return tokenizer_file(asset("minilm/tokenizer.json"))
    said = json.loads(asset("minilm/tokenizer.json").read_text("utf-8"))
    said["normalizer"]["lowercase"] = False
    said["padding"] = said["truncation"] = None
    return Tokenizer.from_str(json.dumps(said))


def states(texts: Sequence[str], *, cut: int | None = None, lower: bool = True, bits: int | None = None) -> States:
    """What the model makes of texts.

    Args:
        cut: Most tokens of a text.
        lower: Texts are made lower case, as the model was trained.
        bits: Of its weights.
    """
    found = []
    for encoding in _tokenizer(lower).encode_batch_fast(list(texts)):
        ids = np.array([encoding.ids if cut is None else [*encoding.ids[: cut - 1], encoding.ids[-1]]])
        if cut is not None and len(encoding.ids) <= cut:
            ids = np.array([encoding.ids])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        session = _session(bits)
        names = {one.name for one in session.get_inputs()}
        found.append(session.run(None, {name: feed[name] for name in names})[0][0])
    return found


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Divided by their lengths."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def mean(found: States) -> NDArray[np.float32]:
    """The model's own pooling."""
    return unit(np.stack([one.mean(axis=0) for one in found]))


Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def as_it_is(texts: Sequence[str]) -> NDArray[np.float32]:
    """The model, unchanged."""
    return mean(states(texts))


@cache
def _one(embed: Embed, text: str) -> NDArray[np.float32]:
    return embed([text])[0]


@dataclass
class ModelServer:
    """A running server.

    Attributes:
        embed: What it makes of texts; `version` what it calls its model. Both may be changed.
        asked: The texts of each request.
        fail: Statuses that it answers the next requests with.
        before: Told the texts of each request before it is answered.
        tokens: That it has billed.
    """

    port: int = 0
    embed: Embed = as_it_is
    version: str = "all-MiniLM-L6-v2"
    asked: list[list[str]] = field(default_factory=list)
    fail: list[int] = field(default_factory=list)
    before: Callable[[list[str]], object] = lambda texts: None
    tokens: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def restore(self) -> None:
        """As it was at first, and nothing was asked."""
        self.embed, self.version = as_it_is, "all-MiniLM-L6-v2"
        self.asked, self.fail, self.tokens = [], [], 0

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        self.asked.append(texts)
        self.before(texts)
        if self.fail:
            return self.fail.pop(0), {"error": {"message": "not now"}}
        vectors = np.stack([_one(self.embed, text) for text in texts])
        used = sum(len(one.ids) for one in _tokenizer().encode_batch_fast(texts))
        self.tokens += used
        data = [
            {"index": at, "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()}
            for at, row in enumerate(vectors)
        ]
        return 200, {"data": data, "model": self.version, "usage": {"prompt_tokens": used, "total_tokens": used}}


@contextmanager
def served() -> Iterator[ModelServer]:
    """A server in a thread of this process."""
    server = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, content = server.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
