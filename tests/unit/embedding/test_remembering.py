"""Vectors of calls without an output: in the cache before the journal has them, each host's its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedctl import settings
from embedctl.embedding.cached import RememberingJournal, recalled
from embedctl.errors import StorageFailed
from embedctl.records import text_hash
from embedctl.routing import chain
from embedctl.routing.endpoint import Endpoint
from embedctl.storage.vector_cache import VectorCache
from tests.support.ledger_events import event

TEXTS = [text_hash(text) for text in ("one", "two")]


class Torn:
    """A journal that dies with its process before an answer is in it."""

    def __getattr__(self, name: str) -> Any:
        return None

    async def answer(self, *given: Any) -> Any:
        raise StorageFailed("killed here")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VectorCache]:
    with closing(VectorCache(tmp_path / "cache.sqlite", max_bytes=1 << 20, ttl_days=1)) as made:
        yield made


def endpoint(provider: str, model: str = "text-embedding-3-small") -> Endpoint:
    """Of a place of one's own that speaks OpenAI's dialect."""
    text = "".join(f'[providers.{name}]\nprotocol = "openai"\nbase_url = "http://127.0.0.1:1"\n' for name in ("a", "b"))
    from tests.support.running import user_settings

    user_settings(text)
    return chain.endpoint(settings.load(), provider, model)


def answered(cache: VectorCache, place: Endpoint, vectors: np.ndarray) -> None:
    """An endpoint answers both texts, and is killed."""
    had = recalled(cache, place, TEXTS, lambda one: True)
    journal = RememberingJournal(Torn(), cache, place, had.taken)
    space = place.space(vectors.shape[1])
    assert space is not None
    made = event(provider=place.provider, model=place.model)
    with pytest.raises(StorageFailed):
        asyncio.run(journal.answer(made, b"".join(TEXTS), vectors, None, {"space_id": space.space_id}))


def test_who_is_killed_before_the_journal_has_an_answer_has_its_vectors(cache: VectorCache) -> None:
    """What was answered is found again, though the journal never took it; a probe's vectors are not kept."""
    place, vectors = endpoint("a"), np.random.default_rng(1).random((2, 1536), np.float32)
    probe = RememberingJournal(Torn(), cache, place, frozenset())
    with pytest.raises(StorageFailed):
        asyncio.run(probe.answer(event(), TEXTS[0], vectors[:1], None, None))
    assert recalled(cache, place, TEXTS, lambda one: True).vectors == {}
    answered(cache, place, vectors)

    found = recalled(cache, place, TEXTS, lambda one: True).vectors
    assert np.array_equal(np.stack([found[one].vector for one in TEXTS]), vectors)


def test_each_host_has_its_own_vectors(cache: VectorCache) -> None:
    """Two hosts of the same weights are measured each for itself: one never gets what the other made."""
    draw = np.random.default_rng(1)
    made = {name: draw.random((2, 1536), np.float32) for name in "ab"}
    for name in "ab":
        answered(cache, endpoint(name), made[name])

    for name in "ab":
        found = recalled(cache, endpoint(name), TEXTS, lambda one: True).vectors
        assert np.array_equal(np.stack([found[one].vector for one in TEXTS]), made[name])


def test_a_width_that_nobody_says_is_known_once_it_was_answered(cache: VectorCache) -> None:
    """Vectors of a model that no catalog knows are found again by the width that they had."""
    place = endpoint("a", "of-my-own")
    assert recalled(cache, place, TEXTS, lambda one: True).space is None
    answered(cache, place, np.ones((2, 37), np.float32))
    found = recalled(cache, place, TEXTS, lambda one: True)

    assert found.space is not None
    assert (found.space.dimensions, set(found.vectors)) == (37, set(TEXTS))
