"""What is answered when there are no vectors: one table of codes, and where errors of the call point stand in it.

Money is 402, never 429, which every client repeats; a provider's 401 is never passed on: the client would think that
its own key is bad.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import orjson

from embedctl import errors
from embedctl.budgets.reservations import SpendLimit
from embedctl.dataclass import dataclass
from embedctl.records import Refusal, format_money

CODES: Mapping[str, tuple[int, str]] = {
    **dict.fromkeys(
        (
            "invalid_json", "invalid_input_type", "empty_input", "too_many_inputs", "invalid_token_array",
            "input_too_long", "unknown_provider", "invalid_model", "invalid_encoding_format", "invalid_dimensions",
            "invalid_user", "invalid_input_kind", "invalid_purpose", "invalid_provider", "unknown_parameter",
            "provider_model_mismatch", "text_refused", "invalid_job", "invalid_file", "idempotency_mismatch",
            "invalid_parameter",
        ),
        (400, "invalid_request_error"),
    ),
    **dict.fromkeys(("missing_key", "invalid_key", "expired_key", "invalid_token"), (401, "authentication_error")),
    **dict.fromkeys(("budget_exceeded", "price_unknown"), (402, "insufficient_quota")),
    **dict.fromkeys(
        ("provider_denied", "model_denied", "admin_required", "workspace_denied", "host_denied", "origin_denied"),
        (403, "permission_error"),
    ),
    **dict.fromkeys(
        ("model_not_found", "breaker_not_found", "not_found", "job_not_found", "media_not_found", "file_not_found"),
        (404, "invalid_request_error"),
    ),
    "not_finished": (409, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "request_timeout": (408, "invalid_request_error"),
    "would_cost": (409, "invalid_request_error"),
    "body_too_large": (413, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "headers_too_large": (431, "invalid_request_error"),
    **dict.fromkeys(
        ("rate_limited", "token_rate_limited", "concurrency_limited", "overloaded", "provider_rate_limited",
         "too_many_failures"),
        (429, "rate_limit_error"),
    ),
    "internal_error": (500, "server_error"),
    "provider_unsupported": (501, "server_error"),
    **dict.fromkeys(("provider_malformed_response", "space_mismatch", "provider_refused"), (502, "upstream_error")),
    **dict.fromkeys(
        ("provider_unavailable", "circuit_open", "fallback_exhausted", "missing_provider_credentials",
         "provider_credentials_rejected", "provider_quota_exhausted"),
        (503, "upstream_error"),
    ),
    **dict.fromkeys(("draining", "storage_failed"), (503, "server_error")),
    "deadline_exceeded": (504, "upstream_error"),
}  # fmt: skip
"""Code → status and type."""

HOPELESS = frozenset({
    "budget_exceeded", "price_unknown", "missing_provider_credentials", "provider_credentials_rejected",
    "provider_quota_exhausted", "space_mismatch", "storage_failed", "provider_refused", "provider_unsupported",
    "would_cost",
})  # fmt: skip
"""Codes whose request comes to nothing again when it is repeated."""

CLOSING = frozenset({"body_too_large", "headers_too_large", "request_timeout"})
"""Codes behind which the connection is closed: what is left of the request was not read."""

LONGEST_RETRY_S = 60
_LONGEST_MESSAGE = 500
_LIKE_A_KEY = re.compile(r"\b(?:sk|emb|pk|key|AIza|hf|pa)[-_][A-Za-z0-9_-]{8,}|\bAIza[A-Za-z0-9_-]{20,}|eyJ[\w.-]{20,}")


class Refused(Exception):
    """A request that is not served, as its client is told.

    Attributes:
        code: Of CODES.
        param: The field that is to blame, as `input[3]`.
        retry_after_s: When it may be repeated; None: nothing is said.
        details: One mapping for each text that is to blame.
        more: Further members of the error's JSON.
        reason: For the log alone.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        more: Mapping[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = clean(message)
        self.status, self.kind = CODES[code]
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = tuple(details)
        self.more = dict(more or {})
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RefusalBody:
    """What is sent in place of vectors."""

    status: int
    content: dict[str, Any]
    headers: list[tuple[str, str]] = field(default_factory=list)


def body(refused: Refused, *, openai: bool, allow: str = "") -> RefusalBody:
    """A refusal as JSON and headers.

    Args:
        openai: Without `detail`, and with OpenAI's own phrase for a text that is too long.
        allow: Methods that the path takes.
    """
    error: dict[str, Any] = {
        "message": refused.message,
        "type": refused.kind,
        "param": refused.param,
        "code": refused.code,
        **refused.more,
    }
    headers = []
    if refused.retry_after_s is not None and refused.code not in HOPELESS:
        wait_s = min(max(refused.retry_after_s, 0.0), LONGEST_RETRY_S)
        milliseconds = max(1, round(wait_s * 1000))
        headers += [("retry-after", str(max(1, math.ceil(wait_s)))), ("retry-after-ms", str(milliseconds))]
        if refused.status == 429:
            error["retry_after_ms"] = milliseconds
    if refused.code in HOPELESS:
        headers.append(("x-should-retry", "false"))
    if refused.status == 401:
        bad = "" if refused.code == "missing_key" else ', error="invalid_token"'
        headers.append(("www-authenticate", f'Bearer realm="embedctl"{bad}'))
    if allow:
        headers.append(("allow", allow))
    if refused.code in CLOSING:
        headers.append(("connection", "close"))
    if refused.code == "input_too_long" and not openai:
        content: dict[str, Any] = {
            "error": "input_too_long", "message": refused.message, "details": list(refused.details),
            "detail": refused.message,
        }  # fmt: skip
        return RefusalBody(refused.status, content, headers)
    if refused.details:
        error["details"] = list(refused.details)
    return RefusalBody(
        refused.status, {"error": error} if openai else {"error": error, "detail": refused.message}, headers
    )


def encoded(content: Mapping[str, Any]) -> bytes:
    """A refusal's JSON, whatever words of a client or a provider stand in it."""
    try:
        return orjson.dumps(content)
    except TypeError:  # half a surrogate pair
        return json.dumps(content).encode()


def clean(text: str) -> str:
    """A sentence that may be a provider's, fit for a client: cut, on one line, without what looks like a key."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    return _LIKE_A_KEY.sub("***", " ".join(plain.split()))[:_LONGEST_MESSAGE]


def of_error(error: errors.EmbedctlError) -> Refused:
    """What the call point could not do."""
    message, wait_s = error.message, getattr(error, "retry_after_s", None)
    match error:
        case errors.BudgetReached():
            return Refused("budget_exceeded", message, more={"budget": _budget(error.limit)})
        case errors.TextTooLong():
            return Refused("input_too_long", message, param="input", details=error.details)
        case errors.TextRefused():
            return Refused("text_refused", message, param="input")
        case errors.WrongUsage() | errors.InputInvalid():
            return Refused("invalid_input_type", message)
        case errors.RequestRefused() | errors.RequestTooLarge():
            return Refused("provider_refused", message)
        case errors.ModelNotFound():
            return Refused("model_not_found", message, param="model")
        case errors.NotAllowed():
            return Refused("model_denied", message)
        case errors.Throttled():
            return Refused("provider_rate_limited", message, retry_after_s=wait_s or 1.0)
        case errors.KeyRejected():
            return Refused("provider_credentials_rejected", "the provider does not take the server's key")
        case errors.QuotaExhausted():
            return Refused("provider_quota_exhausted", "the provider's quota is used up")
        case errors.CircuitOpen():
            return Refused("circuit_open", message, retry_after_s=wait_s or 1.0)
        case errors.NoProviderNow():
            waits = [one["ready_in_s"] for one in error.details if "ready_in_s" in one]
            return Refused(
                "circuit_open" if waits else "fallback_exhausted", message, retry_after_s=min(waits, default=1.0)
            )
        case errors.NotSent() | errors.ServerFailed():
            return Refused("provider_unavailable", message, retry_after_s=wait_s or 1.0)
        case errors.SpaceMismatch() | errors.ModelChanged():
            return Refused("space_mismatch", message)
        case errors.AnswerUnusable() | errors.RedirectRefused():
            return Refused("provider_malformed_response", message)
        case errors.AnswerLost() | errors.DeadlinePassed():
            return Refused("deadline_exceeded", message)
        case errors.StorageFailed() | errors.Locked() | errors.OutputRefused():
            return Refused("storage_failed", "the server cannot write down what it does", reason=message)
        case errors.ConfigurationInvalid():
            return Refused("missing_provider_credentials", "the provider is not configured", reason=message)
    return Refused("internal_error", "something went wrong here; the request's id leads to the log", reason=message)


def of_text(refusal: Refusal, place: int) -> Refused:
    """A text that has no vector.

    Args:
        place: Among the texts of the client's request.
    """
    param = f"input[{place}]"
    if refusal.reason == "too_long":
        limit = {"max_tokens": refusal.max_tokens} if refusal.max_tokens else {}
        details = [{"index": place, "tokens": refusal.tokens, **limit}]
        return Refused("input_too_long", refusal.message, param=param, details=details)
    code = {"unusable_vector": "provider_malformed_response", "provider_failed": "provider_unavailable"}.get(
        refusal.reason, "text_refused"
    )
    return Refused(code, refusal.message, param=param, retry_after_s=1.0 if code == "provider_unavailable" else None)


def _budget(limit: object | None) -> dict[str, Any]:
    if not isinstance(limit, SpendLimit):
        return {}
    return {
        "limit_usd": format_money(limit.amount),
        "spent_usd": format_money(limit.spent),
        "reserved_usd": format_money(limit.reserved),
        "resets_at": limit.ends.isoformat() if limit.ends else None,
    }
