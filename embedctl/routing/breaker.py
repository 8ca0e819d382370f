"""The circuit breaker of one provider and model. Pure: the clock comes in as `now`, chance as `jitter`.

CLOSED ──ill──▶ OPEN ──time──▶ HALF_OPEN ──probe good──▶ CLOSED      DEAD: key, quota, model, wrong parameter:
                  ▲                │ probe ill or never settled      nothing leads out of it in a run; in a server
                  └────────────────┘                                 time leads to HALF_OPEN (`revive_s`)

Only `ProviderError.ill` counts: a 429 is no illness, nor is a request that the provider finds wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from embedctl.dataclass import dataclass
from embedctl.errors import CircuitOpen, ProviderError, Remedy
from embedctl.routing.retry import Jitter


class State(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a breaker opens, and for how long (facts/faults.md 3.7, 2026-11-21).

    Attributes:
        window: Results that are looked back on.
        fewest: Results needed before the share counts.
        share: Ill part of them that opens.
        consecutive: Ill results in a row that open whatever the share is.
        open_s: First stay in OPEN; doubled with every further one, at most `longest_s`, times U(0.5, 1).
        probe_s: A probe that has not settled after this time has failed.
        revive_s: Cause of death → seconds after which one probe may go; None: never in this run.
    """

    window: int = 20
    fewest: int = 10
    share: float = 0.5
    consecutive: int = 5
    open_s: float = 10.0
    longest_s: float = 300.0
    probe_s: float = 180.0
    revive_s: Callable[[ProviderError], float] | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to send one attempt; handed back to `settle` or `abandon`."""

    era: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What `providers list` shows of a breaker.

    Attributes:
        failures: Ill results among the last `results`.
        failed_at, changed_at: When it last failed, and when it came to stand so, by the breaker's clock; None: never.
        probing: Whether a probe is under way.
        stay_s: How long it stays open, when it opens next.
        ready_in_s: Seconds until the next probe may go; 0 when it may go now, None when DEAD.
        reason: What the error that opened it said, None while closed.
    """

    provider: str
    model: str
    state: State
    results: int
    failures: int
    openings: int
    ready_in_s: float | None
    reason: str | None
    failed_at: float | None = None
    changed_at: float | None = None
    probing: bool = False
    stay_s: float = 0.0


