"""Where an order's output goes: found, made, locked, and left as it was when nothing came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

from embedctl import storage
from embedctl.errors import EmbedctlError, OutputRefused, WrongUsage
from embedctl.journal import Trust
from embedctl.journal.rescue import JOURNAL, LOCK
from embedctl.outputs import RECORD, STATE_FOLDER, FolderOutput, Output
from embedctl.outputs.file import FileOutput
from embedctl.outputs.shard import StoreOutput
from embedctl.outputs.stream import StreamOutput
from embedctl.records import Observer
from embedctl.runs import store_plan
from embedctl.runs.job import JobRequest
from embedctl.storage import Disk, locks
from embedctl.storage.locks import Lock
from embedctl.storage.named import check_local
from embedctl.storage.store import PROBES, OutputFolder, Store

OUTPUT_FOLDER_MODE = 0o777
"""Folders made for an output are the user's, as open as umask says, like the output itself; ours in it are not."""


def output(job: JobRequest, run_id: UUID, trust: Trust, disk: Disk, observer: Observer) -> Output:
    """The job's output, untouched.

    Args:
        trust: What of what lies there is believed.

    Raises:
        OutputRefused: Something else is in its place.
        WrongUsage: Its place is an address, and no path.
    """
    if job.kind == "stream":
        assert job.stream is not None  # noqa: S101 - the command gives it with this kind
        state = job.settings.paths.journal / str(run_id)
        return StreamOutput(state, job.stream, job.vectors, disk=disk, observer=observer)
    if job.store is not None:
        return StoreOutput(job.scratch / str(run_id))
    assert job.output is not None  # noqa: S101 - likewise
    if job.settings.options.shard is not None:
        raise WrongUsage(
            "--shard is for an output on a store", hint="-o s3://… (gs://, az://); a folder is one process's"
        )
    check_local(job.output)
    try:
        if job.kind == "file":
            _check_file(job.output)
            return FileOutput(job.output, trust, disk)
        _check_folder(job.output)
    except OSError as refusal:  # too long a name, no permission to look
        raise OutputRefused(
            f"cannot create {job.output}: {refusal.strerror}", hint="choose a place you may write to"
        ) from refusal
    return FolderOutput(job.output, trust, disk)


def shared_folder(folder: Path, *, workers: int) -> Store | None:
    """The folder as a store, where several workers write it, or wrote it: then it looks as an output on a store does.

    Raises:
        OutputRefused: It holds something else.
    """
    place = Path(os.path.abspath(folder))  # noqa: PTH100 - as it is named: links stay what they are
    try:
        begun = [place / store_plan.PLAN, place / store_plan.inputs_name(1), place / PROBES]
        if any(one.exists() for one in begun):  # the last two: its first command died before it had a plan
            check_local(folder)
            return OutputFolder(place)
        if workers == 1:
            return None
        check_local(folder)
        if folder.suffix == ".parquet":
            raise WrongUsage(f"--workers writes a folder of parts, not {folder}", hint="-o names a folder")
        _check_folder(folder)
        state = folder / STATE_FOLDER
        is_other = (state / RECORD).exists() or storage.paths_in(state / JOURNAL) or locks.is_held(state / LOCK)
    except OSError as refusal:
        if workers == 1:
            return None
        raise OutputRefused(
            f"cannot create {folder}: {refusal.strerror}", hint="choose a place you may write to"
        ) from refusal
    if is_other:
        raise OutputRefused(
            f"{folder} was begun without --workers, and looks as one process writes it",
            hint="go on without --workers, or choose another -o",
        )
    return OutputFolder(place)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise OutputRefused(f"{path} is a folder", hint="-o names a file; `batch run` writes folders")
    if path.exists() and not path.is_file():
        raise OutputRefused(f"{path} is a device or pipe", hint="-o names a file; -o - prints JSON lines")
    if path.is_symlink() and not path.exists():
        raise OutputRefused(f"{path} is a symbolic link to nowhere", hint="remove it, or choose another -o")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder} is a file", hint="-o names a folder; `embed` writes files")
    if folder.is_symlink() and not folder.exists():
        raise OutputRefused(f"{folder} is a symbolic link to nowhere", hint="remove it, or choose another -o")
    if folder.is_dir() and not (folder / STATE_FOLDER).is_dir() and storage.paths_in(folder):
        raise OutputRefused(
            f"{folder} is not empty and not embedctl's", hint="choose a new folder: nothing in it is touched"
        )


@contextmanager
def held(out: Output, job: JobRequest, disk: Disk) -> Iterator[Lock]:
    """Hold the output, and the job's name where it has one; nobody else may run either meanwhile. The output's lock.

    Folders made for it are removed again when the run raises and nothing came of it.

    Raises:
        Locked: A living process holds one of them.
        OutputRefused: It cannot be made.
    """
    made = [folder for folder in (out.state, *out.state.parents) if not os.path.isdir(folder)]  # noqa: PTH112
    with ExitStack() as stack:
        if job.job is not None and not job.is_worker:
            runs = job.settings.paths.runs
            disk.make_folder(runs)
            stack.enter_context(locks.hold(runs / f"{job.job}.lock", command=job.resume or ""))
        if out.resumable:
            disk.make_folder(out.state.parent, mode=OUTPUT_FOLDER_MODE)
        lock = stack.enter_context(locks.hold_folder(out.state, LOCK, make=disk.make_folder, command=job.resume or ""))
        try:
            yield lock
        except EmbedctlError:
            if made and not storage.paths_in(out.state / JOURNAL) and not out.holds_more_than_state():
                storage.remove_tree(disk, out.state)
                for folder in made[1:]:
                    disk.remove_folder(folder)
            raise
