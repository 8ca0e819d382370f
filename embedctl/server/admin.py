"""What an operator does through the service: look at providers and circuits, close them, load models, empty the cache.

All of it wants the role admin, and what changes something is a line in the log. Contract: facts/gateway.md 1.1.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedctl.backends import local
from embedctl.errors import ConfigurationInvalid, EmbedctlError, ExtraMissing, WrongUsage
from embedctl.records import format_money
from embedctl.routing import chain as chains
from embedctl.routing import names, status
from embedctl.routing.breaker import Snapshot, State, Thresholds
from embedctl.routing.endpoint import Endpoint
from embedctl.server import answers, downloads, fields, model_names, refusals
from embedctl.server.admission import KeyRates, Slot
from embedctl.server.authentication import Client
from embedctl.server.fields import Asked, AskedModel
from embedctl.server.gateway import CallResult
from embedctl.server.log import shown
from embedctl.server.model_names import Target
from embedctl.server.refusals import Refused
from embedctl.server.state import ServerState, worst_last

ACTS_A_MINUTE = 30
"""Of all admins together: resets, removals, loads."""

_TEXT = "One short text, to see whether it works."
_GUIDE = "/api/v1/embeddings"

Admitted = Callable[[Request], AbstractAsyncContextManager[tuple[bytes, Slot]]]
"""A place in flight, and the body."""


class Admin:
    """The endpoints of operators.

    Args:
        admitted: As for requests of vectors.
        deadline: When a request's client stops waiting, by the monotonic clock.
    """

    def __init__(self, state: ServerState, admitted: Admitted, deadline: Callable[[Request], float]) -> None:
        self._state = state
        self._admitted = admitted
        self._deadline = deadline
        self._acts = KeyRates(state.clock)
        self._pulling = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route(f"{_GUIDE}/providers-config", self.providers, methods=["GET"]),
            Route(f"{_GUIDE}/providers/{{name}}/test", self.test, methods=["POST"]),
            Route(f"{_GUIDE}/circuit-breakers", self.circuits, methods=["GET"]),
            Route(f"{_GUIDE}/circuit-breakers/{{provider}}/reset", self.reset, methods=["POST"]),
            Route(f"{_GUIDE}/metrics", self.metrics, methods=["GET"]),
            Route(f"{_GUIDE}/cache", self.cache, methods=["GET"]),
            Route(f"{_GUIDE}/cache", self.clear, methods=["DELETE"]),
            Route(f"{_GUIDE}/models/warmup", self.warmup, methods=["POST"]),
            Route(f"{_GUIDE}/models/download", self.download, methods=["POST"]),
        ]

    # looking

    async def providers(self, request: Request) -> Response:
        """GET /embeddings/providers-config: who is known, and what they serve; no key, of a URL its host alone."""
        client = answers.admin(request)
        settings = self._state.settings
        try:
            provider, model = names.asked_for(settings)
        except WrongUsage:
            provider, model = "", ""
        served: dict[str, list[str]] = {}
        for one in model_names.listed(settings, client):
            served.setdefault(one["provider"], []).append(one["model"])
        found = await asyncio.to_thread(status.standings, settings)
        return answers.json(
            {
                "default_provider": provider or None,
                "default_model": model or None,
                "providers": [
                    {
                        "name": one.name,
                        "models": served.get(one.name, []),
                        "protocol": one.protocol,
                        "host": urlsplit(one.base_url).hostname,
                        "key": one.key,
                        "configured": one.configured,
                        "allowed": one.allowed,
                    }
                    for one in found
                ],
            }
        )

    async def circuits(self, request: Request) -> Response:
        """GET /embeddings/circuit-breakers."""
        answers.admin(request)
        return answers.json(self._circuits())

    def _circuits(self) -> dict[str, dict[str, Any]]:
        """Provider → how the worst of its circuits stands, and each of them."""
        found: dict[str, dict[str, Any]] = {}
        thresholds = self._state.router.thresholds
        for one in sorted(self._state.router.snapshots(), key=worst_last):
            row = self._circuit(one)
            models = [*found.get(one.provider, {"models": []})["models"], {"model": one.model, **row}]
            found[one.provider] = {"name": one.provider, **row, "settings": _settings(thresholds), "models": models}
        return found

    def _circuit(self, one: Snapshot) -> dict[str, Any]:
        return {
            "state": one.state.value,
            "failure_count": one.failures,
            "success_count": one.results - one.failures,
            "last_failure_time": self._moment(one.failed_at),
            "last_state_change_time": self._moment(one.changed_at),
            "half_open_calls": int(one.probing),
            "current_recovery_timeout": round(one.stay_s, 3),
            "ready_in_s": None if one.ready_in_s is None else round(one.ready_in_s, 3),
            "inputs_put_off": one.put_off,
            "cause": refusals.clean(one.reason) if one.reason and one.state is not State.CLOSED else None,
        }

    def _moment(self, at: float | None) -> str | None:
        if at is None:
            return None
        return datetime.fromtimestamp(self._state.router.moment(at), UTC).isoformat(timespec="seconds")

    async def metrics(self, request: Request) -> Response:
        """GET /embeddings/metrics: what `/metrics` counts, added up; and the money since the start, exactly."""
        answers.admin(request)
        state = self._state
        serve = state.serve
        spent = state.metrics.spending
        return answers.json(
            {
                "cache": await asyncio.to_thread(state.cache_stats),
                "active_requests": state.admission.in_flight,
                "circuit_breakers": state.circuits(),
                "counters": state.metrics.totals(),
                "config": {
                    "cache": serve.cache,
                    "durability": serve.durability,
                    "deadline_s": serve.deadline_s,
                    "in_flight": serve.in_flight,
                    "key_in_flight": serve.key_in_flight,
                    "queue": serve.queue,
                    "fallback": state.settings.options.fallback,
                },
                "ledger": {
                    "cost_usd": None if spent.known_cost is None else format_money(spent.known_cost),
                    "cost_is_lower_bound": spent.unpriced,
                    "tokens": spent.tokens,
                    "at_risk_usd": format_money(spent.cost_at_risk),
                },
            }
        )

    async def cache(self, request: Request) -> Response:
        """GET /embeddings/cache."""
        answers.admin(request)
        return answers.json(await asyncio.to_thread(self._state.cache_stats))

    # acts

    @asynccontextmanager
    async def _act(self, request: Request, act: str, **about: str | None) -> AsyncIterator[Client]:
        """Something that an operator does: told in the log, whatever becomes of it."""
        client = answers.admin(request)
        told = {name: shown(value) if value else None for name, value in about.items()}
        outcome = "refused"
        try:
            self._acts.take(Client(id="", workspace="", rpm=ACTS_A_MINUTE, burst=ACTS_A_MINUTE))
            yield client
            outcome = "done"
        except Refused as refused:
            outcome = refused.code
            raise
        except BaseException:
            outcome = "failed"
            raise
        finally:
            self._state.log.say(
                "admin",
                act=act,
                outcome=outcome,
                id=answers.exchange(request).request_id,
                key=client.id or None,
                workspace=client.workspace,
                **told,
            )

    @asynccontextmanager
    async def _read(self, request: Request) -> AsyncIterator[tuple[bytes, Slot]]:
        """An admin's body, `{}` where there is none, and a place in flight."""
        client = answers.admin(request)
        if (
            answers.exchange(request).headers.get("content-length", "0") != "0"
            or "transfer-encoding" in request.headers
        ):
            async with self._admitted(request) as found:
                yield found
            return
        slot = await self._state.admission.enter(client, 0, wait_s=self._deadline(request) - self._state.clock())
        try:
            yield b"{}", slot
        finally:
            slot.release()

    async def reset(self, request: Request) -> Response:
        """POST /embeddings/circuit-breakers/{provider}/reset: closed at once, also one that was given up."""
        name = request.path_params["provider"]
        async with self._act(request, "reset", provider=name):
            if not self._state.router.reset(name):
                raise Refused("breaker_not_found", f"there is no circuit of a provider {name[:100]!r} here")
        return answers.json({"message": f"the circuits of {name} are closed"})

    async def clear(self, request: Request) -> Response:
        """DELETE /embeddings/cache."""
        asked = answers.parameters(request, "provider", "model")
        provider, model = asked.get("provider"), asked.get("model")
        async with self._act(request, "clear_cache", provider=provider, model=model):
            cache = self._state.cache
            gone = 0 if cache is None else await asyncio.to_thread(cache.forget, provider, model)
            if not gone:  # else it was one of earlier settings
                answers.one_of(provider, "provider", names.known_providers(self._state.settings), "unknown_provider")
        return answers.json({"message": f"{gone} entries removed", "entries_removed": gone})

    async def warmup(self, request: Request) -> Response:
        """POST /embeddings/models/warmup: a model that runs here is loaded; another one is asked when that may cost."""
        async with self._read(request) as (body, slot):
            asked = fields.asked_of_model(body, "paid")
            async with self._act(request, "warmup", model=asked.model, provider=asked.provider) as client:
                target, endpoint = self._named(client, asked)
                if endpoint.local:
                    await asyncio.to_thread(_load, endpoint)
                elif asked.paid:
                    await self._asked(request, client, target, slot)
                else:
                    raise Refused(
                        "would_cost", f"{endpoint.id} does not run here: asking it may cost; say so with paid: true"
                    )
        return answers.json({"status": "ok", "provider": target.provider, "model": target.model, "warmed": True})

    async def test(self, request: Request) -> Response:
        """POST /embeddings/providers/{name}/test: one tiny text, to see whether it answers, and what that costs."""
        name = request.path_params["name"]
        async with self._read(request) as (body, slot):
            asked = fields.asked_of_model(body)
            async with self._act(request, "test", provider=name, model=asked.model) as client:
                started = self._state.clock()
                target, _ = self._named(client, AskedModel(model=asked.model, provider=name))
                served = await self._asked(request, client, target, slot)
        cost = served.spending.known_cost
        return answers.json(
            {
                "provider": target.provider,
                "model": target.model,
                "answered": True,
                "dimensions": len(served.vectors[0]),
                "tokens": served.spending.tokens,
                "cost": None if cost is None else format_money(cost),
                "currency": "USD",
                "workspace": client.workspace,
                "seconds": round(self._state.clock() - started, 3),
            }
        )

    async def download(self, request: Request) -> Response:
        """POST /embeddings/models/download: a listed model of the hub comes onto this machine."""
        async with self._read(request) as (body, _):
            asked = fields.asked_of_model(body)
            async with self._act(request, "download", model=asked.model, provider=asked.provider) as client:
                target = downloads.target(self._state.settings, client, asked)
                async with self._pulling:
                    try:
                        await asyncio.to_thread(downloads.fetch, self._state.settings, target)
                    except ExtraMissing:
                        raise Refused("provider_unsupported", "this server cannot fetch models (extra `hub`)") from None
                    except ConfigurationInvalid as problem:
                        raise Refused("provider_malformed_response", problem.message) from None
                    except EmbedctlError as problem:
                        raise refusals.of_error(problem) from None
        return answers.json({"status": "ok", "provider": target.provider, "model": target.model, "downloaded": True})

    def _named(self, client: Client, asked: AskedModel) -> tuple[Target, Endpoint]:
        """What an operator means, within what the lists allow.

        Raises:
            Refused: There is no such model, or it may not be asked for.
        """
        settings = self._state.settings
        target = model_names.target(settings, client, asked.model, None, asked.provider)
        try:
            endpoint = chains.endpoint(settings, target.provider, target.model)
        except ConfigurationInvalid as problem:
            said = f"provider {target.provider!r} is not usable here"
            raise Refused("missing_provider_credentials", said, reason=problem.message) from None
        except EmbedctlError as problem:
            raise refusals.of_error(problem) from None
        model_names.check_allowed(settings, client, endpoint)
        return target, endpoint

    async def _asked(self, request: Request, client: Client, target: Target, slot: Slot) -> CallResult:
        """One tiny text of a provider, by nobody else and not from the cache; accounted with purpose `test`."""
        asked = Asked(
            inputs=[f"{_TEXT} {secrets.token_hex(4)}"], model=f"{target.provider}:{target.model}", purpose="test"
        )
        return await self._state.gateway.embed(
            client, asked, slot, x_provider=target.provider, deadline=self._deadline(request)
        )


def _settings(thresholds: Thresholds) -> dict[str, Any]:
    return {
        "failure_threshold": thresholds.consecutive,
        "failure_share": thresholds.share,
        "window": thresholds.window,
        "success_threshold": 1,
        "half_open_max_calls": 1,
        "recovery_timeout": thresholds.open_s,
        "max_recovery_timeout": thresholds.longest_s,
    }


def _load(endpoint: Endpoint) -> None:
    """Load a model that runs here, and make its first vector: that takes longer than the next.

    Raises:
        Refused: It cannot be loaded.
    """
    try:
        running = local.load(endpoint.place.protocol, endpoint.folder, endpoint.max_tokens)
        running.embed([endpoint.prefix + _TEXT])
    except EmbedctlError as problem:
        raise Refused("provider_unavailable", f"{endpoint.id} cannot be loaded", reason=problem.message) from None
