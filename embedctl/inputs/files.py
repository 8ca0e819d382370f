"""Step 1, from arguments to files: paths, globs, folders, pipes; each is looked into before any work."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from embedctl.errors import InputInvalid, InputMissing, StorageFailed, WrongUsage
from embedctl.inputs import kinds
from embedctl.inputs.block import ReadOptions
from embedctl.inputs.decoding import CHUNK_BYTES, codec
from embedctl.inputs.kinds import KINDS, Kind

OURS = (".embeddings.parquet", ".failures.jsonl")  # in a folder, what an earlier run wrote is no input
STATE_FOLDER = "_embedctl"
"""A folder that holds one is an output of ours: its parts are no input, unless they are named."""

STDIN = "stdin"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file to read.

    Attributes:
        path: Where its bytes are; for a pipe, its spooled copy.
        label: Path relative to the input root, UTF-8 whatever the file system holds; the id of its text.
        gzipped: Whether it is decompressed while it is read.
        size_bytes: At the start; what is appended later is not read.
        digest: blake2b-128 of the content where it came through a pipe, else None.
        spooled: Unnamed copy of a pipe that is gone when this object is.
    """

    path: Path
    label: str
    kind: Kind
    gzipped: bool
    size_bytes: int
    mtime_ns: int
    digest: str | None = None
    spooled: object | None = None


def printable(path: Path | str) -> str:
    r"""A path as text; bytes that are no UTF-8 become `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def found(inputs: Sequence[str], options: ReadOptions, stdin: BinaryIO | None) -> list[InputFile]:
    """Every file the arguments mean, in their order, folders sorted, none twice; each looked into.

    Raises:
        InputMissing: Nothing there, a glob or folder without files, no permission.
        InputInvalid: A binary file, a device.
        WrongUsage: No input, or stdin asked for and not there.
    """
    if not inputs:
        raise WrongUsage("no input", hint="name a file, a folder, a glob, or - for stdin")
    codec(options.encoding)
    files: list[InputFile] = []
    seen = {os.path.realpath(path) for path in options.leave_out}
    for argument in inputs:
        if argument == "-":
            if "-" not in seen:
                files.append(_piped(stdin, STDIN, options))
            seen.add("-")
            continue
        for path, root in _paths(argument):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                files.append(_looked_into(path, root, options))
    if not files:
        raise InputMissing("the only input is the output of an earlier run", hint="name what is to be embedded")
    return _told_apart(files)


def _paths(argument: str) -> Iterator[tuple[Path, Path]]:
    """Each file an argument means, with the root its name is relative to."""
    path = Path(argument)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as missing:
        if not glob.has_magic(argument):
            raise _missing(argument, missing) from missing
    else:
        if stat.S_ISDIR(mode):
            yield from ((file, path) for file in _folder(path))
        else:
            yield path, path.parent
        return
    matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    ours = {folder for folder in {match.parent for match in matches} if _is_ours(folder)}
    files = [match for match in matches if match.parent not in ours and not match.is_dir()]
    if not files:
        raise InputMissing(
            f"no file matches {printable(argument)}", hint="check the pattern; ** matches folders of any depth"
        )
    root = Path(argument)
    while glob.has_magic(str(root)):
        root = root.parent
    yield from ((file, root) for file in files)


def _missing(argument: str, cause: Exception) -> InputMissing:
    name = printable(argument)
    if isinstance(cause, PermissionError):
        return InputMissing(f"no permission to read {name}", hint="check who owns it and its mode")
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, FileNotFoundError):
        return InputMissing(f"cannot read {name}: {cause.strerror}")
    return InputMissing(f"no such file: {name}", hint="paths are relative to the current folder")


def _folder(root: Path) -> list[Path]:
    """Files of known kinds below a folder, sorted; no hidden ones, none that a symbolic link leads outside to."""
    inside = os.path.realpath(root)
    files: list[Path] = []

    def refused(problem: OSError) -> None:
        raise _missing(str(problem.filename), problem) from problem

    for folder, subfolders, names in os.walk(root, onerror=refused):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and name != STATE_FOLDER and not _is_ours(Path(folder, name))
        )
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or name.endswith(OURS) or kinds.by_name(name)[0] is None:
                continue
            if path.is_symlink() and not _is_below(os.path.realpath(path), inside):
                continue
            if path.is_file():
                files.append(path)
    if not files:
        raise InputMissing(
            f"no inputs in folder {printable(root)}",
            hint=f"it is searched for {' '.join(sorted(KINDS))} (text also .gz); name other files one by one",
        )
    return files


def _is_ours(folder: Path) -> bool:
    return os.path.isdir(os.path.join(folder, STATE_FOLDER))  # noqa: PTH112, PTH118 - asked of every folder


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _looked_into(path: Path, root: Path, options: ReadOptions) -> InputFile:
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode):
            with path.open("rb") as pipe:
                return _piped(pipe, printable(path.name), options)
        if not stat.S_ISREG(status.st_mode):
            raise InputInvalid(f"{printable(path)} is a device or socket, not a file")
        with path.open("rb") as file:
            return _described(file, path, printable(os.path.relpath(path, root)), options, status)
    except OSError as refused:
        raise _missing(str(path), refused) from refused


def _described(file: BinaryIO, path: Path, label: str, options: ReadOptions, status: os.stat_result) -> InputFile:
    kind, gzipped = kinds.looked_at(file, label, options)
    return InputFile(
        path=path,
        label=label,
        kind=kind,
        gzipped=gzipped,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _piped(pipe: BinaryIO | None, label: str, options: ReadOptions) -> InputFile:
    """What a pipe holds, copied to a file that only its owner can read.

    Without a pipe, what an earlier run spooled under the same name is read again.
    """
    if pipe is None:
        path = options.spool / label if options.spool else None
        if path is None or not path.is_file():
            raise WrongUsage("stdin was asked for, but there is none", hint="pipe text into the command")
        spooled = None
    else:
        path = _copied(pipe, label, options.spool)
        spooled = _Spooled(path) if options.spool is None else None
    with path.open("rb") as file:
        digest = blake2b(digest_size=16)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        file.seek(0)
        looked = _described(file, path, label, options, path.stat())
    return replace(looked, digest=digest.hexdigest(), spooled=spooled)


def _copied(pipe: BinaryIO, label: str, folder: Path | None) -> Path:
    """Where the copy is; in a given folder it appears under `label`, whole."""
    try:
        handle, name = tempfile.mkstemp(prefix=".spool-", dir=folder)
        with os.fdopen(handle, "wb") as copy:
            shutil.copyfileobj(pipe, copy, CHUNK_BYTES)
        return Path(name) if folder is None else Path(name).replace(folder / label)
    except OSError as refused:
        raise StorageFailed(f"cannot keep what came through {label}: {refused.strerror}") from refused


class _Spooled:
    """An unnamed copy's life: the file goes when this object does, at the latest when the program ends."""

    def __init__(self, path: Path) -> None:
        weakref.finalize(self, path.unlink, missing_ok=True)


def _told_apart(files: list[InputFile]) -> list[InputFile]:
    """Files of one name in several roots get the path they were named by."""
    names = Counter(file.label for file in files)
    return [
        file if names[file.label] == 1 or file.digest else replace(file, label=printable(os.path.normpath(file.path)))
        for file in files
    ]
