"""`--metrics-listen`: the metrics on an address of their own, where nothing else is and nobody needs a key."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from embedctl.server.metrics import CONTENT_TYPE


class MetricsPage:
    """The ASGI application behind that address.

    Args:
        text: What is counted.
        bound: Where it is listened on: on loopback, a page in a browser must not get at it under another name.
    """

    def __init__(self, text: Callable[[], Awaitable[bytes]], bound: socket.socket) -> None:
        self._text = text
        self._is_loopback = ipaddress.ip_address(bound.getsockname()[0]).is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] == "http":
            await (await self._answer(scope))(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._is_loopback and urlsplit(f"//{named}").hostname not in ("127.0.0.1", "localhost", "::1"):
            return PlainTextResponse("the Host header names another host\n", 403)
        if scope["path"] != "/metrics":
            return PlainTextResponse("only /metrics is here\n", 404)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("metrics are read\n", 405, {"Allow": "GET"})
        return Response(await self._text(), media_type=CONTENT_TYPE)
