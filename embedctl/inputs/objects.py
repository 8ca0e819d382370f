"""Step 1, from JSON Lines or a JSON array to objects, with the line of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from operator import itemgetter
from typing import Any

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid
from embedctl.inputs import decoding, json_numbers, raw, text
from embedctl.inputs.block import ROWS_PER_BLOCK, InputFile, ReadOptions, Reason

ARRAY_BYTES = 256 << 20  # an array is parsed whole

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectRun:
    """Objects that follow each other.

    Attributes:
        numbers: Line of each (element of an array), from 1.
        too_large: Positions of lines that were too long to be parsed; their object is empty.
        not_unicode: Position → fields that hold half a surrogate pair, which no encoding can carry; they are None.
        bad: Position → why there is no object, and what a person should know; it is empty.
        is_array: Numbers are of elements.
        lines: Of each, as it was written; None where its numbers are as they were written.
    """

    numbers: Sequence[int]
    objects: list[Object]
    too_large: list[int] = field(default_factory=list)
    not_unicode: dict[int, list[str]] = field(default_factory=dict)
    bad: dict[int, tuple[Reason, str]] = field(default_factory=dict)
    is_array: bool = False
    lines: Sequence[bytes | None] | None = None

    def values(self, name: str) -> list[Any]:
        """A field of all objects, every number as it was written; None where it is not there."""
        try:
            values = list(map(itemgetter(name), self.objects))
        except KeyError:
            values = [each.get(name) for each in self.objects]
        return self.exact(name, values)

    def exact(self, name: str, values: list[Any]) -> list[Any]:
        """A field's values, every number as it was written."""
        return values if self.lines is None else json_numbers.as_written(values, self.lines, name)

    def where(self, file: InputFile, at: int) -> str:
        """A position in words: of a line, or an element of an array, from 1."""
        return f"{file.label}: {'element' if self.is_array else 'line'} {self.numbers[at]}"


def is_one_value(run: ObjectRun) -> bool:
    """Whether the first lines of a file are no rows, but the beginning of one object that is written over many."""
    lines = run.lines
    if 0 not in run.bad or not lines or lines[0] is None or not lines[0].lstrip().startswith(b"{"):
        return False
    if len(run.bad) == len(run.objects) and lines[0].rstrip().endswith((b"{", b"[", b",")):
        return True
    try:
        return isinstance(orjson.loads(b"\n".join(line or b"" for line in lines)), dict)
    except orjson.JSONDecodeError:
        return False


def runs(file: InputFile, options: ReadOptions) -> Iterator[tuple[ObjectRun, int]]:
    """All objects of a file in runs, with the bytes each run took: one a line, or the elements of one array.

    Raises:
        InputInvalid: An array that is not JSON or too large.
    """
    with text.opened(file, options, by_row=True, ahead=0) as stream:  # nearly always, it is a look at a few bytes
        may_be_array = _starts_array(stream)
    if may_be_array:
        whole = _elements(file, options)
        if whole is not None:
            yield from whole
            return
    with text.opened(file, options, by_row=True) as stream:
        number = 1
        for lines in decoding.line_runs(stream, options.max_row_bytes):
            run = _parsed(options, number, lines)
            number += len(lines)
            if run.objects:
                yield run, sum(map(len, filter(None, lines)))


def last_objects(file: InputFile, options: ReadOptions, size_bytes: int) -> ObjectRun | None:
    """The objects at a large file's end, one a line; None where that cannot be reached without reading all of it."""
    if file.compression is not None or decoding.codec(options.encoding).name != "utf-8":
        return None
    with raw.opened(file, ahead=0) as content:
        content.seek(max(0, file.size_bytes - size_bytes))
        lines: list[bytes | None] = list(content.read(size_bytes).split(b"\n")[1:])
    return _parsed(options, 1, lines)


def _starts_array(stream: decoding.Utf8Stream) -> bool:
    head = b""
    while not head.strip() and (head := stream.read(decoding.CHUNK_BYTES)):
        pass
    return head.lstrip().startswith(b"[")


