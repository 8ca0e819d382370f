"""Reading tables: which column is the text, what travels along, and how a bad one is named."""

from __future__ import annotations

import gzip
import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl import inputs
from embedctl.errors import EmbedctlError, InputInvalid, WrongUsage
from embedctl.inputs import ReadOptions, json_lines, open_input, row_bytes
from embedctl.inputs import parquet as read_parquet
from tests.support import places

SAMPLES = places.SAMPLES


def opened(*inputs, **options):
    """A source of the inputs."""
    return open_input([str(each) for each in inputs], ReadOptions(**options))


def table(*inputs, **options) -> list[dict]:
    """Every row as a dict of id, text (or tokens) and kept columns, after checking what holds of all blocks."""
    source = opened(*inputs, **options)
    found: list[dict] = []
    for block in source.blocks():
        assert block.first_row == len(found)
        assert len(block) <= 4096
        values = block.texts if block.tokens is None else block.tokens
        kept = [{}] * len(block) if block.kept is None else block.kept.to_pylist()
        assert block.kept is None or block.kept.schema == source.schema_kept
        assert {at for at, value in enumerate(values) if value is None} == set(block.reasons)
        found += [
            {"id": row, "text": value, **others} for row, value, others in zip(block.ids, values, kept, strict=True)
        ]
    return found


def reasons(*inputs, **options) -> dict[int, str]:
    """Ordinal → why a row has no text."""
    return {
        block.first_row + at: why for block in opened(*inputs, **options).blocks() for at, why in block.reasons.items()
    }


def messages(*inputs, **options) -> dict[int, str]:
    """Ordinal → what is said of a row that cannot be read."""
    return {
        block.first_row + at: what
        for block in opened(*inputs, **options).blocks()
        for at, what in block.messages.items()
    }


def refused(*inputs, **options) -> EmbedctlError:
    """The error that reading ends with."""
    with pytest.raises(EmbedctlError) as caught:
        table(*inputs, **options)
    return caught.value


def parquet(path, columns, **options):
    """A Parquet file of the given columns."""
    pq.write_table(pa.table(columns), path, **options)
    return path


def lines(path, *objects):
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return path


# Columns are found


@pytest.mark.parametrize(
    ("columns", "text", "row_id"),
    [
        ({"id": [1], "text": ["a"], "body": ["b"]}, "text", "id"),
        ({"key": ["k"], "Body": ["b"], "title": ["t"]}, "Body", "key"),
        ({"n": [1], "review": ["r"]}, "review", None),
        ({"uuid": ["u"], "review": ["r"]}, "review", "uuid"),
        ({"id": [[1.5]], "doc_id": ["d"], "text": ["t"]}, None, None),
        ({"id": [1.5], "doc_id": ["d"], "text": ["t"]}, "text", "id"),
        ({"ID": [1], "Text": ["a"], "Body": ["b"]}, "Text", "ID"),
        ({"tokens": pa.array([[1, 2]], pa.list_(pa.int32()))}, "tokens", None),
    ],
)
def test_text_and_id_are_found_when_unambiguous(tmp_path, columns, text, row_id):
    """A known name wins, else the only text column; an id is a known name of text or integers, else the row number."""
    path = parquet(tmp_path / "a.parquet", columns)
    if text is None:
        assert isinstance(refused(path), WrongUsage)
        return
    source = opened(path)

    assert (source.columns.text, source.columns.id) == (text, row_id)


def test_an_ambiguous_table_lists_its_columns(tmp_path):
    """When several columns could be the text it ends with 65 and shows them with their types."""
    path = parquet(tmp_path / "a.parquet", {"title": ["a"], "summary": ["b"], "n": [1]})
    problem = refused(path)

    assert problem.exit_code == 65
    assert problem.message == "a.parquet: several columns could be the text"
    assert problem.hint == "--text-column NAME; columns: title (string), summary (string), n (int64)"
    assert table(path, text_column="summary", keep="none") == [{"id": 0, "text": "b"}]


def test_names_are_found_without_regard_to_case(tmp_path):
    """As in DuckDB `--text-column BODY` means Body; the name as it is spelt comes first."""
    columns = {"Nr": [1], "Body": ["b"], "Lang": ["de"], "x": [1], "X": [2]}
    path = parquet(tmp_path / "a.parquet", columns)
    asked = {"text_column": "BODY", "id_column": "NR"}

    assert table(path, keep=("LANG", "X"), **asked) == [{"id": 1, "text": "b", "Lang": "de", "X": 2}]
    csv = tmp_path / "a.csv"
    csv.write_text("ID,Text\n7,t\n")
    assert table(csv) == [{"id": "7", "text": "t"}]


@pytest.mark.parametrize("columns", [{"Text": ["a"], "TEXT": ["b"]}, {"Id": [1], "ID": [2], "text": ["a"]}])
def test_names_that_differ_by_case_only_are_both_named(tmp_path, columns):
    """Where no column has the very name that is meant and two have it but for case, both are named (65)."""
    first, second = list(columns)[:2]
    problem = refused(parquet(tmp_path / "a.parquet", columns))

    assert problem.exit_code == 65
    assert f"{first!r} and {second!r}" in problem.message


