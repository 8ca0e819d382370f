"""What servers of this home left that were killed: their vectors go into the cache, their events to the spool.

So a call whose answer was on record costs nothing when it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from embedctl import storage
from embedctl.errors import EmbedctlError, Locked, OutputRefused, StorageFailed
from embedctl.journal import Recovered, Trust, recover
from embedctl.journal.rescue import JOURNAL, LOCK, rescue
from embedctl.journal.segments import Views
from embedctl.ledger import spool
from embedctl.records import TEXT_HASH_BYTES, minted_at
from embedctl.runs.registry import RunEntry, RunRegistry, home_trust
from embedctl.server.shifts import COMMAND
from embedctl.settings import Settings
from embedctl.storage import locks
from embedctl.storage.vector_cache import CachedVector, VectorCache

Scope = Callable[[str, str], str]
"""(space id, workspace) → under what its vectors are kept."""


def take_over(settings: Settings, cache: VectorCache | None, scope: Scope) -> int:
    """Take in what dead servers left; how many vectors are in the cache now that were not.

    One that lives, or is another ledger's that cannot be reached, is left alone.
    """
    registry = RunRegistry(settings.paths.runs)
    trust = home_trust(settings.paths)
    vectors = 0
    for run in registry.all():
        if run.command != COMMAND or locks.is_held(run.folder / LOCK):
            continue
        try:
            vectors += _taken(settings, registry, run, trust, cache, scope)
        except (Locked, OutputRefused):  # it lives after all, or something else has taken its place
            continue
    return vectors


def _taken(
    settings: Settings, registry: RunRegistry, run: RunEntry, trust: Trust, cache: VectorCache | None, scope: Scope
) -> int:
    if not run.folder.is_dir():
        registry.forget(run)
        return 0
    ledger = Path(run.ledger) if run.ledger else settings.paths.ledger
    place = replace(settings.paths, ledger=ledger).spool
    storage.check_own(run.folder)
    with locks.hold(run.folder / LOCK, command=locks.RECOVERY):
        found = recover(run.folder / JOURNAL, trust)
        vectors = 0 if cache is None else _kept(found, cache, scope)
        rescue(
            run.folder / JOURNAL,
            lambda spool_id, events: spool.publish(place, spool_id, events),
            trust,
            keeps_vectors=False,
        )
        if not storage.paths_in(run.folder / JOURNAL):
            registry.forget(run)
            storage.remove_tree(storage.DISK, run.folder)
    return vectors


def _kept(found: Recovered, cache: VectorCache, scope: Scope) -> int:
    views = Views(found.folder)
    count = 0
    for answer in found.answers:
        space_id = (answer.extra or {}).get("space_id")
        if not isinstance(space_id, str) or answer.event.purpose == "test":
            continue
        place = answer.place
        views.expect(place.segment, answer.file, place.offset, place.count * place.dimensions * 4, answer.checksum)
        try:
            vectors = views.read(place)
        except StorageFailed:
            continue  # damaged: it is bought anew
        each = answer.tokens_each or ((answer.event.tokens_total,) if place.count == 1 else (None,) * place.count)
        hashes = [answer.hashes[at : at + TEXT_HASH_BYTES] for at in range(0, len(answer.hashes), TEXT_HASH_BYTES)]
        asked_at = minted_at(answer.event.event_id)
        hits = [CachedVector(answer.provider, answer.model, each[i], row, asked_at) for i, row in enumerate(vectors)]
        cache.put(scope(space_id, answer.event.workspace_id), hashes, hits)
        count += len(hits)
    return count


def quietly(settings: Settings, cache: VectorCache | None, scope: Scope, tell: Callable[[str], None]) -> None:
    """The same; a disk that refuses is told, and tried again at the next start."""
    try:
        vectors = take_over(settings, cache, scope)
    except EmbedctlError as problem:
        tell(f"what a killed server left could not be taken in: {problem.message}")
    else:
        if vectors:
            tell(f"{vectors} vectors of a killed server were taken into the cache")
