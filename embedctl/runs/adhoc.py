"""Calls that have no output: a search, a test, a sample. Accounted like every other call.

Their journal is a folder of its own in `$EMBEDCTL_HOME/journal/`, registered as a run while it is under way, so that
what a process spent that was killed in the middle is found all the same.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import field
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.embedding.cached import Recalled, RememberingJournal, recalled
from embedctl.embedding.call import Embedder
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.usage_events import Caller
from embedctl.errors import EmbedctlError
from embedctl.journal import Journal
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.planning.packer import PackedRequest, Packer
from embedctl.records import (
    UNOBSERVED,
    Answer,
    Observer,
    Observers,
    Outcome,
    Purpose,
    Refusal,
    Space,
    text_hash,
    utc_now,
    uuid7,
)
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import check_usable
from embedctl.runs import foundations, wiring
from embedctl.runs.receipt import Spending
from embedctl.runs.registry import RunEntry, RunRegistry, home_trust
from embedctl.settings import Settings
from embedctl.storage import locks
from embedctl.storage.vector_cache import VectorCache


@dataclass(slots=True)
class AdhocAnswers:
    """What some texts without an output came to.

    Attributes:
        answers: In the order in which requests were answered.
        refusals: Place of a text that has no vector → why.
        recalled: Places of texts whose vectors came from the cache.
        run_id: What the ledger calls it.
    """

    run_id: UUID
    spending: Spending
    answers: list[Answer] = field(default_factory=list)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    vectors_by_place: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    recalled: set[int] = field(default_factory=set)

    def recall(self, texts: Sequence[str], had: Recalled, space: Space | None) -> list[tuple[int, str]]:
        """Keep what the cache had, where it is of this space; place and text of all others."""
        wanted = []
        for place, text in enumerate(texts):
            one = had.vectors.get(text_hash(text)) if had.vectors and had.space == space else None
            if one is None:
                wanted.append((place, text))
            else:
                self.vectors_by_place[place] = one.vector
                self.recalled.add(place)
        return wanted

    def add(self, places: Sequence[int], outcome: Outcome) -> None:
        """Keep what became of the texts at these places."""
        if outcome.answer is not None:
            self.answers.append(outcome.answer)
            self.vectors_by_place.update(zip(places, outcome.answer.vectors, strict=True))
        elif outcome.refusal is not None:
            self.refusals.update(dict.fromkeys(places, outcome.refusal))

    def vector(self, place: int) -> NDArray[np.float32] | None:
        """float32, shape (D,), of the text at this place; None when it was refused."""
        return self.vectors_by_place.get(place)


async def embed(
    settings: Settings,
    chain: FallbackChain,
    texts: Sequence[str],
    *,
    purpose: Purpose,
    command: str,
    space: Space | None = None,
    cache: VectorCache | None = None,
    observer: Observer = UNOBSERVED,
) -> AdhocAnswers:
    """Embed a few texts, prefix included, and hand what they cost to the spool; one request after the other.

    `ingest` of the ledger is the caller's.

    Args:
        chain: Of whom to ask; its first endpoint's limits apply.
        space: What the vectors must be comparable to; None: whatever the first endpoint gives.
        cache: What it has is not asked for, and it keeps what is answered.

    Raises:
        BudgetReached: The workspace's budget is used up.
        EmbedctlError: No provider of the chain can serve, or the disk refused; what was spent is in the spool.
    """
    check_usable(chain.first)
    prices = RunPrices(settings.paths.price_file, utc_now())
    answers = AdhocAnswers(uuid7(), Spending(prices.price))
    options, first = settings.options, chain.first
    had = Recalled()
    if cache is not None:
        watch = CanaryWatch(settings.paths.canaries, observer, chain.endpoints, begun_at=math.inf)
        had = await asyncio.to_thread(recalled, cache, first, [text_hash(text) for text in texts], watch.stands)
        space = space or had.space
    wanted = answers.recall(texts, had, space)
    if not wanted:
        chain.close()
        return answers
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_registered(settings, chain, answers.run_id, command))
        trust = home_trust(settings.paths, run_id=answers.run_id)
        money = wiring.reservations(
            settings, chain, prices, observer, trust, run_id=str(answers.run_id), state=folder.parent
        )
        stack.callback(money.close)
        told = Observers(answers.spending, observer)
        embedder = Embedder(wiring.router(settings, told, connections=1), observer=told)
        stack.push_async_callback(embedder.aclose)
        route = embedder.router.route(
            chain,
            mode="off" if options.fallback == "off" else "same-space",
            policy=wiring.policy(options),
            space=space,
        )
        stack.callback(route.close)
        journal = Journal.open(
            folder,
            secret=trust.secret,
            spool=foundations.spool(settings),
            sync_intents=any(one.price_as != "free" for one in chain.endpoints),
            dimensions=first.dimensions or 0,
        )
        stack.push_async_callback(partial(journal.close, published=True))
        record = journal if cache is None else RememberingJournal(journal, cache, first, had.taken)
        caller = Caller(run_id=answers.run_id, workspace_id=options.workspace, tags=options.tag)
        stack.push_async_callback(foundations.charge_idle, embedder.router, caller, journal, money, told)
        limits = foundations.packed_limits(embedder.router.limits(route), first, options, concurrency=1)
        for packed in _requests(Packer(limits, purpose=purpose), wanted, options.workspace):
            outcomes = await embedder.embed(packed.request, route=route, caller=caller, journal=record, budget=money)
            for outcome in outcomes:
                answers.add([packed.ordinals[at] for at in outcome.targets], outcome)
    return answers


def _requests(packer: Packer, texts: Sequence[tuple[int, str]], workspace: str) -> Iterator[PackedRequest]:
    for place, text in texts:
        size = len(text.encode("utf-8", "surrogatepass"))
        full = packer.add(text, text_hash(text), place, content_bytes=size, workspace=workspace)
        if full:
            yield full
    yield from packer.rest()


@contextmanager
def _registered(settings: Settings, chain: FallbackChain, run_id: UUID, command: str) -> Iterator[Path]:
    """The folder of a journal that any ingest finds when this process dies in the middle.

    A run whose journal was closed leaves no trace but its events; one that was not stays registered.
    """
    folder = settings.paths.journal / str(run_id)
    runs = RunRegistry(settings.paths.runs)
    with locks.hold_folder(folder, LOCK, make=storage.DISK.make_folder, command=command):
        run = RunEntry(
            run_id=run_id,
            job_id="",
            folder=folder,
            output="",
            ledger=str(settings.paths.ledger.absolute()),
            state="running",
            workspace_id=settings.options.workspace,
            model=chain.first.id,
            command=command,
            keeps_vectors=False,
        )
        runs.register(run)
        try:
            yield folder / JOURNAL
        finally:
            if not storage.paths_in(folder / JOURNAL):  # closed: everything is in the spool
                runs.forget(run)
                with suppress(EmbedctlError):
                    storage.remove_tree(storage.DISK, folder)
