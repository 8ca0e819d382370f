"""Routes of the process: one for each model, width and purpose that clients ask for; each call gets a copy to spoil.

What a call finds out of a server (limits, proofs, a stranger) stays; that a call gave an endpoint up does not.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.embedding.canary import CanaryWatch
from embedctl.embedding.leg import Leg
from embedctl.embedding.route import Route
from embedctl.embedding.router import Router
from embedctl.errors import ConfigurationInvalid, EmbedctlError, SpaceMismatch, WrongUsage
from embedctl.records import UNOBSERVED, InputType, Observer, Space
from embedctl.routing import chain as chains
from embedctl.routing import space_lock
from embedctl.routing.canaries import host_of
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint, check_usable
from embedctl.routing.fallback import Mode
from embedctl.routing.retry import Policy
from embedctl.routing.space_lock import SpaceLock
from embedctl.runs import foundations
from embedctl.server import model_names
from embedctl.server.authentication import Client
from embedctl.server.model_names import Target
from embedctl.server.refusals import Refused
from embedctl.settings import Settings
from embedctl.storage.token_count_cache import RunCounts

MOST_ROUTES = 2048
"""Of different models, widths and workspaces: the one that was used longest ago goes."""

MOST_ATTEMPTS = 3
"""Provider's requests that may fail for one of ours."""


@dataclass(frozen=True, slots=True)
class RouteKey:
    """What a route depends on; two equal keys give vectors of one space."""

    target: Target
    workspace: str
    models: tuple[str, ...] | None
    providers: tuple[str, ...] | None
    dimensions: int | None
    input_type: InputType | None
    token_arrays: bool


@dataclass(slots=True, eq=False)
class ServedRoute:
    """A chain, and what is known of it.

    Attributes:
        route: What calls get copies of; itself it is never asked.
        sends_tokens: Token arrays go out as they are.
    """

    key: RouteKey
    route: Route
    sends_tokens: bool = False

    @property
    def chain(self) -> FallbackChain:
        """What was asked for, and who may take over."""
        return self.route.chain

    @property
    def space(self) -> Space | None:
        """Of its vectors; None until that is known."""
        return self.route.space

    @property
    def watch(self) -> CanaryWatch:
        """Says which of the vectors that are kept are its model's."""
        assert self.route.canary is not None  # noqa: S101 - `ServedRoutes` gives it one
        return self.route.canary

    @property
    def first(self) -> Endpoint:
        """What was asked for, with what its server said of itself."""
        return self.route.first.endpoint

    @property
    def tells_types_apart(self) -> bool:
        """Whether vectors differ by the input type: somebody is told it, in a field or before the text."""
        sent = ((one.prefix, one.input_type_sent) for one in self.chain.endpoints)
        return any(prefix or said.protocol or said.fields for prefix, said in sent)

    def policy(self, deadline: float, max_wait_s: float) -> Policy:
        """How often and how long one request is tried; with somebody to fall back to, sooner there.

        Args:
            deadline: Of the monotonic clock.
        """
        retries = 2 if len(self.chain.endpoints) == 1 else 1
        return Policy(retries=retries, max_wait_s=max_wait_s, deadline=deadline, most_failed=MOST_ATTEMPTS)

    def copy(self) -> Route:
        """A route for one call, which may give up whom it likes."""
        legs = [Leg(one.endpoint, one.state, asked_limits=one.asked_limits) for one in self.route.legs]
        return replace(self.route, legs=legs)

    def learn(self, route: Route) -> None:
        """Keep what a call found out.

        Raises:
            SpaceMismatch: Its vectors are of another space than those before.
        """
        for mine, leg in zip(self.route.legs, route.legs, strict=True):
            mine.endpoint = leg.endpoint
            mine.asked_limits = leg.asked_limits and not isinstance(leg.given_up, SpaceMismatch)
        if self.route.space is None:
            self.route.space = route.space
        elif route.space is not None and route.space.space_id != self.route.space.space_id:
            raise SpaceMismatch(f"{route.first.endpoint.id} answers in another space than before")


