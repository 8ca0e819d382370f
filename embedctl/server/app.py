"""The HTTP face: paths, headers and bodies around the gateway. Contract: facts/gateway.md 1 (2026-11-25).

    size and headers → authentication → path and method → rate and concurrency → JSON → fields → … gateway

Two doors, one handler: `/api/v1` as the API guide has it, `/v1` in pure OpenAI dress.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedctl.providers import catalog
from embedctl.records import format_money, utc_now
from embedctl.routing import chain as chains
from embedctl.routing.fallback import ChainEntry
from embedctl.routing.names import known_providers
from embedctl.server import answers, encoding, fields, model_names, refusals
from embedctl.server.accounts import Accounts
from embedctl.server.admin import Admin
from embedctl.server.admission import Slot
from embedctl.server.authentication import Client
from embedctl.server.connections import MAX_HEADER_BYTES
from embedctl.server.fields import Asked
from embedctl.server.gateway import CallResult
from embedctl.server.log import shown
from embedctl.server.metrics import CONTENT_TYPE
from embedctl.server.pages import PATHS, Pages
from embedctl.server.refusals import Refused
from embedctl.server.state import ServerState
from embedctl.telemetry import trace_context

MAX_HEADERS = 100
MAX_URL_BYTES = 8 << 10
SERVICE = "embedctl"
_MOST_NAMED = 256
_LONGEST_HOST = 256

Endpoint = Callable[[Request], Awaitable[Response]]

_OPEN = {"/livez", "/readyz", "/api/v1/embeddings/health", *PATHS}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,6})?\Z")


class PiecewiseResponse(Response):
    """A JSON answer that is made piece by piece; the loop goes on between them."""

    media_type = "application/json"

    def __init__(self, pieces: list[bytes], headers: dict[str, str], slot: Slot) -> None:
        super().__init__(None, 200, {**headers, "content-length": str(sum(map(len, pieces)))})
        self._pieces = pieces
        self._slot = slot
        slot.hold()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; its memory is in flight until then."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            last = len(self._pieces) - 1
            for place, piece in enumerate(self._pieces):
                await send({"type": "http.response.body", "body": piece, "more_body": place != last})
        finally:
            self._slot.release()


class Door:
    """What every request passes: headers, credentials, and one way for everything to end.

    Args:
        app: Whatever is asked for but for `posts`.
        posts: Path → what answers a POST there: those that come by the thousand go past all that looks for a path.
    """

    def __init__(self, app: ASGIApp, state: ServerState, posts: Mapping[str, Endpoint] | None = None) -> None:
        self._app = app
        self._state = state
        self._posts = posts or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; nothing that is raised leaves here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        said = headers.get("x-request-id", "")
        exchange = answers.Exchange(
            request_id=said if _REQUEST_ID.match(said) else secrets.token_hex(12),
            started=self._state.clock(),
            openai=scope["path"].startswith("/v1/"),
            headers=headers,
        )
        scope["exchange"] = exchange
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._always(exchange)]
            await send(message)

        try:
            await self._served(scope, receive, sending, headers, exchange)
        except ClientDisconnect:
            exchange.about["code"] = "client_gone"
        except Refused as refused:
            await self._refuse(refused, exchange, status, scope, receive, sending)
        except asyncio.CancelledError:
            if status or not self._state.draining:
                raise
            late = Refused("draining", "the server has stopped before there was an answer", retry_after_s=1.0)
            await self._refuse(late, exchange, status, scope, receive, sending)
        except Exception as bug:
            if isinstance(bug, OSError) and bug.filename is not None:  # a file's, not a connection's
                reason = f"{bug.filename}: {bug.strerror}"
                away = Refused("storage_failed", "the server cannot read or write its files", reason=reason)
                await self._refuse(away, exchange, status, scope, receive, sending)
                return
            self._state.log.bug(bug, exchange.request_id)
            broken = Refused("internal_error", "something went wrong here; the request's id leads to the log")
            await self._refuse(broken, exchange, status, scope, receive, sending)
        finally:
            self._tell(scope, exchange, status)

    async def _served(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], exchange: answers.Exchange
    ) -> None:
        self._check(scope, headers)
        if scope["path"] not in _OPEN or headers.get("authorization") or headers.get("x-api-key"):
            exchange.client = self._client(scope, headers)
        endpoint = self._posts.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
        else:
            answer = await endpoint(Request(scope, receive, send))
            await answer(scope, receive, send)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        address = len(scope["raw_path"]) + len(scope["query_string"])
        if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES or address > MAX_URL_BYTES:
            raise Refused("headers_too_large", "too many headers, or too long an address")
        if "content-length" in headers and "transfer-encoding" in headers:
            raise Refused("invalid_json", "content-length and transfer-encoding exclude each other")
        serve = self._state.serve
        if self._state.loopback and (host := headers.get("host", "")):
            name = _host_name(f"//{host}") if len(host) <= _LONGEST_HOST else ""
            if name not in _LOOPBACK and name not in serve.hosts:
                raise Refused("host_denied", "the Host header names another host")
        origin = headers.get("origin")
        if origin and origin not in serve.origins and not _is_of(origin, headers.get("host", "")):
            raise Refused("origin_denied", "web pages from elsewhere may not ask")

    def _client(self, scope: Scope, headers: dict[str, str]) -> Client:
        address = self._address(scope, headers)
        try:
            found = self._state.keyring.client(headers.get("authorization", ""), headers.get("x-api-key", ""))
        except Refused as refused:
            if refused.code != "missing_key":
                self._state.failures.check(address)
                self._state.failures.count(address)
            raise
        if found.id == "single-user":
            self._state.failures.check(address)  # it may be a word that can be guessed: keys of ours have 256 bits
        return found

    def _address(self, scope: Scope, headers: dict[str, str]) -> str:
        peer = scope.get("client")
        if self._state.behind_tls and (forwarded := headers.get("x-forwarded-for")):
            return forwarded.rpartition(",")[2].strip()[:64]
        return str(peer[0]) if peer else ""

    def _always(self, exchange: answers.Exchange) -> list[tuple[bytes, bytes]]:
        found = [
            (b"x-request-id", exchange.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            (b"vary", b"Authorization, X-API-KEY"),
        ]
        if exchange.client is not None and (rate := self._state.rates.status(exchange.client)) is not None:
            numbers = [str(one).encode() for one in (rate.limit, rate.remaining, rate.reset_s)]
            names = (b"limit", b"remaining", b"reset")
            found += [(b"x-ratelimit-" + name, one) for name, one in zip(names, numbers, strict=True)]
            if exchange.openai:
                found += [
                    (b"x-ratelimit-" + name + b"-requests", one) for name, one in zip(names, numbers, strict=True)
                ]
        if self._state.draining:
            found.append((b"connection", b"close"))
        return found

    async def _refuse(
        self, refused: Refused, exchange: answers.Exchange, status: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        exchange.about |= {"code": refused.code, "reason": refusals.clean(refused.reason) or None}
        self._state.metrics.refused(refused.code, refused.status)
        if status:
            raise ConnectionError("the answer had begun")
        allow = str(exchange.about.pop("allow", ""))
        body = refusals.body(refused, openai=exchange.openai, allow=allow)
        answer = Response(refusals.encoded(body.content), body.status, media_type="application/json")
        for name, value in body.headers:
            answer.headers.append(name, value)
        await answer(scope, receive, send)

    def _tell(self, scope: Scope, exchange: answers.Exchange, status: int) -> None:
        seconds = self._state.clock() - exchange.started
        client = exchange.client
        self._state.log.say(
            "request",
            id=exchange.request_id,
            key=client.id or None if client else None,
            workspace=client.workspace if client else None,
            method=shown(scope["method"], 10),
            path=shown(scope["path"]),
            status=status or None,
            ms=round(seconds * 1000, 2),
            **exchange.about,
        )


@lru_cache(maxsize=64)
def _host_name(address: str) -> str:
    """The host that an address names, without its port; "" where it is no address."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_of(origin: str, host: str) -> bool:
    """Whether a page's origin is the host that it asks."""
    return bool(_host_name(origin)) and origin.partition("://")[2] == host


