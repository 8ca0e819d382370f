"""How far a run is: counted where the work is done, told a few times a second, and what of it is kept when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from embedctl.inputs import Source
from embedctl.planning.planner import Planner
from embedctl.records import Event, Inferred, Observer, Outcome, Phase, Progressed
from embedctl.runs.receipt import Spending, Unfinished
from embedctl.runs.slices import OpenSlices

EVERY_S = 0.25
"""How often it is told."""


class UnderWay:
    """Work that has no outcome yet and may take long: a block that is cut into texts, requests to a local model.

    Args:
        proceed: Raises when the run is told to stop.

    Attributes:
        rows: Of the block that is cut; `is_chunking` once rows are cut into chunks at all.
        texts, tokens: Of requests, that a local model is done with.
    """

    def __init__(self, proceed: Callable[[], None] = lambda: None) -> None:
        self._proceed = proceed
        self.is_chunking = False
        self.rows = self.texts = self.tokens = 0

    def cut(self, rows: int) -> None:
        """So many rows of the block are cut; may raise, and no more are."""
        self.is_chunking, self.rows = True, rows
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
        planned = slices.texts_published + self.planner.texts
        waiting = self.planner.asked - slices.texts_settled
        texts = max(0, planned - waiting + min(self.under_way.texts, waiting))
        within = self.under_way.rows if slices.rows_cut < slices.rows_planned else 0
        rows = slices.rows_cut + within
        share = self._share(rows)
        total, is_exact = self._total(planned, share)
        return Progressed(
            rows=slices.rows_cut if not planned else slices.rows_cut * texts // planned,
            rows_total=self.source.rows_hint,
            in_flight=self.in_flight(),
            tokens=self.spending.tokens + self.under_way.tokens,
            cost=self.spending.known_cost,
            phase=self._phase(planned),
            rows_read=rows,
            documents=self.source.is_document,
            share_read=share,
            texts=texts,
            texts_total=total,
            is_exact=is_exact,
        )

    def _phase(self, planned: int) -> Phase:
        if planned:
            return "embedding"
        return "chunking" if self.under_way.is_chunking else "reading"

    def _share(self, rows: int) -> float | None:
        """How much of the input is read and cut, 0 to 1."""
        if self.slices.ended:
            return 1.0
        total = self.source.rows_hint
        return min(1.0, rows / total) if total else self.source.share_read

    def _total(self, planned: int, share: float | None) -> tuple[int | None, bool]:
        """Texts of the whole input, and whether they are counted."""
        rows = self.source.rows_hint
        if share == 1.0:
            return planned, True
        if rows is not None and not self.under_way.is_chunking:  # a row is a text at most
            return rows - max(0, self.slices.rows_cut - planned), True
        return (round(planned / share), False) if planned and share else (None, False)

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
            cost = spending.cost / spending.texts * left
        return Unfinished(kept=kept, left=left, is_exact=now.is_exact, cost=None if cost is None else Decimal(cost))
