"""Calls that have no output: a search, a test, a sample. Accounted like every other call.

Their journal is a folder of its own in `$EMBEDCTL_HOME/journal/`, registered as a run while it is under way, so that
what a process spent that was killed in the middle is found all the same.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from embedctl import storage
from embedctl.budgets import limits as spend_limits
from embedctl.budgets import reservations
from embedctl.embedding.call import CallPoint, Piece
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.journal import Journal
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.ledger import prices, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.planning import packer as packers
from embedctl.records import Answer, Limits, Purpose, Refusal, Space, text_hash, utc_now, uuid7
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint, check_usable
from embedctl.routing.retry import Policy
from embedctl.runs.receipt import Spending
from embedctl.runs.registry import RunEntry, RunRegistry
from embedctl.settings import Settings
from embedctl.storage import locks


@dataclass(slots=True)
class Single:
    """What some texts without an output came to.

    Attributes:
        answers: In the order in which requests were answered.
        refusals: Place of a text that has no vector → why.
        run_id: What the ledger calls it.
    """

    run_id: UUID
    spending: Spending
    answers: list[Answer] = field(default_factory=list)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    vectors_by_place: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def take(self, places: Sequence[int], piece: Piece) -> None:
        """Keep what became of the texts at these places."""
        if piece.answer is not None:
            self.answers.append(piece.answer)
            self.vectors_by_place.update(zip(places, piece.answer.vectors, strict=True))
        elif piece.refusal is not None:
            self.refusals.update(dict.fromkeys(places, piece.refusal))

    def vector(self, place: int) -> NDArray[np.float32] | None:
        """float32, shape (D,), of the text at this place; None when it was refused."""
        return self.vectors_by_place.get(place)


def embed(
    settings: Settings,
    chain: FallbackChain,
    texts: Sequence[str],
    *,
    purpose: Purpose,
    command: str,
    space: Space | None = None,
    told: Callable[[str], None] = lambda line: None,
    warned: Callable[[str], None] = lambda line: None,
) -> Single:
    """Embed a few texts, prefix included, and hand what they cost to the spool.

    Blocks until all are answered or refused. `ingest` of the ledger is the caller's.

    Args:
        chain: Of whom to ask; its first offer's limits apply.
        space: What the vectors must be comparable to; None: whatever the first offer gives.
        told: Told in words why it waits.
        warned: Told what is not as it should be: a budget that is almost used up.

    Raises:
        BudgetReached: The workspace's budget is used up.
        EmbedctlError: No provider of the chain can serve, or the disk refused; what was spent is in the spool.
    """
    check_usable(chain.first)
    price = unit_price(settings)
    made = Single(uuid7(), Spending(price))
    with _registered(settings, chain, made.run_id, command) as journal:
        till = spend_limits.till(
            LedgerPaths(settings.paths.ledger, settings.paths.spool, settings.paths.price_file),
            settings,
            chain.endpoints,
            lambda one: price(one.provider, one.wire_model, one.price_as),
            warned,
            run_id=str(made.run_id),
            state=journal.parent,
        )
        try:
            asyncio.run(_calls(settings, chain, texts, purpose, space, told, till, made, journal))
        finally:
            till.close()
    return made


async def _calls(
    settings: Settings,
    chain: FallbackChain,
    texts: Sequence[str],
    purpose: Purpose,
    space: Space | None,
    told: Callable[[str], None],
    till: reservations.Reservations,
    made: Single,
    folder: Path,
) -> None:
    """All requests, one after the other."""
    options, endpoint = settings.options, chain.first
    router = Router(
        chain,
        hints_file=settings.paths.home / "hints.json",
        mode="off" if options.fallback == "off" else "same-space",
        max_wait_s=options.max_wait,
        jitter=random.random,
        connections=1,
        told=told,
    )
    journal = Journal.open(
        folder,
        spool=lambda spool_id, events: spool.publish(settings.paths.spool, spool_id, events),
        sync_intents=any(one.price_as != "free" for one in chain.endpoints),
        dimensions=endpoint.dimensions or 0,
    )
    call = CallPoint(
        router,
        journal,
        till,
        Caller(run_id=made.run_id, workspace_id=options.workspace, tags=options.tag),
        policy=Policy(retries=options.retries, max_wait_s=options.max_wait),
        space=space,
        watch=made.spending.count,
        told=told,
    )
    try:
        for packed in _requests(texts, router.limits(), purpose, options.workspace, options.batch_size, endpoint):
            for piece in await call.embed(packed.request):
                made.take(packed.ordinals[piece.start : piece.stop], piece)
    finally:
        await journal.close(published=True)
        await router.aclose()


def _requests(
    texts: Sequence[str], limits: Limits, purpose: Purpose, workspace: str, batch_size: int | None, endpoint: Endpoint
) -> Iterator[packers.PackedRequest]:
    fitting = packers.packed_limits(limits, batch_size=batch_size, dimensions=endpoint.dimensions, concurrency=1)
    packer = packers.Packer(fitting, purpose=purpose)
    for place, text in enumerate(texts):
        size = len(text.encode("utf-8", "surrogatepass"))
        full = packer.add(text, text_hash(text), place, content_bytes=size, workspace=workspace)
        if full:
            yield full
    yield from packer.rest()


def unit_price(settings: Settings) -> Callable[[str, str, str | None], Decimal | None]:
    """(provider, model on the wire, whose price) → USD per million tokens now; None when nobody knows."""
    book: list[Any] = []

    def price(provider: str, model: str, price_as: str | None) -> Decimal | None:
        if price_as == "free":
            return Decimal(0)
        if not book:
            book.append(prices.load(prices.price_texts(settings.paths.price_file)))
        found = book[0].price_at(price_as, model, at=utc_now(), place=provider)
        return found.usd_per_million if found else None

    return price


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
            if not any((folder / JOURNAL).glob("*")):  # closed: everything is in the spool
                runs.forget(run)
                shutil.rmtree(folder, ignore_errors=True)
