"""A run that is told to stop, or runs out of time, disk, threads or readers, loses nothing it has paid for."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from embedctl.errors import EmbedctlError, StorageFailed
from embedctl.planning import slice as slices
from embedctl.runs.receipt import Receipt
from embedctl.storage import Disk
from tests.support.crashed_runs import Small
from tests.support.processes import MODEL, ROOT, World, Zygote, sentence
from tests.support.serving import until
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(60)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5", "--concurrency", "2")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables(TEXTS, files=4)
    return found


def wait_for_requests(wire: Wire, count: int) -> None:
    for _ in range(3000):
        if len(wire.truth()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"only {len(wire.truth())} requests came")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("output", ["out dir", "out file.parquet"])
def test_stopped_by_a_signal(world: World, number: int, code: int, output: str) -> None:
    """Answers in flight are kept and said, nothing new is sent, and the hint is a command that finishes when pasted."""
    world.wire.plan(hold_after=4)
    command = ("embed",) if output.endswith("parquet") else ("batch", "run")
    child = world.start(*command, "in", "-o", output, "--json", *OPENAI)
    wait_for_requests(world.wire, 4)
    child.told_to_stop(number)
    world.wire.plan()
    ended = child.wait()
    asked = len(world.wire.truth())

    assert ended.code == code, ended.err
    assert (ended.receipt["exit_code"], ended.receipt["retryable"]) == (code, True)
    assert asked < 12
    assert len(world.safe(output)) == 5 * asked
    unfinished = ended.receipt["unfinished"]
    assert (unfinished["kept"], unfinished["left"], unfinished["is_exact"]) == (5 * asked, len(TEXTS) - 5 * asked, True)
    assert 0 < Decimal(unfinished["cost"]) < 1
    (run,) = world.run("batch", "list", "--json").receipt["runs"]
    assert (run["state"], run["rows"]) == ("interrupted", 5 * asked)
    assert world.ledger()["unknown"] == 0
    world.wire.plan()
    resume = shlex.split(ended.receipt["resume"])
    assert resume[0] == "embedctl"
    finished = world.run(*resume[1:])
    assert finished.code == 0, finished.err
    assert world.wire.billed() == 4 * len(TEXTS)
    world.check_rows(output, TEXTS, dimensions=8)


def test_stopped_twice(world: World) -> None:
    """A second signal ends the process without waiting for answers, still safe."""
    world.wire.plan(hold_after=0)
    child = world.start("batch", "run", "in", "-o", "out", *OPENAI)
    until(lambda: world.wire.held() > 0)
    child.told_to_stop()
    child.kill(signal.SIGTERM)
    ended = child.wait()

    assert ended.code == -signal.SIGTERM  # who waits for answers ends with 143
    world.wire.plan()
    assert world.run("batch", "run", "in", "-o", "out", *OPENAI).code == 0
    world.check_rows("out", TEXTS, dimensions=8)
    world.check_bill()


def test_stopped_while_it_waits(world: World) -> None:
    """A run that waits for a throttling provider stops at once: a test may not last as long as that wait."""
    world.wire.plan(faults={"rate": {"p": 1.0, "form": "seconds", "seconds": 300}})
    child = world.start("batch", "run", "in", "-o", "out", *OPENAI)
    wait_for_requests(world.wire, 1)
    time.sleep(0.3)
    child.kill(signal.SIGINT)

    assert child.wait().code == 130


def test_deadline(world: World) -> None:
    """--deadline stops the sending by the clock: exit 75, resumable."""
    world.wire.plan(latency_s=2.0)  # twelve requests, two at a time: the half of them
    ended = world.run("batch", "run", "in", "-o", "out", "--deadline", "6s", "--json", *OPENAI)

    assert ended.code == 75, ended.err
    assert ended.receipt["resume"].startswith("embedctl batch run in -o out")
    assert 0 < len(world.wire.truth()) < 12
    world.wire.plan()
    assert world.run("batch", "run", "in", "-o", "out", *OPENAI).code == 0
    assert world.wire.billed() == 4 * len(TEXTS)


def test_reader_went_away(world: World) -> None:
    """`-o - | head -1`: the pipe's end is the end, and what was spent is in the ledger."""
    command = [sys.executable, "-m", "embedctl", "embed", "in", "-o", "-", "--no-cache", *OPENAI]
    environment = {**world.environment, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=world.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        code = process.wait(120)

    assert code == 141
    assert world.ledger()["confirmed"] == world.wire.billed() > 0
    assert list((world.home / "journal").iterdir()) == []


class FullDisk(Disk):
    """Has room for so many more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd, buffers, offset, path):  # type: ignore[no-untyped-def]
        self.room -= sum(map(len, map(bytes, buffers)))
        if self.room < 0:
            raise StorageFailed(f"no space left to write {path}", hint=os.strerror(errno.ENOSPC))
        return super().write(fd, buffers, offset, path)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_disk_full(tmp_path: Path, wire: Wire, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the disk is full, the run ends with 74; with room again it goes on, and nothing is bought twice."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)
    codes = set()
    for room in range(0, 60_000, 12_000):
        wire.reset()
        small = Small(tmp_path / str(room), wire, kind)
        small.fill(TEXTS[:18])
        ended = small.run(FullDisk(room))
        codes.add(ended.exit_code if isinstance(ended, Receipt | EmbedctlError) else None)
        safe, seen = small.safe(), len(wire.truth())
        assert isinstance(small.run(), Receipt)
        assert not safe & {h for one in wire.truth()[seen:] for h in one["text_hashes"]}
        small.check_rows(TEXTS[:18])
        small.check_bill()

    assert 74 in codes
    assert codes <= {0, 74}


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/sys/kernel").is_dir(), reason="root may write anywhere")
def test_read_only_folder(world: World) -> None:
    """Where nothing may be created the run ends with 73 before anything is sent."""
    place = Path("/sys/kernel/out") if os.geteuid() == 0 else world.folder / "locked" / "out"
    if os.geteuid() != 0:
        place.parent.mkdir(mode=0o500)
    ended = world.run("batch", "run", "in", "-o", place, *OPENAI)

    assert ended.code == 73, ended.err
    assert world.wire.truth() == []


class NoThreads(ThreadPoolExecutor):
    """Where the system gives no more threads, as at the limit of a container."""

    def submit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        raise RuntimeError("can't start new thread")


@pytest.mark.timeout(240)
def test_no_thread_left(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal whose helper thread cannot be started keeps nobody waiting: the run ends, and the next one goes on."""
    wire.reset()
    small = Small(tmp_path, wire)
    small.fill(TEXTS[:9])
    with monkeypatch.context() as patch:
        patch.setattr("embedctl.journal.writer.ThreadPoolExecutor", NoThreads)
        with pytest.raises(RuntimeError, match="new thread"):
            small.run()
    safe, seen = small.safe(), len(wire.truth())

    assert safe
    assert isinstance(small.run(), Receipt)
    assert not safe & {h for one in wire.truth()[seen:] for h in one["text_hashes"]}
    small.check_rows(TEXTS[:9])
    small.check_bill()
