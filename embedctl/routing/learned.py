"""What servers said in words, remembered across runs: when to come back, what they take, who is trusted.

`Hints` is a value with pure functions; `load`, `save` and `update` are its file. Losing it costs a few requests, so a
broken file is a warning. Times are wall-clock seconds (epoch), because they outlive the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.records import Limits
from embedctl.storage import DISK, locks
from embedctl.storage import replace as replace_file

LONGEST_HOLD_S = 3600.0
LOCK_WAIT_S = 5.0
LIMIT_LIVES_S = 30 * 86400.0  # a server may have been rebuilt since
MAX_BYTES = 16 << 20
"""Of the file: hints of some ten thousand servers."""

_NONE: Mapping[Any, Any] = MappingProxyType({})


class Account(NamedTuple):
    """A provider and one of its keys; `key` is a fingerprint, never the key."""

    provider: str
    key: str


class Served(NamedTuple):
    """A provider and a model on the wire."""

    provider: str
    model: str


class Pair(NamedTuple):
    """Two hosts whose probes gave the same vectors in a space; `pair` puts them in order."""

    one: str
    other: str
    space_id: str


@dataclass(frozen=True, slots=True)
class Cooldown:
    """Do not ask before `until` (epoch seconds), because of `reason`."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class LearnedLimits:
    """Limits that a server named or showed, and when."""

    limits: Limits
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Everything remembered. The `with_…` functions return a changed copy."""

    holds: Mapping[Account, Cooldown] = field(default_factory=lambda: _NONE)
    limits: Mapping[Served, LearnedLimits] = field(default_factory=lambda: _NONE)
    floats_only: Mapping[Served, float] = field(default_factory=lambda: _NONE)
    trusted: Mapping[Pair, float] = field(default_factory=lambda: _NONE)

    def held_s(self, account: Account, now: float) -> float:
        """Seconds until this account may be asked, 0 = now; never over an hour, whatever the clocks did.

        The caller may always send one probe, and calls `without_hold` when it was answered.
        """
        hold = self.holds.get(account)
        return min(LONGEST_HOLD_S, max(0.0, hold.until - now)) if hold else 0.0

    def limits_of(self, served: Served) -> Limits:
        """What was learned of this model's server; all None when nothing was."""
        learnt = self.limits.get(served)
        return learnt.limits if learnt else Limits()

    def with_hold(self, account: Account, wait_s: float, reason: str, now: float) -> Learned:
        """The account asks to be left alone for `wait_s` seconds; an hour at most is remembered."""
        if not math.isfinite(wait_s) or wait_s <= 0:
            return self
        hold = Cooldown(now + min(wait_s, LONGEST_HOLD_S), reason)
        return replace(self, holds={**self.holds, account: hold})

    def without_hold(self, account: Account) -> Learned:
        """The account answered again."""
        return replace(self, holds={key: hold for key, hold in self.holds.items() if key != account})

    def with_limits(self, served: Served, limits: Limits, now: float) -> Learned:
        """Something was too large, or the server said what it takes: the smaller of old and new."""
        learnt = LearnedLimits(_smaller(self.limits_of(served), limits), now)
        return replace(self, limits={**self.limits, served: learnt})

    def with_floats_only(self, served: Served, now: float) -> Learned:
        """The server refused base64, or answered in floats."""
        return replace(self, floats_only={**self.floats_only, served: now})

    def with_trust(self, trusted: Pair, now: float) -> Learned:
        """Probes on both hosts gave the same vectors."""
        return replace(self, trusted={**self.trusted, trusted: now})

    def without(self, provider: str) -> Learned:
        """`providers reset NAME`: all that is remembered of a provider. Trust names hosts and stays."""
        return replace(
            self,
            holds={key: value for key, value in self.holds.items() if key.provider != provider},
            limits={key: value for key, value in self.limits.items() if key.provider != provider},
            floats_only={key: value for key, value in self.floats_only.items() if key.provider != provider},
        )


def fingerprint(key: str) -> str:
    """16 hex digits that tell keys apart and do not give them away; "" for no key."""
    return blake2b(key.encode(), digest_size=8, person=b"key").hexdigest() if key else ""


def pair(one: str, other: str, space_id: str) -> Pair:
    """Two hosts, in either order."""
    return Pair(min(one, other), max(one, other), space_id)


