"""Whether the model behind an output changed under us: three fixed texts, embedded again before anything is added.

Looked at once a day and space (`canary = "daily"`), by whichever run comes first; the first run of all is not held up:
its canaries travel beside its own requests.

Wherever vectors are that were made before (cache, journal, parts), they are taken only when no change of their maker's
model was noticed between the output's beginning and their making.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.embedding.model_change import RANKED_TEXTS, SAME_COSINE, Difference, compare, ranks_agree
from embedctl.errors import (
    BegunAnew,
    EmbedctlError,
    KeyRejected,
    ModelChanged,
    ProviderError,
    QuotaExhausted,
    SpaceMismatch,
)
from embedctl.records import Observer, Space, Warned, utc_now
from embedctl.routing import canaries
from embedctl.routing.canaries import TEXTS, Canaries, Changes, HostRecord, Verdict, host_of
from embedctl.routing.endpoint import Endpoint
from embedctl.storage.vector_cache import CachedVector

LATE_S = 10.0
"""The end of a run waits no longer than so for canaries that were never compared with anything."""

When = Literal["daily", "always", "off"]

Ask = Callable[[Sequence[str]], Awaitable[tuple[NDArray[np.float32], str | None]]]
"""Texts, prefix included → their vectors, float32, (n, D), and what the host calls its model. Accounted as `test`."""

Sample = Callable[[], tuple[Sequence[str], NDArray[np.float32]]]
"""Texts of the output, prefix included, and the vectors that it holds of them. Reads files."""


def no_sample() -> tuple[Sequence[str], NDArray[np.float32]]:
    """Of an output that holds none."""
    return (), np.empty((0, 0), np.float32)


@dataclass(slots=True, eq=False)
class CanaryWatch:
    """Looks at the endpoints of an output, or of a served model, before they are asked for anything else.

    Args:
        folder: Of the home, where canaries are kept.
        chain: Who may be asked, first the model that was asked for.
        when: How often; `off` still heeds `hosts`.
        on_drift: What becomes of a run whose model changed.
        reference: What the output began with; None: what this home saw first.
        locked: Nothing may differ, the version's name included.
        hosts: Who may be asked; None: who passes.
        sample: Of the output's own texts.
        forget: Empties the shared cache of what an endpoint made before it changed; in a thread.
        begun_at: When the oldest of the vectors was made that the output holds, in Unix seconds; now, where it holds
            none, or is to hold none of them; infinite where each call is on its own.
        owned: It holds vectors that its earlier runs bought, and goes on with them: who says `warn` mixes models.
        holds: Vectors were taken, or bought, since.
        waits: Also for the first canaries of all: it serves calls, and what they are written to ends with the call.
        asked_as: Host → how the canaries are asked for, where the endpoint embeds questions and they are documents.
    """

    folder: Path
    observer: Observer
    chain: Sequence[Endpoint]
    when: When = "daily"
    on_drift: Literal["stop", "warn"] = "stop"
    reference: Canaries | None = None
    locked: bool = False
    hosts: frozenset[str] | None = None
    sample: Sample = no_sample
    asked_as: Mapping[str, Endpoint] = field(default_factory=dict)
    forget: Callable[[Endpoint], object] = lambda endpoint: None
    begun_at: float = field(default_factory=time.time)
    owned: bool = False
    holds: bool = False
    waits: bool = False
    clock: Callable[[], datetime] = utc_now
    seen: dict[str, Canaries] = field(default_factory=dict)
    changes: Changes = field(init=False)
    _likeness: tuple[object, bool] | None = None
    _files: dict[str, Path] = field(default_factory=dict)
    _passed: dict[str, tuple[str, float]] = field(default_factory=dict)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    _beside: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.changes = Changes(self.folder)

    def is_due(self, endpoint: Endpoint) -> bool:
        """Whether `check` has anything to do before this endpoint is asked."""
        if endpoint.local:
            return False
        host = host_of(endpoint)
        day, at = self._passed.get(host, ("", 0.0))
        return day != self._today() or self.changes.any(lambda other: other == host, at) is not None

    def begun_with(self) -> Canaries | None:
        """What the output's vectors are to be compared with later on."""
        return self.reference or next(iter(self.seen.values()), None)

    @property
    def equal_hosts(self) -> tuple[str, ...]:
        """Who was looked at and found to make the same vectors, by this process."""
        return tuple(self.seen)

    def stands(self, hit: CachedVector) -> bool:
        """Whether a vector of the cache may stand in the output: nobody is asked for canaries for it.

        Another host's vectors only where neither of the two was ever seen to change: since then they may differ.
        """
        first = self.chain[0]
        maker = next((one for one in self.chain if (one.provider, one.model) == (hit.provider, hit.model)), None)
        if self.hosts is not None and (maker is None or not (maker.local or host_of(maker) in self.hosts)):
            return False
        if maker is not None and maker.local:
            return True  # its files are named in its space
        after = min(self.begun_at, hit.made_at) if maker is first else 0.0
        return self._changed(after, first, hit.provider, maker) is None and self._is_as_begun(maker)

    def keeps(self, provider: str, model: str, asked_at: float, answered_at: float) -> bool:
        """Whether a vector of the output's journal or parts may stand in it.

        Args:
            asked_at: Unix seconds; likewise `answered_at`.
        """
        if self.owned and self.on_drift == "warn":
            return True
        maker = next((one for one in self.chain if (one.provider, one.model) == (provider, model)), None)
        first, last = min(self.begun_at, asked_at), max(self.begun_at, answered_at)
        return self._changed(first, self.chain[0], provider, maker, last) is None

    def _changed(
        self, after: float, first: Endpoint, provider: str, maker: Endpoint | None, until: float = float("inf")
    ) -> float | None:
        """When the model that was asked for, or the maker's, was last seen to be another than before."""
        hosts = {host_of(one) for one in (first, maker) if one is not None and not one.local}
        unknown = f"{provider}@" if maker is None else None  # none of the chain: any of its hosts
        return self.changes.any(
            lambda host: host in hosts or (unknown is not None and host.startswith(unknown)), after, until
        )

    def _is_as_begun(self, maker: Endpoint | None) -> bool:
        """Whether what is cached is of the model of `reference`, as far as the home knows.

        Where the home knows nothing of it, the first request tells.
        """
        endpoint = maker or self.chain[0]
        if self.reference is None or self.when == "off" or endpoint.local:
            return True
        host = host_of(endpoint)
        path = self._files.get(host)
        if path is None:  # its name is a hash of the space: each vector asks
            path = self._files[host] = canaries.file_of(self.folder, self.asked_as.get(host, endpoint))
        signature = (host, canaries.signature_of(path))
        if self._likeness is None or self._likeness[0] != signature:
            record = canaries.load(path).get(host)
            alike = record is not None and (
                compare(self.reference.vectors, record.last.vectors).what is None
                or _was_settled(record, self.reference, record.last)
            )
            self._likeness = signature, alike
        return self._likeness[1]

    def begin_anew(self) -> None:
        """The output's vectors are made from now on."""
        self.begun_at, self.holds = max(self.begun_at, self.clock().timestamp()), False

    async def check(self, endpoint: Endpoint, ask: Ask) -> None:
        """Look at an endpoint; returns when it may be asked for vectors.

        Args:
            ask: Embeds a few texts with it, and is as patient as with any request.

        Raises:
            ModelChanged: It makes other vectors than it did, and the run is to stop.
            SpaceMismatch: Another host than before makes other vectors, or is not in the lock: ask the next one.
            EmbedctlError: It cannot be asked.
        """
        host = host_of(endpoint)
        async with self._one_at_a_time:
            if not self.is_due(endpoint):
                return
            if self.hosts is not None and host not in self.hosts:
                raise SpaceMismatch(
                    f"{host} is none of the hosts that space.lock names", provider=endpoint.provider, hint=_LOCKED_HINT
                )
            if self.when != "off":
                await self._look(endpoint, host, ask)
            self._pass(host)

    async def settled(self) -> None:
        """Wait, but not for long, for canaries that travel beside other requests."""
        if self._beside:
            _, late = await asyncio.wait(self._beside, timeout=LATE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def aclose(self) -> None:
        """End at once."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    def _pass(self, host: str) -> None:
        now = self.clock()
        self._passed[host] = now.date().isoformat(), now.timestamp()

    def _today(self) -> str:
        return self.clock().date().isoformat()

    async def _look(self, endpoint: Endpoint, host: str, ask: Ask) -> None:
        path = canaries.file_of(self.folder, endpoint)
        known = await asyncio.to_thread(canaries.load, path)
        record = known.get(host)
        if self.reference is None and self.owned:
            self._say_changed_since(endpoint)
        home = next(iter(self.seen), host)
        own = record.first if record else None
        before = self.reference or (own if home == host else self.seen[home])
        if before is None:
            first = self._first(endpoint, path, host, ask)
            if self.waits:
                await first
                return
            task = asyncio.create_task(first)
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)
            return
        if record is not None and self.when == "daily" and record.last.at[:10] == self._today():
            now, asked = record.last, False
        else:
            now, asked = await self._asked(endpoint, host, ask), True
        await self._judge(endpoint, path, before, now, record, ask, asked=asked)
        self.seen[host] = now

    async def _first(self, endpoint: Endpoint, path: Path, host: str, ask: Ask) -> None:
        """The first canaries of a space: there is nothing that could differ yet, so a run does not wait for them."""
        try:
            now = await self._asked(endpoint, host, ask)
        except (KeyRejected, QuotaExhausted):
            pass  # so are the rows, and the run says so
        except ProviderError as error:
            self.observer.notify(Warned("canary", endpoint.id, error.message))
        except EmbedctlError:
            pass  # whatever ends the run says so itself
        else:
            await self._remember(endpoint, path, now, None, "first")
            self.seen[host] = now

    async def _asked(self, endpoint: Endpoint, host: str, ask: Ask) -> Canaries:
        vectors, version = await ask([endpoint.prefix + text for text in TEXTS])
        named = version if canaries.is_word(version) else None
        return Canaries(vectors, self.clock().isoformat(timespec="seconds"), host, named)

    async def _judge(
        self,
        endpoint: Endpoint,
        path: Path,
        before: Canaries,
        now: Canaries,
        record: HostRecord | None,
        ask: Ask,
        *,
        asked: bool,
    ) -> None:
        """Raise ModelChanged or SpaceMismatch, unless the vectors may stand beside those of before."""
        found = compare(before.vectors, now.vectors)
        verdict: Verdict = "same" if found.what is None else "changed"
        renamed = before.host == now.host and before.version != now.version
        settled = _was_settled(record, before, now)
        if found.is_doubtful and (settled or await self._ranks_agree(ask)):
            verdict = "arithmetic"
        elif verdict == "same" and renamed:
            verdict = "version"
        warns = self.on_drift == "warn" and now.host == before.host
        begins = self.reference is None and not self.owned
        if verdict == "changed" and warns and begins:
            verdict = "accepted"
        if asked and verdict in ("changed", "accepted") and _is_news(record, before, now):
            await asyncio.to_thread(self._note_change, endpoint)  # first: what is remembered is no news any more
        if asked or verdict == "accepted":
            await self._remember(endpoint, path, now, found.cosine, verdict)
        if verdict == "accepted" and not self.holds:
            self.begin_anew()
        said = _said(endpoint, before, now, found)
        if verdict in ("changed", "accepted") or (self.locked and verdict != "same"):
            if now.host != before.host:
                raise SpaceMismatch(said, provider=endpoint.provider, hint=_ANOTHER_HINT)
            if self.locked or not warns:
                raise ModelChanged(said, hint=_LOCKED_HINT if self.locked else _CHANGED_HINT)
            self.observer.notify(Warned("model_changed", endpoint.id, said))
            if begins and self.holds and not self.waits:
                self._pass(now.host)
                raise BegunAnew(said, hint="run the same command again: what was made before is not taken any more")
            if not begins:
                self.reference = before  # the next run is to hear of it, too
        elif verdict == "version" and (record is None or record.last.version != now.version):
            names = f"{now.version or 'nothing'} now, and {before.version or 'nothing'} on {before.at[:10]}"
            detail = f"{endpoint.id} calls its model {names}: its vectors are the same"
            self.observer.notify(Warned("model_version", endpoint.id, detail))
        elif verdict == "arithmetic" and asked and not settled:
            detail = f"{said}; but texts find each other as before: other arithmetic, the same weights"
            self.observer.notify(Warned("model_version", endpoint.id, detail))

    def _say_changed_since(self, endpoint: Endpoint) -> None:
        """Of an output without a lock: raise ModelChanged, or warn, when its vectors are from before a change."""
        changed_at = self.changes.any(lambda host: host == host_of(endpoint), self.begun_at)
        if changed_at is None:
            return
        begun, changed = (datetime.fromtimestamp(at, UTC).date().isoformat() for at in (self.begun_at, changed_at))
        said = f"{endpoint.id} is not the model that it was: the output was begun on {begun}, it changed by {changed}"
        if self.on_drift == "stop":
            raise ModelChanged(said, hint=_CHANGED_HINT)
        self.observer.notify(Warned("model_changed", endpoint.id, said))

    def _note_change(self, endpoint: Endpoint) -> None:
        """Nothing that was made before may be taken for what is made now. A disk that refuses ends the run."""
        canaries.note_change(self.folder, host_of(endpoint), self.clock().timestamp())
        self.forget(endpoint)

    async def _ranks_agree(self, ask: Ask) -> bool:
        """Whether the output's own texts, embedded now, find those that are there in the order they did."""
        texts, before = await asyncio.to_thread(self.sample)
        if len(texts) < RANKED_TEXTS:
            return False
        now, _ = await ask(texts)
        return before.shape == now.shape and ranks_agree(before, now)

    async def _remember(
        self, endpoint: Endpoint, path: Path, now: Canaries, cosine: float | None, verdict: Verdict
    ) -> None:
        """In the home. One that cannot be written to costs the memory, not the run."""
        space = endpoint.space(now.vectors.shape[1])
        space_id = space.space_id if isinstance(space, Space) else ""

        def change(record: HostRecord | None) -> HostRecord:
            record = record or HostRecord(space_id=space_id, first=now, last=now)
            return record.looked(now, cosine, verdict)

        with suppress(EmbedctlError):
            await asyncio.to_thread(canaries.update, path, now.host, change)


_CHANGED_HINT = (
    "nothing was written. `embedctl vectors drift` shows its history; a new output, under another name and with "
    "--on-drift warn, holds one model alone; --on-drift warn for this one mixes the two"
)
_LOCKED_HINT = "--locked buys nothing that differs: leave it out, or lock anew with `embedctl vectors lock`"
_ANOTHER_HINT = "its weights, prefixes or pooling differ; take it out of the [fallback] chain"


def _is_news(record: HostRecord | None, before: Canaries, now: Canaries) -> bool:
    """Whether the host made other vectors when it was looked at last: then those are what the cache holds."""
    if record is None:
        return before.host == now.host
    return compare(record.last.vectors, now.vectors).what is not None


def _was_settled(record: HostRecord | None, before: Canaries, now: Canaries) -> bool:
    """Whether ranks were asked for already, when the host made these very vectors."""
    if record is None or not record.sightings or record.sightings[-1].verdict != "arithmetic":
        return False
    pairs = ((record.first, before), (record.last, now))
    return all(compare(one.vectors, other.vectors).cosine >= SAME_COSINE for one, other in pairs)


def _said(endpoint: Endpoint, before: Canaries, now: Canaries, found: Difference) -> str:
    """What is compared, and how it came out."""
    who = endpoint.id if now.host == before.host else f"{now.host} beside {before.host}"
    what = found.what or "the same vectors under another name"
    return f"{who} is not the model that it was: {what}; before: {before.named}, now: {now.named}"
