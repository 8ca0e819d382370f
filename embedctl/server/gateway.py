"""A client's request → vectors: from the cache, from a call that is under way, or bought through the call point.

    names → route → texts → cache → in flight elsewhere → intent → send → answer on record → reply → cache

What is bought outlives whoever asked for it: a client that has gone, or waited long enough, finds the answer in the
cache when it asks again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.budgets.limits import key_account
from embedctl.budgets.reservations import Reservations
from embedctl.dataclass import dataclass
from embedctl.embedding import usage, usage_events
from embedctl.embedding.attempt import AttemptRecord
from embedctl.embedding.call import Embedder
from embedctl.embedding.usage_events import Caller
from embedctl.errors import DeadlinePassed, EmbedctlError, ModelNotFound
from embedctl.planning.packer import PackedRequest, Packer
from embedctl.records import (
    Outcome,
    Purpose,
    Request,
    format_money,
    new_operation_id,
)
from embedctl.routing.limiter import FairTurn
from embedctl.runs import foundations
from embedctl.runs.receipt import Spending
from embedctl.server import encoding, model_names, refusals, texts, turns
from embedctl.server.admission import KeyRates, Slot
from embedctl.server.authentication import Client
from embedctl.server.fields import Asked
from embedctl.server.keeping import Keeping, KeepingJournal
from embedctl.server.refusals import Refused
from embedctl.server.served_routes import ServedRoute, ServedRoutes
from embedctl.server.shifts import Shift
from embedctl.server.spending import CallGuard
from embedctl.server.texts import Texts
from embedctl.settings import ServeSettings
from embedctl.storage.vector_cache import CachedVector, VectorCache

_BYTES_A_TOKEN = 4
_FEW = 4
"""So many texts are looked up in the cache at once: that takes less time than a thread does to begin."""

_MOST_ROUNDS = 3
"""How often one who waited for another call's purchase looks again when that was given up."""