class ServedRoutes:
    """Makes routes when they are first asked for, in a thread: keys and models are read from the disk.

    Args:
        settings: As they are now; `reload` changes them.
        counts: Tokens of texts, for all routes.
        tell: Told who takes part in no chain, and why.
        observer: Told of a model that is not what it was, where that ends nothing.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        counts: RunCounts,
        tell: Callable[[str], None],
        observer: Observer = UNOBSERVED,
    ) -> None:
        self.settings = settings
        self._router = router
        self._counts = counts
        self._tell = tell
        self._observer = observer
        self._routes: OrderedDict[RouteKey, ServedRoute] = OrderedDict()

    def reload(self, settings: Settings) -> None:
        """From now on by these settings; calls under way end as they began."""
        self.settings = settings
        self._routes.clear()

    async def of(
        self,
        client: Client,
        target: Target,
        *,
        dimensions: int | None,
        input_type: InputType | None,
        token_arrays: bool,
    ) -> ServedRoute:
        """The route that serves a client's request.

        Raises:
            Refused: It may not be asked for, or cannot be had.
        """
        key = RouteKey(target, client.workspace, client.models, client.providers, dimensions, input_type, token_arrays)
        found = self._routes.get(key)
        if found is None:
            found = await asyncio.to_thread(self._made, key, client)
            found = self._routes.setdefault(key, found)
            while len(self._routes) > MOST_ROUTES:
                self._routes.popitem(last=False)
        self._routes.move_to_end(key)
        return found

    def _made(self, key: RouteKey, client: Client) -> ServedRoute:
        settings = self._asking(key)
        try:
            first = chains.endpoint(settings, key.target.provider, key.target.model)
            model_names.check_allowed(settings, client, first)
            check_usable(first)
            chain = chains.chain(settings)
        except WrongUsage as wrong:
            raise Refused("invalid_dimensions", wrong.message, param="dimensions") from None
        except ConfigurationInvalid as problem:
            if "retired" in problem.message:
                raise Refused("model_not_found", problem.message, param="model") from None
            said = f"provider {key.target.provider!r} is not usable here"
            raise Refused("missing_provider_credentials", said, reason=problem.message) from None
        except EmbedctlError as problem:
            raise Refused("model_denied", problem.message, param="model") from None
        others = [one for one in chain.endpoints[1:] if model_names.why_not(client, one.in_chain) is None]
        sends_tokens = key.token_arrays and chain.first.takes_tokens and not chain.first.prefix
        if sends_tokens:
            others = [one for one in others if one.takes_tokens]
        for one in chain.left_out:
            self._tell(f"not in the chain of {first.id}: {one}")
        chain.close()
        lock = self._lock_of(chain.first)
        endpoints = tuple(replace(one, counts=self._counts) for one in (chain.first, *others))
        mode: Mode = "off" if len(endpoints) == 1 else "same-space"
        return ServedRoute(
            key,
            self._router.route(
                FallbackChain(endpoints, chain.left_out),
                mode=mode,
                policy=Policy(),
                space=chain.first.space(),
                canary=self._watch(key, endpoints, lock),
            ),
            sends_tokens,
        )

    def _lock_of(self, first: Endpoint) -> SpaceLock | None:
        """The lock that names this model; one of several that its vectors fit.

        Raises:
            Refused: They fit none, or a lock cannot be read.
        """
        try:
            locks = [space_lock.read(Path(name)) for name in self.settings.serve.locks]
        except EmbedctlError as problem:
            said = "a space.lock of this server cannot be read"
            raise Refused("space_mismatch", said, reason=problem.message) from None
        unlike: list[str] = []
        for lock in locks:
            if lock.space.model == first.canonical:
                differences = lock.unlike(first)
                if not differences:
                    return lock
                unlike = unlike or differences
        if unlike:
            raise Refused("space_mismatch", f"{space_lock.NAME} does not allow it: {'; '.join(unlike)}")
        return None

    def _watch(self, key: RouteKey, endpoints: tuple[Endpoint, ...], lock: SpaceLock | None) -> CanaryWatch:
        """Looks at who is asked; questions to documents that a lock is of are looked at as documents are."""
        settings, first = self.settings, endpoints[0]
        asked_as: dict[str, Endpoint] = {}
        begun = lock.canaries if lock else None
        if lock is not None and lock.space.input_type != first.input_type:
            wanted: Any = lock.space.input_type or "document"
            as_document = replace(key, input_type=wanted)
            documents = chains.endpoint(self._asking(as_document), key.target.provider, key.target.model)
            asked_as[host_of(first)] = documents
        return CanaryWatch(
            settings.paths.canaries,
            self._observer,
            endpoints,
            when=settings.options.canary,
            on_drift=settings.options.on_drift,
            reference=begun,
            hosts=frozenset(lock.hosts) if lock and lock.hosts else None,
            asked_as=asked_as,
            begun_at=datetime.fromisoformat(begun.at).timestamp() if begun else math.inf,
            forget=partial(foundations.forget_cached, settings, self._observer),
            waits=True,
        )

    def _asking(self, key: RouteKey) -> Settings:
        """Settings under which this is what is asked for; no file is read again."""
        options = self.settings.options
        off = key.target.pinned and not self.settings.serve.pinned_fallback
        return replace(
            self.settings,
            options=replace(
                options,
                model=f"{key.target.provider}:{key.target.model}",
                provider=None,
                workspace=key.workspace,
                workspace_column=None,
                dimensions=key.dimensions,
                input_type=key.input_type or options.input_type,
                on_too_long="truncate" if options.on_too_long == "truncate" else "fail",
                fallback="off" if off or options.fallback == "off" else "same-space",
            ),
        )
