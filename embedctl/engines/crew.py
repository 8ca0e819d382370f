"""What a command knows of its workers: who has which shard, how far each is, and who died of what. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import field
from decimal import Decimal

from embedctl.dataclass import dataclass
from embedctl.errors import WorkersDied
from embedctl.records import Event, Phase, Progressed, RowCounts, ShardBegan, ShardEnded

MOST_DEATHS = 3
"""So many workers may die of one shard, or before they have one; then the job ends."""


@dataclass(slots=True)
class _Member:
    """One worker: its shard, and how far it is with it."""

    shard: ShardBegan | None = None
    progress: Progressed | None = None


@dataclass(slots=True)
class Crew:
    """The workers of a job, as they have told of themselves.

    Attributes:
        rows: Of each shard that is left to do, by its name; None: nobody has counted them.
        counts: Of the shards that they have done.
    """

    rows: Mapping[str, int | None]
    counts: RowCounts = field(default_factory=RowCounts)
    _members: dict[str, _Member] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)
    _texts: int = 0

    def hear(self, worker: str, event: Event) -> None:
        """A worker has told of itself."""
        member = self._members.setdefault(worker, _Member())
        if isinstance(event, ShardBegan):
            member.shard, member.progress = event, None
        elif isinstance(event, ShardEnded):
            if event.counts is not None:
                self.counts.add(event.counts)
                self._texts += max(event.counts.vectors + event.counts.failed, self._texts_of(member))
                self._deaths.pop(event.shard, None)
            member.shard = member.progress = None
        elif isinstance(event, Progressed):
            member.progress = event

    def ended(self, worker: str) -> None:
        """A worker has ended in order."""
        self._members.pop(worker, None)

    def shard_of(self, worker: str) -> str | None:
        """The shard that a worker has told of."""
        member = self._members.get(worker)
        return member.shard.shard if member is not None and member.shard is not None else None

    def died(self, worker: str, how: str, name: str) -> None:
        """A worker has died.

        Args:
            name: Of the shard that it had; "" when it had none.
            how: For messages: "by signal 9".

        Raises:
            WorkersDied: Several have, of the same shard, or before they took one.
        """
        self._members.pop(worker, None)
        self._deaths[name] += 1
        if self._deaths[name] >= MOST_DEATHS:
            if name:
                raise WorkersDied(
                    f"shard {name} has ended {MOST_DEATHS} workers, the last one {how}",
                    hint="a row of it may be too much for memory or a library: the system's log says more",
                )
            raise WorkersDied(
                f"{MOST_DEATHS} workers ended before they took a shard, the last one {how}",
                hint="run it without --workers to see why",
            )

    def told(self, done_before: int, *, cost: Decimal | None, tokens: int, documents: bool) -> Progressed:
        """How far they are together.

        Args:
            done_before: Rows of shards that were done before they began.
            cost, tokens: Of all of them.
        """
        members = list(self._members.values())
        at = [member.progress for member in members if member.progress is not None]
        known = [rows for rows in self.rows.values() if rows is not None]
        rows = done_before + self.counts.read + sum(one.rows for one in at)
        total = done_before + sum(known) if len(known) == len(self.rows) else None
        texts = self._texts + sum(one.texts for one in at)
        share = min(1.0, (rows - done_before) / (total - done_before)) if total and total > done_before else None
        return Progressed(
            rows=rows,
            rows_total=total,
            in_flight=sum(one.in_flight for one in at),
            tokens=tokens,
            cost=cost,
            phase="embedding" if texts else _phase(at),
            rows_read=done_before + self.counts.read + sum(one.rows_read for one in at),
            documents=documents,
            share_read=share,
            texts=texts,
            texts_total=round(texts / share) if share else None,
        )

    @staticmethod
    def _texts_of(member: _Member) -> int:
        return member.progress.texts if member.progress is not None else 0


def _phase(at: Collection[Progressed]) -> Phase:
    return "chunking" if any(one.phase == "chunking" for one in at) else "reading"
