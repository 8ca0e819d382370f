"""Formats and compressions: each reads as itself, by its name, by its content or by `--format`."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedctl.errors import InputInvalid, WrongUsage
from embedctl.inputs import ReadOptions, decoding, open_input, row_bytes
from embedctl.inputs.formats import FORMATS, SUFFIXES
from tests.unit.inputs.test_csv import COMPRESSIONS

TABLE = pa.table({"id": [1, 2, 3], "text": ["a", None, "é"], "n": pa.array([1.5, None, -1.0])})


def read(*paths, stdin: bytes | None = None, **options) -> list[dict]:
    """All rows as dicts of id, text and kept columns."""
    pipe = None if stdin is None else io.BytesIO(stdin)
    rows: list[dict] = []
    for block in open_input([str(path) for path in paths], ReadOptions(**options), stdin=pipe).blocks():
        kept = [{}] * len(block) if block.kept is None else block.kept.to_pylist()
        rows += [{"id": i, "text": t, **k} for i, t, k in zip(block.ids, block.texts, kept, strict=True)]
    return rows


def ipc(kind: str, table: pa.Table, **options) -> bytes:
    """A table as an Arrow file or stream."""
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def test_every_format_keeps_the_promise_of_its_file():
    """A format says its name, suffixes and nature, and has what reads it; no two claim a suffix."""
    for name, one in FORMATS.items():
        assert name == one.NAME
        assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in one.SUFFIXES)
        assert isinstance(one.looks_like(b""), bool)
        assert not one.IS_TABLE or (callable(one.schemas) and callable(one.rows))
    assert len(SUFFIXES) == sum(len(one.SUFFIXES) for one in FORMATS.values())


# Arrow


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_arrow_is_read(tmp_path, kind, compression):
    """An IPC file or stream gives its rows with their types, by its name or by its content, and through a pipe."""
    content = ipc(kind, TABLE, compression=compression)
    (tmp_path / "a.arrow").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    expected = [{"id": 1, "text": "a", "n": 1.5}, {"id": 2, "text": None, "n": None}, {"id": 3, "text": "é", "n": -1.0}]

    assert read(tmp_path / "a.arrow") == read(tmp_path / "b") == read("-", stdin=content) == expected
    assert read(tmp_path / "a.arrow", keep="none") == [{"id": row["id"], "text": row["text"]} for row in expected]


def test_feather_is_arrow(tmp_path):
    """What pyarrow and pandas write as Feather is read; its first version is named and refused."""
    feather.write_feather(TABLE, tmp_path / "a.feather")
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(100))

    assert [row["text"] for row in read(tmp_path / "a.feather")] == ["a", None, "é"]
    with pytest.raises(InputInvalid, match="Feather of the first version"):
        read(tmp_path / "old.feather")


@example(at=0.312, bit=0, cut=False, kind="file")  # 401 bytes of offsets
@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 0.9999), bit=st.integers(0, 7), cut=st.booleans(), kind=st.sampled_from(["file", "stream"]))
def test_a_damaged_arrow_file_is_refused_or_harmless(at, bit, cut, kind):
    """Cut or with a flipped bit, it ends with 65 or gives rows; the process lives."""
    content = bytearray(ipc(kind, pa.table({"id": range(99), "text": [f"text {n}" for n in range(99)]})))
    if cut:
        del content[int(at * len(content)) :]
    else:
        content[int(at * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        path.write_bytes(content)
        try:
            rows = read(path)
        except (InputInvalid, WrongUsage):
            return

    assert len(rows) <= 99 or not cut


RICH = pa.table(
    {
        "text": ["a", None, "é"],
        "of lists": pa.array([["x"], None, ["y", "z"]]),
        "of words": pa.array(["u", "v", "u"]).dictionary_encode(),
        "of structs": pa.array([{"deep name": 1}] * 3),
    }
)


def harmless(path: Path) -> bool:
    """Whether a file gives rows that can be written again; it may be refused, and nothing else."""
    try:
        for block in open_input([str(path)], ReadOptions()).blocks():
            pq.write_table(pa.table(block.kept), io.BytesIO())
    except (InputInvalid, WrongUsage):
        return False
    return True


def test_a_damaged_footer_is_refused_or_harmless(tmp_path):
    """A flipped bit in any byte of a Parquet footer ends with 65 or gives rows; the process lives."""
    sink = io.BytesIO()
    pq.write_table(RICH, sink)
    content = sink.getvalue()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    seen = set()
    for at in range(start, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "a.parquet").write_bytes(damaged)
        seen.add(harmless(tmp_path / "a.parquet"))

    assert seen == {True, False}


@pytest.mark.parametrize("name", [b"deep name", b"of lists"])
def test_names_that_are_no_utf8_are_refused(tmp_path, name):
    """Also those within a column's type."""
    sink = io.BytesIO()
    pq.write_table(RICH, sink, store_schema=False)
    for path, content in (("a.arrow", ipc("file", RICH)), ("b.arrow", ipc("stream", RICH)), ("c", sink.getvalue())):
        (tmp_path / path).write_bytes(content.replace(name, b"\xff" + name[1:]))

        assert not harmless(tmp_path / path)


