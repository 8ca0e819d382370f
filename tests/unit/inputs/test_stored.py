"""Inputs in object stores: what an address means, that it reads as from a disk does, and what changes meanwhile."""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import InputChanged, InputInvalid, InputMissing, StoreDenied, WrongUsage
from embedctl.inputs import ReadOptions, Source, open_input
from embedctl.inputs.stored import _fits
from embedctl.storage.object_store import ObjectStore
from embedctl.storage.store_file import StoreFile
from embedctl.storage.store_url import is_store_url, parse
from embedctl.storage.stores import Stores
from tests.support.stores import StoreServer

FILES = {
    "docs/a.md": b"# A",
    "docs/deep/er/b.md": b"# B",
    "docs/deep/c.txt": b"C",
    "docs/.hidden/x.md": b"no",
    "docs/picture.png": b"\x89PNG",
    "docs/old/_embedctl/plan.json": b"{}",
    "docs/old/part-000000.txt": b"an output's",
    "docs/folder.txt": b"",
    "docs/empty": b"",
    "docs/empty/.keep": b"",
    "docs2/other.md": b"# not below docs/",
    "out/_embedctl/plan.json": b"{}",
    "out/part-00000-000000.parquet": b"an output's",
}


@pytest.fixture(scope="module", params=["s3", "gcs", "azure"])
def prefix(request: pytest.FixtureRequest) -> tuple[str, StoreServer]:
    server: StoreServer = request.getfixturevalue(request.param)
    url = server.new()
    store = server.open(url)
    for name, content in FILES.items():
        store.put_if_absent(name, content)
    return url, server


@pytest.fixture
def filled(prefix: tuple[str, StoreServer], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Stores]:
    """The address of a prefix that holds FILES, and how it is reached."""
    return prefix[0], _stores(prefix[1], monkeypatch)


def _stores(server: StoreServer, patch: pytest.MonkeyPatch) -> Stores:
    for name, value in server.environment.items():
        patch.setenv(name, value)
    return Stores()


@pytest.fixture
def stores(s3: StoreServer, monkeypatch: pytest.MonkeyPatch) -> Stores:
    return _stores(s3, monkeypatch)


def rows(source: Source) -> list[tuple[Any, str | None]]:
    return [pair for block in source.blocks() for pair in zip(block.ids, block.texts, strict=True)]


def opened(url: str, stores: Stores, **options: Any) -> Source:
    return open_input([url] if isinstance(url, str) else url, ReadOptions(stores=stores, **options))


@pytest.mark.parametrize(
    ("behind", "labels"),
    [
        ("/docs/", ["a.md", "deep/c.txt", "deep/er/b.md", "folder.txt"]),
        ("/docs", ["a.md", "deep/c.txt", "deep/er/b.md", "folder.txt"]),
        ("/docs/*.md", ["a.md"]),
        ("/docs/*/*.txt", ["deep/c.txt"]),
        ("/docs/**/*.md", ["a.md", "deep/er/b.md"]),
        ("/docs/**", ["a.md", "deep/c.txt", "deep/er/b.md", "folder.txt", "picture.png"]),
        ("/do*/*.md", ["docs/a.md", "docs2/other.md"]),
        ("/docs/deep/c.txt", ["c.txt"]),
        ("/docs/[ab].md", ["a.md"]),
    ],
)
def test_an_address_means_what_a_path_would(filled: tuple[str, Stores], behind: str, labels: list[str]) -> None:
    """Objects, folders and globs are those that the same names on a disk would be, in the order of names."""
    url, stores = filled
    source = opened(url + behind, stores)

    assert [file.label for file in source.files] + [
        one.label.rpartition("/")[2] for one in source.left_out if one.why == "binary"
    ] == labels


