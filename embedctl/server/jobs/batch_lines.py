"""OpenAI's lines → rows of a run, and a run's vectors → OpenAI's lines.

A line is one request of the embeddings endpoint, with one text, several, or token arrays. Each of its inputs is a row,
numbered from 0 across the file, so that vectors and failures come in the order of the lines. `lines.jsonl` says of each
line what is needed to answer it.

Source of the shapes: facts/batch_apis.md 2 (2026-11-25).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import StorageFailed
from embedctl.records import TEXT_HASH_BYTES, text_hash, tokens_hash
from embedctl.server import encoding, fields
from embedctl.server.fields import Asked
from embedctl.server.jobs.children import OUTPUT
from embedctl.server.jobs.results import made
from embedctl.server.refusals import Refused

ENDPOINT = "/v1/embeddings"
MOST_LINES = 50_000
MOST_ERRORS = 20
_LONGEST_LINE = 16 << 20
_LONGEST_ID = 512
ROWS, LINES, COMPLETED, FAILED = "input.jsonl", "lines.jsonl", "output.jsonl", "errors.jsonl"


@dataclass(slots=True)
class Reading:
    """A file as far as it is read.

    Attributes:
        shape: What all lines must have in common: model, provider, dimensions, kind of input, input type.
        errors: As a failed batch shows them.
    """

    lines: int = 0
    rows: int = 0
    shape: tuple[Any, ...] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def wrong(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        """One more error; a batch shows the first of them."""
        if len(self.errors) < MOST_ERRORS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})


def read(folder: Path, content: Path) -> dict[str, Any]:
    """Rows and lines of a file; what a batch needs to know of it.

    Lines whose body is wrong fail alone, as they do at OpenAI's; what concerns the file ends the batch.
    """
    reading = Reading()
    with content.open("rb") as file, made(folder / ROWS) as rows, made(folder / LINES) as lines:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n") and len(line) >= _LONGEST_LINE:
                reading.wrong("invalid_json_line", f"the line is longer than {_LONGEST_LINE} bytes", number)
                break
            if line.strip():
                reading.lines += 1
                if reading.lines > MOST_LINES:
                    reading.wrong("too_many_tasks", f"more than {MOST_LINES} lines", number)
                    break
                _read_line(line, number, reading, rows, lines)
    if not reading.lines:
        reading.wrong("empty_file", "the file has no line", None)
    if reading.errors:
        return {"errors": reading.errors}
    model, provider, dimensions, tokens, input_type = reading.shape or (None, None, None, False, None)
    return {
        "model": model, "provider": provider, "dimensions": dimensions, "token_arrays": tokens,
        "input_type": input_type, "lines": reading.lines, "rows": reading.rows,
    }  # fmt: skip


def _read_line(line: bytes, number: int, reading: Reading, rows: BinaryIO, lines: BinaryIO) -> None:
    try:
        found = fields.read_json(line, "the line")
    except Refused as refused:
        reading.wrong("invalid_json_line", refused.message, number)
        return
    if not isinstance(found, dict):
        reading.wrong("invalid_json_line", "the line is no JSON object", number)
        return
    custom_id, body = found.get("custom_id"), found.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID or not fields.is_unicode(custom_id):
        reading.wrong("missing_required_parameter", "custom_id must be a string", number, "custom_id")
        return
    digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
    if digest in reading.seen:
        reading.wrong("duplicate_custom_id", "the custom_id stands in the file twice", number, "custom_id")
        return
    reading.seen.add(digest)
    if found.get("method") != "POST":
        reading.wrong("invalid_method", "method must be POST", number, "method")
    elif found.get("url") != ENDPOINT:
        reading.wrong("url_mismatch", f"url must be {ENDPOINT}, as the batch has it", number, "url")
    elif not isinstance(body, dict):
        reading.wrong("missing_required_parameter", "body must be an object", number, "body")
    else:
        _read_body(custom_id, body, number, reading, rows, lines)


def _read_body(
    custom_id: str, body: dict[str, Any], number: int, reading: Reading, rows: BinaryIO, lines: BinaryIO
) -> None:
    try:
        fields.check_depth(body)
        asked = fields.asked_in(body)
    except Refused as refused:
        error = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
        _put(lines, {"id": custom_id, "error": error, "status": refused.status})
        return
    shape = (asked.model, asked.provider, asked.dimensions, asked.token_arrays, asked.input_type)
    if reading.shape is None:
        reading.shape = shape
    elif shape != reading.shape:
        said = ("model", "provider", "dimensions", "texts or token arrays", "input_type")
        differs = next(word for word, one, other in zip(said, shape, reading.shape, strict=True) if one != other)
        reading.wrong("model_mismatch", f"all lines must agree in {differs}: submit one file for each", number, "body")
        return
    name = "tokens" if asked.token_arrays else "text"
    for one in asked.inputs:
        _put(rows, {"id": reading.rows, name: one})
        reading.rows += 1
    _put(lines, {"id": custom_id, "inputs": len(asked.inputs), **_answered_as(asked)})


def _answered_as(asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {"model": asked.model}
    if asked.base64:
        found["base64"] = True
    if asked.token_arrays:
        found["tokens"] = sum(map(len, asked.inputs))
    return found


def _put(file: BinaryIO, row: dict[str, Any]) -> None:
    file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Row:
    """One input that has a vector."""

    vector: Any
    tokens: int | None
    text: str | None


class _Unpublished:
    """What a run has bought that came to no end: in its journal, by the hash of what was sent."""

    def __init__(self, folder: Path) -> None:
        from embedctl import settings
        from embedctl.journal import recover
        from embedctl.journal.rescue import JOURNAL
        from embedctl.journal.segments import Views
        from embedctl.outputs.folder import STATE_FOLDER
        from embedctl.runs.registry import home_trust

        journal = folder / OUTPUT / STATE_FOLDER / JOURNAL
        self._places: dict[bytes, tuple[Any, int]] = {}
        self._views = Views(journal)
        self._prefix = _prefix(journal.parent)
        if not journal.is_dir():
            return
        for answer in recover(journal, home_trust(settings.load().paths, make=False)).answers:
            place = answer.place
            size = place.count * place.dimensions * 4
            self._views.expect(place.segment, answer.file, place.offset, size, answer.checksum)
            for at in range(place.count):
                self._places[answer.hashes[at * TEXT_HASH_BYTES : (at + 1) * TEXT_HASH_BYTES]] = answer, at

    def of(self, raw: bytes) -> Row | None:
        """The vector of a row of the run's input; None where it has none."""
        if not self._places:
            return None
        row = orjson.loads(raw)
        text, tokens = row.get("text"), row.get("tokens")
        digest = tokens_hash(tokens) if text is None else text_hash(self._prefix + text)
        answer, at = self._places.get(digest, (None, 0))
        if answer is None:
            return None
        try:
            vector = self._views.read(answer.place)[at]
        except StorageFailed:  # damaged: it is bought anew when the batch is gone on with
            return None
        each = answer.tokens_each or ((answer.event.tokens_total,) if answer.place.count == 1 else None)
        return Row(vector, each[at] if each else None, text)


