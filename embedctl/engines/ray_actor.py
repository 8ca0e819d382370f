"""What the actors of a job do: one keeps limiters, and what workers and the command tell each other; one the budget.

    worker ── ask, tell ─▶ SharedLimits         command ── news ─▶ what workers have reported
           ── report ────▶ events               command ── stop ─▶ every worker that waits in `orders`

An actor may die. Ray starts it anew: limiters begin empty, and of the budget all that was set aside counts as spent.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from embedctl.budgets.reservations import Reservations, SpendLimit
from embedctl.budgets.shared import SharedBudget
from embedctl.dataclass import dataclass
from embedctl.engines.shared_limits import SharedLimits, limiters
from embedctl.records import Event

BUDGET_FILE = "budget.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLimits:
    """What an actor begins with.

    Attributes:
        limits: As they stand when the job begins.
        shared: Arguments of the `SharedBudget`, where other runs spend from them too.
        also: Accounts that pay beside each request's workspace.
        folder: Of the command's machine, where the budget writes down what is set aside.
        counted: Segments of shards' journals that the limits have counted.
        workers: How many share it.
        longest_gate_s: `--max-wait`.
    """

    limits: Sequence[SpendLimit]
    shared: tuple[Any, ...] | None
    also: Sequence[str]
    folder: Path
    counted: Sequence[str]
    workers: int
    longest_gate_s: float

    def packed(self) -> bytes:
        """For `KeptActor`."""
        return pickle.dumps(self)


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker has begun.

    Attributes:
        number: Of its place: one that replaces it has the same.
    """

    number: int


class KeptActor:
    """Answers workers; not before the constructor has looked what an actor before it has left.

    Args:
        packed: `KeptLimits.packed`.
    """

    def __init__(self, packed: bytes) -> None:
        kept: KeptLimits = pickle.loads(packed)  # noqa: S301 - of the command, as this code is
        self._reports: list[tuple[str, Event | Joined]] = []
        self._news = asyncio.Event()
        self._orders = asyncio.Event()
        self._reason: str | None = None
        self._dead: list[str] = []
        self._gone: set[str] = set()
        self._heard: dict[str, float] = {}
        self._numbers: dict[int, str] = {}
        self._runs: set[str] = set()
        self._file = kept.folder / BUDGET_FILE
        self._own = [one for one in kept.limits if kept.shared is None or one.workspace_id is None]
        self._count_what_was_set_aside()
        purse = None if kept.shared is None else SharedBudget(*kept.shared)
        money = Reservations(_free, kept.limits, self, purse, also=kept.also)
        limiter = limiters(self, kept.longest_gate_s, time.monotonic)
        self._limits = SharedLimits(money, limiter, workers=kept.workers, counted=kept.counted)
        for run in self._runs:
            self._limits.join(run)  # what it has spent is in what was set aside

    # workers

    async def join(self, worker: str, number: int) -> dict[str, Any]:
        """A worker begins: as `SharedLimits.join` answers.

        Args:
            number: Whose dead process it replaces, where there was one of this number.
        """
        if number in self._numbers:
            await self.died(self._numbers[number])
        self._numbers[number] = worker
        self._reports.append((worker, Joined(number)))
        self._news.set()
        return self._joined(worker)

    def _joined(self, worker: str) -> dict[str, Any]:
        self._heard[worker] = time.monotonic()
        self._runs.add(worker)
        return self._limits.join(worker)

    async def ask(self, worker: str, method: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """The answer of `SharedLimits`; a worker that an actor before this one knew is known here too.

        Returns:
            Also `gone`: it was taken for dead, and may send nothing more.
        """
        if worker in self._gone:
            return {"gone": True}
        if worker not in self._heard:
            self._joined(worker)
        answer: dict[str, Any] = await getattr(self._limits, method)(worker, *arguments)
        if worker in self._gone:
            return {"gone": True}
        if method == "reserve" and not answer:
            self._write()
        return answer

    async def tell(self, worker: str, method: str, arguments: Sequence[Any]) -> None:
        """The same without an answer."""
        if worker in self._heard:
            await getattr(self._limits, method)(worker, *arguments)

    async def gone(self, worker: str) -> None:
        """A worker has ended, in order or not."""
        self._gone.add(worker)
        self._heard.pop(worker, None)
        await self._limits.gone(worker)

    async def died(self, worker: str) -> None:
        """A worker has ended without a word: its shard is free at once."""
        if worker not in self._gone:
            self._dead.append(worker)
            self._orders.set()
        await self.gone(worker)

    async def silent(self, seconds: float) -> list[str]:
        """Workers that have reported nothing for so long; they are gone."""
        now = time.monotonic()
        found = [worker for worker, at in self._heard.items() if now - at > seconds]
        for worker in found:
            await self.died(worker)
        return found

    # the command

    def report(self, worker: str, events: bytes) -> None:
        """A worker's events, pickled; none of them says that it lives."""
        if worker not in self._gone and worker not in self._heard:
            self._joined(worker)
        elif worker in self._heard:
            self._heard[worker] = time.monotonic()
        self._reports += [(worker, event) for event in pickle.loads(events)]  # noqa: S301 - of a worker of ours
        self._news.set()

    def notify(self, event: Any) -> None:
        """What happens here."""
        self._reports.append(("", event))
        self._news.set()

    async def news(self) -> bytes:
        """(worker, event) since the last time, pickled; waits until there is one."""
        await self._news.wait()
        self._news.clear()
        reports, self._reports = self._reports, []
        return pickle.dumps(reports)

    def stop(self, reason: str) -> None:
        """All workers end in order."""
        self._reason = reason
        self._orders.set()

    async def orders(self, seen: int) -> tuple[list[str], str | None]:
        """Waits until a worker has died beside the first `seen`, or all have to end; those, and why."""
        while len(self._dead) <= seen and self._reason is None:
            self._orders.clear()
            await self._orders.wait()
        return self._dead[seen:], self._reason

    # what was set aside

    def _write(self) -> None:
        """Before a worker hears that money is set aside: an actor after this one must know."""
        amounts = [str(one.spent + one.reserved) for one in self._own]
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(orjson.dumps({"amounts": amounts, "runs": sorted(self._runs)}))
        fresh.replace(self._file)

    def _count_what_was_set_aside(self) -> None:
        if not self._own or not self._file.exists():
            return
        found = orjson.loads(self._file.read_bytes())
        self._runs.update(found["runs"])
        for one, amount in zip(self._own, found["amounts"], strict=True):
            one.spent = max(one.spent, Decimal(amount))


def _free(endpoint: object) -> Decimal:
    """Nobody asks an actor for prices: workers say what it may come to."""
    return Decimal(0)
