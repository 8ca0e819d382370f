"""What an answer's headers say about rates. Pure; works the same when they say nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """None where the server does not say.

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
    return Rates(
        requests_per_minute=_positive(headers.get(prefix + "limit-requests")),
        tokens_per_minute=_positive(headers.get(prefix + "limit-tokens")),
        requests_left=_number(headers.get(prefix + "remaining-requests")),
        tokens_left=_number(headers.get(prefix + "remaining-tokens")),
        requests_reset_s=duration_s(headers.get(prefix + "reset-requests")),
        tokens_reset_s=duration_s(headers.get(prefix + "reset-tokens")),
    )


def duration_s(text: str | None) -> float | None:
    """Seconds of a Go duration ("6m0s", "1.5s", "120ms") or a bare number of seconds; None for anything else."""
    if text is None:
        return None
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return _number(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    return seconds if math.isfinite(seconds) else None


def _number(text: str | None) -> float | None:
    """Digits only: `float` would also take "nan", "1e9" and Arabic numerals."""
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _positive(text: str | None) -> float | None:
    return _number(text) or None
