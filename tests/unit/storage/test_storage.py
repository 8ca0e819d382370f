"""Files appear whole or not at all, and never over another."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedctl.errors import OutputRefused, StorageFailed
from embedctl.records import uuid7
from embedctl.storage import DISK, Disk, paths_in, publish, remove_leftovers, replace, size_of
from embedctl.storage import disk as disk_module
from tests.support.crashing import Crashed, CrashingDisk


class WithoutLinks(Disk):
    """A file system without hard links, and without a rename that refuses, where `exclusive` is off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, exclusive: bool) -> None:
        def link(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        def rename(*_: object) -> bool:
            raise OSError(errno.EINVAL, "no such rename here")

        monkeypatch.setattr(os, "link", link)
        if not exclusive:
            monkeypatch.setattr(disk_module, "_rename_exclusively", rename)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_published_is_there_whole(tmp_path: Path) -> None:
    """A published file holds exactly its bytes, and nothing else is left in the folder."""
    put = publish(DISK, tmp_path / "part", b"abc" * 100_000)

    assert put
    assert (tmp_path / "part").read_bytes() == b"abc" * 100_000
    assert names(tmp_path) == ["part"]
    assert (tmp_path / "part").stat().st_mode & 0o777 == 0o600


def test_nothing_is_published_over_another_file(tmp_path: Path) -> None:
    """Publishing where something is already says so and leaves it as it is."""
    (tmp_path / "part").write_bytes(b"old")

    put = publish(DISK, tmp_path / "part", b"new")

    assert not put
    assert (tmp_path / "part").read_bytes() == b"old"
    assert names(tmp_path) == ["part"]


def test_a_dangling_link_counts_as_something(tmp_path: Path) -> None:
    """A symbolic link to nowhere is not written through."""
    (tmp_path / "part").symlink_to(tmp_path / "elsewhere")

    assert not publish(DISK, tmp_path / "part", b"new")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("exclusive", [True, False])
def test_publishing_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool) -> None:
    """Where links are not supported a rename that refuses an existing name takes their place."""
    disk = WithoutLinks(monkeypatch, exclusive=exclusive)

    assert publish(disk, tmp_path / "part", b"first")
    assert not publish(disk, tmp_path / "part", b"second")
    assert (tmp_path / "part").read_bytes() == b"first"
    assert names(tmp_path) == ["part"]


def test_a_writer_of_a_stream_is_published_whole(tmp_path: Path) -> None:
    """Content may be written piece by piece into a file opened for it, which may close it."""

    def content(file: object) -> None:
        file.write(b"head ")  # type: ignore[attr-defined]
        file.write(b"x" * (3 << 20))  # type: ignore[attr-defined]
        file.close()  # type: ignore[attr-defined]

    publish(DISK, tmp_path / "part", content)

    assert (tmp_path / "part").read_bytes() == b"head " + b"x" * (3 << 20)


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    """When the content cannot be made, there is neither a file nor a temporary one."""

    def content(file: object) -> None:
        raise StorageFailed("the source is gone")

    with pytest.raises(StorageFailed):
        publish(DISK, tmp_path / "part", content)

    assert names(tmp_path) == []


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("put", [publish, replace])
def test_a_crash_leaves_the_old_or_the_new(tmp_path: Path, put: object, torn: bool) -> None:
    """Whatever operation publishing or replacing dies in, the name holds nothing, the old bytes, or all the new."""
    for at in range(1, 20):
        target = tmp_path / f"{at}" / "part"
        target.parent.mkdir()
        if put is replace:
            target.write_bytes(b"old" * 1000)
        try:
            put(CrashingDisk(at, torn=torn), target, b"new" * 1000)  # type: ignore[operator]
            lived = True
        except Crashed:
            lived = False
        remove_leftovers(DISK, target.parent)
        before = b"old" * 1000 if put is replace else None
        now = target.read_bytes() if target.exists() else None

        assert now in ((b"new" * 1000,) if lived else (before, b"new" * 1000))
        assert names(target.parent) == ([] if now is None else ["part"])
        if lived:
            assert at > 4
            return
    raise AssertionError("it never lived")


