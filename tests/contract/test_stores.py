"""Every promise of a store, for every store there is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedctl.storage.store import LocalStore, Store

STORES: dict[str, Callable[[Path], Store]] = {"a folder": LocalStore}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path / "store")


def test_an_object_is_put_once(store: Store) -> None:
    """The first one who puts a name has it; the second one is told so, and changes nothing."""
    assert store.put_if_absent("part-000000.parquet", b"first")
    assert not store.put_if_absent("part-000000.parquet", b"second")
    assert store.read("part-000000.parquet") == b"first"


def test_of_many_at_once_one_wins(store: Store) -> None:
    """However many put a name at the same moment, one of them has put it, and it is whole."""
    won: list[int] = []

    def put(number: int) -> None:
        if store.put_if_absent("claim", bytes([number]) * 100_000):
            won.append(number)

    threads = [threading.Thread(target=put, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert store.read("claim") == bytes(won) * 100_000


def test_an_object_that_fails_on_its_way_is_not_there(store: Store) -> None:
    """Content that breaks off leaves no name and no half."""

    def content(file: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put_if_absent("half", content)

    assert list(store.list()) == []
    with pytest.raises(FileNotFoundError):
        store.read("half")


def test_names_are_listed_in_order(store: Store) -> None:
    """A prefix chooses; the order is that of the names."""
    assert list(store.list()) == []
    for name in ("part-2", "part-1", "manifest"):
        store.put_if_absent(name, b"x")

    assert list(store.list("part-")) == ["part-1", "part-2"]
    assert list(store.list()) == ["manifest", "part-1", "part-2"]


def test_removal_may_be_repeated(store: Store) -> None:
    """A removed object is gone, and removing it again is no error."""
    store.put_if_absent("part-1", b"x")
    store.remove("part-1")
    store.remove("part-1")

    assert list(store.list()) == []
    assert store.put_if_absent("part-1", b"y")