def _headers(scope: Scope) -> dict[str, str]:
    """By name; one that is repeated is one list (RFC 9110 5.3), so that no value hides behind another."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


class Endpoints:
    """What is behind each path."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    # vectors

    async def embeddings(self, request: Request) -> Response:
        """POST /embeddings."""
        async with self._admitted(request) as (body, slot):
            asked = fields.asked(body, ignore_unknown=self._state.serve.unknown_parameters == "ignore")
            if asked.input_type is None and (said := answers.exchange(request).headers.get("x-input-type")):
                asked = _with_input_type(asked, said)
            served, headers = await self._embedded(request, asked, slot)
            name = served.model if served.provider == "openai" else f"{served.provider}:{served.model}"
            tail = {"model": name, "usage": {"prompt_tokens": served.tokens, "total_tokens": served.tokens}}
            pieces = [b'{"object":"list","data":']
            pieces += await _in_turns(encoding.data(served.vectors, base64=asked.base64))
            pieces.append(b"," + orjson.dumps(tail)[1:])
            return PiecewiseResponse(_joined(pieces), headers, slot)

    async def batch(self, request: Request) -> Response:
        """POST /embeddings/batch."""
        async with self._admitted(request) as (body, slot):
            asked = fields.asked_in_batch(body, ignore_unknown=self._state.serve.unknown_parameters == "ignore")
            served, headers = await self._embedded(request, asked, slot)
            tail = {"model": served.model, "provider": served.provider, "count": len(served.vectors)}
            pieces = [b'{"embeddings":']
            pieces += await _in_turns(encoding.lists(served.vectors))
            pieces.append(b"," + orjson.dumps(tail)[1:])
            return PiecewiseResponse(_joined(pieces), headers, slot)

    @asynccontextmanager
    async def _admitted(self, request: Request) -> AsyncIterator[tuple[bytes, Slot]]:
        """A place in flight, and the body: what it takes in memory is known before a byte of it is read."""
        state, exchange = self._state, answers.exchange(request)
        if state.draining:
            raise Refused("draining", "the server is stopping", retry_after_s=1.0)
        state.rates.take(exchange.who)
        headers = exchange.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (kind in ("application/json", "text/json") or kind.endswith("+json")):
            raise Refused("unsupported_media_type", "the body must be application/json")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused("unsupported_media_type", "the body must not be compressed")
        most = state.serve.body_bytes
        length = headers.get("content-length", "")
        size = int(length) if length.isdigit() and len(length) < 20 else most
        if size > most:
            raise _too_large(most)
        slot = await state.admission.enter(exchange.who, size, wait_s=self._deadline(request) - state.clock())
        try:
            yield await _body(request, most), slot
        finally:
            slot.release()

    def _deadline(self, request: Request) -> float:
        """When its client stops waiting: a header shortens it, and never lengthens it."""
        seconds, headers = self._state.serve.deadline_s, answers.exchange(request).headers
        for name in ("x-embedctl-timeout", "x-stainless-read-timeout"):
            said = headers.get(name, "")
            if _SECONDS.match(said) and float(said) > 0:
                seconds = min(seconds, float(said))
        return answers.exchange(request).started + seconds

    async def _embedded(self, request: Request, asked: Asked, slot: Slot) -> tuple[CallResult, dict[str, str]]:
        state, exchange = self._state, answers.exchange(request)
        for name in asked.ignored:
            state.ignored(name)
        exchange.about |= {"model": shown(asked.model or "") or None, "inputs": len(asked.inputs)}
        if "traceparent" in exchange.headers:
            parent = trace_context.parsed(request.headers.getlist("traceparent"))
            trace_context.PARENT.set(parent)
            exchange.about["trace"] = parent.trace_id if parent is not None else None
        served = await state.gateway.embed(
            exchange.who,
            asked,
            slot,
            x_provider=exchange.headers.get("x-provider") or None,
            deadline=self._deadline(request),
        )
        seconds = state.clock() - exchange.started
        state.metrics.served(
            provider=served.provider,
            model=served.model,
            seconds=seconds,
            overhead_s=max(0.0, seconds - served.provider_s),
            hits=served.hits,
            arrays=asked.token_arrays,
            policy=served.policy,
        )
        cost = served.spending.known_cost
        exchange.about |= {
            "provider": served.provider,
            "served_model": served.model,
            "operation": served.operation_id,
            "tokens": served.spending.tokens,
            "cost_usd": None if cost is None else format_money(cost),
            "hits": served.hits or None,
        }
        return served, self._said(exchange, served)

    def _said(self, exchange: answers.Exchange, served: CallResult) -> dict[str, str]:
        """The headers of an answer."""
        count = len(served.vectors)
        spending = served.spending
        total_s = self._state.clock() - exchange.started
        overhead_ms = max(0.0, total_s - served.provider_s) * 1000
        headers = {
            "X-Embeddings-Provider": served.provider,
            "X-Embedctl-Operation-Id": served.operation_id,
            "X-Embedctl-Overhead-Ms": f"{overhead_ms:.2f}",
            "Server-Timing": f"provider;dur={served.provider_s * 1000:.2f}, overhead;dur={overhead_ms:.2f}",
            "X-Embedctl-Cache": "hit"
            if served.hits == count
            else f"partial; hits={served.hits}/{count}"
            if served.hits
            else "miss",
        }
        if served.fallback_from is not None:
            headers["X-Embeddings-Fallback-From"] = served.fallback_from.partition(":")[0]
        if served.policy is not None:
            headers["X-Embeddings-Dimensions-Policy"] = served.policy
        if served.cut:
            headers["X-Embedctl-Truncated"] = ",".join(map(str, served.cut[:_MOST_NAMED]))
        if served.budget_warning is not None:
            headers["X-Embedctl-Budget-Warning"] = served.budget_warning
        if self._state.serve.cost_headers:
            cost = spending.known_cost
            headers["X-Embedctl-Cost-USD"] = "unknown" if cost is None else format_money(cost) if cost else "0"
            headers["X-Embedctl-Tokens-Billed"] = str(spending.tokens)
            headers["X-Embedctl-Usage-Source"] = (spending.usage_source or "cache") if served.hits < count else "cache"
        return headers

    # models

    async def models(self, request: Request) -> Response:
        """GET /embeddings/models."""
        client = answers.exchange(request).who
        settings = self._state.settings
        provider = request.query_params.get("provider")
        provider = answers.one_of(provider, "provider", known_providers(settings), "unknown_provider")
        found = model_names.listed(settings, client, provider)
        return _json(
            {
                "data": found,
                "allowed_providers": None if client.providers is None else list(client.providers),
                "allowed_models": None if client.models is None else list(client.models),
            }
        )

    async def model(self, request: Request) -> Response:
        """GET /embeddings/models/{id}: from the catalog, nobody is asked."""
        client, settings = answers.exchange(request).who, self._state.settings
        name, header = request.path_params["id"], request.query_params.get("provider") or None
        target = model_names.target(settings, client, name, header, None)
        found = await asyncio.to_thread(_described, self._state, client, target.provider, target.model)
        return _json(found)

    async def openai_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [_as_openai(one) for one in self._openai_models(request)]})

    async def openai_model(self, request: Request) -> Response:
        """GET /v1/models/{id}: whatever may be asked for by this name, listed or not."""
        name, settings, client = request.path_params["id"], self._state.settings, answers.exchange(request).who
        for one in self._openai_models(request):
            if _id(one) == name:
                return _json(_as_openai(one))
        try:
            target = model_names.target(settings, client, name, None, None)
            entry = catalog.find(target.provider, target.model)
            in_chain = ChainEntry(
                provider=target.provider, model=target.model, canonical=entry.canonical if entry else None
            )
            model_names.check_entry_allowed(settings, client, in_chain)
        except Refused:
            raise Refused("model_not_found", f"there is no model {name[:200]!r} here", param="model") from None
        return _json(_as_openai({"provider": target.provider, "model": target.model}) | {"id": name})

    def _openai_models(self, request: Request) -> list[dict[str, Any]]:
        found = model_names.listed(self._state.settings, answers.exchange(request).who)
        return [one for one in found if one["allowed"]]

    # health

    async def live(self, request: Request) -> Response:
        """GET /livez."""
        return PlainTextResponse("ok")

    async def ready(self, request: Request) -> Response:
        """GET /readyz."""
        trouble = self._state.trouble
        return PlainTextResponse("ok" if trouble is None else trouble, 200 if trouble is None else 503)

    async def prometheus(self, request: Request) -> Response:
        """GET /metrics: for whoever may look at all workspaces."""
        if answers.exchange(request).who.role not in ("metrics", "admin"):
            raise Refused("admin_required", "metrics are for keys with the role metrics or admin")
        return Response(await self._state.prometheus(), media_type=CONTENT_TYPE)

    async def health(self, request: Request) -> Response:
        """GET /embeddings/health."""
        state = self._state
        trouble = state.trouble
        found: dict[str, Any] = {
            "status": "healthy" if trouble is None else "degraded",
            "service": SERVICE,
            "timestamp": utc_now().isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        if answers.exchange(request).client is not None or state.keyring.local is not None:
            found["cache_stats"] = await asyncio.to_thread(state.cache_stats)
            found["active_requests"] = state.admission.in_flight
            found["circuit_breakers"] = state.circuits()
        return _json(found, 200 if trouble is None else 503)


def app(state: ServerState, more: Sequence[Route] = ()) -> Starlette:
    """The ASGI application.

    Args:
        more: What it serves beside vectors.
    """
    endpoints = Endpoints(state)
    routes = []
    for door in ("/api/v1", "/v1"):
        routes += [
            Route(f"{door}/embeddings", endpoints.embeddings, methods=["POST"]),
            Route(f"{door}/models", endpoints.openai_models, methods=["GET"]),
            Route(f"{door}/models/{{id:path}}", endpoints.openai_model, methods=["GET"]),
        ]
    guide = "/api/v1/embeddings"
    routes += [
        Route(f"{guide}/batch", endpoints.batch, methods=["POST"]),
        Route(f"{guide}/models", endpoints.models, methods=["GET"]),
        Route(f"{guide}/models/{{id:path}}", endpoints.model, methods=["GET"]),
        Route(f"{guide}/health", endpoints.health, methods=["GET"]),
        *Admin(state, endpoints._admitted, endpoints._deadline).routes(),
        *Accounts(state).routes(),
        *Pages(state).routes(),
        Route("/metrics", endpoints.prometheus, methods=["GET"]),
        Route("/livez", endpoints.live, methods=["GET"]),
        Route("/readyz", endpoints.ready, methods=["GET"]),
    ]
    routes += more
    posts = {f"{door}/embeddings": endpoints.embeddings for door in ("/api/v1", "/v1")}
    middleware = [Middleware(Door, state=state, posts=posts)]
    if state.serve.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(state.serve.origins),
            allow_methods=sorted({method for route in routes for method in route.methods or ()} - {"HEAD"}),
            allow_headers=["authorization", "content-type", "x-api-key", "x-provider", "x-input-type", "x-request-id"],
        )
        middleware.insert(0, cors)
    made = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _no_path})  # type: ignore[dict-item]
    made.router.redirect_slashes = False
    return made


