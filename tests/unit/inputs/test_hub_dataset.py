"""Inputs that are data sets of Hugging Face: read only, at one commit."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.errors import EmbedctlError, InputMissing, OutputRefused, StoreDenied, StoreUnreachable
from embedctl.inputs import ReadOptions, Source, open_input
from embedctl.storage.hub_dataset import HubDataset
from embedctl.storage.store_url import parse
from tests.support.hub_stub import COMMIT, hub

pytest.importorskip("huggingface_hub")


def _parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), sink)
    return sink.getvalue()


FILES = {
    "README.md": b"# a data set",
    "data/train-0.parquet": _parquet(["one", "two"]),
    "data/train-1.parquet": _parquet(["three"]),
    "data/test.parquet": _parquet(["four"]),
}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with hub(FILES) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield address


def opened(url: str) -> Source:
    return open_input([url], ReadOptions())


@pytest.mark.parametrize(
    ("url", "texts"),
    [
        ("hf://datasets/org/name/data/train-*.parquet", ["one", "two", "three"]),
        ("hf://datasets/org/name@v1/data/test.parquet", ["four"]),
        ("hf://datasets/org/name/data/", ["four", "one", "two", "three"]),
    ],
)
def test_a_data_set_is_read(url: str, texts: list[str], endpoint: str) -> None:
    """A file, a folder and a pattern of a data set give its rows."""
    assert [text for block in opened(url).blocks() for text in block.texts] == texts


def test_what_a_data_set_is_known_by(endpoint: str) -> None:
    """Its files are known by address, size and content; the revision stands in the address as it was given."""
    (file,) = opened("hf://datasets/org/name@v1/data/test.parquet").fingerprint()["files"]

    assert file["name"] == "hf://datasets/org/name@v1/data/test.parquet"
    assert file["size"] == len(FILES["data/test.parquet"])
    assert file["etag"]


def test_a_revision_is_looked_up_once(endpoint: str) -> None:
    """What is read is the commit that the revision was when it was opened."""
    store = HubDataset(parse("hf://datasets/org/name"))

    assert store._root == f"datasets/org/name@{COMMIT}/"
    assert store.read("README.md") == FILES["README.md"]
    assert store.list("data/tr") == ["data/train-0.parquet", "data/train-1.parquet"]
    assert store.stat("data") is None
    assert store.stat("none.md") is None


def test_a_data_set_is_never_written(endpoint: str) -> None:
    """Putting and removing are refused."""
    store = HubDataset(parse("hf://datasets/org/name"))
    with pytest.raises(OutputRefused, match="read only"):
        store.put_if_absent("x", b"")
    with pytest.raises(OutputRefused, match="read only"):
        store.remove("README.md")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("hf://datasets/org/none/x", InputMissing),
        ("hf://datasets/org/name@none/x", InputMissing),
        ("hf://datasets/org/name/none/", InputMissing),
        ("hf://datasets/org/name/*.csv", InputMissing),
    ],
)
def test_what_is_not_there_is_missing(url: str, error: type[EmbedctlError], endpoint: str) -> None:
    """No data set, no revision, no file: one line that names it."""
    with pytest.raises(error, match="hf://datasets/org"):
        opened(url)


@pytest.mark.parametrize(("status", "error"), [(403, StoreDenied), (400, StoreUnreachable)])
def test_a_hub_that_refuses(status: int, error: type[EmbedctlError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied and broken are told apart."""
    with hub({}, status=status) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(error):
            opened("hf://datasets/org/name/x")