@settings(max_examples=150)
@given(
    names=st.sets(st.text("ab/.", min_size=1, max_size=6), max_size=8),
    pattern=st.lists(st.sampled_from(["**", "*", "?", "a", "b*", "[!a]", "a?", "*a*b*"]), min_size=1, max_size=4),
)
def test_a_pattern_fits_what_it_fits_on_a_disk(names: set[str], pattern: list[str]) -> None:
    """The names that a pattern of a store fits are those that `glob` gives for files of these names."""
    files = {name for name in names if all(part not in ("", ".", "..") for part in name.split("/"))}
    files = {name for name in files if not any(other.startswith(f"{name}/") for other in files)}
    with TemporaryDirectory() as folder:
        for name in files:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).touch()
        text = "/".join(pattern)
        there = set(glob.glob(text, root_dir=folder, recursive=True, include_hidden=True))
    fits = _fits(pattern)

    assert {name for name in files if fits(name)} == there & files


def test_a_folder_of_a_store_reads_as_one_of_a_disk(filled: tuple[str, Stores], tmp_path: Path) -> None:
    """Ids, texts, and what is left out are the same, wherever the files are."""
    url, stores = filled
    for name, content in FILES.items():
        if name == "docs/empty":  # marks a folder
            continue
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    here, there = opened(str(tmp_path / "docs"), Stores()), opened(f"{url}/docs/", stores)

    assert rows(there) == rows(here)
    assert there.left_out.as_dict() == here.left_out.as_dict()
    assert [one.label.removeprefix(url) for one in there.left_out] == [
        one.label.removeprefix(str(tmp_path)) for one in here.left_out
    ]


def test_parts_of_an_output_are_an_input_only_where_they_are_named(filled: tuple[str, Stores]) -> None:
    """The folder of an output, or a part of it, is the user's word; a pattern that fits its parts is not."""
    url, stores = filled

    for behind in ("/out/", "/out/part-00000-000000.parquet"):
        with pytest.raises(InputInvalid, match="not a Parquet file"):
            opened(url + behind, stores)
    for behind in ("/out/part-*.parquet", "/*/part-*.parquet", "/**/*.parquet"):
        with pytest.raises(InputMissing, match="no object matches"):
            opened(url + behind, stores)


