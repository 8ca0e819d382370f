"""The call point as a run wires it, against real servers: real journal, real sockets, a clock that sleeping moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedctl import settings
from embedctl.budgets import reservations
from embedctl.embedding.call import Embedder
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.errors import EmbedctlError
from embedctl.journal import Journal
from embedctl.ledger import spool
from embedctl.records import Limits, Outcome, Request, Space, UsageEvent, text_hash, uuid7
from embedctl.routing import chain as chains
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import AdaptiveLimiter
from embedctl.routing.retry import Policy
from embedctl.settings import Settings
from tests.support.attempts import SECRET
from tests.support.observing import Kept

KEY = "sk-test-0123456789abcdef"
SMALL = "text-embedding-3-small"


def load(folder: Path, config: str = "", environment: dict[str, str] | None = None, **flags: Any) -> Settings:
    """Settings of a config file with this text, in a home of their own."""
    path = folder / "config.toml"
    path.write_text(config)
    env = {
        "EMBEDCTL_HOME": str(folder / "home"),
        "EMBEDCTL_CANARY": "off",
        "OPENAI_API_KEY": KEY,
        **(environment or {}),
    }
    return settings.load(flags=flags, config=path, environment=env, folder=folder)


GRACE_S = 0.015


class Clock:
    """Real time, and on top of it what was slept through: a sleeper gives the sockets a moment, then it is later."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.slept: list[float] = []
        self._skipped = 0.0
        self._grace_s = grace_s

    def __call__(self) -> float:
        return time.monotonic() + self._skipped

    async def sleep(self, seconds: float) -> None:
        until = self() + seconds
        await asyncio.sleep(min(seconds, self._grace_s))
        self.slept.append(seconds)
        self._skipped += max(0.0, until - self())


@dataclass
class Embedded:
    """What became of some requests.

    Attributes:
        pieces: Of each request; None where it ended with an error.
        vectors: Of each request, one per text, None where a text has none.
    """

    pieces: list[list[Outcome] | None]
    vectors: list[list[np.ndarray | None]]
    events: list[UsageEvent]
    errors: list[EmbedctlError | None]
    told: list[str]
    waits: list[str]
    slept: list[float]
    limits: list[Limits]
    space: Space | None
    router: Router
    route: Route
    placed: list[np.ndarray] = field(default_factory=list)

    @property
    def error(self) -> EmbedctlError | None:
        return next((one for one in self.errors if one is not None), None)

    @property
    def refusals(self) -> list[tuple[int, int, str]]:
        """(request, text, reason) of every text without a vector."""
        return [
            (number, piece.targets[0], piece.refusal.reason)
            for number, pieces in enumerate(self.pieces)
            for piece in pieces or ()
            if piece.refusal is not None
        ]

    def billed(self, word: str) -> int:
        tokens = [
            (e.tokens_total if word == "yes" else e.tokens_estimated or 0) for e in self.events if e.billable == word
        ]
        return sum(tokens)


def request(texts: Sequence[str], **changes: Any) -> Request:
    return Request(
        operation_id=str(uuid7()),
        texts=list(texts),
        hashes=b"".join(map(text_hash, texts)),
        content_bytes=sum(len(text.encode()) for text in texts),
        **changes,
    )


def embed(
    found: Settings | FallbackChain,
    batches: Sequence[Sequence[str] | Request],
    folder: Path,
    *,
    at_once: int = 1,
    space: Space | None = None,
    before: Callable[[Route], None] = lambda route: None,
    jitter: Callable[[], float] = lambda: 0.5,
    grace_s: float = GRACE_S,
    **policy: Any,
) -> Embedded:
    """Embed all batches, `at_once` of them in flight; the folder gets home, journal and spool.

    Args:
        grace_s: What each sleep leaves the server to answer in, before it is later.
    """
    chain = chains.chain(found) if isinstance(found, Settings) else found
    options = found.options if isinstance(found, Settings) else None
    return asyncio.run(_embed(chain, options, batches, folder, at_once, space, before, jitter, grace_s, policy))


async def _embed(
    chain: FallbackChain,
    options: Any,
    batches: Sequence[Any],
    folder: Path,
    at_once: int,
    space: Space | None,
    before: Callable[[Route], None],
    jitter: Callable[[], float],
    grace_s: float,
    policy: dict[str, Any],
) -> Embedded:
    clock, limits, observer = Clock(grace_s), [], Kept()
    max_wait_s = policy.pop("max_wait_s", 600.0)

    def limiter(endpoint: Endpoint, waiting: Callable[[float], None]) -> AdaptiveLimiter:
        return AdaptiveLimiter(
            endpoint.rate_limits, clock=clock, sleep=clock.sleep, longest_gate_s=max_wait_s, waiting=waiting
        )

    router = Router(
        hints_file=folder / "home" / "hints.json",
        limiter=limiter,
        max_wait_s=max_wait_s,
        jitter=jitter,
        clock=clock,
        sleep=clock.sleep,
        observer=observer,
    )
    embedder = Embedder(router, clock=clock, sleep=clock.sleep, jitter=jitter, observer=observer)
    route = router.route(
        chain,
        mode=options.fallback if options else "same-space",
        policy=Policy(max_wait_s=max_wait_s, **policy),
        space=space,
        limits_changed=limits.append,
    )
    before(route)
    (folder / "state").mkdir(exist_ok=True)
    journal = Journal.open(
        folder / "state" / f"journal-{uuid7()}",
        secret=SECRET,
        spool=lambda spool_id, gone: spool.publish(folder / "home" / "spool", spool_id, gone),
        sync_intents=False,
    )
    caller = Caller(run_id=uuid7())
    budget = reservations.Reservations(lambda endpoint: None)
    gate = asyncio.Semaphore(at_once)

    async def one(batch: Any) -> list[Outcome]:
        async with gate:
            sent = batch if isinstance(batch, Request) else request(batch)
            return await embedder.embed(sent, route=route, caller=caller, journal=journal, budget=budget)

    done = await asyncio.gather(*(one(batch) for batch in batches), return_exceptions=True)
    pieces = [None if isinstance(found, BaseException) else found for found in done]
    vectors = [_vectors(found, journal) for found in pieces]
    await journal.close()
    route.close()
    await embedder.aclose()
    for found in done:
        if isinstance(found, BaseException) and not isinstance(found, EmbedctlError):
            raise found
    errors = [found if isinstance(found, EmbedctlError) else None for found in done]
    return Embedded(
        pieces,
        vectors,
        observer.attempts,
        errors,
        observer.told,
        observer.warned,
        clock.slept,
        limits,
        route.space,
        router,
        route,
    )


def _vectors(pieces: list[Outcome] | None, journal: Journal) -> list[np.ndarray | None]:
    """As they stand in the journal, which must be what the answer says."""
    found: list[np.ndarray | None] = []
    for piece in pieces or ():
        if piece.answer is None:
            found += [None] * len(piece.targets)
            continue
        kept = journal.read(piece.ref)
        np.testing.assert_array_equal(kept, piece.answer.vectors)
        found += [row.copy() for row in kept]
    return found