def _prefix(state: Path) -> str:
    """What was put before each text, as the run's record says."""
    try:
        found = orjson.loads((state / "run.json").read_bytes())
    except (OSError, ValueError):
        return ""
    space = found.get("space") if isinstance(found, dict) else None
    prefix = space.get("prefix") if isinstance(space, dict) else None
    return prefix if isinstance(prefix, str) else ""


def write(folder: Path, reason: str) -> dict[str, int]:
    """Every line is answered: in the output file with its vectors, or in the error file.

    Args:
        reason: Why inputs that nobody has asked for have no vector: a code of a line's error.
    """
    failures, unpublished = _failures(folder), _Unpublished(folder)
    vectors = _vectors(folder)
    here = next(vectors, None)
    at, counts = 0, {"completed": 0, "failed": 0}
    with (
        (folder / LINES).open("rb") as lines,
        (folder / ROWS).open("rb") as rows,
        made(folder / COMPLETED) as completed,
        made(folder / FAILED) as failed,
    ):
        for number, raw in enumerate(lines):
            line = orjson.loads(raw)
            found: list[Row] = []
            error: dict[str, Any] | None = None
            for place in range(line.get("inputs", 0)):
                asked = rows.readline()
                if here is not None and here[0] == at:
                    found.append(here[1])
                    here = next(vectors, None)
                elif (bought := unpublished.of(asked)) is not None:
                    found.append(bought)
                elif error is None:
                    error = _error(failures.get(at), place, reason)
                at += 1
            ids = (_line_id(folder, number), line["id"])
            if "error" in line:
                _put(failed, _refused(*ids, line["status"], line["error"]))
            elif error is not None:
                status = error.pop("status", None)
                _put(failed, _refused(*ids, status, error) if status else _not_done(*ids, error))
            else:
                _answer(completed, *ids, line, found)
            counts["failed" if error is not None or "error" in line else "completed"] += 1
    return counts


