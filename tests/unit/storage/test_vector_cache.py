"""The shared vector cache: a known text is not sent for another output; broken, busy or full it is only a miss."""

from __future__ import annotations

import json
import sqlite3
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from embedctl.storage.vector_cache import CachedVector, VectorCache
from tests.support.observing import Kept
from tests.support.processes import MODEL, World, Zygote, hash_of, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(20)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5")
SPACE = "a space"


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables(TEXTS, files=2)
    return found


def digest(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


def hit(number: int, width: int = 4, made_at: float = 0.0) -> CachedVector:
    return CachedVector("openai", MODEL, number, np.full(width, number, np.float32), made_at or time.time())


def any_(found: CachedVector) -> bool:
    """Whatever it has may be taken."""
    return True


def cache(path: Path, **about: object) -> VectorCache:
    return VectorCache(path / "cache.sqlite", **{"max_bytes": 1 << 20, "ttl_days": 1, **about})  # type: ignore[arg-type]


def test_known_texts_are_not_sent_again(world: World) -> None:
    """Another output gets known texts from the cache: only new ones are sent, hits are in the ledger at no cost."""
    first = world.run("embed", "in", "-o", "one.parquet", *OPENAI)
    world.wire.reset()
    world.tables([*TEXTS, *(sentence(number) for number in range(90, 95))], files=2)
    second = world.run("embed", "in", "-o", "two.parquet", "--json", *OPENAI)

    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    sent = sorted(h for one in world.wire.truth() for h in one["text_hashes"])
    assert sent == sorted(hash_of(sentence(number)) for number in range(90, 95))
    assert (second.receipt["reused"], second.receipt["tokens"], second.receipt["vectors"]) == (20, 20, 25)
    world.check_rows("two.parquet", [*TEXTS, *(sentence(number) for number in range(90, 95))], dimensions=8)
    world.ledger()
    report = json.loads(world.run("usage", "report", "--format", "json").out)
    assert report["totals"]["tokens"] == 4 * 25


def test_only_where_it_pays(world: World) -> None:
    """It is on for `embed` with a paid model, not for `batch run` nor for free models; --cache, --no-cache decide."""
    file = world.home / "cache.sqlite"
    world.run("batch", "run", "in", "-o", "out", *OPENAI)
    world.run("embed", "in", "-o", "local.parquet")
    world.run("embed", "in", "-o", "off.parquet", "--no-cache", *OPENAI)
    assert not file.exists()
    world.run("batch", "run", "in", "-o", "again", "--cache", *OPENAI)

    assert file.exists()
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_broken_file_is_a_miss(world: World, content: bytes) -> None:
    """A damaged cache costs a warning, nothing else; `cache clear` makes a new one."""
    world.home.mkdir()
    (world.home / "cache.sqlite").write_bytes(content)
    ended = world.run("embed", "in", "-o", "one.parquet", *OPENAI)
    cleared = world.run("cache", "clear")

    assert ended.code == 0, ended.err
    assert ("cache" in ended.err) == bool(content)
    assert ended.err.count("is not used") == int(bool(content))
    assert cleared.code == 0
    assert not (world.home / "cache.sqlite").exists()


@pytest.mark.parametrize("name", ["cache.sqlite", "cache.sqlite-wal", "cache.sqlite-journal"])
def test_a_cache_that_is_a_link_is_a_miss(tmp_path: Path, name: str) -> None:
    """Neither the file nor what SQLite keeps beside it is read or written through a link: a word, and a miss."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    (tmp_path / name).symlink_to(theirs)
    kept = Kept()
    linked = cache(tmp_path, observer=kept)
    linked.put(SPACE, [digest(1)], [hit(1)])
    found = linked.look_up(SPACE, [digest(1)], 4, any_)
    linked.close()

    assert found == {}
    assert theirs.read_bytes() == b"theirs"
    assert len(kept.events) == 1


def test_stats(world: World) -> None:
    """`cache stats` counts vectors and bytes for each space, and how many texts were found and not found."""
    empty = json.loads(world.run("cache", "stats", "--json").out)
    world.run("embed", "in", "-o", "one.parquet", *OPENAI)
    full = json.loads(world.run("cache", "stats", "--json").out)

    assert (empty["entries"], empty["bytes"]) == (0, 0)
    assert (full["entries"], full["bytes"]) == (20, 20 * 8 * 4)
    assert full["spaces"][0]["model"] == MODEL
    world.run("embed", "in", "-o", "two.parquet", *OPENAI)
    again = json.loads(world.run("cache", "stats", "--json").out)
    assert [(one["hits"], one["misses"]) for one in (empty, full, again)] == [(0, 0), (0, 20), (20, 20)]
    assert "Total" in world.run("cache", "stats").out


def test_spaces_and_widths_are_apart(tmp_path: Path) -> None:
    """A text's vector is only found in its own space, at its own width."""
    kept = cache(tmp_path)
    kept.put(SPACE, [digest(1)], [hit(1)])

    assert kept.look_up("another", [digest(1)], 4, any_) == {}
    assert kept.look_up(SPACE, [digest(1)], 5, any_) == {}
    assert kept.look_up(SPACE, [digest(1), digest(2)], 4, any_)[digest(1)].vector.tolist() == [1, 1, 1, 1]
    kept.close()


def test_many_at_once(tmp_path: Path) -> None:
    """More texts than a statement may have variables are looked up all the same."""
    kept = cache(tmp_path)
    numbers = range(1300)
    kept.put(SPACE, [digest(n) for n in numbers], [hit(n) for n in numbers])
    found = kept.look_up(SPACE, [digest(n) for n in range(1500)], 4, any_)

    assert {found[digest(n)].tokens for n in numbers} == set(numbers)
    assert len(found) == 1300
    kept.close()


def test_old_entries_go(tmp_path: Path) -> None:
    """After the time to live an entry is a miss, and the next write removes it."""
    now = [1_000_000.0]
    kept = cache(tmp_path, wall=lambda: now[0])
    kept.put(SPACE, [digest(1)], [hit(1, made_at=now[0])])
    now[0] += 86_401

    assert kept.look_up(SPACE, [digest(1)], 4, any_) == {}
    kept.put(SPACE, [digest(2)], [hit(2, made_at=now[0])])
    assert (kept.stats().entries, kept.stats().bytes) == (1, 16)
    kept.close()


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    """When it is full, what was used last stays."""
    now = [1_000_000.0]
    kept = cache(tmp_path, max_bytes=16 * 20, wall=lambda: now[0])
    for number in range(20):
        now[0] += 4000
        kept.put(SPACE, [digest(number)], [hit(number, made_at=now[0])])
    now[0] += 4000
    kept.look_up(SPACE, [digest(0)], 4, any_)
    now[0] += 4000
    kept.put(SPACE, [digest(99)], [hit(99, made_at=now[0])])
    found = kept.look_up(SPACE, [digest(n) for n in (0, 1, 2, 19, 99)], 4, any_)

    assert digest(0) in found
    assert digest(99) in found
    assert digest(1) not in found
    assert kept.stats().bytes <= 16 * 20
    kept.close()


def test_busy_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that writes for long is not waited for, and the cache stays in use."""
    monkeypatch.setattr("embedctl.storage.sqlite_cache.BUSY_MS", 50)
    observer = Kept()
    kept = cache(tmp_path, observer=observer)
    kept.put(SPACE, [digest(1)], [hit(1)])
    other = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    kept.put(SPACE, [digest(2)], [hit(2)])
    other.execute("ROLLBACK")
    other.close()
    kept.put(SPACE, [digest(3)], [hit(3)])

    assert set(kept.look_up(SPACE, [digest(n) for n in (1, 2, 3)], 4, any_)) == {digest(1), digest(3)}
    assert observer.warned == []
    kept.close()


def test_a_glance_waits_for_nobody(tmp_path: Path) -> None:
    """It finds what a look-up finds, also while somebody writes; before the file is open it finds nothing out."""
    kept, hashes = cache(tmp_path), [digest(3), digest(4)]
    before = kept.glance("space", hashes, 4, any_)
    kept.open()
    kept.put("space", hashes[:1], [hit(3)])
    writer = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    found = kept.glance("space", hashes, 4, any_)
    writer.execute("ROLLBACK")
    writer.close()

    assert before is None
    assert found is not None
    assert [*found] == hashes[:1]
    assert found[hashes[0]].vector.tolist() == [3, 3, 3, 3]
    kept.close()


def test_entries_go_by_their_maker(tmp_path: Path) -> None:
    """`forget` removes entries of a provider, a model, or all, in any number, counts them, and frees their room."""
    kept = cache(tmp_path)
    other = CachedVector("voyage", "voyage-3", 1, np.ones(4, np.float32), time.time())
    kept.put("one", [digest(number) for number in range(2500)], [hit(number) for number in range(2500)])
    kept.put("two", [digest(1)], [other])

    assert kept.forget("nobody") == kept.forget("voyage", MODEL) == 0
    assert kept.forget("openai", MODEL) == 2500
    assert (kept.stats().entries, kept.stats().bytes) == (1, 16)
    assert kept.forget() == 1
    assert kept.forget() == 0
    assert kept.look_up("two", [digest(1)], 4, any_) == {}
    kept.close()


def test_what_does_not_stand_is_a_miss_and_what_is_bought_instead_takes_its_place(tmp_path: Path) -> None:
    """Who reads says which vectors may be taken; a newer vector of a text takes the older one's place, not reversed."""
    kept = cache(tmp_path, wall=lambda: 400.0)
    kept.put(SPACE, [digest(1)], [hit(1, made_at=100.25)])
    assert kept.look_up(SPACE, [digest(1)], 4, lambda found: found.made_at > 200) == {}
    kept.put(SPACE, [digest(1)], [hit(2, made_at=300.5)])
    kept.put(SPACE, [digest(1)], [hit(3, made_at=200.5)])
    found = kept.look_up(SPACE, [digest(1)], 4, any_)[digest(1)]

    assert (found.tokens, found.made_at, found.vector.tolist()) == (2, 300.5, [2, 2, 2, 2])
    assert (kept.stats().entries, kept.stats().bytes) == (1, 16)
    kept.close()