def test_a_value_that_stands_in_no_dictionary_is_noticed():
    """Parquet's dictionaries come out of arrow unchecked: whoever looked its value up would read beyond them."""
    for values in (["u"], [1.5]):
        for indices in ([0, 1], [0, -1], [None, 1]):
            column = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), pa.array(values), safe=False)
            with pytest.raises(pa.ArrowIndexError):
                row_bytes.of(column)


def test_arrow_text_that_is_no_utf8_fails_its_row(tmp_path):
    """Text that is no UTF-8 in Arrow, which nobody checks on writing, fails its row alone."""
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary()).buffers())
    (tmp_path / "a.arrow").write_bytes(ipc("file", pa.table({"text": bad})))

    assert [row["text"] for row in read(tmp_path / "a.arrow")] == ["ok", None, "fine"]


# Compressions


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"id,text\n7,one\n", [{"id": "7", "text": "one"}]),
        ("a.tsv", b"id\ttext\n7\tone\n", [{"id": "7", "text": "one"}]),
        ("a.jsonl", b'{"id": 7, "text": "one"}\n', [{"id": 7, "text": "one"}]),
        ("a.json", b'[{"id": 7, "text": "one"}]', [{"id": 7, "text": "one"}]),
        ("a.md", b"# one\n", [{"id": "a.md", "text": "# one\n"}]),
    ],
)
def test_text_formats_are_read_through_compressions(tmp_path, compression, name, content, expected):
    """gzip, zstd, bzip2 and xz of every text format, by their first bytes, whatever the name; also several in a row."""
    packed = COMPRESSIONS[compression](content)
    (tmp_path / f"{name}{compression}").write_bytes(packed)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / name).write_bytes(packed)
    as_named = [{**row, "id": f"a.md{compression}" if row["id"] == "a.md" else row["id"]} for row in expected]

    assert read(tmp_path / f"{name}{compression}") == as_named
    assert read(tmp_path / "bare" / name) == expected
    assert read("-", stdin=packed, format=name.rpartition(".")[2])[0]["text"] == expected[0]["text"]


@pytest.mark.parametrize("compression", [one for one in COMPRESSIONS if one])
def test_compressed_files_may_follow_each_other_and_end_whole(tmp_path, compression):
    """Two compressed files in one are read one after the other; one that is cut ends with 65 and says so."""
    pack, path = COMPRESSIONS[compression], tmp_path / f"a.txt{compression}"
    whole = pack(b"one\n") + pack(b"two\n")
    path.write_bytes(whole)

    assert [row["text"] for row in read(path, split="lines")] == ["one", "two"]
    packed = pack(os.urandom(50_000).hex().encode())
    for size in (12, 3000, len(packed) - 3):
        path.write_bytes(packed[:size])
        with pytest.raises(InputInvalid, match=r"a\.txt\.\w+ is not a whole \w+ file"):
            read(path)


