"""Whether the vectors of another host may stand beside those of the output: three texts, embedded on both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedctl.embedding import checks
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.leg import Leg
from embedctl.errors import ProviderError, SpaceMismatch
from embedctl.records import Space
from embedctl.routing.canaries import TEXTS, host_of
from embedctl.routing.learned_file import LearnedFile

TRUSTED_COSINE = 0.999
PROBES = 3
_ORDINARY_CHARACTERS = 40
Probe = Callable[[Leg, Sequence[str]], Awaitable[NDArray[np.float32]]]
"""Vectors of texts that go into no output, accounted like all others."""


class SpaceProbe:
    """Knows the endpoint that the output's vectors come from, and compares others with it.

    One an output; routes to the same space may share it.
    """

    def __init__(self, memory: LearnedFile, canary: CanaryWatch | None = None) -> None:
        self._memory = memory
        self._canary = canary
        self._home: str | None = None
        self._proven: set[str] = set()
        self._strangers: dict[str, SpaceMismatch] = {}
        self._samples: dict[str, NDArray[np.float32]] = {}
        self._one_at_a_time = asyncio.Lock()

    def begins(self, leg: Leg) -> None:
        """A line gave the output its first vectors: it is what others are compared with, and is asked on."""
        self._home = self._home or leg.endpoint.id
        if leg.endpoint.id == self._home:
            self._prove(leg)

    def answered(self, leg: Leg, texts: Sequence[object], vectors: NDArray[np.float32]) -> None:
        """A line gave vectors to the output: three, of texts of ordinary length, are kept to compare with."""
        self.begins(leg)
        if leg.endpoint.id != self._home:
            return
        for i, text in enumerate(texts):
            if len(self._samples) >= PROBES:
                break
            if isinstance(text, str) and len(text) >= _ORDINARY_CHARACTERS:
                self._samples[text] = vectors[i].copy()

    async def given(self, legs: Sequence[Leg], space: Space | None, leg: Leg, probe: Probe) -> bool:
        """Whether a line of a route may be asked; one that may not is spent.

        Args:
            legs: All of the route, first the one that was asked for.
            space: Of the vectors that were given; None while there are none.

        The line that gives an output its first vectors needs no proof. Any other one embeds texts whose vectors are
        there already, and must agree.
        """
        async with self._one_at_a_time:
            if leg.proven or leg.given_up:
                return leg.proven
            if space is None:
                return True  # nothing is there yet that it could be mixed with
            home = next((one for one in legs if one.endpoint.id == self._home), legs[0])
            trusted = leg is home or leg.endpoint.id in self._proven
            if trusted or self._memory.trusts(home.endpoint, leg.endpoint, space):
                self._prove(leg)
                return True
            leg.given_up = self._strangers.get(leg.endpoint.id)
            if leg.given_up is not None:
                return False
            try:
                await self._compare(home, leg, probe)
            except ProviderError as error:
                leg.given_up = error
                if isinstance(error, SpaceMismatch):
                    self._strangers[leg.endpoint.id] = error
                return False
            self._prove(leg)
            self._memory.trust(home.endpoint, leg.endpoint, space)
            return True

    async def _of_home(self, home: Leg, probe: Probe) -> tuple[list[str], NDArray[np.float32]]:
        """The fixed texts as the output's own line embeds them: as it did today, or asked now."""
        texts = [home.endpoint.prefix + text for text in TEXTS]
        seen = self._canary.seen.get(host_of(home.endpoint)) if self._canary else None
        return texts, await probe(home, texts) if seen is None else seen.vectors

    def _prove(self, leg: Leg) -> None:
        leg.proven = True
        self._proven.add(leg.endpoint.id)

    async def _compare(self, home: Leg, leg: Leg, probe: Probe) -> None:
        """Raises ProviderError unless both give the same vectors."""
        try:
            if len(self._samples) >= PROBES:
                texts, vectors = [*self._samples], np.stack([*self._samples.values()])
            else:
                texts, vectors = await self._of_home(home, probe)
        except ProviderError as error:
            raise type(error)(
                f"{leg.endpoint.id} was never compared with {home.endpoint.id}, "
                f"which cannot be asked now: {error.message}",
                hint=error.hint,
                provider=error.provider,
                status=error.status,
                retry_after_s=error.retry_after_s,
            ) from error
        cosine = checks.alike(vectors, await probe(leg, texts))
        if cosine <= TRUSTED_COSINE:
            raise SpaceMismatch(
                f"{leg.endpoint.id} gives other vectors than {home.endpoint.id} "
                f"for the same texts (cosine {cosine:.4f})",
                hint="its weights or prefixes differ; take it out of the [fallback] chain",
                provider=leg.endpoint.provider,
            )
