"""Counting tokens: offline, never failing a run, and always saying who counted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl import tokens
from embedctl.backends.onnx import local_model
from embedctl.errors import ConfigurationInvalid
from embedctl.reports import charts
from embedctl.server import pages
from tests.support import places

REFERENCE = json.loads((places.REFERENCE / "minilm.json").read_text("utf-8"))
CL100K = tokens.counter("tiktoken:cl100k_base")
MINILM = tokens.counter(tokens.BUNDLED)


def test_the_bundled_tokenizer_counts_as_the_original_does() -> None:
    """MiniLM's tokens, special ones included, are those of the published tokenizer for every reference text."""
    assert MINILM.tokenizer_id == "bundled:minilm"
    assert MINILM.count(REFERENCE["texts"]) == REFERENCE["tokens"]


def test_nothing_is_padded_or_cut_when_counting() -> None:
    """A short text among long ones keeps its own count, and a text over the model's limit is counted whole."""
    assert MINILM.count(["ok", "word " * 1000]) == [3, 1002]


# Source of the counts: the published cl100k_base ranks; "tiktoken is great!" is the example of OpenAI's own cookbook.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("tiktoken is great!", 6),
        ("hello world", 2),
        ("antidisestablishmentarianism", 6),
        ("お誕生日おめでとう", 9),
    ],
)
def test_cl100k_counts_what_is_published(text: str, expected: int) -> None:
    """cl100k_base gives the counts its makers publish."""
    assert CL100K.count([text]) == [expected]


