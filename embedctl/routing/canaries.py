"""What a model makes of three fixed texts: kept from its first run in a space on, and compared with what it makes now.

`$EMBEDCTL_HOME/canaries/` has a file for each space, `space.lock` of an output what that output began with. Losing a
file costs one request of some fifty tokens; a broken one counts as none. Beside them, `changes` says when each host was
seen to make other vectors than before, in whatever space.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from embedctl import storage
from embedctl.backends.http import urls
from embedctl.dataclass import dataclass
from embedctl.routing.endpoint import Endpoint
from embedctl.storage import DISK, locks, paths_in

TEXTS = (
    "The harbour office opens at 7:30; ships that arrive earlier wait outside the breakwater.",
    "Refunds over 250 EUR are paid to the card that was charged, as a rule within five working days.",
    "Über Nacht fielen 12 cm Schnee, der Pass bleibt für LKW gesperrt.",
)
"""Fixed and neutral, never a user's: capitals, digits, marks and letters beyond ASCII, so that a tokenizer shows."""

TEXTS_ID = blake2b("\0".join(TEXTS).encode(), digest_size=8).hexdigest()

Verdict = Literal["first", "same", "arithmetic", "version", "changed", "accepted"]
"""first: nothing to compare with. arithmetic: other numbers, the same ranks. version: the same vectors under another
name. accepted: changed, and a new output was begun with it all the same."""

MOST_HOSTS = 64
MOST_SIGHTINGS = 400
MOST_DIMENSIONS = 1 << 16
MOST_CHANGES = 64
MAX_BYTES = 64 << 20
LOCK_WAIT_S = 5.0

_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{5,15}(?:Z|[+-]\d\d:\d\d)\Z")
_MOST_WORD = 300


@dataclass(frozen=True, slots=True, eq=False)
class Canaries:
    """What a host made of the texts.

    Attributes:
        vectors: float32, shape (3, D).
        at: ISO 8601.
        host: Who it was, as `host_of` names it.
        version: What the host calls its model; None where it does not say.
    """

    vectors: NDArray[np.float32]
    at: str
    host: str
    version: str | None = None

    @property
    def named(self) -> str:
        """For a sentence."""
        return f"{self.at[:10]} ({f'version {self.version}' if self.version else 'no version given'})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in self.vectors]
        return {"texts": TEXTS_ID, "at": self.at, "host": self.host, "version": self.version, "vectors": rows}

    @classmethod
    def decoded(cls, found: Any) -> Canaries | None:
        """From JSON of anybody's; None when these are vectors of other texts.

        Raises:
            ValueError: It is none.
        """
        said: dict[str, Any] = found if isinstance(found, dict) else {}
        at, host, version, rows = (said.get(name) for name in ("at", "host", "version", "vectors"))
        if not isinstance(at, str) or not _INSTANT.match(at):
            raise ValueError("'at' is no time")
        if not is_word(host) or not (version is None or is_word(version)):
            raise ValueError("'host' or 'version' is no name")
        if said.get("texts") != TEXTS_ID:
            return None
        if not isinstance(rows, list) or len(rows) != len(TEXTS) or not all(isinstance(row, str) for row in rows):
            raise ValueError("canaries are not three vectors")
        return cls(_vectors(rows), at, str(host), version)


@dataclass(frozen=True, slots=True)
class Sighting:
    """One comparison of a host's canaries with its first ones.

    Attributes:
        cosine: The least of the three; None where nothing was compared.
    """

    at: str
    version: str | None
    cosine: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """What a home knows of a host's canaries in a space.

    Attributes:
        first: What is compared with.
        last: As of when it was last asked.
        sightings: Oldest first.
    """

    space_id: str
    first: Canaries
    last: Canaries
    sightings: tuple[Sighting, ...] = ()

    def looked(self, now: Canaries, cosine: float | None, verdict: Verdict) -> HostRecord:
        """With one more comparison; one that was accepted is what is compared with from now on."""
        first = now if verdict == "accepted" else self.first
        sightings = (*self.sightings, Sighting(now.at, now.version, cosine, verdict))[-MOST_SIGHTINGS:]
        return replace(self, first=first, last=now, sightings=sightings)


HostRecords = Mapping[str, HostRecord]
"""Host → what is known of it."""


def host_of(endpoint: Endpoint) -> str:
    """A provider at an address, and what the model is called there."""
    return f"{endpoint.provider}@{_shown(endpoint.place.base_url)}#{endpoint.wire_model}"


_shown = lru_cache(maxsize=64)(urls.shown)  # each call asks for it


def file_of(folder: Path, endpoint: Endpoint) -> Path:
    """Where the canaries of an endpoint's space stand; its width may not be known yet, so it is no part of the name."""
    space = endpoint.space(1)
    shape = {**(space.as_dict() if space else {}), "dimensions": endpoint.dimensions}
    return folder / f"{blake2b(orjson.dumps(shape, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()}.json"


