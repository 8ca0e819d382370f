"""What a refusal means: status, code and words to an error of our tree. Pure; facts/providers.md, 18."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import (
    AnswerUnusable,
    KeyRejected,
    ModelNotFound,
    ProviderError,
    QuotaExhausted,
    RedirectRefused,
    RequestRefused,
    RequestTooLarge,
    ServerFailed,
    TextRefused,
    TextTooLong,
    Throttled,
)
from embedctl.providers import _foreign, _rate_headers
from embedctl.providers._contract import HttpRequest

_READ_BYTES = _foreign.READ_CHARACTERS
_PART_CHARACTERS = _foreign.EXPRESSION_CHARACTERS // 2 - _foreign.CHARACTERS
_MOST_COMPLAINTS = 3
_MOST_STEPS = 8
_MOST_DETAILS = 100
_TAGS = re.compile(r"<(?:script|style)\b.*?(?:</(?:script|style)>|\Z)|<[^>]*(?:>|\Z)", re.S | re.I)
_PLACE = re.compile(r"(?:at index |inputs?\[|texts\[|input id )(\d{1,9})(?!\d)", re.I)
_DETAIL_NUMBERS = ("index", "tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Signal:
    """One way in which a provider says one thing; the first that fits decides.

    Attributes:
        becomes: The error of our tree.
        statuses: HTTP statuses it may come with; empty means any.
        words: Pattern that code, type, parameter and message together must match, case aside; None means anything.
        protocols: Whose dialect it is; empty means anyone's.
        unless: Protocols whose same words mean something else.
    """

    becomes: type[ProviderError]
    statuses: frozenset[int] = frozenset()
    words: str | None = None
    protocols: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()
    hint: str | None = None

    def fits(self, status: int, said: str, protocol: str) -> bool:
        """Whether an answer of `protocol` with this status and these words is this signal."""
        return (
            (not self.statuses or status in self.statuses)
            and (not self.protocols or protocol in self.protocols)
            and protocol not in self.unless
            and (self.words is None or re.search(self.words, said, re.IGNORECASE | re.DOTALL) is not None)
        )


def _signal(
    becomes: type[ProviderError],
    words: str | None = None,
    *,
    on: Sequence[int] = (),
    only: Sequence[str] = (),
    unless: Sequence[str] = (),
    hint: str | None = None,
) -> Signal:
    return Signal(becomes, frozenset(on), words, frozenset(only), frozenset(unless), hint)


_KEY_HINT = "check the key: `embedctl providers test NAME`"
_MONEY_HINT = "the account's balance or quota is used up; see the provider's billing page"
_BUDGET_HINT = "a budget of this key, team or provider at the gateway is used up; whoever runs it can raise it"
_MODEL_HINT = "check its name: `embedctl models list`; does this account have it?"
_VOYAGE_HINT = "without a payment method Voyage allows 3 requests and 10,000 tokens a minute"
_API_VERSION_HINT = "check base_url, deployment name (`models` of the provider) and `api_version`"

SIGNALS: tuple[Signal, ...] = (
    _signal(RedirectRefused, on=range(300, 400), hint="set base_url to where it redirects"),
    # learnt by the caller: the same request without it may do
    _signal(RequestRefused, r"encoding_format|embedding_type", on=(400, 422)),
    # a gateway that cannot look up keys now, or whose own provider has no good one
    _signal(ServerFailed, r"(?:store|service|vault|backend)_?\s?(?:is )?unavailable", on=(502, 503), only=("tldw",)),
    _signal(KeyRejected, r"auth|credential|api.?key|\b40[13]\b", on=(502, 503), only=("tldw",), hint=_KEY_HINT),
    # a gateway's own budget, before its words are taken for those of sizes; tldw's "token budget" is one of a minute
    _signal(
        QuotaExhausted,
        r"budget_?exceeded|exceeded_?budget|crossed budget|over budget|budget (?:has been|was|is) exceeded"
        r"|exceed\w{0,4}(?: \w{1,20}){0,3} budget"
        r"|(?:usage|spend(?:ing)?) (?:limit|cap)s? (?:(?:has|have) been )?(?:exceeded|reached)"
        r"|exceeded (?:its|your|the) (?:\w{1,20} )?spend(?:ing)? (?:limit|cap)",
        on=(400, 401, 403, 412, 422, 429),
        unless=("tldw",),
        hint=_BUDGET_HINT,
    ),
    # the request is too large: halve it
    _signal(RequestTooLarge, on=(413,)),
    _signal(RequestTooLarge, r"max_tokens_per_request|max \d+ tokens per request", on=(400, 429)),
    _signal(RequestTooLarge, r"\b3210\b|split into more batches|too many tokens (?:in batch|overall)"),
    _signal(RequestTooLarge, r"at most \d+ requests can be in one batch|payload size exceeds", on=(400,)),
    _signal(RequestTooLarge, r"batch size \d+ > maximum allowed|batch size (?:limit|is invalid)", on=(400, 422)),
    _signal(RequestTooLarge, r"tokens per submitted batch|tokens in the batch", on=(400,)),
    _signal(
        RequestTooLarge,
        r"number of texts must be at most|texts? (?:per|in one) (?:call|request)",
        on=(400, 422),
    ),
    _signal(
        RequestTooLarge,
        r"array too long|array_above_max_length|too_long.{0,200}list|at most \d+ items",
        on=(400, 422),
    ),
    _signal(RequestTooLarge, r"too many (?:inputs|texts|items|documents)|length limit exceeded", on=(400, 422)),
    # one text is too long
    _signal(
        TextTooLong,
        r"maximum context length|context_length_exceeded|context (?:length|window)|maximum input length"
        r"|too many (?:input )?tokens|must have less than \d+ tokens|input_too_long|string_above_max_length"
        r"|(?:input|text|prompt|document)s?\b.{0,60}(?:too long|too large|exceed)|longer than the maximum"
        r"|exceed\w{0,4}.{0,40}\b(?:tokens|characters)\b|string_too_long",
        on=(400, 422),
    ),
    _signal(TextTooLong, r"too large to process", on=(400, 500)),  # llama.cpp: a 500 that is none
    # one text cannot be embedded
    _signal(TextRefused, on=(498,)),  # cohere: a deny-listed token
    _signal(TextRefused, r"NaN", on=(400, 500), only=("ollama", "openai")),
    _signal(TextRefused, r"content_filter|content management policy", on=(400,)),
    _signal(
        TextRefused,
        r"empty string|(?:must not|cannot|can't|may not) be (?:empty|blank)|non-?empty|whitespace"
        r"|\binputs?\W+is (?:empty|invalid)|\$\.input|error_type=(?:Empty|Tokenizer)"
        r"|(?:input|text)s? (?:is|are) empty",
        on=(400, 422),
    ),
    # the money is used up
    _signal(QuotaExhausted, on=(402,), hint=_MONEY_HINT),
    _signal(
        QuotaExhausted,
        r"insufficient_quota|insufficient_balance|insufficient (?:balance|credit|funds)"
        r"|billing_(?:hard_limit|not_active)|API calls / month|billing limit|credit balance",
        on=(400, 403, 429),
        hint=_MONEY_HINT,
    ),
    _signal(QuotaExhausted, r"exceeded your current quota", on=(429,), unless=("google",), hint=_MONEY_HINT),
    _signal(QuotaExhausted, r"per.?day", on=(429,), only=("google",), hint="the daily quota is used up"),
    # the model
    _signal(ModelNotFound, r"model_not_allowed", on=(403,), only=("tldw",)),
    _signal(
        ModelNotFound,
        r"model_not_found|INPUT_MODEL_NOT_FOUND|invalid model|unknown model|model identifier is invalid"
        r"|model\b.{0,80}(?:not found|does not exist|not supported|not available|is deprecated"
        r"|does not support embed)",
        on=(400, 403, 404, 410, 422),
        hint=_MODEL_HINT,
    ),
    _signal(ModelNotFound, on=(404, 410), only=("azure",), hint=_API_VERSION_HINT),
    _signal(ModelNotFound, on=(404, 410), hint="check the model's name and the provider's base_url"),
    # the key
    _signal(KeyRejected, on=(401, 403), hint=_KEY_HINT),
    _signal(KeyRejected, r"API_KEY_INVALID|API key (?:not valid|expired)", on=(400,), hint=_KEY_HINT),
    # later
    _signal(Throttled, on=(429,), only=("voyage",), hint=_VOYAGE_HINT),
    _signal(Throttled, on=(429,)),
    _signal(Throttled, r"ThrottlingException", on=(400, 503), only=("bedrock",)),
    _signal(ServerFailed, on=(408, 409, 424, 425, 499)),
    _signal(ServerFailed, on=range(500, 600)),
    # what names one text is about that text; everything else is about the request
    _signal(TextRefused, r"(?:at index |inputs?[\[.]|texts[\[.]|input id )\d+", on=(400, 422)),
    _signal(RequestRefused),
)
"""Every signal of facts/providers.md, sections 2 to 18 (2026-11-21), most telling first."""


def refusal(protocol: str, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest) -> ProviderError:
    """The error that an answer other than a 200 is; not raised here.

    Args:
        protocol: Whose dialect it is ("openai").
        headers: Names in lower case.
        request: Its key is struck out wherever the provider repeats it.
    """
    if 200 <= status < 300:
        return _foreign.unusable(f"HTTP {status} instead of 200", body)
    raw = bytes(body[:_READ_BYTES])
    said = _said(raw, headers, request)
    message = _foreign.clean(said.message, request) or f"HTTP {status} without a word"
    signal = _decisive(protocol, status, said)
    waits = signal.becomes in (Throttled, ServerFailed, QuotaExhausted)
    beginning = raw[: _foreign.EXPRESSION_CHARACTERS].decode("utf-8", "replace")
    waited = (said.message[: _foreign.EXPRESSION_CHARACTERS], f"{said.kind[:_PART_CHARACTERS]} {beginning}")
    return signal.becomes(
        f"HTTP {status}: {message}" if not message.startswith("HTTP ") else message,
        hint=signal.hint,
        details=said.details,
        status=status,
        provider_code=_foreign.clean(said.code, request) or None,
        retry_after_s=_rate_headers.retry_after(headers, *waited) if waits else None,
    )


def _decisive(protocol: str, status: int, said: _Said) -> Signal:
    short, long = _foreign.CHARACTERS, _PART_CHARACTERS
    words = f"{said.code[:short]} {said.kind[:long]} {said.parameter[:short]} {said.message[:long]}"
    return next(one for one in SIGNALS if one.fits(status, words, protocol))


@dataclass(frozen=True, slots=True)
class _Said:
    """A refusal's own words, whatever the envelope; as long as they came, and not cleaned."""

    message: str = ""
    code: str = ""
    kind: str = ""
    parameter: str = ""
    details: tuple[Mapping[str, Any], ...] = ()


