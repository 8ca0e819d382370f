"""What the workers of a job on a store agree on: its plan, which shards are done, and the manifest at its end.

    inputs.parquet ─▶ plan.json ─▶ shards/NNNNN/log … ─▶ done/NNNNN.json ─▶ manifest/00000001.json

All of them are created once. Nothing in them is a key, a header or a path of a machine. What a store holds is not our
word: it is checked here, where it is read, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, OutputRefused, StorageFailed
from embedctl.journal.shard_log import DONE, SHARDS, Tail, done_name, label, tail
from embedctl.outputs.parts import PublishedPart
from embedctl.planning.shards import Shard
from embedctl.records import RowCounts, Space, from_json
from embedctl.storage.store import PROBES, Store, at_once

PLAN = "_embedctl/plan.json"
PLANS = "_embedctl/plan"
SPACE = "_embedctl/space.json"
MANIFESTS = "_embedctl/manifest/"
USAGE = "_embedctl/usage/"
WORKERS = "_embedctl/workers/"
FAILURES = "failures/"

OLD_PROBE_S = 3600.0

FORMAT = 2
"""Of plan, done and manifest; a later one is left to later versions. Plans with parts of files are 2, others 1."""

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """`plan.json`.

    Attributes:
        job_id: A UUID; new for each plan.
        generation: 1, and one more for each change of the input.
        version: Of embedctl.
        binding: Of the input as listed and all options that shape the output: equal for all workers.
        terms: Of all options that shape the output, without the input.
        input: Digest and number of files; `inputs.parquet` lists them.
        options: Those that shape the output.
        model: As it was asked for; `width` of its vectors where that is known before anything is asked.
        ledger: Id of the ledger that the job was begun under.
        secret: In hex; makes the journals of the job evidence to its workers. Who may write there may write parts, too.
        limited: It has a budget or limits that workers who know nothing of each other cannot share.
        shares: So many workers were to share it (`--shard I/N`); what it may spend and send is divided by that.
        shards: In the order of the input.
    """

    job_id: str
    version: str
    binding: str
    input: Mapping[str, Any]
    options: Mapping[str, Any]
    model: str
    workspace: str
    ledger: str
    secret: str
    shard_rows: int
    shards: Sequence[Shard]
    terms: str = ""
    width: int | None = None
    generation: int = 1
    limited: bool = False
    shares: int = 1
    job: str | None = None
    workspace_column: str | None = None
    at: str = ""
    format: int = 1

    @property
    def host_label(self) -> str:
        """Whose log a command holds that keeps limits and budget for all workers of the job."""
        return "host" if self.generation == 1 else f"g{self.generation:04d}-host"

    def label(self, shard: Shard) -> str:
        """How one of its shards is called in names of objects."""
        return label(shard.ordinal, self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDone:
    """`done/NNNNN.json`: a shard is finished.

    Attributes:
        counts: Of all its rows.
        failures: The object that lists those that failed or were skipped; None: none did.
        failed_reasons: Rows that failed, by reason.
        reused, duplicates: Vectors that were not bought.
    """

    ordinal: int
    key: str
    counts: RowCounts
    parts: Sequence[PublishedPart] = ()
    space_id: str | None = None
    failures: str | None = None
    failed_reasons: Mapping[str, int] = field(default_factory=dict)
    worker: str = ""
    at: str = ""
    format: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`manifest/NNNNNNNN.json`: all parts in order. The newest number is the output."""

    job_id: str
    binding: str
    counts: RowCounts
    parts: Sequence[PublishedPart]
    failures: Sequence[str] = ()
    failed_reasons: Mapping[str, int] = field(default_factory=dict)
    space: Mapping[str, Any] | None = None
    format: int = 1


def encoded(record: object) -> bytes:
    """Any of them as JSON."""
    return orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2, default=str)  # type: ignore[call-overload]


def decoded(content: bytes) -> StorePlan:
    """A plan of ours, as everybody reads it."""
    return from_json(content, StorePlan)


def plan_name(generation: int) -> str:
    """The name of a plan."""
    return PLAN if generation == 1 else f"{PLANS}-{generation:04d}.json"


def inputs_name(generation: int) -> str:
    """The name of what lists the input files of a plan."""
    return "_embedctl/inputs.parquet" if generation == 1 else f"_embedctl/inputs-{generation:04d}.parquet"


def read_plan(store: Store, generation: int | None = None) -> StorePlan | None:
    """A plan of the job on a store (default: the newest); None: there is none.

    Raises:
        OutputRefused: Something else stands there.
        ConfigurationInvalid: A later version made it.
    """
    if generation is None:
        digits = (name.removeprefix(f"{PLANS}-").removesuffix(".json") for name in store.list(PLANS))
        generation = max((int(one) for one in digits if one.isdecimal()), default=1)
    return _read(store, plan_name(generation), StorePlan)


def workers_name(share: int, generation: int, worker: str = "") -> str:
    """The name of what says whose share a worker's spending is."""
    return f"{WORKERS}{generation:04d}-{share:05d}/{worker}"


def read_done(store: Store, plan: StorePlan, shard: Shard) -> ShardDone | None:
    """What says that a shard is done; None: it is not. Raises as `read_plan`."""
    name = done_name(plan.label(shard))
    found = _read(store, name, ShardDone)
    if found is not None and found.key != shard.key:
        raise OutputRefused(f"{store.url}/{name} is about another shard than the plan's")
    return found


