"""Reading inputs: what counts as one, what its rows and ids are, and how bad input is named."""

from __future__ import annotations

import gzip
import io
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import EmbedctlError, InputInvalid, InputMissing, WrongUsage
from embedctl.inputs import ReadOptions, open_input


def rows(*inputs: str | Path, stdin: bytes | None = None, **options) -> list[tuple[str | int, str | None]]:
    """Every row of the inputs, after checking what holds of all blocks."""
    pipe = None if stdin is None else io.BytesIO(stdin)
    source = open_input([str(each) for each in inputs], ReadOptions(**options), stdin=pipe)
    found: list[tuple[str | int, str | None]] = []
    for block in source.blocks():
        assert block.first_row == len(found)
        assert len(block.ids) == len(block.texts) <= 4096
        assert {at for at, text in enumerate(block.texts) if text is None} == set(block.reasons)
        found += zip(block.ids, block.texts, strict=True)
    return found


def refused(*inputs: str | Path, **options) -> EmbedctlError:
    """The error that reading ends with."""
    with pytest.raises(EmbedctlError) as caught:
        rows(*inputs, **options)
    return caught.value


def reasons(*inputs: str | Path, **options) -> dict[int, str]:
    """Ordinal → why a row has no text."""
    source = open_input([str(each) for each in inputs], ReadOptions(**options))
    return {block.first_row + at: why for block in source.blocks() for at, why in block.reasons.items()}


# What a row is


def test_a_text_file_is_one_row_named_by_its_file(tmp_path):
    """By default a text file is one row with its exact text, and its id is the file's name."""
    (tmp_path / "note.txt").write_bytes(b"  one\r\n\ntwo \n")

    assert rows(tmp_path / "note.txt") == [("note.txt", "  one\r\n\ntwo \n")]


def test_lines_carry_their_number(tmp_path):
    """With --split lines every line is a row, blank ones too, and its id ends with its number from 1."""
    (tmp_path / "a.txt").write_text("first\n\nthird")

    assert rows(tmp_path / "a.txt", split="lines") == [("a.txt#1", "first"), ("a.txt#2", ""), ("a.txt#3", "third")]


def test_paragraphs_carry_the_number_of_their_first_line(tmp_path):
    """With --split paragraphs, lines between blank lines are one row, named by the first of them."""
    (tmp_path / "a.md").write_text("\n\n# Head\n\nline one\nline two\n \t\n\nlast")

    assert rows(tmp_path / "a.md", split="paragraphs") == [
        ("a.md#3", "# Head"),
        ("a.md#5", "line one\nline two"),
        ("a.md#9", "last"),
    ]


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.text("aé漢😀\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ufeff"), max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_n_lines_are_n_rows(tmp_path_factory, lines, end, last):
    r"""Only \n and \r\n end a line: texts with any other character, U+2028 or a lone \r, stay whole."""
    lines = ["enough letters to be no binary " * 40, *(line.rstrip("\r") for line in lines)]
    path = tmp_path_factory.mktemp("lines") / "a.log"
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    expected = lines if last or lines[-1] else lines[:-1]

    assert [text for _, text in rows(path, split="lines")] == expected


