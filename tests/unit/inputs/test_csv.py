"""Reading CSV: what Python's csv reads is what we read, or the row fails with its line; no quote swallows a row."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import EmbedctlError, InputInvalid, WrongUsage
from embedctl.inputs import ReadOptions, csv_structure, csv_tables, decoding, open_input


def zstd(content: bytes) -> bytes:
    """Compressed by zstd."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def written(folder: Path, text: str | bytes, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    """A file of a text, or of bytes."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path: Path, **options) -> tuple[list[dict], dict[int, str]]:
    """All rows as dicts of id, text and kept columns; and ordinal → message of those that fail."""
    rows: list[dict] = []
    messages: dict[int, str] = {}
    for block in open_input([str(path)], ReadOptions(**options)).blocks():
        assert block.first_row == len(rows)
        assert {at for at, value in enumerate(block.texts) if value is None} == set(block.reasons)
        messages |= {block.first_row + at: what for at, what in block.messages.items()}
        kept = [{}] * len(block) if block.kept is None else block.kept.to_pylist()
        rows += [{"id": i, "text": t, **k} for i, t, k in zip(block.ids, block.texts, kept, strict=True)]
    return rows, messages


def refused(path: Path, **options) -> EmbedctlError:
    """The error that reading ends with."""
    with pytest.raises(EmbedctlError) as caught:
        read(path, **options)
    return caught.value


CELLS = st.text(st.sampled_from("ab ,;\t|\"\n\ré漢😀'\\="), max_size=8)
TABLES = st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=12))


@settings(max_examples=300, deadline=None)
@given(
    table=TABLES,
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]),
    compression=st.sampled_from(list(COMPRESSIONS)),
    chunk=st.integers(1, 40),
    piece=st.integers(1, 60),
)
def test_what_pythons_csv_writes_is_read(table, delimiter, end, quoting, encoding, compression, chunk, piece):
    """Whatever the table, dialect, encoding, compression and the size of reads and pieces: every value is there."""
    width = len(table[0]) if table else 1
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([[f"c{at}" for at in range(width)], *table])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", chunk)
        patch.setattr(csv_structure, "PIECE_BYTES", piece)
        content = COMPRESSIONS[compression](text.getvalue().encode(encoding))
        path = written(Path(folder), content, f"a.csv{compression}")
        rows, messages = read(path, delimiter=delimiter, header=True, text_column="c0", encoding=encoding)

    _, *expected = (row for row in csv.reader(io.StringIO(text.getvalue(), newline=""), delimiter=delimiter) if row)
    assert len(rows) == len(expected)
    assert expected == table or "\r" in text.getvalue()  # which Python does not quote
    for at, (row, values) in enumerate(zip(rows, expected, strict=True)):
        assert (at in messages) == (len(values) != width)
        assert at in messages or [row["text"], *(row[f"c{n}"] for n in range(1, width))] == values


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(st.sampled_from('ab,"\n\r"",\n'), max_size=40),
    chunk=st.integers(1, 12),
    piece=st.integers(1, 20),
)
def test_any_text_is_what_pythons_csv_reads_or_fails(text, chunk, piece):
    """Of any text at all, however it is cut: each row is Python's, or fails with its line, or the file ends with 65."""
    expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", chunk)
        patch.setattr(csv_structure, "PIECE_BYTES", piece)
        path = written(Path(folder), text)
        problem = None
        try:
            rows, messages = read(path, header=False, text_column="column0", delimiter=",")
        except InputInvalid as broken:
            problem = broken
    if problem is not None:
        assert '"' in text
        assert problem.message.startswith("a.csv: ")
        return

    assert len(rows) == len(expected)
    for at, (row, values) in enumerate(zip(rows, expected, strict=True)):
        if at in messages:
            assert messages[at].startswith("a.csv: line ")
            assert len(values) != len(expected[0]) or '"' in text
        else:
            assert [row["text"], *(row[f"column{n}"] for n in range(1, len(values)))] == values


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30),
    chunk=st.integers(1, 30),
    piece=st.integers(1, 60),
)
def test_lines_of_rows_that_fail_are_exact(rows, chunk, piece):
    """The line of a row with too few or too many values is right, whatever lines quoted values and blanks take."""
    text, line, expected, at = "id,text\n", 2, {}, 0
    for breaks, is_good in rows:
        inner, more = "\n" * breaks, "" if is_good else ",more"
        text += "\n" * (breaks % 2) + f'{at},"x{inner}"{more}\n'
        line += breaks % 2
        if not is_good:
            expected[at] = f"a.csv: line {line}: 3 values where 2 belong"
        line, at = line + breaks + 1, at + 1
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", chunk)
        patch.setattr(csv_structure, "PIECE_BYTES", piece)
        found, messages = read(written(Path(folder), text))

    assert messages == expected
    assert len(found) == len(rows)


