"""Under which ledger each segment of an output's journal was bought, so that an event is counted in exactly one.

A run that was killed may be continued under another ledger. What it had bought by then stays the first one's, although
its vectors remain in the journal: `ledger.json` beside the journal says whose each segment is, before the next run
makes segments of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import orjson

from embedctl.journal.commands import Spool
from embedctl.ledger import spool as spools
from embedctl.records import UsageEvent
from embedctl.storage import DISK, Disk, replace

FILE = "ledger.json"


@dataclass(frozen=True, slots=True)
class SegmentOwner:
    """A ledger and the spool in which its events wait; absolute paths."""

    ledger: str
    spool: str

    @property
    def is_there(self) -> bool:
        """Whether there is anything of it: a ledger that was moved away, or removed, takes nothing any more."""
        return Path(self.ledger).exists() or Path(self.spool).exists()


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


def bind(state: Path, payer: SegmentOwner, segment_ids: Iterable[str], disk: Disk = DISK) -> set[str]:
    """From now on `payer` pays for new segments of a state folder; those that are there stay whose they are.

    Args:
        segment_ids: Of the segments that are there.

    Returns:
        Other ledgers that some of them belong to.
    """
    found = _read(state) or SegmentOwners(payer)
    owners = {segment_id: found.of(segment_id) for segment_id in segment_ids}
    earlier = {segment_id: owner for segment_id, owner in owners.items() if owner != payer and owner.is_there}
    bound = SegmentOwners(payer, earlier)
    if bound != _read(state):
        replace(disk, state / FILE, orjson.dumps(asdict(bound), option=orjson.OPT_INDENT_2))
    return {owner.ledger for owner in earlier.values()}


def routed(state: Path, give: Spool, *, ledger: Path, disk: Disk = DISK) -> Spool:
    """`give`, but a segment that was bought under another ledger goes to that one's spool.

    Args:
        ledger: The one that `give` spools for.
    """
    found = _read(state)

    def put(segment_id: str, events: Sequence[UsageEvent]) -> bool:
        owner = found.of(segment_id) if found else None
        if owner is None or owner.ledger == str(ledger.absolute()) or not owner.is_there:
            return give(segment_id, events)
        return spools.publish(Path(owner.spool), segment_id, events, disk=disk)

    return put


def forget(state: Path, disk: Disk = DISK) -> None:
    """The journal is empty: nothing belongs to anybody."""
    disk.unlink(state / FILE)


def _read(state: Path) -> SegmentOwners | None:
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=SegmentOwners)
    except (OSError, msgspec.MsgspecError):
        return None
