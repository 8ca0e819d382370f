"""What is remembered across runs, and the file it is remembered in."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.errors import OutputRefused
from embedctl.records import Limits
from embedctl.routing.learned import Account, Learned, Served, fingerprint, living, load, merged, pair, save, update

OPENAI = Account("openai", fingerprint("sk-canary-0123456789"))
SMALL = Served("tei", "bge")

limits = st.builds(Limits, items=st.none() | st.integers(1, 99), tokens=st.none() | st.integers(1, 99))
steps = st.one_of(
    st.tuples(st.just("hold"), st.sampled_from("ab"), st.floats(-1, 1e6), st.floats(0, 1e4)),
    st.tuples(st.just("limit"), st.sampled_from("ab"), limits, st.floats(0, 1e4)),
    st.tuples(st.just("floats"), st.sampled_from("ab"), st.none(), st.floats(0, 1e4)),
    st.tuples(st.just("trust"), st.sampled_from("ab"), st.none(), st.floats(0, 1e4)),
)


@st.composite
def memories(draw: st.DrawFn) -> Learned:
    memory = Learned()
    for what, name, value, now in draw(st.lists(steps, max_size=8)):
        if what == "hold":
            memory = memory.with_hold(Account(name, ""), value, f"reason {now}", now)
        elif what == "limit":
            memory = memory.with_limits(Served(name, "m"), value, now)
        elif what == "floats":
            memory = memory.with_floats_only(Served(name, "m"), now)
        else:
            memory = memory.with_trust(pair(name, "c", "s"), now)
    return memory


def test_a_hold_lasts_an_hour_at_most() -> None:
    """A provider that asks for a day is left alone for an hour, and a clock that jumps back does not make it longer."""
    memory = Learned().with_hold(OPENAI, 86_400, "429", now=1000.0)

    assert memory.held_s(OPENAI, 1000.0) == 3600
    assert memory.held_s(OPENAI, 4599.0) == 1
    assert memory.held_s(OPENAI, 4600.0) == 0
    assert memory.held_s(OPENAI, -1e9) == 3600
    assert memory.held_s(Account("openai", fingerprint("another key")), 1000.0) == 0


@pytest.mark.parametrize("wait_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wait_without_sense_is_not_remembered(wait_s: float) -> None:
    """Nonsense is not remembered."""
    assert Learned().with_hold(OPENAI, wait_s, "429", now=0.0) == Learned()


def test_an_answer_ends_a_hold() -> None:
    """When the account's probe is answered the hold is over."""
    memory = Learned().with_hold(OPENAI, 60, "429", now=0.0)

    assert memory.without_hold(OPENAI) == Learned()


def test_the_smallest_limit_is_kept() -> None:
    """Each thing learnt narrows the limits, item by item."""
    memory = (
        Learned()
        .with_limits(SMALL, Limits(items=64, tokens=1000), 0.0)
        .with_limits(SMALL, Limits(items=128, tokens=500, bytes=10_000), 1.0)
    )

    assert memory.limits_of(SMALL) == Limits(items=64, tokens=500, bytes=10_000)
    assert memory.limits_of(Served("tei", "other")) == Limits()


def test_reset_forgets_one_provider() -> None:
    """`providers reset` forgets what is remembered of that provider, and nothing of the others."""
    memory = Learned().with_hold(OPENAI, 60, "429", 0.0).with_limits(SMALL, Limits(items=3), 0.0)
    memory = memory.with_floats_only(SMALL, 0.0)

    assert memory.without("tei") == Learned().with_hold(OPENAI, 60, "429", 0.0)
    assert set(memory.without("openai").limits) == {SMALL}


