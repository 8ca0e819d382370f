"""How far a run is, for the person who waits: rich's progress on a terminal, now and then a line elsewhere.

It is shown from the beginning and goes on by itself, whether events come or not.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedctl import terminal

if TYPE_CHECKING:
    from embedctl.records import BatchesProgressed, Event, Paced, Phase, Progressed, Waiting

SHOWN_AFTER_S = 0.4
"""What takes less needs no progress: most reruns."""

FIRST_LINE_S = 5.0
"""Without a terminal, the first line; the pause doubles from line to line, up to LONGEST_PAUSE_S."""

LONGEST_PAUSE_S = 60.0

WAIT_S = 1.0
"""A wait that is shorter is over before it is read."""

WINDOW_S = 60.0
"""The pace is that of the last minute: limits, retries and caches change it."""

_SAMPLE_S = 1.0
_SPREADS = 2.0
"""Standard errors to each side of the time left: about 95 %."""

DOING = {
    "reading": "reading",
    "chunking": "chunking",
    "embedding": "embedding",
    "batches": "waiting for",
    "writing": "writing the output",
    "accounting": "taking usage into the ledger",
}


class Throughput:
    """Texts and tokens per second over the last WINDOW_S, and how much that varies."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def see(self, now: float, texts: int, tokens: int) -> None:
        """So many texts and tokens were done by now."""
        if len(self._samples) == 1 and texts == self._samples[0][1]:
            self._samples.clear()  # it begins when something is done: a model is loaded, a provider answers
        if self._samples and now - self._samples[-1][0] < _SAMPLE_S:
            return
        self._samples.append((now, texts, tokens))
        while now - self._samples[0][0] > WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    @property
    def per_second(self) -> tuple[float, float]:
        """(texts, tokens) per second; 0 while nobody knows."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (begin, texts_then, tokens_then), (end, texts, tokens) = self._samples[0], self._samples[-1]
        return (texts - texts_then) / (end - begin), (tokens - tokens_then) / (end - begin)

    def left(self, texts: int) -> tuple[float, float] | None:
        """Seconds for so many more texts, at least and at most; None while nobody can know."""
        mean, samples = self.per_second[0], list(self._samples)
        if mean <= 0 or len(samples) < 4:
            return None
        rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(samples)]
        spread = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1) / len(rates))
        slowest = max(mean - _SPREADS * spread, mean / 4)
        return texts / (mean + _SPREADS * spread), texts / slowest


class ProgressDisplay:
    """Shows what it is told, beside warnings and results, until the block ends.

    Args:
        clock: Seconds.
    """

    def __init__(self, *, shown: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = shown
        self._clock = clock
        self._pace, self._reading = Throughput(), Throughput()
        self._phase: Phase = "reading"
        self._last: Progressed | None = None
        self._batches: BatchesProgressed | None = None
        self._paced: dict[str, Paced] = {}
        self._waiting: dict[str, tuple[Waiting, float]] = {}  # and until when
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._go_on, name="progress", daemon=True)
        self._bar: Any = None
        self._note = ""

    def __enter__(self) -> ProgressDisplay:
        if self._shown:
            self._started = self._clock()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is shown any more, and the terminal is as it was."""
        self._over.set()
        with self._lock:
            bar, self._bar = self._bar, None
        if bar is not None:
            terminal.write_above(None)
            bar.stop()

    def notify(self, event: Event) -> None:
        """Take in what is shown from now on."""
        from embedctl import records

        if isinstance(event, records.PhaseBegan):
            self._phase = event.phase
        elif isinstance(event, records.Progressed):
            self._phase, self._last = event.phase, event
            if event.phase == "embedding":
                self._pace.see(self._clock(), event.texts, event.tokens)
            else:
                self._reading.see(self._clock(), event.rows_read, event.tokens)
        elif isinstance(event, records.BatchesProgressed):
            self._phase, self._batches = "batches", event
        elif isinstance(event, records.Paced):
            self._paced.pop(event.endpoint, None)
            if event.per_second is not None:
                self._paced[event.endpoint] = event
        elif isinstance(event, records.Waiting) and event.seconds >= WAIT_S:
            self._waiting[event.endpoint] = event, self._clock() + event.seconds

    def from_signal(self, text: str, *, last: bool = False) -> None:
        """A line from a signal handler, which takes no locks: below the bar while there is one.

        Args:
            last: The process ends with it.
        """
        if self._bar is None or last:
            terminal.from_signal(text, drawn=self._bar is not None)
        else:
            self._note = text

    def _go_on(self) -> None:
        if terminal.can_be_drawn_on(sys.stderr):
            if not self._over.wait(SHOWN_AFTER_S):
                self._draw()
            return
        pause = FIRST_LINE_S
        while not self._over.wait(pause):
            terminal.notice(", ".join([self.headline(), *self.details()]))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _draw(self) -> None:
        """Begin to draw; rich redraws by itself from then on."""
        bar = terminal.live_progress(self._described, (self._clock() - self._started))
        with self._lock:
            if self._over.is_set():
                return
            self._bar = bar
            bar.start()
            terminal.write_above(bar.above)

    def _described(self) -> tuple[str, float | None, list[str]]:
        """What is drawn: the headline, the share that is done, and the lines below."""
        return self.headline(), self.share, [", ".join(self.details()), *self.paced(), self._note]

    @property
    def share(self) -> float | None:
        """How much is done, 0 to 1; None while nobody can know."""
        at = self._last
        if self._phase in ("writing", "accounting"):
            return 1.0
        if self._phase == "batches":
            batches = self._batches
            return batches.lines_done / batches.lines if batches is not None and batches.lines else None
        if at is None or self._phase != "embedding":
            return None if at is None else at.share_read
        return None if at.texts_total is None else min(1.0, at.texts / max(1, at.texts_total))

    def headline(self) -> str:
        """What is done, and how far that is: "chunking 120 of 497 files", "embedding 6,331 of 20,000 texts, 31 %"."""
        at, doing = self._last, DOING[self._phase]
        if self._phase == "batches" and (batches := self._batches) is not None:
            many = "1 batch" if batches.batches == 1 else f"{batches.batches:,} batches"
            return f"{doing} {many}, {batches.lines_done:,} of {batches.lines:,} lines done"
        if at is None or self._phase in ("writing", "accounting"):
            return doing
        if self._phase == "embedding":
            of = "" if at.texts_total is None else f" of {'' if at.is_exact else 'about '}{at.texts_total:,}"
            told = f"{doing} {at.texts:,}{of} texts"
        else:
            told = f"{doing} {_rows(at)}"
        return told if self.share is None else f"{told}, {math.floor(100 * self.share)} %"

    def details(self) -> list[str]:
        """Rates, money, and the time that is left with its bounds."""
        at = self._last
        if self._phase == "batches":
            return self._of_batches()
        if at is None or self._phase in ("writing", "accounting"):
            return []
        return self._of_embedding(at) if self._phase == "embedding" else self._of_reading(at)

    def _of_embedding(self, at: Progressed) -> list[str]:
        from embedctl.records import format_cents

        texts, tokens = self._pace.per_second
        told = [f"{_rate(texts)} texts/s", f"{tokens:,.0f} tokens/s"] if texts else []
        told.append("cost unknown" if at.cost is None else f"{format_cents(at.cost)} USD")
        if at.texts_total is not None and (left := self._pace.left(at.texts_total - at.texts)) is not None:
            told.append(_time(left))
        elif at.in_flight:
            told.append(f"{at.in_flight} request{'' if at.in_flight == 1 else 's'} under way")
        if at.share_read is not None and at.share_read < 1:
            told.append(f"{_rows(at)} read")
        return [*told, _cutting(*at.cutting)] if at.cutting else told

    def _of_batches(self) -> list[str]:
        from embedctl.records import format_cents, format_duration

        if (batches := self._batches) is None:
            return []
        cost = "cost unknown" if batches.cost_at_risk is None else f"{format_cents(batches.cost_at_risk)} USD"
        return [f"{batches.texts:,} texts", f"{cost} at risk", f"since {format_duration(batches.seconds)}"]

    def _of_reading(self, at: Progressed) -> list[str]:
        """Of what is read, and of a dry run, which does nothing else."""
        from embedctl.records import format_cents

        rows = self._reading.per_second[0]
        told = [_cutting(*at.cutting)] if at.cutting else []
        told += [f"{_rate(rows)} {'files' if at.documents else 'rows'}/s"] if rows else []
        if at.texts:
            told += [f"{at.texts:,} texts so far", f"about {at.tokens:,} tokens"]
            told += [] if at.cost is None else [f"{format_cents(at.cost)} USD"]
        if at.share_read and (left := self._reading.left(round(at.rows_read / at.share_read) - at.rows_read)):
            told.append(_time(left))
        return told

    def paced(self) -> list[str]:
        """Who is held back, to what, and why."""
        paced = [words for one in list(self._paced.values()) if (words := terminal.sentence(one))]
        now = self._clock()
        waiting = [(one, until - now) for one, until in list(self._waiting.values()) if until > now]
        return [*paced, *(terminal.waiting(one, seconds) for one, seconds in waiting)]


def _rows(at: Progressed) -> str:
    of = f" of {at.rows_total:,}" if at.rows_total else ""
    return f"{at.rows_read:,}{of} {'files' if at.documents else 'rows'}"


def _cutting(name: str, characters: int) -> str:
    return f"cutting {terminal.safe(name)} ({characters / 1_000_000:,.1f} million characters)"


def _rate(per_second: float) -> str:
    return f"{per_second:,.{0 if per_second >= 10 else 1}f}"


def _time(left: tuple[float, float]) -> str:
    from embedctl.records import format_duration

    low, high = map(format_duration, left)
    return f"{low} left" if low == high else f"{low} to {high} left"
