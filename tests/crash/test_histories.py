"""Any history of kills, reruns, changed rows, full disks, other models and overwrites keeps the promises."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from embedctl.errors import EmbedctlError, Locked, OutputRefused
from embedctl.planning import slice as slices
from embedctl.runs.receipt import Receipt
from embedctl.storage import locks
from tests.support.crashed_runs import CrashingDisk, Small
from tests.support.crashing import RefusingDisk
from tests.support.processes import sentence
from tests.support.wire.client import Wire

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NUMBERS = st.integers(0, 30)


class Histories(RuleBasedStateMachine):
    """One output, through anything."""

    wire: Wire

    @initialize(kind=st.sampled_from(["folder", "file"]), numbers=st.lists(NUMBERS, min_size=1, max_size=12))
    def begin(self, kind: str, numbers: list[int]) -> None:
        self.wire.reset()
        self.small = Small(Path(tempfile.mkdtemp(prefix="embedctl-test-")), self.wire, kind)
        self.numbers = numbers
        self.whole = False  # whether the output is that of the input as it is
        self.made = False
        self.small.fill(self.texts)

    @property
    def texts(self) -> list[str]:
        return [sentence(number) for number in self.numbers]

    def teardown(self) -> None:
        if hasattr(self, "small"):
            shutil.rmtree(self.small.folder)

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=12))
    def change_rows(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.small.fill(self.texts)
        self.whole = False

    @rule(data=st.data())
    def remove_rows(self, data: st.DataObject) -> None:
        if len(self.numbers) > 1:
            del self.numbers[data.draw(st.integers(0, len(self.numbers) - 1))]
            self.small.fill(self.texts)
            self.whole = False

    @rule(at=st.integers(1, 90), torn=st.booleans())
    def die(self, at: int, torn: bool) -> None:
        safe, seen = self.small.safe(), len(self.wire.truth())
        disk = CrashingDisk(at, torn=torn)
        ended = self.small.run(disk)
        self.bought_nothing_again(safe, seen)
        self.whole = self.whole or (isinstance(ended, Receipt) and ended.error is None)
        self.made = self.made or self.whole

    @rule(at=st.integers(1, 90), torn=st.booleans())
    def disk_is_full(self, at: int, torn: bool) -> None:
        self.run_refused(RefusingDisk(at, torn=torn))

    @rule(at=st.integers(1, 90))
    def folder_is_read_only(self, at: int) -> None:
        self.run_refused(RefusingDisk(at, read_only=True))

    def run_refused(self, disk: RefusingDisk) -> None:
        """What the disk does not take ends the run with 73 or 74, unless the output is whole."""
        safe, seen = self.small.safe(), len(self.wire.truth())
        ended = self.small.run(disk)
        self.bought_nothing_again(safe, seen)

        assert isinstance(ended, Receipt | EmbedctlError)
        assert ended.exit_code in ((0, 73, 74) if disk.refused else (0,)), ended
        if ended.exit_code == 0:  # refused was at most its entry for `batch list`, or the way into the ledger
            self.small.check_rows(self.texts)
            self.whole = True
        self.made = self.made or self.whole

    @rule()
    def run(self) -> None:
        safe, seen = self.small.safe(), len(self.wire.truth())
        ended = self.small.run()

        assert isinstance(ended, Receipt), ended
        assert ended.exit_code == 0, ended.error
        self.bought_nothing_again(safe, seen)
        if self.whole:
            assert len(self.wire.truth()) == seen
        self.whole = self.made = True
        self.small.check_rows(self.texts)
        self.small.check_bill()
        self.small.check_no_leftovers()

    @rule()
    def other_model(self) -> None:
        if self.made:
            seen = len(self.wire.truth())

            assert isinstance(self.small.run(model="text-embedding-3-large"), OutputRefused)
            assert len(self.wire.truth()) == seen

    @rule()
    def second_process(self) -> None:
        self.small.state.mkdir(parents=True, exist_ok=True)
        with locks.hold(self.small.state / "lock", command="another"):
            assert isinstance(self.small.run(), Locked)

    @rule()
    def overwrite(self) -> None:
        assert isinstance(self.small.run(overwrite=True), Receipt)
        self.whole = self.made = True
        self.small.check_rows(self.texts)

    def bought_nothing_again(self, safe: set[str], seen: int) -> None:
        assert not safe & {h for one in self.wire.truth()[seen:] for h in one["text_hashes"]}

    @invariant()
    def output_is_never_half(self) -> None:
        """What is complete stays complete: once made, a reader finds an output that is whole."""
        if getattr(self, "made", False) and self.small.kind == "file":
            assert self.small.output.is_file()


Tell = Callable[[int, int], None]


@pytest.fixture
def tell(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Tells so many histories of so many steps."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)
    monkeypatch.setattr(Histories, "wire", wire, raising=False)

    def told(histories: int, steps: int) -> None:
        how = settings(
            max_examples=histories,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        run_state_machine_as_test(Histories, settings=how)

    return told


def test_histories(tell: Tell) -> None:
    """Rows once each with the right vector, nothing answered bought again, the bill bounded, no leftovers."""
    tell(15, 10)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_histories_long(tell: Tell) -> None:
    """The same, for many more histories."""
    tell(1000, 15)