# Quotes


@pytest.mark.parametrize("count", [3, 400, 200_000])
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_a_quote_that_is_never_closed_names_its_line(tmp_path, count, compression):
    """An open quote ends with 65 and the line it begins in, before any row is read, wherever in the file it is."""
    lines = ["id,text", *(f"{n},some text" for n in range(count)), '0,"he said it is 5"" long', *["1,more"] * count]
    path = written(tmp_path, COMPRESSIONS[compression]("\n".join(lines).encode()), f"a.csv{compression}")
    with pytest.raises(InputInvalid) as caught:
        open_input([str(path)], ReadOptions())

    assert caught.value.exit_code == 65
    assert caught.value.message == f"{path.name}: line {count + 2}: the quote that begins a value there is never closed"


def test_a_quote_that_the_next_quote_closes_is_found_too(tmp_path):
    """An open quote that swallows rows up to a later quoted value ends with 65 and both lines."""
    path = written(tmp_path, 'id,text\n1,"open\n2,plain\n3,"quoted"\n4,end\n')

    assert refused(path).message == (
        "a.csv: line 2: the quote that begins a value there is closed in line 4, in the middle of a value"
    )


def test_a_value_that_goes_on_after_its_quote_fails_its_row(tmp_path):
    """Text after a closing quote on the same line fails the row alone: nobody knows what was meant."""
    rows, messages = read(written(tmp_path, 'id,text\n1,"a" b\n2,c\n3,"d"\n'))

    assert [row["text"] for row in rows] == [None, "c", "d"]
    assert messages == {0: "a.csv: line 2: a value goes on after its closing quote"}


def test_a_quote_within_a_value_is_a_character(tmp_path):
    """A quote that does not begin a value stands for itself: inches in a list of parts."""
    rows, messages = read(written(tmp_path, 'id,text\n1,a 5" pipe\n2,6"\n3,"7"" tube, black"\n'))

    assert [row["text"] for row in rows] == ['a 5" pipe', '6"', '7" tube, black']
    assert messages == {}


def test_a_long_run_of_quotes_takes_no_time(tmp_path):
    """Megabytes of nothing but quotes are read or refused, in bounded memory."""
    path = written(tmp_path, b'id,text\n1,"' + b'"' * (5 << 20) + b'"\n2,b\n')

    assert [len(row["text"]) for row in read(path)[0]] == [5 << 19, 1]