@pytest.mark.parametrize("compression", [one for one in COMPRESSIONS if one])
def test_a_bomb_of_any_compression_is_stopped(tmp_path, compression):
    """A file that expands far more than 100 times is refused before it fills the memory."""
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESSIONS[compression](bytes([65]) * (100 << 20)))
    with pytest.raises(InputInvalid, match="expands to more than 100 times its size"):
        read(path, split="lines", max_row_bytes=1 << 20)


def test_a_header_that_asks_for_gigabytes_is_no_reason_to_take_them(tmp_path):
    """An xz whose header asks for more memory than any usual one ends with 65."""
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one", filters=filters))
    with pytest.raises(InputInvalid, match="is not a whole xz file"):
        read(tmp_path / "a.txt.xz")


# --format


@pytest.mark.parametrize(
    ("asked", "content", "expected"),
    [
        ("csv", b"id,text\n1,a\n", [{"id": "1", "text": "a"}]),
        ("TSV", b"id\ttext\n1\ta\n", [{"id": "1", "text": "a"}]),
        ("ndjson", b'{"id": 1, "text": "a"}\n', [{"id": 1, "text": "a"}]),
        ("json", b'[{"id": 1, "text": "a"}]', [{"id": 1, "text": "a"}]),
        ("text", b"id,text\n1,a\n", [{"id": "stdin", "text": "id,text\n1,a\n"}]),
        ("arrow", ipc("stream", TABLE.select(["id", "text"]).slice(0, 1)), [{"id": 1, "text": "a"}]),
    ],
)
def test_a_format_can_be_said(tmp_path, asked, content, expected):
    """--format reads any file, whatever its name, and what comes from a pipe, as that."""
    (tmp_path / "a.dat").write_bytes(content)
    named = [{**row, "id": "a.dat" if row["id"] == "stdin" else row["id"]} for row in expected]

    assert read("-", stdin=content, format=asked) == expected
    assert read(tmp_path / "a.dat", format=asked) == named


def test_a_format_chooses_in_a_folder(tmp_path):
    """With --format a folder is its files of that format; others are named as left out."""
    (tmp_path / "a.csv").write_text("id,text\n1,a\n")
    (tmp_path / "README.md").write_text("about")
    source = open_input([str(tmp_path)], ReadOptions(format="csv"))

    assert [text for block in source.blocks() for text in block.texts] == ["a"]
    assert [(one.label, one.why) for one in source.left_out] == [(f"{tmp_path}/README.md", "other_format")]


def test_a_format_that_is_none_is_wrong_usage(tmp_path):
    """An unknown --format ends with 2 and names the nearest."""
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WrongUsage) as caught:
        read(tmp_path / "a.txt", format="parqet")

    assert caught.value.hint == "did you mean 'parquet'?"


def test_an_array_of_objects_is_known_by_its_content(tmp_path):
    """A JSON array is read as one in a file named .jsonl, and in a pipe; a line of arrays is none."""
    content = b' [\n {"id": 1, "text": "a"},\n {"id": 2, "text": "b"}]\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(b'["a"]\n{"text": "b"}\n')

    assert read(tmp_path / "a.jsonl") == read("-", stdin=content) == [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    assert [row["text"] for row in read(tmp_path / "b.jsonl")] == [None, "b"]


# JSON


WORDS = st.text(st.characters(exclude_categories=["Cs", "Co", "Cn", "Cc"]) | st.sampled_from("\n\t\u2028"), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"text": WORDS}, optional={"k": VALUES}), min_size=1, max_size=12),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    compression=st.sampled_from(list(COMPRESSIONS)),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 60),
)
def test_what_pythons_json_reads_is_read(rows, encoding, compression, end, ascii_only, chunk):
    """Whatever the objects, encoding, compression and the size of reads: every text and value is Python's."""
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", chunk)
        path = Path(folder) / f"a.jsonl{compression}"
        path.write_bytes(COMPRESSIONS[compression](text.encode(encoding)))
        found = read(path, text_column="text", encoding=encoding)

    assert [row["text"] for row in found] == [row["text"] for row in rows]
    for row, mine in zip(rows, found, strict=True):
        value, kept = row.get("k"), mine.get("k")
        is_same = kept == value and (kept is None) == (value is None)
        assert is_same or (isinstance(kept, str) and json.loads(kept) == value)
