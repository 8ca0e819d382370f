"""What one run knows and learns of the servers it asks, for itself and for the next one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from embedctl.errors import ProviderError, Remedy
from embedctl.records import Limits, Observer, Space, Warned
from embedctl.routing import learned
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.learned import Account, Learned, Pair, Served
from embedctl.storage.background import at_once

_ABOUT_ITEMS = re.compile(
    r"batch size|array too long|at most \d+ (?:requests|items|texts)|number of texts|requests can be in"
    r"|inputs in request|too many (?:inputs|texts|items|documents)|texts? (?:per|in one)",
    re.I,
)
_MOST_ITEMS = re.compile(r"(?:at most|maximum length|maximum allowed batch size|batch size limit is)\D{0,3}(\d+)", re.I)
QUOTA_HOLD_S = 900.0

Later = Callable[[Callable[[], object]], None]


class LearnedFile:
    """`hints.json` as one run sees it. A home that cannot be written to costs the memory, not the run.

    Args:
        wall: Epoch seconds: what is remembered outlives the process.
        observer: Told of a file that cannot be read.
        later: Does the writing.
    """

    def __init__(self, file: Path, wall: Callable[[], float], observer: Observer, *, later: Later = at_once) -> None:
        self._file = file
        self._wall = wall
        self._later = later
        self._hints, complaint = learned.load(file)
        if complaint:
            observer.notify(Warned("learned_file", str(file), complaint))

    def held(self, endpoint: Endpoint) -> tuple[float, str]:
        """Seconds for which a server asked to be left alone, and its words; (0, "") when it did not."""
        hold = self._hints.holds.get(account(endpoint))
        return self._hints.held_s(account(endpoint), self._wall()), hold.reason if hold else ""

    def limits(self, endpoint: Endpoint) -> Limits:
        """What one request may hold: the endpoint's limits, and what was learned of its server."""
        return smaller(endpoint.limits, self._hints.limits_of(served(endpoint)))

    def takes_base64(self, endpoint: Endpoint) -> bool:
        """Whether vectors may be asked for as base64."""
        return endpoint.wire.base64 and served(endpoint) not in self._hints.floats_only

    def trusts(self, one: Endpoint, other: Endpoint, space: Space) -> bool:
        """Whether their probes agreed in an earlier run."""
        return _pair(one, other, space) in self._hints.trusted

    def hold(self, endpoint: Endpoint, seconds: float, reason: str) -> None:
        """It asks to be left alone."""
        self._change(lambda known: known.with_hold(account(endpoint), seconds, reason, self._wall()))

    def answers_again(self, endpoint: Endpoint) -> None:
        """It answered: whatever it asked for is over."""
        if account(endpoint) in self._hints.holds:
            self._change(lambda known: known.without_hold(account(endpoint)))

    def only_floats(self, endpoint: Endpoint) -> None:
        """It refuses base64, or does not care."""
        self._change(lambda known: known.with_floats_only(served(endpoint), self._wall()))

    def trust(self, one: Endpoint, other: Endpoint, space: Space) -> None:
        """Their probes agreed."""
        self._change(lambda known: known.with_trust(_pair(one, other, space), self._wall()))

    def too_large(self, endpoint: Endpoint, items: int, content_bytes: int, error: ProviderError) -> None:
        """A request was refused for its size: the limit it names, or half of what was sent, is the most from now on."""
        if error.remedy is not Remedy.HALVE:
            return
        found = Limits(bytes=max(1, content_bytes // 2))
        if _ABOUT_ITEMS.search(error.message):
            named = _MOST_ITEMS.search(error.message)
            most = int(named.group(1)) if named else 0
            found = Limits(items=most if 0 < most < items else max(1, items // 2))
        self._change(lambda known: known.with_limits(served(endpoint), found, self._wall()))

    def _change(self, change: Callable[[Learned], Learned]) -> None:
        self._hints = change(self._hints)
        self._later(lambda: learned.update(self._file, change, self._wall()))


def smaller(one: Limits, other: Limits) -> Limits:
    """What keeps both."""

    def least(a: int | None, b: int | None) -> int | None:
        return min(filter(None, (a, b)), default=None)

    return Limits(
        items=least(one.items, other.items),
        tokens=least(one.tokens, other.tokens),
        bytes=least(one.bytes, other.bytes),
    )


def served(endpoint: Endpoint) -> Served:
    """A model at an address: whose limits are learned."""
    return Served(place(endpoint), endpoint.wire_model)


def account(endpoint: Endpoint) -> Account:
    """A key at an address: whose quota is used up."""
    return Account(place(endpoint), endpoint.account)


def place(endpoint: Endpoint) -> str:
    """A provider at an address: another address is another server."""
    return f"{endpoint.provider}@{endpoint.place.base_url}"


def _pair(one: Endpoint, other: Endpoint, space: Space) -> Pair:
    return learned.pair(_host(one), _host(other), space.space_id)


def _host(endpoint: Endpoint) -> str:
    return f"{endpoint.place.base_url or endpoint.provider}#{endpoint.wire_model}"