def test_only_our_unfinished_files_are_removed(tmp_path: Path) -> None:
    """Leftovers are known by their name; a user's file is never touched."""
    for name in (".tmp-1", "tmp-2", ".hidden", "part"):
        (tmp_path / name).touch()

    assert remove_leftovers(DISK, tmp_path) == 1
    assert names(tmp_path) == [".hidden", "part", "tmp-2"]
    assert remove_leftovers(DISK, tmp_path / "nowhere") == 0


def test_what_a_folder_holds(tmp_path: Path) -> None:
    """Names that fit, hidden too, in order; a folder that is gone, or is none, holds nothing; a refusal is told."""
    for name in ("b.json", "a.json", ".c.json", "d.txt"):
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to("loop")

    assert [path.name for path in paths_in(tmp_path, "*.json")] == [".c.json", "a.json", "b.json"]
    assert len(paths_in(tmp_path)) == 5
    assert paths_in(tmp_path / "gone") == paths_in(tmp_path / "d.txt") == paths_in(tmp_path / "d.txt" / "below") == []
    with pytest.raises(OutputRefused, match=r"cannot look into .*loop: Too many levels of symbolic links"):
        paths_in(tmp_path / "loop")


def test_what_another_process_has_removed_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands that remove the same leftovers: what one has taken away is not there for the other, and no error."""
    for _ in range(2):
        left = tmp_path / f".tmp-{uuid7().hex}"
        left.mkdir()
        (left / "file").touch()
    looked = os.lstat

    def taken(path: object, **options: int | None) -> os.stat_result:
        monkeypatch.setattr(os, "lstat", looked)
        shutil.rmtree(left)
        return looked(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "lstat", taken)
    remove_leftovers(DISK, tmp_path)

    assert list(tmp_path.iterdir()) == []
    assert size_of(left / "file") == 0


def test_a_full_disk_is_said_with_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No space ends in StorageFailed that names the file and what to do, and no half file stays."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)

    with pytest.raises(StorageFailed, match=r"no space left to write .*tmp-") as caught:
        publish(DISK, tmp_path / "part", b"abc")
    assert caught.value.exit_code == 74
    assert "free some space" in (caught.value.hint or "")
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="files are synced by fcntl there")
@pytest.mark.parametrize("put", [publish, replace])
@pytest.mark.parametrize("call", ["pwritev", "fdatasync", "fsync"])
def test_what_the_disk_refuses_was_not_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, put: Callable[..., object]
) -> None:
    """A write or sync that fails is an error, never a file that counts as put."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageFailed, match="Input/output error"):
        put(DISK, tmp_path / "file", b"content")

    assert (tmp_path / "file").exists() == (call == "fsync")  # of the folder: the name is there, perhaps not for long


def test_a_short_write_is_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk that takes a few bytes at a time gets them all, in order."""
    whole = os.pwritev

    def few(fd: int, buffers: list[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "pwritev", few)
    publish(DISK, tmp_path / "part", bytes(range(256)))

    assert (tmp_path / "part").read_bytes() == bytes(range(256))


def test_a_real_limit_on_file_size_is_an_error_of_ours(tmp_path: Path) -> None:
    """A write the system cuts short and then refuses is StorageFailed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(StorageFailed):
            publish(DISK, tmp_path / "part", b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert names(tmp_path) == []


def test_a_place_one_may_not_write_to_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Creating where it is forbidden is exit 73, before anything was spent."""

    def forbidden(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", forbidden)

    with pytest.raises(OutputRefused, match="cannot create") as caught:
        publish(DISK, tmp_path / "part", b"abc")
    assert caught.value.exit_code == 73


def test_folders_are_private(tmp_path: Path) -> None:
    """State folders are made with what is missing above them, for their owner alone; existing ones stay."""
    DISK.make_folder(tmp_path / "a" / "b")
    DISK.make_folder(tmp_path / "a")

    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
