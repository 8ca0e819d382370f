"""An observer that keeps what it is told, and the sentences that a person would read."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedctl import terminal
from embedctl.records import AttemptEnded, Event, UsageEvent


@dataclass
class Kept:
    """Everything it was told.

    Attributes:
        told: Sentences said with -v only; `warned`: those said without.
    """

    events: list[Event] = field(default_factory=list)

    def notify(self, event: Event) -> None:
        self.events.append(event)

    @property
    def attempts(self) -> list[UsageEvent]:
        return [one.event for one in self.events if isinstance(one, AttemptEnded)]

    @property
    def told(self) -> list[str]:
        return [words for one in self.events if not terminal.is_warning(one) and (words := terminal.sentence(one))]

    @property
    def warned(self) -> list[str]:
        return [words for one in self.events if terminal.is_warning(one) and (words := terminal.sentence(one))]
