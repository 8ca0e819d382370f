"""What a server says, as it is kept: short, in one line, without the key, within bounds."""

from __future__ import annotations

import base64
import math
import re
import time
import unicodedata
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedctl.errors import AnswerUnusable, RequestRefused, TextTooLong
from embedctl.providers import _errors, _foreign, _rate_headers
from embedctl.providers._contract import HttpRequest

KEY = "sk-Very+Secret/Key-0123456789"
PASSWORD = "correct horse battery"


def sent(**headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest(url="https://example.org", body=b'{"model":"text-embedding-3-small"}', headers=named)


BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
REQUESTS = [
    (sent(authorization=f"Bearer {KEY}"), KEY),
    (sent(authorization=f"Token {KEY}"), KEY),
    (sent(authorization=KEY), KEY),
    (sent(authorization=f"ApiKey id={KEY};v=1"), KEY),
    (sent(x_api_key=KEY), KEY),
    (sent(cookie=f"session={KEY}"), KEY),
    (sent(x_whatever=KEY), KEY),
    (sent(authorization=f"Basic {BASIC}"), BASIC),
    (sent(authorization=f"Basic {BASIC}"), PASSWORD),
]
DISGUISES = {
    "literal": lambda key: key,
    "other capitals": lambda key: key.swapcase(),
    "percent": lambda key: quote(key, safe=""),
    "every letter percent": lambda key: "".join(f"%{ord(c):02X}" for c in key),
    "twice percent": lambda key: quote(quote(key, safe=""), safe=""),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 for URLs": lambda key: base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode(),
    "base64 with something before": lambda key: base64.b64encode(b"k:" + key.encode() + b"!").decode(),
    "base64 with more before": lambda key: base64.b64encode(b"key:" + key.encode()).decode(),
    "reversed": lambda key: key[::-1],
    "split": lambda key: key[:9] + " " + key[9:],
    "spaced": lambda key: " ".join(key),
    "split by what is not seen": lambda key: "\u200b".join(key),
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize(("request_", "key"), REQUESTS)
def test_a_repeated_key_is_struck_out(request_: HttpRequest, key: str, disguise: str) -> None:
    """A key that was sent, whatever its header and its disguise, is neither in a sentence nor in an id."""
    shown = DISGUISES[disguise](key)
    visible = " ".join("".join(c if c.isprintable() else " " for c in shown).split())

    for said in (shown, f"id-{shown}", f"No such key: {shown} (look)", "x" * 150 + f" {shown}"):
        for kept in (_foreign.clean(said, request_), _foreign.label(said, request_)):
            assert visible not in str(kept)
            assert shown not in str(kept)
            assert "***" in str(kept)


@pytest.mark.parametrize("place", [*range(180, 215), *range(4060, 4110), *range(65_500, 65_540)])
def test_no_half_of_a_key_is_left_where_a_text_is_cut(place: int) -> None:
    """Wherever a text is cut, and whatever is squeezed out of it, no beginning of a key stays at the end."""
    asked = sent(authorization=f"Bearer {KEY}")

    for filling in ("x" * place, " " * place, "<i>" * (place // 3) + " " * (place % 3)):
        page = f"{filling}{KEY} and more"
        refused = _errors.refusal("openai", 401, {}, page.encode(), asked).message
        for kept in (_foreign.clean(page, asked), _foreign.label(page, asked) or "", refused):
            assert KEY[:8] not in kept


def test_what_is_said_around_a_key_stays() -> None:
    """Of a sentence that repeats the key as it is, the rest is kept."""
    kept = _foreign.clean(f"Incorrect API key provided: {KEY}. See the docs.", sent(authorization=f"Bearer {KEY}"))

    assert kept == "Incorrect API key provided: ***. See the docs."


@pytest.mark.parametrize(
    "said",
    [
        "req_0123456789abcdef0123456789abcdef",
        "eyJhbGciOi.eyJzdWIiOiJ",
        "text-embedding-3-small",
        "hf_embedding_model_one",
    ],
)
def test_ids_may_look_like_keys(said: str) -> None:
    """An id or a model's name that only looks like a key is kept, also when a header that is none repeats it."""
    asked = sent(authorization=f"Bearer {KEY}", x_model="text-embedding-3-small")

    assert _foreign.label(said, asked) == said


@pytest.mark.parametrize(
    "said",
    [
        "litellm.InternalServerError: OpenAIException - Connection error",
        "unsupported parameters: dimensions",
        "litellm.UnsupportedParamsError: openai does not support parameters: {'dimensions': 512}",
        "hf_transformers is not installed; sk-learn-contrib neither",
        "Bearer authentication required",
        "unexpected token: whatever; expected secret: something",
        "disk-management, task_scheduler, final-assessment, alternatives, packages, skeletons",
        "finalizing-evaluation of fallback_deployments",
    ],
)
def test_ordinary_words_are_no_keys(said: str) -> None:
    """Words that begin like a key, or hold its first letters, are kept whole."""
    assert _foreign.clean(said, sent(authorization=f"Bearer {KEY}")) == said


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdEFGH1234ijkl",
        "sk-proj-****wxyz",
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
        "pa-Zk3jd82lskdj28sk",
        "al-Zk3jd82lskdj28sk",
        "jina_0123456789abcdef",
        "gsk_a1b2c3d4e5f6g7h8",
        "AIzaSyAbcdefghijklmnop",
        "ABSKQmVkcm9ja0FQSUtleS",
        "Bearer abc123def",
        "token=abcdefgh",
        "api key: a1b2c3d4",
    ],
)
def test_other_keys_are_hidden(key: str) -> None:
    """What looks like somebody's key is hidden, though it was not sent."""
    kept = _foreign.clean(f"wrong: {key}.", sent())

    assert key.rpartition(" ")[2] not in kept
    assert "***" in kept


@pytest.mark.parametrize("scheme", ["Bearer", "Token", "ApiKey"])
def test_a_short_key_is_struck_from_sentences(scheme: str) -> None:
    """A key of a few characters is struck out of what is said, whatever scheme stands before it."""
    assert _foreign.clean("no such key: k3y-1!", sent(authorization=f"{scheme} k3y-1")) == "no such key: ***!"


@pytest.mark.parametrize("key", ["none", "EMPTY", "ollama"])
def test_a_key_that_is_a_word_strikes_no_name(key: str) -> None:
    """What people give to servers that want no key is no key: names that hold it stay."""
    assert _foreign.label(f"{key}/all-minilm", sent(authorization=f"Bearer {key}")) == f"{key}/all-minilm"


@example(said="\ud800\u202e\x1b[2J\x00\x9b\u2066" * 100)
@example(said="\u3000" * 300)
@given(st.text(max_size=400) | st.text(alphabet=st.characters(), min_size=190, max_size=210))
def test_any_text(said: str) -> None:
    """Whatever a server says is kept as at most 200 characters that are seen, in one line, for every encoding."""
    for kept in (_foreign.clean(said, sent()), _foreign.label(said, sent()) or "", _foreign.line(said)):
        assert len(kept) <= 200
        assert kept.isprintable()
        assert kept == " ".join(kept.split())
        assert not any(unicodedata.category(c)[0] == "C" for c in kept)
        kept.encode()


@pytest.mark.parametrize("value", [0, 1, 12.0, 10**9])
def test_numbers_that_are(value: Any) -> None:
    """A whole number from 0 to a billion is a count."""
    assert _foreign.whole(value) == int(value)


@pytest.mark.parametrize(
    "value", [-1, 1.5, 10**9 + 1, 10**23, 10**4000, 1e300, math.inf, math.nan, True, "8", None, [], {}]
)
def test_numbers_that_are_none(value: Any) -> None:
    """Whatever else stands where a count should is nothing."""
    assert _foreign.whole(value) is None


@pytest.mark.parametrize(
    ("value", "wanted"), [("8", 8), ("0", 0), ("-1", None), ("8.0", None), ("", None), (None, None), ("٣", None)]
)
def test_counts_in_headers(value: str | None, wanted: int | None) -> None:
    """A count in a header is a whole number or nothing."""
    assert _foreign.counted(value) == wanted
    assert _foreign.counted("9" * 5000) is None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0, "0"),
        ("0.5", "0.5"),
        (1.6e-07, "1.6E-7"),
        (3.2000000000000003e-07, "3.20000000E-7"),  # binary floats have a tail beyond the ledger's last decimal
        ("1e-99", "0"),
        ("9999999999999.99", "9999999999999.99"),
        (2, "2"),
    ],
)
def test_amounts(value: Any, wanted: str) -> None:
    """An amount that the ledger can hold is taken exactly, what is beyond 15 decimals rounded."""
    assert _foreign.amount(value) == Decimal(wanted)


