"""Token counts in a Redis that machines share: real servers, real ones killed, and things that are no Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from embedctl import settings, tokens
from embedctl.errors import ConfigurationInvalid
from embedctl.records import text_hash
from embedctl.storage import redis_counts
from embedctl.storage.redis_counts import RedisCounts, place_of
from embedctl.storage.token_count_cache import RunCounts, SharedCounts, count_store
from tests.support.bad_servers import bad_server
from tests.support.observing import Kept
from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.redis_servers import PASSWORD, SERVER, RedisServer, redis_server
from tests.support.wire.client import Wire
from tests.unit.storage.test_token_count_cache import Watched

TEXTS = [sentence(number) for number in range(20)]
EXPECTED = tokens.counter(tokens.FALLBACK).count(TEXTS)
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5", "--no-cache", "--json", "--no-progress")

with_redis = pytest.mark.skipif(
    SERVER is None, reason="redis-server is not installed here: apt-get install redis-server"
)


AS_IT_IS = {name: getattr(redis_counts, name) for name in ("CONNECT_S", "ANSWER_S", "_CLOSE_S")}
"""How long users wait."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as found:
        yield found


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine is no slow server: what is awaited comes however long that takes."""
    for name in AS_IT_IS:
        monkeypatch.setattr(redis_counts, name, 10.0)


class Patient(World):
    """The same for its processes."""

    @property
    def constants(self) -> dict[str, Any]:
        return {**super().constants, **{f"embedctl.storage.redis_counts:{name}": 10.0 for name in AS_IT_IS}}


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for users: for servers that never answer."""
    for name, seconds in AS_IT_IS.items():
        monkeypatch.setattr(redis_counts, name, seconds)


def counts(url: str, folder: Path, **about: object) -> RedisCounts:
    return RedisCounts(url, folder / "cache.sqlite", **{"ttl_s": 60, **about})  # type: ignore[arg-type]


@with_redis
def test_what_one_counted_another_takes_over(server: RedisServer, tmp_path: Path) -> None:
    """A text that one home counted is not counted in another: both say how often, and how long asking took."""
    first, second = Watched(), Watched()
    homes = [tmp_path / "one", tmp_path / "two"]
    memory = RunCounts(counts(server.url, homes[0]))
    assert memory.of(first, TEXTS) == EXPECTED
    memory.close()
    memory = RunCounts(counts(server.url, homes[1]))
    found = memory.of(second, [*TEXTS, "new"])
    memory.close()

    assert (found[:20], second.asked) == (EXPECTED, ["new"])
    one, two = (counts(server.url, home).tally() for home in homes)
    assert (one.hits, one.misses, one.look_ups) == (0, 20, 1)
    assert (two.hits, two.misses, two.look_ups) == (20, 1, 1)
    assert min(one.seconds, two.seconds) > 0


@with_redis
def test_keys_are_the_tokenizer_and_the_texts_hash_for_a_time(server: RedisServer, tmp_path: Path) -> None:
    """A key is the tokenizer and the hash of a text, never the text; each has its time to live."""
    memory = RunCounts(counts(server.url, tmp_path, ttl_s=77))
    memory.of(Watched(), ["CANARYTEXT"])
    memory.of(Watched("file:other"), ["CANARYTEXT"])
    memory.close()
    digest = text_hash("CANARYTEXT").hex().encode()

    keys = server.kept()
    assert keys == [b"embedctl:tokens:1:%s:%s" % (name, digest) for name in (b"file:other", b"tiktoken:cl100k_base")]
    with server.client as client:
        assert {0 < client.ttl(key) <= 77 for key in keys} == {True}


def test_a_tokenizers_file_is_known_by_its_content(tmp_path: Path) -> None:
    """Two files of one name on two machines count for themselves, one file of two names is one tokenizer."""
    source = tokens.asset("minilm/tokenizer.json").read_text()
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, text in zip(paths, (source, source, source.replace('"[UNK]"', '"[unk]"')), strict=True):
        path.write_text(text)
    one, same, other = (tokens.counter(f"file:{path}").content_id for path in paths)

    assert one == same != other
    assert str(tmp_path) not in one


