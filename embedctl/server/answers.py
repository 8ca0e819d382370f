"""What endpoints share: the request and who asks, what its query says, and an answer as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from embedctl.dataclass import dataclass
from embedctl.server.authentication import Client
from embedctl.server.refusals import Refused

_LONGEST = 256


@dataclass(slots=True)
class Exchange:
    """One request, beside what Starlette knows of it.

    Attributes:
        headers: Of the request, by name in lower case.
        client: Who asks; None while that is not known.
        openai: Errors are told as OpenAI does.
        about: For the log.
    """

    request_id: str
    started: float
    openai: bool
    headers: dict[str, str]
    client: Client | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def who(self) -> Client:
        """Who asks, where that was found out."""
        if self.client is None:
            raise Refused("missing_key", "a key is needed")
        return self.client


def exchange(request: Request) -> Exchange:
    """What the door knows of a request."""
    found: Exchange = request.scope["exchange"]
    return found


def admin(request: Request) -> Client:
    """Who asks, when that is an admin.

    Raises:
        Refused: It is none.
    """
    client = exchange(request).who
    if not client.is_admin:
        raise Refused("admin_required", "this is for keys with the role admin")
    return client


def parameters(request: Request, *known: str) -> dict[str, str]:
    """What the query of a path says; an empty value is none.

    Raises:
        Refused: A name that is not known, or stands twice; a value that is too long, or is not printable.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise Refused("unknown_parameter", f"unknown parameter: {name[:_LONGEST]!r}", param=name[:_LONGEST])
        if name in found:
            raise Refused("invalid_parameter", f"{name} stands twice", param=name)
        if len(value) > _LONGEST or not value.isprintable():
            raise Refused("invalid_parameter", f"{name} is too long, or not printable", param=name)
        found[name] = value
    return {name: value for name, value in found.items() if value}


def one_of(value: str | None, name: str, known: Iterable[str], code: str = "invalid_parameter") -> str | None:
    """A parameter with fixed values; an empty one is none.

    Raises:
        Refused: It is none of those that are known, which are named.
    """
    if not value:
        return None
    known = tuple(known)
    if value not in known:
        raise Refused(code, f"{name} must be one of {', '.join(known)}", param=name)
    return value


def json(content: Any, status: int = 200) -> Response:
    """An answer."""
    return Response(orjson.dumps(content, default=str), status, media_type="application/json")
