"""Small files are opened by one function that waits for nobody, reads no more than it must, and says whose they are."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from embedctl.storage import exposure_to_others, open_small, read_small


def trouble(path: Path, **about: bool) -> OSError:
    with pytest.raises(OSError) as caught:
        read_small(path, max_bytes=1000, **about)
    return caught.value


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    """A file of exactly the most bytes is read; one byte more is refused."""
    (tmp_path / "full").write_bytes(b"x" * 1000)
    (tmp_path / "over").write_bytes(b"x" * 1001)

    assert read_small(tmp_path / "full", max_bytes=1000) == b"x" * 1000
    assert trouble(tmp_path / "over").errno == errno.EFBIG


@pytest.mark.timeout(20)
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """A FIFO that nobody writes to is refused at once, also behind a link."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")

    assert "pipe or device" in str(trouble(tmp_path / "pipe").strerror)
    assert "pipe or device" in str(trouble(tmp_path / "link").strerror)


def test_what_is_no_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices, sockets and folders are refused in words."""
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(tmp_path)
        bound.bind("socket")

        assert "device" in str(trouble(tmp_path / "socket").strerror)
    assert "device" in str(trouble(Path("/dev/zero")).strerror)
    assert "folder" in str(trouble(tmp_path).strerror)
    assert trouble(tmp_path / "none").errno == errno.ENOENT


def test_what_becomes_a_pipe_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened is looked at again: its name may mean another by then."""
    (tmp_path / "file").write_text("settings")
    opened = os.open

    def swapped(path: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swapped)

    assert "pipe or device" in str(trouble(tmp_path / "file").strerror)


def test_a_link_is_followed_only_where_a_user_may_put_one(tmp_path: Path) -> None:
    """A user's own file may be a link; embedctl's state may not, and one that leads to itself never ends in a hang."""
    (tmp_path / "file").write_text("settings")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")

    assert read_small(tmp_path / "link", max_bytes=1000) == b"settings"
    assert "symbolic link" in str(trouble(tmp_path / "link", follow=False).strerror)
    assert trouble(tmp_path / "loop").errno == errno.ELOOP


def test_a_file_that_grows_is_cut_off(tmp_path: Path) -> None:
    """No more than one byte over the most is read, whatever the file's size says."""
    place = Path("/proc/self/maps")

    assert place.stat().st_size == 0
    with pytest.raises(OSError, match="larger"):
        read_small(place, max_bytes=10)


def test_whose_it_is(tmp_path: Path) -> None:
    """What was read carries mode and owner of that very file."""
    (tmp_path / "file").write_text("settings")
    (tmp_path / "file").chmod(0o640)
    found = open_small(tmp_path / "file", max_bytes=1000)

    assert (found.mode, found.owner, found.content) == (0o640, os.geteuid(), b"settings")


@pytest.mark.parametrize(
    ("mode", "owner", "command"),
    [
        (0o600, "me", None),
        (0o644, "me", None),
        (0o755, "root", None),
        (0o620, "me", "chmod go-w '/a b'"),
        (0o602, "me", "chmod go-w '/a b'"),
        (0o777, "root", "chmod go-w '/a b'"),
        (0o600, "another", f"chown {os.geteuid()} '/a b'"),
    ],
)
def test_whose_word_it_is(mode: int, owner: str, command: str | None) -> None:
    """Only this user and root may own or change what steers embedctl; the command that mends it is given."""
    owners = {"me": os.geteuid(), "root": 0, "another": 54321}
    found = exposure_to_others(Path("/a b"), mode, owners[owner])

    assert (found and found[1]) == command