@settings(max_examples=100, deadline=None)
@given(
    paragraphs=st.lists(st.text("ab \tü\u2028\u3000", min_size=1).filter(str.strip), max_size=8), gap=st.integers(1, 3)
)
def test_n_paragraphs_are_n_rows(tmp_path_factory, paragraphs, gap):
    """However many blank lines stand between them, n paragraphs are n rows."""
    path = tmp_path_factory.mktemp("paragraphs") / "a.txt"
    path.write_bytes(("\n" * (gap + 1)).join(paragraphs).encode())

    assert [text for _, text in rows(path, split="paragraphs")] == paragraphs


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 40), lines=st.lists(st.text("aé漢\r😀", max_size=30), min_size=1, max_size=20))
def test_lines_do_not_depend_on_how_the_file_is_cut(tmp_path_factory, cut, lines):
    """A character or line end that falls between two reads is put together again."""
    from embedctl.inputs import decoding

    lines = [line.rstrip("\r") for line in lines]
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes("".join(line + "\r\n" for line in lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", cut)
        stream = decoding.Utf8Stream(lambda: path.open("rb", 0), "a", path.stat().st_size, encoding="utf-8")
        found = [line for run in decoding.line_runs(stream, 1000) for line in run]
        stream.close()

    assert [line.decode() for line in found] == lines


def test_a_byte_order_mark_is_taken_off_once(tmp_path):
    """A UTF-8 byte order mark at the start is no text; a second one is."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfx")

    assert rows(tmp_path / "a.txt") == [("a.txt", "\ufeffx")]


def test_an_empty_file_has_no_rows(tmp_path):
    """An empty file of any kind is 0 rows and no error."""
    for name in ("a.txt", "b.jsonl", "c.csv", "d.json", "e.tsv", "f.ndjson"):
        (tmp_path / name).touch()

        assert rows(tmp_path / name) == []
        assert rows(tmp_path / name, text_column="body") == []


def test_a_zero_byte_within_text_is_text(tmp_path):
    """U+0000 within a text is kept."""
    (tmp_path / "a.txt").write_bytes(b"before\0after")

    assert rows(tmp_path / "a.txt") == [("a.txt", "before\0after")]


def test_gzip_is_read_through(tmp_path):
    """A gzip of text, by extension or content, reads like the text, also of several members."""
    packed = gzip.compress(b"one\n", mtime=0) + gzip.compress(b"two\n")
    (tmp_path / "a.txt.gz").write_bytes(packed)
    (tmp_path / "b.txt").write_bytes(packed)

    assert rows(tmp_path / "a.txt.gz", tmp_path / "b.txt", split="lines") == [
        ("a.txt.gz#1", "one"),
        ("a.txt.gz#2", "two"),
        ("b.txt#1", "one"),
        ("b.txt#2", "two"),
    ]


def test_encodings_can_be_chosen(tmp_path):
    """--encoding reads text of another encoding, with or without its own byte order mark."""
    (tmp_path / "a.txt").write_bytes("naïve – ok".encode("cp1252"))
    (tmp_path / "b.txt").write_bytes("日本語\nещё".encode("utf-16"))

    assert rows(tmp_path / "a.txt", encoding="cp1252") == [("a.txt", "naïve – ok")]
    assert rows(tmp_path / "b.txt", encoding="utf-16", split="lines") == [("b.txt#1", "日本語"), ("b.txt#2", "ещё")]


def test_an_over_long_row_is_named_and_the_rest_is_read(tmp_path):
    """A row of more than max_row_bytes has the reason too_large; its neighbours are not hurt."""
    (tmp_path / "a.txt").write_text("short\n" + "x" * 3_000_000 + "\n" + "y" * 10 + "\n\nend")

    assert rows(tmp_path / "a.txt", split="lines", max_row_bytes=10) == [
        ("a.txt#1", "short"),
        ("a.txt#2", None),
        ("a.txt#3", "y" * 10),
        ("a.txt#4", ""),
        ("a.txt#5", "end"),
    ]
    assert reasons(tmp_path / "a.txt", split="lines", max_row_bytes=10) == {1: "too_large"}
    assert reasons(tmp_path / "a.txt", split="paragraphs", max_row_bytes=12) == {0: "too_large"}
    assert rows(tmp_path / "a.txt", split="paragraphs", max_row_bytes=12)[1] == ("a.txt#5", "end")
    assert reasons(tmp_path / "a.txt", max_row_bytes=12) == {0: "too_large"}


def test_an_over_long_line_is_never_held(tmp_path):
    """Reading a line of 64 MiB under a limit of 1 MiB takes a few MiB of memory."""
    import tracemalloc

    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\nlast")
    tracemalloc.start()
    found = rows(tmp_path / "a.txt", split="lines", max_row_bytes=1 << 20)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found == [("a.txt#1", None), ("a.txt#2", "last")]
    assert peak_bytes < 12 << 20


def test_what_is_appended_while_reading_is_left_for_the_next_run(tmp_path):
    """The size at the start is the end: a growing log does not grow within a run."""
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\n")
    source = open_input([str(path)], ReadOptions(split="lines"))
    before = source.fingerprint()
    with path.open("a") as log:
        log.write("three\n")

    assert [text for block in source.blocks() for text in block.texts] == ["one", "two"]
    assert source.fingerprint() != before


# Which files


def test_a_folder_is_all_its_files_sorted(tmp_path):
    """A folder is its files of known kinds, sorted by path, without hidden ones and our own outputs."""
    for name in (
        "b.txt",
        "a/z.md",
        "a/y.rst",
        ".hidden.txt",
        ".git/x.txt",
        "pic.png",
        "_embedctl/x.txt",
        "x.embeddings.parquet",
        "x.failures.jsonl",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)

    assert [row for row, _ in rows(tmp_path)] == ["b.txt", "a/y.rst", "a/z.md"]


def test_links_do_not_lead_out_of_a_folder(tmp_path):
    """A symbolic link inside a folder is read, one to the outside is not, nor a linked folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/secret.txt").write_text("secret")
    (tmp_path / "in/a.txt").write_text("mine")
    (tmp_path / "in/b.txt").symlink_to(tmp_path / "out/secret.txt")
    (tmp_path / "in/c").symlink_to(tmp_path / "out")
    (tmp_path / "in/d.txt").symlink_to(tmp_path / "nothing")

    assert rows(tmp_path / "in") == [("a.txt", "mine")]


def test_a_glob_is_expanded_and_names_are_relative_to_its_root(tmp_path):
    """Ids of a glob's files are relative to the part of the pattern without wildcards."""
    for name in ("a.md", "deep/er/b.md", "c.txt"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    assert [row for row, _ in rows(tmp_path / "docs/**/*.md")] == ["a.md", "deep/er/b.md"]


def test_a_file_named_twice_is_read_once(tmp_path):
    """A file that two arguments mean is one input."""
    (tmp_path / "a.txt").write_text("x")

    assert rows(tmp_path / "a.txt", tmp_path / "*.txt", tmp_path) == [("a.txt", "x")]


def test_files_of_one_name_are_told_apart(tmp_path, monkeypatch):
    """Two files of the same name in different folders get their paths as ids."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "readme.md").write_text(folder)

    assert rows("a/readme.md", "./b/readme.md") == [("a/readme.md", "a"), ("b/readme.md", "b")]


def test_a_file_name_of_odd_bytes_is_readable(tmp_path):
    r"""A file name that is no UTF-8 is read, and its id shows the bytes as \xff."""
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:
        file.write(b"x")

    assert rows(os.fsdecode(path)) == [("caf\\xe9.txt", "x")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    """A path that exists is itself, whatever characters it has."""
    (tmp_path / "a[1].txt").write_text("x")

    assert rows(tmp_path / "a[1].txt") == [("a[1].txt", "x")]


# Pipes


def test_stdin_is_spooled_for_its_owner_and_can_be_read_again(tmp_path):
    """What comes from stdin is kept in the given folder, readable by the owner alone, and read again without a pipe."""
    first = rows("-", stdin=b"one\ntwo\n", spool=tmp_path, split="lines")
    again = rows("-", spool=tmp_path, split="lines")

    assert first == again == [("stdin#1", "one"), ("stdin#2", "two")]
    assert [path.name for path in tmp_path.iterdir()] == ["stdin"]
    assert stat.S_IMODE((tmp_path / "stdin").stat().st_mode) == 0o600


def test_stdin_without_a_folder_leaves_nothing(tmp_path, monkeypatch):
    """Without a work folder the copy of stdin goes with the source."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = open_input(["-"], ReadOptions(), stdin=io.BytesIO(b"x"))
    during = len(list(tmp_path.iterdir()))
    assert [block.texts for block in source.blocks()] == [["x"]]
    del source

    assert during == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b'{"id": 7, "text": "a"}\n', {}, [(7, "a")]),
        (b"plain\n", {}, [("stdin", "plain\n")]),
        (b"{not json\n", {}, [("stdin", "{not json\n")]),
        (b"name,text\nx,a\n", {"text_column": "text"}, [(0, "a")]),
        (gzip.compress(b"packed", mtime=0), {}, [("stdin", "packed")]),
        (b"", {}, []),
    ],
)
def test_the_kind_of_stdin_is_seen_from_its_content(content, options, expected):
    """JSON Lines, gzip and text are told apart; a text column makes it a table."""
    assert rows("-", stdin=content, **options) == expected


