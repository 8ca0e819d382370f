"""What a run's vectors are made with, beside the `space.lock` of its output; and who watches its model meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from embedctl import inputs, storage
from embedctl.dataclass import dataclass
from embedctl.embedding.canary import CanaryWatch
from embedctl.errors import InputMissing, ModelChanged
from embedctl.outputs import OUTPUT_MODE, Existing, Output, parquet
from embedctl.planning import splitter
from embedctl.records import TEXT_HASH_BYTES, Observer, Space, minted_at, text_hash
from embedctl.routing import space_lock
from embedctl.routing.canaries import host_of
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.space_lock import SpaceLock
from embedctl.runs import foundations
from embedctl.runs.job import JobRequest
from embedctl.settings import Settings
from embedctl.settings.options import Options
from embedctl.storage import Disk

SAMPLED = 24
"""Texts of the output that are embedded again when three fixed ones leave a doubt."""

MOST_CHARACTERS = 2000
"""Of a text that is sampled: it is no long one that is to be paid twice."""


@dataclass(frozen=True, slots=True)
class FoundLock:
    """The lock that a run goes by.

    Attributes:
        lock: None when there is none.
        path: Where the output's own one is, or will be; None where the output has no place for one.
    """

    lock: SpaceLock | None
    path: Path | None


def find(job: JobRequest, output: Output, space: Space | None) -> FoundLock:
    """The lock of an output; with `--locked`, or else one beside it.

    Args:
        space: Of the vectors that are there, or wanted; a lock of another one counts with `--locked` alone.

    Raises:
        InputMissing: --locked, and there is none.
        InputInvalid: It is damaged, or of another version.
    """
    own, locked = output.lock_path, job.settings.options.locked
    beside = (own.parent if output.keeps_journal else own.parent.parent.parent) if own is not None else Path()
    for path in dict.fromkeys([own, beside / space_lock.NAME] if locked else [None if job.overwrite else own]):
        if path is None:
            continue
        try:
            lock = space_lock.read(path)
        except InputMissing:
            continue
        if locked or space is None or lock.space.space_id == space.space_id:
            return FoundLock(lock, own)
    if locked:
        raise InputMissing(
            f"--locked, and there is no {space_lock.NAME}: neither {own or 'with the output'} nor "
            f"{beside / space_lock.NAME}",
            hint="run it once without --locked, or write one with `embedctl vectors lock`",
        )
    return FoundLock(None, own)


def check(found: FoundLock, mine: SpaceLock, host: str | None) -> None:
    """Raise ModelChanged when what would be bought is not what the lock says.

    Args:
        host: Who would be asked; None for a local model.
    """
    if found.lock is None:
        return
    differences = found.lock.differences(mine)
    if host is not None and found.lock.hosts and host not in found.lock.hosts:
        differences.append(f"host: {', '.join(found.lock.hosts)} here, {host} there")
    if differences:
        raise ModelChanged(
            f"{space_lock.NAME} does not allow it: {'; '.join(differences)}",
            hint="nothing was bought; leave --locked out, or lock anew with `embedctl vectors lock`",
        )


def chunker_of(source: inputs.Source, options: Options) -> dict[str, object] | None:
    """What cuts the texts of an input, as it was asked for; None when nothing does."""
    if not source.is_document and options.chunk_size is None and options.chunk_overlap is None:
        return None
    size = options.chunk_size or splitter.DEFAULT_SIZE
    overlap = options.chunk_overlap
    if overlap is None:
        overlap = splitter.DEFAULT_OVERLAP * size // splitter.DEFAULT_SIZE
    from importlib import metadata  # loads `email`, to read one line

    name = "semantic-text-splitter"
    return {"name": name, "version": metadata.version(name), "size": size, "overlap": overlap}


def watch(
    settings: Settings,
    observer: Observer,
    lock: SpaceLock | None,
    existing: Existing,
    endpoint: Endpoint,
    *,
    others: Sequence[Endpoint] = (),
    overwrite: bool = False,
    made_at: float | None = None,
) -> CanaryWatch:
    """Looks at the endpoints of a run, and at what was made before.

    Args:
        endpoint: That is asked first, and `others` when it cannot serve.
        overwrite: Nothing of the output stays but what interrupted runs have bought for its successor.
        made_at: When the oldest vectors were made that stand in the output beside what `existing` knows; Unix seconds.
    """
    options = settings.options
    times = [] if overwrite else [_begun_at(lock, existing), made_at]
    begun_at = min((at for at in times if at is not None), default=None)
    return CanaryWatch(
        settings.paths.canaries,
        observer,
        (endpoint, *others),
        when=options.canary,
        on_drift=options.on_drift,
        reference=lock.canaries if lock else None,
        locked=options.locked,
        hosts=frozenset(lock.hosts) if options.locked and lock and lock.hosts else None,
        sample=lambda: _sample(existing, endpoint),
        begun_at=time.time() if begun_at is None else begun_at,
        owned=begun_at is not None,
        forget=partial(foundations.forget_cached, settings, observer),
    )


def _begun_at(lock: SpaceLock | None, existing: Existing) -> float | None:
    """When the oldest of an output's vectors was made, in Unix seconds; None where it has none."""
    if lock is not None and lock.canaries is not None:
        return datetime.fromisoformat(lock.canaries.at).timestamp()
    answers = existing.recovered.answers if existing.recovered else ()
    return min(
        [
            *filter(None, (part_begun_at(part.path) for part in existing.parts[:1])),  # all parts say the same
            *(minted_at(answer.event.event_id) for answer in answers),
        ],
        default=None,
    )