def test_a_line_break_at_the_edge_of_a_block_is_kept(tmp_path, monkeypatch):
    """CR LF in a quoted value keeps both bytes wherever a read or a piece ends (apache/arrow#51368)."""
    text = 'id,text\r\n1,"first\r\nsecond"\r\n2,b\r\n'
    for chunk in range(1, len(text) + 1):
        monkeypatch.setattr(decoding, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(csv_structure, "PIECE_BYTES", chunk)

        assert [row["text"] for row in read(written(tmp_path, text))[0]] == ["first\r\nsecond", "b"]


def test_a_line_break_at_the_edge_of_a_mebibyte_is_kept(tmp_path):
    """Nor does it matter that the CR is the last byte of the first mebibyte of a file of usual size."""
    edge, parts, size, n = 1 << 20, ["id,text\r\n"], 9, 0
    while size < 3 * edge:
        head, first = f'{n},"', f"first line of row {n} " + "x" * 960
        to_edge = edge - 1 - (size + len(head)) % edge
        if to_edge < 1400:
            first = (f"edge row {n} " + "y" * to_edge)[:to_edge]
        parts.append(f'{head}{first}\r\nsecond line"\r\n')
        size, n = size + len(parts[-1]), n + 1
    text = "".join(parts)
    rows, messages = read(written(tmp_path, text))

    assert text[edge - 1 : edge + 1] == "\r\n"
    assert [row["text"] for row in rows] == [row["text"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert messages == {}


def test_a_row_that_is_too_large_is_never_held(tmp_path, monkeypatch):
    """A row over max_row_bytes fails by its line; its neighbours are not hurt, whatever the pieces are."""
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(csv_tables, "HEAD_BYTES", 1000)
    text = 'id,text\n1,a\n2,b\n3,"' + "long\n" * 3000 + '"\n4,d\n5,"e\nf"\n'
    rows, messages = read(written(tmp_path, text), max_row_bytes=5000)

    assert [(row["id"], row["text"]) for row in rows] == [
        ("1", "a"), ("2", "b"), ("a.csv#4", None), ("4", "d"), ("5", "e\nf"),
    ]  # fmt: skip
    assert messages == {2: "a.csv: line 4: the row is larger than --max-row-bytes"}


# Dialects


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("1,the first row\n2,the second row\n", {}, [{"id": 0, "column0": "1", "text": "the first row"},
                                                     {"id": 1, "column0": "2", "text": "the second row"}]),
        ('id;"Text, german";price\n1;Hallo Welt;1,5\n', {"text_column": "Text, german"},
         [{"id": "1", "text": "Hallo Welt", "price": "1,5"}]),
        ("id;text, german;price\n1;Hallo;1,5\n2;Welt;2\n", {"text_column": "text, german"},
         [{"id": "1", "text": "Hallo", "price": "1,5"}, {"id": "2", "text": "Welt", "price": "2"}]),
        ("sep=;\r\nid;text\r\n1;a,b\r\n", {}, [{"id": "1", "text": "a,b"}]),
        ('"sep=|"\nid|text\n1|a;b\n', {}, [{"id": "1", "text": "a;b"}]),
        ("sep=;\nid,text\n1,a\n", {"delimiter": ",", "text_column": "sep=;", "header": True}, None),
        ("id#text\n1#a,b\n", {"delimiter": "#"}, [{"id": "1", "text": "a,b"}]),
        ("id\ttext\n1\ta\n", {"delimiter": r"\t"}, [{"id": "1", "text": "a"}]),
        ("hello,world\nfoo,bar\n", {"header": False, "text_column": "column1"},
         [{"id": 0, "column0": "hello", "text": "world"}, {"id": 1, "column0": "foo", "text": "bar"}]),
        ("2019,2020\n1,2\n", {"header": True, "text_column": "2020"}, [{"id": 0, "2019": "1", "text": "2"}]),
        (",text\n0,hello\n1,world\n", {}, [{"id": 0, "": "0", "text": "hello"}, {"id": 1, "": "1", "text": "world"}]),
        ("\n\r\nid,text\n1,a\n", {}, [{"id": "1", "text": "a"}]),
        ("id,text,note,note,,\n1,a,b,c,d,e\n", {},
         [{"id": "1", "text": "a", "note": "b", "note_1": "c", "": "d", "column5": "e"}]),
    ],
)  # fmt: skip
def test_dialects_are_seen_or_said(tmp_path, text, options, expected):
    """Delimiter and header are as the first rows look, or as they are said; Excel's `sep=` line says it too."""
    path = written(tmp_path, text)
    if expected is None:
        assert [row["text"] for row in read(path, **options)[0]] == [None, None]
        return
    assert read(path, **options) == (expected, {})


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_without_rows_is_no_rows(tmp_path, name):
    """A header alone has 0 rows, with or without its line end, and its columns are known."""
    for text in ("id,text,lang", "id,text,lang\n", "id,text,lang\r\n\r\n"):
        path = written(tmp_path, text.replace(",", "\t" if name == "a.tsv" else ","), name)

        assert read(path) == ([], {})
        assert open_input([str(path)], ReadOptions()).schema_kept.names == ["lang"]


@pytest.mark.parametrize("delimiter", ["", "ab", "é", '"', "\n"])
def test_a_delimiter_that_is_none_is_wrong_usage(tmp_path, delimiter):
    """--delimiter with anything but one ASCII character ends with 2."""
    assert isinstance(refused(written(tmp_path, "id,text\n"), delimiter=delimiter), WrongUsage)


WORDS = st.text("abcdegh ", min_size=1, max_size=9).filter(lambda word: word.strip() == word)
"""Without f: a column of nothing else is one of booleans to DuckDB, and no words."""


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(WORDS, min_size=2, max_size=4, unique=True),
    rows=st.lists(st.tuples(st.integers(0, 999), WORDS, WORDS, WORDS), min_size=3, max_size=20),
    delimiter=st.sampled_from(",;\t|"),
    has_header=st.booleans(),
)
def test_dialects_look_as_they_do_to_duckdb(names, rows, delimiter, has_header):
    """Of clean tables, delimiter and header are what DuckDB's sniff_csv says."""
    table = [[str(value) for value in row[: len(names)]] for row in rows]
    text = "".join(delimiter.join(row) + "\n" for row in ([names] if has_header else []) + table)
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), text)
        query = f"select Delimiter, HasHeader, SkipRows from sniff_csv('{path}')"
        [told] = duckdb.sql(query).fetchall()
        file = open_input([str(path)], ReadOptions(keep="none", text_column="column1" if not has_header else names[1]))
        dialect = file.parts["a.csv"].seen.dialect

    if told[2] == 0:
        assert (dialect.delimiter.decode(), dialect.names[0] != "column0") == told[:2]


