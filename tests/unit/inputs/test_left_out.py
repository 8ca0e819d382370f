"""Mixed folders: what is not read is named and counted, one bad file does not end a run that says so, binary never."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import EmbedctlError, InputInvalid, InputMissing
from embedctl.inputs import ReadOptions, Source, open_input

BINARY = bytes(range(256)) * 8


def opened(*paths: Path, **options) -> tuple[Source, list[str | None]]:
    """The source, and all its texts once it was read."""
    source = open_input([str(path) for path in paths], ReadOptions(**options))
    return source, [text for block in source.blocks() for text in block.texts]


def refused(*paths: Path, **options) -> EmbedctlError:
    """The error that reading ends with."""
    with pytest.raises(EmbedctlError) as caught:
        opened(*paths, **options)
    return caught.value


def left_out(source: Source, folder: Path) -> dict[str, str]:
    """File → why it is not read."""
    return {os.path.relpath(one.label, folder): one.why for one in source.left_out}


def files(folder: Path, **contents: bytes) -> Path:
    """A folder of text files by stem."""
    for name, content in contents.items():
        (folder / f"{name}.txt").write_bytes(content)
    return folder


def test_files_of_other_kinds_are_counted(tmp_path):
    """What a folder holds beside its inputs is named and counted; hidden files and our own outputs are not."""
    files(tmp_path, a=b"hello")
    for name in ("page.html", "sub/pic.png", ".hidden", "x.embeddings.parquet", "data.parquet.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "out.txt").symlink_to("/etc/hostname")
    source, texts = opened(tmp_path)

    assert texts == ["hello"]
    assert left_out(source, tmp_path) == {
        "page.html": "other_kind", "sub/pic.png": "other_kind", "data.parquet.gz": "other_kind",
        "out.txt": "link_outside",
    }  # fmt: skip
    assert source.left_out.as_dict() == {"count": 4, "reasons": {"link_outside": 1, "other_kind": 3}}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16", "shift_jis"])
def test_binary_is_never_text(tmp_path, encoding):
    """Binary content under a text's name is left out of a folder, and ends with 65 where it is named."""
    chance = random.Random(encoding).randbytes(4000)
    png, like_gzip = b"\x89PNG\r\n\x1a\n", b"\x1f\x8b" + BINARY
    files(tmp_path, a="hello, world".encode(encoding), b=BINARY, c=png, d=chance + b"\0", e=like_gzip)
    source, texts = opened(tmp_path, encoding=encoding)

    assert texts == ["hello, world"]
    assert left_out(source, tmp_path) == {f"{name}.txt": "binary" for name in "bcde"}
    for name in "bcde":
        for on_bad_file in ("fail", "skip"):
            problem = refused(tmp_path / f"{name}.txt", encoding=encoding, on_bad_file=on_bad_file)
            assert isinstance(problem, InputInvalid)
            assert "is binary" in problem.message


def test_binary_that_begins_like_text_is_found(tmp_path):
    """A zero byte far into a text of an encoding in which any bytes are characters ends with 65."""
    files(tmp_path, a=b"words " * 5000 + b"\0\1\2" * 100)

    assert refused(tmp_path, encoding="latin-1").message == "a.txt is binary: a zero byte at offset 30000"
    assert refused(tmp_path, encoding="latin-1", split="lines").exit_code == 65
    assert opened(files(tmp_path, b=b"fine"), encoding="latin-1", on_bad_file="skip")[1] == ["fine"]


def test_a_folder_of_binary_only_says_so(tmp_path):
    """When nothing can be read, it ends with the first reason."""
    assert "is binary" in refused(files(tmp_path, a=BINARY)).message