def _line_id(folder: Path, number: int) -> str:
    """The same each time that the file is made."""
    return f"batch_req_{hashlib.blake2b(f'{folder.name}/{number}'.encode(), digest_size=12).hexdigest()}"


def _vectors(folder: Path) -> Iterator[tuple[int, Row]]:
    """Rows that have a vector, in the order of their numbers."""
    from embedctl.outputs import parquet, parts_of

    for part in parts_of(folder / OUTPUT):
        for columns, vectors in parquet.embedded_rows(part):
            texts = columns.get("text") or [None] * len(vectors)
            for at, vector in enumerate(vectors):
                yield columns["id"][at], Row(vector, columns["embedding_tokens"][at], texts[at])


def _failures(folder: Path) -> dict[int, dict[str, Any]]:
    """Row → why it has no vector."""
    found: dict[int, dict[str, Any]] = {}
    path = folder / OUTPUT / "failures.jsonl"
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                one = orjson.loads(line)
                found[one["id"]] = one
    return found


def _error(failure: dict[str, Any] | None, place: int, reason: str) -> dict[str, Any]:
    """Of an input without a vector; `status` where the endpoint itself would have refused it."""
    if failure is None:
        return {"code": reason, "message": _REASONS.get(reason, "the line was not answered")}
    word = failure["reason"]
    param = f"input[{place}]"
    if word in ("too_long", "blank", "text_refused"):
        code = {"too_long": "input_too_long", "blank": "empty_input"}.get(word, "text_refused")
        message, kind = str(failure["message"]), "invalid_request_error"
        return {"code": code, "message": message, "type": kind, "param": param, "status": 400}
    return {"code": word, "message": str(failure["message"])}


_REASONS = {
    "batch_cancelled": "the batch was cancelled before this line was answered",
    "batch_failed": "the batch ended before this line was answered",
    "batch_expired": "the line could not be answered before the completion window expired",
}


def _refused(line_id: str, custom_id: str, status: int, error: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": line_id, "body": {"error": error}}
    return {"id": line_id, "custom_id": custom_id, "response": response, "error": None}


def _not_done(line_id: str, custom_id: str, error: dict[str, Any]) -> dict[str, Any]:
    return {"id": line_id, "custom_id": custom_id, "response": None, "error": error}


def _answer(file: BinaryIO, line_id: str, custom_id: str, line: dict[str, Any], rows: list[Row]) -> None:
    """Vectors are written as they are: a list of floats for each would take hundreds of times their memory."""
    tokens = line["tokens"] if "tokens" in line else _tokens(rows)
    named = {"id": line_id, "custom_id": custom_id}
    file.write(orjson.dumps(named)[:-1])
    file.write(
        b',"response":{"status_code":200,"request_id":%b,"body":{"object":"list","data":' % orjson.dumps(line_id)
    )
    for piece in encoding.data([np.asarray(row.vector) for row in rows], base64=bool(line.get("base64"))):
        file.write(piece)
    tail = {"model": line["model"], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    file.write(b"," + orjson.dumps(tail)[1:] + b'},"error":null}\n')


def _tokens(rows: list[Row]) -> int:
    """Of a line: as the run has counted them, else as cl100k_base does."""
    known = [row.tokens for row in rows if row.tokens is not None]
    unknown = [row.text or "" for row in rows if row.tokens is None]
    if not unknown:
        return sum(known)
    from embedctl import tokens

    return sum(known) + sum(tokens.counter(None).count(unknown))
