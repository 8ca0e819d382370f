"""Step 1, from JSON Lines or a JSON array to objects, with the line of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from embedctl.errors import InputInvalid
from embedctl.inputs import decoding, json_numbers, text
from embedctl.inputs.block import ROWS_PER_BLOCK, ReadOptions
from embedctl.inputs.files import InputFile

ARRAY_BYTES = 256 << 20  # an array is parsed whole

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectRun:
    """Objects that follow each other.

    Attributes:
        numbers: Line of each (element of an array), from 1.
        too_large: Positions of lines that were too long to be parsed; their object is empty.
        not_unicode: Position → fields that hold half a surrogate pair, which no encoding can carry; they are None.
        lines: Of each, as it was written; None where its numbers are as they were written.
    """

    numbers: Sequence[int]
    objects: list[Object]
    too_large: list[int] = field(default_factory=list)
    not_unicode: dict[int, list[str]] = field(default_factory=dict)
    lines: Sequence[bytes | None] | None = None

    def values(self, name: str) -> list[Any]:
        """A field of all objects, every number as it was written; None where it is not there."""
        values = [each.get(name) for each in self.objects]
        return values if self.lines is None else json_numbers.as_written(values, self.lines, name)


def runs(file: InputFile, options: ReadOptions) -> Iterator[tuple[ObjectRun, int]]:
    """All objects of a file in runs, with the bytes each run took.

    Raises:
        InputInvalid: A line that is no JSON object, or an array that is not JSON or too large.
    """
    if file.kind == "json":
        with text.opened(file, options) as stream:
            is_array = _starts_array(stream)
        if is_array:
            yield from _array(file, options)
            return
    with text.opened(file, options) as stream:
        number = 1
        for lines in decoding.line_runs(stream, options.max_row_bytes):
            run = _parsed(file, number, lines)
            number += len(lines)
            if run.objects:
                yield run, sum(map(len, filter(None, lines)))


def _starts_array(stream: decoding.Utf8Stream) -> bool:
    head = b""
    while not head.strip() and (head := stream.read(decoding.CHUNK_BYTES)):
        pass
    return head.lstrip().startswith(b"[")


def _array(file: InputFile, options: ReadOptions) -> Iterator[tuple[ObjectRun, int]]:
    with text.opened(file, options) as stream:
        whole = b"".join(_bounded(file, stream))
    try:
        elements = _exact(orjson.loads(whole), whole)
    except orjson.JSONDecodeError as invalid:
        if (elements := _with_constants(whole)) is None:
            raise InputInvalid(
                f"{file.label} is not JSON: {invalid.msg} (line {invalid.lineno}, column {invalid.colno})",
                hint="JSON Lines (.jsonl, one object a line) is read line by line",
            ) from invalid
    for start in range(0, len(elements), ROWS_PER_BLOCK):
        objects = elements[start : start + ROWS_PER_BLOCK]
        for at, each in enumerate(objects):
            if type(each) is not dict:
                raise bad(file, start + at + 1, f"an object is needed, this is {called(each)}")
        yield ObjectRun(range(start + 1, start + len(objects) + 1), objects), len(whole) * len(objects) // len(elements)


def _bounded(file: InputFile, stream: decoding.Utf8Stream) -> Iterator[bytes]:
    size_bytes = 0
    for chunk in stream.chunks():
        size_bytes += len(chunk)
        if size_bytes > ARRAY_BYTES:
            raise InputInvalid(
                f"{file.label}: a JSON array of more than {ARRAY_BYTES >> 20} MiB", hint="write it as JSON Lines"
            )
        yield chunk


def _parsed(file: InputFile, first_number: int, lines: list[bytes | None]) -> ObjectRun:
    try:
        objects = list(map(orjson.loads, lines))  # type: ignore[arg-type]  # a None is what the other way is for
        if set(map(type, objects)) == {dict}:
            return ObjectRun(range(first_number, first_number + len(lines)), objects, lines=lines)
    except orjson.JSONDecodeError:
        pass
    return _parsed_one_by_one(file, first_number, lines)


def _parsed_one_by_one(file: InputFile, first_number: int, lines: list[bytes | None]) -> ObjectRun:
    """The slow way, for runs in which a line is blank, too long or bad."""
    numbers: list[int] = []
    written: list[bytes | None] = []
    run = ObjectRun(numbers, [], lines=written)
    for number, line in enumerate(lines, first_number):
        if line is not None and not line.strip():
            continue
        at = len(numbers)
        numbers.append(number)
        written.append(line)
        if line is None:
            run.too_large.append(at)
            run.objects.append({})
            continue
        try:
            parsed = orjson.loads(line)
        except orjson.JSONDecodeError as invalid:
            parsed, run.not_unicode[at] = _without_half_pairs(file, number, line, invalid)
        if type(parsed) is not dict:
            raise bad(file, number, f"an object is needed, this is {called(parsed)}")
        run.objects.append(parsed)
    return run


def _exact(parsed: Any, text: bytes) -> Any:
    """The value with all numbers as they were written."""
    if json_numbers.is_exact(text):
        return parsed
    try:
        return json_numbers.loads(text)[0]
    except (ValueError, RecursionError):  # what orjson takes and json does not: the number is in no float
        return parsed


def _with_constants(text: bytes) -> Any:
    """What is JSON but for NaN and Infinity; None when it is not."""
    try:
        parsed, has_constants = json_numbers.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if has_constants else None


def _without_half_pairs(
    file: InputFile, number: int, line: bytes, invalid: orjson.JSONDecodeError
) -> tuple[Object, list[str]]:
    r"""Parse a line that holds half a surrogate pair (`"\ud800"`), which RFC 8259 allows, or NaN, which many write."""
    has_constants = False
    try:
        parsed, has_constants = json_numbers.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    unfit = [name for name, value in parsed.items() if not _can_be_encoded(value)] if type(parsed) is dict else []
    if not (unfit or has_constants) or not _can_be_encoded(list(parsed) if type(parsed) is dict else parsed):
        raise bad(file, number, f"not JSON: {invalid.msg} (column {invalid.colno})") from invalid
    return parsed | dict.fromkeys(unfit), unfit


def _can_be_encoded(value: object) -> bool:
    try:
        json_numbers.dumps(value)
    except TypeError:
        return False
    return True


def called(value: object) -> str:
    """What a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def bad(file: InputFile, number: int, what: str, hint: str | None = None) -> InputInvalid:
    """The error that names a line, or an element of an array, from 1."""
    where = "element" if file.kind == "json" else "line"
    return InputInvalid(f"{file.label}: {where} {number}: {what}", hint=hint)
