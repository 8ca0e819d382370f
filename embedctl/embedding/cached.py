"""Between plan and call: texts whose vectors the shared cache has are not sent; what is answered is put into it.

A hit is written to the journal like an answer, with a `cache_hit` event: from there on it is a vector like all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.embedding import usage_events
from embedctl.embedding.attempt import AttemptRecord, SpendGuard
from embedctl.embedding.call import Embedder
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.route import Route
from embedctl.embedding.usage_events import Caller
from embedctl.journal import Journal
from embedctl.planning.packer import PackedRequest
from embedctl.records import TEXT_HASH_BYTES, Answer, Outcome, Request, Space, Usage, UsageEvent, minted_at
from embedctl.routing.endpoint import Endpoint
from embedctl.storage.vector_cache import CachedVector, Stands, VectorCache

_MOST_WIDTH = 8192
"""Of vectors whose width nobody says."""


class CachedEmbedder:
    """Embeds a run's requests through the call point, and remembers.

    Args:
        cache: None: nothing is remembered.
        endpoint: Whose space is looked for before the first answer.
        watch: Says which vectors of the cache may stand in the output, and is told what does.
    """

    def __init__(
        self,
        embedder: Embedder,
        cache: VectorCache | None,
        *,
        route: Route,
        journal: Journal,
        budget: SpendGuard,
        caller: Caller,
        endpoint: Endpoint,
        watch: CanaryWatch,
    ) -> None:
        self._embedder = embedder
        self._cache = cache
        self._route = route
        self._journal = journal
        self._budget = budget
        self._caller = caller
        self._endpoint = endpoint
        self._watch = watch
        self.hits = 0

    async def embed(self, packed: PackedRequest) -> list[Outcome]:
        """What became of every text of a request; `targets` are its ordinals in the run.

        Raises:
            EmbedctlError: As the call point does.
        """
        space = self._route.space or self._endpoint.space()
        if self._cache is None or packed.request.purpose == "test":
            return await self._bought(packed)
        arrived: list[Outcome] = []
        if space is not None:
            hashes = _each(packed.request.hashes)
            found = await asyncio.to_thread(
                self._cache.look_up, space.space_id, hashes, space.dimensions, self._watch.stands
            )
            have = [place for place, text_hash in enumerate(hashes) if text_hash in found]
            if have:
                arrived = await self._kept(packed, have, [found[hashes[place]] for place in have], space)
                missing = [place for place in range(len(hashes)) if hashes[place] not in found]
                packed = replace(
                    packed,
                    request=_chosen(packed.request, missing),
                    ordinals=tuple(packed.ordinals[place] for place in missing),
                )
        if packed.ordinals:
            bought = await self._bought(packed)
            await self._remember(bought, packed)
            arrived += bought
        return arrived

    async def _bought(self, packed: PackedRequest) -> list[Outcome]:
        outcomes = await self._embedder.embed(
            packed.request, route=self._route, caller=self._caller, journal=self._journal, budget=self._budget
        )
        return [replace(one, targets=[packed.ordinals[at] for at in one.targets]) for one in outcomes]

    async def _remember(self, bought: Sequence[Outcome], packed: PackedRequest) -> None:
        space = self._route.space
        if space is None or self._cache is None:
            return
        hashes = dict(zip(packed.ordinals, _each(packed.request.hashes), strict=True))
        for outcome in bought:
            answer = outcome.answer
            if answer is not None:
                each = answer.tokens_each or (None,) * len(answer.vectors)
                maker, asked_at = (answer.provider, answer.model), minted_at(answer.event_id)
                hits = [CachedVector(*maker, each[i], row, asked_at) for i, row in enumerate(answer.vectors)]
                known = [hashes[ordinal] for ordinal in outcome.targets]
                await asyncio.to_thread(self._cache.put, space.space_id, known, hits)

    async def _kept(
        self, packed: PackedRequest, places: list[int], hits: Sequence[CachedVector], space: Space
    ) -> list[Outcome]:
        """Write hits to the journal, those of one maker together."""
        self._route.space = space
        self._watch.holds = True
        self.hits += len(hits)
        arrived: list[Outcome] = []
        for maker in sorted({(hit.provider, hit.model) for hit in hits}):
            mine = [i for i, hit in enumerate(hits) if (hit.provider, hit.model) == maker]
            request = _chosen(packed.request, [places[i] for i in mine])
            counts = [hits[i].tokens for i in mine]
            known = tuple(count for count in counts if count is not None)
            each = known if len(known) == len(mine) else None
            event = usage_events.from_cache(self._caller, self._endpoint, request, *maker, sum(each) if each else None)
            vectors = np.stack([hits[i].vector for i in mine])
            await self._journal.intend(event)
            ref = await self._journal.answer(event, request.hashes, vectors, each, {"space_id": space.space_id})
            answer = Answer(
                vectors=vectors,
                usage=Usage(tokens_total=0, source="fallback"),
                request=request,
                provider=maker[0],
                model=maker[1],
                event_id=event.event_id,
                tokens_each=each,
            )
            ordinals = [packed.ordinals[places[i]] for i in mine]
            arrived.append(Outcome(targets=ordinals, ref=ref, answer=answer))
        return arrived


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the cache has of one endpoint's making.

    Attributes:
        space: Of its vectors, as far as it is known.
        vectors: By text hash.
        taken: Hashes under which the cache has what another host made of the same weights.
    """

    space: Space | None = None
    vectors: Mapping[bytes, CachedVector] = field(default_factory=dict)
    taken: frozenset[bytes] = frozenset()