def test_a_table_is_read_in_few_requests(s3: StoreServer, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table footers are asked for, and each row group by itself: not every mebibyte of every column."""
    table = pa.table({"id": range(40_000), "text": [f"{n:0100}" for n in range(40_000)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=20_000, compression="none", use_dictionary=False)
    url = s3.new()
    s3.open(url).put_if_absent("t.parquet", sink.getvalue())
    asked: list[int] = []
    view = ObjectStore.view

    def counted(self: ObjectStore, name: str, start: int, end: int, *, etag: str | None = None) -> Any:
        asked.append(end - start)
        return view(self, name, start, end, etag=etag)

    monkeypatch.setattr(ObjectStore, "view", counted)
    assert len(rows(opened(f"{url}/t.parquet", stores))) == 40_000
    assert len(asked) <= 8
    assert sum(asked) < 1.2 * len(sink.getvalue())


@pytest.mark.parametrize("behind", ["/nothing/", "/docs/*.csv", "/docs/none.md", "/docs/deep/x/"])
def test_an_address_of_nothing_is_missing(filled: tuple[str, Stores], behind: str) -> None:
    """Nothing there is said, with the address."""
    url, stores = filled

    with pytest.raises(InputMissing, match=r"docs|nothing"):
        opened(url + behind, stores)


def _tables() -> dict[str, bytes]:
    table = pa.table({"id": range(9_000), "text": [f"text {n % 700} " * 20 for n in range(9_000)], "n": [1.5] * 9_000})
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=2_000)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table, 1_000)
    lines = "".join(json.dumps(row) + "\n" for row in table.slice(0, 3_000).to_pylist()).encode()
    csv = ("id,text\n" + "".join(f'{n},"text, {n}"\n' for n in range(20_000))).encode()
    return {
        "t.parquet": parquet.getvalue(), "t.arrow": arrow.getvalue(), "t.jsonl": lines, "t.csv": csv,
        "t.jsonl.gz": gzip.compress(lines), "t.txt": b"line\n" * 200_000,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.jsonl", "t.csv", "t.jsonl.gz", "t.txt"])
def test_every_format_reads_from_a_store(name: str, s3: StoreServer, stores: Stores, tmp_path: Path) -> None:
    """Rows, ids and kept columns are those of the same file on a disk."""
    content = _tables()[name]
    url = s3.new()
    s3.open(url).put_if_absent(name, content)
    (tmp_path / name).write_bytes(content)
    how: dict[str, Any] = {"split": "lines"} if name == "t.txt" else {}
    here, there = opened(str(tmp_path / name), Stores(), **how), opened(f"{url}/{name}", stores, **how)

    assert there.schema_kept == here.schema_kept
    for ours, theirs in zip(there.blocks(), here.blocks(), strict=True):
        assert (ours.ids, ours.texts, ours.kept, ours.reasons) == (
            theirs.ids,
            theirs.texts,
            theirs.kept,
            theirs.reasons,
        )


def test_parts_with_hive_names_carry_their_columns(s3: StoreServer, stores: Stores) -> None:
    """Folders called NAME=VALUE are columns, as on a disk."""
    url = s3.new()
    for lang in ("de", "en"):
        s3.open(url).put_if_absent(f"t/lang={lang}/x.csv", f"id,text\n{lang},hello\n".encode())

    source = opened(f"{url}/t/", stores)

    assert [block.kept["lang"].to_pylist() for block in source.blocks() if block.kept] == [["de"], ["en"]]


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.arrow"])
def test_an_object_that_changes_after_the_listing_is_noticed(name: str, s3: StoreServer, stores: Stores) -> None:
    """What was listed is read, or nothing: never half of one and half of another."""
    url = s3.new()
    store = s3.open(url)
    content = _tables()[name]
    store.put_if_absent(name, content)
    source = opened(f"{url}/{name}", stores)
    store.remove(name)
    store.put_if_absent(name, content[:-1] + b" ")

    with pytest.raises(InputChanged, match=f"{name} changed while it was read"):
        rows(source)

    store.remove(name)
    with pytest.raises(InputChanged, match="vanished"):
        rows(source)


def test_what_an_input_is_known_by(s3: StoreServer, stores: Stores) -> None:
    """Address, size and entity tag; another content is another input, the same is the same."""
    url = s3.new()
    store = s3.open(url)
    store.put_if_absent("a.txt", b"one")
    before = opened(f"{url}/a.txt", stores).fingerprint()
    again = opened(f"{url}/", stores).fingerprint()
    store.remove("a.txt")
    store.put_if_absent("a.txt", b"two")
    after = opened(f"{url}/a.txt", stores).fingerprint()

    assert before == again
    assert before["files"][0].keys() == {"name", "size", "etag"}
    assert before["files"][0]["name"] == f"{url}/a.txt"
    assert before != after


def boto3(server: StoreServer) -> Any:
    """AWS's own client."""
    made = pytest.importorskip("boto3").client
    return made(
        "s3", endpoint_url=server.options["endpoint"], region_name="us-east-1", aws_access_key_id="CANARY-store-key",
        aws_secret_access_key=server.options["secret_access_key"],
    )  # fmt: skip


def test_what_others_put_there_is_read(s3: StoreServer, stores: Stores) -> None:
    """Names as people and tools choose them, objects that stand for folders, contents stored with an encoding."""
    url, client = s3.new(), boto3(s3)
    names = [
        "a b.txt",
        "ü ß.txt",
        "k=v/x.txt",
        "a%2Fb.txt",
        "plus+&.txt",
        "sub/deep/er/z.txt",
        "\U0001f600.txt",
        "q?#.txt",
    ]

    def put(name: str, body: bytes, **about: str) -> None:
        client.put_object(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/{name}", Body=body, **about)

    for name in names:
        put(f"in/{name}", name.encode())
    for folder in ("in/", "in/sub/", "in/nothing/"):
        put(folder, b"")
    rows = gzip.compress(b'{"id": "1", "text": "one"}\n{"id": "2", "text": "two"}\n')
    put("plain/a.jsonl", rows, ContentEncoding="gzip")
    put("named/a.jsonl.gz", rows, ContentEncoding="gzip", ContentType="application/json")

    texts = [text for block in opened(f"{url}/in/", stores).blocks() for text in block.texts]
    assert sorted(texts) == sorted(names)
    for kind in ("plain", "named"):
        assert [text for block in opened(f"{url}/{kind}/", stores).blocks() for text in block.texts] == ["one", "two"]


@pytest.fixture(params=["s3", "gcs"])
def put_as_it_is(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Stores, Callable[[str], None]]:
    """A new prefix, how it is reached, and what puts an object there, whatever its name."""
    server: StoreServer = request.getfixturevalue(request.param)
    url = server.new()

    return url, _stores(server, monkeypatch), partial(put_there, server, url)


def put_there(server: StoreServer, url: str, name: str) -> None:
    """Put an object, whatever its name."""
    key = quote(f"{url.removeprefix(f'{server.root}/')}/{name}", safe="")
    url, as_bytes = f"http://127.0.0.1:{server.port}/bucket/{key}", {"Content-Type": "application/octet-stream"}
    asked = urllib.request.Request(url, name.encode(), as_bytes, method="PUT")
    urllib.request.urlopen(asked, timeout=20).close()


ODD = ("double//x.txt", "double//y/z.txt", "deep/er/../x.txt", "deep/er/./x.txt", "deep/er//x.txt")
BESIDE = (
    "a.txt", "double/0.txt", "double/a.txt", "double/b/c.txt", "double.txt", "deep/er/0.txt", "deep/er/z.txt",
    "deep/z.txt", "x%2Fy.txt", "z ü+&?#.txt", "z../a.txt",
)  # fmt: skip


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "d*/**"])
def test_names_that_cannot_be_read_are_left_out_and_said(
    put_as_it_is: tuple[str, Stores, Callable[[str], None]], pattern: str
) -> None:
    """An empty part, '.' or '..' in names of objects: what is beside them is read, and one line says what is not."""
    url, stores, put = put_as_it_is
    for name in (*ODD, *BESIDE):
        put(name)
    source = opened(f"{url}/{pattern}", stores)

    read = {text for block in source.blocks() for text in block.texts}
    fits = [
        name
        for name in BESIDE
        if name.endswith(".txt") and (pattern != "d*/**" or name.startswith(("double/", "deep/")))
    ]
    assert read - {"double/0"} == {name for name in fits if not name.startswith("..")}
    begins = {f"{url}/{one}…" for one in ("double//", "deep/er/../", "deep/er/./", "deep/er//")}
    assert {one.label for one in source.left_out if one.why == "odd_name"} == begins
    (said,) = source.warnings
    assert "left out: all objects whose names begin with" in said
    assert "one by one" in said


