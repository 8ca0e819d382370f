"""How long a provider asks to wait, and what it says of its rates. Pure; facts/providers.md, 2026-11-21."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from embedctl.dataclass import dataclass

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PIECE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d)")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h|d))+")
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?")  # float() would also take "nan", "1e9" and Arabic numerals
_IN_WORDS = re.compile(
    r"(?:retry|try again)\s+(?:after|in)\s+(\d+(?:\.\d+)?)\s*(milliseconds?|seconds?|minutes?|hours?)\b", re.I
)
_SHORT_WORDS = re.compile(r"(?:retry|try again)\s+(?:after|in)\s+((?:\d+(?:\.\d+)?(?:ms|s|m|h))+)", re.I)
_RETRY_INFO = re.compile(r'"retryDelay"\s*:\s*"([^"]+)"')
_IN_BODY = re.compile(
    r'"(?:(retry_?after_?ms|retry_?after_?milliseconds)|retry_?after(?:_?s(?:ec(?:ond)?s?)?)?|estimated_time)"'
    r'\s*:\s*"?(\d+(?:\.\d+)?)s?"?\s*[,}\]]',
    re.I,
)
_IN_RATELIMIT = re.compile(r"\br=0\b.{0,40}?;\s*t=(\d+)")
_FORWARDED = ("", "llm_provider-")
_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms", "x-retry-after-ms")
_SECONDS = ("retry-after", "x-retry-after")
_LONGEST_VALUE = 100  # characters of a header that says a number, a duration or a date
LONGEST_WAIT_S = 31 * 86400.0
"""No quota is further away; a provider that says more says nothing."""

_MOST_PER_MINUTE = 1e12
_WORD_S = {"milli": 1e-3, "secon": 1.0, "minut": 60.0, "hours": 3600.0, "hour": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one answer says of the rates; None where it says nothing.

    Attributes:
        requests_per_minute: The limit.
        tokens_per_minute: The limit.
        requests_left: Until the reset.
        tokens_left: Until the reset.
        requests_reset_s: Seconds until all of the limit is there again.
        tokens_reset_s: Seconds until all of the limit is there again.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    requests_left: float | None = None
    tokens_left: float | None = None
    requests_reset_s: float | None = None
    tokens_reset_s: float | None = None


def rates(headers: Mapping[str, str]) -> Rates | None:
    """Read the OpenAI dialect's headers; None when there are none.

    Only the limits named `-requests` and `-tokens` are per minute for certain; a bare `x-ratelimit-limit` is per
    second, per minute or per hour depending on who sends it, and is left alone.

    Args:
        headers: Names in lower case.

    Source: https://platform.openai.com/docs/guides/rate-limits (facts/providers.md 2, 2026-11-21)
    """
    prefix = "x-ratelimit-"
    if not any(name.startswith(prefix) for name in headers):
        return None

    def number(name: str, least: float) -> float | None:
        return _within(_number(headers.get(prefix + name, "")), least, _MOST_PER_MINUTE)

    return Rates(
        requests_per_minute=number("limit-requests", 1),
        tokens_per_minute=number("limit-tokens", 1),
        requests_left=number("remaining-requests", 0),
        tokens_left=number("remaining-tokens", 0),
        requests_reset_s=_wait(duration(headers.get(prefix + "reset-requests", ""))),
        tokens_reset_s=_wait(duration(headers.get(prefix + "reset-tokens", ""))),
    )


def retry_after(headers: Mapping[str, str], message: str = "", body: str = "") -> float | None:
    """Seconds to wait before the next attempt, None where the provider does not say.

    Headers in milliseconds, then `retry-after` (seconds or HTTP date), each also as LiteLLM hands on what its own
    provider said (`llm_provider-…`); then the body (Google's RetryInfo, `retry_after`, Hugging Face's
    `estimated_time`), the message's own words, and the resets of the rates, IETF's too. Negative, NaN, garbage and
    more than a month count as not said.

    Args:
        message: The provider's sentence ("Please retry after 20 seconds").
        body: The body as text.

    Source: facts/providers.md 1; https://docs.litellm.ai/docs/proxy/response_headers;
        draft-ietf-httpapi-ratelimit-headers (2026-11-25)
    """
    found = _in_headers(headers)
    if found is None and (told := _RETRY_INFO.search(body)):
        found = _wait(duration(told.group(1)))
    if found is None and (told := _IN_BODY.search(body)):
        found = _wait((_number(told.group(2)) or 0.0) / (1000 if told.group(1) else 1)) or None
    if found is None:
        found = _wait(_in_words(message))
    return found if found is not None else _wait(_from_resets(headers))


def _in_headers(headers: Mapping[str, str]) -> float | None:
    for prefix in _FORWARDED:
        for name in _MILLISECONDS:
            milliseconds = _number(headers.get(prefix + name, ""))
            if milliseconds is not None and (found := _wait(milliseconds / 1000)) is not None:
                return found
        for name in _SECONDS:
            value = headers.get(prefix + name, "").strip()
            number = _number(value)
            if (found := _wait(_until(value, headers.get("date")) if number is None else number)) is not None:
                return found
    return None


def _wait(seconds: float | None) -> float | None:
    return _within(seconds, 0, LONGEST_WAIT_S)


def _within(value: float | None, least: float, most: float) -> float | None:
    return value if value is not None and least <= value <= most else None


def duration(value: str) -> float | None:
    """Seconds of a Go-style duration ("6m0s", "34.07s", "120ms"), or of a bare number of seconds."""
    value = _short(value)
    if _DURATION.fullmatch(value):
        return sum(float(number) * _UNIT_S[unit] for number, unit in _PIECE.findall(value))
    return _number(value)


def _short(value: str) -> str:
    """A header's value; nothing of one that is longer than any that means something."""
    return value.strip() if len(value) <= _LONGEST_VALUE else ""