def test_a_missing_column_names_the_nearest_and_lists_all(tmp_path):
    """A column that is not there ends with 65, whether it was to be text, id or kept."""
    path = parquet(tmp_path / "a.parquet", {"content": ["a"], "nr": [1]})
    for options in ({"text_column": "contnet"}, {"id_column": "contnet"}, {"keep": ("contnet",)}):
        problem = refused(path, **options)

        assert problem.exit_code == 65
        assert problem.message == "a.parquet: no column 'contnet'"
        assert problem.hint == "did you mean 'content'? columns: content (string), nr (int64)"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (pa.array([1]), "int64"),
        (pa.array([b"x"], pa.binary(1)), "fixed_size_binary[1]"),
        (pa.array([["x"]]), "list<element: string>"),
        (pa.array([1.5]), "double"),
        (pa.array([[0.5]]), "list<element: double>"),
    ],
)
def test_a_column_that_is_no_text_names_its_type(tmp_path, values, named):
    """Numbers, bytes of one length and lists of text end with 65 before any work."""
    path = parquet(tmp_path / "a.parquet", {"body": values, "other": ["x"]})
    with pytest.raises(InputInvalid) as caught:
        opened(path, text_column="body")

    assert caught.value.message == f"a.parquet: column 'body' is {named}, not text"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_kind_of_string_reads_the_same(tmp_path, kind):
    """string, large_string, string_view and dictionary give the same rows, as text, as id and as a kept column."""
    values = ["a", "é", "", "a"]
    typed = pa.array(values).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)
    path = parquet(tmp_path / "a.parquet", {"id": typed, "text": typed, "more": typed})
    source = opened(path)

    assert table(path) == [{"id": each, "text": each, "more": each} for each in values]
    assert source.id_type == pa.string()
    assert source.schema_kept == pa.schema([("more", pa.string())])


def test_kept_columns_travel_with_their_types_and_order(tmp_path):
    """Other columns come along unchanged, nulls and nesting too, in the order of the input."""
    columns = {
        "when": pa.array([1, None], pa.timestamp("us", "UTC")),
        "text": ["a", "b"],
        "tags": [["x"], []],
        "who": pa.array([{"name": "n"}, None]),
        "price": pa.array([None, 2], pa.decimal128(9, 2)),
    }
    path = parquet(tmp_path / "a.parquet", columns)
    expected = pa.table(columns).drop_columns("text")
    blocks = list(opened(path).blocks())

    assert pa.Table.from_batches([block.kept for block in blocks]).to_pylist() == expected.to_pylist()
    assert blocks[0].kept.schema.names == expected.schema.names
    assert table(path, keep="none") == [{"id": 0, "text": "a"}, {"id": 1, "text": "b"}]
    assert [set(row) for row in table(path, keep=("price", "text"))] == [{"id", "text", "price"}] * 2


@pytest.mark.parametrize(
    "name",
    [
        "embedding",
        "embedding_model",
        "embedding_provider",
        "embedding_tokens",
        "embedding_operation_id",
        "embedding_text_hash",
        "chunk_index",
        "id",
        "text",
    ],
)
def test_a_kept_column_of_our_name_is_wrong_usage(tmp_path, name):
    """A column that would travel along under a name of the output ends with 2 and a hint at --keep."""
    path = parquet(tmp_path / "a.parquet", {"body": ["a"], "doc": ["d"], "lang": ["en"], name: ["x"]})
    options = {"text_column": "body", "id_column": "doc"}
    problem = refused(path, **options)

    assert isinstance(problem, WrongUsage)
    assert problem.message == f"a.parquet: column {name!r} carries the name of a column of the output"
    assert "--keep lang" in problem.hint
    assert table(path, **options, keep=("lang",)) == [{"id": "d", "text": "a", "lang": "en"}]


def test_ids_keep_their_type(tmp_path):
    """Integer ids stay integers of their width, text stays text; without an id column rows are numbered from 0."""
    big = parquet(tmp_path / "a.parquet", {"id": pa.array([2**63], pa.uint64()), "text": ["a"]})
    csv = tmp_path / "b.csv"
    csv.write_text("id,text\n007,a\n")
    bare = parquet(tmp_path / "c.parquet", {"text": ["a", "b"]})

    assert (table(big)[0]["id"], opened(big).id_type) == (2**63, pa.uint64())
    assert (table(csv)[0]["id"], opened(csv).id_type) == ("007", pa.string())
    assert ([row["id"] for row in table(bare)], opened(bare).id_type) == ([0, 1], pa.int64())


def test_a_row_without_id_is_named(tmp_path):
    """A null in the id column fails its row, which is called by file and row or line."""
    path = parquet(tmp_path / "a.parquet", {"id": pa.array([1, None]), "text": ["a", "b"]})
    as_lines = lines(tmp_path / "a.jsonl", {"id": 1, "text": "a"}, {"text": "b"})

    assert [row["id"] for row in table(path)] == [1, "a.parquet#1"]
    assert (reasons(path), messages(path)) == ({1: "no_id"}, {1: "a.parquet: row 1: it has no 'id'"})
    assert [row["id"] for row in table(as_lines)] == [1, "a.jsonl#2"]
    assert reasons(as_lines) == {1: "no_id"}
    assert messages(as_lines) == {1: "a.jsonl: line 2: no 'id'; --id-column chooses another field"}