async def _no_path(request: Request, error: HTTPException) -> Response:
    """No such path, or not with this method."""
    if error.status_code == 405:
        answers.exchange(request).about["allow"] = (error.headers or {}).get("Allow", "")
        raise Refused("method_not_allowed", f"{request.method[:10]} is not for this path")
    raise Refused("not_found", "there is nothing at this path")


async def _body(request: Request, most: int) -> bytes:
    """All of it, counted while it comes."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > most:
            raise _too_large(most)
    return bytes(found)


def _too_large(most: int) -> Refused:
    return Refused("body_too_large", f"the body is larger than {most} bytes")


def _with_input_type(asked: Asked, said: str) -> Asked:
    return replace(asked, input_type=fields.input_type(said))


async def _in_turns(pieces: Iterable[bytes]) -> list[bytes]:
    """All pieces; others are served between them."""
    found = []
    for piece in pieces:
        found.append(piece)
        if len(found) > 1:
            await asyncio.sleep(0)
    return found


def _joined(pieces: list[bytes]) -> list[bytes]:
    """Small answers in one piece."""
    return [b"".join(pieces)] if len(pieces) <= 3 else pieces


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, default=str), status, media_type="application/json")


def _id(one: dict[str, Any]) -> str:
    return str(one["model"]) if one["provider"] == "openai" else f"{one['provider']}:{one['model']}"


def _as_openai(one: dict[str, Any]) -> dict[str, Any]:
    return {"id": _id(one), "object": "model", "created": 0, "owned_by": one["provider"]}


def _described(state: ServerState, client: Client, provider: str, model: str) -> dict[str, Any]:
    """What the catalog knows of a model."""
    settings = state.settings
    try:
        endpoint = chains.endpoint(settings, provider, model)
    except Exception as problem:
        raise Refused("model_not_found", f"there is no model {provider}:{model} here", param="model") from problem
    entry = endpoint.entry or catalog.find(provider, model)
    price = state.prices().of(endpoint)
    allowed = entry.dimensions_allowed if entry else ()
    try:
        model_names.check_allowed(settings, client, endpoint)
        may = True
    except Refused:
        may = False
    return {
        "model": model,
        "provider": provider,
        "dimension": endpoint.dimensions,
        "max_tokens": endpoint.max_tokens,
        "allowed": may,
        "price_usd_per_mtok": None if price is None else format(price.normalize(), "f"),
        "dimensions_supported": [allowed[0], allowed[-1]] if isinstance(allowed, range) else list(allowed),
        "tokenizer": endpoint.tokenizer,
        "takes_tokens": endpoint.takes_tokens,
        "local": endpoint.local,
    }