def test_the_fingerprint_of_stdin_is_its_content(tmp_path):
    """The same bytes through a pipe have the same fingerprint at any time."""
    prints = [
        open_input(["-"], ReadOptions(), stdin=io.BytesIO(content)).fingerprint()
        for content in (b"same", b"same", b"else")
    ]

    assert prints[0] == prints[1] != prints[2]


def test_a_named_pipe_is_read_once_and_kept(tmp_path):
    """A FIFO is spooled like stdin."""
    os.mkfifo(tmp_path / "pipe.txt")
    writer = threading.Thread(target=(tmp_path / "pipe.txt").write_bytes, args=(b"through",))
    writer.start()
    found = rows(tmp_path / "pipe.txt")
    writer.join()

    assert found == [("pipe.txt", "through")]


def test_stdin_that_is_not_there_is_wrong_usage():
    """'-' without a pipe and without an earlier copy ends with 2."""
    assert refused("-").exit_code == 2


# Bad input, and what is said about it


def test_a_missing_file_is_named(tmp_path):
    """A file that is not there ends with 66 and its name."""
    problem = refused(tmp_path / "none.txt")

    assert isinstance(problem, InputMissing)
    assert problem.exit_code == 66
    assert problem.message == f"no such file: {tmp_path}/none.txt"
    assert problem.hint


