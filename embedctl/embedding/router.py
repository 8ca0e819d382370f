"""Who is asked: all endpoints of a process, their breakers and limiters, and what is learned of their servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from embedctl.embedding import usage_events
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.endpoint_state import EndpointState
from embedctl.embedding.leg import Leg
from embedctl.embedding.machine_time import MachineTime
from embedctl.embedding.route import Route
from embedctl.embedding.space_probe import Probe, SpaceProbe
from embedctl.errors import (
    AnswerUnshaped,
    AnswerUnusable,
    EmbedctlError,
    ProviderError,
    Remedy,
    ServerFailed,
    SpaceMismatch,
    Throttled,
)
from embedctl.records import UNOBSERVED, FellBack, LimitLearned, Limits, Observer, Space, UsageEvent, format_duration
from embedctl.routing import fallback
from embedctl.routing.breaker import Breaker, Snapshot, State, Thresholds
from embedctl.routing.chain import FallbackChain
from embedctl.routing.circuits import Circuits
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.fallback import Availability, ChainEntry, Nobody
from embedctl.routing.learned import Account
from embedctl.routing.learned_file import QUOTA_HOLD_S, LearnedFile, account, smaller
from embedctl.routing.limiter import Limiter
from embedctl.routing.retry import Policy, Step
from embedctl.routing.waits import Waits
from embedctl.storage.background import Background

if TYPE_CHECKING:
    from embedctl.backends.http.transport import Transport

_T = TypeVar("_T")

_SHORTEST_PAUSE_S = 0.05
_LOOK_EVERY_S = 5.0
_ASKING_LIMITS_S = 10.0

MakeLimiter = Callable[[Endpoint, Callable[[float], None]], Limiter]
"""(endpoint, told how long a request waits) → the limiter of all its requests."""


class WaitBudget:
    """How long one request has waited for an endpoint, all its waits together."""

    __slots__ = ("waited_s",)

    def __init__(self) -> None:
        self.waited_s = 0.0


class Router:
    """The endpoints of a process: one state for each provider, model and key, whoever asks.

    Args:
        hints_file: What servers said in words, remembered across runs; `circuits/` is beside it.
        limiter: Makes the limiter of an endpoint.
        connections: Most at once to one host.
        wall: Epoch seconds, for what is remembered; `clock` is monotonic and for waiting.
        sleep: Waits; a run that is told to stop raises from it.
        thresholds: When breakers open, and for how long; None: as for a run.
        observer: Told of waits, of fallbacks, and of limits that are learned.
    """

    def __init__(
        self,
        *,
        hints_file: Path,
        limiter: MakeLimiter,
        max_wait_s: float,
        jitter: Callable[[], float],
        connections: int = 64,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        thresholds: Thresholds | None = None,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._limiter = limiter
        self.thresholds = thresholds or Thresholds()
        self._max_wait_s = max_wait_s
        self._jitter = jitter
        self._connections = connections
        self._clock, self._wall, self._sleep, self._observer = clock, wall, sleep, observer
        self._moved = asyncio.Event()
        self._transports: dict[tuple[bool, Path | None], Transport] = {}
        self._background = Background()
        self._counting: ThreadPoolExecutor | None = None
        self._circuits = Circuits(hints_file.parent / "circuits", uuid4().hex)
        self._states: dict[tuple[Account, str, str], EndpointState] = {}
        self._endpoints: list[tuple[Endpoint, EndpointState]] = []
        self._machines: dict[str, tuple[Endpoint, MachineTime]] = {}
        self.memory = LearnedFile(hints_file, wall, observer, later=self._background)
        self.waits = Waits(observer, clock)

    def route(
        self,
        chain: FallbackChain,
        *,
        mode: fallback.Mode,
        policy: Policy,
        space: Space | None = None,
        space_probe: SpaceProbe | None = None,
        canary: CanaryWatch | None = None,
        limits_changed: Callable[[Limits], None] = lambda limits: None,
    ) -> Route:
        """A route for one output or client. To be closed.

        Args:
            space: That the output already holds; None while it holds none.
            space_probe: That routes to the same space share; None: one of its own.
            canary: Looks at an endpoint before it is asked for anything else.
        """
        legs = [Leg(endpoint, self._state(endpoint)) for endpoint in chain.endpoints]
        return Route(
            chain=chain,
            mode=mode,
            policy=policy,
            legs=legs,
            space_probe=space_probe or SpaceProbe(self.memory, canary),
            space=space,
            canary=canary,
            limits_changed=limits_changed,
        )

    def _state(self, endpoint: Endpoint) -> EndpointState:
        """What all routes to a provider, model and key share."""
        key = (account(endpoint), endpoint.wire_model, endpoint.place.base_url)

        def waiting(seconds: float) -> None:
            self.waits.say(endpoint.id, "held back by its rate limit", seconds)

        found = self._states.get(key)
        if found is not None and found.rate_limits != endpoint.rate_limits:  # a service's settings changed meanwhile
            found.rate_limits, found.limiter = endpoint.rate_limits, self._limiter(endpoint, waiting)
        if found is None:
            breaker = Breaker(endpoint.provider, endpoint.wire_model, jitter=self._jitter, thresholds=self.thresholds)
            self._states[key] = EndpointState(
                transport=None if endpoint.local else self.transport(endpoint),
                limiter=self._limiter(endpoint, waiting),
                rate_limits=endpoint.rate_limits,
                breaker=breaker,
                asks_base64=self.memory.takes_base64(endpoint),
                moved=self._wake,
                machine=self._machine(endpoint),
            )
            self._endpoints.append((endpoint, self._states[key]))
        return self._states[key]

    def _machine(self, endpoint: Endpoint) -> MachineTime | None:
        """The time of the place's machine, which all its models share."""
        if endpoint.per_hour is None:
            return None
        return self._machines.setdefault(endpoint.provider, (endpoint, MachineTime()))[1]

    def idle(self, caller: usage_events.Caller) -> list[UsageEvent]:
        """What machines that cost by the hour come to beyond their answered calls, since it was last asked."""
        left = [(endpoint, machine.rest()) for endpoint, machine in self._machines.values()]
        return [usage_events.idle(caller, endpoint, microhours) for endpoint, microhours in left if microhours]

    def transport(self, endpoint: Endpoint) -> Transport:
        """The connections to an endpoint."""
        from embedctl.backends.http.transport import Transport  # the HTTP client: not for runs that stay here

        key = (endpoint.insecure, endpoint.ca_file)
        if key not in self._transports:
            self._transports[key] = Transport(
                connections=self._connections, insecure=endpoint.insecure, ca_file=endpoint.ca_file
            )
        return self._transports[key]

    async def aclose(self) -> None:
        """Close all connections, and write down what was learned."""
        await asyncio.to_thread(self._background.close)
        self._circuits.close()
        if self._counting is not None:
            self._counting.shutdown(wait=False)
        for transport in self._transports.values():
            await transport.aclose()

    async def counted(self, count: Callable[[], _T]) -> _T:
        """Count tokens in a thread of their own: a tokenizer takes its time."""
        if self._counting is None:
            self._counting = ThreadPoolExecutor(1, thread_name_prefix="counting")
        return await asyncio.get_running_loop().run_in_executor(self._counting, count)

    def limits(self, route: Route) -> Limits:
        """What one request may hold: the limits of the endpoint that is asked, and what was learned of its server."""
        return self.memory.limits(route.now.endpoint)

    async def ask(self, route: Route, leg: Leg | None = None) -> Endpoint:
        """Ask a server once what it takes, where its protocol can; the endpoint as it is from then on.

        A server that does not say is asked nothing more: the first request will show what is wrong. One that serves
        another model is given up.

        Args:
            leg: None: the first one.
        """
        leg = leg or route.first
        probe: Any = getattr(leg.endpoint.protocol, "probe", None)
        if leg.asked_limits or probe is None or leg.state.transport is None:
            return leg.endpoint
        leg.asked_limits = True
        protocol: Any = leg.endpoint.protocol
        try:
            asked = probe(leg.endpoint.place)
            answer = await leg.state.transport.send(asked, timeout_s=_ASKING_LIMITS_S)
        except EmbedctlError:
            return leg.endpoint
        if answer.status != 200:
            return leg.endpoint
        leg.given_up = leg.given_up or _another_model(leg.endpoint, protocol.served_model(answer.body, asked))
        known, named = leg.endpoint.limits, protocol.limits(answer.body)
        default = protocol.LIMITS
        leg.endpoint = replace(
            leg.endpoint,
            limits=Limits(
                items=named.items if known.items == default.items else smaller(known, named).items,
                tokens=named.tokens,
                bytes=smaller(known, named).bytes,
            ),
            max_tokens=min(filter(None, (leg.endpoint.max_tokens, protocol.max_tokens(answer.body))), default=None),
        )
        route.limits_changed(self.limits(route))
        return leg.endpoint

    async def next(self, route: Route, probe: Probe, wait_budget: WaitBudget, subject: int | None = None) -> Leg:
        """The endpoint to ask now; waits for one, `max_wait` at most.

        Args:
            subject: Of the request: `Request.subject`.

        Raises:
            ProviderError: All of them are dead; the gravest cause.
            NoProviderNow: One is back later than `max_wait`.
        """
        while True:
            chosen = self._choose(route, subject)
            if isinstance(chosen, Leg):
                chosen.state.asked_although_held |= self.memory.held(chosen.endpoint)[0] > 0
                if chosen.proven or await route.space_probe.given(route.legs, route.space, chosen, probe):
                    return await self._chosen(route, chosen)
                continue
            left_s = self._max_wait_s - wait_budget.waited_s
            probing = any(leg.probing(self._clock()) for leg in route.legs)
            if chosen.ready_in_s is None or left_s <= 0 or (chosen.ready_in_s > left_s and not probing):
                raise self._end(route, chosen)
            if not probing:
                self.waits.say(route.now.endpoint.id, chosen.error.message, chosen.ready_in_s)
            before = self._clock()
            await self._pause(min(max(_SHORTEST_PAUSE_S, chosen.ready_in_s), left_s, _LOOK_EVERY_S))
            wait_budget.waited_s += self._clock() - before
            await self._close_on_demand(route)

    async def _chosen(self, route: Route, leg: Leg) -> Leg:
        if leg is not route.now:
            self._observer.notify(FellBack(leg.endpoint.id, route.now.endpoint.id))
            route.now = leg
            route.limits_changed(self.limits(route))
        await self.ask(route, leg)
        return leg

    async def _pause(self, seconds: float) -> None:
        """Wait, or until an endpoint may have become usable."""
        moved = asyncio.ensure_future(self._moved.wait())
        slept = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait((moved, slept), return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            if not slept.done():
                slept.cancel()
        if slept.done() and not slept.cancelled():
            slept.result()  # the run may have been told to stop

    async def _close_on_demand(self, route: Route) -> None:
        """`providers reset` closes circuits and lifts holds of running jobs too."""
        for leg in route.legs:
            if await asyncio.to_thread(self._circuits.asked_to_close, leg.endpoint.provider):
                self.reset(leg.endpoint.provider)

    async def heed_resets(self) -> None:
        """What `providers reset` asked of running processes since this was last called."""
        for provider in {endpoint.provider for endpoint, _ in self._endpoints}:
            if await asyncio.to_thread(self._circuits.asked_to_close, provider):
                self.reset(provider)

    def reset(self, provider: str) -> int:
        """Close a provider's circuits, and forget that it asked to be left alone; how many circuits it has."""
        mine = [(endpoint, state) for endpoint, state in self._endpoints if endpoint.provider == provider]
        for endpoint, state in mine:
            state.breaker.reset(self._clock())
            self.memory.answers_again(endpoint)
        if mine:
            self._wake()
        return len(mine)

    def _wake(self) -> None:
        """An endpoint may have become usable or useless: those who wait look again."""
        snapshots = self.snapshots()
        if self._circuits.is_news(snapshots):
            self._background(lambda: self._circuits.publish(snapshots))
        self._moved.set()
        self._moved = asyncio.Event()

    def _end(self, route: Route, nobody: Nobody) -> EmbedctlError:
        """What the run ends with: answers that stay unusable are their own reason."""
        last = [leg.state.last_error for leg in route.legs if leg.state.last_error is not None]
        if nobody.ready_in_s is not None and last and all(isinstance(error, AnswerUnusable) for error in last):
            return last[0]
        return nobody.error

    def _choose(self, route: Route, subject: int | None) -> Leg | Nobody:
        by_entry: dict[ChainEntry, Leg] = {}
        for leg in route.legs:
            by_entry.setdefault(leg.endpoint.in_chain, leg)
        fitting, strangers = fallback.fitting(
            list(by_entry), route.mode, output_space_id=route.space.space_id if route.space else None
        )
        available = {entry: self._availability(by_entry[entry], subject) for entry in fitting}
        chosen = fallback.choose(fitting, available, left_out=[*route.chain.left_out, *strangers])
        return chosen if isinstance(chosen, Nobody) else by_entry[chosen]

    def _availability(self, leg: Leg, subject: int | None) -> Availability:
        now = self._clock()
        dead = leg.given_up or leg.state.breaker.dead(now)
        if dead is not None:
            return Availability(dead=dead)
        held, reason = self.memory.held(leg.endpoint)
        ready = leg.state.breaker.ready_in(now, subject) or 0.0
        if held > ready:
            return Availability(ready_in_s=held, probe=not leg.state.asked_although_held, reason=reason)
        return Availability(ready_in_s=ready, reason=leg.state.breaker.reason_for(now, subject) or "")

    def paced(self, leg: Leg) -> None:
        """An attempt ended: its endpoint may allow another pace than before."""
        unit = "texts" if leg.endpoint.rate_limits.counts_items else "requests"
        self.waits.pace(leg.endpoint.id, leg.state.limiter.per_second, unit)

    def failed(self, leg: Leg, error: ProviderError) -> None:
        """An attempt failed."""
        leg.state.last_error = error
        if isinstance(error, AnswerUnshaped):
            leg.state.unshaped += 1

    def answered(
        self, route: Route, leg: Leg, texts: Sequence[object], vectors: NDArray[np.float32], *, probe: bool
    ) -> None:
        """A good answer came; `probe`: one that goes into no output."""
        leg.state.successes += 1
        leg.state.unshaped = 0
        leg.state.last_error = None
        if leg.state.successes == 1:
            self.memory.answers_again(leg.endpoint)
        if not probe:
            route.space_probe.answered(leg, texts, vectors)

    def only_floats(self, leg: Leg) -> None:
        """Its server refuses base64, or answers in floats whatever is asked."""
        leg.state.asks_base64 = False
        self.memory.only_floats(leg.endpoint)

    def leave(self, leg: Leg, step: Step, subject: int | None = None) -> bool:
        """Give an endpoint up for this route, or (an open breaker) for a while. Whether that is news.

        Args:
            step: With WAIT nothing was sent: the breaker did not let it.
            subject: Of the request: `Request.subject`.
        """
        error = step.error
        if not isinstance(error, ProviderError) or leg.given_up is not None:
            return False
        if error.word == "circuit_open":
            if step.remedy is Remedy.GIVE_UP:
                leg.state.breaker.trip(error, self._clock(), subject)
            elif subject is not None and leg.state.breaker.state(self._clock()) is State.CLOSED:
                leg.state.breaker.put_off(subject, error, self._clock())  # a part of it is
            decided = not leg.state.probing(self._clock())
            if decided and leg.state.successes == 0 and leg.state.last_error is not None:
                leg.given_up = leg.state.last_error  # it has not answered once in this run: waiting is for the next one
            self._wake()
            return leg.given_up is not None
        asked_s = step.refused_for_s if isinstance(error, Throttled | ServerFailed) else None
        if error.word == "quota_exhausted":
            asked_s = error.retry_after_s or QUOTA_HOLD_S
        if asked_s:
            self.memory.hold(leg.endpoint, asked_s, error.message)
            error.hint = error.hint or f"run the same command again in {format_duration(asked_s)} to go on"
        leg.given_up = error
        self._wake()
        return True

    def too_large(self, route: Route, leg: Leg, items: int, content_bytes: int, error: ProviderError) -> None:
        """A request was refused for its size: less is sent from now on, by this run and the next."""
        before = self.memory.limits(leg.endpoint)
        self.memory.too_large(leg.endpoint, items, content_bytes, error)
        if (learned := self.memory.limits(leg.endpoint)) != before:
            self._observer.notify(LimitLearned(leg.endpoint.id, learned))
        route.limits_changed(self.limits(route))

    def snapshots(self) -> list[Snapshot]:
        """How every breaker stands."""
        return [state.breaker.snapshot(self._clock()) for _, state in self._endpoints]

    def moment(self, at: float) -> float:
        """A time of a snapshot, as epoch seconds."""
        return self._wall() - (self._clock() - at)


def _another_model(endpoint: Endpoint, said: str | None) -> SpaceMismatch | None:
    """What is wrong when a server names a model of the hub that is another one; paths say nothing."""
    if not said or endpoint.entry is None or said.count("/") != 1 or said.startswith(("/", ".")):
        return None
    wanted = {endpoint.wire_model, endpoint.model, endpoint.canonical}
    if said.rpartition("/")[2].casefold() in {name.rpartition("/")[2].casefold() for name in wanted}:
        return None
    return SpaceMismatch(
        f"{endpoint.provider} at {endpoint.place.base_url} serves {said}, not {endpoint.wire_model}",
        hint=f"ask for what it serves: -m {endpoint.provider}:{said}",
        provider=endpoint.provider,
    )