def _number(value: str) -> float | None:
    value = _short(value)
    return float(value) if _PLAIN.fullmatch(value) else None


def _until(date: str, now: str | None) -> float | None:
    """Seconds until an HTTP date, by the server's own clock where it shows one."""
    moment = _http_date(date)
    if moment is None:
        return None
    start = _http_date(now) if now else None
    return max(0.0, (moment - (start or datetime.now(UTC))).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(_short(value))
    except (ValueError, TypeError, IndexError, OverflowError):  # a date that is none, or in no calendar
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _in_words(message: str) -> float | None:
    if told := _IN_WORDS.search(message):
        return float(told.group(1)) * _WORD_S[told.group(2).lower()[:5]]
    if told := _SHORT_WORDS.search(message):
        return duration(told.group(1))
    return None


def _reset(headers: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        if name in headers:
            seconds = duration(headers[name])
            if seconds is not None and seconds > 1e9:  # a Unix time, as cohere and tldw write it
                now = _http_date(headers.get("date", "")) or datetime.now(UTC)
                return max(0.0, seconds - now.timestamp())
            return seconds
    return None


def _from_resets(headers: Mapping[str, str]) -> float | None:
    """The reset of the rates that are used up; of all where none is shown as used up."""
    prefix = "x-ratelimit-"
    resets: list[tuple[float | None, float | None]] = []
    for names in (("requests", ""), ("tokens",)):
        ends = [f"-{name}" if name else "" for name in names]
        left = next((headers[key] for end in ends if (key := f"{prefix}remaining{end}") in headers), "")
        resets.append((_number(left), _reset(headers, *(f"{prefix}reset{end}" for end in ends))))
    if told := _IN_RATELIMIT.search(headers.get("ratelimit", "")[:_LONGEST_VALUE]):
        resets.append((0.0, float(told.group(1))))
    resets.append((_number(headers.get("ratelimit-remaining", "")), _reset(headers, "ratelimit-reset")))
    empty = [seconds for left, seconds in resets if seconds is not None and left == 0]
    return max(empty or [seconds for _, seconds in resets if seconds is not None], default=None)