_DEFAULT_WIDTH = 1536
_WARN_AT = Decimal("0.8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A text's vector, and who made it.

    Attributes:
        tokens: Where somebody counted this text alone.
        kept: As the cache had it; None where it was bought for this request or one beside it.
        fallback_from: "provider:model" that was asked first, when it was another.
    """

    vector: NDArray[np.float32]
    provider: str
    model: str
    tokens: int | None
    kept: CachedVector | None = None
    fallback_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """What a request came to.

    Attributes:
        vectors: One per input, in its order.
        tokens: Of all inputs.
        hits: Inputs whose vectors were not bought for this request.
        policy: How the width was reached that was asked for; None when none was.
        cut: Places of inputs that were cut to what the model takes.
        provider_s: Seconds in which a provider was at work.
        budget_warning: Which budget is used to four fifths or more; None when none is.
    """

    vectors: Sequence[NDArray[np.float32]]
    provider: str
    model: str
    fallback_from: str | None
    tokens: int
    hits: int
    operation_id: str
    spending: Spending
    policy: str | None
    cut: Sequence[int]
    provider_s: float
    budget_warning: str | None


@dataclass(slots=True, eq=False)
class _ServedCall:
    """One request on its way.

    Attributes:
        bought_tokens: Of the inputs that it bought, as they are billed.
        waited: It has waited for another call's purchase.
        tasks: Purchases under way.
    """

    client: Client
    route: ServedRoute
    texts: Texts
    shift: Shift
    guard: CallGuard
    caller: Caller
    slot: Slot
    purpose: Purpose
    scope: tuple[object, ...]
    deadline: float
    operation_id: str = field(default_factory=new_operation_id)
    bought: set[bytes] = field(default_factory=set)
    bought_tokens: int = 0
    waited: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Gateway:
    """Serves requests, one by one, for all clients of this process.

    Args:
        shift: The stretch of accounts that is open now.
        scope: (space id, workspace) → under what vectors are kept.
        bug: Told of an exception that none should be.
        coalesced: Told of each request that waits for what another one is buying.
    """

    def __init__(
        self,
        embedder: Embedder,
        routes: ServedRoutes,
        cache: VectorCache | None,
        rates: KeyRates,
        *,
        shift: Callable[[], Shift],
        scope: Callable[[str, str], str],
        serve: ServeSettings,
        bug: Callable[[BaseException], None],
        coalesced: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embedder = embedder
        self.routes = routes
        self._cache = cache
        self._keeping = Keeping(cache)
        self._rates = rates
        self._shift = shift
        self._scope = scope
        self.serve = serve
        self._bug = bug
        self._coalesced = coalesced
        self._clock = clock
        self._flights: dict[tuple[object, ...], asyncio.Future[Vector]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparing = FairTurn(turns.current_key)

    @property
    def purchases(self) -> int:
        """Under way, also for clients that have gone."""
        return len(self._tasks)

    @property
    def money(self) -> Reservations:
        """What may be spent now."""
        return self._shift().money

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is under way, but no longer than so; whether nothing is."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        await self._keeping.flush()
        return not self._tasks

    async def embed(
        self, client: Client, asked: Asked, slot: Slot, *, x_provider: str | None, deadline: float
    ) -> CallResult:
        """Vectors of all inputs of a request.

        Args:
            slot: Held until everything that was begun for it has ended.
            x_provider: The header; None without.
            deadline: Of the monotonic clock.

        Raises:
            Refused: There are none.
        """
        turns.serve_for(client.id)
        settings = self.routes.settings
        target = model_names.target(settings, client, asked.model, x_provider, asked.provider)
        route = await self.routes.of(
            client,
            target,
            dimensions=asked.dimensions,
            input_type=asked.input_type,
            token_arrays=asked.token_arrays,
        )
        wire = await self._prepared(asked, route, deadline)
        width = route.first.dimensions or _DEFAULT_WIDTH
        slot.grow(encoding.size(len(wire.wire), width, base64=asked.base64))
        call = self._call(client, asked, route, wire, slot, deadline)
        call.shift.begin()
        try:
            vectors = await self._in_time(call)
            return await self._served(call, asked, vectors)
        except EmbedctlError as problem:
            raise refusals.of_error(problem) from None
        finally:
            self._ended(call)

    def _call(
        self, client: Client, asked: Asked, route: ServedRoute, wire: Texts, slot: Slot, deadline: float
    ) -> _ServedCall:
        shift = self._shift()
        self._check_priced(shift, client, route)
        purpose: Purpose = "query" if "query" in (asked.purpose, asked.input_type) else "ingest"
        if asked.purpose == "ingest":
            purpose = "ingest"
        if asked.purpose == "test":
            purpose = "test"
        tags = {"key": client.id} if client.id else {}
        if asked.user and self.serve.user != "drop":
            hashed = hashlib.sha256(asked.user.encode()).hexdigest()[:32]
            tags["user"] = asked.user if self.serve.user == "keep" else hashed
        input_type = asked.input_type if route.tells_types_apart else None
        return _ServedCall(
            client=client,
            route=route,
            texts=wire,
            shift=shift,
            guard=CallGuard(shift.money, client, Spending(shift.prices.price), deadline, self._clock),
            caller=Caller(run_id=shift.run_id, workspace_id=client.workspace, tags=tags),
            slot=slot,
            purpose=purpose,
            scope=(route.key.target, self._scope("", client.workspace), asked.dimensions, input_type),
            deadline=deadline,
        )

    def _check_priced(self, shift: Shift, client: Client, route: ServedRoute) -> None:
        """A limit cannot hold where nobody knows what is spent.

        Raises:
            Refused: There is one, and a model without a price.
        """
        if self.routes.settings.options.allow_unpriced or not shift.money.concerned(
            client.workspace, key_account(client.id)
        ):
            return
        for endpoint in route.chain.endpoints:
            if endpoint.per_hour is None and shift.prices.of(endpoint) is None:
                raise Refused("price_unknown", f"{endpoint.id} has no price, so the budget cannot hold", param="model")

    async def _prepared(self, asked: Asked, route: ServedRoute, deadline: float) -> Texts:
        """Its texts as they go out; what takes a while is done for one key after the other."""
        if not texts.are_large(asked, route.first):
            return texts.prepared(asked, route, cl100k=self.serve.cl100k)
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())), self._preparing:
                return await self._embedder.router.counted(
                    lambda: texts.prepared(asked, route, cl100k=self.serve.cl100k)
                )
        except TimeoutError:
            raise Refused("overloaded", "its tokens could not be counted in time", retry_after_s=1.0) from None

    # vectors, wherever they are

    async def _in_time(self, call: _ServedCall) -> dict[bytes, Vector]:
        """All vectors, or the deadline: what is on the wire by then ends without its client."""
        left_s = call.deadline - self._clock()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await self._obtained(call)
        except TimeoutError:
            if call.guard.sending:
                raise Refused("deadline_exceeded", "the answer did not come in time; it is kept when it does") from None
            for task in call.tasks:
                task.cancel()
            raise Refused("overloaded", "nothing could be sent in time", retry_after_s=1.0) from None

    async def _obtained(self, call: _ServedCall) -> dict[bytes, Vector]:
        found: dict[bytes, Vector] = {}
        for _ in range(_MOST_ROUNDS):
            found = {one: vector for one, vector in found.items() if self._stands(call, vector)}
            missing = [one for one in dict.fromkeys(call.texts.hashes) if one not in found]
            if not missing:
                break
            flights = await self._flown(call, missing)
            if flying := [one for one in flights.values() if not one.done()]:
                await asyncio.wait(flying)
            for text_hash, flight in flights.items():
                error = flight.exception()
                if error is None:
                    found[text_hash] = flight.result()
                elif not (isinstance(error, DeadlinePassed) and text_hash not in call.bought):
                    raise self._placed(call, text_hash, error)
        if any(one not in found for one in call.texts.hashes):
            raise Refused("overloaded", "the call that was waited for was given up", retry_after_s=1.0)
        return found

    def _placed(self, call: _ServedCall, text_hash: bytes, error: BaseException) -> BaseException:
        """The error of a text, with its place in this request."""
        if isinstance(error, _TextRefusedError):
            return refusals.of_text(error.refusal, call.texts.hashes.index(text_hash))
        return error

    async def _flown(self, call: _ServedCall, missing: Sequence[bytes]) -> dict[bytes, asyncio.Future[Vector]]:
        """Who brings each missing text: another call that is at it, or this one: from the cache, then for money."""
        loop = asyncio.get_running_loop()
        flights: dict[bytes, asyncio.Future[Vector]] = {}
        mine: dict[bytes, asyncio.Future[Vector]] = {}
        for text_hash in missing:
            flying = self._flights.get((*call.scope, text_hash)) if self._cache is not None else None
            if flying is None:
                flying = mine[text_hash] = self._flights[(*call.scope, text_hash)] = loop.create_future()
                flying.add_done_callback(_heard)
            flights[text_hash] = flying
        if len(mine) < len(flights) and not call.waited:
            call.waited = True
            self._coalesced()
        try:
            for text_hash, vector in (await self._look_up(call, [*mine])).items():
                self._flights.pop((*call.scope, text_hash), None)
                mine.pop(text_hash).set_result(vector)
            if mine:
                self._begin(call, mine)
        except BaseException:
            for text_hash in mine:
                self._flights.pop((*call.scope, text_hash), None)
            _fail(mine, DeadlinePassed("the call that was at it was given up"))
            raise
        return flights

    async def _look_up(self, call: _ServedCall, wanted: Sequence[bytes]) -> dict[bytes, Vector]:
        """What the cache has of these texts."""
        space = call.route.space
        if self._cache is None or space is None or not wanted:
            return {}
        scoped = self._scope(space.space_id, call.client.workspace)
        stands = call.route.watch.stands
        found = self._cache.glance(scoped, wanted, space.dimensions, stands) if len(wanted) <= _FEW else None
        if found is None:
            found = await asyncio.to_thread(self._cache.look_up, scoped, wanted, space.dimensions, stands)
        return {
            text_hash: Vector(vector=hit.vector, provider=hit.provider, model=hit.model, tokens=hit.tokens, kept=hit)
            for text_hash, hit in found.items()
        }

    def _stands(self, call: _ServedCall, one: Vector) -> bool:
        """Whether the model that made it is still the same: what was bought meanwhile may have told that it is not."""
        return one.kept is None or call.route.watch.stands(one.kept)

    def _begin(self, call: _ServedCall, flights: Mapping[bytes, asyncio.Future[Vector]]) -> None:
        """Begin to buy these texts.

        Raises:
            Refused: The key has had its tokens for this minute.
        """
        hashes = [*flights]
        places = [call.texts.hashes.index(one) for one in hashes]
        counts = call.texts.tokens
        size = sum(counts[at] for at in places) if counts else sum(call.texts.sizes[at] for at in places)
        estimate = size if counts else -(-size // _BYTES_A_TOKEN)
        self._rates.take_tokens(call.client, estimate)
        packed = self._packed(call, places)
        call.bought.update(hashes)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._bought(call, one, flights)) for one in packed]
        call.tasks.update(tasks)
        self._tasks.update(tasks)
        call.slot.hold()
        call.shift.begin()
        left = len(tasks)

        def done(task: asyncio.Task[None]) -> None:
            nonlocal left
            left -= 1
            self._tasks.discard(task)
            call.tasks.discard(task)
            if not left:
                self._rates.correct_tokens(call.client, call.guard.spending.tokens - estimate)
                call.slot.release()
                call.shift.end()

        for task in tasks:
            task.add_done_callback(done)

    def _packed(self, call: _ServedCall, places: Sequence[int]) -> list[PackedRequest]:
        endpoint, wire = call.route.first, call.texts
        limits = foundations.packed_limits(
            self._embedder.router.memory.limits(endpoint), endpoint, self.routes.settings.options
        )
        packer = Packer(limits, purpose=call.purpose, token_arrays=wire.are_tokens, operation_id=call.operation_id)
        found = []
        for place in places:
            full = packer.add(
                wire.wire[place],
                wire.hashes[place],
                place,
                content_bytes=wire.sizes[place],
                tokens=wire.tokens[place] if wire.tokens else None,
                workspace=call.client.workspace,
            )
            if full is not None:
                found.append(full)
        return [*found, *packer.rest()]

    async def _bought(
        self, call: _ServedCall, packed: PackedRequest, flights: Mapping[bytes, asyncio.Future[Vector]]
    ) -> None:
        """Buy the texts of one request, tell all who wait for them, and keep them."""
        mine = {call.texts.hashes[at]: flights[call.texts.hashes[at]] for at in packed.ordinals}
        kept = KeepingJournal(call.shift.journal)
        try:
            outcomes = await self._asked(call, packed.request, kept)
            for outcome in outcomes:
                self._tell(call, [call.texts.hashes[packed.ordinals[at]] for at in outcome.targets], outcome, mine)
        except EmbedctlError as problem:
            _fail(mine, self._translated(call, problem))
        except asyncio.CancelledError:
            _fail(mine, DeadlinePassed("the call that bought it was given up"))
            raise
        except Exception as bug:
            self._bug(bug)
            _fail(mine, Refused("internal_error", "something went wrong here; the request's id leads to the log"))
        finally:
            _fail(mine, DeadlinePassed("the call that bought it brought nothing"))  # whoever is not told by now
            self._remember(call, kept, mine)

    async def _asked(self, call: _ServedCall, request: Request, journal: AttemptRecord) -> list[Outcome]:
        policy = call.route.policy(call.deadline, max(0.0, call.deadline - self._clock()))
        route = call.route.copy()
        try:
            return await self._embedder.embed(
                request, route=route, caller=call.caller, journal=journal, budget=call.guard, policy=policy
            )
        finally:
            call.route.learn(route)

    def _translated(self, call: _ServedCall, problem: EmbedctlError) -> BaseException:
        """For those who wait: a deadline is the buyer's own, a model that the catalog knows nobody's fault who asks."""
        if isinstance(problem, DeadlinePassed):
            return problem
        if isinstance(problem, ModelNotFound) and call.route.first.entry is not None:
            return Refused("provider_refused", problem.message)
        return refusals.of_error(problem)

    def _tell(
        self,
        call: _ServedCall,
        hashes: Sequence[bytes],
        outcome: Outcome,
        flights: Mapping[bytes, asyncio.Future[Vector]],
    ) -> None:
        answer = outcome.answer
        if answer is None:
            if outcome.refusal is not None:
                _fail({one: flights[one] for one in hashes}, _TextRefusedError(outcome.refusal))
            return
        call.bought_tokens += answer.usage_tokens
        each = answer.tokens_each or ((answer.usage_tokens,) if len(hashes) == 1 else (None,) * len(hashes))
        for text_hash, row, count in zip(hashes, answer.vectors, each, strict=True):
            if not flights[text_hash].done():
                flights[text_hash].set_result(
                    Vector(
                        vector=row,
                        provider=answer.provider,
                        model=answer.model,
                        tokens=count,
                        fallback_from=answer.fallback_from,
                    )
                )

    def _remember(
        self, call: _ServedCall, kept: KeepingJournal, flights: Mapping[bytes, asyncio.Future[Vector]]
    ) -> None:
        """What was answered goes into the cache; who asks for it before it is there gets it from here."""
        told = [one for one, flight in flights.items() if flight.exception() is None]
        for text_hash in flights.keys() - set(told):
            self._flights.pop((*call.scope, text_hash), None)
        call.shift.begin()

        def done() -> None:
            for text_hash in told:
                self._flights.pop((*call.scope, text_hash), None)
            call.shift.end()

        kept.keep(self._keeping, lambda space_id: self._scope(space_id, call.client.workspace), done)

    # what it came to

    async def _served(self, call: _ServedCall, asked: Asked, vectors: Mapping[bytes, Vector]) -> CallResult:
        bought: set[bytes] = set()
        hits: list[int] = []
        for place, text_hash in enumerate(call.texts.hashes):
            if text_hash in call.bought and text_hash not in bought:
                bought.add(text_hash)
            else:
                hits.append(place)
        counts = await self._counts(call, hits, vectors) if hits else {}
        if hits:
            await self._book(call, hits, vectors, counts)
        first = next((vectors[one] for one in call.texts.hashes if one in bought), vectors[call.texts.hashes[0]])
        return CallResult(
            vectors=[vectors[one].vector for one in call.texts.hashes],
            provider=first.provider,
            model=first.model,
            fallback_from=first.fallback_from if bought else None,
            tokens=call.bought_tokens + sum(counts.values()),
            hits=len(hits),
            operation_id=call.operation_id,
            spending=call.guard.spending,
            policy=call.route.first.policy if asked.dimensions is not None else None,
            cut=call.texts.cut,
            provider_s=call.guard.provider_s,
            budget_warning=self._warning(call),
        )

    def _warning(self, call: _ServedCall) -> str | None:
        limits = call.shift.money.concerned(call.client.workspace, key_account(call.client.id))
        for one in limits:
            if one.spent >= one.amount * _WARN_AT:
                return f"{one.name}: {format_money(one.spent)} of {format_money(one.amount)} USD"
        return None

    async def _counts(
        self, call: _ServedCall, places: Sequence[int], vectors: Mapping[bytes, Vector]
    ) -> dict[int, int]:
        """Tokens of inputs that were not bought: the count that is kept, else one made here."""
        known = {at: vectors[call.texts.hashes[at]].tokens for at in places}
        found = {at: count for at, count in known.items() if count is not None}
        if call.texts.tokens is not None:
            found |= {at: call.texts.tokens[at] for at in places if at not in found}
        unknown = [at for at in places if at not in found]
        if unknown:
            endpoint, wire = call.route.first, call.texts

            def count() -> list[int]:
                requests = [
                    Request(operation_id="", texts=[str(wire.wire[at])], hashes=b"", content_bytes=wire.sizes[at])
                    for at in unknown
                ]
                return [usage.exact(endpoint, one)[0] for one in requests]

            found |= dict(zip(unknown, await self._embedder.router.counted(count), strict=True))
        return found

    async def _book(
        self, call: _ServedCall, places: Sequence[int], vectors: Mapping[bytes, Vector], counts: Mapping[int, int]
    ) -> None:
        """An event for what was not bought, one for each maker of vectors. Nothing of it is billed."""
        makers: dict[tuple[str, str], list[int]] = {}
        for at in places:
            one = vectors[call.texts.hashes[at]]
            makers.setdefault((one.provider, one.model), []).append(at)
        for (provider, model), mine in makers.items():
            hit = Request(
                operation_id=call.operation_id,
                texts=[call.texts.wire[at] for at in mine],  # type: ignore[arg-type]
                hashes=b"".join(call.texts.hashes[at] for at in mine),
                workspace_id=call.client.workspace,
                purpose=call.purpose,
                content_bytes=sum(call.texts.sizes[at] for at in mine),
            )
            saved = sum(counts[at] for at in mine)
            event = usage_events.from_cache(call.caller, call.route.first, hit, provider, model, saved)
            await call.shift.journal.note(event)

    def _ended(self, call: _ServedCall) -> None:
        call.shift.end()


class _TextRefusedError(Exception):
    """One text has no vector; whoever asked for it says where it stands in its request."""

    def __init__(self, refusal: Any) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _fail(flights: Mapping[bytes, asyncio.Future[Vector]], error: BaseException) -> None:
    for flight in flights.values():
        if not flight.done():
            flight.set_exception(error)


def _heard(flight: asyncio.Future[Vector]) -> None:
    """Nobody may be left who hears it."""
    if not flight.cancelled():
        flight.exception()
