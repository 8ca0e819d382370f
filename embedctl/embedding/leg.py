"""One endpoint of a route: what the route asks of it, and whether it may answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from embedctl.dataclass import dataclass
from embedctl.embedding.endpoint_state import EndpointState, NotAdmittedError
from embedctl.errors import ProviderError
from embedctl.routing.endpoint import Endpoint


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

    def admitted(
        self, clock: Callable[[], float], *, isolating: bool, subject: int | None = None, known_good: bool = False
    ) -> AbstractContextManager[None]:
        """A pass of the breaker for one attempt; see `EndpointState.admitted`.

        Raises:
            NotAdmittedError: There is none now, or never again for this route.
        """
        if self.given_up is not None:
            raise NotAdmittedError(self.given_up)
        return self.state.admitted(clock, isolating=isolating, subject=subject, known_good=known_good)

    def probing(self, now: float) -> bool:
        """Whether one request is under way that will tell whether it serves again."""
        return self.given_up is None and self.state.probing(now)
