"""The lines of a chain in one run: who is asked next, who may be trusted, and what is remembered of their servers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedctl import answers
from embedctl.errors import ConfigurationInvalid, ProviderError, Remedy, SpaceMismatch, Throttled
from embedctl.records import Limits, Space
from embedctl.resilience import fallback, hints
from embedctl.resilience.breaker import Breaker, Snapshot, State
from embedctl.resilience.fallback import Entry, Nobody, Standing
from embedctl.resilience.hints import Account, Hints, Served
from embedctl.resilience.lane import Lane
from embedctl.resilience.retry import Budget, Step
from embedctl.serving import Chain, Offer
from embedctl.transport import Transport

TRUSTED_COSINE = 0.999
PROBES = 3
_ABOUT_ITEMS = re.compile(r"batch size|at most \d+|items|inputs in request|number of texts|requests can be in", re.I)

Probe = Callable[["Line", list[str]], Awaitable[NDArray[np.float32]]]


@dataclass(slots=True, eq=False)
class Line:
    """One offer in one run: its connections, limiter, breaker, and what was learnt of its server.

    Attributes:
        successes: Answers so far.
        asks_base64: Whether vectors are asked for as base64.
        folder: Of a local model that is not the bundled one.
        spent: Why it is of no use any more in this run.
        proven: Its vectors may stand beside those of the output.
        last_error: Of its attempts, the last one that failed.
    """

    offer: Offer
    transport: Transport
    lane: Lane
    breaker: Breaker
    budget: Budget = field(default_factory=Budget)
    successes: int = 0
    asks_base64: bool = False
    folder: Path | None = None
    spent: ProviderError | None = None
    proven: bool = False
    asked_although_held: bool = False
    last_error: ProviderError | None = None


class Lanes:
    """All lines of a chain.

    Args:
        hints_file: What servers said in words, remembered across runs.
        wall: Epoch seconds, for hints; `clock` is monotonic and for waiting.
        changed: Told when less fits into a request than was thought.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        hints_file: Path,
        mode: fallback.Mode,
        max_wait_s: float,
        jitter: Callable[[], float],
        connections: int = 64,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        changed: Callable[[Limits], None] = lambda limits: None,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._chain = chain
        self._file = hints_file
        self._mode = mode
        self._max_wait_s = max_wait_s
        self._clock, self._wall, self._sleep = clock, wall, sleep
        self._changed, self._told = changed, told
        self._hints, complaint = hints.load(hints_file)
        if complaint:
            told(complaint)
        self._transports: dict[tuple[bool, Path | None], Transport] = {}
        self.lines = [self._line(offer, jitter, connections) for offer in chain.offers]
        self._home: Line | None = None
        self._samples: tuple[list[str], NDArray[np.float32]] | None = None
        self._proving = asyncio.Lock()
        self._said_until = 0.0

    def _line(self, offer: Offer, jitter: Callable[[], float], connections: int) -> Line:
        key = (offer.insecure, offer.ca_file)
        if key not in self._transports:
            self._transports[key] = Transport(connections=connections, insecure=offer.insecure, ca_file=offer.ca_file)
        return Line(
            offer=offer,
            transport=self._transports[key],
            lane=Lane(offer.ceiling, clock=self._clock, sleep=self._sleep, longest_gate_s=self._max_wait_s),
            breaker=Breaker(offer.provider, offer.wire_model, jitter=jitter),
            asks_base64=offer.wire.base64 and self._served(offer) not in self._hints.floats_only,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()

    @property
    def first(self) -> Line:
        """The line of the model that was asked for."""
        return self.lines[0]

    def limits(self) -> Limits:
        """What one request may hold: the first offer's limits and what was learnt of its server."""
        offer = self.first.offer
        learnt = self._hints.limits_of(self._served(offer))

        def least(one: int | None, other: int | None) -> int | None:
            return min(filter(None, (one, other)), default=None)

        return Limits(
            items=least(offer.limits.items, learnt.items),
            tokens=least(offer.limits.tokens, learnt.tokens),
            bytes=least(offer.limits.bytes, learnt.bytes),
        )

    async def next(self, space: Space | None, probe: Probe) -> Line:
        """The line to ask now; waits for one, `max_wait` at most.

        Raises:
            ProviderError: All of them are dead; the gravest cause.
            NoProviderNow: One is back later than `max_wait`.
        """
        waited = 0.0
        while True:
            chosen = self._choose(space)
            if isinstance(chosen, Line):
                if chosen.proven or await self._prove(chosen, space, probe):
                    return chosen
                continue
            if chosen.ready_in_s is None or waited + chosen.ready_in_s > self._max_wait_s:
                raise chosen.error
            self._waiting(chosen.error.message, chosen.ready_in_s)
            pause = max(0.05, chosen.ready_in_s)
            waited += pause
            await self._sleep(pause)

    def _waiting(self, why: str, seconds: float) -> None:
        """Say once per wait why nothing is sent, however many requests wait for it."""
        until = self._clock() + seconds
        if until > self._said_until + 1.0:
            self._said_until = until
            self._told(why)

    def _choose(self, space: Space | None) -> Line | Nobody:
        by_entry: dict[Entry, Line] = {}
        for line in self.lines:
            by_entry.setdefault(line.offer.in_chain, line)
        fitting, strangers = fallback.fitting(
            list(by_entry), self._mode, output_space_id=space.space_id if space else None
        )
        standings = {entry: self._standing(by_entry[entry]) for entry in fitting}
        chosen = fallback.choose(fitting, standings, left_out=[*self._chain.left_out, *strangers])
        return chosen if isinstance(chosen, Nobody) else by_entry[chosen]

    def _standing(self, line: Line) -> Standing:
        now = self._clock()
        dead = line.spent or line.breaker.dead
        if dead is not None:
            return Standing(dead=dead)
        account = self._account(line.offer)
        held = self._hints.held_s(account, self._wall())
        ready = line.breaker.ready_in(now) or 0.0
        if held > ready:
            return Standing(
                ready_in_s=held, probe=not line.asked_although_held, reason=self._hints.holds[account].reason
            )
        return Standing(ready_in_s=ready, reason=line.breaker.snapshot(now).reason or "")

    async def _prove(self, line: Line, space: Space | None, probe: Probe) -> bool:
        """Whether a line's vectors may stand beside those that the output has.

        The line that gives the output its first vectors needs no proof; any other one embeds the texts of vectors
        that are there already, and must agree.
        """
        async with self._proving:
            line.asked_although_held = True
            if line.proven or line.spent:
                return line.proven
            if space is None and self._home in (None, line):
                self._home = self._home or line
                return True  # proven by its first answer, see `answered`
            home = self._home or self.first
            if line is home:
                line.proven = True
                return True
            trusted = hints.pair(self._host(home.offer), self._host(line.offer), space.space_id if space else "")
            if trusted in self._hints.trusted:
                line.proven = True
                return True
            try:
                texts, vectors = self._samples or await self._asked_home(home, probe)
                cosine = answers.alike(vectors, await probe(line, texts))
            except ProviderError as error:
                line.spent = error
                return False
            if cosine <= TRUSTED_COSINE:
                line.spent = SpaceMismatch(
                    f"{line.offer.id} gives other vectors than {home.offer.id} for the same texts (cosine {cosine:.4f})",
                    hint="its weights or prefixes differ; take it out of the [fallback] chain",
                    provider=line.offer.provider,
                )
                return False
            line.proven = True
            self._remember(lambda known: known.with_trust(trusted, self._wall()))
            return True

    async def _asked_home(self, home: Line, probe: Probe) -> tuple[list[str], NDArray[np.float32]]:
        texts = list(_PROBE_TEXTS)
        return texts, await probe(home, texts)

    def failed(self, line: Line, error: ProviderError) -> None:
        """An attempt failed."""
        line.last_error = error

    def answered(self, line: Line, texts: Sequence[object], vectors: NDArray[np.float32]) -> None:
        """A line gave a good answer."""
        line.successes += 1
        if line.breaker.state(self._clock()) is State.HALF_OPEN:
            line.lane.limiter.restart()  # the probe was good: begin carefully
        if not line.proven and self._home is line:
            line.proven = True
        if self._samples is None and self._home is line:
            long_ones = [i for i, text in enumerate(texts) if isinstance(text, str) and len(text) >= 40][:PROBES]
            if len(long_ones) == PROBES:
                self._samples = ([str(texts[i]) for i in long_ones], vectors[long_ones].copy())
        if line.successes > 1:
            return
        if line.offer.wire.base64 and not line.asks_base64:
            self._remember(lambda known: known.with_floats_only(self._served(line.offer), self._wall()))
        if self._account(line.offer) in self._hints.holds:
            self._remember(lambda known: known.without_hold(self._account(line.offer)))

    def leave(self, line: Line, step: Step) -> None:
        """A line is of no use now: dead for the run, or (an open breaker) for a while."""
        error = step.error
        if not isinstance(error, ProviderError):
            return
        if error.word == "circuit_open":
            line.breaker.trip(error, self._clock())
            if line.successes == 0 and line.last_error is not None:
                line.spent = line.last_error  # it has not answered once in this run: waiting is for the next one
            return
        line.spent = error
        said = step.refused_for_s if isinstance(error, Throttled) else None
        if error.word == "quota_exhausted":
            said = error.retry_after_s or 900.0
        if said:
            reason, seconds = error.message, said
            self._remember(lambda known: known.with_hold(self._account(line.offer), seconds, reason, self._wall()))

    def too_large(self, line: Line, items: int, content_bytes: int, error: ProviderError) -> None:
        """A request was refused for its size: half of it is what is tried from now on, by this run and the next."""
        if error.remedy is not Remedy.HALVE:
            return
        about_items = bool(_ABOUT_ITEMS.search(error.message))
        found = Limits(items=max(1, items // 2)) if about_items else Limits(bytes=max(1, content_bytes // 2))
        self._remember(lambda known: known.with_limits(self._served(line.offer), found, self._wall()))
        self._changed(self.limits())

    def fallback_from(self, line: Line) -> str | None:
        """The id of the offer asked for, when this line is another."""
        return None if line is self.first else self.first.offer.id

    def snapshots(self) -> list[Snapshot]:
        """How every line's breaker stands."""
        return [line.breaker.snapshot(self._clock()) for line in self.lines]

    def _remember(self, change: Callable[[Hints], Hints]) -> None:
        """Change what is remembered; a home that cannot be written to costs the memory, not the run."""
        self._hints = change(self._hints)
        with suppress(OSError):
            hints.update(self._file, change, self._wall())

    def _host(self, offer: Offer) -> str:
        return f"{offer.place.base_url or offer.provider}#{offer.wire_model}"

    def _served(self, offer: Offer) -> Served:
        return Served(f"{offer.provider}@{offer.place.base_url}", offer.wire_model)

    def _account(self, offer: Offer) -> Account:
        return Account(f"{offer.provider}@{offer.place.base_url}", offer.account)


_PROBE_TEXTS = (
    "The harbour office opens at seven; ships that arrive earlier wait outside the breakwater.",
    "Refunds are paid to the card that was charged, as a rule within five working days.",
    "A glacier moves slowly under its own weight and grinds the valley floor beneath it.",
)


def check_usable(offer: Offer) -> None:
    """Build a request that is not sent, so that a missing key or address is told before any work.

    Raises:
        ConfigurationInvalid: The place lacks what the protocol needs.
    """
    if offer.local:
        return
    if any(word in offer.place.base_url for word in ("RESOURCE", "REGION")):
        raise ConfigurationInvalid(
            f"provider {offer.provider!r} needs an address of your own",
            hint=f'set base_url under [providers.{offer.provider}], instead of "{offer.place.base_url}"',
        )
    offer.protocol.request(offer.place, offer.wire_model, ["a"], offer.wire)
