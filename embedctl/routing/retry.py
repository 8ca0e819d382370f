"""What happens after a failed attempt: again, later, smaller, or not here. Pure.

The error's class (`errors.Remedy`) decides alone; this file adds how long, how often and how much in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from embedctl.dataclass import dataclass
from embedctl.errors import (
    AnswerLost,
    AnswerUnshaped,
    AnswerUnusable,
    CircuitOpen,
    DeadlinePassed,
    EmbedctlError,
    NotSent,
    ProviderError,
    Remedy,
    ServerFailed,
    Throttled,
)

Jitter = Callable[[], float]
"""Uniform in [0, 1); `random.random` outside tests."""

TRANSIENT_BASE_S, TRANSIENT_CAP_S = 0.5, 30.0
THROTTLE_BASE_S, THROTTLE_CAP_S = 1.0, 60.0
HINT_SPREAD = 0.5  # a hint is a minimum: +0-50 %, so that those who were told the same do not come together
_SURELY_UNSHAPED = 2
TRANSIENT_COST, THROTTLE_COST = 14, 5  # botocore's prices of 2026 (facts/faults.md 1, 2026-11-21)


def hinted_s(error: ProviderError) -> float | None:
    """Seconds the provider asks to wait; None where it says nothing that makes sense (0, negative, NaN, inf)."""
    hint = error.retry_after_s
    return hint if hint is not None and math.isfinite(hint) and hint > 0 else None


def wait_before(
    attempt: int,
    error: ProviderError,
    *,
    jitter: Jitter,
    base_s: float | None = None,
    cap_s: float | None = None,
) -> float:
    """Seconds to wait before the next attempt: what the provider asked for, else full jitter.

    hint · (1 + U(0, 0.5)) where there is a hint, else U(0, min(cap, base · 2^(attempt - 1))).

    Args:
        attempt: How many attempts of this kind have failed, from 1.
        base_s: 0.5, and 1 when throttled.
        cap_s: Of the backoff, not of the hint: 30, and 60 when throttled.
    """
    hint = hinted_s(error)
    if hint is not None:
        return hint * (1 + HINT_SPREAD * jitter())
    throttled = isinstance(error, Throttled)
    base = base_s if base_s is not None else THROTTLE_BASE_S if throttled else TRANSIENT_BASE_S
    cap = cap_s if cap_s is not None else THROTTLE_CAP_S if throttled else TRANSIENT_CAP_S
    doublings = min(attempt - 1, 60)  # 2.0**1024 would overflow
    return jitter() * min(cap, base * 2.0**doublings)


def may_be_the_texts_fault(error: ProviderError) -> bool:
    """Whether a server may fail so over one text, again and again: answer nonsense, or 500, break off, or fall silent.

    502 to 504, and a refused connection, are its own affair: one that is overloaded or restarting says so.
    """
    if isinstance(error, AnswerUnshaped):
        return False
    if isinstance(error, ServerFailed):
        return error.status in (None, 500, 424)
    return isinstance(error, AnswerUnusable | AnswerLost)


class RetryBudget:
    """What an endpoint may be asked in retries, so that a sick provider is not stormed.

    Full at the start. A retry pays its price, gets it back when it succeeds (after several throttlings: all of them)
    or a text was to blame, and every request that succeeds at once adds 1. The level never leaves [0, capacity].
    """

    __slots__ = ("capacity", "level")

    def __init__(self, capacity: int = 500) -> None:
        self.capacity = capacity
        self.level = capacity

    def spend(self, cost: int) -> bool:
        """Pay for one retry; False, and nothing is paid, when there is not enough left."""
        if cost > self.level:
            return False
        self.level -= cost
        return True

    def add(self, amount: int) -> None:
        """Put back what a retry cost, or 1 for a request that needed none."""
        self.level = min(self.capacity, self.level + amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the call point does next.

    Attributes:
        remedy: RETRY or WAIT: the same again after `wait_s`. HALVE, ISOLATE: smaller. LEAVE: not here any more.
        error: Why; with LEAVE, what to fall back for or end with.
        wait_s: Seconds until the next attempt; 0 unless the same request is sent again.
        refused_for_s: With LEAVE: seconds the provider asked for beyond what we wait, for `hints`; else None.
    """

    remedy: Remedy
    error: EmbedctlError
    wait_s: float = 0.0
    refused_for_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How often and how long.

    Attributes:
        retries: `--retries`: how often one request is sent again after transient, ambiguous or unusable failures.
        lost_retries: How many of these may follow an `AnswerLost`: each one may have been billed. See `for_part`.
        max_wait_s: `--max-wait`: seconds one request may spend waiting because it was throttled, in all.
        deadline: Monotonic time at which the run ends, None = never.
        isolate_after: Failures of one request, while others succeed, after which one of its texts is suspected. Fewer
            lost answers, because `retries` allows no more, do not tell a text from a bad network.
        others: How many others must have succeeded since its first failure.
        most_failed: Failed attempts of one call, at all endpoints and with its probes, after which it ends; halving is
            no failure, unless the answer was lost. None: as many as the other rules take.
    """

    retries: int = 6
    lost_retries: int = 2
    max_wait_s: float = 600.0
    deadline: float | None = None
    isolate_after: int = 3
    others: int = 5
    most_failed: int | None = None

    def for_part(self, texts: int, *, suspected: bool) -> Policy:
        """The policy for a request, or for a part of one that was halved.

        A text that stands alone is given all its retries, and never isolated: there is nothing to halve, and the
        server may have fallen ill since others got through; that is looked into at the end. Once it is suspected, its
        retries include those after a lost answer. Of several suspected texts one failure is enough to halve them.
        So one text over which a server breaks off puts at risk, at one endpoint, at most `lost_retries` + 2 times the
        tokens of its request and `retries` + 1 times its own; each further one in the same request as much as the
        request's halves that it is in, and `retries` + 1 times its own.

        Args:
            suspected: It was found out that others get through meanwhile.
        """
        if texts == 1:
            lost_retries = self.retries if suspected else self.lost_retries
            return replace(self, isolate_after=self.retries + 2, lost_retries=lost_retries)
        return replace(self, others=0, lost_retries=0, isolate_after=1) if suspected else self


class Attempts:
    """The attempts of one request at one provider."""

    __slots__ = (
        "_counted",
        "_jitter",
        "_lost",
        "_others",
        "_paid",
        "_paid_in_all",
        "_paid_throttled",
        "_policy",
        "_repeated",
        "_throttled",
        "_waited_s",
    )

    def __init__(self, policy: Policy, *, jitter: Jitter, earlier: Attempts | None = None) -> None:
        """Begin.

        Args:
            earlier: Those at the same request, before it was suspected: their failures count.
        """
        self._policy = policy
        self._jitter = jitter
        self._counted: int = earlier._counted if earlier else 0
        self._lost: int = earlier._lost if earlier else 0
        self._repeated: int = earlier._repeated if earlier else 0
        self._throttled = 0
        self._others = 0
        self._waited_s = 0.0
        self._paid = self._paid_throttled = self._paid_in_all = 0

    @property
    def failures(self) -> int:
        """Failures that count against `--retries`, so far."""
        return self._counted

    @property
    def repeated(self) -> int:
        """Failures so far that may be one text's fault."""
        return self._repeated

    def succeeded(self, budget: RetryBudget) -> None:
        """Settle with the budget: the last retry's price back, or 1 for a success at once."""
        budget.add(self._paid or 1)
        self._paid = self._paid_throttled = self._paid_in_all = 0

    def excused(self, budget: RetryBudget) -> None:
        """Put back what all retries cost: a text was to blame, which says nothing about the provider."""
        budget.add(self._paid_in_all)
        self._paid = self._paid_throttled = self._paid_in_all = 0

    def after(
        self,
        error: ProviderError,
        *,
        now: float,
        budget: RetryBudget,
        others_succeeded: int = 0,
        held_back: bool = False,
        unshaped: int = 0,
    ) -> Step:
        """Decide what follows a failed attempt.

        Args:
            now: Monotonic seconds.
            others_succeeded: Requests to this endpoint that succeeded since this one's first failure.
            held_back: The limiter paces requests because many were refused.
            unshaped: Answers of a wrong shape that the endpoint gave since its last good one, this one counted.
        """
        if error.remedy is Remedy.WAIT:
            return self._throttle(error, now, budget, 0 if held_back else others_succeeded)
        if error.remedy is not Remedy.RETRY:
            return Step(remedy=error.remedy, error=error)
        if isinstance(error, NotSent) and error.provider_code == "certificate":
            return Step(remedy=Remedy.GIVE_UP, error=error)  # no number of attempts makes it trusted
        if isinstance(error, AnswerUnshaped) and unshaped >= _SURELY_UNSHAPED:
            return Step(remedy=Remedy.GIVE_UP, error=error)  # each further one would be paid, and be the same
        self._counted += 1
        if may_be_the_texts_fault(error):
            self._repeated += 1
            if self._repeated >= self._policy.isolate_after and others_succeeded >= self._policy.others:
                return Step(remedy=Remedy.ISOLATE, error=error)
        if isinstance(error, AnswerLost):
            self._lost += 1
        if self._counted > self._policy.retries or self._lost > self._policy.lost_retries:
            return Step(remedy=Remedy.GIVE_UP, error=error, refused_for_s=hinted_s(error))
        wait_s = wait_before(self._counted, error, jitter=self._jitter)
        if (hint := hinted_s(error)) is not None and hint > self._policy.max_wait_s:
            return Step(remedy=Remedy.GIVE_UP, error=error, refused_for_s=hint)
        return self._again(error, wait_s, TRANSIENT_COST, now, budget)

    def _throttle(self, error: ProviderError, now: float, budget: RetryBudget, others_succeeded: int) -> Step:
        # While others get through, and nothing is held back, it was unlucky: such refusals do not depend on the rate.
        # Where a limit is shared, the wait is what makes room for other processes.
        self._throttled = 1 if others_succeeded > self._others else self._throttled + 1
        self._others = others_succeeded
        wait_s = wait_before(self._throttled, error, jitter=self._jitter)
        hint = hinted_s(error)
        if self._waited_s + (hint or wait_s) > self._policy.max_wait_s:
            return Step(remedy=Remedy.GIVE_UP, error=error, refused_for_s=hint or wait_s)
        wait_s = min(wait_s, self._policy.max_wait_s - self._waited_s)  # the spread alone is no reason to leave
        step = self._again(error, wait_s, THROTTLE_COST, now, budget)
        if step.remedy is Remedy.WAIT:
            self._waited_s += wait_s
        return step

    def _again(self, error: ProviderError, wait_s: float, cost: int, now: float, budget: RetryBudget) -> Step:
        deadline = self._policy.deadline
        if deadline is not None and now + wait_s >= deadline:
            return Step(remedy=Remedy.GIVE_UP, error=_past_deadline(error, wait_s))
        if not budget.spend(cost):
            return Step(remedy=Remedy.GIVE_UP, error=_out_of_retries(error, wait_s))
        self._paid_in_all += cost
        # Of a throttled request all is given back: where three in ten are refused by chance, what second refusals cost
        # would use the budget up, and where it is no chance the limiter holds requests back.
        if error.remedy is Remedy.WAIT:
            self._paid_throttled += cost
        self._paid = self._paid_throttled if error.remedy is Remedy.WAIT else cost
        return Step(remedy=error.remedy, error=error, wait_s=wait_s)


def _past_deadline(error: ProviderError, wait_s: float) -> DeadlinePassed:
    return DeadlinePassed(
        f"the deadline comes before the next attempt, {wait_s:.0f} s from now; the last one said: {error.message}",
        hint="run the same command again to go on",
    )


def _out_of_retries(error: ProviderError, wait_s: float) -> CircuitOpen:
    return CircuitOpen(
        f"too many requests had to be sent again; the last one said: {error.message}",
        hint="run the same command again later to go on",
        provider=error.provider,
        status=error.status,
        provider_code=error.provider_code,
        retry_after_s=wait_s,
    )
