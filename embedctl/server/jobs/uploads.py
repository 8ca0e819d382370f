"""Bodies that go to the disk while they come, raw or a file in a form: never larger than allowed, never in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import Any

import orjson
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from embedctl.dataclass import dataclass
from embedctl.server import answers
from embedctl.server.refusals import Refused

_MOST_FIELDS = 32
_MOST_FIELD = 4096
_MOST_NAME = 255
_LONGEST_LINE = 64 << 20
_WRITES = 1 << 20
PARQUET = b"PAR1"


@dataclass(slots=True)
class Form:
    """A form with one file.

    Attributes:
        fields: Its other fields, as text.
        filename: As the client says it: shown, never used as a path.
    """

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    bytes: int = 0


def check_length(request: Request, most: int) -> None:
    """Raises Refused when a body says that it is larger than it may be, or how it is compressed."""
    if answers.exchange(request).headers.get("content-encoding", "identity") != "identity":
        raise Refused("unsupported_media_type", "the body must not be compressed")
    length = answers.exchange(request).headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > most):
        raise _too_large(most)


def _too_large(most: int) -> Refused:
    return Refused("body_too_large", f"the body is larger than {most} bytes")


@contextmanager
def _created(path: Path) -> Any:
    """A new file, synced at the end; nothing is left of it when that is not reached."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


async def save(request: Request, path: Path, most: int) -> int:
    """A raw body into a new file; its bytes.

    Raises:
        Refused: It is larger than `most`, or the disk refuses.
    """
    total = 0
    try:
        with _created(path) as file:
            async for piece in _pieces(request):
                total += len(piece)
                if total > most:
                    raise _too_large(most)
                await asyncio.to_thread(file.write, piece)
    except OSError as problem:
        raise _no_disk(problem) from None
    return total


def _no_disk(problem: OSError) -> Refused:
    return Refused("storage_failed", "the server cannot keep the upload", reason=str(problem))


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a write."""
    waiting = bytearray()
    async for piece in request.stream():
        waiting += piece
        if len(waiting) >= _WRITES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def save_form(request: Request, path: Path, most: int) -> Form:
    """The file of a form, `file`, into a new file; the other fields.

    Raises:
        Refused: It is no such form, or larger than it may be.
    """
    kind, options = parse_options_header(answers.exchange(request).headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary or len(boundary) > 200:
        raise Refused("unsupported_media_type", "the body must be a form: multipart/form-data")
    form = Form()
    try:
        with _created(path) as file:
            reading = _FormReader(form, file.write, most)
            parser = MultipartParser(boundary, reading.callbacks())  # type: ignore[arg-type]
            async for piece in _pieces(request):
                await asyncio.to_thread(parser.write, piece)
            if not reading.is_whole:
                raise Refused("invalid_json", "the form ends before it is complete")
            if not reading.has_file:
                raise Refused("invalid_file", "the form has no file", param="file")
    except FormParserError:
        raise Refused("invalid_json", "the body is no form") from None
    except OSError as problem:
        raise _no_disk(problem) from None
    return form


class _FormReader:
    """Takes what the parser finds: the file's bytes go on, fields are kept."""

    def __init__(self, form: Form, write: Callable[[bytes], object], most: int) -> None:
        self._form = form
        self._write = write
        self._most = most
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._content = bytearray()
        self._is_file = False
        self.has_file = False
        self.is_whole = False

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """As the parser wants them."""
        return {
            "on_part_begin": self._part,
            "on_header_field": self._more_header,
            "on_header_value": self._more_value,
            "on_header_end": self._header_over,
            "on_headers_finished": self._headers_over,
            "on_part_data": self._data,
            "on_part_end": self._part_over,
            "on_end": self._over,
        }

    def _part(self) -> None:
        self._headers, self._content, self._header, self._value = {}, bytearray(), b"", b""

    def _more_header(self, piece: bytes, start: int, end: int) -> None:
        self._header += piece[start:end]

    def _more_value(self, piece: bytes, start: int, end: int) -> None:
        self._value += piece[start:end]
        if len(self._header) + len(self._value) > _MOST_FIELD:
            raise Refused("headers_too_large", "a part of the form has too long a header")

    def _header_over(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_over(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options and self._name == "file"
        if self._is_file:
            if self.has_file:
                raise Refused("invalid_file", "the form has more than one file", param="file")
            self.has_file = True
            said = options[b"filename"].decode("utf-8", "replace")
            self._form.filename = "".join(one if one.isprintable() else "?" for one in said)[:_MOST_NAME]
        elif len(self._form.fields) >= _MOST_FIELDS:
            raise Refused("invalid_json", "the form has too many fields")

    def _data(self, piece: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._form.bytes += end - start
            if self._form.bytes > self._most:
                raise _too_large(self._most)
            self._write(piece[start:end])
            return
        self._content += piece[start:end]
        if len(self._content) > _MOST_FIELD:
            raise Refused("body_too_large", "a field of the form is too long")

    def _part_over(self) -> None:
        if not self._is_file:
            self._form.fields[self._name] = self._content.decode("utf-8", "replace")

    def _over(self) -> None:
        self.is_whole = True


def check_parquet(path: Path) -> None:
    """Raises Refused when a file is no Parquet, as far as its two ends tell."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4))
        if head != PARQUET or file.read(4) != PARQUET:
            raise Refused("invalid_file", "the body is no Parquet file, or was cut")


def check_json_lines(path: Path) -> int:
    """How many rows there are: every line that is not empty must be a JSON object.

    Raises:
        Refused: One is none; the line is named.
    """
    rows = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n") and len(line) >= _LONGEST_LINE:
                raise Refused("invalid_json", f"line {number} is longer than {_LONGEST_LINE} bytes", param=f"{number}")
            if not line.strip():
                continue
            try:
                found = orjson.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise Refused("invalid_json", f"line {number} is no JSON object", param=f"{number}")
            rows += 1
    if not rows:
        raise Refused("empty_input", "there is no row in the body")
    return rows
