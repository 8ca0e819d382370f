"""A route: the endpoints that may answer for one output or one client, and which of them are proven or given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from embedctl.dataclass import dataclass
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.leg import Leg
from embedctl.embedding.space_probe import SpaceProbe
from embedctl.records import Limits, Space
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.fallback import Mode
from embedctl.routing.retry import Policy


@dataclass(slots=True, eq=False)
class Route:
    """Who may answer for one output or client.

    Attributes:
        legs: In the order of the chain; the first is what was asked for.
        now: The one that is asked.
        policy: How often and how long one request is tried.
        space: Of the vectors that were given; None while there are none.
        canary: Looks at an endpoint before it is asked; None: nobody does.
        limits_changed: Told what one request may hold, when that is less than was thought, or another one is asked.
    """

    chain: FallbackChain
    mode: Mode
    policy: Policy
    legs: list[Leg]
    space_probe: SpaceProbe
    space: Space | None = None
    canary: CanaryWatch | None = None
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