def test_what_is_over_is_dropped() -> None:
    """Holds that have passed, and limits and refusals of a month ago, are dropped; trust stays."""
    memory = Learned().with_hold(OPENAI, 60, "429", 0.0).with_limits(SMALL, Limits(items=3), 0.0)
    memory = memory.with_floats_only(SMALL, 0.0).with_trust(pair("b", "a", "s"), 0.0)

    assert living(memory, 59.0) == memory
    assert set(living(memory, 60.0).limits) == {SMALL}
    assert living(memory, 31 * 86_400.0) == Learned().with_trust(pair("a", "b", "s"), 0.0)


@given(memories(), memories(), memories())
def test_merging_has_no_order(a: Learned, b: Learned, c: Learned) -> None:
    """Memories of overlapping jobs merge to the same in any order, and merging again changes nothing."""
    both = merged(a, b)

    assert both == merged(b, a)
    assert merged(both, c) == merged(a, merged(b, c))
    assert merged(both, a) == both
    assert merged(a, Learned()) == a


@given(memories())
def test_a_memory_survives_the_file(tmp_path_factory: pytest.TempPathFactory, memory: Learned) -> None:
    """What is saved is what is loaded."""
    path = tmp_path_factory.mktemp("hints") / "hints.json"
    save(path, memory)

    assert load(path) == (memory, None)


def test_a_key_is_never_in_the_file(tmp_path: Path) -> None:
    """The file holds a fingerprint of the key, tells keys apart by it, and is for its owner alone."""
    path = tmp_path / "state" / "hints.json"
    save(path, Learned().with_hold(OPENAI, 60, "429", 0.0))

    assert b"canary" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["hints.json"]
    assert len({fingerprint("a"), fingerprint("b"), fingerprint("")}) == 3


GOOD = {"version": 1, "holds": [], "limits": [], "floats_only": [], "trusted": []}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"version": 1}',
        orjson.dumps({**GOOD, "version": 2}),
        orjson.dumps({**GOOD, "holds": [["a"]]}),
        orjson.dumps({**GOOD, "holds": 7}),
        orjson.dumps({**GOOD, "limits": [["a", "b", 0, None, None, 1.0]]}),
        orjson.dumps({**GOOD, "limits": [["a", "b", "x", None, None, 1.0]]}),
        orjson.dumps({**GOOD, "trusted": {"a": 1}}),
    ],
)
def test_a_broken_file_is_a_warning_and_an_empty_memory(tmp_path: Path, content: bytes) -> None:
    """A file that is broken, of another version or nonsense costs a warning; the next save mends it."""
    path = tmp_path / "hints.json"
    path.write_bytes(content)
    memory, warning = load(path)

    assert memory == Learned()
    assert warning is not None
    assert str(path) in warning

    update(path, lambda hints: hints.with_hold(OPENAI, 60, "429", 0.0), now=0.0)

    assert load(path) == (Learned().with_hold(OPENAI, 60, "429", 0.0), None)


def test_a_missing_file_is_an_empty_memory(tmp_path: Path) -> None:
    """No file, no warning."""
    assert load(tmp_path / "no.json") == (Learned(), None)


def remember(path: Path, index: int) -> None:
    """In a process of its own: five things, one at a time."""
    for number in range(5):
        update(path, lambda hints, n=number: hints.with_limits(Served(f"p{index}", str(n)), Limits(items=1), 0.0), 0.0)


def test_jobs_that_overlap_keep_each_others_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six processes that write at once lose nothing, and leave no half file behind."""
    monkeypatch.setattr("embedctl.routing.learned.LOCK_WAIT_S", 100)
    path = tmp_path / "hints.json"
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=remember, args=(path, index)) for index in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)

    assert [process.exitcode for process in processes] == [0] * 6
    assert len(load(path)[0].limits) == 30
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hints.json.lock", "hints.json"]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in place of the temporary file or the lock is never written through."""
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / ".hints.json.lock").symlink_to(target)
    with pytest.raises(OutputRefused, match="symbolic"):
        update(tmp_path / "hints.json", lambda hints: hints, 0.0)

    assert target.read_text() == "mine"
