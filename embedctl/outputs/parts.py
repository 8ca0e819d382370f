"""Parts on a store, as log, `done` and manifest name them."""

from __future__ import annotations

from uuid import UUID

from embedctl.dataclass import dataclass
from embedctl.records import RowCounts, minted_at


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPart:
    """A part, as log, `done` and manifest name it.

    Attributes:
        number: Of its slice in the shard.
        id: Of this writing of it; stands in its metadata, too.
        counts: What became of the rows that were read for it; `rows_hash` is theirs.
        failures: The object that lists those which failed; None: none did.
    """

    name: str
    number: int
    id: str
    rows: int
    bytes: int
    sha256: str
    counts: RowCounts
    rows_hash: str | None = None
    failures: str | None = None

    @property
    def made_at(self) -> float | None:
        """When it was made, in Unix seconds; None where its id does not tell."""
        try:
            return minted_at(UUID(self.id))
        except (ValueError, TypeError, AttributeError):
            return None
