"""How far a run is: counted where the work is done, told a few times a second, and what of it is kept when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from embedctl.dataclass import dataclass
from embedctl.inputs import Source
from embedctl.planning.planner import Planner
from embedctl.records import Event, Inferred, Observer, Outcome, Phase, Progressed
from embedctl.runs.receipt import Spending, Unfinished
from embedctl.runs.slices import OpenSlices

EVERY_S = 0.25
"""How often it is told."""


LARGE = 1_000_000
"""Characters of a row whose cutting takes so long, seconds, that it is named meanwhile."""


def large(name: str, characters: int) -> tuple[str, int] | None:
    """A row that is cut now, as `Progressed.cutting`; None where it takes no time."""
    return (name, characters) if characters >= LARGE else None


class UnderWay:
    """Work that has no outcome yet and may take long: rows that are cut into texts, requests to a local model.

    Args:
        proceed: Raises when the run is told to stop.

    Attributes:
        rows: Of the input, that are cut; `is_chunking` once rows are cut into chunks at all.
        cutting: See `Progressed`.
        texts, tokens: Of requests, that a local model is done with.
    """

    def __init__(self, proceed: Callable[[], None] = lambda: None) -> None:
        self._proceed = proceed
        self.is_chunking = False
        self.cutting: tuple[str, int] | None = None
        self.rows = self.texts = self.tokens = 0

    def cut(self, rows: int, name: str, characters: int) -> None:
        """So many rows of the input are cut, and this one is next; may raise, and no more are."""
        self.is_chunking, self.rows = True, rows
        self.cutting = large(name, characters)
        self._proceed()

    def notify(self, event: Event) -> None:
        """Count what a local model has done."""
        if isinstance(event, Inferred):
            self.texts += event.texts
            self.tokens += event.tokens

    def settled(self, outcome: Outcome) -> None:
        """Texts of a request have their outcome."""
        self.texts = max(0, self.texts - len(outcome.targets))
        self.tokens = max(0, self.tokens - (outcome.answer.usage_tokens if outcome.answer else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        in_flight: Requests under way.
    """

    source: Source
    planner: Planner
    slices: OpenSlices
    under_way: UnderWay
    spending: Spending
    in_flight: Callable[[], int]

    def told(self) -> Progressed:
        """How far it is now."""
        slices = self.slices
        begun = slices.texts_published + self.planner.texts
        waiting = self.planner.asked - slices.texts_settled
        texts = max(0, begun - waiting + min(self.under_way.texts, waiting))
        rows, planned = slices.planned
        total, is_exact = self._total(begun, rows, planned)
        rows_read = max(rows, self.under_way.rows)
        return Progressed(
            rows=rows if not begun else rows * min(texts, begun) // begun,
            rows_total=self.source.rows_hint,
            in_flight=self.in_flight(),
            tokens=self.spending.tokens + self.under_way.tokens,
            cost=self.spending.known_cost,
            phase=self._phase(begun),
            rows_read=rows_read,
            documents=self.source.is_document,
            share_read=self._share(rows_read),
            texts=texts,
            texts_total=total,
            is_exact=is_exact,
            cutting=self.under_way.cutting,
        )

    def _phase(self, begun: int) -> Phase:
        if begun:
            return "embedding"
        return "chunking" if self.under_way.is_chunking else "reading"

    def _share(self, rows: int) -> float | None:
        """How much of the input is so many rows, 0 to 1."""
        if self.slices.ended:
            return 1.0
        total = self.source.rows_hint
        return min(1.0, rows / total) if total else self.source.share_read

    def _total(self, begun: int, rows: int, planned: int) -> tuple[int | None, bool]:
        """Texts of the whole input, and whether they are counted.

        Args:
            begun: Texts that there are.
            rows: That have become `planned` texts.
        """
        hint, share = self.source.rows_hint, self._share(rows)
        if self.slices.ended or (share == 1.0 and begun == planned):
            return begun, True
        if hint is not None and not self.under_way.is_chunking:  # a row is a text at most
            return hint - max(0, rows - planned), True
        return (max(begun, round(planned / share)), False) if planned and share else (None, False)

    async def tell(self, observer: Observer) -> None:
        """Tell it until cancelled: whoever watches sees that something is done also while no answer comes."""
        while True:
            observer.notify(self.told())
            await asyncio.sleep(EVERY_S)

    def unfinished(self) -> Unfinished:
        """What a run that stops now has kept, and what is left to do."""
        now, kept = self.told(), self.slices.kept
        refused = self.slices.texts_refused + self.planner.refused
        left = None if now.texts_total is None else max(0, now.texts_total - refused - kept)
        spending, cost = self.spending, None
        if left and spending.texts and spending.cost and not spending.unpriced:
            cost = round(spending.cost / spending.texts * left, 10)
        return Unfinished(kept=kept, left=left, is_exact=now.is_exact, cost=cost)
