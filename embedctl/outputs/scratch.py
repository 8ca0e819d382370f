"""An output whose state is a folder of one run alone: whoever comes later finds nothing of it on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embedctl.dataclass import dataclass
from embedctl.outputs.output import Existing, Facts, OutputRequest, Record
from embedctl.outputs.parquet import Layout


@dataclass
class ScratchOutput:
    """What such outputs answer alike; where slices go is their own.

    Attributes:
        state: In the hands of this run alone.
    """

    state: Path

    @property
    def lock_path(self) -> None:
        """Nobody comes back to it."""
        return

    @property
    def place(self) -> Path:
        """Nowhere but its state."""
        return self.state

    def own_files(self) -> tuple[Path, ...]:
        """None."""
        return ()

    def check_input(self, path: Path, label: str) -> None:
        """Nothing is replaced."""

    def existing(self, request: OutputRequest) -> Existing:
        """Nothing is here before it."""
        return Existing()

    def peek(self, request: OutputRequest) -> Existing:
        """Nothing is here before it."""
        return Existing()

    def part_count(self) -> int:
        """No parts."""
        return 0

    def holds_more_than_state(self) -> bool:
        """It has no folder of its own."""
        return False

    def finish(self, layout: Layout | None, facts: Facts, record: Callable[[], Record]) -> None:
        """Nothing is left to do."""

    def record(self, record: Record) -> None:
        """Nothing: nobody comes back to it."""

    def close(self) -> None:
        """Nothing is left open."""