# Rows that have no text


def test_null_cells_are_reasons_not_words(tmp_path):
    """A null text is the reason null in every format, never the text "None"."""
    columns = {"text": ["a", None, ""]}

    assert reasons(parquet(tmp_path / "a.parquet", columns)) == {1: "null"}
    assert reasons(parquet(tmp_path / "b.parquet", {"text": pa.array(columns["text"]).dictionary_encode()})) == {
        1: "null"
    }
    assert reasons(lines(tmp_path / "c.jsonl", {"text": "a"}, {"text": None}, {"n": 1})) == {1: "null", 2: "null"}


def test_invalid_utf8_in_parquet_is_a_reason(tmp_path):
    """A Parquet text that is no UTF-8 fails alone; neither reading nor a plain validate() would notice."""
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary()).buffers())
    path = parquet(tmp_path / "a.parquet", {"text": bad})

    assert reasons(path) == {1: "invalid_utf8"}
    assert [row["text"] for row in table(path)] == ["ok", None, "fine"]
    assert reasons(parquet(tmp_path / "b.parquet", {"text": ["a"] * 3, "note": bad})) == {1: "invalid_utf8"}
    assert reasons(parquet(tmp_path / "c.parquet", {"text": ["a"] * 3, "id": bad})) == {1: "invalid_utf8"}