def test_a_glob_without_a_match_is_missing_input(tmp_path):
    """A pattern that matches nothing ends with 66."""
    problem = refused(tmp_path / "*.txt")

    assert problem.exit_code == 66
    assert problem.message == f"no file matches {tmp_path}/*.txt"


def test_a_folder_without_inputs_is_missing_input(tmp_path):
    """A folder in which nothing can be read ends with 66 and says what is looked for."""
    (tmp_path / "pic.png").touch()
    problem = refused(tmp_path)

    assert problem.exit_code == 66
    assert problem.message == f"no inputs in folder {tmp_path}"
    assert ".parquet" in problem.hint


def test_no_input_at_all_is_wrong_usage():
    """Without any argument it ends with 2."""
    assert refused().exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"%PDF-1.7 rest", "a.txt is binary: a PDF (it starts with b'%PDF-')"),
        ("a", b"\x7fELF\x02\x01", "a is binary: a program (it starts with b'\\x7fELF')"),
        ("a.bin", bytes(range(256)), "a.bin is binary: a zero byte at offset 0"),
        ("a.md", b"\x01\x02\x03\x04abc", "a.md is binary: 4 control bytes in the first 7"),
        (
            "a.docx",
            b"PK\x03\x04",
            "a.docx is binary: a ZIP archive or an Office document (it starts with b'PK\\x03\\x04')",
        ),
        ("a.csv", b"PAR1....", "a.csv is binary: a Parquet file (it starts with b'PAR1')"),
        ("a.txt", "hi".encode("utf-16"), "a.txt is UTF-16 text (it starts with its byte order mark)"),
    ],
)
def test_a_binary_file_is_refused_and_says_how_it_is_known(tmp_path, name, content, said):
    """A binary file ends with 65; the message says what gave it away."""
    (tmp_path / name).write_bytes(content)
    problem = refused(tmp_path / name)

    assert problem.exit_code == 65
    assert problem.message == said
    assert problem.hint


@pytest.mark.parametrize("text", ["ORCAS are whales", "GIF8 is no name", "BZhukov wrote", "PARIS", "ARROW1 and ARROW2"])
def test_words_that_begin_like_a_binary_file_are_text(tmp_path, text):
    """Text is not taken for binary because its first letters are those of some format."""
    (tmp_path / "a.txt").write_text(text)

    assert rows(tmp_path / "a.txt") == [("a.txt", text)]


def test_invalid_utf8_is_named_by_file_line_and_byte(tmp_path):
    """Invalid UTF-8 ends with 65 and names file, line and byte within the line, from 1."""
    (tmp_path / "a.txt").write_bytes("é ok\nabc".encode() + b"\xff\nrest")
    for split in ("document", "lines", "paragraphs"):
        problem = refused(tmp_path / "a.txt", split=split)

        assert problem.exit_code == 65
        assert problem.message == "a.txt: line 2: invalid UTF-8 at byte 4 (0xff)"
        assert "--encoding" in problem.hint