@with_redis
@pytest.mark.parametrize("value", [b"0", b"-3", b"999999", b"4.5", b"four", b"", b"\xb2", b"9" * 5000])
def test_what_others_wrote_is_looked_at(server: RedisServer, tmp_path: Path, value: bytes) -> None:
    """A value that can be no count of that text, or none at all, is as if it were not there."""
    with server.client as client:
        client.set(b"embedctl:tokens:1:" + tokens.FALLBACK.encode() + b":" + text_hash(TEXTS[0]).hex().encode(), value)
    memory = RunCounts(counts(server.url, tmp_path))
    found = memory.of(Watched(), TEXTS)
    memory.close()

    assert found == EXPECTED


@with_redis
def test_another_kind_of_value_is_a_miss(server: RedisServer, tmp_path: Path) -> None:
    """A list where a count should be is a miss, and no complaint."""
    observer = Kept()
    with server.client as client:
        client.rpush(b"embedctl:tokens:1:" + tokens.FALLBACK.encode() + b":" + text_hash(TEXTS[0]).hex().encode(), 4)
    memory = RunCounts(counts(server.url, tmp_path, observer=observer))

    assert memory.of(Watched(), TEXTS) == EXPECTED
    assert observer.warned == []
    memory.close()


@with_redis
def test_killed_in_the_middle(server: RedisServer, tmp_path: Path) -> None:
    """Once it is gone all is counted here, with one word, and nobody asks again before the time."""
    now, observer, watched = [0.0], Kept(), Watched()
    store = counts(server.url, tmp_path, observer=observer, clock=lambda: now[0])
    memory = RunCounts(store)
    memory.of(watched, TEXTS[:5])
    server.kill()
    found = [memory.of(watched, [text]) for text in TEXTS[5:]]

    assert [one for (one,) in found] == EXPECTED[5:]
    assert len(observer.warned) == 1
    assert f"redis://127.0.0.1:{server.port}" in observer.warned[0]
    assert store._not_before == redis_counts.AGAIN_S
    now[0] = redis_counts.AGAIN_S
    memory.of(watched, ["once more"])
    assert store._not_before == 3 * redis_counts.AGAIN_S
    assert len(observer.warned) == 1
    memory.close()