def test_half_a_surrogate_pair_is_a_reason(tmp_path):
    r"""A JSON row with a lone \ud800 in its text, its id or a kept field fails alone."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "n": "x"}\n{"text": "\\ud800", "n": "y"}\n{"text": "\\ud83d\\ude00"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": "b", "n": "\\ud800"}\n')

    assert reasons(path) == {1: "invalid_unicode"}
    assert [(row["text"], row["n"]) for row in table(path)] == [("a", "x"), (None, "y"), ("😀", None)]
    assert messages(tmp_path / "b.jsonl") == {1: "b.jsonl: line 2: 'n' holds half of a surrogate pair"}


def test_over_long_cells_are_reasons(tmp_path):
    """A text over max_row_bytes has the reason too_large in every format; sizes are of UTF-8."""
    values = ["short", "é" * 30, "end"]
    csv = tmp_path / "a.csv"
    csv.write_text("text\n" + "\n".join(values) + "\n")
    for path in (
        csv,
        parquet(tmp_path / "a.parquet", {"text": values}),
        parquet(tmp_path / "b.parquet", {"text": pa.array(values).dictionary_encode()}),
        lines(tmp_path / "a.jsonl", *({"text": each} for each in values)),
    ):
        assert reasons(path, max_row_bytes=59) == {1: "too_large"}
        assert reasons(path, max_row_bytes=1000) == {}


@pytest.mark.parametrize("large", ["id", "note", "tags"])
def test_a_row_is_too_large_with_its_id_and_kept_columns(tmp_path, large):
    """Text, id and kept columns count together against max_row_bytes, in every format; the others stay as they are."""
    values = [{"id": f"{n}", "text": f"t{n}", "note": "n", "tags": ["a", "b"]} for n in range(3)]
    values[1][large] = ["y" * 30] * 4 if large == "tags" else "y" * 90
    paths = [parquet(tmp_path / "a.parquet", {name: [one[name] for one in values] for name in values[0]})]
    paths.append(tmp_path / "a.json")
    paths[-1].write_text(json.dumps(values))
    if large != "tags":
        paths.append(tmp_path / "a.csv")
        paths[-1].write_text("id,text,note\n" + "".join(f"{one['id']},{one['text']},{one['note']}\n" for one in values))
    for path in paths:
        assert reasons(path, text_column="text", max_row_bytes=80) == {1: "too_large"}
        assert reasons(path, text_column="text", max_row_bytes=1000) == {}
        read = table(path, text_column="text", max_row_bytes=80)
        assert [one["text"] for one in read] == ["t0", None, "t2"]
        assert [len(one["id"]) for one in read] == [1, 90 if large == "id" else 1, 1]


def test_an_id_over_the_limit_is_cut_in_its_failure(tmp_path):
    """An id that alone exceeds max_row_bytes is not carried along whole."""
    path = parquet(tmp_path / "a.parquet", {"id": ["é" * 1000, "b"], "text": ["x", "y"]})

    [block] = opened(path, max_row_bytes=900).blocks()

    assert block.ids == ["é" * 200 + "…", "b"]
    assert block.reasons == {0: "too_large"}


def test_token_arrays_count_against_the_limit(tmp_path):
    """A token array over max_row_bytes has the reason too_large, four bytes a token."""
    path = parquet(tmp_path / "a.parquet", {"tokens": [[1] * 5, [1] * 50]})

    assert reasons(path, max_row_bytes=100) == {1: "too_large"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["ab", None, "é"]),
        pa.array(["ab", None, "é"], pa.large_string()).dictionary_encode(),
        pa.array(["ab", None, "é"], pa.string_view()),
        pa.array([["ab", "c"], None, ["é"]]),
        pa.array([{"a": "ab", "b": ["c"]}, None, {"a": "é", "b": []}]),
        pa.array([[("ab", "c")], None, [("é", "")]], pa.map_(pa.string(), pa.string())),
        pa.array([["ab", "c"], ["", ""], ["é", ""]], pa.list_(pa.string(), 2)),
        pa.array([[["ab"], ["c"]], None, [["é"]]], pa.list_(pa.list_(pa.string()))),
    ],
    ids=lambda column: str(column.type),
)
def test_bytes_of_rows_are_those_of_their_strings(column):
    """Each row counts the bytes of all strings in it, however deep they are, also in a slice of a longer column."""
    expected = [0 if one is None else len("".join(_strings(one)).encode()) for one in column.to_pylist()]

    assert list(row_bytes.of(column)) == expected
    assert list(row_bytes.of(column.slice(1))) == expected[1:]


def _strings(value):
    if isinstance(value, str):
        yield value
    else:
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


@pytest.mark.parametrize("shape", ["struct", "list", "map", "several"])
def test_a_bomb_of_nested_or_many_columns_is_read_in_small_pieces(tmp_path, shape):
    """A repeated value counts for every column and every depth that it stands in."""
    value, rows = "x" * 100_000, 2000
    shapes = {
        "struct": {"a": [{"b": value}] * rows},
        "list": {"a": [[value, value]] * rows},
        "map": {"a": pa.array([[("k", value)]] * rows, pa.map_(pa.string(), pa.string()))},
        "several": {f"a{n}": [value] * rows for n in range(12)},
    }
    path = parquet(tmp_path / "a.parquet", {"text": ["t"] * rows, **shapes[shape]})
    del shapes
    before, peak, count = pa.total_allocated_bytes(), 0, 0
    for block in opened(path, text_column="text").blocks():
        count += len(block)
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert block.kept.nbytes <= 5 << 20
        if count > 300:
            break

    assert path.stat().st_size < 2 << 20
    assert peak < 160 << 20


def test_the_time_for_columns_grows_with_their_number(tmp_path):
    """Twice the columns take about twice the time, not four times."""
    seconds = []
    for count in (2000, 8000):
        path = parquet(tmp_path / f"{count}.parquet", {"text": ["t"], **{f"c{n}": [n] for n in range(count)}})
        started = time.process_time()
        assert sum(map(len, opened(path).blocks())) == 1
        seconds.append(time.process_time() - started)

    assert seconds[1] < 9 * seconds[0]


def test_a_json_line_too_long_to_parse_is_named_by_its_line(tmp_path):
    """Its id cannot be known, so the failure says file and line; the others keep their ids and fields."""
    path = lines(
        tmp_path / "a.jsonl", {"id": 1, "text": "a", "n": 5}, {"id": 2, "text": "x" * 500}, {"id": 3, "text": "b"}
    )

    assert table(path, max_row_bytes=100) == [
        {"id": 1, "text": "a", "n": 5},
        {"id": "a.jsonl#2", "text": None, "n": None},
        {"id": 3, "text": "b", "n": None},
    ]


def test_token_arrays_are_rows(tmp_path):
    """A column of integer lists is token arrays in Parquet and JSON Lines; a bad token fails its row alone."""
    arrays = [[1, 2], None, [3, None], [], [-1]]
    expected = [[1, 2], None, None, [], None]
    why = {1: "null", 2: "invalid_tokens", 4: "invalid_tokens"}
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64())):
        path = parquet(tmp_path / "a.parquet", {"text": pa.array(arrays, kind)})

        assert [row["text"] for row in table(path)] == expected
        assert reasons(path) == why
    as_lines = lines(tmp_path / "a.jsonl", *({"toks": each} for each in [[1, 2], None, [3, 4]]))

    assert [row["text"] for row in table(as_lines)] == [[1, 2], None, [3, 4]]
    assert opened(as_lines).is_tokens


# Parquet


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 0.9999))
def test_a_truncated_parquet_is_invalid_wherever_it_ends(tmp_path_factory, at):
    """However much of its end is missing, it ends with 65 in one sentence."""
    folder = tmp_path_factory.mktemp("truncated")
    whole = parquet(
        folder / "a.parquet", {"id": range(500), "text": ["some text"] * 500}, row_group_size=100
    ).read_bytes()
    (folder / "b.parquet").write_bytes(whole[: int(at * len(whole))])
    problem = refused(folder / "b.parquet")

    assert problem.exit_code == 65
    assert problem.message.startswith("b.parquet: not a Parquet file, or a damaged one")
    assert "\n" not in problem.message


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, at, bit):
    """With page checksums a flipped bit ends with 65, or the rows are those that were written."""
    folder = tmp_path_factory.mktemp("flipped")
    texts = [f"text {n}" for n in range(300)]
    whole = bytearray(
        parquet(folder / "a.parquet", {"text": texts}, row_group_size=100, write_page_checksum=True).read_bytes()
    )
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    whole[int(at * (len(whole) - footer))] ^= 1 << bit
    (folder / "b.parquet").write_bytes(whole)
    try:
        found = [row["text"] for row in table(folder / "b.parquet")]
    except InputInvalid:
        return

    assert found == texts


def test_a_damaged_row_group_is_named_after_the_good_ones(tmp_path):
    """Rows before the damage are read; the error says which row group it is."""
    path = parquet(
        tmp_path / "a.parquet", {"text": [f"t{n}" for n in range(300)]}, row_group_size=100, write_page_checksum=True
    )
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    middle = column.dictionary_page_offset + column.total_compressed_size // 2
    content[middle] ^= 0xFF
    path.write_bytes(content)
    read_blocks: list[inputs.Block] = []
    with pytest.raises(InputInvalid) as caught:
        read_blocks.extend(opened(path).blocks())

    assert sum(map(len, read_blocks)) == 200
    assert caught.value.message.startswith("a.parquet: row group 2 is damaged")


def test_a_parquet_bomb_is_read_in_small_pieces(tmp_path):
    """A tiny file of gigabytes of one repeated value takes no more memory than some blocks."""
    value = "x" * 300_000
    path = parquet(
        tmp_path / "a.parquet", {"text": pa.DictionaryArray.from_arrays(np.zeros(50_000, np.int32), [value])}
    )
    plain_path = tmp_path / "b.parquet"
    with pq.ParquetWriter(plain_path, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        for _ in range(10):
            writer.write_batch(pa.record_batch({"text": [value] * 300}))
    for bomb in (path, plain_path):
        before, peak, count = pa.total_allocated_bytes(), 0, 0
        assert bomb.stat().st_size < 1 << 20
        for block in opened(bomb).blocks():
            count += len(block)
            peak = max(peak, pa.total_allocated_bytes() - before)
            assert sum(map(len, block.texts)) <= 4 << 20
            if count > 2000:
                break

        assert peak < 64 << 20


def test_reading_a_large_parquet_takes_constant_memory(tmp_path):
    """200,000 distinct texts in one row group are streamed: Arrow never holds more than some batches."""
    path = tmp_path / "a.parquet"
    count = 200_000
    texts = pa.array([f"row {n} " + "words " * 20 for n in range(count)])
    parquet(path, {"id": range(count), "text": texts, "lang": texts}, row_group_size=count)
    del texts
    before, peak, seen = pa.total_allocated_bytes(), 0, 0
    for block in opened(path).blocks():
        seen += len(block)
        peak = max(peak, pa.total_allocated_bytes() - before)

    assert seen == count
    assert path.stat().st_size > 2 << 20
    assert peak < 16 << 20


def test_only_needed_columns_are_read(tmp_path):
    """With --keep none a damaged column that nobody asked for does not matter."""
    path = parquet(
        tmp_path / "a.parquet",
        {"text": ["a"] * 100, "junk": [f"junk {n}" for n in range(100)]},
        write_page_checksum=True,
    )
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(content)

    assert len(table(path, keep="none", text_column="text")) == 100
    assert refused(path, text_column="text").exit_code == 65


def test_something_else_called_parquet_is_invalid(tmp_path):
    """A file named .parquet that is none ends with 65."""
    (tmp_path / "a.parquet").write_text("id,text\n1,a\n")

    assert refused(tmp_path / "a.parquet").message.startswith("a.parquet: not a Parquet file")


def test_a_parquet_of_no_rows_has_none(tmp_path):
    """A Parquet of 0 rows is 0 rows, with its schema known."""
    path = parquet(tmp_path / "a.parquet", {"text": pa.array([], pa.string()), "n": pa.array([], pa.int8())})
    source = opened(path)

    assert list(source.blocks()) == []
    assert (source.rows_hint, source.schema_kept) == (0, pa.schema([("n", pa.int8())]))


def test_a_table_without_extension_is_known_by_its_content(tmp_path):
    """Parquet and JSON Lines are recognised whatever the file is called."""
    parquet(tmp_path / "a", {"text": ["p"]})
    lines(tmp_path / "b.dump", {"text": "j"})

    assert [table(tmp_path / name)[0]["text"] for name in ("a", "b.dump")] == ["p", "j"]


# JSON


def test_json_fields_get_the_narrowest_type(tmp_path):
    """Kept fields are integers, floats, booleans or text; objects, lists and mixtures travel as JSON text."""
    path = lines(
        tmp_path / "a.jsonl",
        {"text": "a", "i": 1, "f": 1, "b": True, "o": {"k": [1]}, "m": 1, "u": 2**63, "s": None},
        {"text": "b", "i": -5, "f": 2.5, "b": None, "o": [], "m": "one", "u": 0, "late": "x"},
    )

    assert table(path) == [
        {
            "id": 0,
            "text": "a",
            "i": 1,
            "f": 1.0,
            "b": True,
            "o": '{"k":[1]}',
            "m": "1",
            "u": 2**63,
            "s": None,
            "late": None,
        },
        {"id": 1, "text": "b", "i": -5, "f": 2.5, "b": None, "o": "[]", "m": "one", "u": 0, "s": None, "late": "x"},
    ]
    assert opened(path).rows_hint == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', "not JSON: unexpected end of data (column 13)"),
        ("[1]", "an object is needed, this is a list"),
        ('"text"', "an object is needed, this is text"),
        ('{"text": NaN}', "'text' is a number, not text"),
        ('{"text": nan}', "not JSON: invalid literal"),
        ("[" * 100_000, "not JSON: "),
        ('{"text": "a", "n": ' + "9" * 5000 + "}x", "not JSON: "),
        ('{"text": 5}', "'text' is a number, not text"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, said):
    """A line that is no JSON object, or whose text is none, fails alone, with its number; blank lines are no rows."""
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n\n' + line + '\n{"text": "after"}\n')
    found = messages(tmp_path / "a.jsonl")

    assert list(found) == [1]
    assert found[1].startswith(f"a.jsonl: line 3: {said}")
    assert [row["text"] for row in table(tmp_path / "a.jsonl")] == ["ok", None, "after"]


def test_a_file_without_any_object_is_no_json_lines(tmp_path):
    """A file in which no line is an object ends with 65 and its first line: it is something else."""
    (tmp_path / "a.jsonl").write_text("text: a\ntext: b\n")

    assert refused(tmp_path / "a.jsonl").message.startswith("a.jsonl: line 1: not JSON: ")


@pytest.mark.parametrize("content", ['{\n  "text": "a"\n}\n', '{"a": [1,\n2], "text": "b"}\n', "{\n}\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_one_object_over_several_lines_is_told_as_that(name, content, tmp_path):
    """A file that is one object, written over several lines, ends with 65 and says how it is embedded all the same."""
    (tmp_path / name).write_text(content)
    found = refused(tmp_path / name)

    assert found.message == f"{name} is one JSON object over several lines, not rows"
    assert "--format text" in found.hint


def test_objects_without_fields_are_not_lost_silently(tmp_path):
    """Rows of empty objects end with 65: they are rows, but no column is the text."""
    assert refused(lines(tmp_path / "a.jsonl", {}, {})).message == "a.jsonl: no column is the text"


def test_integers_that_no_column_holds_are_text(tmp_path):
    """Integers that fit neither int64 nor uint64 together travel as text, and as ids they are text."""
    path = lines(tmp_path / "a.jsonl", {"id": 2**63, "text": "a"}, {"id": -1, "text": "b"})

    assert [row["id"] for row in table(path)] == [str(2**63), "-1"]


def test_invalid_utf8_is_a_rows_own_matter(tmp_path):
    """A row of JSON Lines or CSV that is no UTF-8 fails alone, with its line and byte."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    (tmp_path / "b.csv").write_bytes(b"text\nok\na\xffb\nfine\n")
    how = "--encoding says how it is written"

    assert messages(tmp_path / "a.jsonl") == {1: f"a.jsonl: line 2: invalid UTF-8 at byte 11 (0xff); {how}"}
    assert messages(tmp_path / "b.csv") == {1: f"b.csv: line 3: invalid UTF-8 at byte 2 (0xff); {how}"}
    assert [row["text"] for row in table(tmp_path / "b.csv")] == ["ok", None, "fine"]
    assert reasons(tmp_path / "b.csv") == {1: "invalid_utf8"}