class Breaker:
    """One per provider and model, for one run; never persisted: a stale "open" would block a repaired provider."""

    def __init__(self, provider: str, model: str, *, jitter: Jitter, thresholds: Thresholds | None = None) -> None:
        self.provider = provider
        self.model = model
        self._jitter = jitter
        self._is = thresholds or Thresholds()
        self._state = State.CLOSED
        self._ill: deque[bool] = deque(maxlen=self._is.window)
        self._in_a_row = 0
        self._openings = 0
        self._opens_at = 0.0
        self._era = 0  # results of attempts from before the last change of state say nothing about now
        self._numbers = 0
        self._probe: Pass | None = None
        self._probe_since = 0.0
        self._cause: ProviderError | None = None
        self._failed_at: float | None = None
        self._changed_at: float | None = None

    @property
    def thresholds(self) -> Thresholds:
        """When it opens, and for how long."""
        return self._is

    def state(self, now: float) -> State:
        """Where it stands at `now`: time alone leads from OPEN to HALF_OPEN, and back when a probe hangs."""
        if self._probe is not None and now - self._probe_since >= self._is.probe_s:
            self._open(now)
        over = self._state is State.OPEN or (self._state is State.DEAD and self._is.revive_s is not None)
        if over and now >= self._opens_at:
            self._enter(State.HALF_OPEN, now)
        return self._state

    def dead(self, now: float) -> ProviderError | None:
        """The error that made this provider useless, None while it is not."""
        return self._cause if self.state(now) is State.DEAD else None

    def ready_in(self, now: float) -> float | None:
        """Seconds until an attempt may be sent, 0 = now, None = never in this run."""
        state = self.state(now)
        if state is State.DEAD and self._is.revive_s is None:
            return None
        if state in (State.OPEN, State.DEAD):
            return self._opens_at - now
        if self._probe is not None:
            return max(0.0, self._probe_since + self._is.probe_s - now)
        return 0.0

    def admit(self, now: float) -> Pass | None:
        """A pass for one attempt, or None: not now. Half-open gives one pass until it comes back."""
        if self.ready_in(now) != 0.0:
            return None
        self._numbers += 1
        ticket = Pass(self._era, self._numbers)
        if self._state is State.HALF_OPEN:
            self._probe, self._probe_since = ticket, now
        return ticket

    def settle(self, ticket: Pass, error: ProviderError | None, now: float) -> None:
        """Take the result of an attempt; None is a success: an answer that was checked, not a status of 200."""
        self.state(now)
        if error is not None and (error.ill or error.remedy is Remedy.GIVE_UP):
            self._failed_at = now
        if self._state is State.DEAD:
            return
        if error is not None and error.remedy is Remedy.GIVE_UP and not isinstance(error, CircuitOpen):
            self._cause = error
            if self._is.revive_s is not None:
                self._opens_at = now + self._is.revive_s(error)
            self._enter(State.DEAD, now)
            return
        if ticket.era != self._era:
            return
        if error is not None and not error.ill:
            self.abandon(ticket)
        elif self._state is State.HALF_OPEN:
            if error is None:
                self._close(now)
            else:
                self._cause = error
                self._open(now)
        else:
            self._count(error, now)

    def abandon(self, ticket: Pass) -> None:
        """Give a pass back without a verdict: cancelled, throttled, or the request's own fault."""
        if self._probe == ticket:
            self._probe = None

    def reset(self, now: float) -> None:
        """Close at once: somebody knows better. What is DEAD stays dead, unless time would revive it."""
        if self._state is not State.DEAD or self._is.revive_s is not None:
            self._openings = 0
            self._close(now)

    def trip(self, error: ProviderError, now: float) -> None:
        """Open at once: the retry budget is empty."""
        if self.state(now) is State.CLOSED:
            self._cause = error
            self._open(now)

    def refusal(self, now: float) -> ProviderError:
        """The error of an attempt that is not admitted: the cause of death, else `CircuitOpen` with the time left."""
        ready_in = self.ready_in(now)
        if self._state is State.DEAD and self._cause is not None:
            return self._cause
        because = f"; it said: {self._cause.message}" if self._cause else ""
        return CircuitOpen(
            f"{self.provider} failed too often, not asked for {ready_in or 0:.0f} s{because}",
            provider=self.provider,
            retry_after_s=ready_in,
        )

    @property
    def reason(self) -> str | None:
        """What the provider said when it opened last."""
        return self._cause.message if self._cause else None

    def snapshot(self, now: float) -> Snapshot:
        """Its state as a value."""
        ready_in = self.ready_in(now)
        return Snapshot(
            provider=self.provider,
            model=self.model,
            state=self._state,
            results=len(self._ill),
            failures=sum(self._ill),
            openings=self._openings,
            ready_in_s=ready_in,
            reason=self.reason,
            failed_at=self._failed_at,
            changed_at=self._changed_at,
            probing=self._probe is not None,
            stay_s=self._stay_s(),
        )

    def _stay_s(self) -> float:
        return min(self._is.open_s * 2.0 ** min(self._openings, 60), self._is.longest_s)

    def _count(self, error: ProviderError | None, now: float) -> None:
        self._ill.append(error is not None)
        if error is None:
            self._in_a_row = 0
            if len(self._ill) == self._is.window and not any(self._ill):
                self._openings = 0  # only a healthy stretch makes the next stay short again
            return
        self._in_a_row += 1
        enough = len(self._ill) >= self._is.fewest
        if self._in_a_row >= self._is.consecutive or (enough and sum(self._ill) >= self._is.share * len(self._ill)):
            self._cause = error
            self._open(now)

    def _open(self, now: float) -> None:
        self._opens_at = now + self._stay_s() * (0.5 + 0.5 * self._jitter())
        self._openings += 1
        self._enter(State.OPEN, now)

    def _close(self, now: float) -> None:
        self._ill.clear()
        self._in_a_row = 0
        self._cause = None
        self._enter(State.CLOSED, now)

    def _enter(self, state: State, now: float) -> None:
        self._state, self._changed_at = state, now
        self._era += 1
        self._probe = None