@with_redis
def test_a_paused_server_is_not_waited_for(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs in the middle costs one wait; what was counted is right."""
    observer = Kept()
    memory = RunCounts(counts(server.url, tmp_path, observer=observer))
    memory.of(Watched(), TEXTS[:5])
    os.kill(server.process.pid, signal.SIGSTOP)
    impatient(monkeypatch)
    found = memory.of(Watched(), TEXTS[5:])
    again = memory.of(Watched(), ["more"])
    memory.close()

    assert (found, again) == (EXPECTED[5:], tokens.counter(tokens.FALLBACK).count(["more"]))
    assert ["no answer in time" in one for one in observer.warned] == [True]


def test_how_long_anybody_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who counts waits a third of a second at a time for a server that never answers, and less than 1 % of an hour.

    Waits are written down here, and not waited for.
    """
    impatient(monkeypatch)
    waits: list[float] = []

    class Waiting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(float("inf") if timeout is None else timeout)
            return self.is_set()

    @dataclass(slots=True)
    class Task(redis_counts._Task):
        done: threading.Event = field(default_factory=Waiting)

    monkeypatch.setattr(redis_counts, "_Task", Task)
    hour = 3600
    now = 0.0
    with bad_server("silent") as port:
        store = counts(f"redis://127.0.0.1:{port}/0", tmp_path, clock=lambda: now)
        for second in range(hour):
            now = float(second)
            assert store.look_up("cl100k", [text_hash("a text")]) == {}
        store.close()

    assert waits
    assert max(waits) <= 0.35
    assert sum(waits) < hour / 100


@pytest.mark.parametrize("kind", ["refuses", "silent", "nonsense", "http", "endless"])
def test_what_is_no_redis_is_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Nobody there, silence, garbage, another protocol, a line without end: counted here, one word, no password."""
    impatient(monkeypatch)
    observer = Kept()
    with bad_server(kind) as port:
        memory = RunCounts(counts(f"redis://user:{PASSWORD}@127.0.0.1:{port}/0", tmp_path, observer=observer))
        found = [*memory.of(Watched(), TEXTS[:10]), *memory.of(Watched(), TEXTS[10:])]
        memory.close()

    assert found == EXPECTED
    assert len(observer.warned) == 1
    assert f"redis://127.0.0.1:{port} is not used" in observer.warned[0]
    assert PASSWORD not in observer.warned[0]


@with_redis
@pytest.mark.parametrize("user", ["", "wrong", f"nobody:{PASSWORD}"])
def test_a_wrong_password_is_one_word(server: RedisServer, tmp_path: Path, user: str) -> None:
    """No password, a wrong one, an unknown user: counted here, and the word does not repeat it."""
    observer = Kept()
    before = "" if not user else f"{user}@" if ":" in user else f":{user}@"
    url = f"redis://{before}127.0.0.1:{server.port}/0"
    memory = RunCounts(counts(url, tmp_path, observer=observer))

    assert memory.of(Watched(), TEXTS) == EXPECTED
    assert ["it refuses the password" in one for one in observer.warned] == [True], observer.warned
    assert PASSWORD not in observer.warned[0]
    memory.close()


@pytest.mark.parametrize(
    "url", ["redis://:pa:ss@[bad", "redis://h:notaport/0", f"redis://:{PASSWORD}@h:1/zero", "unix:///no/such.sock"]
)
def test_an_address_that_cannot_be_read_is_one_word(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that only its library can refuse is one word, which does not repeat it."""
    impatient(monkeypatch)
    observer = Kept()
    memory = RunCounts(counts(url, tmp_path, observer=observer))

    assert memory.of(Watched(), TEXTS) == EXPECTED
    assert len(observer.warned) == 1
    assert "pa:ss" not in observer.warned[0]
    assert PASSWORD not in observer.warned[0]
    memory.close()


def test_the_address_is_never_shown(tmp_path: Path) -> None:
    """Of an address only scheme, host and port, or the socket, are said; no repr has it."""
    url = f"rediss://user:{PASSWORD}@cache.example:6380/3?ssl_ca_certs={PASSWORD}"
    loaded = settings.load(
        environment={"EMBEDCTL_HOME": str(tmp_path), "EMBEDCTL_TOKEN_USAGE_CACHE": url}, folder=tmp_path
    )

    assert loaded.token_usage.cache == url
    assert place_of(url) == "rediss://cache.example:6380"
    assert place_of("unix:///run/redis.sock?password=x") == "unix:///run/redis.sock"
    assert PASSWORD not in repr(loaded) + repr(counts(url, tmp_path)) + str(loaded.token_usage)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("off", False),
        ("ON", True),
        ("", True),
        ("0", False),
        ("redis://h", "redis://h"),
        ("rediss://h:1", "rediss://h:1"),
    ],
)
def test_the_variable_switches_it(tmp_path: Path, said: str, expected: bool | str) -> None:
    """EMBEDCTL_TOKEN_USAGE_CACHE is stronger than the settings' file: off, on, or an address; empty is unset."""
    config = tmp_path / "config.toml"
    config.write_text("[token_usage]\ncache = true\ncache_ttl_s = 7\n")
    env = {"EMBEDCTL_HOME": str(tmp_path), "EMBEDCTL_TOKEN_USAGE_CACHE": said}
    asked = settings.load(config=config, environment=env, folder=tmp_path).token_usage

    assert (asked.cache, asked.cache_ttl_s) == (expected, 7)
    store = count_store(asked.cache, tmp_path / "cache.sqlite", ttl_s=7)
    kinds = {False: type(None), True: SharedCounts}
    assert isinstance(store, kinds.get(expected, RedisCounts))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [f"http://:{PASSWORD}@h", PASSWORD, f"redis://{PASSWORD} x", "redis://"])
