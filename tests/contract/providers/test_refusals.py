"""What a refusal means: one row per signal, in the providers' own words (facts/providers.md, 2 to 18)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedctl import errors, providers
from embedctl.errors import (
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
from embedctl.providers import _errors
from embedctl.providers._contract import HttpRequest

SENT = HttpRequest(url="https://example.org", headers={"authorization": "Bearer very-secret-key-1"})


def refusal(protocol: str, status: int, body: Any, headers: dict[str, str] | None = None) -> ProviderError:
    packed = body if isinstance(body, bytes) else orjson.dumps(body)
    return _errors.refusal(protocol, status, headers or {}, packed, SENT)


def oai(message: str, code: str | None = None, kind: str = "invalid_request_error", param: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def google(status: str, message: str, *details: Any) -> Any:
    return {"error": {"code": 400, "message": message, "status": status, "details": list(details)}}


def mistral(message: str, code: str, kind: str = "invalid_request_prompt") -> Any:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


QUOTA_SENTENCE = "You exceeded your current quota, please check your plan and billing details."
PER_DAY = {"violations": [{"quotaId": "EmbedContentRequestsPerDayPerProjectPerModel-FreeTier"}]}
PER_MINUTE = {"violations": [{"quotaId": "EmbedContentRequestsPerMinutePerProjectPerModel-FreeTier"}]}

ROWS: list[tuple[str, int, Any, type[ProviderError]]] = [
    # retry same provider
    ("openai", 408, oai("timeout"), ServerFailed),
    ("openai", 409, oai("conflict"), ServerFailed),
    ("openai", 425, b"", ServerFailed),
    ("openai", 429, oai("Rate limit reached for requests", "rate_limit_exceeded", "requests"), Throttled),
    ("openai", 500, oai("The server had an error", None, "server_error"), ServerFailed),
    ("openai", 502, b"<html><h1>502 Bad Gateway</h1></html>", ServerFailed),
    ("openai", 503, oai("overloaded"), ServerFailed),
    ("openai", 504, b"upstream request timeout", ServerFailed),
    ("openai", 529, b"", ServerFailed),
    ("cohere", 499, {"message": "request cancelled"}, ServerFailed),
    ("cohere", 429, {"message": "trial token rate limit exceeded, limit is 100000 tokens per minute"}, Throttled),
    ("tei", 424, {"error": "inference failed", "error_type": "Backend"}, ServerFailed),
    ("tei", 429, {"error": "Model is overloaded", "error_type": "Overloaded"}, Throttled),
    ("ollama", 503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, ServerFailed),
    ("jina", 409, {"code": "BUSY", "message": "busy"}, ServerFailed),
    ("jina", 429, {"code": "RATE_CONCURRENCY_LIMIT_EXCEEDED", "message": "too many"}, Throttled),
    ("voyage", 429, {"detail": "You have not yet added your payment method. Reduced rate limits."}, Throttled),
    ("google", 429, google("RESOURCE_EXHAUSTED", QUOTA_SENTENCE, PER_MINUTE), Throttled),
    ("google", 429, [google("RESOURCE_EXHAUSTED", QUOTA_SENTENCE)], Throttled),
    ("azure", 429, {"error": {"code": "429", "message": "Please retry after 86400 seconds."}}, Throttled),
    ("bedrock", 400, {"__type": "x", "message": "ThrottlingException: slow"}, Throttled),
    ("tldw", 502, {"detail": "Malformed upstream answer"}, ServerFailed),
    ("huggingface", 503, {"error": "Model is currently loading", "estimated_time": 20.0}, ServerFailed),
    # split and resend
    (
        "openai",
        400,
        oai("Requested 453357 tokens, max 300000 tokens per request", "max_tokens_per_request"),
        RequestTooLarge,
    ),
    (
        "openai",
        400,
        oai("Invalid 'input': array too long. Expected an array with maximum length 2048.", "array_above_max_length"),
        RequestTooLarge,
    ),
    ("openai", 413, b"Request Entity Too Large", RequestTooLarge),
    ("mistral", 400, mistral("Too many tokens in batch. Max is 16384 got 17555", "3210"), RequestTooLarge),
    ("mistral", 400, mistral("Too many tokens overall, split into more batches.", "3210"), RequestTooLarge),
    ("mistral", 400, mistral("Too many inputs in request, split into more batches.", "3210"), RequestTooLarge),
    (
        "google",
        400,
        google(
            "INVALID_ARGUMENT",
            "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch",
        ),
        RequestTooLarge,
    ),
    (
        "google",
        400,
        google("INVALID_ARGUMENT", "Request payload size exceeds the limit: 4194304 bytes."),
        RequestTooLarge,
    ),
    (
        "tei",
        422,
        {"error": "batch size 40 > maximum allowed batch size 32", "error_type": "Validation"},
        RequestTooLarge,
    ),
    ("tei", 413, b"length limit exceeded", RequestTooLarge),
    ("cohere", 400, {"message": "total number of texts must be at most 96 - received 104"}, RequestTooLarge),
    (
        "voyage",
        400,
        {
            "detail": "Request to model 'voyage-3' failed. The max allowed tokens per submitted batch is 120000. "
            "Your batch has 130000 tokens after truncation. Please lower the number of tokens in the batch."
        },
        RequestTooLarge,
    ),
    ("voyage", 400, {"detail": "The batch size limit is 1000. Your batch size is 1001."}, RequestTooLarge),
    (
        "openai",
        422,
        {"detail": [{"loc": ["body", "input"], "msg": "List should have at most 1024 items", "type": "too_long"}]},
        RequestTooLarge,
    ),
    ("openai", 400, oai("batch size is invalid, it should not be larger than 10"), RequestTooLarge),
    ("jina", 422, {"detail": "too many inputs"}, RequestTooLarge),
    # one text is bad
    (
        "openai",
        400,
        oai("This model's maximum context length is 8192 tokens, however you requested 9000 tokens."),
        TextTooLong,
    ),
    ("openai", 400, oai("Invalid 'input[3]': maximum input length is 8192 tokens."), TextTooLong),
    ("openai", 400, oai("'$.input' is invalid. Please check the API reference."), TextRefused),
    ("openai", 500, oai("input (992 tokens) is too large to process. increase the physical batch size"), TextTooLong),
    (
        "openai",
        422,
        {"detail": [{"loc": ["body", "input", 3], "msg": "Input should be a valid string", "type": "string_type"}]},
        TextRefused,
    ),
    ("azure", 400, {"error": {"code": "content_filter", "message": "The response was filtered"}}, TextRefused),
    (
        "tei",
        422,
        {"error": "`inputs` must have less than 512 tokens. Given: 600", "error_type": "Validation"},
        TextTooLong,
    ),
    ("tei", 400, {"error": "`inputs` cannot be empty", "error_type": "Empty"}, TextRefused),
    ("tei", 422, {"error": "unknown token", "error_type": "Tokenizer"}, TextRefused),
    ("tei", 422, {"message": "unknown token", "code": 422, "error_type": "Tokenizer"}, TextRefused),
    ("ollama", 400, {"error": "the input length exceeds the context length"}, TextTooLong),
    ("ollama", 400, {"error": "embedding contains NaN or Inf values"}, TextRefused),
    ("ollama", 500, {"error": "failed to encode response: json: unsupported value: NaN"}, TextRefused),
    ("cohere", 498, {"message": "deny-listed token"}, TextRefused),
    ("cohere", 400, {"message": "inputs contains an element that is the empty string at index 2"}, TextRefused),
    (
        "bedrock",
        400,
        {"message": "Too many input tokens. Max input tokens: 8192, request input token count: 9"},
        TextTooLong,
    ),
    (
        "voyage",
        400,
        {
            "detail": "The example at index 0 in your batch has too many tokens and does not fit into the model's "
            "context window of 32000 tokens."
        },
        TextTooLong,
    ),
    (
        "tldw",
        400,
        {"error": "input_too_long", "message": "One or more inputs", "details": [{"index": 1, "tokens": 9000}]},
        TextTooLong,
    ),
    ("tldw", 400, {"detail": "Invalid input: text cannot be empty"}, TextRefused),
    ("mistral", 400, mistral("Input exceeds the maximum of 8192 tokens", "3051"), TextTooLong),
    # fatal for the provider: money
    ("openai", 429, oai(QUOTA_SENTENCE, "insufficient_quota", "insufficient_quota"), QuotaExhausted),
    ("openai", 402, oai("Payment required"), QuotaExhausted),
    ("cohere", 402, {"message": "Please add or update your payment method"}, QuotaExhausted),
    (
        "cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 1000 API calls / month"},
        QuotaExhausted,
    ),
    ("jina", 403, {"code": "AUTHZ_INSUFFICIENT_BALANCE", "message": "Account balance not enough"}, QuotaExhausted),
    ("google", 429, google("RESOURCE_EXHAUSTED", QUOTA_SENTENCE, PER_DAY), QuotaExhausted),
    ("tldw", 402, {"detail": "billing limit"}, QuotaExhausted),
    ("openai", 429, oai(QUOTA_SENTENCE), QuotaExhausted),
    (
        "openai",
        429,
        oai("No deployments available - crossed budget: Exceeded budget for provider openai: 10.2 >= 10", "429"),
        QuotaExhausted,
    ),
    ("openai", 400, oai("Budget has been exceeded! Current cost: 26.1, Max budget: 25", "400"), QuotaExhausted),
    ("openai", 400, oai("ExceededTokenBudget? no", "400", "budget_exceeded"), QuotaExhausted),
    ("openai", 422, oai("Budget: 0.1 for 40 tokens", "422", "budget_exceeded"), QuotaExhausted),
    ("openai", 429, oai("LiteLLM User: e-1, exceeded budget for model=x", "429", "budget_exceeded"), QuotaExhausted),
    ("openai", 400, oai("ExceededBudget: End User=i over budget. Spend=0.1, Budget=0.01", "400"), QuotaExhausted),
    ("openai", 412, oai("API key's usage limit has been exceeded"), QuotaExhausted),
    ("google", 429, google("RESOURCE_EXHAUSTED", "project exceeded its monthly spending cap"), QuotaExhausted),
    ("tldw", 429, {"detail": "Token budget exceeded for this minute"}, Throttled),
    # key
    ("openai", 401, oai("Incorrect API key provided", "invalid_api_key"), KeyRejected),
    ("openai", 403, oai("Country not supported", "unsupported_country"), KeyRejected),
    ("tei", 401, b"", KeyRejected),
    ("jina", 401, {"code": "AUTH_INVALID_API_KEY", "message": "Invalid API key"}, KeyRejected),
    (
        "google",
        400,
        google("INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", {"reason": "API_KEY_INVALID"}),
        KeyRejected,
    ),
    ("tldw", 502, {"detail": "Upstream provider authentication failed"}, KeyRejected),
    ("tldw", 503, {"detail": "Provider credentials missing"}, KeyRejected),
    ("tldw", 503, {"detail": {"error_code": "credential_store_unavailable", "message": "try later"}}, ServerFailed),
    ("tldw", 503, {"error": "credential_store_unavailable"}, ServerFailed),
    ("tldw", 503, {"detail": {"error_code": "missing_provider_credentials", "message": "none"}}, KeyRejected),
    ("tldw", 403, {"detail": {"error_code": "provider_disabled", "message": "Provider is disabled"}}, KeyRejected),
    # model
    (
        "openai",
        404,
        oai("The model `x` does not exist or you do not have access to it.", "model_not_found"),
        ModelNotFound,
    ),
    ("openai", 404, b"404 page not found", ModelNotFound),
    ("azure", 404, {"error": {"code": "404", "message": "Resource not found"}}, ModelNotFound),
    (
        "azure",
        404,
        {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}},
        ModelNotFound,
    ),
    ("mistral", 400, mistral("Invalid model: x", "1500", "invalid_model"), ModelNotFound),
    ("jina", 400, {"code": "INPUT_MODEL_NOT_FOUND", "message": "x"}, ModelNotFound),
    ("voyage", 400, {"detail": "Model x is not supported. Supported models are [...]"}, ModelNotFound),
    ("ollama", 404, {"error": 'model "x" not found, try pulling it first'}, ModelNotFound),
    ("bedrock", 400, {"message": "The provided model identifier is invalid."}, ModelNotFound),
    ("tldw", 403, {"detail": {"error_code": "model_not_allowed", "message": "no"}}, ModelNotFound),
    # redirects, and every other refusal of the request
    ("openai", 301, b"", RedirectRefused),
    ("openai", 308, b"", RedirectRefused),
    ("openai", 400, oai("Unsupported encoding_format 'base64'."), RequestRefused),
    ("openai", 400, oai("model m: encoding_format base64 is not supported"), RequestRefused),
    ("openai", 400, oai("Unrecognized request argument supplied: normalize"), RequestRefused),
    (
        "jina",
        422,
        {"detail": [{"loc": ["body", "user"], "msg": "Extra inputs are not permitted", "type": "extra"}]},
        RequestRefused,
    ),
    ("cohere", 400, {"message": "valid input_type must be provided"}, RequestRefused),
    ("openai", 405, b"Method Not Allowed", RequestRefused),
]


@pytest.mark.parametrize(("protocol", "status", "body", "error"), ROWS)
def test_signal(protocol: str, status: int, body: Any, error: type[ProviderError]) -> None:
    """Each signal of each provider becomes the one error that decides what happens next."""
    found = refusal(protocol, status, body)

    assert type(found) is error
    assert found.status == status


def test_every_signal_has_a_row() -> None:
    """No line of the table is there without a row of this test that only it decides."""
    used = set()
    for protocol, status, body, _ in ROWS:
        packed = body if isinstance(body, bytes) else orjson.dumps(body)
        used.add(id(_errors._decisive(protocol, status, _errors._said(packed, {}, SENT))))

    assert [one for one in _errors.SIGNALS if id(one) not in used] == []


def test_every_protocol_named_exists() -> None:
    """The table names no protocol that is not there."""
    named = {name for one in _errors.SIGNALS for name in one.protocols | one.unless}

    assert named <= set(providers.PROTOCOLS)


def test_which_text_is_meant() -> None:
    """The place of a bad text is kept where the provider says it, counted from 0."""
    cohere = refusal("cohere", 400, {"message": "an element that is the empty string at index 2"})
    tldw = refusal("tldw", 400, {"error": "input_too_long", "message": "x", "details": [{"index": 1, "tokens": 9}]})
    openai = refusal("openai", 400, oai("Invalid 'input[3]': maximum input length is 8192 tokens."))

    assert cohere.details == ({"index": 2},)
    assert tldw.details == ({"index": 1, "tokens": 9},)
    assert openai.details == ({"index": 3},)


def test_provider_code() -> None:
    """The provider's own word for it is kept."""
    assert refusal("openai", 429, oai("x", "insufficient_quota")).provider_code == "insufficient_quota"
    assert refusal("mistral", 400, mistral("Too many", "3210")).provider_code == "3210"
    assert refusal("google", 429, google("RESOURCE_EXHAUSTED", "x")).provider_code == "RESOURCE_EXHAUSTED"


