"""What is told of waits and of the pace: once, and again when it is news."""

from __future__ import annotations

from embedctl.records import Event, Paced
from embedctl.routing.waits import NEWS_AFTER_S, OVER_AFTER_S, Waits
from embedctl.terminal import is_warning, sentence


class Kept:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)


def test_a_pace_is_told_when_it_begins_changes_and_ends() -> None:
    """A thousand answers at nearly the same pace are one line; half as much again, ten seconds later, is another."""
    kept, now = Kept(), [0.0]
    waits = Waits(kept, lambda: now[0])
    waits.pace("corp:e5", None, "requests")
    for tick in range(1000):
        now[0] = tick / 100
        waits.pace("corp:e5", 12 + tick / 1000, "requests")
    now[0] = NEWS_AFTER_S + 1
    waits.pace("corp:e5", 20.0, "requests")
    waits.pace("corp:e5", 200.0, "requests")
    now[0] = 2 * NEWS_AFTER_S + OVER_AFTER_S
    waits.pace("corp:e5", None, "requests")
    waits.pace("corp:e5", None, "requests")

    assert kept.events == [
        Paced("corp:e5", 12.0, "requests", first=True),
        Paced("corp:e5", 20.0, "requests", first=False),
        Paced("corp:e5", None, "requests", first=False),
    ]


def test_a_pace_in_words() -> None:
    """The first line says who refuses, to what rate, and that it rises; only that one is a warning."""
    events = [
        Paced("corp:e5", 12.3, "requests", first=True),
        Paced("google:g1", 0.05, "texts", first=True),
        Paced("corp:e5", 1.25, "requests", first=False),
        Paced("corp:e5", 0.002, "requests", first=False),
        Paced("corp:e5", None, "requests", first=False),
    ]

    assert [sentence(event) for event in events] == [
        "corp:e5 refuses more: 12 requests/s, rising",
        "google:g1 refuses more: 3.0 texts/min, rising",
        "corp:e5 refuses more: 1.2 requests/s, rising",
        "corp:e5 refuses more: 7 requests/h, rising",
        "corp:e5 refuses no more than single requests: nothing is held back",
    ]
    assert [is_warning(event) for event in events] == [True, True, False, False, False]