def load(path: Path) -> HostRecords:
    """What a file knows; nothing when it is missing or broken."""
    try:
        found = orjson.loads(storage.read_small(path, max_bytes=MAX_BYTES, follow=False))
        if found["version"] != 1:
            return {}
        records = {str(host): _record(one) for host, one in found["hosts"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return MappingProxyType({host: one for host, one in records.items() if one is not None})


def update(path: Path, host: str, change: Callable[[HostRecord | None], HostRecord]) -> None:
    """Change what is known of a host, under a lock.

    Raises:
        Locked, OutputRefused, StorageFailed: It cannot be written; for the caller a warning.
    """
    DISK.make_folder(path.parent)
    with locks.hold(path.with_name(f".{path.name}.lock"), command="remembering canaries", wait_s=LOCK_WAIT_S):
        records = dict(load(path))
        records[host] = change(records.pop(host, None))
        kept = dict([*records.items()][-MOST_HOSTS:])
        content = {"version": 1, "hosts": {name: _encoded(one) for name, one in kept.items()}}
        storage.replace(DISK, path, orjson.dumps(content, option=orjson.OPT_INDENT_2))


CHANGES = "changes"
"""The file of a home's canaries that says when hosts changed; not of the name of those that `every` reads."""


class Changes:
    """When hosts were seen to make other vectors than before, by whatever run of this home.

    The file is read again when it has changed: whoever works for days hears of it from others.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CHANGES
        self._seen: object = None
        self._times: Mapping[str, Sequence[float]] = {}

    def any(self, is_meant: Callable[[str], bool], after: float, until: float = math.inf) -> float | None:
        """When one of these hosts was last seen to have changed; None when none was.

        Args:
            is_meant: Of a host, as `host_of` names it.
            after: Unix seconds, not included; `until` is.
        """
        found = [at for host, times in self._read().items() if is_meant(host) for at in times if after < at <= until]
        return max(found, default=None)

    def _read(self) -> Mapping[str, Sequence[float]]:
        signature = signature_of(self._path)
        if signature != self._seen:
            self._seen, self._times = signature, _times(self._path)
        return self._times


def note_change(folder: Path, host: str, at: float) -> None:
    """Keep that a host makes other vectors than before.

    Args:
        at: Unix seconds.

    Raises:
        Locked, OutputRefused, StorageFailed: It cannot be written.
    """
    path = folder / CHANGES
    DISK.make_folder(folder)
    with locks.hold(path.with_name(f".{CHANGES}.lock"), command="remembering canaries", wait_s=LOCK_WAIT_S):
        times = dict(_times(path))
        times[host] = [*times.pop(host, ()), at][-MOST_CHANGES:]
        content = {"version": 1, "hosts": times}
        storage.replace(DISK, path, orjson.dumps(content, option=orjson.OPT_INDENT_2))


def signature_of(path: Path) -> object:
    """Differs when a file has been replaced; None where there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116 - each call of a service asks
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _times(path: Path) -> Mapping[str, Sequence[float]]:
    """What a file of changes says; nothing when it is missing or broken."""
    try:
        found = orjson.loads(storage.read_small(path, max_bytes=MAX_BYTES, follow=False))
        if found["version"] != 1:
            return {}
        return {str(host): [float(at) for at in times] for host, times in found["hosts"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def every(folder: Path) -> list[HostRecord]:
    """What a home knows of all hosts in all spaces."""
    return [record for path in paths_in(folder, "*.json") for record in load(path).values()]


def is_word(value: object) -> bool:
    """Whether a foreign value can be a name."""
    return isinstance(value, str) and 0 < len(value) <= _MOST_WORD and value.isprintable()


def _vectors(rows: list[str]) -> NDArray[np.float32]:
    try:
        raw = [base64.b64decode(row, validate=True) for row in rows]
    except binascii.Error:
        raise ValueError("a vector is no base64") from None
    width = len(raw[0]) // 4
    if not 0 < width <= MOST_DIMENSIONS or any(len(one) != width * 4 for one in raw):
        raise ValueError("vectors are not equally wide")
    vectors = np.stack([np.frombuffer(one, "<f4") for one in raw]).astype(np.float32)
    if not np.isfinite(vectors).all() or not np.linalg.norm(vectors.astype(np.float64), axis=1).all():
        raise ValueError("a vector is not finite, or zero")
    return vectors


def _encoded(record: HostRecord) -> dict[str, Any]:
    return {
        "space_id": record.space_id,
        "first": record.first.as_dict(),
        "last": record.last.as_dict(),
        "sightings": [[one.at, one.version, one.cosine, one.verdict] for one in record.sightings],
    }


def _record(found: Any) -> HostRecord | None:
    first, last = Canaries.decoded(found["first"]), Canaries.decoded(found["last"])
    if first is None or last is None:
        return None
    sightings = tuple(Sighting(at, version, cosine, verdict) for at, version, cosine, verdict in found["sightings"])
    return HostRecord(space_id=str(found["space_id"]), first=first, last=last, sightings=sightings[-MOST_SIGHTINGS:])
