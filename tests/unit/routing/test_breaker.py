"""The circuit breaker: when it opens, how it closes, and what never moves it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedctl.errors import (
    AnswerLost,
    AnswerUnusable,
    CircuitOpen,
    KeyRejected,
    ModelNotFound,
    NotSent,
    ProviderError,
    QuotaExhausted,
    RequestRefused,
    RequestTooLarge,
    ServerFailed,
    SpaceMismatch,
    TextRefused,
    TextTooLong,
    Throttled,
)
from embedctl.routing.breaker import Breaker, Pass, State, Thresholds

ILL = [NotSent, ServerFailed, AnswerLost, AnswerUnusable]
NEUTRAL = [Throttled, RequestTooLarge, TextRefused, TextTooLong]
DEADLY = [KeyRejected, QuotaExhausted, ModelNotFound, RequestRefused, SpaceMismatch]


def breaker(jitter: float = 0.0) -> Breaker:
    """Stays open for exactly half of the nominal time."""
    return Breaker("openai", "small", jitter=lambda: jitter)


def feed(subject: Breaker, error: ProviderError | None, now: float = 0.0, times: int = 1) -> None:
    for _ in range(times):
        ticket = subject.admit(now)
        assert ticket is not None
        subject.settle(ticket, error, now)


def opened(now: float = 0.0) -> Breaker:
    subject = breaker()
    feed(subject, ServerFailed("down"), now, 5)
    return subject


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ILL)
def test_five_failures_in_a_row_open_it(kind: type[ProviderError]) -> None:
    """Five ill results in a row open the circuit, four do not."""
    subject = breaker()
    feed(subject, kind("x"), times=4)

    assert subject.state(0) is State.CLOSED

    feed(subject, kind("x"))

    assert subject.state(0) is State.OPEN
    assert subject.admit(0) is None


def test_half_of_the_last_twenty_open_it() -> None:
    """Half of the last twenty results, once there are ten, open it though no five were in a row."""
    subject = breaker()
    for _ in range(4):
        feed(subject, None)
        feed(subject, ServerFailed("x"))
    feed(subject, None)

    assert subject.state(0) is State.CLOSED

    feed(subject, ServerFailed("x"))

    assert subject.state(0) is State.OPEN


def test_old_results_are_forgotten() -> None:
    """Only the last twenty results count: failures of an hour ago do not."""
    subject = breaker()
    feed(subject, ServerFailed("x"), times=4)
    feed(subject, None, times=20)
    feed(subject, ServerFailed("x"), times=4)

    assert subject.state(0) is State.CLOSED
    assert subject.snapshot(0).failures == 4


def test_success_resets_the_row() -> None:
    """A success between failures starts the row anew (OpenBiliClaw#197: it never did)."""
    subject = breaker()
    for _ in range(50):
        feed(subject, None, times=6)
        feed(subject, ServerFailed("x"), times=4)

    assert subject.state(0) is State.CLOSED


@pytest.mark.parametrize("kind", NEUTRAL)
def test_throttling_and_bad_requests_are_no_illness(kind: type[ProviderError]) -> None:
    """A thousand 429s or refused texts leave it closed, and are no results at all (metabase#78296)."""
    subject = breaker()
    feed(subject, kind("x"), times=1000)

    assert subject.state(0) is State.CLOSED
    assert subject.snapshot(0).results == 0


def test_an_empty_retry_budget_opens_it() -> None:
    """`trip` opens it at once; tripping it again while open does not lengthen the stay."""
    subject = breaker()
    subject.trip(CircuitOpen("out of retries"), 0.0)
    wait = subject.ready_in(0.0)
    subject.trip(CircuitOpen("out of retries"), 1.0)

    assert (subject.state(1.0), wait, subject.ready_in(1.0)) == (State.OPEN, 5.0, 4.0)


# ── one input ────────────────────────────────────────────────────────────────────────────────────────────────────────

PERHAPS_ITS_OWN = [AnswerLost("closed the connection"), ServerFailed("broke", status=500), AnswerUnusable("no vector")]
THE_SERVER_S = [NotSent("refused"), ServerFailed("overloaded", status=503), ServerFailed("away", status=502)]


def sent(subject: Breaker, what: int, error: ProviderError | None, now: float = 0.0) -> bool:
    """Whether an input was let through; then it ended so."""
    ticket = subject.admit(now, what)
    if ticket is not None:
        subject.settle(ticket, error, now)
    return ticket is not None


@pytest.mark.parametrize("error", PERHAPS_ITS_OWN, ids=lambda error: type(error).__name__)
def test_one_input_takes_nobody_s_provider(error: ProviderError) -> None:
    """An input that fails again and again is put off after five times, for longer each time; others are let through."""
    subject = breaker()
    tries = [sent(subject, 1, error) for _ in range(100)]

    assert tries == [True] * 5 + [False] * 95
    assert subject.state(0) is State.CLOSED
    assert (subject.ready_in(0, 1), subject.ready_in(0, 2), subject.ready_in(0)) == (5.0, 0.0, 0.0)
    assert sent(subject, 2, None)

    again = [now for now in range(1000) if sent(subject, 1, error, float(now))]

    assert again == [5, 15, 35, 75, 155, 305, 455, 605, 755, 905]
    assert subject.state(1000) is State.CLOSED


@pytest.mark.parametrize("error", PERHAPS_ITS_OWN, ids=lambda error: type(error).__name__)
def test_one_input_among_others_is_one_failure(error: ProviderError) -> None:
    """However many of the last results are one input's failures, they are one against those that got through."""
    subject = breaker()
    for other in range(200):
        sent(subject, 1, error, float(other))
        assert sent(subject, 2 + other % 3, None, float(other))

    assert subject.state(200) is State.CLOSED


def asking(error: ProviderError, *, was_open: bool = False) -> Breaker:
    """One that waits for an input that is known to be good, at 5 s."""
    subject = breaker()
    if was_open:
        feed(subject, ServerFailed("down"), times=5)
        assert sent(subject, 1, error, 5.0)
    else:
        for what in (1, 1, 2, 2, 3, 3, 4, 4):
            assert sent(subject, what, error, 5.0)
        assert not subject.is_asking(5.0)
        assert sent(subject, 5, error, 5.0)
    assert subject.is_asking(5.0)
    assert not sent(subject, 6, None, 5.0)
    return subject


def known_good(subject: Breaker, error: ProviderError | None) -> None:
    ticket = subject.admit(5.0, 9, known_good=True)
    assert ticket is not None
    assert subject.admit(5.0, 9, known_good=True) is None
    subject.settle(ticket, error, 5.0)


@pytest.mark.parametrize("was_open", [False, True])
@pytest.mark.parametrize("error", PERHAPS_ITS_OWN, ids=lambda error: type(error).__name__)
def test_inputs_that_fail_are_told_from_a_provider_that_is_ill(error: ProviderError, was_open: bool) -> None:
    """When five inputs fail in a row, one that is known to be good decides, and nothing is sent before.

    So does it when an input fails that was to tell whether the provider serves again.
    """
    well, ill = asking(error, was_open=was_open), asking(error, was_open=was_open)
    known_good(well, None)
    known_good(ill, error)

    assert well.state(5.0) is State.CLOSED
    assert ill.state(5.0) is State.OPEN
    assert [sent(well, what, error, 5.0) for what in range(11, 16)] == [True] * 5
    assert well.is_asking(5.0)


@pytest.mark.parametrize("error", PERHAPS_ITS_OWN, ids=lambda error: type(error).__name__)
def test_what_nobody_can_ask_any_input_decides(error: ProviderError) -> None:
    """Where who failed cannot ask, or its question says nothing, the next input goes; and nothing waits for ever."""
    subject = asking(error)
    subject.ask_nobody(5.0)
    assert sent(subject, 6, None, 5.0)
    assert subject.state(5.0) is State.CLOSED

    subject = asking(error)
    known_good(subject, Throttled("x"))
    assert sent(subject, 6, None, 5.0)

    subject = asking(error)
    assert subject.state(5.0 + subject.thresholds.probe_s) is State.OPEN


def test_inputs_say_nothing_beside_a_server_s_own_word() -> None:
    """Where one of the failures is the server's own affair it opens at once."""
    subject = breaker()
    for what in range(4):
        sent(subject, what, AnswerLost("x"))
    sent(subject, 5, ServerFailed("away", status=502))

    assert subject.state(0) is State.OPEN


@pytest.mark.parametrize("error", THE_SERVER_S, ids=str)
def test_what_a_server_says_of_itself_is_no_input_s_fault(error: ProviderError) -> None:
    """Five refused connections or 502 to 504 open it, though all had the same input."""
    subject = breaker()
    for _ in range(5):
        assert sent(subject, 1, error)

    assert subject.state(0) is State.OPEN


def test_an_input_that_gets_through_is_forgiven() -> None:
    """A success of the same input starts its row anew, and so does the provider's return for all of them."""
    subject = breaker()
    for _ in range(50):
        for error in (AnswerLost("x"), AnswerLost("x"), AnswerLost("x"), AnswerLost("x"), None):
            assert sent(subject, 1, error)
    for _ in range(5):
        sent(subject, 1, AnswerLost("x"))
    assert not sent(subject, 1, None)

    subject.reset(1.0)

    assert sent(subject, 1, None, 1.0)


def test_the_refusal_of_an_input_says_so() -> None:
    """Who is put off is told that it is this input, why, and for how long."""
    subject = breaker()
    for _ in range(5):
        sent(subject, 1, AnswerLost("closed the connection"))
    refusal = subject.refusal(1.0, 1)

    assert isinstance(refusal, CircuitOpen)
    assert refusal.retry_after_s == 4.0
    assert refusal.message == (
        "openai failed too often with this input, not asked for 4 s; it said: closed the connection"
    )
    assert (subject.reason_for(1.0, 1), subject.reason_for(1.0, 2)) == ("closed the connection", None)


def test_an_empty_retry_budget_puts_off_one_input_while_others_get_through() -> None:
    """Where most of the last inputs got through, an input that used up the retries is put off, and nobody else."""
    subject = breaker()
    for other in range(6):
        sent(subject, 10 + other, None)
    for what in range(5):
        sent(subject, what, None if what % 2 else AnswerLost("x"))
    subject.trip(CircuitOpen("out of retries"), 0.0, 1)

    assert subject.state(0) is State.CLOSED
    assert (subject.ready_in(0, 1), subject.ready_in(0, 2)) == (5.0, 0.0)


def test_inputs_that_failed_do_not_pile_up() -> None:
    """Of more than 256 inputs that failed, the oldest are forgotten."""
    subject = breaker()
    for what in range(2000):
        sent(subject, what, AnswerLost("x"))
        sent(subject, -1, None)
        sent(subject, -2, None)

    assert len(subject._suspects) == 256


# ── open ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_stay_doubles_up_to_five_minutes() -> None:
    """Each further opening doubles the stay, up to five minutes."""
    subject = opened()
    now, stays = 0.0, []
    for _ in range(8):
        stay = subject.ready_in(now)
        assert stay is not None
        stays.append(stay)
        now += stay
        feed(subject, ServerFailed("still down"), now)

    assert stays == [5, 10, 20, 40, 80, 150, 150, 150]


@given(st.floats(0, 1, exclude_max=True))
def test_the_stay_is_spread(u: float) -> None:
    """The stay is between half and all of its nominal time, so that many clients do not come back together."""
    subject = breaker(u)
    feed(subject, ServerFailed("x"), times=5)
    stay = subject.ready_in(0.0)

    assert stay == 10 * (0.5 + 0.5 * u)


def test_late_results_of_an_earlier_state_say_nothing() -> None:
    """Answers to requests that were sent before it opened neither close it nor count as its probe."""
    subject = breaker()
    early = [subject.admit(0.0) for _ in range(10)]
    for ticket in early[:5]:
        assert ticket is not None
        subject.settle(ticket, ServerFailed("x"), 1.0)
    probe = subject.admit(6.0)
    assert early[5] is not None
    assert early[6] is not None
    assert probe is not None
    subject.settle(early[5], None, 6.1)
    subject.settle(early[6], ServerFailed("x"), 6.2)

    assert subject.state(6.3) is State.HALF_OPEN
    assert subject.admit(6.3) is None

    subject.settle(probe, None, 7.0)

    assert subject.state(7.0) is State.CLOSED


# ── half-open ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_half_open_admits_one_probe() -> None:
    """When the stay is over exactly one attempt may go (safe-client-gateway#3442: they all went)."""
    subject = opened()

    assert subject.state(4.9) is State.OPEN
    assert [subject.admit(5.0) is None for _ in range(20)] == [False] + [True] * 19
    assert subject.state(5.0) is State.HALF_OPEN


def test_a_good_probe_closes_it_and_clears_the_past() -> None:
    """A probe that succeeds closes it, and four new failures do not open it again."""
    subject = opened()
    feed(subject, None, 5.0)

    assert subject.snapshot(5.0).results == 0

    feed(subject, ServerFailed("x"), 5.0, times=4)

    assert subject.state(5.0) is State.CLOSED


def test_a_bad_probe_opens_it_again() -> None:
    """A probe that fails opens it for twice as long."""
    subject = opened()
    feed(subject, AnswerLost("x"), 5.0)

    assert (subject.state(5.0), subject.ready_in(5.0)) == (State.OPEN, 10.0)


def test_a_probe_that_never_settles_has_failed() -> None:
    """A probe that never comes back is given up after a bound (OmniRoute#13836: 49,607 refusals)."""
    subject = opened()
    lost = subject.admit(5.0)
    assert lost is not None

    assert subject.admit(184.9) is None
    assert subject.state(185.0) is State.OPEN
    assert subject.admit(195.0) is not None

    subject.settle(lost, None, 195.0)

    assert subject.state(195.0) is State.HALF_OPEN


@pytest.mark.parametrize("kind", NEUTRAL)
def test_a_probe_without_a_verdict_makes_room_for_another(kind: type[ProviderError]) -> None:
    """A probe that is throttled, refused for its text, or cancelled decides nothing: the next one may go."""
    subject = opened()
    feed(subject, kind("x"), 5.0)
    cancelled = subject.admit(5.0)
    assert cancelled is not None
    subject.abandon(cancelled)

    assert subject.state(5.0) is State.HALF_OPEN
    assert subject.admit(5.0) is not None


def test_only_a_healthy_stretch_shortens_the_next_stay() -> None:
    """A circuit that closes and falls again at once stays open longer; after twenty good results it starts anew."""
    subject = opened()
    feed(subject, None, 5.0)
    feed(subject, ServerFailed("x"), 5.0, times=5)

    assert subject.ready_in(5.0) == 10.0

    feed(subject, None, 15.0, times=2)
    feed(subject, ServerFailed("x"), 15.0)
    feed(subject, None, 15.0, times=19)
    feed(subject, ServerFailed("x"), 15.0, times=5)

    assert subject.ready_in(15.0) == 20.0

    feed(subject, None, 35.0, times=21)
    feed(subject, ServerFailed("x"), 35.0, times=5)

    assert subject.ready_in(35.0) == 5.0


# ── dead ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", DEADLY)
def test_a_hopeless_error_is_final(kind: type[ProviderError]) -> None:
    """A rejected key, a used-up quota, an unknown model: one attempt, and none after it in this run."""
    subject = breaker()
    error = kind("no")
    feed(subject, error)

    assert subject.state(1e9) is State.DEAD
    assert subject.admit(1e9) is None
    assert subject.ready_in(1e9) is None
    assert subject.dead(0) is error
    assert subject.refusal(1e9) is error


def test_what_is_in_flight_does_not_raise_the_dead() -> None:
    """Answers that were on their way when it died change nothing, not even the cause."""
    subject = breaker()
    tickets = [subject.admit(0.0), subject.admit(0.0)]
    cause = KeyRejected("no")
    feed(subject, cause)
    for ticket, result in zip(tickets, (None, QuotaExhausted("later")), strict=True):
        assert ticket is not None
        subject.settle(ticket, result, 1.0)
    subject.trip(CircuitOpen("x"), 1.0)

    assert subject.state(1e6) is State.DEAD
    assert subject.dead(0) is cause


def test_an_open_circuit_is_no_death() -> None:
    """`CircuitOpen` leaves the provider for now; it is no reason to leave it for the run."""
    subject = breaker()
    feed(subject, CircuitOpen("elsewhere"))

    assert subject.state(0.0) is State.CLOSED


def test_a_server_gives_the_dead_another_chance() -> None:
    """With `revive_s`, time leads a hopeless provider to one probe: an answer closes it, an error ends it anew."""
    subject = Breaker("p", "m", jitter=lambda: 0.0, thresholds=Thresholds(revive_s=lambda error: 300.0))
    feed(subject, KeyRejected("no"))

    assert subject.dead(299) is not None
    assert subject.ready_in(100) == 200
    assert subject.admit(299) is None
    assert subject.dead(300) is None

    probe = subject.admit(300)

    assert probe is not None
    assert subject.admit(300) is None

    subject.settle(probe, KeyRejected("still"), 301)

    assert subject.ready_in(301) == 300

    feed(subject, None, 601)

    assert subject.state(601) is State.CLOSED


def test_a_server_s_dead_are_revived_by_a_reset() -> None:
    """A reset closes a hopeless provider's circuit where time would, and leaves it as it is in a run."""
    in_server = Breaker("p", "m", jitter=lambda: 0.0, thresholds=Thresholds(revive_s=lambda error: 300.0))
    in_run = breaker()
    for subject in (in_server, in_run):
        feed(subject, KeyRejected("no"))
        subject.reset(1.0)

    assert in_server.state(0) is State.CLOSED
    assert in_run.state(0) is State.DEAD


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_says_who_why_and_how_long() -> None:
    """An attempt that is not admitted gets CircuitOpen with the cause and the seconds left."""
    refusal = opened().refusal(1.0)

    assert isinstance(refusal, CircuitOpen)
    assert refusal.retry_after_s == 4.0
    assert refusal.message == "openai failed too often, not asked for 4 s; it said: down"


def test_a_snapshot_shows_what_providers_list_prints() -> None:
    """A snapshot holds the state, the counts, the time left and the cause."""
    fresh, ill = breaker().snapshot(0.0), opened().snapshot(2.0)

    assert (fresh.state, fresh.failures, fresh.ready_in_s, fresh.reason) == (State.CLOSED, 0, 0.0, None)
    assert (ill.provider, ill.model, ill.state) == ("openai", "small", State.OPEN)
    assert (ill.results, ill.failures, ill.openings, ill.ready_in_s, ill.reason) == (5, 5, 1, 3.0, "down")


def test_a_snapshot_has_its_times() -> None:
    """When it failed last and when it came to stand so; a throttled request is no failure, a reset is a change."""
    subject = breaker()
    feed(subject, Throttled("later"), 1.0)
    before = subject.snapshot(1.0)
    for at in range(2, 7):
        feed(subject, ServerFailed("down"), float(at))
    ill = subject.snapshot(7.0)
    subject.reset(8.0)
    closed = subject.snapshot(9.0)

    assert (before.failed_at, before.changed_at) == (None, None)
    assert (ill.state, ill.failed_at, ill.changed_at) == (State.OPEN, 6.0, 6.0)
    assert (closed.state, closed.failed_at, closed.changed_at) == (State.CLOSED, 6.0, 8.0)


class AnyHistory(RuleBasedStateMachine):
    """Every order of sends, results, cancellations and waiting."""

    @initialize(jitter=st.floats(0, 1, exclude_max=True))
    def start(self, jitter: float) -> None:
        self.subject = Breaker("p", "m", jitter=lambda: jitter, thresholds=Thresholds())
        self.now = 0.0
        self.flying: list[tuple[Pass, float, bool]] = []
        self.died = False

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(what=st.sampled_from([None, *range(8)]), known_good=st.booleans())
    def send(self, what: int | None, known_good: bool) -> None:
        was = self.subject.state(self.now)
        ready_in = self.subject.ready_in(self.now, what)
        may = ready_in == 0 or (known_good and self.subject.is_asking(self.now))
        ticket = self.subject.admit(self.now, what, known_good=known_good)
        assert (ticket is not None) == may
        if ticket is not None:
            assert was in (State.CLOSED, State.HALF_OPEN)
            self.flying.append((ticket, self.now, was is State.HALF_OPEN))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), kind=st.sampled_from([None, None, *ILL, *NEUTRAL]))
    def settle(self, data: st.DataObject, kind: type[ProviderError] | None) -> None:
        ticket, *_ = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.subject.settle(ticket, kind("x") if kind else None, self.now)

    @precondition(lambda self: self.flying)
    @rule(kind=st.sampled_from(DEADLY))
    def die(self, kind: type[ProviderError]) -> None:
        self.subject.settle(self.flying.pop()[0], kind("x"), self.now)
        self.died = True

    @rule()
    def ask_nobody(self) -> None:
        self.subject.ask_nobody(self.now)
        assert not self.subject.is_asking(self.now)

    @precondition(lambda self: self.flying)
    @rule()
    def cancel(self) -> None:
        self.subject.abandon(self.flying.pop(0)[0])

    @invariant()
    def one_probe(self) -> None:
        if not hasattr(self, "subject"):
            return
        state = self.subject.state(self.now)
        hanging = [ticket for ticket, since, probe in self.flying if probe and self.now - since < 180]
        current = [ticket for ticket in hanging if ticket.era == self.subject._era]
        assert len(current) <= 1
        assert (state is State.DEAD) == self.died

    @invariant()
    def always_comes_back(self) -> None:
        if hasattr(self, "subject") and not self.died:
            for what in (None, 1, 2, 3):
                ready_in = self.subject.ready_in(self.now, what)
                assert ready_in is not None
                assert 0 <= ready_in <= 300


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestAnyHistory(AnyHistory.TestCase):
    """In any history: at most one probe, a bounded wait, and death is final."""
