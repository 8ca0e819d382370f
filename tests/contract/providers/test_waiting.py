"""How long to wait: every form in which providers say it, and what is not believed."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.providers import _errors
from embedctl.providers._contract import HttpRequest
from embedctl.providers._rate_headers import duration, rates, retry_after

RATE_HEADERS = [f"{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
DATE = "Sat, 21 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "86400"}, 86400),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT", "date": DATE}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT", "date": DATE}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"x-ratelimit-reset-requests": "1s"}, 1),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "120ms", "x-ratelimit-reset-tokens": "2s"}, 2),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m2.5s",
                "x-ratelimit-remaining-tokens": "900",
                "x-ratelimit-reset-tokens": "6h",
            },
            62.5,
        ),
        ({"x-ratelimit-reset": "1795262430", "date": DATE}, 30),
        ({"x-ratelimit-reset": "12"}, 12),
        ({"llm_provider-retry-after": "17"}, 17),
        ({"llm_provider-retry-after-ms": "1700"}, 1.7),
        ({"retry-after": "3", "llm_provider-retry-after": "17"}, 3),
        ({"x-ms-retry-after-ms": "2500"}, 2.5),
        ({"x-retry-after": "8"}, 8),
        ({"ratelimit-reset": "40", "ratelimit-remaining": "0"}, 40),
        ({"ratelimit": '"default";r=0;t=25'}, 25),
        ({"ratelimit": '"default";r=9;t=25'}, None),
        ({}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": str(32 * 86400)}, None),
        ({"retry-after": "Sun, 06 Nov 9999 08:49:37 GMT", "date": DATE}, None),
        ({"retry-after": "Sun, 06 Nov 999999999 08:49:37 GMT", "date": DATE}, None),
        ({"retry-after": "Sun, 06 Nov 2026 08:49:37 +99999999999999", "date": DATE}, None),
        ({"retry-after-ms": "1" + "0" * 50, "retry-after": "9"}, 9),
        ({"x-ratelimit-reset": "9" * 20, "date": DATE}, None),
        ({"x-ratelimit-reset-tokens": "a while"}, None),
    ],
)
def test_headers(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, dates by the server's own clock, Go durations and Unix times are read; garbage is not."""
    assert retry_after(headers) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("have exceeded call rate limit. Please retry after 86400 seconds.", 86400),
        ("Please retry after 1 second.", 1),
        ("Rate limit reached. Please try again in 1.2s. Visit …", 1.2),
        ("Please try again in 7m12s.", 432),
        ("Please try again in 120ms.", 0.12),
        ("try again in 2 minutes", 120),
        ("retry after 500 milliseconds", 0.5),
        ("please try again later", None),
    ],
)
def test_words(message: str, seconds: float | None) -> None:
    """What only the sentence says is read from the sentence."""
    assert retry_after({}, message) == (None if seconds is None else pytest.approx(seconds))


def test_headers_before_words() -> None:
    """A header counts before the sentence."""
    assert retry_after({"retry-after": "3"}, "Please retry after 86400 seconds.") == 3


def test_google_retry_info() -> None:
    """Google says it in the details of the body."""
    body = {
        "error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "34.07s"}]}
    }

    found = _errors.refusal("google", 429, {}, orjson.dumps(body, option=orjson.OPT_INDENT_2), HttpRequest(url=""))

    assert found.retry_after_s == pytest.approx(34.07)


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"message": "slow down", "retry_after": 12}}, 12),
        ({"error": {"message": "slow down", "metadata": {"retry_after_ms": 1500}}}, 1.5),
        ({"detail": {"message": "slow down", "retryAfter": "9"}}, 9),
        ({"error": "slow down", "retry_after_seconds": 4.5}, 4.5),
        ({"error": "Model is currently loading", "estimated_time": 20.0}, 20),
        ({"error": "slow down", "retry_after": "soon"}, None),
        ({"error": "slow down", "retry_after": 0}, None),
        ({"error": "slow down", "retry_after": -3}, None),
    ],
)
def test_fields_of_the_body(body: dict[str, object], seconds: float | None) -> None:
    """Gateways say it in a field of the body, in seconds or milliseconds."""
    found = _errors.refusal("openai", 429, {}, orjson.dumps(body), HttpRequest(url=""))

    assert found.retry_after_s == (None if seconds is None else pytest.approx(seconds))


def test_only_what_waiting_helps() -> None:
    """A wait is reported for throttling, failures and quota, and not for a refused request."""
    sent = HttpRequest(url="")

    waits = {
        status: _errors.refusal("openai", status, {"retry-after": "9"}, b"{}", sent).retry_after_s
        for status in (400, 401, 402, 429, 503)
    }

    assert waits == {400: None, 401: None, 402: 9, 429: 9, 503: 9}


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_header(value: str, date: str) -> None:
    """Whatever a header holds, the wait is a finite number that is not negative, or nothing."""
    found = retry_after({"retry-after": value, "date": date, "x-ratelimit-reset-tokens": value})

    assert found is None or 0 <= found <= 31 * 86400


@given(st.text(max_size=30) | st.text("0123456789.eE+-smhd", max_size=120))
def test_any_rate(value: str) -> None:
    """Whatever headers say of the rates is a number that can be reckoned with, or nothing."""
    told = rates({f"x-ratelimit-{name}": value for name in RATE_HEADERS})

    assert told is not None
    for limit in (told.requests_per_minute, told.tokens_per_minute):
        assert limit is None or 1 <= limit <= 1e12
    for left in (told.requests_left, told.tokens_left):
        assert left is None or 0 <= left <= 1e12
    for reset in (told.requests_reset_s, told.tokens_reset_s):
        assert reset is None or 0 <= reset <= 31 * 86400


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    """A Go duration is the sum of its pieces."""
    found = duration(f"{hours}h{minutes}m{seconds}s{milliseconds}ms")

    assert found == pytest.approx(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)