@pytest.mark.parametrize(
    "value",
    [
        -5, -0.1, "-1", 10**13, 1e13, 1e300, math.inf, math.nan, 10**4000, "1e99999999", "1e-99999999", "1e13", "NaN",
        "Infinity", "1_000", " 1", "٣", "free", "", "0" * 100, True, None, [], {},
    ],
)  # fmt: skip
def test_amounts_that_are_none(value: Any) -> None:
    """What is negative, larger than the ledger's column, or no number is no amount, and costs no time."""
    assert _foreign.amount(value) is None


@given(st.floats() | st.integers() | st.text(max_size=80) | st.decimals().map(str))
def test_any_amount(value: Any) -> None:
    """Whatever is taken fits DECIMAL(28,15)."""
    found = _foreign.amount(value)

    assert found is None or (0 <= found < 10**13 and found == round(found, 15))


DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize("body", [DEEP, b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b"[" * 1_000_000])
def test_depth_is_bounded(body: bytes) -> None:
    """JSON nested deeper than anything that is meant is unusable, not an error of the interpreter."""
    started = time.process_time()

    with pytest.raises(AnswerUnusable):
        _foreign.loaded(body)
    assert _foreign.anything(body) is None
    assert time.process_time() - started < 0.5


def test_any_value_can_be_shown() -> None:
    """A value of any depth and size has words for a message."""
    deep = orjson.loads(b"[" * 1000 + b"]" * 1000)

    assert [_foreign.shown(one) for one in (deep, 10**4000, {"a": [1]}, "x")] == [
        "something nested too deep", "a number of many digits", '{"a":[1]}', "x",
    ]  # fmt: skip


