"""A lock is held by the living, and says by whom."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedctl.errors import Locked, OutputRefused
from embedctl.storage import locks
from embedctl.storage.locks import hold, is_abandoned, is_held

HOLDER = """
import sys, time
from pathlib import Path
from embedctl.storage.locks import hold
lock = hold(Path(sys.argv[1]), command="batch run nightly")
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    """A held lock is exit 75, and the message names process, host, start and command."""
    path = tmp_path / "lock"
    with holder(path) as process:
        with pytest.raises(Locked) as caught:
            hold(path)
        held = is_held(path)

    assert caught.value.exit_code == 75
    assert f"process {process.pid} on " in caught.value.message
    assert "'batch run nightly'" in caught.value.message
    assert held


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    """After SIGKILL the lock can be taken at once, and its file is still there."""
    path = tmp_path / "lock"
    with holder(path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        held = is_held(path)
        lock = hold(path, command="me")

    assert not held
    assert is_held(path)
    lock.release()
    assert path.exists()
    assert not is_held(path)


def test_a_lock_just_made_is_nobody_s_estate(tmp_path: Path) -> None:
    """Abandoned is what was held, and is not: no file that a process has made and not locked yet, and none at all."""
    path = tmp_path / "lock"
    seen = [is_abandoned(path)]
    path.touch()  # as far as `hold` has come between two of its steps
    seen.append(is_abandoned(path))
    with holder(path) as process:
        seen.append(is_abandoned(path))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen.append(is_abandoned(path))

    assert seen == [False, False, False, True]


def test_two_holds_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    """A lock is not held twice, not even by the process that has it."""
    with hold(tmp_path / "lock"), pytest.raises(Locked, match=f"process {os.getpid()}"):
        hold(tmp_path / "lock")

    hold(tmp_path / "lock").release()


def test_waiting_takes_the_lock_when_it_becomes_free(tmp_path: Path) -> None:
    """With `wait_s` a held lock is asked for again until it is free."""
    first = hold(tmp_path / "lock")
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 5:
            first.release()

    lock = hold(tmp_path / "lock", wait_s=10, clock=lambda: len(naps), sleep=sleep)

    assert len(naps) == 5
    lock.release()


def test_waiting_ends(tmp_path: Path) -> None:
    """After `wait_s` a lock that is still held is Locked."""
    naps = []
    with hold(tmp_path / "lock"), pytest.raises(Locked):
        hold(tmp_path / "lock", wait_s=10, clock=lambda: len(naps), sleep=naps.append)

    assert len(naps) == 10


def test_a_lock_whose_folder_was_removed_is_asked_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who got the lock of a removed file holds nothing: the file at the name counts."""
    folder = tmp_path / "state"
    folder.mkdir()
    really_open, opened = locks._open, []

    def open_before_it_goes(path: Path) -> int:
        opened.append(really_open(path))
        if len(opened) == 1:
            shutil.rmtree(folder)
            folder.mkdir()
        return opened[-1]

    monkeypatch.setattr(locks, "_open", open_before_it_goes)
    lock = hold(folder / "lock")

    with pytest.raises(Locked):
        hold(folder / "lock")
    lock.release()


def test_garbage_in_the_file_is_no_obstacle(tmp_path: Path) -> None:
    """A lock file with other content still locks, and the message does without a name."""
    path = tmp_path / "lock"
    with hold(path):
        path.write_bytes(b"\xff[1, 2")
        with pytest.raises(Locked, match="another process holds"):
            hold(path)


def test_a_lock_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Without its folder, or through a symbolic link, there is no lock; asking who holds it says nobody."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    for path in (tmp_path / "nowhere" / "lock", tmp_path / "link"):
        with pytest.raises(OutputRefused, match="cannot create the lock"):
            hold(path)
        assert not is_held(path)
