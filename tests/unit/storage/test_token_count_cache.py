"""Token counts are made once: remembered in the run, and across runs where `[token_usage] cache` asks for it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl import tokens
from embedctl.records import text_hash
from embedctl.storage import token_count_cache
from embedctl.storage.token_count_cache import RunCounts, SharedCounts
from tests.support.observing import Kept
from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(20)]
SETTINGS = f"""
[token_usage]
cache = true
[models."openai:{MODEL}"]
usage_mode = "fallback"
"""


@dataclass
class Watched:
    """A real tokenizer that notes what it is asked."""

    tokenizer_id: str = tokens.FALLBACK
    asked: list[str] = field(default_factory=list)

    @property
    def content_id(self) -> str:
        return self.tokenizer_id

    def count(self, texts: Sequence[str]) -> list[int]:
        self.asked.extend(texts)
        return tokens.counter(tokens.FALLBACK).count(texts)

    def decode(self, tokens_: Sequence[int]) -> str:
        return tokens.counter(tokens.FALLBACK).decode(tokens_)


def shared(folder: Path, **about: object) -> SharedCounts:
    return SharedCounts(folder / "cache.sqlite", **{"ttl_s": 60, **about})  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.text(max_size=8), max_size=12), st.lists(st.text(max_size=8), max_size=12))
def test_the_memory_never_shows(first: list[str], second: list[str]) -> None:
    """With a memory the counts are those without one, whatever was counted before and however often a text stands."""
    counter, memory = tokens.counter(tokens.FALLBACK), RunCounts()

    assert [memory.of(counter, texts) for texts in (first, second)] == [counter.count(first), counter.count(second)]


def test_a_text_is_counted_once_in_a_run() -> None:
    """What was counted for one attempt is known to the next; another tokenizer counts for itself."""
    memory, one, other = RunCounts(), Watched(), Watched("file:another")
    memory.of(one, ["a b", "c", "a b"])
    memory.of(one, ["c", "d"])
    memory.of(other, ["c"])

    assert one.asked == ["a b", "c", "d"]
    assert other.asked == ["c"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts a run counts, it remembers the last ones only."""
    monkeypatch.setattr(token_count_cache, "MOST_IN_MEMORY", 10)
    memory, counter = RunCounts(), Watched()
    for number in range(100):
        memory.of(counter, [str(number)])
    memory.of(counter, ["99", "0"])

    assert len(memory._memory) <= 11
    assert counter.asked[100:] == ["0"]


def test_another_run_takes_counts_over(tmp_path: Path) -> None:
    """With a shared file a text that another run counted is not counted again, and the file says how often that was."""
    first, second = Watched(), Watched()
    memory = RunCounts(shared(tmp_path))
    expected = memory.of(first, TEXTS)
    memory.close()
    memory = RunCounts(shared(tmp_path))
    found = memory.of(second, [*TEXTS, "new"])
    memory.close()

    assert found[:20] == expected
    assert second.asked == ["new"]
    tally = shared(tmp_path).tally()
    assert (tally.hits, tally.misses) == (20, 21)
    assert (tmp_path / "cache.sqlite").stat().st_mode & 0o077 == 0


def test_counts_grow_old(tmp_path: Path) -> None:
    """After the time to live a count is made anew, and the next write removes it."""
    now = [1_000_000.0]
    kept = shared(tmp_path, wall=lambda: now[0])
    kept.put("t", {text_hash("a"): 1})
    kept.close()
    now[0] += 59
    assert kept.look_up("t", [text_hash("a")]) == {text_hash("a"): 1}
    now[0] += 2

    assert kept.look_up("t", [text_hash("a")]) == {}
    kept.put("t", {text_hash("b"): 2})
    kept.close()
    assert kept.kept() == 1
    kept.close()


