"""Pages for people: `/dashboard` and `/docs`. They hold nothing of this server, so that they need no key.

What a page shows it asks for with a key that is typed into it. That stands in the tab's own storage or memory, goes out
in a header, and never into an address; a page's policy lets it load nothing, run nothing but its own script, and ask
nobody but the server that it came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from importlib import resources

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedctl import tokens
from embedctl.errors import EmbedctlError
from embedctl.server import answers, openapi
from embedctl.server.refusals import Refused
from embedctl.server.state import ServerState

DASHBOARD, DOCS = "/dashboard", "/docs"
PATHS = frozenset({DASHBOARD, DOCS})
"""Open to everybody."""


class Pages:
    """The endpoints of pages."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route(DASHBOARD, self.dashboard, methods=["GET"]),
            Route(DOCS, self.docs, methods=["GET"]),
            Route("/openapi.json", self.description, methods=["GET"]),
        ]

    async def dashboard(self, request: Request) -> Response:
        """GET /dashboard."""
        return await self._page(dashboard)

    async def docs(self, request: Request) -> Response:
        """GET /docs."""
        return await self._page(viewer)

    async def description(self, request: Request) -> Response:
        """GET /openapi.json."""
        answers.admin(request)
        self._check_on()
        return answers.json(openapi.document())

    def _check_on(self) -> None:
        if not self._state.serve.pages:
            raise Refused("not_found", "there is nothing at this path")

    async def _page(self, made: Callable[[], str]) -> Response:
        self._check_on()
        try:
            text = await asyncio.to_thread(made)
        except EmbedctlError as problem:
            raise Refused("internal_error", "a part of the page is damaged", reason=problem.message) from None
        headers = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}
        return Response(text, media_type="text/html", headers=headers)


@cache
def dashboard() -> str:
    """The dashboard's HTML.

    Raises:
        ConfigurationInvalid: A bundled part of it is damaged.
    """
    from embedctl.reports import charts

    body = [
        '<main><section id="enter" class="hidden"><h1>embedctl</h1>',
        "<p>What is spent is for those who have a key. It stays in this tab.</p>",
        '<p id="why" class="bad" role="alert"></p>',
        '<form><label class="live" for="key">Key</label>',
        '<input id="key" type="password" placeholder="key or token" autocomplete="off" spellcheck="false" required>',
        "<button>Show</button></form></section>",
        '<div id="board" class="hidden"><div class="bar"><h1>embedctl <span class="soft" id="whose"></span></h1>',
        '<span class="soft" id="as-of" role="status"></span>',
        '<button id="forget" type="button" class="hidden">Forget the key</button></div>',
        '<div id="warnings"></div>',
        '<h2 class="row" id="today-title"></h2><div class="tiles" id="today"></div>',
        '<h2 class="row" id="month-title"></h2><div class="tiles" id="month"></div>',
        '<div class="filters" id="filters" role="group" aria-label="What the bars show"></div>',
        '<div class="cards" id="charts"></div><div class="cards" id="tables"></div></div>',
        '<noscript><p class="warn">The dashboard needs JavaScript.</p></noscript></main>',
    ]
    return charts.page(
        "embedctl dashboard", body, script=own("dashboard.js"), values={}, more_style=own("dashboard.css"), asks=True
    )


@cache
def viewer() -> str:
    """The API's description in Swagger UI, which sends what is tried out to this server alone.

    Raises:
        ConfigurationInvalid: The bundled viewer is damaged.
    """
    from embedctl.reports import charts

    files = [tokens.asset(f"swagger-ui/{name}") for name in ("swagger-ui-bundle.js", "swagger-ui.css")]
    script, sheet = (path.read_text("utf-8") for path in files)
    return charts.document(
        "embedctl API",
        ['<main id="viewer"></main><noscript><p>The description needs JavaScript.</p></noscript>'],
        scripts=[script, own("docs.js")],
        sheet=sheet + own("docs.css"),
        values={"description": orjson.dumps(openapi.document()).decode()},
        asks=True,
    )


def own(name: str) -> str:
    """A script or style sheet of the pages, by its file's name."""
    return resources.files("embedctl.server").joinpath("page", name).read_text("utf-8")