SIXTY_FOUR_KB = 64 * 1024
REPEATED = [
    "<script", "<script>", "<", "<style ", "eyJ", "eyJ-", "eyJ.", "sk", "sk-", "bearer ", "bearer", "token ", "token=",
    "api key ", "secret:", "a", "a1", "a ", "0", "9 ", "%", "%25", "exceed", "exceeds ", "too_long", "model ", "input",
    "text ", "prompt ", "at index ", "input[", "retry after ", "retry after 1", "try again in 1m", '"retryDelay":',
    '"retryDelay" ', "max 1", "batch size 1 ", "context ", " ", "\t", "\u200b", "é", "***", "non-", "\\", '"',
]  # fmt: skip


EXPRESSIONS = [
    *(re.compile(one.words, re.IGNORECASE | re.DOTALL) for one in _errors.SIGNALS if one.words is not None),
    *(
        value
        for module in (_errors, _foreign, _rate_headers)
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern) and name not in ("_PIECE", "_DURATION")  # of a header's 100 characters
    ),
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_each_expression_is_linear(expression: re.Pattern[str]) -> None:
    """Any expression alone reads 64 kB of anything repeated in milliseconds, whatever was cut before."""
    for unit in REPEATED:
        said = (unit * SIXTY_FOUR_KB)[:SIXTY_FOUR_KB]
        started = time.process_time()
        expression.sub("", said)
        assert time.process_time() - started < 0.5, unit


@pytest.mark.parametrize("unit", REPEATED)
def test_a_header_of_any_length_says_nothing(unit: str) -> None:
    """A header that is longer than any number, duration or date is not looked at."""
    said = unit * SIXTY_FOUR_KB
    started = time.process_time()

    assert _rate_headers.duration(said) is None
    assert _rate_headers.retry_after({"retry-after": said, "retry-after-ms": said, "date": said}) is None
    assert time.process_time() - started < 1


def test_expressions_see_four_thousand_characters() -> None:
    """Of a refusal's words no more than 4 kB reach an expression: what stands behind decides nothing."""
    words = "maximum context length"
    near, far = ("x " * number + words for number in (800, 3000))
    told = [
        _errors.refusal("openai", 400, {}, body, sent())
        for said in (near, far)
        for body in (orjson.dumps({"error": {"message": said}}), said.encode())
    ]

    page = _errors.refusal("openai", 400, {}, (b"<i>" * 3000) + words.encode(), sent())

    assert [type(error) for error in told] == [TextTooLong, TextTooLong, RequestRefused, RequestRefused]
    assert page.message == "HTTP 400 without a word"


@pytest.mark.parametrize("unit", REPEATED)
def test_no_expression_is_quadratic(unit: str) -> None:
    """64 kB of anything repeated are read in linear time, as a page, a message, a detail or an id."""
    said = (unit * SIXTY_FOUR_KB)[: SIXTY_FOUR_KB - 200]
    asked = sent(authorization=f"Bearer {KEY}")
    bodies = [
        said.encode(),
        orjson.dumps({"error": {"message": said, "type": said, "code": said, "param": said}}),
        orjson.dumps({"error": {"message": "x", "details": [said]}}),
        orjson.dumps({"detail": [{"loc": [said] * 3, "msg": said, "type": said}]}),
    ]
    started = time.process_time()
    for status in (400, 422, 429, 500):
        for body in bodies:
            _errors.refusal("openai", status, {"retry-after": said, "x-amzn-errortype": said}, body, asked)
    _foreign.label(said, asked)

    assert time.process_time() - started < 3  # sixteen refusals take 0.1 s, a quadratic one alone more than this
