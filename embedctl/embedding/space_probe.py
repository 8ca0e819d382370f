"""Whether the vectors of another host may stand beside those of the output: three texts, embedded on both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedctl.embedding import checks
from embedctl.embedding.endpoint_state import EndpointState
from embedctl.errors import ProviderError, SpaceMismatch
from embedctl.records import Space
from embedctl.routing.learned_file import LearnedFile

TRUSTED_COSINE = 0.999
PROBES = 3
_ORDINARY_CHARACTERS = 40
_TEXTS = (
    "The harbour office opens at seven; ships that arrive earlier wait outside the breakwater.",
    "Refunds are paid to the card that was charged, as a rule within five working days.",
    "A glacier moves slowly under its own weight and grinds the valley floor beneath it.",
)

Probe = Callable[[EndpointState, Sequence[str]], Awaitable[NDArray[np.float32]]]
"""Vectors of texts that go into no output, accounted like all others."""


class SpaceProbe:
    """Knows the line that the output's vectors come from, and compares others with it."""

    def __init__(self, first: EndpointState, memory: LearnedFile) -> None:
        self._first = first
        self._memory = memory
        self._home: EndpointState | None = None
        self._samples: tuple[list[str], NDArray[np.float32]] | None = None
        self._one_at_a_time = asyncio.Lock()

    def answered(self, state: EndpointState, texts: Sequence[object], vectors: NDArray[np.float32]) -> None:
        """A line gave vectors to the output: three of ordinary length are kept to compare with."""
        self._home = self._home or state
        if state is not self._home:
            return
        state.proven = True
        if self._samples is None:
            fit = [i for i, text in enumerate(texts) if isinstance(text, str) and len(text) >= _ORDINARY_CHARACTERS]
            if len(fit) >= PROBES:
                chosen = fit[:PROBES]
                self._samples = ([str(texts[i]) for i in chosen], vectors[chosen].copy())

    async def given(self, state: EndpointState, space: Space | None, probe: Probe) -> bool:
        """Whether a line may be asked; one that may not is spent.

        The line that gives an output its first vectors needs no proof. Any other one embeds texts whose vectors are
        there already, and must agree.
        """
        async with self._one_at_a_time:
            if state.proven or state.spent:
                return state.proven
            if space is None:
                return True  # nothing is there yet that it could be mixed with
            home = self._home or self._first
            if state is home or self._memory.trusts(home.endpoint, state.endpoint, space):
                state.proven = True
                return True
            try:
                await self._compare(home, state, probe)
            except ProviderError as error:
                state.spent = error
                return False
            state.proven = True
            self._memory.trust(home.endpoint, state.endpoint, space)
            return True

    async def _compare(self, home: EndpointState, state: EndpointState, probe: Probe) -> None:
        """Raises ProviderError unless both give the same vectors."""
        try:
            texts, vectors = self._samples or (list(_TEXTS), await probe(home, _TEXTS))
        except ProviderError as error:
            raise type(error)(
                f"{state.endpoint.id} was never compared with {home.endpoint.id}, "
                f"which cannot be asked now: {error.message}",
                hint=error.hint,
                provider=error.provider,
                status=error.status,
                retry_after_s=error.retry_after_s,
            ) from error
        cosine = checks.alike(vectors, await probe(state, texts))
        if cosine <= TRUSTED_COSINE:
            raise SpaceMismatch(
                f"{state.endpoint.id} gives other vectors than {home.endpoint.id} "
                f"for the same texts (cosine {cosine:.4f})",
                hint="its weights or prefixes differ; take it out of the [fallback] chain",
                provider=state.endpoint.provider,
            )