def test_tokenizers_are_apart(tmp_path: Path) -> None:
    """A count belongs to its tokenizer."""
    kept = shared(tmp_path)
    kept.put("one", {text_hash("a"): 1})
    kept.close()

    assert kept.look_up("another", [text_hash("a")]) == {}
    kept.close()


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many, the oldest counts go."""
    monkeypatch.setattr(token_count_cache, "MOST_KEPT", 10)
    now = [1_000_000.0]
    kept = shared(tmp_path, wall=lambda: now[0])
    for number in range(15):
        now[0] += 1
        kept.put("t", {text_hash(str(number)): number})
        kept.close()

    found = kept.look_up("t", [text_hash(str(number)) for number in range(15)])
    kept.close()
    assert len(found) <= 10
    assert text_hash("14") in found
    assert text_hash("0") not in found


def test_broken_or_busy_counts_again(tmp_path: Path) -> None:
    """A file that is none is one warning, one that another writes is none; the counts are right all the same."""
    expected = tokens.counter(tokens.FALLBACK).count(TEXTS)
    observer = Kept()
    memory = RunCounts(shared(tmp_path, observer=observer))
    memory.of(Watched(), ["x"])
    memory.close()
    other = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    busy = memory.of(Watched(), TEXTS)
    memory.close()
    other.execute("ROLLBACK")
    other.close()
    assert (busy, observer.warned) == (expected, [])

    (tmp_path / "cache.sqlite").write_bytes(b"no database at all" * 100)
    memory = RunCounts(shared(tmp_path, observer=observer))
    broken = memory.of(Watched(), TEXTS)
    memory.close()

    assert broken == expected
    assert len(observer.warned) == 1
    assert "cache clear" in observer.warned[0]


def test_bytes_are_not_remembered(tmp_path: Path) -> None:
    """Dividing bytes by four is cheaper than looking up: nothing is kept of it."""
    memory = RunCounts(shared(tmp_path))
    memory.of(tokens.counter(tokens.BYTES), TEXTS)
    memory.close()

    assert not (tmp_path / "cache.sqlite").exists()


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables(TEXTS, files=2)
    return found


OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5", "--no-cache")


def test_runs_share_counts_where_asked(world: World) -> None:
    """Off, nothing is kept; on, the second of two runs counts nothing, bills alike, and stats and metrics say so."""
    world.run("embed", "in", "-o", "none.parquet", *OPENAI)
    assert not (world.home / "cache.sqlite").exists()
    world.home.mkdir(exist_ok=True)
    (world.home / "config.toml").write_text(SETTINGS)
    receipts = [world.run("embed", "in", "-o", f"{n}.parquet", "--json", *OPENAI).receipt for n in "ab"]
    stats = json.loads(world.run("cache", "stats", "--json").out)
    metrics = world.run("usage", "metrics").out

    assert receipts[0]["tokens"] == receipts[1]["tokens"]
    assert {one["usage_source"] for one in receipts} == {"fallback"}
    kept = stats["token_counts"]
    assert {name: kept[name] for name in ("on", "entries", "ttl_s", "hits", "misses", "look_ups", "place")} == {
        "on": True, "entries": 20, "ttl_s": 86400, "hits": 20, "misses": 20, "look_ups": 8, "place": None,
    }  # fmt: skip
    assert re.search(r"^embedding_token_count_cache_hits_total\{store=\"local\"\} 20\.0$", metrics, re.MULTILINE)
    assert re.search(r"^embedding_token_count_cache_misses_total\{store=\"local\"\} 20\.0$", metrics, re.MULTILINE)
    assert re.search(r"^embedding_token_count_cache_lookup_seconds_count\{.*\} 8\.0$", metrics, re.MULTILINE)
    assert "20 token counts removed" in world.run("cache", "clear").err


def test_a_broken_cache_stops_no_run(world: World) -> None:
    """A damaged file costs a run one warning."""
    world.home.mkdir(exist_ok=True)
    (world.home / "config.toml").write_text(SETTINGS)
    world.home.mkdir(exist_ok=True)
    (world.home / "cache.sqlite").write_bytes(b"no database at all" * 100)
    ended = world.run("embed", "in", "-o", "one.parquet", "--json", *OPENAI)

    assert ended.code == 0, ended.err
    assert ended.err.count("is not used") == 1
    assert ended.receipt["tokens"] > 0
