"""A machine that costs by the hour: calls are charged their shares, the rest is left over, nothing is lost."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from embedctl.embedding.machine_time import MICROHOURS_PER_SECOND, MachineTime
from embedctl.ledger.prices.price import cost


def test_a_call_alone_is_charged_its_time() -> None:
    """An hour's call is charged an hour."""
    machine = MachineTime()
    began = machine.begin(100.0)

    assert machine.charge(machine.end(began, 3700.0), answered=True) == 1_000_000
    assert machine.rest() == 0


def test_calls_at_once_share_the_time() -> None:
    """Of two calls, the one under way alone for an hour and with the other for two is charged two, the other one."""
    machine = MachineTime()
    first = machine.begin(0.0)
    second = machine.begin(3600.0)

    assert machine.charge(machine.end(first, 3 * 3600.0), answered=True) == 2_000_000
    assert machine.charge(machine.end(second, 3 * 3600.0), answered=True) == 1_000_000
    assert machine.rest() == 0


def test_idle_time_is_left_over_once() -> None:
    """The hour between two calls is the rest; after the last call, and before the first, no time is counted."""
    machine = MachineTime()
    for start in (3600.0, 3 * 3600.0):
        machine.charge(machine.end(machine.begin(start), start + 3600), answered=True)

    assert machine.rest() == 1_000_000
    assert machine.rest() == 0


def test_what_failed_is_left_over() -> None:
    """The time of a call that was not answered is charged to none, and is in the rest."""
    machine = MachineTime()

    assert machine.charge(machine.end(machine.begin(0.0), 3600.0), answered=False) == 0
    assert machine.rest() == 1_000_000


def test_what_is_under_way_is_no_rest_yet() -> None:
    """Asked in between, the rest leaves out the shares of calls that are under way or not charged yet."""
    machine = MachineTime()
    long, short = machine.begin(0.0), machine.begin(0.0)
    share = machine.end(short, 3600.0)

    assert machine.rest() == 0
    assert machine.charge(share, answered=True) == 500_000
    assert machine.rest() == 0
    assert machine.charge(machine.end(long, 2 * 3600.0), answered=True) == 1_500_000
    assert machine.rest() == 0


def test_a_machine_that_was_never_asked_costs_nothing() -> None:
    """Without a call there is no time."""
    assert MachineTime().rest() == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 5000), st.floats(0, 900), st.booleans()), min_size=1, max_size=30
    ),  # start, length, answered
    st.decimals("0.000000001", 1000, places=9, allow_nan=False),
    st.floats(0, 1e6),
    st.sets(st.integers(0, 60), max_size=4),
)
def test_charges_and_rest_are_hours_times_rate(
    calls: list[tuple[float, float, bool]], per_hour: Decimal, origin: float, asked_at: set[int]
) -> None:
    """For any calls, overlapping as they like: what they and the rest come to is rate x time from first to last.

    Exactly, to the microhour that the whole is rounded to; whenever the rest was asked for in between.
    """
    machine = MachineTime()
    moments = sorted(
        [(origin + start, 0, index) for index, (start, _, _) in enumerate(calls)]
        + [(origin + start + length, 1, index) for index, (start, length, _) in enumerate(calls)]
    )
    began: dict[int, float] = {}
    charges: list[int] = []
    rests: list[int] = []
    for place, (now, ends, index) in enumerate(moments):
        if ends:
            charges.append(machine.charge(machine.end(began[index], now), answered=calls[index][2]))
        else:
            began[index] = machine.begin(now)
        if place in asked_at:
            rests.append(machine.rest())
    rests.append(machine.rest())

    whole = (moments[-1][0] - moments[0][0]) * MICROHOURS_PER_SECOND
    total = sum(cost(one, per_hour) for one in (*charges, *rests))
    assert min(*charges, *rests) >= 0
    assert abs(sum(charges) + sum(rests) - whole) <= (1.5 if asked_at else 0.501)
    assert total == cost(sum(charges) + sum(rests), per_hour)