def _said(body: bytes, headers: Mapping[str, str], request: HttpRequest) -> _Said:
    try:
        value = _foreign.loaded(body)
    except AnswerUnusable:
        page = _foreign.without_keys(body.decode("utf-8", "replace"), request)  # a cut could leave half of one
        return _Said(message=_TAGS.sub(" ", page[: _foreign.EXPRESSION_CHARACTERS]))
    if isinstance(value, list) and value:
        value = value[0]  # google, sometimes
    if not isinstance(value, dict):
        return _Said(message=_foreign.shown(value))
    inner = value.get("error")
    flat: dict[str, Any] = {**value, **inner} if isinstance(inner, dict) else value
    message = _message(flat)
    detail = flat.get("detail")
    if isinstance(detail, dict):
        flat = {**flat, **detail}
        message = _message(flat) or message
    if isinstance(detail, list):
        return _Said(message=_validation(detail), kind="validation", details=_places(_validation(detail)))
    codes = [_foreign.shown(flat[name]) for name in ("code", "error_code", "status") if flat.get(name) is not None]
    code = codes[0] if codes else ""
    kind = [flat[name] for name in ("type", "status", "error") if isinstance(flat.get(name), str)]
    if flat.get("error_type"):
        kind.append(f"error_type={_foreign.shown(flat['error_type'])}")
    kind.append(headers.get("x-amzn-errortype", ""))
    if flat.get("details") and flat is not value:
        kind.append(_foreign.shown(flat["details"]))  # google: which quota, which reason
    details = flat.get("details")
    listed = isinstance(details, list) and all(isinstance(one, dict) and "index" in one for one in details)
    return _Said(
        message=message,
        code=code if not code.isdecimal() or len(code) == 4 else kind[0] if kind and kind[0] else code,
        kind=" ".join(part[:_PART_CHARACTERS] for part in kind),
        parameter=_foreign.shown(flat.get("param") or ""),
        details=_numbers(details) if listed and details else _places(message),
    )