def test_cl100k_needs_no_network(tmp_path: Path) -> None:
    """In a process without network and without any cache the shipped vocabulary is used, and nothing is left behind."""
    program = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = refuse\n"
        "from embedctl import tokens\n"
        "counter = tokens.counter('tiktoken:cl100k_base')\n"
        "print(counter.tokenizer_id, counter.count(['hello world']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        cwd=places.ROOT,
    )

    assert done.stdout == "tiktoken:cl100k_base [2]\n"
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_vocabulary_is_the_published_one() -> None:
    """The file of cl100k_base has the checksum that tiktoken itself asks for."""
    content = (tokens.ASSETS / "tiktoken" / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").read_bytes()

    assert hashlib.sha256(content).hexdigest() == "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"


def test_the_name_of_a_special_token_is_ordinary_text() -> None:
    """A text that spells <|endoftext|> is counted as the characters it has, and is no error."""
    assert CL100K.count(["<|endoftext|>"]) == [7]
    assert CL100K.count(["a <|fim_prefix|> b"])[0] > 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_a_text_is_counted_the_same_alone_and_among_others(texts: list[str]) -> None:
    """The count of a text does not depend on its neighbours, and is 0 only for an empty text."""
    for counter in (CL100K, MINILM, tokens.counter("bytes/4")):
        together = counter.count(texts)

        assert together == [counter.count([text])[0] for text in texts]
        assert all(count > 0 for text, count in zip(texts, together, strict=True) if text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_cl100k_gives_back_the_text_of_its_tokens(text: str) -> None:
    """Decoding what was encoded gives the same text."""
    array = CL100K.encoding.encode_ordinary(text)

    assert CL100K.decode(array) == text


def test_special_tokens_are_left_out_of_the_text() -> None:
    """[CLS], [SEP] and <|endoftext|> in an array are no part of what it says."""
    assert MINILM.decode([101, 7592, 2088, 102]) == "hello world"
    assert CL100K.decode([100257, 15339]) == "hello"


@pytest.mark.parametrize("number", [-1, 999_999, 2**40])
@pytest.mark.parametrize("tokenizer", ["tiktoken:cl100k_base", "bundled:minilm"])
def test_a_number_that_is_no_token_is_an_error(tokenizer: str, number: int) -> None:
    """An array with a number outside the vocabulary has no text, rather than a shorter one."""
    with pytest.raises(LookupError):
        tokens.counter(tokenizer).decode([1000, number])


def test_bytes_are_counted_where_nothing_else_can(caplog: pytest.LogCaptureFixture) -> None:
    """bytes/4 counts every started four bytes, and says that it cannot turn tokens into text."""
    counter = tokens.counter("bytes/4")

    assert counter.count(["", "abc", "abcd", "abcde", "日本"]) == [0, 1, 1, 2, 2]
    with pytest.raises(ConfigurationInvalid, match="3 tokens cannot be turned into text"):
        counter.decode([1, 2, 3])


@pytest.mark.parametrize(
    ("asked", "fallback", "who"),
    [
        ("bundled:minilm", "tiktoken:cl100k_base", "bundled:minilm"),
        ("hf:nobody/nothing", "tiktoken:cl100k_base", "tiktoken:cl100k_base"),
        ("unknown", "tiktoken:cl100k_base", "tiktoken:cl100k_base"),
        (None, "tiktoken:cl100k_base", "tiktoken:cl100k_base"),
        (None, "hf:nobody/nothing", "bytes/4"),
        ("tiktoken:o200k_base", "tiktoken:no_such_encoding", "bytes/4"),
        ("file:/no/such/tokenizer.json", "bytes/4", "bytes/4"),
    ],
)
def test_who_counts_is_the_first_of_the_chain_that_can(asked: str | None, fallback: str, who: str) -> None:
    """The model's tokenizer, else the fallback, else bytes/4: the id tells which one it was."""
    assert tokens.counter(asked, fallback).tokenizer_id == who


def test_a_tokenizer_file_is_used_by_its_path(tmp_path: Path) -> None:
    """file:PATH loads a tokenizer.json of one's own; a broken one falls through the chain."""
    own, broken = tmp_path / "own.json", tmp_path / "broken.json"
    shutil.copy(tokens.ASSETS / "minilm" / "tokenizer.json", own)
    broken.write_text("{")

    assert tokens.counter(f"file:{own}").count(["ok"]) == [3]
    assert tokens.counter(f"file:{own}").tokenizer_id == f"file:{own}"
    assert tokens.counter(f"file:{broken}").tokenizer_id == "tiktoken:cl100k_base"


def test_a_tokenizer_in_the_hub_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf:OWNER/NAME uses what the local hub cache holds, without asking the network."""
    snapshot = tmp_path / "models--acme--small" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(tokens.ASSETS / "minilm" / "tokenizer.json", snapshot / "tokenizer.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    assert tokens.counter("hf:acme/small").tokenizer_id == "hf:acme/small"
    assert tokens.counter("hf:acme/small").count(["ok"]) == [3]


def test_the_chunker_measures_with_the_same_tokenizer() -> None:
    """What the splitter gets counts as the counter does, less the special tokens where it is a tokenizer."""
    measure = tokens.splitter_source("tiktoken:cl100k_base")
    tokenizer = tokens.splitter_source("bundled:minilm")

    assert measure("hello world") == 2
    assert len(tokenizer.encode("hello world", add_special_tokens=False)) == 2


def test_loopback_is_all_these_tests_may_reach() -> None:
    """The guard against real connections is in force while tokenizers are loaded."""
    with socket.socket() as probe, pytest.raises(AssertionError, match="a test tried to reach"):
        probe.connect(("192.0.2.1", 9))


BUNDLED_FILES = ("minilm/model.onnx", "minilm/tokenizer.json", "tiktoken/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
                 "uplot/uplot.min.js", "uplot/uplot.min.css", "swagger-ui/swagger-ui-bundle.js",
                 "swagger-ui/swagger-ui.css")  # fmt: skip


@pytest.mark.parametrize("name", BUNDLED_FILES)
def test_the_checksums_are_of_the_files_that_provenance_names(name: str) -> None:
    """A bundled file that passes the quick check has the SHA-256 of assets/PROVENANCE.md."""
    digest = hashlib.sha256(tokens.asset(name).read_bytes()).hexdigest()

    assert f"| {name} |" in (text := (tokens.ASSETS / "PROVENANCE.md").read_text("utf-8"))
    assert digest in text


@pytest.mark.parametrize("name", BUNDLED_FILES)
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_bundled_file_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    """One bit, the end or all of a bundled file is gone: 78 with a hint; the file stays, nobody counts in its place."""
    path = tmp_path / name
    for each in BUNDLED_FILES:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).symlink_to(tokens.ASSETS / each)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if how != "missing":
        path.write_bytes(content if how == "flipped" else content[:-100])
    monkeypatch.setattr(tokens, "ASSETS", tmp_path)

    with pytest.raises(ConfigurationInvalid, match=r"comes with embedctl, is damaged") as caught:
        _load_afresh(name)
    assert caught.value.exit_code == 78
    assert "reinstall" in (caught.value.hint or "")
    assert path.exists() == (how != "missing")


def _load_afresh(name: str) -> None:
    """Load what needs this file, as a new process does."""
    if name.endswith(".onnx"):
        local_model.load.__wrapped__(None, 256)
    elif name.startswith("swagger-ui"):
        pages.viewer.__wrapped__()
    elif name.startswith("uplot"):
        (charts.library if name.endswith(".js") else charts.style).__wrapped__()
    else:
        tokens._load.__wrapped__(tokens.BUNDLED if name.startswith("minilm") else "tiktoken:cl100k_base")


def test_our_cl100k_is_that_of_tiktoken() -> None:
    """Pattern, special tokens and ranks are those of tiktoken's own definition."""
    import tiktoken_ext.openai_public as theirs

    ours = CL100K.encoding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_tiktoken_bpe", lambda *_, **__: {})
        said = theirs.cl100k_base()

    assert (ours._pat_str, ours._special_tokens) == (said["pat_str"], said["special_tokens"])
    assert len(ours._mergeable_ranks) == 100256


def test_a_vocabulary_is_loaded_with_the_first_text_that_is_counted() -> None:
    """Who only asks for a counter, its name or the tokens of nothing waits for no vocabulary."""
    tokens._encoding.cache_clear()
    tokens._load.cache_clear()
    counter = tokens.counter("tiktoken:cl100k_base")

    assert (counter.content_id, counter.count(["", ""])) == ("tiktoken:cl100k_base", [0, 0])
    assert tokens._encoding.cache_info().currsize == 0
    assert counter.count(["", "hello world"]) == [0, 2]
    assert tokens._encoding.cache_info().currsize == 1
