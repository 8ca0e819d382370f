"""A route: the endpoints that may answer for one output or one client, and which of them are proven or given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from embedctl.embedding.endpoint_state import EndpointState, NotAdmittedError
from embedctl.embedding.space_probe import SpaceProbe
from embedctl.errors import ProviderError
from embedctl.records import Limits, Space
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.fallback import Mode
from embedctl.routing.retry import Policy


@dataclass(slots=True, eq=False)
class Leg:
    """One endpoint of a route.

    Attributes:
        endpoint: As this route asks it: dimensions, prefix, limits.
        state: What all routes share: connections, limiter, breaker, what was learned of the server.
        proven: Its vectors may stand beside those of the output.
        given_up: Why it is asked no more for this route.
        asked_limits: It was asked what it takes, where it can say so.
    """

    endpoint: Endpoint
    state: EndpointState
    proven: bool = False
    given_up: ProviderError | None = None
    asked_limits: bool = False

    @contextmanager
    def admitted(self, clock: Callable[[], float], *, isolating: bool) -> Iterator[None]:
        """A pass of the breaker for one attempt; see `EndpointState.admitted`.

        Raises:
            NotAdmittedError: There is none now, or never again for this route.
        """
        if self.given_up is not None:
            raise NotAdmittedError(self.given_up)
        with self.state.admitted(clock, isolating=isolating):
            yield

    def probing(self, now: float) -> bool:
        """Whether one request is under way that will tell whether it serves again."""
        return self.given_up is None and self.state.probing(now)


@dataclass(slots=True, eq=False)
class Route:
    """Who may answer for one output or client.

    Attributes:
        legs: In the order of the chain; the first is what was asked for.
        now: The one that is asked.
        policy: How often and how long one request is tried.
        space: Of the vectors that were given; None while there are none.
        limits_changed: Told what one request may hold, when that is less than was thought, or another one is asked.
    """

    chain: FallbackChain
    mode: Mode
    policy: Policy
    legs: list[Leg]
    space_probe: SpaceProbe
    space: Space | None = None
    limits_changed: Callable[[Limits], None] = lambda limits: None
    now: Leg = field(init=False)
    _spaces: dict[int, tuple[Endpoint, int, Space | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = self.first

    @property
    def first(self) -> Leg:
        """The model that was asked for."""
        return self.legs[0]

    def space_of(self, endpoint: Endpoint, width: int) -> Space | None:
        """Where vectors of this width belong; worked out once, because an id is a hash of all fields."""
        known = self._spaces.get(id(endpoint))
        if known is None or known[0] is not endpoint or known[1] != width:
            known = self._spaces[id(endpoint)] = (endpoint, width, endpoint.space(width))
        return known[2]

    def fallback_from(self, leg: Leg) -> str | None:
        """The id of the endpoint asked for, when this is another."""
        return None if leg is self.first else self.first.endpoint.id

    def close(self) -> None:
        """Nobody asks any more."""
        self.chain.close()
