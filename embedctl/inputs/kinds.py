"""Step 1, what kind of input a file is, by its name and its first bytes."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import orjson

from embedctl.errors import InputInvalid
from embedctl.inputs.block import ReadOptions
from embedctl.inputs.decoding import codec

Kind = Literal["text", "jsonl", "json", "csv", "parquet"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".adoc", ".org", ".tex", ".log"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    ".json": "json",
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".parquet", ".pq", ".parq"), "parquet"),
}
SNIFF_BYTES = 8192

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "a Parquet file"),
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive or an Office document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"\x7fELF", "a program"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh91AY&SY", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"ARROW1\x00\x00", "an Arrow file"),
    (b"Obj\x01", "an Avro file"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\b\x1b")


def by_name(name: str) -> tuple[Kind | None, bool]:
    """The kind an extension says, and whether it is gzip of it."""
    lower = name.lower()
    gzipped = lower.endswith(".gz")
    kind = KINDS.get(Path(lower.removesuffix(".gz")).suffix)
    return (None, True) if gzipped and kind == "parquet" else (kind, gzipped)


def looked_at(file: BinaryIO, label: str, options: ReadOptions) -> tuple[Kind, bool]:
    """The kind, and whether it is gzip of it; content decides where the name does not.

    Raises:
        InputInvalid: It is binary; the message says what gave it away.
    """
    kind, gzipped = by_name(label)
    head = file.read(SNIFF_BYTES)
    if kind != "parquet":
        gzipped = head.startswith(b"\x1f\x8b")
    if gzipped:
        head = _gunzipped(file, label)
    if kind is None:
        kind = _by_content(head, options)
        if gzipped and kind == "parquet":
            raise InputInvalid(f"{label} is a compressed Parquet file", hint="decompress it first")
    if kind != "parquet":
        _refuse_binary(head, label, options)
    return kind, gzipped


def _gunzipped(file: BinaryIO, label: str) -> bytes:
    try:
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as unpacked:
            return unpacked.read(SNIFF_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as corrupt:
        raise InputInvalid(f"{label} is not a whole gzip file: {corrupt}") from corrupt


def _by_content(head: bytes, options: ReadOptions) -> Kind:
    if head.startswith(b"PAR1"):
        return "parquet"
    head = head.removeprefix(b"\xef\xbb\xbf")
    first_line = head.split(b"\n", 1)[0]
    if first_line.startswith(b"{"):
        with contextlib.suppress(ValueError):
            if isinstance(orjson.loads(first_line), dict):
                return "jsonl"
    if options.text_column is not None:  # only tables have columns
        return "jsonl" if first_line.startswith(b"{") else "csv"
    return "text"


def _refuse_binary(head: bytes, label: str, options: ReadOptions) -> None:
    for magic, what in _MAGIC:
        if head.startswith(magic):
            hint = "name it .parquet" if magic == b"PAR1" else "extract its text first"
            raise InputInvalid(f"{label} is binary: {what} (it starts with {magic!r})", hint=hint)
    if codec(options.encoding).name != "utf-8":
        return
    if head.startswith(_UTF16_MARKS):
        raise InputInvalid(f"{label} is UTF-16 text (it starts with its byte order mark)", hint="--encoding utf-16")
    controls = sum(1 for byte in head if byte < 0x20 and byte not in _TEXT_CONTROLS)
    nul_at = head.find(b"\0")
    if controls * 10 > len(head) * 3 or (nul_at >= 0 and not _is_utf8(head)):
        how = f"a zero byte at offset {nul_at}" if nul_at >= 0 else f"{controls} control bytes in the first {len(head)}"
        raise InputInvalid(f"{label} is binary: {how}", hint="extract its text first")


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as invalid:
        return len(head) == SNIFF_BYTES and invalid.start > len(head) - 4  # a character cut by the sniff
    return True
