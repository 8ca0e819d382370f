"""The index of known texts says where a vector is, at any size, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from embedctl.errors import InvariantBroken, StorageFailed
from embedctl.storage import hash_index
from embedctl.storage.hash_index import LOCATION, HashIndex


@pytest.fixture
def index(tmp_path: Path) -> Iterator[HashIndex]:
    with HashIndex(tmp_path, in_memory=100) as index:
        yield index


def places(file: int, count: int, start: int = 0) -> np.ndarray:
    made = np.zeros(count, LOCATION)
    made["file"], made["row"] = file, np.arange(start, start + count)
    return made


def hashes(*texts: bytes) -> bytes:
    return b"".join(text.rjust(16, b"\0") for text in texts)


def test_an_empty_index_knows_nothing(index: HashIndex) -> None:
    """Nothing is found where nothing was added, and no texts is a question too."""
    for asked in (b"", hashes(b"a", b"b")):
        where, found = index.look_up(asked)

        assert len(where) == len(found) == len(asked) // 16
        assert not found.any()


def test_what_was_added_is_found_where_it_is(index: HashIndex) -> None:
    """Every hash is found at its place, in memory and in any run on the disk, and no other is."""
    rng = np.random.default_rng(1)
    batches = [rng.bytes(16 * 37) for _ in range(60)]
    for number, batch in enumerate(batches):
        index.add(batch, places(number, 37, start=2**40))

    for number, batch in enumerate(batches):
        where, found = index.look_up(np.frombuffer(batch, np.uint8).reshape(-1, 16))
        assert found.all()
        assert np.array_equal(where, places(number, 37, start=2**40))
    assert not index.look_up(rng.bytes(16 * 1000))[1].any()
    assert len(index) == 60 * 37


def test_the_first_place_stays(index: HashIndex) -> None:
    """A text added again, in the same batch or much later, is where it was first."""
    index.add(hashes(b"a", b"b", b"a"), places(1, 3))
    rng = np.random.default_rng(1)
    for number in range(40):
        index.add(hashes(b"a") + rng.bytes(16 * 20), places(2 + number, 21))
    where, found = index.look_up(hashes(b"a", b"b", b"a"))

    assert found.all()
    assert where.tolist() == [(1, 0), (1, 1), (1, 0)]


def test_texts_that_share_half_a_hash_are_told_apart(index: HashIndex) -> None:
    """Hashes with the same first eight bytes are different texts."""
    texts = [b"same-key" + bytes([high, 0, 0, 0, 0, 0, low, 1]) for high in range(16) for low in range(30)]
    for number, text in enumerate(texts):
        index.add(text, places(number, 1))
    where, found = index.look_up(b"".join(texts))

    assert found.all()
    assert where["file"].tolist() == list(range(len(texts)))
    assert not index.look_up(b"same-key" + bytes(8))[1].any()


def test_the_number_of_runs_grows_with_the_logarithm(index: HashIndex, tmp_path: Path) -> None:
    """Runs of one size are merged, and none of them has a name that a crash could leave behind."""
    rng = np.random.default_rng(1)
    for number in range(1000):
        index.add(rng.bytes(16 * 100), places(number, 100))

    assert len(index._runs) <= 10
    assert list(tmp_path.iterdir()) == []


def test_large_runs_are_merged_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging piece by piece gives what merging at once gives, also when many share one key."""
    monkeypatch.setattr(hash_index, "_MERGED_AT_ONCE", 3)
    with HashIndex(tmp_path, in_memory=20) as index:
        texts = [bytes([n % 5]) * 8 + n.to_bytes(8, "big") for n in range(640)]
        for number, text in enumerate(texts):
            index.add(text, places(number, 1))
        where, found = index.look_up(b"".join(texts))

        assert found.all()
        assert where["file"].tolist() == list(range(640))


def test_pages_are_given_back(index: HashIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letting go of touched pages changes no answer."""
    monkeypatch.setattr(hash_index, "_RELAX_ENTRIES", 1)
    monkeypatch.setattr(hash_index, "_RELAX_EVERY", 1)
    batch = np.random.default_rng(1).bytes(16 * 500)
    index.add(batch, places(7, 500))

    for _ in range(3):
        assert np.array_equal(index.look_up(batch)[0], places(7, 500))


def test_hashes_and_places_belong_together(index: HashIndex) -> None:
    """One place for each hash, or it is a bug."""
    with pytest.raises(InvariantBroken):
        index.add(hashes(b"a"), places(1, 2))


def test_a_folder_that_is_gone_is_an_error_of_ours(tmp_path: Path) -> None:
    """When a run cannot be written, StorageFailed says where."""
    with HashIndex(tmp_path / "nowhere", in_memory=2) as index, pytest.raises(StorageFailed, match="nowhere"):
        index.add(hashes(b"a", b"b", b"c"), places(1, 3))


def test_a_look_up_stays_cheap(tmp_path: Path) -> None:
    """Adding and looking up 200,000 hashes in batches of 1000 costs a few microseconds each at most."""
    rng = np.random.default_rng(1)
    with HashIndex(tmp_path) as index:
        began = time.process_time()
        for number in range(200):
            batch = rng.bytes(16_000)
            index.look_up(batch)
            index.add(batch, places(number, 1000))
        spent_s = time.process_time() - began

    assert spent_s / 200_000 < 8e-6


class Model(RuleBasedStateMachine):
    """The index beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.index = HashIndex(Path(self.folder.name), in_memory=4)
        self.expected: dict[bytes, tuple[int, int]] = {}
        self.file = 0

    texts = st.lists(st.integers(0, 40).map(lambda n: bytes([n % 3]) * 8 + bytes(7) + bytes([n])), max_size=9)

    @rule(added=texts)
    def add(self, added: list[bytes]) -> None:
        self.file += 1
        self.index.add(b"".join(added), places(self.file, len(added)))
        for row, text in enumerate(added):
            self.expected.setdefault(text, (self.file, row))

    @rule(asked=texts)
    def look_up(self, asked: list[bytes]) -> None:
        where, found = self.index.look_up(b"".join(asked))

        assert found.tolist() == [text in self.expected for text in asked]
        assert [tuple(place) for place in where[found].tolist()] == [
            self.expected[text] for text in asked if text in self.expected
        ]

    @invariant()
    def nothing_is_left_lying(self) -> None:
        assert list(Path(self.folder.name).iterdir()) == []

    def teardown(self) -> None:
        self.index.close()
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=16, max_size=640).map(lambda raw: raw[: len(raw) // 16 * 16]))
def test_any_bytes_are_a_hash(tmp_path: Path, raw: bytes) -> None:
    """Hashes are bytes: zeros at either end count like any other."""
    with HashIndex(tmp_path, in_memory=7) as index:
        index.add(raw, places(1, len(raw) // 16))
        where, found = index.look_up(raw)

        assert found.all()
        assert [raw[16 * row : 16 * row + 16] for row in where["row"].tolist()] == [
            raw[at : at + 16] for at in range(0, len(raw), 16)
        ]
