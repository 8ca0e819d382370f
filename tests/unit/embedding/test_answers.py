"""A run's answers: what of them stays in memory, and how long."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import numpy as np

from embedctl.embedding.answers import OnlineAnswers
from embedctl.planning.packer import PackedRequest
from embedctl.planning.slice import Slice
from embedctl.records import Answer, Outcome, Request, Usage, VectorRef, uuid7
from embedctl.runs.slices import OpenSlices


class Texts(list[str]):
    """The texts of a request; who holds them can be found out."""


class Embedder:
    """Answers each request; remembers, without keeping them, the vectors that it gave away."""

    def __init__(self) -> None:
        self.vectors: list[weakref.ref[Any]] = []

    async def embed(self, packed: PackedRequest) -> list[Outcome]:
        return [self._outcome(packed)]

    def _outcome(self, packed: PackedRequest) -> Outcome:
        vectors = np.ones((len(packed.ordinals), 4), np.float32)
        self.vectors.append(weakref.ref(vectors))
        answer = Answer(
            vectors=vectors,
            usage=Usage(tokens_total=1, tokens_native=1, source="native"),
            request=packed.request,
            provider="openai",
            model="m",
            event_id=uuid7(),
        )
        ref = VectorRef("s", 0, len(packed.ordinals), 4)
        return Outcome(targets=packed.ordinals, ref=ref, answer=answer)


def packed(number: int) -> PackedRequest:
    request = Request(operation_id=uuid7(), texts=Texts(["a"]), hashes=b"\0" * 16, content_bytes=1)
    return PackedRequest(number=number, request=request, ordinals=(number,))


def test_answers_are_not_kept_until_the_next_ones() -> None:
    """A worker that waits for its next request holds none of the vectors that it has handed on."""

    async def ask() -> list[bool]:
        embedder = Embedder()
        answers = OnlineAnswers(embedder, 3, failed=lambda error: None)  # type: ignore[arg-type]
        outcomes = answers.outcomes()
        for number in range(6):
            await answers.submit(packed(number))
        for _ in range(6):
            await anext(outcomes)
        gc.collect()
        held = [vectors() is not None for vectors in embedder.vectors]
        await answers.aclose()
        return held

    assert asyncio.run(ask()) == [False] * 6


def test_a_slice_that_waits_keeps_no_texts() -> None:
    """What a slice knows of an outcome is where its vectors are; the request's texts end with it."""
    slices = OpenSlices(None, 4, lambda: True, lambda number: None, lambda block: None, None)  # type: ignore[arg-type]
    slice_ = Slice(number=0, first_row=0, first_target=0, pending=1)
    slices._open.append(slice_)
    asked = packed(0)
    texts = weakref.ref(asked.request.texts)
    slices.settle(Embedder()._outcome(asked))
    del asked
    gc.collect()

    assert texts() is None
    assert slice_.outcomes[0].ref == VectorRef("s", 0, 1, 4)