def test_html_is_read_as_text() -> None:
    """Of an HTML page the words are left."""
    found = refusal(
        "openai", 502, b"<html><head><style>p{}</style></head><body><h1>502 Bad\nGateway</h1></body></html>"
    )

    assert found.message == "HTTP 502: 502 Bad Gateway"


def test_nothing_said() -> None:
    """An empty refusal still has a message."""
    assert refusal("tei", 401, b"").message == "HTTP 401 without a word"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefghijklmnop",
        "sk-proj-abc_DEF-123456789",
        "hf_abcdefghijklmnop",
        "AIzaSyA-abcdefghijklmnop",
        "jina_0123456789abcdef",
        "eyJhbGciOi.eyJzdWIiOiJ.c2lnbmF0dXJl",
        "Bearer abcdefghijk",
        "api_key=abcdefgh1",
        "0123456789abcdef0123456789abcdef",
        "very-secret-key-1",
    ],
)
def test_keys_in_messages(secret: str) -> None:
    """Whatever looks like a key, and the request's own key whatever it looks like, is struck out."""
    found = refusal("openai", 401, oai(f"Incorrect API key provided: {secret}. See the docs."))

    assert secret not in found.message
    assert "***" in found.message
    assert "See the docs." in found.message


@given(st.binary(max_size=200), st.integers(300, 599), st.sampled_from(providers.PROTOCOLS))
def test_any_body(body: bytes, status: int, protocol: str) -> None:
    """No body whatever breaks the reading: there is always one error, in one short line."""
    found = _errors.refusal(protocol, status, {"retry-after": "x"}, body, SENT)

    assert isinstance(found, errors.ProviderError)
    assert len(found.message) <= 320
    assert found.message.isprintable()


@example(body={"detail": [{"loc": None}]})
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["error", "message", "detail", "details", "code", "type", "loc", "msg"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_envelope(body: Any) -> None:
    """No JSON in the place of an envelope breaks the reading."""
    found = refusal("openai", 400, orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS) if _small(body) else b"{}")

    assert isinstance(found, errors.ProviderError)


def _small(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True
