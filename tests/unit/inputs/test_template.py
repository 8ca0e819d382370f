"""A text made of several columns: joined by a blank line, or as a template says; its sources travel along."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.errors import EmbedctlError, InputInvalid, WrongUsage
from embedctl.inputs import ReadOptions, open_input
from embedctl.inputs.template import parsed
from tests.support.running import embedctl, user_settings

ROWS = [
    {"id": "a", "title": "T", "body": "B", "n": 1},
    {"id": "b", "title": None, "body": "B", "n": 2},
    {"id": "c", "title": "T", "body": None, "n": None},
    {"id": "d", "title": None, "body": None, "n": 4},
    {"id": "e", "title": "", "body": " ", "n": 5},
]


@pytest.fixture(params=["parquet", "jsonl", "json", "csv"])
def table(tmp_path, request):
    """The rows in each format; CSV has empty cells for null."""
    path = tmp_path / f"a.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif request.param == "json":
        path.write_text(json.dumps(ROWS))
    else:
        cells = [[str(value) if value is not None else "" for value in row.values()] for row in ROWS]
        path.write_text("\n".join(",".join(row) for row in [list(ROWS[0]), *cells]) + "\n")
    return path


def read(path, **options):
    source = open_input([str(path)], ReadOptions(**options))
    blocks = list(source.blocks())
    assert all(block.kept is None or block.kept.schema == source.schema_kept for block in blocks)
    return source, [text for block in blocks for text in block.texts], [row for block in blocks for row in block.ids]


def test_columns_are_joined_by_a_blank_line(table):
    """Parts that are null or empty are left out with their blank line; a row of none is null, or blank in CSV."""
    source, texts, ids = read(table, text_column="title, BODY")

    assert texts[:3] == ["T\n\nB", "B", "T"]
    assert texts[3] == ("" if table.suffix == ".csv" else None)
    assert not texts[4]
    assert ids == ["a", "b", "c", "d", "e"]
    assert source.schema_kept.names == ["title", "body", "n"]
    assert read(table, text_column="title,body", keep="none")[0].schema_kept.names == []


def test_a_template_says_what_stands_between(table):
    """Null is empty text; a row without any part is blank, whatever the words; numbers read as they are."""
    source, texts, _ = read(table, template=r"# {Title}\n{n}:\t{{{body}}}", keep=("n",))

    assert texts[0] == "# T\n1:\t{B}"
    assert texts[1] == "# \n2:\t{B}"
    assert texts[2] == "# T\n:\t{}"
    assert source.schema_kept.names == ["n"]
    _, only, _ = read(table, template="Title: {title}", keep="none")
    assert only[0] == "Title: T"
    assert not any(only[at] for at in (1, 3, 4))


def test_a_column_whose_whole_name_holds_a_comma_comes_first(tmp_path):
    """`--text-column title,body` is the column of that name, where there is one."""
    pq.write_table(pa.table({"title,body": ["whole"], "title": ["T"], "body": ["B"]}), tmp_path / "a.parquet")

    assert read(tmp_path / "a.parquet", text_column="title,body")[1] == ["whole"]


def test_values_of_other_types_read_as_ids_do(tmp_path):
    """Bytes are text where they are UTF-8, else the row fails; true, times and decimals read as elsewhere."""
    columns = {"b": pa.array([b"x", b"\xff"]), "t": [True, None], "d": pa.array([0, None], pa.timestamp("s"))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (block,) = open_input([str(tmp_path / "a.parquet")], ReadOptions(template="{b} {t} {d}")).blocks()

    assert block.texts == ["x true 1970-01-01T00:00:00.000", None]
    assert block.reasons == {1: "invalid_utf8"}
    pq.write_table(pa.table({"l": [[1]], "text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(InputInvalid, match="column 'l' is list<element: int64>, which is no part of a text"):
        read(tmp_path / "b.parquet", text_column="text,l")


@pytest.mark.parametrize("wrong", ["", "words", "{", "{}", "{ }", "a}", "{a{b}}", "{{a}}", "{a", "{a}}"])
def test_a_template_that_names_nothing_is_wrong_usage(wrong):
    """An open brace, one too many, and a template without a column end with 2."""
    with pytest.raises(WrongUsage):
        parsed(wrong)


@given(
    st.lists(
        st.one_of(st.tuples(st.just("word"), st.text(max_size=5)), st.tuples(st.just("column"), st.sampled_from("ab")))
    )
)
def test_a_template_means_what_it_spells(pieces):
    """Whatever words stand around columns, escaped they come out as they were."""
    spelt = "".join(
        f"{{{name}}}" if kind == "column" else name.replace("\\", "\\\\").replace("{", "{{").replace("}", "}}")
        for kind, name in pieces
    )
    columns = [name for kind, name in pieces if kind == "column"]
    if not columns:
        with pytest.raises(WrongUsage):
            parsed(spelt)
        return
    found = parsed(spelt)

    assert list(found.columns) == columns
    assert "\0".join(found.words) == "".join("\0" if kind == "column" else name for kind, name in pieces)


def test_a_source_of_the_name_text_is_refused_unless_left_out(tmp_path):
    """The joined text stands in `text`: a source of that name cannot travel along."""
    pq.write_table(pa.table({"title": ["T"], "text": ["B"]}), tmp_path / "a.parquet")
    with pytest.raises(EmbedctlError) as caught:
        read(tmp_path / "a.parquet", text_column="title,text")

    assert caught.value.exit_code == 2
    assert caught.value.hint == "leave it out with --keep title, or rename it"
    assert read(tmp_path / "a.parquet", text_column="title,text", keep=("title",))[1] == ["T\n\nB"]


def test_the_joined_text_stands_in_the_output(table, tmp_path):
    """`text` is the joined text, its sources stand beside it; a rerun buys nothing; verify reads it in the same way."""
    out = tmp_path / "o.parquet"
    first = embedctl("embed", table, "-o", out, "--template", r"{title}\n{body}", "--json")
    again = embedctl("embed", table, "-o", out, "--template", r"{title}\n{body}", "--json")
    other = embedctl("embed", table, "-o", out, "--text-column", "title,body", "--json")
    verified = embedctl("vectors", "verify", out, "--input", table)
    row = pq.read_table(out).to_pylist()[0]

    assert (first.code, first.json["vectors"], first.json["skipped"]) == (0, 3, 2)
    assert again.json["requests"] == 0
    assert other.json["vectors"] == 3
    assert (row["title"], row["body"], row["text"]) == ("T", "B", "T\n\nB")
    assert verified.code == 0, verified.out


def test_a_template_and_a_text_column_contradict(table, tmp_path):
    """Both in one place end with 2; a flag is stronger than what the settings say in the other way."""
    both = embedctl("embed", table, "-o", tmp_path / "o.parquet", "--template", "{title}", "--text-column", "body")
    user_settings('text_column = "body"\n')
    flag = embedctl("embed", table, "-o", "-", "--template", "{title}!", "-q")

    assert both.code == 2
    assert "--template and --text-column both say what the text is" in both.err
    assert [row["text"] for row in flag.lines] == ["T!", "T!"]
