"""One endpoint in one process: its connections, limiter, breaker, and what was learned of its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import TYPE_CHECKING

from embedctl.dataclass import dataclass
from embedctl.embedding.checks import AnswerIdentity
from embedctl.embedding.machine_time import MachineTime
from embedctl.embedding.usage import CountTrust
from embedctl.errors import ProviderError, RequestRefused
from embedctl.routing.breaker import Breaker, Pass, State
from embedctl.routing.limiter import Limiter
from embedctl.routing.rate_limit import RateLimits
from embedctl.routing.retry import RetryBudget, may_be_the_texts_fault

if TYPE_CHECKING:
    from embedctl.backends.http.transport import Transport


class NotAdmittedError(Exception):
    """Nothing was sent: the line is of no use now. Internal to the call point."""

    def __init__(self, error: ProviderError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True, eq=False)
class EndpointState:
    """What all routes to one provider, model and key share.

    Attributes:
        transport: None for a local model.
        machine: Of a place that costs by the hour: the time it was paid for, by whatever model was asked.
        rate_limits: That the limiter was made of.
        trust: Whether its token counts are believed.
        successes: Answers so far.
        asks_base64: Whether vectors are asked for as base64.
        unshaped: Answers of a wrong shape since the last good one.
        base64_works: Whether it takes that; None while nobody knows.
        identity: Who spoke in its first answer.
        asked_although_held: It was tried once although it had asked to be left alone.
        last_error: Of its attempts, the last one that failed.
        asking: Held while a text that is known to be good is sent, to find out who is to blame.
        acquitted: How often that answer told that it is well, and texts that failed are to blame.
        moved: Called when it may have become usable or useless.
    """

    transport: Transport | None
    limiter: Limiter
    rate_limits: RateLimits
    breaker: Breaker
    asks_base64: bool
    moved: Callable[[], None]
    machine: MachineTime | None = None
    budget: RetryBudget = field(default_factory=RetryBudget)
    trust: CountTrust = field(default_factory=CountTrust)
    successes: int = 0
    unshaped: int = 0
    base64_works: bool | None = None
    identity: AnswerIdentity | None = None
    asked_although_held: bool = False
    last_error: ProviderError | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    acquitted: int = 0

    @contextmanager
    def admitted(
        self, clock: Callable[[], float], *, isolating: bool, subject: int | None = None, known_good: bool = False
    ) -> Iterator[None]:
        """A pass of the breaker for one attempt, which ends with the block, however that ends.

        Args:
            subject: Of the input: `Request.subject`.
            isolating: A text of the request is known to be bad: its failures say nothing about the server.
            known_good: No text of it can be at fault.

        Raises:
            NotAdmittedError: There is none now.
        """
        ticket = self.breaker.admit(clock(), subject, known_good=known_good)
        if ticket is None:
            raise NotAdmittedError(self.breaker.refusal(clock(), subject))
        well = self.successes > 0 and self.breaker.state(clock()) is State.CLOSED
        try:
            yield
        except BaseException as error:
            if isinstance(error, ProviderError) and not _is_the_requests(error, isolating=isolating):
                self._settle(ticket, error, clock())
            else:
                self.breaker.abandon(ticket)
            self.moved()
            raise
        self._settle(ticket, None, clock())
        if not (well and self.breaker.state(clock()) is State.CLOSED):
            self.moved()

    def probing(self, now: float) -> bool:
        """Whether one request is under way that will tell whether it serves again."""
        in_doubt = self.asked_although_held and self.successes == 0
        return in_doubt or (self.breaker.state(now) is State.HALF_OPEN and self.breaker.ready_in(now) != 0.0)

    def _settle(self, ticket: Pass, error: ProviderError | None, now: float) -> None:
        was_open = self.breaker.state(now) is State.HALF_OPEN and self.breaker.was_open
        self.breaker.settle(ticket, error, now)
        if was_open and self.breaker.state(now) is State.CLOSED:
            self.limiter.restart()  # it serves again: begin with one at a time


def _is_the_requests(error: ProviderError, *, isolating: bool) -> bool:
    """Whether it says nothing about the server: whether all requests are refused is for the caller to find out."""
    return isinstance(error, RequestRefused) or (isolating and may_be_the_texts_fault(error))
