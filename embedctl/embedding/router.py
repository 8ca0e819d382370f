"""The lines of a chain in one run: who is asked next, who is waited for, and what is learnt of their servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from embedctl.embedding.endpoint_state import EndpointState
from embedctl.embedding.space_probe import Probe, SpaceProbe
from embedctl.errors import AnswerUnusable, EmbedctlError, ProviderError, ServerFailed, SpaceMismatch, Throttled
from embedctl.records import Limits, Space
from embedctl.routing import fallback
from embedctl.routing.breaker import Breaker, Snapshot
from embedctl.routing.chain import FallbackChain
from embedctl.routing.circuits import Circuits
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.endpoint import check_usable as check_usable
from embedctl.routing.fallback import Availability, ChainEntry, Nobody
from embedctl.routing.learned_file import QUOTA_HOLD_S, LearnedFile, smaller
from embedctl.routing.limiter import Limiter
from embedctl.routing.retry import Step
from embedctl.routing.waits import Waits, spoken

if TYPE_CHECKING:
    from embedctl.backends.http.transport import Transport

_SHORTEST_PAUSE_S = 0.05
_LOOK_EVERY_S = 5.0
_ASKING_LIMITS_S = 10.0


class WaitBudget:
    """How long one request has waited for a line, all its waits together."""

    __slots__ = ("waited_s",)

    def __init__(self) -> None:
        self.waited_s = 0.0


class Router:
    """All lines of a chain.

    Args:
        hints_file: What servers said in words, remembered across runs; `circuits/` is beside it.
        wall: Epoch seconds, for hints; `clock` is monotonic and for waiting.
        changed: Told when less fits into a request than was thought.
        told: Told what happens, for -v.
        waits: Told of long waits; None: they are told like all else.
    """

    def __init__(
        self,
        chain: FallbackChain,
        *,
        hints_file: Path,
        mode: fallback.Mode,
        max_wait_s: float,
        jitter: Callable[[], float],
        connections: int = 64,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        changed: Callable[[Limits], None] = lambda limits: None,
        told: Callable[[str], None] = lambda text: None,
        waits: Callable[[str], None] | None = None,
    ) -> None:
        self._chain = chain
        self._mode = mode
        self._max_wait_s = max_wait_s
        self._jitter = jitter
        self._connections = connections
        self._clock, self._sleep, self._changed = clock, sleep, changed
        self._moved = asyncio.Event()
        self._transports: dict[tuple[bool, Path | None], Transport] = {}
        self._circuits = Circuits(hints_file.parent / "circuits", uuid4().hex)
        self.memory = LearnedFile(hints_file, wall, told)
        self.waits = Waits(told, waits or told, clock)
        self.states = [self._state(endpoint) for endpoint in chain.endpoints]
        self._now = self.first
        self._space_probe = SpaceProbe(self.first, self.memory)

    def _state(self, endpoint: Endpoint) -> EndpointState:
        def waiting(seconds: float) -> None:
            self.waits.say(endpoint.id, "asked to send less", seconds)

        return EndpointState(
            endpoint=endpoint,
            transport=None if endpoint.local else self._transport(endpoint),
            limiter=Limiter(
                endpoint.rate_limits,
                clock=self._clock,
                sleep=self._sleep,
                longest_gate_s=self._max_wait_s,
                waiting=waiting,
            ),
            breaker=Breaker(endpoint.provider, endpoint.wire_model, jitter=self._jitter),
            asks_base64=self.memory.takes_base64(endpoint),
            moved=self._wake,
        )

    def _transport(self, endpoint: Endpoint) -> Transport:
        from embedctl.backends.http.transport import Transport  # httpx: not for runs that stay on this machine

        key = (endpoint.insecure, endpoint.ca_file)
        if key not in self._transports:
            self._transports[key] = Transport(
                connections=self._connections, insecure=endpoint.insecure, ca_file=endpoint.ca_file
            )
        return self._transports[key]

    async def aclose(self) -> None:
        """Close all connections."""
        self._circuits.close()
        self._chain.close()
        for transport in self._transports.values():
            await transport.aclose()

    @property
    def first(self) -> EndpointState:
        """The line of the model that was asked for."""
        return self.states[0]

    def limits(self) -> Limits:
        """What one request may hold: the limits of the line that is asked now, and what was learnt of its server."""
        return self.memory.limits(self._now.endpoint)

    async def ask(self, state: EndpointState | None = None) -> Endpoint:
        """Ask a server once what it takes, where its protocol can; its offer from then on.

        A server that does not say is asked nothing more: the first request will show what is wrong. One that serves
        another model is spent.

        Args:
            line: None: the first one.
        """
        state = state or self.first
        probe: Any = getattr(state.endpoint.protocol, "probe", None)
        if state.asked_limits or probe is None or state.transport is None:
            return state.endpoint
        state.asked_limits = True
        protocol: Any = state.endpoint.protocol
        try:
            said = await state.transport.send(probe(state.endpoint.place), timeout_s=_ASKING_LIMITS_S)
        except EmbedctlError:
            return state.endpoint
        if said.status != 200:
            return state.endpoint
        state.spent = state.spent or _another_model(state.endpoint, protocol.served_model(said.body))
        known, told = state.endpoint.limits, protocol.limits(said.body)
        default = protocol.LIMITS
        state.endpoint = replace(
            state.endpoint,
            limits=Limits(
                items=told.items if known.items == default.items else smaller(known, told).items,
                tokens=told.tokens,
                bytes=smaller(known, told).bytes,
            ),
            max_tokens=min(filter(None, (state.endpoint.max_tokens, protocol.max_tokens(said.body))), default=None),
        )
        self._changed(self.limits())
        return state.endpoint

    async def next(self, space: Space | None, probe: Probe, wait_budget: WaitBudget) -> EndpointState:
        """The line to ask now; waits for one, `max_wait` at most.

        Raises:
            ProviderError: All of them are dead; the gravest cause.
            NoProviderNow: One is back later than `max_wait`.
        """
        while True:
            chosen = self._choose(space)
            if isinstance(chosen, EndpointState):
                chosen.asked_although_held |= self.memory.held(chosen.endpoint)[0] > 0
                if chosen.proven or await self._space_probe.given(chosen, space, probe):
                    return await self._taken(chosen)
                continue
            left_s = self._max_wait_s - wait_budget.waited_s
            probing = any(state.probing(self._clock()) for state in self.states)
            if chosen.ready_in_s is None or left_s <= 0 or (chosen.ready_in_s > left_s and not probing):
                raise self._end(chosen)
            if not probing:
                self.waits.say(self._now.endpoint.id, chosen.error.message, chosen.ready_in_s)
            before = self._clock()
            await self._pause(min(max(_SHORTEST_PAUSE_S, chosen.ready_in_s), left_s, _LOOK_EVERY_S))
            wait_budget.waited_s += self._clock() - before
            self._close_on_demand()

    async def _taken(self, state: EndpointState) -> EndpointState:
        if state is not self._now:
            self._now = state
            self._changed(self.limits())
        await self.ask(state)
        return state

    async def _pause(self, seconds: float) -> None:
        """Wait, or until a line moves."""
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

    def _close_on_demand(self) -> None:
        """`providers reset` closes circuits and lifts holds of running jobs too."""
        for state in self.states:
            if self._circuits.asked_to_close(state.endpoint.provider):
                state.breaker.reset()
                self.memory.answers_again(state.endpoint)
                self._wake()

    def _wake(self) -> None:
        """A line may have become usable or useless: those who wait look again."""
        self._circuits.publish(self.snapshots())
        self._moved.set()
        self._moved = asyncio.Event()

    def _end(self, nobody: Nobody) -> EmbedctlError:
        """What the run ends with: answers that stay unusable are their own reason."""
        last = [state.last_error for state in self.states if state.last_error is not None]
        if nobody.ready_in_s is not None and last and all(isinstance(error, AnswerUnusable) for error in last):
            return last[0]
        return nobody.error

    def _choose(self, space: Space | None) -> EndpointState | Nobody:
        by_entry: dict[ChainEntry, EndpointState] = {}
        for state in self.states:
            by_entry.setdefault(state.endpoint.in_chain, state)
        fitting, strangers = fallback.fitting(
            list(by_entry), self._mode, output_space_id=space.space_id if space else None
        )
        available = {entry: self._availability(by_entry[entry]) for entry in fitting}
        chosen = fallback.choose(fitting, available, left_out=[*self._chain.left_out, *strangers])
        return chosen if isinstance(chosen, Nobody) else by_entry[chosen]

    def _availability(self, state: EndpointState) -> Availability:
        now = self._clock()
        dead = state.spent or state.breaker.dead
        if dead is not None:
            return Availability(dead=dead)
        held, reason = self.memory.held(state.endpoint)
        ready = state.breaker.ready_in(now) or 0.0
        if held > ready:
            return Availability(ready_in_s=held, probe=not state.asked_although_held, reason=reason)
        return Availability(ready_in_s=ready, reason=state.breaker.snapshot(now).reason or "")

    def failed(self, state: EndpointState, error: ProviderError) -> None:
        """An attempt failed."""
        state.last_error = error

    def answered(
        self, state: EndpointState, texts: Sequence[object], vectors: NDArray[np.float32], *, probe: bool
    ) -> None:
        """A line gave a good answer; `aside`: one that goes into no output."""
        state.successes += 1
        state.last_error = None
        if state.successes == 1:
            self.memory.answers_again(state.endpoint)
        if not probe:
            self._space_probe.answered(state, texts, vectors)

    def only_floats(self, state: EndpointState) -> None:
        """Its server refuses base64, or answers in floats whatever is asked."""
        state.asks_base64 = False
        self.memory.only_floats(state.endpoint)

    def leave(self, state: EndpointState, step: Step) -> bool:
        """A line is of no use now: dead for the run, or (an open breaker) for a while. Whether that is news."""
        error = step.error
        if not isinstance(error, ProviderError) or state.spent is not None:
            return False
        if error.word == "circuit_open":
            state.breaker.trip(error, self._clock())
            if state.successes == 0 and state.last_error is not None:
                state.spent = state.last_error  # it has not answered once in this run: waiting is for the next one
            self._wake()
            return state.spent is not None
        said = step.refused_for_s if isinstance(error, Throttled | ServerFailed) else None
        if error.word == "quota_exhausted":
            said = error.retry_after_s or QUOTA_HOLD_S
        if said:
            self.memory.hold(state.endpoint, said, error.message)
            error.hint = error.hint or f"run the same command again in {spoken(said)} to go on"
        state.spent = error
        self._wake()
        return True

    def too_large(self, state: EndpointState, items: int, content_bytes: int, error: ProviderError) -> None:
        """A request was refused for its size: less is sent from now on, by this run and the next."""
        self.memory.too_large(state.endpoint, items, content_bytes, error)
        self._changed(self.limits())

    def fallback_from(self, state: EndpointState) -> str | None:
        """The id of the offer asked for, when this line is another."""
        return None if state is self.first else self.first.endpoint.id

    def snapshots(self) -> list[Snapshot]:
        """How every line's breaker stands."""
        return [state.breaker.snapshot(self._clock()) for state in self.states]


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
