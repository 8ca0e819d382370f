"""An output on a store: its parts, beside what the job's manifest says, or what a run wrote whose folder was copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, InputMissing
from embedctl.outputs import FAILURES, RECORD, STATE_FOLDER
from embedctl.outputs.shard import PARTS
from embedctl.runs import store_plan
from embedctl.storage import paths_in
from embedctl.storage.store import OutputFolder, Store, StoredObject
from embedctl.storage.store_url import StoreUrl
from embedctl.storage.stores import Stores
from embedctl.vectors.files import ObjectPath, Stored, assembled, look, open_stored

LOOKS_AT_ONCE = 16
"""Footers that are read at a time: each is a request or two."""


def open_on_store(url: StoreUrl, stores: Stores) -> Stored:
    """The output at an address: one Parquet object, or the parts below a prefix.

    Raises:
        InputMissing: There is nothing.
        InputInvalid: It is not embedctl's, or no part of it can be read.
        StoreDenied, StoreUnreachable: The store cannot be read.
    """
    if url.path and not url.path.endswith("/"):
        folder, _, name = url.path.rpartition("/")
        around = stores.open(url.at(folder))
        if (found := around.stat(name)) is not None:
            return _assembled(
                str(url), [ObjectPath(str(url), around, found)], _BesideObject(around, name), is_folder=False
            )
    store = stores.open(url)
    there = sorted((one for one in store.objects("part-") if _is_part(one)), key=lambda one: one.name)
    beside = _BesideParts(store)
    if not there:
        is_ours = store.stat(store_plan.PLAN) is not None
        if not is_ours and next(iter(store.objects()), None) is None:
            raise InputMissing(f"nothing is under {url}", hint="the output of `batch run -o`")
        raise InputInvalid(
            f"{url} holds no part yet" if is_ours else f"{url} is no output of embedctl: it holds no part-….parquet",
            hint="run the batch to its end first"
            if is_ours
            else "name a prefix that `batch run -o` wrote, or an object",
        )
    return _assembled(
        store.url, [ObjectPath(f"{store.url}/{one.name}", store, one) for one in there], beside, is_folder=True
    )


def open_here(path: Path) -> Stored:
    """The output at a path, also where several workers have written it as on a store. Raises as `open_stored`."""
    parts = paths_in(path, PARTS) if (path / store_plan.PLAN).is_file() else []
    if not parts:
        return open_stored(path)
    return assembled(path, map(look, parts), _BesideParts(OutputFolder(path)), is_folder=True)


def _is_part(found: StoredObject) -> bool:
    return found.name.endswith(".parquet") and "/" not in found.name


def _assembled(path: str, places: list[ObjectPath], beside: Any, *, is_folder: bool) -> Stored:
    with ThreadPoolExecutor(min(LOOKS_AT_ONCE, len(places))) as looking:
        return assembled(path, looking.map(look, places), beside, is_folder=is_folder)


def _lines(store: Store, name: str) -> Iterator[bytes]:
    try:
        yield from store.read(name).splitlines()
    except FileNotFoundError:
        return


@dataclass(frozen=True, slots=True)
class _BesideObject:
    """Of one file: its failures."""

    store: Store
    name: str

    @property
    def failures_name(self) -> str:
        """Of the object."""
        return f"{self.name}.{FAILURES}"

    def failure_lines(self) -> Iterator[bytes]:
        """Of the object."""
        return _lines(self.store, self.failures_name)

    def record(self) -> None:
        """None."""


@dataclass(frozen=True, slots=True)
class _BesideParts:
    """Of parts: what the job of this store says, or what a run on a disk wrote whose folder was copied here."""

    store: Store

    @property
    def failures_name(self) -> str:
        """Where the lists of all shards are."""
        return store_plan.FAILURES

    def failure_lines(self) -> Iterator[bytes]:
        """Of all shards, one after the other."""
        for name in [*self.store.list(store_plan.FAILURES), FAILURES]:
            yield from _lines(self.store, name)

    def record(self) -> Mapping[str, Any] | None:
        """As a run on a disk writes it; `names` are the parts and their sizes."""
        plan = store_plan.read_plan(self.store)
        if plan is None:
            return self._copied()
        found = store_plan.read_manifest(self.store)
        if found is None:
            return {"state": "running", "options": dict(plan.options)}
        return {
            "state": "complete",
            "options": dict(plan.options),
            "counts": asdict(found.counts),
            "parts": len(found.parts),
            "names": {part.name: part.bytes for part in found.parts},
            "space_id": None if found.space is None else _space_id(found.space),
        }

    def _copied(self) -> Mapping[str, Any] | None:
        try:
            found = orjson.loads(self.store.read(f"{STATE_FOLDER}/{RECORD}"))
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        return found if isinstance(found, dict) else None


def _space_id(space: Mapping[str, Any]) -> str | None:
    from embedctl.records import Space

    try:
        return Space(**space).space_id
    except TypeError:
        return None
