"""Step 1, from addresses to objects: s3:// gs:// az:// and, to read only, hf://; prefixes, globs and single objects."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable, Container, Iterator, Sequence

from embedctl.errors import InputMissing
from embedctl.inputs import kinds
from embedctl.inputs.block import ReadOptions, StoredInput
from embedctl.inputs.formats import SUFFIXES
from embedctl.inputs.left_out import LeftOut
from embedctl.storage.store import Store, StoredObject
from embedctl.storage.store_url import StoreUrl, parse

OURS = (".embeddings.parquet", ".failures.jsonl", ".space.lock")
"""In a folder, what an earlier run wrote is no input."""
STATE_FOLDER = "_embedctl"
"""A folder that holds one is an output of ours: its parts are no input, unless they are named."""
_PART = re.compile(r"part-[\dg-]+\.parquet")


Found = tuple[StoredInput, str, bool]
"""An object, its label, and whether it is named itself."""


def listed(argument: str, options: ReadOptions, left_out: LeftOut) -> Iterator[Found]:
    """Every object that an address means, in the order of names.

    An address that ends with a slash, and one under which there is no object but others behind it, is a folder. `*`
    matches within a part of a name, `**` folders of any depth.

    Raises:
        InputMissing: Nothing is there, or nothing fits; no such bucket.
        WrongUsage: It is no address of a store.
        StoreDenied, StoreUnreachable, ExtraMissing: The store cannot be read.
    """
    url = parse(argument)
    store = options.stores.open(url.at(""))
    is_folder = not url.path or url.path.endswith("/")
    if not is_folder and (found := store.stat(url.path)) is not None:
        yield _stored(store, url, found), found.name.rpartition("/")[2], True
        return
    if glob.has_magic(url.path):
        yield from _matching(store, url, options, left_out)
        return
    yield from _folder(store, url, options, left_out)


def _folder(store: Store, url: StoreUrl, options: ReadOptions, left_out: LeftOut) -> Iterator[Found]:
    prefix = f"{url.path.rstrip('/')}/" if url.path else ""
    objects = list(store.objects(prefix, odd=_odd(url, left_out)))
    if not objects:
        what = "nothing that can be read" if len(left_out) else "nothing"
        raise InputMissing(f"{what} is under {url}", hint="look at the address: names of objects know capitals")
    taken = False
    for found in _visible(objects, len(prefix)):
        why = kinds.not_of(found.name, options)
        if why is None:
            taken = True
            yield _stored(store, url, found), found.name[len(prefix) :], False
        else:
            left_out.add(str(url.at(found.name)), why)
    if not taken:
        raise InputMissing(
            f"no inputs under {url}",
            hint=f"it is searched for {' '.join(sorted(SUFFIXES))} "
            "(text also .gz .zst .bz2 .xz); name other objects one by one",
        )


def _matching(store: Store, url: StoreUrl, options: ReadOptions, left_out: LeftOut) -> Iterator[Found]:
    parts = url.path.split("/")
    fixed = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    prefix = "".join(f"{part}/" for part in parts[:fixed])
    pattern = parts[fixed:]
    fits = _fits(pattern)
    # What stands before the first sign of a pattern narrows the listing: nothing else of a bucket is asked for.
    begun = re.split(r"[*?\[]", pattern[0], maxsplit=1)[0]
    objects = list(store.objects(prefix + begun, odd=_odd(url, left_out)))
    outputs = _outputs(store, [one for one in objects if fits(one.name[len(prefix) :])])
    hidden = any(part.startswith(".") for part in pattern)
    ours = pattern[-1].endswith(OURS)
    visible = _visible(objects, len(prefix), hidden=hidden, ours=ours, outputs=outputs)
    found = [one for one in visible if fits(one.name[len(prefix) :])]
    if not found:
        raise InputMissing(f"no object matches {url}", hint="check the pattern; ** matches folders of any depth")
    yield from ((_stored(store, url, one), one.name[len(prefix) :], False) for one in found)


def _odd(url: StoreUrl, left_out: LeftOut) -> Callable[[str], object]:
    return lambda begins: left_out.add(f"{url.at(begins)}…", "odd_name")


def _fits(pattern: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name fits a pattern that is cut at its slashes; `**` is any folders, at the end any file below."""
    tests = [None if part == "**" else re.compile(fnmatch.translate(part)).match for part in pattern]
    end = len(tests)

    def fits(name: str) -> bool:
        reached = {0}
        for part in name.split("/"):
            for at in sorted(reached):
                while at < end - 1 and tests[at] is None:  # no folder at all
                    at += 1
                    reached.add(at)
            after = set()
            for at in reached - {end}:
                if (test := tests[at]) is None:
                    after |= {at, end} if at == end - 1 else {at}
                elif test(part):
                    after.add(at + 1)
            reached = after
        return end in reached

    return fits


def _visible(
    objects: Sequence[StoredObject],
    skip: int,
    *,
    hidden: bool = False,
    ours: bool = False,
    outputs: Container[str] = (),
) -> list[StoredObject]:
    """Without what is hidden, what marks a folder, and what an earlier run wrote; sorted.

    Args:
        skip: Characters before the part of a name that is looked at.
        ours: Files of earlier runs are meant.
        outputs: Folders, with their slash, that are known to be outputs of ours.
    """
    folders = {one.name[: at + 1] for one in objects for at, char in enumerate(one.name) if char == "/" and at >= skip}
    inside = {one.removesuffix(f"{STATE_FOLDER}/") for one in folders if f"/{one}".endswith(f"/{STATE_FOLDER}/")}
    inside.discard(objects[0].name[:skip] if objects else "")  # who names an output means its parts
    kept = []
    for one in sorted(objects, key=lambda one: one.name):
        parts = one.name[skip:].split("/")
        above = [one.name[: skip + at + 1] for at, char in enumerate(one.name[skip:]) if char == "/"]
        if STATE_FOLDER in parts or any(folder in inside or folder in outputs for folder in above):
            continue
        if one.name[: len(one.name) - len(parts[-1])] in outputs:
            continue
        if (not hidden and any(part.startswith(".") for part in parts)) or (not ours and one.name.endswith(OURS)):
            continue
        if one.name.endswith("/") or (not one.size and f"{one.name}/" in folders):
            continue
        kept.append(one)
    return kept


def _outputs(store: Store, objects: Sequence[StoredObject]) -> set[str]:
    """Folders of these objects that are outputs of ours: those with names like our parts' are asked for their state."""
    folders = {one.name.rpartition("/")[0] for one in objects if _PART.fullmatch(one.name.rpartition("/")[2])}
    asked = {f"{folder}/" if folder else "" for folder in folders}
    return {one for one in asked if next(iter(store.objects(f"{one}{STATE_FOLDER}/")), None) is not None}


def _stored(store: Store, url: StoreUrl, found: StoredObject) -> StoredInput:
    return StoredInput(store=store, name=found.name, size=found.size, etag=found.etag, url=str(url.at(found.name)))