def merged(one: Learned, other: Learned) -> Learned:
    """Both memories: the later hold, the smaller limits, the later date of all else."""
    limits = dict(one.limits)
    for served, theirs in other.limits.items():
        mine = limits.get(served)
        limits[served] = (
            LearnedLimits(_smaller(mine.limits, theirs.limits), max(mine.at, theirs.at)) if mine else theirs
        )
    holds = dict(one.holds)
    for account, hold in other.holds.items():
        holds[account] = max(holds.get(account, hold), hold, key=lambda each: (each.until, each.reason))
    return Learned(
        holds=holds,
        limits=limits,
        floats_only=_latest(one.floats_only, other.floats_only),
        trusted=_latest(one.trusted, other.trusted),
    )


def living(hints: Learned, now: float) -> Learned:
    """Without what is over: holds that have passed, limits and refusals of a month ago."""
    return replace(
        hints,
        holds={key: hold for key, hold in hints.holds.items() if hold.until > now},
        limits={key: learnt for key, learnt in hints.limits.items() if now - learnt.at < LIMIT_LIVES_S},
        floats_only={key: at for key, at in hints.floats_only.items() if now - at < LIMIT_LIVES_S},
    )


def load(path: Path) -> tuple[Learned, str | None]:
    """What the file remembers, and a warning when it cannot be read; a missing file is an empty memory."""
    try:
        return _decoded(orjson.loads(storage.read_small(path, max_bytes=MAX_BYTES, follow=False))), None
    except FileNotFoundError:
        return Learned(), None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        return Learned(), f"{path} cannot be used ({type(problem).__name__}): starting without remembered hints"


def save(path: Path, hints: Learned) -> None:
    """Write the file whole, for its owner's eyes only.

    Raises:
        OutputRefused, StorageFailed: It cannot be written; for the caller a warning.
    """
    DISK.make_folder(path.parent)
    replace_file(DISK, path, orjson.dumps(_encoded(hints), option=orjson.OPT_INDENT_2))


def update(path: Path, change: Callable[[Learned], Learned], now: float) -> Learned:
    """Read, change and write under a lock, so that overlapping jobs keep each other's words.

    Raises:
        Locked, OutputRefused, StorageFailed: It cannot be written; for the caller a warning.
    """
    DISK.make_folder(path.parent)
    with locks.hold(path.with_name(f".{path.name}.lock"), command="remembering limits", wait_s=LOCK_WAIT_S):
        hints = living(change(load(path)[0]), now)
        save(path, hints)
        return hints


def _smaller(one: Limits, other: Limits) -> Limits:
    def least(a: int | None, b: int | None) -> int | None:
        return min((value for value in (a, b) if value is not None), default=None)

    return Limits(
        items=least(one.items, other.items),
        tokens=least(one.tokens, other.tokens),
        bytes=least(one.bytes, other.bytes),
    )


def _latest(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[Any, float]:
    return {key: max(one.get(key, at), at) for key, at in {**one, **other}.items()}


def _encoded(hints: Learned) -> dict[str, Any]:
    return {
        "version": 1,
        "holds": [[*account, hold.until, hold.reason] for account, hold in hints.holds.items()],
        "limits": [
            [*served, learnt.limits.items, learnt.limits.tokens, learnt.limits.bytes, learnt.at]
            for served, learnt in hints.limits.items()
        ],
        "floats_only": [[*served, at] for served, at in hints.floats_only.items()],
        "trusted": [[*trusted, at] for trusted, at in hints.trusted.items()],
    }


def _decoded(state: dict[str, Any]) -> Learned:
    if state["version"] != 1:
        raise ValueError("another version")
    return Learned(
        holds={
            Account(str(provider), str(key)): Cooldown(float(until), str(reason))
            for provider, key, until, reason in state["holds"]
        },
        limits={
            Served(str(provider), str(model)): LearnedLimits(
                Limits(items=_limit(items), tokens=_limit(tokens), bytes=_limit(size)), float(at)
            )
            for provider, model, items, tokens, size, at in state["limits"]
        },
        floats_only={Served(str(provider), str(model)): float(at) for provider, model, at in state["floats_only"]},
        trusted={Pair(str(one), str(other), str(space)): float(at) for one, other, space, at in state["trusted"]},
    )


def _limit(value: Any) -> int | None:
    if value is None:
        return None
    if int(value) < 1:
        raise ValueError("a limit below 1")
    return int(value)