def test_bytes_that_another_encoding_lacks_are_a_rows_own_matter(tmp_path):
    """With --encoding a row of bytes that this has no characters for fails alone, in every encoding."""
    (tmp_path / "a.csv").write_bytes(b"text\nna\xefve\na\x81b\n")
    (tmp_path / "b.csv").write_bytes("text\nok\n\ud800\nend\n".encode("utf-16-le", "surrogatepass"))
    how = "--encoding says how it is written"

    assert [row["text"] for row in table(tmp_path / "a.csv", encoding="cp1252")] == ["naïve", None]
    assert messages(tmp_path / "a.csv", encoding="cp1252") == {1: f"a.csv: line 3: bytes that are not cp1252; {how}"}
    assert [row["text"] for row in table(tmp_path / "b.csv", encoding="utf-16-le")] == ["ok", None, "end"]


def test_a_field_that_first_comes_late_is_not_lost_silently(tmp_path, monkeypatch):
    """Beyond what is looked at, a new field or type fails its row; --keep with the field's name keeps it."""
    monkeypatch.setattr(json_lines, "SCAN_BYTES", 0)
    monkeypatch.setattr(json_lines, "SCAN_BYTES_PER_FILE", 0)
    monkeypatch.setattr(json_lines, "TAIL_BYTES", 100)
    monkeypatch.setattr("embedctl.inputs.decoding.CHUNK_BYTES", 64)
    rows = [{"text": "some words", "n": 1}] * 20
    new = lines(tmp_path / "a.jsonl", *rows, {"text": "x", "extra": 1}, *rows)
    other = lines(tmp_path / "b.jsonl", *rows, {"text": "x", "n": "one"}, *rows)

    assert messages(new) == {
        20: "a.jsonl: line 21: the field 'extra' is not at the file's beginning or end: name fields with --keep"
    }
    assert messages(other) == {20: "b.jsonl: line 21: 'n' is text; other rows have int64"}
    assert len(table(new, keep=("n",))) == 41
    assert reasons(new, keep=("n",)) == {}
    assert table(new, keep=("n", "extra"))[20] == {"id": 20, "text": "x", "n": None, "extra": "1"}
    assert opened(new).rows_hint is None


