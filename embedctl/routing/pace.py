"""How often requests may go where a provider refuses some of them: a rate that is found by trying. Pure.

Growth and cuts follow RFC 9438 (CUBIC) and the adaptive mode of the AWS SDKs (botocore `retries/adaptive.py`), which
applies it to a rate of requests: one multiplicative cut per congestion event, back to the last good rate, linearly
around it (the RFC's Reno-friendly region), then by the cube of the time. What differs, and why:

- Nothing is paced until refusals are more than isolated (a CUSUM of them), and no rate is made up: the first one is
  what got through. PCC (Dong et al., NSDI 2015) tolerates a loss of 5 % for the same reason.
- The first cut is a trial. A limit lets through what is below it. Refusals that go on at less than what got through
  (Wald's sequential test) do not depend on the rate, and nothing is paced any more; BBR likewise keeps its rate under a
  loss that does not depend on it.
- A trial at less than one request in two seconds ends after two minutes, if less speaks against it than for it: more
  would take an hour, in which others take what it leaves.
- Until its first cut a held rate doubles (slow start, RFC 5681), after each cut at a quarter of the speed.
- The growth is the same for all who share a limit: it depends on the share of refusals alone, which all of them see
  alike (as in TFRC, RFC 5348) and remember for a number of refusals, not of seconds. Cuts are in proportion. So they
  end with like shares, however many they are.
- While nothing at all gets through, single requests look whether that is over: a limit of so many a minute, or an
  outage. Afterwards it goes on as before; after the second time in a row, with what got through over all of that time.

How these rules do together with many kinds of providers: tests/unit/routing/test_goodput.py.
"""

from __future__ import annotations

import math

from embedctl.routing.bucket import Bucket

ISOLATED = 0.08  # refusals per answer that are no sign of a limit
EVIDENCE = 8.0  # refusals beyond these that are one
OUTCOMES = 20  # before anything is concluded

TRIAL_CUT = 0.85
CLEAN = 0.2  # of the suspected share of refusals: what a limit would still refuse below it
LUCK = 0.6  # of the share of refusals when they were many: that moment was no lucky one
LEAST_SUSPECTED, LARGEST_SUSPECTED = 0.04, 0.4
SURE = 5.0  # log likelihood ratio
TRIAL_S, TRIAL_RATE = 120.0, 0.5  # where fewer requests a second would take an hour, so long is enough
LIMIT_SHARE = 0.5  # what refuses more than half of all is a limit
LARGEST_NORMAL = 0.35
FALLS, MOST_FALLS = 2, 4  # failed trials until refusals are known not to depend on the rate: normally, and after many

CUT = 0.9
SEVERE_SHARE, SEVERE_CUT = 0.3, 1 / 1.5  # of the last dozen or so: far above the limit
OFTEN, OFTEN_SHARE = 0.0208, 0.05  # refusals a second of each process, where they are this share of all
LESS_OFTEN, MOST_OFTEN = 0.3, 0.036  # by this power of their share where that is larger; and at most
BACK_S, BACK_REQUESTS = 1.0, 24.0  # to the last good rate at least; requests: where the limit is ours alone
VERY_SLOW = 0.12  # requests a second, where texts are counted: as if it were
PRIOR, PRIOR_SHARE = 50.0, 0.045  # outcomes that count before there are any, and their share of refusals
REMEMBERED = 32.0  # refusals after which an outcome counts for a third
EARLY, REGULAR = 0.7, 6  # of back_s; so many refusals in a row that were not early: the limit is ours alone
DOUBLED_S, DOUBLED_REQUESTS = 1.0, 16.0  # the rate, until it is cut; after that, this share of it is come back to
DOUBLED_TO, DOUBLED_LESS = 0.75, 4.0  # each cut makes it so many times slower
STEADY = 4.0  # times back_s without a refusal, then by the cube
FALLEN = 0.1  # of the largest rate: as before it was held back
MANY_SHARE, MANY = 0.2, 8.0  # so many refusals beyond this many per answer: another trial too

BLOCKED_AFTER = 10  # refusals and no answer
SHORT_S = 1.0  # blocked for less than this is no outage
FIRST_LOOK_S, LONGEST_LOOK_S = 0.1, 5.0
LOOK_BACK_S = (10.0, 100.0)  # the shorter one, where enough got through
SLOWEST = 1 / 600  # a second
IDLE = 3.0  # requests that could have gone before one does: the pace holds nothing back


