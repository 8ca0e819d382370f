"""What a protocol is: one file in this folder with the names below. Pure functions, no I/O.

A protocol module has

- `LIMITS: Limits`: what one request may hold when neither catalog, config nor server says otherwise;
- `KEY_VARIABLES: tuple[str, ...]`: environment variables of the key, first that is set wins;
- `BASE_URL: str | None` and `BASE_URL_VARIABLES: tuple[str, ...]`;
- `TAKES_TOKENS: bool`: whether token arrays may be sent as they are;
- `request(place, model, texts, options) -> HttpRequest`;
- `answer(status, headers, body, request) -> WireAnswer`, or an error of our tree raised;
- optionally `input_type_word(place, model, input_type) -> str | None`, where requests have a field for input types:
  how it says one, "" where that is said by leaving the field out, None where the place has no such field;
- optionally a Batch API, as `_batch.py` has it, or `BATCH_REFUSED`: why there is none that could be used;
- optionally `probe(place) -> HttpRequest` and `limits(body) -> Limits`, for servers that say what they take.

It does not wait, retry, price, or check shapes: the call point does that once, for all. Nor does it cut and clean
what a server says: `_entry.read` does, for whatever `answer` returns or raises; JSON is read by `_foreign` alone.
A text is never cut silently: where a provider truncates unless told not to, `request` tells it not to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from embedctl.dataclass import dataclass
from embedctl.records import InputType, Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Secret:
    """A key. Shows itself only when asked; prints, logs and repr show three stars and the last four."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself, for a header."""
        return self._value

    def __repr__(self) -> str:
        return f"***{self._value[-4:]}" if len(self._value) >= 12 else "***"

    __str__ = __repr__


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A configured provider as a protocol sees it.

    Attributes:
        name: The provider's name ("openai", "eu").
        base_url: Without a trailing slash; what design.md lists as a `base_url`, the protocol adds the rest.
        api_key: None where none is configured.
        headers: Extra headers from the user's config.
        options: Protocol options from the user's config (api_version, user, body templates, …).
    """

    name: str
    protocol: str
    base_url: str = ""
    api_key: Secret | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What the caller wants of the vectors.

    Attributes:
        dimensions: Sent to the provider when not None (the model can); else the native width.
        input_type: The field's value to map; None where the model tells types apart by a text prefix,
            or not at all.
        base64: Ask for base64 where the dialect knows it.
        user: OpenAI dialect's `user`, None = not sent.
        fields: More fields of the OpenAI dialect's body, which the place is known to take.
    """

    dimensions: int | None = None
    input_type: InputType | None = None
    base64: bool = False
    user: str | None = None
    fields: Mapping[str, str] = field(default_factory=lambda: _NO_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One HTTP request, ready to send. `repr` shows no header: they hold the key.

    Attributes:
        headers: Names in lower case.
        reading: What `answer` of the same protocol must know of how it was asked (expressions, pooling).
    """

    url: str
    body: bytes = field(repr=False, default=b"")
    headers: Mapping[str, str] = field(repr=False, default_factory=lambda: _NOTHING)
    method: str = "POST"
    reading: Mapping[str, Any] = field(repr=False, default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireAnswer:
    """What an answer says, before the call point checks it.

    Attributes:
        vectors: float32, shape (n, D), in the order they stand in the answer.
        index: Each vector's place in the request as the answer says, None where the order is the request's.
        tokens: The provider's count for the whole request; None where absent or unreadable.
        tokens_each: Per text, where the provider says.
        cost: What the provider itself says it costs, in USD.
        odd_cost: What it says of that where it is no amount.
        provider: Who really served it, where a gateway says (tldw).
        fallback_from: Whom the gateway asked first.
        dimension_policy: What the gateway did to reach the width asked for: reduce, pad or ignore.
        base64: Whether the vectors came as base64; None where the dialect does not know it.
    """

    vectors: NDArray[np.float32]
    index: Sequence[int] | None = None
    tokens: int | None = None
    tokens_each: tuple[int, ...] | None = None
    tokens_cached: int | None = None
    embedding_id: str | None = None
    response_model: str | None = None
    cost: Decimal | None = None
    odd_cost: str | None = None
    provider: str | None = None
    fallback_from: str | None = None
    dimension_policy: str | None = None
    base64: bool | None = None


class WireProtocol(Protocol):
    """The shape of a protocol module."""

    LIMITS: Limits
    KEY_VARIABLES: tuple[str, ...]
    BASE_URL: str | None
    BASE_URL_VARIABLES: tuple[str, ...]
    TAKES_TOKENS: bool

    def request(
        self, place: Provider, model: str, texts: Sequence[str] | Sequence[Sequence[int]], options: RequestOptions
    ) -> HttpRequest:
        """Build the request.

        Raises:
            ConfigurationInvalid: The place lacks what the protocol needs (key, base URL, deployment).
        """

    def answer(self, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> WireAnswer:
        """Read the answer.

        Args:
            headers: Names in lower case.

        Raises:
            ProviderError: The class says what to do next (facts/providers.md, section 18).
        """