def test_a_field_that_came_in_with_time_is_kept(tmp_path, monkeypatch):
    """Of a file that is not looked through, its end is looked at too: what stands there is a column from the start."""
    monkeypatch.setattr(json_lines, "SCAN_BYTES", 0)
    monkeypatch.setattr(json_lines, "SCAN_BYTES_PER_FILE", 0)
    monkeypatch.setattr("embedctl.inputs.decoding.CHUNK_BYTES", 64)
    old, new = [{"text": "some words"}] * 20, [{"text": "x", "extra": 1}] * 20
    path = lines(tmp_path / "a.jsonl", *old, *new)

    assert [row["extra"] for row in table(path)] == [None] * 20 + [1] * 20
    assert reasons(path) == {}


def test_a_json_array_is_read(tmp_path):
    """A .json file is an array of objects, pretty-printed or not, or else JSON Lines."""
    (tmp_path / "a.json").write_text(json.dumps([{"id": "x", "text": "a"}, {"id": "y", "text": "b"}], indent=2))
    (tmp_path / "b.json").write_text('{"id": "z", "text": "c"}\n')
    (tmp_path / "c.json").write_text('[{"text": "a"}, 5]')
    (tmp_path / "d.json").write_text('[{"text": "a"},\n')

    assert [row["text"] for row in table(tmp_path / "a.json", tmp_path / "b.json")] == ["a", "b", "c"]
    assert messages(tmp_path / "c.json") == {1: "c.json: element 2: an object is needed, this is a number"}
    assert refused(tmp_path / "d.json").exit_code == 65