def _elements(file: InputFile, options: ReadOptions) -> Iterator[tuple[ObjectRun, int]] | None:
    """The elements of an array, some thousand at a time; None when it is one array a line."""
    with text.opened(file, options) as stream:
        whole = b"".join(_bounded(file, stream))
    try:
        elements = _exact(orjson.loads(whole), whole)
    except orjson.JSONDecodeError as invalid:
        if (elements := _with_constants(whole)) is None:
            if _is_lines(whole):
                return None
            raise InputInvalid(
                f"{file.label} is not JSON: {invalid.msg} (line {invalid.lineno}, column {invalid.colno})",
                hint="JSON Lines (.jsonl, one object a line) is read line by line",
            ) from invalid
    return _array_runs(elements, len(whole))


def _is_lines(whole: bytes) -> bool:
    """Whether the first line is JSON by itself, and something comes after it."""
    first, _, rest = whole.strip().partition(b"\n")
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return bool(rest)


def _array_runs(elements: list[Any], size_bytes: int) -> Iterator[tuple[ObjectRun, int]]:
    for start in range(0, len(elements), ROWS_PER_BLOCK):
        objects = elements[start : start + ROWS_PER_BLOCK]
        run = ObjectRun(range(start + 1, start + len(objects) + 1), objects, is_array=True)
        for at, each in enumerate(objects):
            if type(each) is not dict:
                objects[at] = {}
                run.bad[at] = ("bad_row", f"an object is needed, this is {called(each)}")
        yield run, size_bytes * len(objects) // len(elements)


def _bounded(file: InputFile, stream: decoding.Utf8Stream) -> Iterator[bytes]:
    size_bytes = 0
    for chunk in stream.chunks():
        size_bytes += len(chunk)
        if size_bytes > ARRAY_BYTES:
            raise InputInvalid(
                f"{file.label}: a JSON array of more than {ARRAY_BYTES >> 20} MiB", hint="write it as JSON Lines"
            )
        yield chunk


def _parsed(options: ReadOptions, first_number: int, lines: list[bytes | None]) -> ObjectRun:
    try:
        objects = list(map(orjson.loads, lines))  # type: ignore[arg-type]  # a None is what the other way is for
        if set(map(type, objects)) == {dict}:
            return ObjectRun(range(first_number, first_number + len(lines)), objects, lines=lines)
    except orjson.JSONDecodeError:
        pass
    return _parsed_one_by_one(options, first_number, lines)


def _parsed_one_by_one(options: ReadOptions, first_number: int, lines: list[bytes | None]) -> ObjectRun:
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
            if (why := not_text(line, options.encoding)) is not None:
                parsed, run.bad[at] = {}, ("invalid_utf8", why)
            elif (halves := _without_half_pairs(line)) is not None:
                parsed, run.not_unicode[at] = halves
            else:
                parsed, run.bad[at] = {}, ("bad_row", f"not JSON: {invalid.msg} (column {invalid.colno})")
        if type(parsed) is not dict:
            parsed, run.bad[at] = {}, ("bad_row", f"an object is needed, this is {called(parsed)}")
        run.objects.append(parsed)
    return run


def not_text(line: bytes, encoding: str) -> str | None:
    """What is wrong with a line that is no UTF-8; None where nothing is."""
    try:
        line.decode()
    except UnicodeDecodeError as invalid:
        how = "--encoding says how it is written"
        if decoding.is_mark(line, invalid.start):
            return f"bytes that are not {encoding}; {how}"
        return f"invalid UTF-8 at byte {invalid.start + 1} (0x{line[invalid.start]:02x}); {how}"
    return None


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


def _without_half_pairs(line: bytes) -> tuple[Object, list[str]] | None:
    r"""Parse a line that holds half a surrogate pair (`"\ud800"`), which RFC 8259 allows, or NaN, which many write."""
    try:
        parsed, has_constants = json_numbers.loads(line)
    except (ValueError, RecursionError):
        return None
    unfit = [name for name, value in parsed.items() if not _can_be_encoded(value)] if type(parsed) is dict else []
    if not (unfit or has_constants) or not _can_be_encoded(list(parsed) if type(parsed) is dict else parsed):
        return None
    return parsed | dict.fromkeys(unfit) if unfit else parsed, unfit


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
