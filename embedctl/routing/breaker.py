"""The circuit breaker of one provider and model. Pure: the clock comes in as `now`, chance as `jitter`.

CLOSED ──ill──▶ OPEN ──time──▶ HALF_OPEN ──probe good──▶ CLOSED      DEAD: key, quota, model, wrong parameter:
                  ▲                │ probe ill or never settled      nothing leads out of it in a run; in a server
                  └────────────────┘                                 time leads to HALF_OPEN (`revive_s`)

Only `ProviderError.ill` counts: a 429 is no illness, nor is a request that the provider finds wrong.

A failure may be one input's fault: a server may break its connection, or fail, over that text alone. However often an
input fails so, it is one piece of evidence against the provider; it is itself put off for a while, and nobody else is.
Nor do many such inputs open by themselves: whoever sent the last of them asks with an input that is known to be good,
and that answer decides. Else an input in each request would keep a provider that is well from being asked.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum

from embedctl.dataclass import dataclass
from embedctl.errors import CircuitOpen, ProviderError, Remedy
from embedctl.routing.retry import Jitter, may_be_the_texts_fault

_INPUT = "input"
_MOST_SUSPECTS = 256
"""Inputs whose failures are remembered; of more, those that failed longest ago are forgotten."""


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
        consecutive: Ill results in a row that open whatever the share is; of one input alone they put off this one.
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
    """Leave to send one attempt; handed back to `settle` or `abandon`.

    Attributes:
        subject: What is sent: equal for equal inputs. None: nobody says; it counts as another one each time.
        known_good: Whether no failure of it can be the input's fault.
    """

    era: int
    number: int
    subject: int | None = None
    known_good: bool = False


@dataclass(slots=True)
class _Suspect:
    """An input that failed where it may be to blame.

    Attributes:
        failures: In a row.
        stays: How often it was put off.
        until: Nor is it sent before.
    """

    cause: ProviderError
    failures: int = 0
    stays: int = 0
    until: float = 0.0


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
        put_off: Inputs that are not taken now because they failed again and again; others are.
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
    put_off: int = 0


class Breaker:
    """One per provider and model, for one run; never persisted: a stale "open" would block a repaired provider."""

    def __init__(self, provider: str, model: str, *, jitter: Jitter, thresholds: Thresholds | None = None) -> None:
        self.provider = provider
        self.model = model
        self._jitter = jitter
        self._is = thresholds or Thresholds()
        self._state = State.CLOSED
        # None is a success, equal ones are one failure
        self._results: deque[tuple[str, int | None] | None] = deque(maxlen=self._is.window)
        self._in_a_row: set[object] = set()
        self._suspects: OrderedDict[int, _Suspect] = OrderedDict()
        self._openings = 0
        self._opens_at = 0.0
        self._era = 0  # results of attempts from before the last change of state say nothing about now
        self._numbers = 0
        self._probe: Pass | None = None
        self._probe_since = 0.0
        self._is_asking = False
        self._was_open = False
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

    def is_asking(self, now: float) -> bool:
        """Whether an input that is known to be good has to be sent, to tell a sick provider from bad inputs.

        Nothing else is sent before; see `ask_nobody`.
        """
        return self.state(now) is State.HALF_OPEN and self._is_asking

    @property
    def was_open(self) -> bool:
        """Whether it has been open since it was closed last."""
        return self._was_open

    def dead(self, now: float) -> ProviderError | None:
        """The error that made this provider useless, None while it is not."""
        return self._cause if self.state(now) is State.DEAD else None

    def ready_in(self, now: float, subject: int | None = None) -> float | None:
        """Seconds until an attempt may be sent, 0 = now, None = never in this run.

        Args:
            subject: Of the input that is to be sent.
        """
        state = self.state(now)
        if state is State.DEAD and self._is.revive_s is None:
            return None
        ready_in = 0.0
        if state in (State.OPEN, State.DEAD):
            ready_in = self._opens_at - now
        elif self._probe is not None:
            ready_in = max(0.0, self._probe_since + self._is.probe_s - now)
        return max(ready_in, self._put_off_s(subject, now))

    def admit(self, now: float, subject: int | None = None, *, known_good: bool = False) -> Pass | None:
        """A pass for one attempt, or None: not now. Half-open gives one pass until it comes back.

        Args:
            known_good: See `Pass`.
        """
        if not (known_good and self.is_asking(now)) and self.ready_in(now, subject) != 0.0:
            return None
        self._numbers += 1
        ticket = Pass(self._era, self._numbers, subject, known_good)
        if self._state is State.HALF_OPEN:
            self._probe, self._probe_since, self._is_asking = ticket, now, False
        return ticket

    def ask_nobody(self, now: float) -> None:
        """Who was to ask cannot: any input may go and decide."""
        if self.is_asking(now):
            self._probe, self._is_asking = None, False

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
            return
        self._suspect(ticket, error, now)
        if self._state is State.HALF_OPEN:
            if error is None:
                self._close(now)
            else:
                self._fail(error, now, may_be_inputs=self._is_its_own(ticket, error))
        else:
            self._count(ticket, error, now)

    def abandon(self, ticket: Pass) -> None:
        """Give a pass back without a verdict: cancelled, throttled, or the request's own fault."""
        if self._probe == ticket:
            self._probe = None

    def reset(self, now: float) -> None:
        """Close at once: somebody knows better. What is DEAD stays dead, unless time would revive it."""
        if self._state is not State.DEAD or self._is.revive_s is not None:
            self._openings = 0
            self._suspects.clear()
            self._close(now)

    def trip(self, error: ProviderError, now: float, subject: int | None = None) -> None:
        """Open at once: the retry budget is empty. While most others get through it is this input that is put off."""
        if self.state(now) is not State.CLOSED:
            return
        failed, passed = self._evidence()
        if subject is not None and passed > failed:
            self.put_off(subject, error, now)
        else:
            self._cause = error
            self._open(now)

    def put_off(self, subject: int, error: ProviderError, now: float) -> None:
        """Do not take this input for a while."""
        if self._put_off_s(subject, now) > 0:
            return
        suspect = self._suspects.setdefault(subject, _Suspect(error))
        suspect.cause = error
        suspect.until = now + self._stay_s(suspect.stays) * (0.5 + 0.5 * self._jitter())
        suspect.stays += 1
        self._suspects.move_to_end(subject)
        if len(self._suspects) > _MOST_SUSPECTS:
            self._suspects.popitem(last=False)

    def refusal(self, now: float, subject: int | None = None) -> ProviderError:
        """The error of an attempt that is not admitted: the cause of death, else `CircuitOpen` with the time left."""
        ready_in = self.ready_in(now, subject)
        if self._state is State.DEAD and self._cause is not None:
            return self._cause
        reason = self.reason_for(now, subject)
        because = f"; it said: {reason}" if reason else ""
        what = "failed too often with this input" if self._is_put_off(subject, now) else "failed too often"
        return CircuitOpen(
            f"{self.provider} {what}, not asked for {ready_in or 0:.0f} s{because}",
            provider=self.provider,
            retry_after_s=ready_in,
        )

    def reason_for(self, now: float, subject: int | None) -> str | None:
        """What the provider said when it opened last, or when this input was put off."""
        if subject is not None and self._is_put_off(subject, now):
            return self._suspects[subject].cause.message
        return self.reason

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
            results=len(self._results),
            failures=len(self._results) - self._results.count(None),
            openings=self._openings,
            ready_in_s=ready_in,
            reason=self.reason,
            failed_at=self._failed_at,
            changed_at=self._changed_at,
            probing=self._probe is not None,
            stay_s=self._stay_s(self._openings),
            put_off=sum(one.until > now for one in self._suspects.values()),
        )

    def _stay_s(self, before: int) -> float:
        return min(self._is.open_s * 2.0 ** min(before, 60), self._is.longest_s)

    def _put_off_s(self, subject: int | None, now: float) -> float:
        suspect = None if subject is None else self._suspects.get(subject)
        return 0.0 if suspect is None else max(0.0, suspect.until - now)

    def _is_put_off(self, subject: int | None, now: float) -> bool:
        """Whether it is the input alone that is not taken now."""
        return self._state is State.CLOSED and self._put_off_s(subject, now) > 0

    def _suspect(self, ticket: Pass, error: ProviderError | None, now: float) -> None:
        """Remember an input that fails again and again; forget one that got through."""
        if ticket.subject is None:
            return
        if error is None:
            self._suspects.pop(ticket.subject, None)
        elif may_be_the_texts_fault(error):
            suspect = self._suspects.setdefault(ticket.subject, _Suspect(error))
            suspect.failures += 1
            self._suspects.move_to_end(ticket.subject)
            if suspect.failures >= self._is.consecutive:
                self.put_off(ticket.subject, error, now)
            elif len(self._suspects) > _MOST_SUSPECTS:
                self._suspects.popitem(last=False)

    def _evidence(self) -> tuple[int, int]:
        """Failures, each input's once, and successes among the last results."""
        return len(set(self._results) - {None}), self._results.count(None)

    def _count(self, ticket: Pass, error: ProviderError | None, now: float) -> None:
        if error is None:
            self._results.append(None)
            self._in_a_row.clear()
            if self._results.count(None) == self._is.window:
                self._openings = 0  # only a healthy stretch makes the next stay short again
            return
        evidence = (_INPUT, ticket.subject) if self._is_its_own(ticket, error) else ("attempt", ticket.number)
        self._results.append(evidence)
        self._in_a_row.add(evidence)
        failed, passed = self._evidence()
        enough = failed + passed >= self._is.fewest
        if len(self._in_a_row) >= self._is.consecutive or (enough and failed >= self._is.share * (failed + passed)):
            self._fail(error, now, may_be_inputs=all(one is None or one[0] == _INPUT for one in self._results))

    def _fail(self, error: ProviderError, now: float, *, may_be_inputs: bool) -> None:
        """Open; where inputs may be at fault, ask first."""
        self._cause = error
        if may_be_inputs:
            self._ask(now)
        else:
            self._open(now)

    @staticmethod
    def _is_its_own(ticket: Pass, error: ProviderError) -> bool:
        """Whether a failure may be the input's own fault."""
        return ticket.subject is not None and not ticket.known_good and may_be_the_texts_fault(error)

    def _ask(self, now: float) -> None:
        """Nothing is sent but an input that is known to be good, by whoever failed."""
        self._enter(State.HALF_OPEN, now)
        self._numbers += 1
        self._probe, self._probe_since, self._is_asking = Pass(self._era, self._numbers), now, True

    def _open(self, now: float) -> None:
        self._was_open = True
        self._opens_at = now + self._stay_s(self._openings) * (0.5 + 0.5 * self._jitter())
        self._openings += 1
        self._enter(State.OPEN, now)

    def _close(self, now: float) -> None:
        self._results.clear()
        self._in_a_row.clear()
        if self._was_open:
            self._suspects.clear()  # what failed while the provider was ill may be innocent
        self._was_open = False
        self._cause = None
        self._enter(State.CLOSED, now)

    def _enter(self, state: State, now: float) -> None:
        self._state, self._changed_at = state, now
        self._era += 1
        self._probe, self._is_asking = None, False