def test_json_lines_hold_any_text(tmp_path):
    """U+2028, newlines, NUL and quotes within a JSON text round trip, and CRLF ends a line."""
    text = 'a\u2028b\nc\0d"\r\n'
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\r\n"
    )

    assert [row["text"] for row in table(tmp_path / "a.jsonl")] == [text]


def test_mixed_ids_become_text(tmp_path):
    """Ids of text and integers in one file are all text; other ids end with 65."""
    path = lines(tmp_path / "a.jsonl", {"id": 1, "text": "a"}, {"id": "b", "text": "b"})

    assert [row["id"] for row in table(path)] == ["1", "b"]
    other = lines(tmp_path / "b.jsonl", {"id": "a", "text": "a"}, {"id": True, "text": "b"})
    assert messages(other) == {1: "b.jsonl: line 2: 'id' is true or false; other rows have string"}
    assert [row["id"] for row in table(other)] == ["a", "b.jsonl#2"]


# CSV


def test_csv_values_are_text_as_they_stand(tmp_path):
    """Quotes, newlines and delimiters within values are kept, empty values are empty text, nothing becomes a number."""
    (tmp_path / "a.csv").write_text('id,text,price\r\n01,"a, ""b""\nc",1.50\r\n02,,\r\n')

    assert table(tmp_path / "a.csv") == [
        {"id": "01", "text": 'a, "b"\nc', "price": "1.50"},
        {"id": "02", "text": "", "price": ""},
    ]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tab", "\t")]
)
def test_other_delimiters_are_seen(tmp_path, name, delimiter):
    """Tabs by extension; semicolons, tabs and bars from a header without commas."""
    (tmp_path / name).write_text(delimiter.join(["id", "text"]) + "\n" + delimiter.join(["1", "a, b"]) + "\n")

    assert table(tmp_path / name) == [{"id": "1", "text": "a, b"}]


def test_a_ragged_csv_row_is_named(tmp_path):
    """A row with more or fewer values than the first fails alone, with its line, far into the file too."""
    for count in (3, 60_000):
        (tmp_path / "a.csv").write_text("id,text\n" + f"1,{'word ' * 10}\n" * count + "1,2,3\n\n4\n5,five\n")
        found = table(tmp_path / "a.csv")

        assert [row["id"] for row in found[-3:]] == [f"a.csv#{count + 2}", f"a.csv#{count + 4}", "5"]
        assert reasons(tmp_path / "a.csv") == {count: "bad_row", count + 1: "bad_row"}
        assert messages(tmp_path / "a.csv") == {
            count: f"a.csv: line {count + 2}: 3 values where 2 belong",
            count + 1: f"a.csv: line {count + 4}: 1 values where 2 belong",
        }


def test_a_header_with_an_open_quote_is_named(tmp_path):
    """A header whose quote is never closed ends with 65."""
    (tmp_path / "a.csv").write_text('"id,text\n1,2\n')

    assert refused(tmp_path / "a.csv").message == "a.csv: the header never ends"


def test_only_a_header_is_no_rows(tmp_path):
    """A CSV of a header alone has 0 rows and knows its columns."""
    (tmp_path / "a.csv").write_text("id,text,lang\n")

    assert table(tmp_path / "a.csv") == []
    assert opened(tmp_path / "a.csv").schema_kept.names == ["lang"]