@settings(max_examples=60, deadline=None)
@given(before=st.lists(st.text("aé漢😀", max_size=9), max_size=30), cut=st.integers(1, 50))
def test_the_line_and_byte_of_invalid_utf8_are_exact(tmp_path_factory, before, cut):
    """The position holds wherever reads happen to be cut."""
    from embedctl.inputs import decoding

    path = tmp_path_factory.mktemp("bad") / "a.txt"
    start = "\n".join(before).encode()
    path.write_bytes(start + b"\xfe and more")
    line = start.count(b"\n") + 1
    byte = len(start) - (start.rfind(b"\n") + 1) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", cut)
        problem = refused(path)

    assert problem.message == f"a.txt: line {line}: invalid UTF-8 at byte {byte} (0xfe)"


def test_a_character_cut_at_the_end_of_the_file_is_invalid(tmp_path):
    """A file that ends within a character is not read as if it were whole."""
    (tmp_path / "a.txt").write_bytes(b"ok\nab\xe6\xbc")

    assert refused(tmp_path / "a.txt").message == "a.txt: line 2: invalid UTF-8 at byte 3 (0xe6)"


def test_a_byte_that_the_encoding_lacks_is_named(tmp_path):
    """With --encoding the offset in the file is said."""
    (tmp_path / "a.txt").write_bytes(b"abc\x81")

    assert refused(tmp_path / "a.txt", encoding="cp1252").message.startswith("a.txt: byte 4 is not cp1252")


@pytest.mark.parametrize("encoding", ["klingon", "base64", "rot13", "utf-8\0"])
def test_an_encoding_that_is_none_is_wrong_usage(tmp_path, encoding):
    """--encoding with something that is no text encoding ends with 2."""
    (tmp_path / "a.txt").write_text("x")

    assert isinstance(refused(tmp_path / "a.txt", encoding=encoding), WrongUsage)


def test_a_cut_gzip_is_invalid(tmp_path):
    """A gzip file that ends early ends with 65, after or before its first bytes."""
    whole = gzip.compress(os.urandom(20_000).hex().encode())
    for size in (5, 12, 300, len(whole) - 4):
        (tmp_path / "a.txt.gz").write_bytes(whole[:size])

        assert refused(tmp_path / "a.txt.gz").exit_code == 65


def test_a_gzip_bomb_is_stopped(tmp_path):
    """A file that expands far more than 100 times is refused before it fills the memory."""
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for _ in range(100):
            file.write(bytes([65]) * (1 << 20))
    problem = refused(tmp_path / "a.txt.gz", split="lines", max_row_bytes=1 << 20)

    assert problem.exit_code == 65
    assert problem.message == "a.txt.gz expands to more than 100 times its size"


def test_devices_and_sockets_are_no_input(tmp_path):
    """A device or a socket ends with 65 and is not read for ever."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))

        assert isinstance(refused("/dev/zero"), InputInvalid)
        assert refused(tmp_path / "s").exit_code == 65


def test_a_file_that_vanishes_is_missing_input(tmp_path):
    """A file that goes between looking and reading ends with 66."""
    (tmp_path / "a.txt").write_text("x")
    source = open_input([str(tmp_path / "a.txt")], ReadOptions())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputMissing):
        list(source.blocks())

    assert source.fingerprint() == {"files": [{"name": "a.txt", "size": -1, "mtime_ns": 0}]}


def test_text_and_tables_do_not_mix(tmp_path):
    """Text files and tables in one run end with 65, naming one of each."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.csv").write_text("text\nx\n")

    assert refused(tmp_path).message == "text and tables do not mix: a.txt is text, b.csv is csv"


def test_what_is_known_before_reading(tmp_path):
    """A source tells kind, bytes and rows before anything is read."""
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.txt").write_text("de")
    source = open_input([str(tmp_path)], ReadOptions())

    assert (source.kind, source.is_document, source.is_tokens) == ("text", True, False)
    assert (source.bytes_total, source.rows_hint) == (5, 2)
    assert source.schema_kept.names == []
    assert str(source.id_type) == "string"
    assert [file["name"] for file in source.fingerprint()["files"]] == ["a.txt", "b.txt"]
