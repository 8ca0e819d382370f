"""Step 1, what format a file is of, by its name and its first bytes; and what is binary, and never embedded."""

from __future__ import annotations

import codecs
from typing import BinaryIO
from unicodedata import category

from embedctl.errors import InputInvalid
from embedctl.inputs import compressions, formats
from embedctl.inputs.block import ReadOptions
from embedctl.inputs.decoding import codec, is_wide
from embedctl.inputs.left_out import Why

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
    (b"\x1f\x8b\x08", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh91AY&SY", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"ARROW1\x00\x00", "an Arrow file"),
    (b"FEA1", "a Feather file of the first version"),
    (b"Obj\x01", "an Avro file"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_TEXT_CHARS = "\t\n\r\f\b\x1b"
_TEXT_CONTROLS = frozenset(_TEXT_CHARS.encode())
_NO_CHARACTERS = ("Cc", "Cn", "Co", "Cs")
_MOST_CONTROLS = 0.3
_MOST_CONTROLS_ANY_BYTES = 0.1
"""Of an encoding in which any bytes are characters: a tenth of random bytes is control characters."""


class Binary(InputInvalid):
    """A file is no text, whatever its name and `--encoding` say."""


def by_name(name: str, options: ReadOptions) -> tuple[str | None, str | None]:
    """The format that a name says, or `--format`, and the compression that the name says."""
    plain, compression = compressions.split_name(name)
    found = formats.by_suffix(plain) if options.format is None else formats.named(options.format).NAME
    if compression and found is not None and not formats.FORMATS[found].IS_TEXT:
        found = None
    return found, compression


def not_of(name: str, options: ReadOptions) -> Why | None:
    """Why a file of this name in a folder is not read; None when it is."""
    plain, compression = compressions.split_name(name)
    said = formats.by_suffix(plain)
    if said is None or (compression and not formats.FORMATS[said].IS_TEXT):
        return "other_kind"
    return "other_format" if options.format and said != formats.named(options.format).NAME else None


def looked_at(file: BinaryIO, label: str, options: ReadOptions) -> tuple[str, str | None]:
    """The format, and the compression of it; content decides where neither the name nor `--format` does.

    Raises:
        Binary: It is no text, and of no other format that is read; the message says what gave it away.
        InputInvalid: A compressed file is damaged.
    """
    name, _ = by_name(label, options)
    head = file.read(SNIFF_BYTES)
    compression = compressions.of(head) if name is None or formats.FORMATS[name].IS_TEXT else None
    if compression:
        head = _decompressed(file, compression, label)
    if name is None:
        name = formats.by_content(head, options)
        if compression and not formats.FORMATS[name].IS_TEXT:
            raise Binary(f"{label} is {formats.FORMATS[name].NAME} in {compression}", hint="decompress it first")
    if formats.FORMATS[name].IS_TEXT:
        _refuse_binary(head, label, options)
    return name, compression


def _decompressed(file: BinaryIO, compression: str, label: str) -> bytes:
    try:
        file.seek(0)
        return compressions.opened(file, compression).read(SNIFF_BYTES)
    except (*compressions.CORRUPT, OSError) as corrupt:
        if isinstance(corrupt, OSError) and not compressions.is_corrupt(corrupt):
            raise
        raise InputInvalid(f"{label} is not a whole {compression} file: {corrupt}") from corrupt


def _refuse_binary(head: bytes, label: str, options: ReadOptions) -> None:
    for magic, what in _MAGIC:
        if head.startswith(magic):
            hint = "name it .parquet" if magic == b"PAR1" else "extract its text first"
            raise Binary(f"{label} is binary: {what} (it starts with {magic!r})", hint=hint)
    encoding = codec(options.encoding).name
    is_utf8 = encoding in ("utf-8", "utf-8-sig")
    if is_utf8 and head.startswith(_UTF16_MARKS):
        raise InputInvalid(f"{label} is UTF-16 text (it starts with its byte order mark)", hint="--encoding utf-16")
    if is_utf8:
        size, most = len(head), _MOST_CONTROLS
        controls = sum(1 for byte in head if byte < 0x20 and byte not in _TEXT_CONTROLS)
    else:
        try:
            text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
            most = _MOST_CONTROLS if is_wide(encoding) else _MOST_CONTROLS_ANY_BYTES
        except UnicodeError:  # without a byte order mark it is no such text, and perhaps none at all
            text, most = head.decode("latin-1"), _MOST_CONTROLS_ANY_BYTES
        size = len(text)
        controls = sum(1 for char in text if char not in _TEXT_CHARS and category(char) in _NO_CHARACTERS)
    zero_at = -1 if is_wide(encoding) and not is_utf8 else head.find(b"\0")
    if controls > size * most or (zero_at >= 0 and not (is_utf8 and _is_utf8(head))):
        how = (
            f"a zero byte at offset {zero_at}" if zero_at >= 0 else f"{controls} control bytes in the first {len(head)}"
        )
        raise Binary(f"{label} is binary: {how}", hint="extract its text first")


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as invalid:
        return len(head) == SNIFF_BYTES and invalid.start > len(head) - 4  # a character cut by the sniff
    return True