def test_csv_in_gzip_and_another_encoding(tmp_path):
    """CSV reads through gzip and --encoding like text."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress("text\nné\n".encode("latin-1")))

    assert [row["text"] for row in table(tmp_path / "a.csv.gz", encoding="latin-1")] == ["né"]


def test_a_column_twice_in_the_header_is_named(tmp_path):
    """Two columns of one name end with 65 when that name is needed."""
    (tmp_path / "a.csv").write_text("text,text\na,b\n")

    assert refused(tmp_path / "a.csv").message == "a.csv: column 'text' is there 2 times"


# Several tables


def test_tables_of_one_shape_are_one_input(tmp_path):
    """Tables with the same columns are read one after the other, in whatever order their columns stand."""
    parquet(tmp_path / "a.parquet", {"id": ["1"], "text": ["a"], "lang": ["en"]})
    parquet(tmp_path / "b.parquet", {"lang": pa.array(["de"]).dictionary_encode(), "text": ["b"], "id": ["2"]})
    (tmp_path / "c.csv").write_text("id,lang,text\n3,fr,c\n")
    (tmp_path / "d.csv").touch()

    assert table(tmp_path) == [
        {"id": "1", "text": "a", "lang": "en"},
        {"id": "2", "text": "b", "lang": "de"},
        {"id": "3", "text": "c", "lang": "fr"},
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"body": ["b"], "n": [1]}, "column 'text' is in a.parquet, not in b.parquet"),
        ({"text": ["b"], "n": [1], "id": [1]}, "column 'id' is in b.parquet, not in a.parquet"),
        ({"text": ["b"], "n": [[1]]}, "column 'n' is list<element: int64> in b.parquet, int64 in a.parquet"),
    ],
)
def test_tables_that_differ_say_how(tmp_path, other, said):
    """Tables that lack the text or the id, or have no common type, end with 65 before any work."""
    parquet(tmp_path / "a.parquet", {"text": ["a"], "n": [1]})
    parquet(tmp_path / "b.parquet", other)

    assert refused(tmp_path).message == f"the tables differ: {said}"


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=40), group=st.integers(1, 9)
)
def test_every_format_gives_the_same_rows(tmp_path_factory, texts, group):
    """Whatever the texts, Parquet (plain, dictionary) and JSON Lines hold the same rows in the same order."""
    folder = tmp_path_factory.mktemp("same")
    column = pa.array(texts, pa.string())
    expected = [{"id": at, "text": text} for at, text in enumerate(texts)]

    assert table(parquet(folder / "a.parquet", {"text": column}, row_group_size=group)) == expected
    assert (
        table(parquet(folder / "b.parquet", {"text": column}, use_dictionary=False, data_page_version="2.0"))
        == expected
    )
    assert table(parquet(folder / "c.parquet", {"text": column.dictionary_encode()}, row_group_size=group)) == expected
    if any(text is not None for text in texts):
        assert table(lines(folder / "d.jsonl", *({"text": text} for text in texts))) == expected


def test_block_sizes_hold(tmp_path):
    """A block has at most 4096 rows and about 4 MiB of text, whatever the batches of the file are."""
    path = parquet(tmp_path / "a.parquet", {"text": ["x" * 100_000] * 200 + ["y"] * 9000})
    blocks = list(opened(path).blocks())

    assert sum(map(len, blocks)) == 9200
    assert max(map(len, blocks)) <= 4096
    assert max(sum(map(len, block.texts)) for block in blocks) <= 4 << 20
    assert read_parquet.BATCH_BYTES >= 4 << 20


def test_a_table_whose_file_name_is_no_utf8_is_read(tmp_path):
    """Parquet files with odd bytes in their names read like any other."""
    parquet(tmp_path / "a.parquet", {"text": ["a"]})
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\x1b.parquet")
    os.rename(tmp_path / "a.parquet", odd)

    assert [row["text"] for row in table(odd)] == ["a"]
    assert opened(odd).fingerprint()["files"][0]["name"] == "\\xe9\x1b.parquet"


def test_the_sample_tickets_are_worth_looking_at():
    """The sample table has blank, null, repeated, long and non-Latin texts among its rows, and unique ids."""
    found = table(SAMPLES / "tickets.parquet")
    texts = [row["text"] for row in found]
    words = [text for text in texts if text and text.strip()]

    assert len({row["id"] for row in found}) == len(found) == 117
    assert list(found[0]) == ["id", "text", "product", "created_at"]
    assert texts.count(None) == 2
    assert sum(1 for text in texts if text is not None and not text.strip()) == 4
    assert len(words) - len(set(words)) == 10
    assert sorted(len(text) for text in words)[-3] > 1000
    for piece in ("Фонарь", "ガラス", "المصباح", "बैग", "😭"):
        assert any(piece in text for text in words)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [("faq.jsonl", {}, 24), ("products.csv", {"text_column": "description", "id_column": "sku"}, 20)],
)
def test_the_other_sample_tables_are_read(name, options, count):
    """The samples in JSON Lines and CSV are read with ids and other columns."""
    found = table(SAMPLES / name, **options)

    assert len({row["id"] for row in found}) == len(found) == count
    assert len(found[0]) > 4