def test_the_structure_of_a_large_file_takes_little_memory():
    """What is kept of the look through a file is some bytes for each two mebibytes."""
    row = b"1,some words and more of them\n"
    chunk = row * ((1 << 20) // len(row))
    pieces = csv_structure.pieces(
        (chunk for _ in range(64)), b",", b"\n", first_line=1, max_record_bytes=csv_tables.HEAD_BYTES
    )
    found = list(pieces)

    assert sum(piece.size_bytes for piece in found) == 64 * len(chunk)
    assert len(found) <= 64
    assert [piece.line for piece in found] == [
        1 + sum(piece.size_bytes for piece in found[:at]) // len(row) for at in range(len(found))
    ]


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(st.sampled_from('ab,"\n\r"",\n'), max_size=60),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=60),
)
def test_the_structure_does_not_depend_on_how_a_file_is_read(text, cuts):
    """However a file is cut: the same open quote, and pieces of whole records, with their lines and torn values."""
    content, chunks, at = text.encode(), [], 0
    for cut in [*cuts, len(content)]:
        chunks.append(content[at : at + cut])
        at += cut

    def found(parts):
        try:
            return list(csv_structure.pieces(filter(None, parts), b",", b"\n", first_line=1, max_record_bytes=1 << 20))
        except csv_structure.BrokenQuoteError as broken:
            return broken.line, broken.closed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_structure, "PIECE_BYTES", 1)
        whole, pieces = found([content]), found(chunks)
    if isinstance(whole, tuple) or isinstance(pieces, tuple):
        assert pieces == whole
        return
    starts = {0, len(content), *(one.start for one in csv_structure.records(content, b",", b"\n", 1))}
    torn = [one.start for one in csv_structure.records(content, b",", b"\n", 1) if one.is_dirty]
    at = 0
    for piece in pieces:
        assert at in starts or content[at : at + 1] in b"\r\n"
        assert piece.line == 1 + content.count(b"\n", 0, at)
        assert piece.is_dirty or not any(at <= start < at + piece.size_bytes for start in torn)
        at += piece.size_bytes
    assert at == len(content)