def _message(flat: Mapping[str, Any]) -> str:
    for name in ("message", "Message", "detail", "error", "error_message", "msg", "title"):
        if isinstance(flat.get(name), str) and flat[name]:
            return str(flat[name])
    return ""


def _validation(detail: Sequence[Any]) -> str:
    """FastAPI's list of complaints in one sentence: "input.3: String should have …"."""
    parts = []
    for one in detail[:_MOST_COMPLAINTS]:
        if not isinstance(one, dict):
            parts.append(_foreign.shown(one))
            continue
        steps = one.get("loc")
        steps = steps[:_MOST_STEPS] if isinstance(steps, list) else []
        place = ".".join(_foreign.shown(step) for step in steps if step != "body")
        parts.append(f"{place}: {_foreign.shown(one.get('msg', ''))} ({_foreign.shown(one.get('type', ''))})")
    return "; ".join(parts)


def _numbers(details: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, int], ...]:
    """Which texts are meant, and how long they are."""
    found = []
    for one in details[:_MOST_DETAILS]:
        numbers = {name: _foreign.whole(one.get(name)) for name in _DETAIL_NUMBERS}
        found.append({name: number for name, number in numbers.items() if number is not None})
    return tuple(found)


def _places(message: str) -> tuple[Mapping[str, Any], ...]:
    """Which text is meant, where the message says ("at index 3"); counted from 0."""
    found = _PLACE.search(message[: _foreign.EXPRESSION_CHARACTERS])
    return ({"index": int(found.group(1))},) if found else ()
