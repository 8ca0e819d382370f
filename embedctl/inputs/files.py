"""Step 1, from arguments to files: paths, globs, folders, pipes; each is looked into before any work."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, InputInvalid, InputMissing, StorageFailed, WrongUsage
from embedctl.inputs import kinds, raw, stored
from embedctl.inputs.block import InputFile, ReadOptions, StoredInput
from embedctl.inputs.decoding import CHUNK_BYTES, codec
from embedctl.inputs.formats import FORMATS, SUFFIXES
from embedctl.inputs.left_out import LeftOut
from embedctl.inputs.stored import OURS, STATE_FOLDER
from embedctl.storage.store_url import WRITABLE, is_store_url

STDIN = "stdin"
LOOKS_AT_ONCE = 16
"""Objects of a store that are looked into at a time."""


def printable(path: Path | str) -> str:
    r"""A path as text; bytes that are no UTF-8 become `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def place(file: InputFile) -> str:
    """Where a file is, as text."""
    return printable(file.path) if file.stored is None else file.stored.url


def found(inputs: Sequence[str], options: ReadOptions, stdin: BinaryIO | None, left_out: LeftOut) -> list[InputFile]:
    """Every file the arguments mean, in their order, folders sorted, none twice; each looked into.

    Args:
        left_out: Gets what a folder or a glob holds and is not read, and with `on_bad_file` what cannot be read.

    Raises:
        InputMissing: Nothing there, a glob or folder without files, no permission.
        InputInvalid: A binary file that is named, a device.
        WrongUsage: No input, or stdin asked for and not there.
    """
    if not inputs:
        raise WrongUsage("no input", hint="name a file, a folder, a glob, or - for stdin")
    codec(options.encoding)
    files: list[InputFile] = []
    refused: EmbedctlError | None = None
    seen = {os.path.realpath(path) for path in options.leave_out}
    for argument in inputs:
        if argument == "-":
            if "-" not in seen:
                files.append(_piped(stdin, STDIN, options))
            seen.add("-")
            continue
        meant = _stored if is_store_url(argument) else _local
        for one in meant(argument, options, left_out, seen):
            try:
                files.append(one.look())
            except kinds.Binary as error:
                if one.is_named:
                    raise
                refused = refused or error
                left_out.add(one.name, "binary", error.message)
            except (InputInvalid, InputMissing) as error:
                if options.on_bad_file == "fail" or isinstance(error.__cause__, FileNotFoundError):
                    raise
                refused = refused or error
                left_out.add(one.name, "unreadable", error.message)
    if not files and refused is not None:
        raise refused
    if not files:
        raise InputMissing("the only input is the output of an earlier run", hint="name what is to be embedded")
    return _told_apart(files)


@dataclass(frozen=True, slots=True)
class _Meant:
    """A file that an argument means.

    Attributes:
        name: For messages.
        look: Looks into it.
    """

    name: str
    is_named: bool
    look: Callable[[], InputFile]


def _local(argument: str, options: ReadOptions, left_out: LeftOut, seen: set[str]) -> Iterator[_Meant]:
    """Files of this machine that are not in `seen`, and then are."""
    if argument.lower().startswith("file://"):
        argument = unquote(argument[len("file://") :].removeprefix("localhost"))
    for path, root, is_named in _paths(argument, options, left_out):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield _Meant(printable(path), is_named, partial(_looked_into, path, root, options, is_named=is_named))


def _stored(argument: str, options: ReadOptions, left_out: LeftOut, seen: set[str]) -> Iterator[_Meant]:
    """Objects of a store that are not in `seen`, and then are; as each look is a request, several are made at once."""
    with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="embedctl-look") as looking:
        try:
            waiting: list[_Meant] = []
            for one, label, is_named in stored.listed(argument, options, left_out):
                if one.url in seen:
                    continue
                seen.add(one.url)
                look = looking.submit(_looked_into_stored, one, label, options, is_named=is_named)
                waiting.append(_Meant(one.url, is_named, look.result))
            yield from waiting
        finally:
            looking.shutdown(cancel_futures=True)


def _looked_into_stored(one: StoredInput, label: str, options: ReadOptions, *, is_named: bool) -> InputFile:
    file = InputFile(
        path=Path(one.name), label=label, kind="", compression=None, size_bytes=one.size, mtime_ns=0, is_named=is_named,
        partitions=_partitions(Path(one.name)), stored=one,
    )  # fmt: skip
    kind, compression = kinds.by_name(label, options)
    if kind is None or FORMATS[kind].IS_TEXT:
        with raw.opened(file, ahead=kinds.SNIFF_BYTES) as content:
            kind, compression = kinds.looked_at(content, label, options)
    return replace(file, kind=kind, compression=compression)


def _paths(argument: str, options: ReadOptions, left_out: LeftOut) -> Iterator[tuple[Path, Path, bool]]:
    """Each file an argument means, with the root its name is relative to, and whether it is named itself.

    What is named is the user's word, a link too; what a folder or a glob finds is not, and stays inside of its root.
    """
    path = Path(argument)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as missing:
        if not glob.has_magic(argument):
            raise _missing(argument, missing) from missing
    else:
        if stat.S_ISDIR(mode):
            yield from ((file, path, False) for file in _folder(path, options, left_out))
        else:
            yield path, path.parent, True
        return
    folder = Path(argument)
    while glob.has_magic(str(folder)):
        folder = folder.parent
    root = _FolderRoot(folder, left_out)
    parts = Path(argument).relative_to(folder).parts
    matches = sorted(set(_matches(folder, parts, root)))
    ours = {parent for parent in {match.parent for match in matches} if _is_ours(parent)}
    files = [match for match in matches if match.parent not in ours]
    if not files:
        hint = "check the pattern; ** matches folders of any depth"
        if root.outside:
            hint = (
                f"{printable(root.outside[-1])} is a link that leads out of {printable(folder)}: name what it leads to"
            )
        raise InputMissing(f"no file matches {printable(argument)}", hint=hint)
    yield from ((file, folder, False) for file in files)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a folder holds under one name; folder and file are what a link leads to."""

    path: Path
    is_link: bool
    is_folder: bool
    is_file: bool


class _FolderRoot:
    """A folder whose links are followed only to files below it; those that lead elsewhere are noted, once each."""

    def __init__(self, path: Path, left_out: LeftOut) -> None:
        self._real = os.path.realpath(path)
        self._left_out = left_out
        self.outside: list[Path] = []

    def is_entered(self, entry: _Entry) -> bool:
        """Whether it is a folder to look into: not one of ours, and no link."""
        if not entry.is_folder or entry.path.name == STATE_FOLDER or _is_ours(entry.path):
            return False
        if entry.is_link:
            self._holds(entry.path)
            return False
        return True

    def is_taken(self, entry: _Entry) -> bool:
        """Whether it is a file, or a link to one below; a pipe is the user's word only where it is named."""
        return entry.is_file and (not entry.is_link or self._holds(entry.path))

    def _holds(self, link: Path) -> bool:
        inside = _is_below(os.path.realpath(link), self._real)
        if not inside and link not in self.outside:
            self.outside.append(link)
            self._left_out.add(printable(link), "link_outside")
        return inside


def _matches(start: Path, pattern: Sequence[str], root: _FolderRoot) -> Iterator[Path]:
    """Files that the parts of a pattern mean, as `glob` has them; no link leads out, no linked folder is entered.

    Not by recursion: a folder may be deeper than Python's stack.
    """
    waiting = [(start, list(pattern))]
    while waiting:
        folder, (part, *rest) = waiting.pop()
        if part == "**":
            waiting += [(folder, rest)] if rest else []
            for entry in _named(folder, "*"):
                if root.is_entered(entry):
                    waiting.append((entry.path, [part, *rest]))
                elif not rest and not entry.path.name.endswith(OURS) and root.is_taken(entry):
                    yield entry.path
            continue
        for entry in _named(folder, part):
            if rest and root.is_entered(entry):
                waiting.append((entry.path, rest))
            elif not rest and (part.endswith(OURS) or not entry.path.name.endswith(OURS)) and root.is_taken(entry):
                yield entry.path


def _named(folder: Path, part: str) -> list[_Entry]:
    """What a folder holds under the names that a part of a pattern means; hidden names only where it says so."""
    if not glob.has_magic(part):
        path = folder / part
        return [] if part == ".." else [_followed(path, is_link=path.is_symlink())]
    fits = re.compile(fnmatch.translate(part)).match
    try:
        entries = _entries(folder)
    except OSError:
        return []
    hidden = part.startswith(".")
    return [entry for entry in entries if fits(entry.path.name) and (hidden or not entry.path.name.startswith("."))]


def _entries(folder: Path) -> list[_Entry]:
    """What a folder holds, sorted. No file is asked for its kind that the folder itself knows."""
    with os.scandir(folder) as found:
        return [_entry(folder, one) for one in sorted(found, key=lambda one: one.name)]


def _entry(folder: Path, one: os.DirEntry[str]) -> _Entry:
    path = folder / one.name
    if one.is_symlink():
        return _followed(path, is_link=True)
    return _Entry(path, is_link=False, is_folder=one.is_dir(), is_file=one.is_file())


def _followed(path: Path, *, is_link: bool) -> _Entry:
    """Neither folder nor file where a link leads to itself, or where nobody may look."""
    return _Entry(path, is_link, is_folder=os.path.isdir(path), is_file=os.path.isfile(path))  # noqa: PTH112, PTH113 - they never raise


def about_links(left_out: LeftOut) -> tuple[str, ...]:
    """What to say of links that were left out; nothing when none was."""
    links = [one.label for one in left_out if one.why == "link_outside"]
    if not links:
        return ()
    names = ", ".join(links[:3]) + (", …" if len(links) > 3 else "")
    what = "a link that leads" if len(links) == 1 else f"{len(links)} links that lead"
    return (f"left out: {what} out of the folder ({names}); name what is to be embedded all the same",)


def about_odd_names(left_out: LeftOut) -> tuple[str, ...]:
    """What to say of objects whose names cannot be read; nothing when there are none."""
    begins = [one.label for one in left_out if one.why == "odd_name"]
    if not begins:
        return ()
    return (
        f"left out: all objects whose names begin with {', '.join(begins[:3])}{', …' if len(begins) > 3 else ''} "
        "(an empty part, '.' or '..' cannot be read), and in the same folder those that begin with a character before "
        "'/' (a blank, !\"#$%&'()*+,-.): rename them (the store's own tools show them), or name what is to be embedded "
        "one by one",
    )


def _missing(argument: str, cause: Exception) -> InputMissing:
    name = printable(argument)
    if isinstance(cause, PermissionError):
        return InputMissing(f"no permission to read {name}", hint="check who owns it and its mode")
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, FileNotFoundError):
        return InputMissing(f"cannot read {name}: {cause.strerror}")
    if "://" in name:
        hint = f"copy it to this machine first: what is read is a path, or {WRITABLE}, or hf://datasets/…"
        return InputMissing(f"no such file: {name}", hint=hint)
    return InputMissing(f"no such file: {name}", hint="paths are relative to the current folder")


def _folder(start: Path, options: ReadOptions, left_out: LeftOut) -> list[Path]:
    """Files of known kinds below a folder, sorted; no hidden ones, none that a symbolic link leads outside to."""
    root = _FolderRoot(start, left_out)
    files: list[Path] = []
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        try:
            visible = [entry for entry in _entries(folder) if not entry.path.name.startswith(".")]
        except OSError as problem:
            refusal = _missing(str(folder), problem)
            if folder == start or options.on_bad_file == "fail":
                raise refusal from problem
            left_out.add(printable(folder), "unreadable", refusal.message)
            continue
        for entry in visible:
            if entry.path.name.endswith(OURS) or not root.is_taken(entry):
                continue
            why = kinds.not_of(entry.path.name, options)
            if why is None:
                files.append(entry.path)
            else:
                left_out.add(printable(entry.path), why)
        waiting += [entry.path for entry in reversed(visible) if root.is_entered(entry)]
    if not files:
        raise InputMissing(
            f"no inputs in folder {printable(start)}",
            hint=f"it is searched for {' '.join(sorted(SUFFIXES))} "
            "(text also .gz .zst .bz2 .xz); name other files one by one",
        )
    return files


def _is_ours(folder: Path) -> bool:
    return os.path.isdir(os.path.join(folder, STATE_FOLDER))  # noqa: PTH112, PTH118 - asked of every folder


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _looked_into(path: Path, root: Path, options: ReadOptions, *, is_named: bool) -> InputFile:
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode):
            with path.open("rb") as pipe:
                return _piped(pipe, printable(path.name), options)
        if not stat.S_ISREG(status.st_mode):
            raise InputInvalid(f"{printable(path)} is a device or socket, not a file")
        with path.open("rb") as file:
            looked = _described(file, path, printable(os.path.relpath(path, root)), options, status)
        return replace(looked, is_named=is_named, partitions=_partitions(path))
    except OSError as refused:
        raise _missing(str(path), refused) from refused


def _partitions(path: Path) -> tuple[tuple[str, str | None], ...]:
    """What the folders of a path say as Hive writes it, `lang=de`; special characters are in per cent."""
    said = (_PARTITION.fullmatch(part) for part in path.parts[:-1])
    found = {unquote(one[1]): unquote(one[2]) for one in said if one}
    return tuple((printable(name), None if value == _NO_VALUE else printable(value)) for name, value in found.items())


_PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def _described(file: BinaryIO, path: Path, label: str, options: ReadOptions, status: os.stat_result) -> InputFile:
    kind, compression = kinds.looked_at(file, label, options)
    return InputFile(
        path=path,
        label=label,
        kind=kind,
        compression=compression,
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
    """Files of one name in several roots get the path, or the address, they were named by."""
    names = Counter(file.label for file in files)
    return [file if names[file.label] == 1 or file.digest else replace(file, label=_whole_name(file)) for file in files]


def _whole_name(file: InputFile) -> str:
    return printable(os.path.normpath(file.path)) if file.stored is None else file.stored.url
