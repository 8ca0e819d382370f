"""Under which ledger each segment of an output's journal was bought, so that an event is counted in exactly one.

A run that was killed may be continued under another ledger. What it had bought by then stays the first one's, although
its vectors remain in the journal: `ledger.json` beside the journal says whose each segment is, before the next run
makes segments of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path

import orjson

from embedctl.dataclass import dataclass
from embedctl.journal.commands import Spool
from embedctl.journal.rescue import OWNERS
from embedctl.journal.trust import Trust
from embedctl.ledger import spool as spools
from embedctl.records import UsageEvent, from_json
from embedctl.storage import DISK, Disk, read_small, replace

FILE = OWNERS

_MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class SegmentOwner:
    """A ledger and the spool in which its events wait; absolute paths."""

    ledger: str
    spool: str

    def spool_in(self, known: Mapping[str, Path]) -> Path | None:
        """Its spool, when it is one of the ledgers that are known and there; what a file says of a spool counts not.

        A ledger that was moved away, or removed, takes nothing any more.
        """
        spool = known.get(self.ledger)
        return spool if spool is not None and (Path(self.ledger).exists() or spool.exists()) else None


@dataclass(frozen=True, slots=True)
class SegmentOwners:
    """What `ledger.json` says.

    Attributes:
        now: Who pays for segments that are not among `earlier`.
        earlier: Segment → who pays, where that is another one.
    """

    now: SegmentOwner
    earlier: Mapping[str, SegmentOwner] = field(default_factory=dict)

    def of(self, segment_id: str) -> SegmentOwner:
        """Who pays for a segment."""
        return self.earlier.get(segment_id, self.now)


def bind(state: Path, payer: SegmentOwner, segment_ids: Iterable[str], trust: Trust, disk: Disk = DISK) -> set[str]:
    """From now on `payer` pays for new segments of a state folder; those that are there stay whose they are.

    Args:
        segment_ids: Of the segments that are there.
        trust: Knows the ledgers that a file may name.

    Returns:
        Other ledgers that some of them belong to.
    """
    found = _read(state) or SegmentOwners(payer)
    owners = {segment_id: found.of(segment_id) for segment_id in segment_ids}
    known = trust.spools() if owners else {}
    earlier = {
        segment_id: owner
        for segment_id, owner in owners.items()
        if owner.ledger != payer.ledger and owner.spool_in(known) is not None
    }
    bound = SegmentOwners(payer, earlier)
    if bound != _read(state):
        replace(disk, state / FILE, orjson.dumps(asdict(bound), option=orjson.OPT_INDENT_2))
    return {owner.ledger for owner in earlier.values()}


def routed(state: Path, give: Spool, trust: Trust, *, ledger: Path, disk: Disk = DISK) -> Spool:
    """`give`, but a segment that was bought under another ledger that is known goes to that one's spool.

    Args:
        ledger: The one that `give` spools for.
    """
    found = _read(state)

    def put(segment_id: str, events: Sequence[UsageEvent]) -> bool:
        owner = found.of(segment_id) if found else None
        if owner is None or owner.ledger == str(ledger.absolute()):
            return give(segment_id, events)
        spool = owner.spool_in(trust.spools())
        return give(segment_id, events) if spool is None else spools.publish(spool, segment_id, events, disk=disk)

    return put


def is_broken(state: Path) -> bool:
    """Whether something stands in place of the file that says nothing: segments go to the ledger that is used now."""
    return os.path.lexists(state / FILE) and _read(state) is None


def forget(state: Path, disk: Disk = DISK) -> None:
    """The journal is empty: nothing belongs to anybody."""
    disk.unlink(state / FILE)


def _read(state: Path) -> SegmentOwners | None:
    try:
        content = read_small(state / FILE, max_bytes=_MOST_BYTES, follow=False)
        return from_json(content, SegmentOwners)
    except (OSError, ValueError):
        return None