@pytest.mark.parametrize("split", ["document", "lines", "paragraphs"])
def test_one_bad_text_of_many_is_left_out_whole(tmp_path, split):
    """With on_bad_file=skip a file in another encoding is left out, with all its lines; without, it ends with 65."""
    files(tmp_path, a=b"one", b=b"two\n\ncaf\xe9", c=b"three", d="four".encode("utf-16"))
    source, texts = opened(tmp_path, split=split, on_bad_file="skip")

    assert texts == ["one", "three"]
    assert left_out(source, tmp_path) == {"b.txt": "unreadable", "d.txt": "unreadable"}
    assert [one.message for one in source.left_out] == [
        "d.txt is UTF-16 text (it starts with its byte order mark)", "b.txt: line 3: invalid UTF-8 at byte 4 (0xe9)",
    ]  # fmt: skip
    (tmp_path / "d.txt").unlink()
    assert refused(tmp_path, split=split).message == "b.txt: line 3: invalid UTF-8 at byte 4 (0xe9)"


def test_one_bad_table_of_many_is_left_out(tmp_path):
    """With on_bad_file=skip damaged and broken tables of every format are left out, named ones too."""
    table = pa.table({"text": [f"t{n}" for n in range(3000)]})
    pq.write_table(table, tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-9])
    (tmp_path / "open.csv").write_text('text\n"open\nmore\n')
    (tmp_path / "cut.json").write_text('[{"text": "a"},')
    (tmp_path / "none.jsonl").write_text("oops\n")
    (tmp_path / "cut.arrow").write_bytes(b"ARROW1\0\0 and no more")
    source, texts = opened(tmp_path, on_bad_file="skip")
    bad = {"cut.parquet", "open.csv", "cut.json", "none.jsonl", "cut.arrow"}

    assert texts == [f"t{n}" for n in range(3000)]
    assert left_out(source, tmp_path) == dict.fromkeys(bad, "unreadable")
    assert opened(tmp_path / "good.parquet", tmp_path / "open.csv", on_bad_file="skip")[1] == texts
    for name in bad:
        assert refused(tmp_path / name, on_bad_file="skip").exit_code == 65
        assert refused(tmp_path / "good.parquet", tmp_path / name).exit_code == 65


def test_rows_before_damage_stand(tmp_path):
    """A table that turns out to be damaged in the middle ends there; how many of its rows stand is said."""
    texts = pa.table({"text": [f"t{n}" for n in range(300)]})
    pq.write_table(texts, tmp_path / "a.parquet", row_group_size=100, write_page_checksum=True)
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(content)
    pq.write_table(pa.table({"text": ["after"]}), tmp_path / "b.parquet")
    source, texts = opened(tmp_path, on_bad_file="skip")

    assert len(texts) == 201
    assert texts[-1] == "after"
    [one] = source.left_out
    assert one.message.startswith("a.parquet: row group 2 is damaged")
    assert one.message.endswith("; its first 200 rows stand")
    assert source.left_out.as_dict() == {"count": 1, "reasons": {"unreadable": 1}}
    list(source.blocks())
    assert len(source.left_out) == 1  # however often it is read


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_left_out(tmp_path):
    """A file or folder that may not be read is left out with on_bad_file=skip, else it ends with 66."""
    files(tmp_path, a=b"one", b=b"two")
    (tmp_path / "closed").mkdir()
    (tmp_path / "b.txt").chmod(0)
    (tmp_path / "closed").chmod(0)
    source, texts = opened(tmp_path, on_bad_file="skip")

    assert texts == ["one"]
    assert left_out(source, tmp_path) == {"b.txt": "unreadable", "closed": "unreadable"}
    assert isinstance(refused(tmp_path), InputMissing)


def test_a_name_that_is_not_there_is_never_skipped(tmp_path):
    """A missing file is a mistake of the command: 66, whatever on_bad_file says."""
    files(tmp_path, a=b"one")

    assert isinstance(refused(tmp_path / "a.txt", tmp_path / "b.txt", on_bad_file="skip"), InputMissing)


def test_who_listens_is_told_of_all(tmp_path):
    """A listener is told of what was left out before it came, and of what comes; each once."""
    files(tmp_path, a=b"one", b=b"caf\xe9")
    (tmp_path / "page.html").touch()
    source = open_input([str(tmp_path)], ReadOptions(on_bad_file="skip"))
    told: list[str] = []
    source.left_out.tell(lambda one: told.append(Path(one.label).name))
    for _ in range(2):
        list(source.blocks())

    assert told == ["page.html", "b.txt"]