def test_what_is_no_address_is_refused_without_it(tmp_path: Path, wrong: str) -> None:
    """A setting, or the variable, that is neither a switch nor a Redis is refused (78), and is not repeated."""
    config = tmp_path / "config.toml"
    config.write_text(f'[token_usage]\ncache = "{wrong}"\n')
    home = {"EMBEDCTL_HOME": str(tmp_path)}
    with pytest.raises(ConfigurationInvalid) as by_file:
        settings.load(config=config, environment=home, folder=tmp_path)
    with pytest.raises(ConfigurationInvalid) as by_variable:
        settings.load(environment={**home, "EMBEDCTL_TOKEN_USAGE_CACHE": wrong}, folder=tmp_path)

    for refused in (by_file, by_variable):
        assert PASSWORD not in refused.value.message + str(refused.value.hint)
        assert "redis://" in refused.value.message


@with_redis
def test_two_homes_share_hits_and_a_kill_harms_no_run(
    server: RedisServer, tmp_path: Path, wire: Wire, forks: Zygote
) -> None:
    """Runs of two homes share their counts and bill alike; Redis killed in the middle of a run is one word in it.

    The password stands nowhere.
    """
    wire.reset()
    variables = {"EMBEDCTL_TOKEN_USAGE_CACHE": server.url}
    config = f'[models."openai:{MODEL}"]\nusage_mode = "fallback"\n'
    worlds = [Patient(tmp_path / name, wire, forks, variables=dict(variables)) for name in "ab"]
    for world in worlds:
        world.home.mkdir(parents=True)
        (world.home / "config.toml").write_text(config)
        world.table(TEXTS)
    ended = [one.run("embed", "in.parquet", "-o", "out.parquet", *OPENAI) for one in worlds]
    metrics = [one.run("usage", "metrics").out for one in worlds]
    stats = worlds[1].run("cache", "stats", "--json").out
    shown = worlds[1].run("config", "show", "--json").out + worlds[1].run("doctor", "--json").out

    assert [one.code for one in ended] == [0, 0], ended[0].err
    assert ended[0].receipt["tokens"] == ended[1].receipt["tokens"] == sum(EXPECTED)
    assert re.search(r'^embedding_token_count_cache_misses_total\{store="redis"\} 20\.0$', metrics[0], re.MULTILINE)
    assert re.search(r'^embedding_token_count_cache_hits_total\{store="redis"\} 20\.0$', metrics[1], re.MULTILINE)
    assert re.search(r'^embedding_token_count_cache_lookup_seconds_sum\{store="redis"\} \d', metrics[1], re.MULTILINE)
    assert json.loads(stats)["token_counts"]["place"] == f"redis://127.0.0.1:{server.port}"

    wire.plan(hold_after=1)
    more = [sentence(number) for number in range(100, 160)]
    worlds[0].table(more)
    running = worlds[0].start("embed", "in.parquet", "-o", "more.parquet", *OPENAI, "--concurrency", "1")
    while not wire.held():
        assert running.err.read_text() == ""
    server.kill()
    wire.plan()
    killed = running.wait()

    assert killed.code == 0, killed.err
    assert killed.receipt["tokens"] == sum(tokens.counter(tokens.FALLBACK).count(more))
    words = [line.startswith("warning: the token count cache redis://") for line in killed.err.splitlines()]
    assert words == [True], killed.err
    said = "".join((one.out + one.err) for one in (*ended, killed)) + "".join(metrics) + stats + shown
    assert PASSWORD not in said
    files = [path for world in worlds for path in world.folder.rglob("*") if path.is_file()]
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    assert replace(worlds[0], variables={}).ledger()["confirmed"] > 0