def recalled(cache: VectorCache, endpoint: Endpoint, hashes: Sequence[bytes], stands: Stands) -> Recalled:
    """What an endpoint itself has made before: another host's vectors of the same weights say nothing of this one.

    Where nobody says how wide its vectors are, those that it made before do.
    """
    space = endpoint.space()
    if space is None:
        ids = cache.space_ids()
        widths = (endpoint.space(width) for width in range(1, _MOST_WIDTH + 1)) if ids else ()
        space = next((one for one in widths if one is not None and one.space_id in ids), None)
    if space is None:
        return Recalled()
    found = cache.look_up(space.space_id, hashes, space.dimensions, stands)
    maker = (endpoint.provider, endpoint.model)
    taken = frozenset(digest for digest, one in found.items() if (one.provider, one.model) != maker)
    if taken:
        own = cache.look_up(_own_id(space.space_id, endpoint), list(taken), space.dimensions, stands)
        found = {digest: one for digest, one in found.items() if digest not in taken} | own
    return Recalled(space, found, taken)


def _own_id(space_id: str, endpoint: Endpoint) -> str:
    """Under what the cache keeps an endpoint's vectors of texts that it has another host's of."""
    return f"{space_id} {endpoint.id}"


class RememberingJournal:
    """A journal whose answers the cache has before: who is killed in between has paid for nothing twice.

    The journal of a call without an output keeps no vectors beyond its process.

    Args:
        taken: See `Recalled`.
    """

    def __init__(self, journal: AttemptRecord, cache: VectorCache, endpoint: Endpoint, taken: frozenset[bytes]) -> None:
        self._journal = journal
        self._cache = cache
        self._endpoint = endpoint
        self._taken = taken
        self.intend = journal.intend
        self.settle = journal.settle
        self.release = journal.release

    async def answer(
        self, event: UsageEvent, hashes: bytes, vectors: NDArray[np.float32], tokens_each: Any = None, extra: Any = None
    ) -> Any:
        """See Journal."""
        if extra is not None:  # not a probe's
            each = tokens_each or (None,) * len(vectors)
            made = {
                digest: CachedVector(event.provider, event.model, each[i], vectors[i], minted_at(event.event_id))
                for i, digest in enumerate(_each(hashes))
            }
            shared = [digest for digest in made if digest not in self._taken]
            own = [digest for digest in made if digest in self._taken]
            ids = (extra["space_id"], _own_id(extra["space_id"], self._endpoint))
            some = [
                (one, kept, [made[digest] for digest in kept]) for one, kept in zip(ids, (shared, own), strict=True)
            ]
            await asyncio.to_thread(self._cache.put_all, some)
        return await self._journal.answer(event, hashes, vectors, tokens_each, extra)


async def unknown_to(
    cache: VectorCache, space: Space, packed: PackedRequest, watch: CanaryWatch
) -> PackedRequest | None:
    """A request without the texts that the cache has; None when it has all of them."""
    hashes = _each(packed.request.hashes)
    found = await asyncio.to_thread(cache.look_up, space.space_id, hashes, space.dimensions, watch.stands)
    missing = [place for place, text_hash in enumerate(hashes) if text_hash not in found]
    if not missing or len(missing) == len(hashes):
        return packed if missing else None
    ordinals = tuple(packed.ordinals[place] for place in missing)
    return replace(packed, request=_chosen(packed.request, missing), ordinals=ordinals)


def _each(hashes: bytes) -> list[bytes]:
    return [hashes[start : start + TEXT_HASH_BYTES] for start in range(0, len(hashes), TEXT_HASH_BYTES)]


def _chosen(request: Request, places: Sequence[int]) -> Request:
    """The texts at these places, as the same operation."""
    each = tuple(request.tokens_each[place] for place in places) if request.tokens_each else None
    texts = [request.texts[place] for place in places]
    size = request.content_bytes * len(texts) // max(1, len(request))
    if not request.token_arrays:
        size = sum(len(str(text).encode("utf-8", "surrogatepass")) for text in texts)
    hashes = _each(request.hashes)
    return replace(
        request,
        texts=texts,  # type: ignore[arg-type]
        hashes=b"".join(hashes[place] for place in places),
        content_bytes=size,
        tokens=sum(each) if each is not None else None,
        tokens_each=each,
    )