@pytest.mark.parametrize("name", ["in/new\nline.txt", "in//x.txt"])
def test_an_object_that_no_listing_goes_past_is_named(
    gcs: StoreServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A control character in a name, or an odd name in a folder below another one, ends the run, 65, and is named."""
    stores, url = _stores(gcs, monkeypatch), gcs.new()
    for one in ("in/x.txt", "/y.txt", name):
        put_there(gcs, url, one)

    shown = name.encode("unicode_escape").decode()
    with pytest.raises(InputInvalid, match=re.escape(f"/{shown}: an object whose name has an empty part")) as said:
        opened(f"{url}/{'in/' if 'in/new' in name else ''}", stores)
    assert said.value.exit_code == 65
    assert len(opened(f"{url}/in/x.txt", stores).files) == 1


def test_no_bucket_and_no_credentials_are_told_apart(
    s3: StoreServer, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that is not there is a missing input; without credentials the word is who gives them."""
    with pytest.raises(InputMissing, match="s3://no-such-bucket: there is no such bucket"):
        opened("s3://no-such-bucket/x/", stores)
    with pytest.raises(InputMissing, match="s3://no-such-bucket: there is no such bucket"):
        opened("s3://no-such-bucket/x/*.txt", stores)

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    store = ObjectStore(parse("s3://bucket"), retries=0)
    with pytest.raises(StoreDenied, match="no credentials were found") as denied:
        store.list()
    assert denied.value.exit_code == 77
    assert "AWS_ACCESS_KEY_ID" in (denied.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "s3://", "s3://b", "s3:///x", "s3://bucket//x", "s3://bucket/a/../b", "s3://bucket/./b", "s3://key:secret@bucket/x",
        "s3://bucket/a\nb", "gs://UPPER/x", "az://a--b/x", "abfss://container/x", "abfss://c@account.example.com/x",
        "hf://models/a/b", "hf://datasets/a", "hf://datasets/a/b@re/x/y@", "s3://bucket/" + "x" * 1025, "s3://bucket/\udcff",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    """An address is checked where it enters; what stands before an @ is not repeated."""
    assert is_store_url(text)
    if text == "hf://datasets/a/b@re/x/y@":
        assert parse(text).path == "x/y@"
        return
    with pytest.raises(WrongUsage) as refused:
        parse(text)
    assert "secret" not in str(refused.value)


def test_addresses_are_taken_apart() -> None:
    """Bucket, path, account and revision are what they look like; an address of Azure's own kind is one of ours."""
    assert str(parse("S3://bucket/a b/#?c")) == "s3://bucket/a b/#?c"
    assert parse("s3:/bucket/x") == parse("s3://bucket/x")
    azure = parse("abfss://container@account.dfs.core.windows.net/x/")
    assert (azure.scheme, azure.bucket, azure.account, azure.path) == ("az", "container", "account", "x/")
    hub = parse("hf://datasets/org/name@v1.0/data/*.parquet")
    assert (hub.bucket, hub.revision, hub.path) == ("org/name", "v1.0", "data/*.parquet")
    assert not is_store_url("file:///x")
    assert not is_store_url("C:/x")
    assert not is_store_url("http://x/y")


class _Memory:
    """A store of one object."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests = 0

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        self.requests += 1
        return self.content[start:end]


@settings(max_examples=100)
@given(
    content=st.binary(max_size=300),
    ahead=st.integers(0, 64),
    moves=st.lists(st.tuples(st.sampled_from(["read", "seek", "end"]), st.integers(-5, 90)), max_size=20),
)
def test_a_stored_file_reads_as_a_file_does(content: bytes, ahead: int, moves: list[tuple[str, int]]) -> None:
    """Any order of reads and seeks gives the bytes that a file in memory gives."""
    memory: Any = _Memory(content)
    ours = StoreFile(memory, "x", len(content), None, url="s3://b/x", ahead=ahead)
    theirs = io.BytesIO(content)
    for what, number in moves:
        if what == "read":
            assert ours.read(number) == theirs.read(number if number >= 0 else -1)
        elif what == "seek":
            assert ours.seek(max(0, number)) == theirs.seek(max(0, number))
        else:
            ours.seek(max(-len(content), min(0, number)), io.SEEK_END)
            theirs.seek(max(-len(content), min(0, number)), io.SEEK_END)
        assert ours.tell() == theirs.tell()


def test_who_reads_on_asks_seldom() -> None:
    """A file that is read to its end is fetched in pieces as large as the read-ahead, however small the reads are."""
    memory: Any = _Memory(b"x" * 100_000)
    file = io.BufferedReader(StoreFile(memory, "x", 100_000, None, url="s3://b/x", ahead=40_000), 1_000)

    assert file.read() == memory.content
    while file.read(100):
        pass
    file.seek(0)
    while file.read(100):
        pass

    assert memory.requests <= 4