def done_ordinals(store: Store, plan: StorePlan) -> set[int]:
    """Which shards of a plan are done."""
    names = set(store.list(DONE))
    return {shard.ordinal for shard in plan.shards if done_name(plan.label(shard)) in names}


def manifest_name(generation: int) -> str:
    """The name of a manifest."""
    return f"{MANIFESTS}{generation:08d}.json"


def read_manifest(store: Store, plan: StorePlan | None = None) -> Manifest | None:
    """The manifest of a plan (default: the newest); None: it is not finished. Raises as `read_plan`."""
    plan = plan or read_plan(store)
    return None if plan is None else _read(store, manifest_name(plan.generation), Manifest)


def read_space(store: Store) -> Space | None:
    """The space of the job's vectors; None while nobody has published one. Raises as `read_plan`."""
    return _read(store, SPACE, Space)


def plan_of(store: Store) -> StorePlan:
    """The plan of the job on a store.

    Raises:
        OutputRefused: There is none, or it is none.
    """
    found = read_plan(store)
    if found is None:
        raise OutputRefused(f"{store.url} is no output of embedctl", hint="`batch run INPUT -o` with it makes one")
    return found


def tails(store: Store, plan: StorePlan, done: set[int]) -> Iterator[tuple[Shard, Tail | None]]:
    """Each shard that is not done, and the end of its log: who works on it, as far as anybody does."""
    for shard in plan.shards:
        if shard.ordinal not in done:
            yield shard, tail(store, plan.label(shard))


def total(counts: Sequence[RowCounts]) -> RowCounts:
    """The sum of several."""
    found = RowCounts()
    for one in counts:
        found.add(one)
    return found


def manifest(store: Store, plan: StorePlan, known: Mapping[int, ShardDone] | None = None) -> Manifest:
    """The manifest of a job whose shards are all done: the same whoever makes it.

    Args:
        known: What has been read of them: it never changes.
    """
    found = dict(known or {})
    left = [shard for shard in plan.shards if shard.ordinal not in found]
    for shard, done in zip(left, at_once(partial(read_done, store, plan, one) for one in left), strict=True):
        if done is None:
            raise StorageFailed(f"{store.url}: shard {shard.ordinal} was done, and is not any more")
        found[shard.ordinal] = done
    dones = [found[shard.ordinal] for shard in plan.shards]
    reasons: dict[str, int] = {}
    for done in dones:
        for reason, count in done.failed_reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    space = read_space(store)
    return Manifest(
        job_id=plan.job_id,
        binding=plan.binding,
        counts=total([done.counts for done in dones]),
        parts=[part for done in dones for part in done.parts],
        failures=[done.failures for done in dones if done.failures is not None],
        failed_reasons=dict(sorted(reasons.items(), key=lambda one: (-one[1], one[0]))),
        space=space.as_dict() if space else None,
    )


def finish(store: Store, plan: StorePlan, known: Mapping[int, ShardDone] | None = None) -> Manifest:
    """Make the manifest, and remove what only served the work. Idempotent; all shards are done.

    A log goes only now: a number that was freed before would let a sleeping worker in again.

    Args:
        known: See `manifest`.
    """
    with ThreadPoolExecutor(1, "store") as beside:
        listed = beside.submit(at_once, [partial(store.list, folder) for folder in (SHARDS, WORKERS, PROBES)])
        made = manifest(store, plan, known)
        store.put_if_absent(manifest_name(plan.generation), encoded(made))
        worked, workers, probes = listed.result()
    own = f"{SHARDS}g{plan.generation:04d}-" if plan.generation > 1 else SHARDS
    logs = [name for name in worked if name.startswith(own) and (plan.generation > 1 or "/g" not in name)]
    old = [*filter(_is_old, probes), *_superseded(store, plan.generation, made)]
    store.remove_all([*logs, *workers, *old])
    return made


def _superseded(store: Store, generation: int, made: Manifest) -> list[str]:
    """Parts and failures that earlier manifests name, and this one does not."""
    before: set[str] = set()
    for number in range(1, generation):
        earlier = _read(store, manifest_name(number), Manifest)
        if earlier is not None:
            before |= {part.name for part in earlier.parts} | set(earlier.failures)
    return sorted(before - {part.name for part in made.parts} - set(made.failures))


def _is_old(probe: str) -> bool:
    """Whether a trial's object was left by a dead worker: one that is at work has just made it."""
    try:
        made_at = UUID(probe.removeprefix(PROBES)).int >> 80
    except ValueError:
        return False
    return made_at < (time.time() - OLD_PROBE_S) * 1000


def _read(store: Store, name: str, kind: type[_Record]) -> _Record | None:
    try:
        content = store.read(name)
    except FileNotFoundError:
        return None
    try:
        later = from_json(content, _Format).format > FORMAT
        found = None if later else from_json(content, kind)
    except (ValueError, TypeError) as problem:
        raise OutputRefused(
            f"{store.url}/{name} is not what embedctl writes there", hint="choose another -o"
        ) from problem
    if later:
        raise ConfigurationInvalid(f"{store.url}/{name} was made by a later version", hint="upgrade embedctl")
    return found


@dataclass(frozen=True, slots=True)
class _Format:
    format: int = 1