def part_begun_at(path: Path) -> float | None:
    """When the output was begun that a part is of, in Unix seconds; None where nobody knows, as on a store."""
    found = parquet.read_metadata(path) or {}
    begun_at = found.get("begun_at")
    if isinstance(begun_at, float):
        return begun_at
    try:
        return minted_at(UUID(found.get("run_id")))  # of an older version
    except (ValueError, TypeError, AttributeError):
        return None


def without_older(existing: Existing, watch: CanaryWatch) -> Existing | None:
    """What is there without parts that interrupted runs made of a model which is another one since.

    Returns:
        None when slices of the run that is gone on with are among them: it is to be begun anew.
    """
    endpoint = watch.chain[0]
    if watch.owned or watch.keeps(endpoint.provider, endpoint.model, 0.0, watch.begun_at):
        return existing
    fits = [
        watch.keeps(endpoint.provider, endpoint.model, begun, begun)
        for begun in (part_begun_at(part.path) or 0.0 for part in existing.parts)
    ]
    if all(fits):
        return existing
    if existing.done:
        return None
    return replace(existing, parts=[part for part, fit in zip(existing.parts, fits, strict=True) if fit])


def keep(found: FoundLock, mine: SpaceLock, disk: Disk) -> None:
    """Write the output's lock, where there is news; what it began with stays."""
    if found.path is None or (mine.canaries is None and found.lock is None):
        return
    old = found.lock
    if old is not None:
        hosts = tuple(dict.fromkeys([*old.hosts, *mine.hosts]))[: space_lock.MOST_HOSTS]
        mine = replace(old, canaries=old.canaries or mine.canaries, hosts=hosts)
    if old is None or mine.encoded() != old.encoded():
        storage.replace(disk, found.path, mine.encoded(), mode=OUTPUT_MODE)


def hosts_of(endpoint: Endpoint) -> str | None:
    """Who is asked; None for a local model."""
    return None if endpoint.local else host_of(endpoint)


def _sample(existing: Existing, endpoint: Endpoint) -> tuple[Sequence[str], NDArray[np.float32]]:
    """Texts of the output that are known to have been sent as they stand there, and its vectors of them."""
    for part in existing.parts:
        found = part.sample(SAMPLED, MOST_CHARACTERS)
        texts = [endpoint.prefix + text for text in found.texts]
        hashes = [found.hashes[at : at + TEXT_HASH_BYTES] for at in range(0, len(found.hashes), TEXT_HASH_BYTES)]
        sent = [at for at, text in enumerate(texts) if text_hash(text) == hashes[at]]
        if sent:
            return [texts[at] for at in sent], found.vectors[sent]
    return (), np.empty((0, 0), np.float32)