class _Measured:
    """Amounts per second, each forgotten with e-folding time `seconds`."""

    __slots__ = ("_amount", "_at", "_seconds", "_since")

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._since = self._at = now
        self._amount = 0.0

    def amount(self, now: float) -> float:
        return self._amount * math.exp((self._at - now) / self._seconds) if now > self._at else self._amount

    def add(self, now: float, amount: float) -> None:
        self._amount, self._at = self.amount(now) + amount, max(now, self._at)

    def per_second(self, now: float) -> float:
        looked_back_s = self._seconds * -math.expm1(-max(0.25, now - self._since) / self._seconds)
        return self.amount(now) / looked_back_s


class Pace:
    """The pace of one provider, model and key. Amounts are what the provider counts: requests, or texts.

    Attributes:
        blocked_since: Since when nothing at all has got through, None while something does.
    """

    def __init__(self, now: float) -> None:
        self._bucket: Bucket | None = None
        self._number = 0
        self._cost = 1.0  # of a request, on average
        self._got = [_Measured(seconds, now) for seconds in LOOK_BACK_S]
        self._idle = 0.0
        self._full_at = now
        self._excess = 0.0
        self._outcomes = 0  # since nothing is paced
        self._judged = self._refused = 0.0  # outcomes at rates that were held, and refusals among them; old ones fade
        self._normal = 0.0  # share of refusals that no cut has helped against
        self._good = 0.0  # the last good rate
        self._cut_at = -math.inf
        self._cut_after = 0  # the last request that was sent before the cut
        self._since_cut = 0.0  # what got through since the cut
        self._falls, self._most_falls = 0, MOST_FALLS
        self._trial = False
        self._unpaced = 0.0
        self._tried_answers = self._tried_refusals = 0
        self._doubt = self._suspected = 0.0
        self._recent = self._many = 0.0
        self._peak = 0.0
        self._back_s = BACK_S
        self._regular = 0  # refusals in a row that came when the last good rate was reached again
        self._got_once = 0.0  # per second, when the rate was cut first
        self._double_s = math.inf
        self._answers = self._refusals = 0  # of requests sent since the cut, while the rate was below the last good one
        self._in_a_row = 0  # refusals
        self._refused_first = 0
        self._refused_since = now
        self._look_at = now
        self.blocked_since: float | None = None
        self._blocked_after = 0  # the last request that was sent before: its answer tells nothing of what came since
        self._before_blocked: tuple[float, float] | None = None
        self._blocked_before = -math.inf
        self._cycle = 0.0
        self._cycle_at = now

    @property
    def per_second(self) -> float | None:
        """What goes per second, None while nothing is held back."""
        return self._bucket.per_second if self._bucket else None

    @property
    def _rate(self) -> float:
        return self._bucket.per_second if self._bucket else 0.0

    def ready_in(self, now: float, cost: float) -> float:
        """Seconds until a request of this cost may go."""
        if self.blocked_since is not None:
            return max(0.0, self._look_at - now)
        self._grow(now)
        return self._bucket.ready_in(now, cost) if self._bucket else 0.0

    def take(self, now: float, cost: float) -> int:
        """A request goes; its number."""
        if not self._number:
            self._got = [_Measured(seconds, now) for seconds in LOOK_BACK_S]
            self._cycle_at = now
        self._number += 1
        self._cost += (cost - self._cost) / 16
        if self.blocked_since is not None:
            self._look_at = now + self._look_s(now)
        if self._bucket:
            idle = max(0.0, now - self._full_at) * self._bucket.per_second / cost
            self._idle += (min(idle, 2 * IDLE) - self._idle) / 8
            self._bucket.take(now, cost)
            self._full_at = now + self._bucket.ready_in(now, self._bucket.capacity)
        return self._number

    def succeeded(self, now: float, cost: float, number: int) -> None:
        """A request got through."""
        for measured in self._got:
            measured.add(now, cost)
        self._cycle += cost
        self._outcomes += 1
        if self._bucket is None:
            self._unpaced -= self._unpaced / 32
        if self._in_a_row and number > (self._refused_first if self.blocked_since is None else self._blocked_after):
            self._in_a_row = 0
            if self.blocked_since is not None:
                self._unblock(now, self.blocked_since)
        self._excess = max(0.0, self._excess - max(ISOLATED, 2.5 * self._normal))
        if self._bucket and not self._trial:
            self._judged += 1
            self._many = max(0.0, self._many - MANY_SHARE)
        if number > self._cut_after:
            if self._trial:
                self._doubt += math.log((1 - self._suspected) / (1 - CLEAN * self._suspected))
                few = self._rate < TRIAL_RATE * self._cost and now - self._cut_at > TRIAL_S
                if (few and self._doubt <= 0) or self._doubt <= -SURE * (1 + min(1, self._falls)):
                    self._trial, self._normal = False, 0.0
                    self._good, self._cut_at, self._recent = self._rate, now, 0.0
                    self._aim()
            self._recent -= self._recent / 16
            self._since_cut += cost
            self._answers += 1

    def throttled(self, now: float, number: int) -> None:
        """A request was refused; those sent before the last cut tell nothing new. Whether the rate was cut."""
        self._in_a_row += 1
        self._outcomes += 1
        if self._bucket is None:
            self._unpaced += (1 - self._unpaced) / 32
        if self._in_a_row == 1:
            self._refused_since, self._refused_first = now, number
            self._before_blocked = (self._bucket.per_second, self._good) if self._bucket else None
        if self._bucket and not self._trial:
            kept = 1 - 1 / REMEMBERED
            self._judged, self._refused = self._judged * kept + 1, self._refused * kept + 1
            self._many += 1
        if self._in_a_row >= BLOCKED_AFTER:
            self._block(now)
        elif number > self._cut_after:
            self._refusals += 1
            self._excess += 1
            if self._bucket is None:
                if self._excess >= EVIDENCE + 30 * self._normal and self._outcomes >= OUTCOMES:
                    self._begin(now)
            elif self._trial:
                self._doubt += -math.log(CLEAN)
                if self._doubt >= SURE:
                    self._failed(now)
            else:
                self._cut(now)

    def _free(self, now: float) -> None:
        """Nothing is held back any more."""
        self._bucket, self._trial = None, False
        self._excess = 0.0
        self._unpaced = self._normal
        self._outcomes = self._answers = self._refusals = 0

    def _begin(self, now: float) -> None:
        """Hold requests back for the first time: at less than what got through."""
        rate = self._measured(now)
        if not rate:
            return  # nothing is known: whatever gets through next will tell
        share = self._unpaced
        self._first(now, rate, share, FALLS)
        if share > LIMIT_SHARE:
            self._trial = False
            self._aim()

    def _first(self, now: float, rate: float, share: float, most_falls: int, *, doubles: bool = True) -> None:
        """The first trial of a rate that nothing but what got through tells."""
        self._tried_answers = self._tried_refusals = 0
        self._falls, self._most_falls = 0, most_falls
        if doubles:
            self._got_once, self._double_s = math.inf, max(DOUBLED_S, DOUBLED_REQUESTS * self._cost / rate)
        self._try(now, rate, share)

    def _aim(self) -> None:
        """How long it takes to get back to the last good rate.

        A rate r grows by (1 - CUT) r / back_s a second; its refusals, p r of them, take (1 - CUT) r each.
        With back_s = r p / often² it grows by what depends on p alone, which all who share a limit see alike, while who
        sends more loses more: they end with like shares (Chiu and Jain 1989), and each is refused `often`.

        With often ~ 1 / p^g, p is about 1 / r^s, s = 1 / (1 + g), and after n refusals each a share is known to
        1 / (s √n). Over all rates the same g: where p changes little with r, shares are not told from each other.
        """
        good = self._good / self._cost
        share = (self._refused + PRIOR * PRIOR_SHARE) / (self._judged + PRIOR)
        often = min(MOST_OFTEN, OFTEN * (OFTEN_SHARE / share) ** LESS_OFTEN)
        very_slow = good < VERY_SLOW and self._cost > 1  # texts are counted: requests are few
        alone = self._regular >= REGULAR or very_slow
        self._back_s = max(BACK_S, good * share / often**2, BACK_REQUESTS / good if alone else 0.0)

    def _try(self, now: float, rate: float, share: float) -> None:
        self._doubt, self._suspected = 0.0, min(LARGEST_SUSPECTED, max(LEAST_SUSPECTED, LUCK * share))
        self._good = max(SLOWEST, rate)
        self._trial = True
        self._many = 0.0
        self._start_over(now)
        self._set(now, TRIAL_CUT * self._good)
        self._peak = self._good

    def _failed(self, now: float) -> None:
        """Refusals go on below what got through."""
        self._falls += 1
        self._tried_answers += self._answers
        self._tried_refusals += self._refusals
        share = self._tried_refusals / (self._tried_refusals + self._tried_answers)
        if self._falls >= self._most_falls and share <= LIMIT_SHARE:
            self._normal = min(LARGEST_NORMAL, max(share, self._normal))
            self._got = [_Measured(seconds, now) for seconds in LOOK_BACK_S]
            self._free(now)
            return
        rate = self._rate
        got_through = self._since_cut / max(now - self._cut_at, 1e-3)
        self._try(now, min(max(got_through, rate / 2), rate), share)

    def _cut(self, now: float) -> None:
        """A congestion event."""
        if self._in_a_row == 1:
            self._regular = 0 if now - self._cut_at < EARLY * self._back_s else self._regular + 1
        self._recent += (1 - self._recent) / 16
        if self._in_a_row > 1 and self._recent <= SEVERE_SHARE:
            return  # the same event: nothing has got through since
        rate = self._rate
        if self._recent > SEVERE_SHARE:
            self._recent = 0.0
            self._good = max(SLOWEST, rate * SEVERE_CUT)
        else:
            self._good = max(SLOWEST, rate)
            self._peak = max(self._peak, rate)
            if self._many >= MANY:
                self._falls, self._most_falls = 0, FALLS
                self._tried_answers = self._tried_refusals = 0
                self._try(now, rate, 2 * MANY_SHARE)
                return
            if rate < FALLEN * self._peak:
                self._normal = min(LARGEST_NORMAL, self._refused / max(1.0, self._judged))
                self._free(now)
                return
        self._got_once = min(self._got_once, DOUBLED_TO * rate)
        self._double_s *= DOUBLED_LESS
        self._start_over(now)
        self._aim()
        self._set(now, CUT * self._good)

    def _start_over(self, now: float) -> None:
        self._cut_at = now
        self._cut_after = self._number
        self._since_cut = 0.0
        self._answers = self._refusals = 0
        self._excess = 0.0

    # ── more ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _grow(self, now: float) -> None:
        if self._bucket is None or self._trial:
            return
        self._aim()
        at = (now - self._cut_at) / self._back_s
        rate = self._good * (1 + (1 - CUT) * (at - 1) + max(0.0, at - STEADY) ** 3)
        doubled = 2 ** min(20.0, (now - self._cut_at) / self._double_s)
        rate = max(rate, min(self._got_once, self._good * CUT * doubled))
        if self._idle > IDLE / 2 and at > 1:
            if self._idle > IDLE:
                self._free(now)
            return
        self._set(now, max(rate, self._rate))

    # ── nothing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _block(self, now: float) -> None:
        if self.blocked_since is None:
            self.blocked_since, self._blocked_after = self._refused_since, self._number
        self._look_at = max(self._look_at, now + self._look_s(now))

    def _look_s(self, now: float) -> float:
        return min(max(FIRST_LOOK_S, 0.5 * (now - self._refused_since)), LONGEST_LOOK_S)

    def _unblock(self, now: float, since: float) -> None:
        """Something got through: as before, or, when it was blocked a short time ago too, as much as got through."""
        blocked_s, good_s = now - since, since - self._cycle_at
        rate, again = self._cycle / max(now - self._cycle_at, 1e-3), good_s < 3 * blocked_s
        if self._blocked_before > -math.inf and again and self._cycle > 0:
            self._bucket = None
            self._first(now, rate, LIMIT_SHARE, MOST_FALLS, doubles=self._cycle < OUTCOMES * self._cost)
        elif blocked_s >= SHORT_S and self._before_blocked is not None:
            per_second, self._good = self._before_blocked
            self._trial, self._peak, self._recent = False, self._good, 0.0
            self._aim()
            self._bucket = None
            self._start_over(now)
            self._set(now, per_second)
        elif blocked_s >= SHORT_S:
            self._free(now)
        elif self._bucket is None and self._outcomes >= OUTCOMES:
            self._begin(now)
        self.blocked_since = None
        if blocked_s >= SHORT_S:
            self._blocked_before = now
            self._cycle, self._cycle_at = 0.0, now

    # ── measured ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _measured(self, now: float) -> float:
        """What got through per second lately."""
        short, long = self._got
        return short.per_second(now) if short.amount(now) >= 4 * self._cost else long.per_second(now)

    def _set(self, now: float, per_second: float) -> None:
        capacity = max(self._cost, per_second * 0.02)
        if self._bucket is None:
            self._idle, self._full_at = 0.0, now
            self._bucket = Bucket(per_second, capacity, now)
            self._bucket.cap(now, 0.0)
        else:
            self._bucket.change(now, per_second=per_second, capacity=capacity)
