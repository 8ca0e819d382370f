"""Step 1, text files: whole documents, lines or paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedctl.inputs import raw
from embedctl.inputs.block import BYTES_PER_BLOCK, ROWS_PER_BLOCK, Block, InputFile, ReadOptions, Reason, pieces
from embedctl.inputs.decoding import Utf8Stream, line_runs
from embedctl.inputs.table import UNREADABLE, Bad
from embedctl.storage.store_file import READ_AHEAD

Rows = Iterator[tuple[list[str], list[str | None]]]

NAME = "text"
SUFFIXES = (".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".adoc", ".org", ".tex", ".log")
IS_TABLE = False
IS_TEXT = True


def looks_like(head: bytes) -> bool:
    """Never: it is what everything else is that is not binary."""
    return False


def opened(file: InputFile, options: ReadOptions, *, by_row: bool = False, ahead: int = READ_AHEAD) -> Utf8Stream:
    """The file's text as UTF-8, checked unless the rows are checked one `by_row`.

    Args:
        ahead: See `raw.opened`.
    """
    return Utf8Stream(
        lambda: raw.opened(file, ahead=ahead),
        file.label,
        file.size_bytes,
        compression=file.compression,
        encoding=options.encoding,
        by_row=by_row,
        position=file.position,
    )


def blocks(files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[Block]:
    """Rows of text files in order; an empty file has none.

    Args:
        bad: Is given a file that is no text; when it is left out, then as a whole.
    """
    if options.split == "document":
        yield from _documents(files, options, bad)
        return
    first_row = 0
    for file in files:
        try:
            if options.on_bad_file == "skip":
                _read_through(file, options)
            for ids, texts in _parts(file, options):
                yield from pieces(_block(first_row, ids, texts))
                first_row += len(ids)
        except UNREADABLE as error:
            bad(file, error)


def _parts(file: InputFile, options: ReadOptions) -> Rows:
    with opened(file, options) as stream:
        runs = line_runs(stream, options.max_row_bytes)
        yield from _lines(file, runs) if options.split == "lines" else _paragraphs(file, runs, options.max_row_bytes)


def _read_through(file: InputFile, options: ReadOptions) -> None:
    with opened(file, options) as stream:
        for _ in stream.chunks():
            pass


def _block(first_row: int, ids: list[str], texts: list[str | None]) -> Block:
    reasons: dict[int, Reason] = {}
    if None in texts:
        reasons = {at: "too_large" for at, text in enumerate(texts) if text is None}
    return Block(first_row, ids, texts, reasons=reasons)


def _documents(files: Sequence[InputFile], options: ReadOptions, bad: Bad) -> Iterator[Block]:
    first_row, held_bytes = 0, 0
    ids: list[str] = []
    texts: list[str | None] = []
    for file in files:
        try:
            document = _document(file, options)
        except UNREADABLE as error:
            bad(file, error)
            continue
        if document == b"":
            continue
        size_bytes = len(document or b"")
        if ids and (held_bytes + size_bytes > BYTES_PER_BLOCK or len(ids) == ROWS_PER_BLOCK):
            yield _block(first_row, ids, texts)
            first_row, held_bytes, ids, texts = first_row + len(ids), 0, [], []
        ids.append(file.label)
        texts.append(None if document is None else document.decode())
        held_bytes += size_bytes
    if ids:
        yield _block(first_row, ids, texts)


def _document(file: InputFile, options: ReadOptions) -> bytes | None:
    """The whole file; None when it is too large."""
    parts: list[bytes] = []
    size_bytes = 0
    with opened(file, options) as stream:
        for chunk in stream.chunks():
            size_bytes += len(chunk)
            if size_bytes > options.max_row_bytes:
                return None
            parts.append(chunk)
    return b"".join(parts)


def _lines(file: InputFile, runs: Iterator[list[bytes | None]]) -> Rows:
    number = 1
    prefix = f"{file.label}#"
    for run in runs:
        ids = [f"{prefix}{line}" for line in range(number, number + len(run))]
        yield ids, [None if line is None else line.decode() for line in run]
        number += len(run)


def _paragraphs(file: InputFile, runs: Iterator[list[bytes | None]], max_bytes: int) -> Rows:
    """Runs of lines that are not blank; the id names the first of them."""
    number = start = 0
    held: list[bytes] = []
    held_bytes, too_large = 0, False
    for run in runs:
        ids: list[str] = []
        texts: list[str | None] = []
        for line in run:
            number += 1
            if line is not None and (not line or not line.decode().strip()):
                if start:
                    ids.append(f"{file.label}#{start}")
                    texts.append(None if too_large else b"\n".join(held).decode())
                start, held, held_bytes, too_large = 0, [], 0, False
                continue
            start = start or number
            held_bytes += len(line or b"") + bool(held)
            if line is None or held_bytes > max_bytes:
                too_large, held = True, []
            elif not too_large:
                held.append(line)
        if ids:
            yield ids, texts
    if start:
        yield [f"{file.label}#{start}"], [None if too_large else b"\n".join(held).decode()]
