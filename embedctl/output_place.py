"""Where an order's output goes: found, made, locked, and left as it was when nothing came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

from embedctl import locks, storage
from embedctl.errors import EmbedctlError, OutputRefused
from embedctl.order import Order
from embedctl.output import STATE_FOLDER, FolderOutput, Output
from embedctl.output_file import FileOutput
from embedctl.output_stream import StreamOutput
from embedctl.storage import Disk

LOCK = "lock"


def output(
    order: Order, run_id: UUID, disk: Disk, warned: Callable[[str], None]
) -> FileOutput | FolderOutput | StreamOutput:
    """The order's output, untouched.

    Raises:
        OutputRefused: Something else is in its place.
    """
    if order.kind == "stream":
        assert order.stream is not None  # noqa: S101 - the command gives it with this kind
        state = order.settings.paths.journal / str(run_id)
        return StreamOutput(state, order.stream, order.vectors, disk=disk, told=warned)
    assert order.output is not None  # noqa: S101 - likewise
    if order.kind == "file":
        if os.path.isdir(order.output):  # noqa: PTH112 - False for a name that cannot be, too
            raise OutputRefused(f"{order.output} is a folder", hint="-o names a file; `batch run` writes folders")
        return FileOutput(order.output, disk)
    _check_folder(order.output)
    return FolderOutput(order.output, disk)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder} is a file", hint="-o names a folder; `embed` writes files")
    if folder.is_dir() and not (folder / STATE_FOLDER).is_dir() and any(folder.iterdir()):
        raise OutputRefused(
            f"{folder} is not empty and not embedctl's", hint="choose a new folder: nothing in it is touched"
        )


@contextmanager
def held(out: Output, order: Order, disk: Disk) -> Iterator[None]:
    """Hold the output, and the job's name where it has one; nobody else may run either meanwhile.

    Folders made for it are removed again when the run raises.

    Raises:
        Locked: A living process holds one of them.
        OutputRefused: It cannot be made.
    """
    made = [folder for folder in (out.state, *out.state.parents) if not os.path.isdir(folder)]  # noqa: PTH112
    with ExitStack() as stack:
        if order.job is not None:
            runs = order.settings.paths.runs
            disk.make_folder(runs)
            stack.enter_context(locks.hold(runs / f"{order.job}.lock", command=order.resume or ""))
        stack.enter_context(_locked(out.state, order, disk))
        try:
            yield
        except EmbedctlError:
            if made and not any((out.state / "journal").glob("*")):
                storage.remove_tree(disk, out.state)
                for folder in made[1:]:
                    disk.remove_folder(folder)
            raise


def _locked(state: Path, order: Order, disk: Disk) -> locks.Lock:
    """The lock of a state folder; the folder may be removed under our feet by one who is done with it."""
    while True:
        disk.make_folder(state)
        try:
            return locks.hold(state / LOCK, command=order.resume or "")
        except OutputRefused:
            if state.is_dir():
                raise
