"""Every promise of `_contract.py` over every protocol, against the wire server."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pytest

from embedctl import providers
from embedctl.errors import (
    AnswerUnusable,
    ConfigurationInvalid,
    KeyRejected,
    ProviderError,
    RedirectRefused,
    RequestTooLarge,
    ServerFailed,
    TextRefused,
    TextTooLong,
    Throttled,
)
from embedctl.providers import _entry
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret, WireAnswer
from embedctl.records import InputType, Limits
from tests.support.wire.client import Wire, expected, hash_of, started

KEY = "test-key-0123456789"
INPUT_TYPES: tuple[InputType, ...] = ("document", "query", "classification", "clustering")


@dataclass(frozen=True)
class Case:
    """One protocol as the tests ask it."""

    model: str
    texts: list[str] = field(default_factory=lambda: ["alpha", "beta gamma", 'délta\n"ε" 中文 🙂'])
    options: Mapping[str, Any] = field(default_factory=dict)
    dimensions: int | None = 256
    listed: bool = False  # answers carry an index


JSON_OPTIONS = {
    "path": "/make",
    "body": {"documents": "{texts}", "model_name": "{model}", "width": "{dimensions}"},
    "each": {"body": "{text}"},
    "vectors": "result.items[].vec",
    "index": "result.items[].n",
    "ids": "result.call",
    "tokens": "spent.tokens",
}
CASES = {
    "openai": Case("text-embedding-3-small", listed=True),
    "azure": Case("text-embedding-3-small", listed=True),
    "cohere": Case("embed-v4.0"),
    "voyage": Case("voyage-4", listed=True),
    "google": Case("gemini-embedding-001"),
    "mistral": Case("codestral-embed", listed=True),
    "jina": Case("jina-embeddings-v3", listed=True),
    "huggingface": Case("sentence-transformers/all-MiniLM-L6-v2", dimensions=None),
    "tei": Case("tei", dimensions=8),
    "ollama": Case("all-minilm"),
    "nomic": Case("nomic-embed-text-v1.5"),
    "bedrock": Case("amazon.titan-embed-text-v2:0", ["alpha beta"]),
    "bedrock-cohere": Case("cohere.embed-english-v3", dimensions=None),
    "tldw": Case("text-embedding-3-small", listed=True),
    "json": Case("any", options=JSON_OPTIONS, dimensions=8, listed=True),
}
LISTED = [name for name, case in CASES.items() if case.listed]


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.reset()
    return server


def place(wire: Wire, name: str, key: str | None = KEY) -> Provider:
    protocol = name.partition("-")[0]
    return Provider(
        name=name,
        protocol=protocol,
        base_url=wire.base_url(protocol),
        api_key=Secret(key) if key else None,
        options=CASES[name].options,
    )


def request(wire: Wire, name: str, texts: Sequence[Any] | None = None, **options: Any) -> HttpRequest:
    case = CASES[name]
    module = providers.protocol(name.partition("-")[0])
    return module.request(place(wire, name), case.model, texts or case.texts, RequestOptions(**options))


def exchange(name: str, asked: HttpRequest) -> WireAnswer:
    """One real exchange over a socket, read by the protocol."""
    return _entry.read(providers.protocol(name.partition("-")[0]), *answered(asked), asked)


def answered(asked: HttpRequest) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the server's answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    sent = urllib.request.Request(asked.url, data=asked.body, headers=dict(asked.headers), method=asked.method)
    try:
        with opener.open(sent, timeout=30) as answer:
            status, headers, body = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            status, headers, body = refused.code, refused.headers, refused.read()
    return status, {header.lower(): value for header, value in headers.items()}, body


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def in_order(found: WireAnswer) -> np.ndarray:
    return found.vectors if found.index is None else found.vectors[np.argsort(found.index)]


def test_every_protocol_is_asked() -> None:
    """No protocol that is sent anywhere stays outside of this suite."""
    sent = {name for name in providers.PROTOCOLS if not providers.is_local(name)}

    assert {name.partition("-")[0] for name in CASES} == sent


@pytest.mark.parametrize("base64", [False, True], ids=["float", "base64"])
@pytest.mark.parametrize("name", CASES)
def test_vectors(wire: Wire, name: str, base64: bool) -> None:
    """vectors[i] belongs to texts[i], bit for bit, and tokens are what the server bills."""
    case = CASES[name]

    found = exchange(name, request(wire, name, base64=base64))

    wanted = expected(case.texts, case.model)
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(in_order(found), wanted)
    (truth,) = wire.truth()
    assert found.tokens == truth["tokens_billed"]
    assert truth["text_hashes"] == [hash_of(text) for text in case.texts]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dimensions])
def test_dimensions(wire: Wire, name: str) -> None:
    """A width that was asked for is sent, and comes back with length 1."""
    case = CASES[name]

    found = exchange(name, request(wire, name, dimensions=case.dimensions))

    np.testing.assert_allclose(in_order(found), expected(case.texts, case.model, case.dimensions), rtol=0, atol=1e-6)
    assert wire.truth()[-1]["dimensions"] == case.dimensions


@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("name", CASES)
def test_strict_servers(wire: Wire, name: str, input_type: InputType) -> None:
    """With every option set, the body holds no field that a strict server refuses, and no null."""
    case = CASES[name]

    found = exchange(name, request(wire, name, base64=True, dimensions=case.dimensions, input_type=input_type))

    assert len(found.vectors) == len(case.texts)


@pytest.mark.parametrize(
    ("name", "wire_types"),
    [
        ("cohere", ["search_document", "search_query", "classification", "clustering"]),
        ("voyage", ["document", "query", None, None]),
        ("google", ["RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY", "CLASSIFICATION", "CLUSTERING"]),
        ("jina", ["retrieval.passage", "retrieval.query", "classification", "separation"]),
        ("nomic", ["search_document", "search_query", "classification", "clustering"]),
        ("bedrock-cohere", ["search_document", "search_query", "classification", "clustering"]),
        ("openai", [None] * 4),
        ("mistral", [None] * 4),
        ("ollama", [None] * 4),
    ],
)
def test_input_types(wire: Wire, name: str, wire_types: list[str | None]) -> None:
    """Each input type is sent in the provider's own words, or not at all where it knows none."""
    for input_type in INPUT_TYPES:
        exchange(name, request(wire, name, input_type=input_type))

    assert [one["input_type"] for one in wire.truth()] == wire_types


def test_gemini_2_takes_no_task_type(wire: Wire) -> None:
    """gemini-embedding-2 is told the input type in the text alone."""
    module = providers.protocol("google")

    asked = module.request(place(wire, "google"), "gemini-embedding-2", ["a"], RequestOptions(input_type="query"))

    assert b"taskType" not in asked.body


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cohere", {"truncate": "NONE"}),
        ("voyage", {"truncation": False}),
        ("huggingface", {"truncate": False}),
        ("tei", {"truncate": False}),
        ("ollama", {"truncate": False}),
        ("bedrock-cohere", {"truncate": "NONE"}),
    ],
)
def test_nothing_is_cut(wire: Wire, name: str, told: dict[str, Any]) -> None:
    """A provider that truncates unless told not to is told not to."""
    body = orjson.loads(request(wire, name).body)

    assert told.items() <= body.items()


JINA = {
    "jina-embeddings-v2-base-en": [None] * 4,
    "jina-embeddings-v3": ["retrieval.passage", "retrieval.query", "classification", "separation"],
    "jina-embeddings-v4": ["retrieval.passage", "retrieval.query", "text-matching", "text-matching"],
    "jina-embeddings-v5-text-small": ["retrieval.passage", "retrieval.query", "classification", "clustering"],
    "jina-code-embeddings-1.5b": ["nl2code.passage", "nl2code.query", None, None],
    "jina-clip-v2": [None, "retrieval.query", None, None],
}


@pytest.mark.parametrize("model", JINA)
def test_each_jina_model_has_its_own_tasks(wire: Wire, model: str) -> None:
    """`task`, `normalized` and `dimensions` are what the model's own schema has; nothing is cut.

    Source: Jina's OpenAPI 2026.04.02.
    """
    module, here = providers.protocol("jina"), place(wire, "jina")

    bodies = [
        orjson.loads(module.request(here, model, ["a"], RequestOptions(input_type=one, dimensions=64)).body)
        for one in INPUT_TYPES
    ]

    assert [body.get("task") for body in bodies] == JINA[model]
    for body in bodies:
        assert body["truncate"] is False
        assert ("normalized" in body) == (model not in ("jina-embeddings-v4", "jina-code-embeddings-1.5b"))
        assert body.get("dimensions") == (None if "v2-base" in model else 64)


@pytest.mark.parametrize("name", ["openai", "azure", "tei", "tldw"])
def test_token_arrays(wire: Wire, name: str) -> None:
    """Where a protocol takes token arrays they arrive as they are, and are billed by their length."""
    assert providers.protocol(name).TAKES_TOKENS

    found = exchange(name, request(wire, name, [[1, 2, 3], [4, 5]]))

    assert wire.truth()[-1]["text_hashes"] == [hash_of("tokens:1,2,3"), hash_of("tokens:4,5")]
    assert found.tokens == 5


@pytest.mark.parametrize("name", LISTED)
def test_index_shuffled(wire: Wire, name: str) -> None:
    """Where answers carry an index it is reported as it stands, so that rows can be put in order."""
    case = CASES[name]
    wire.plan(script=["shuffled"])

    found = exchange(name, request(wire, name))

    assert found.index is not None
    assert list(found.index) == [2, 1, 0]
    np.testing.assert_array_equal(in_order(found), expected(case.texts, case.model))


@pytest.mark.parametrize("fault", ["duplicate", "count", "extra"])
@pytest.mark.parametrize("name", LISTED)
def test_rows_are_reported_as_they_are(wire: Wire, name: str, fault: str) -> None:
    """Repeated places and missing or surplus rows are handed on, for the call point to refuse."""
    wire.plan(script=[fault])

    found = exchange(name, request(wire, name))

    wanted = {"duplicate": [0, 1, 0], "count": [0, 1], "extra": [0, 1, 2, 3]}
    assert list(found.index or ()) == wanted[fault]
    assert len(found.vectors) == len(wanted[fault])


@pytest.mark.parametrize("fault", ["count", "extra"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in LISTED and name != "bedrock"])
def test_count_is_reported_as_it_is(wire: Wire, name: str, fault: str) -> None:
    """Without an index too, a wrong count is handed on as it came."""
    wire.plan(script=[fault])

    found = exchange(name, request(wire, name))

    assert len(found.vectors) == {"count": 2, "extra": 4}[fault]


@pytest.mark.parametrize("fault", ["truncated", "html", "nan", "null", "string_numbers", "empty", "error_200"])
@pytest.mark.parametrize("name", CASES)
def test_unusable(wire: Wire, name: str, fault: str) -> None:
    """A 200 that is cut, no JSON, empty or not made of numbers is unusable, and says so in one line."""
    wire.plan(script=[fault])

    with pytest.raises(AnswerUnusable) as caught:
        exchange(name, request(wire, name))

    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", [name for name in CASES if name != "bedrock"])
def test_ragged(wire: Wire, name: str) -> None:
    """Vectors of different widths are unusable, and the message names both."""
    wire.plan(script=["ragged"])

    with pytest.raises(AnswerUnusable, match=r"has \d+ numbers, .* has \d+"):
        exchange(name, request(wire, name))


@pytest.mark.parametrize("name", CASES)
def test_unusable_answers_are_billed(wire: Wire, name: str) -> None:
    """What the provider counted for an answer that cannot be used is kept with the error."""
    wire.plan(script=["null"])

    with pytest.raises(AnswerUnusable) as caught:
        exchange(name, request(wire, name))

    assert caught.value.billable == "yes"
    assert caught.value.tokens_native == wire.truth()[-1]["tokens_billed"]


@pytest.mark.parametrize("name", CASES)
def test_usage_that_is_none(wire: Wire, name: str) -> None:
    """Missing usage is None and never 0; a usage that is no number is None too."""
    wire.plan(script=["usage_missing"])

    found = exchange(name, request(wire, name))

    assert found.tokens is None


@pytest.mark.parametrize("name", ["openai", "cohere", "voyage", "google", "ollama", "bedrock", "json"])
def test_usage_that_is_a_string(wire: Wire, name: str) -> None:
    """A usage that is no number in a body is not believed."""
    wire.plan(script=["usage_string"])

    found = exchange(name, request(wire, name))

    assert found.tokens is None


@pytest.mark.parametrize("name", CASES)
def test_usage_of_zero(wire: Wire, name: str) -> None:
    """A usage of 0 is reported as 0: whether that can be is not the protocol's question."""
    wire.plan(script=["usage_zero"])

    found = exchange(name, request(wire, name))

    assert found.tokens == 0


@pytest.mark.parametrize("name", ["openai", "azure", "voyage", "mistral", "jina", "tldw"])
@pytest.mark.parametrize(("asked", "fault"), [(True, "floats"), (False, "base64_length")])
def test_either_encoding_is_read(wire: Wire, name: str, asked: bool, fault: str) -> None:
    """Floats are read where base64 was asked; base64 that is no float32 is seen where floats were asked."""
    wire.plan(script=[fault])
    sent = request(wire, name, base64=asked)

    if fault == "floats":
        np.testing.assert_array_equal(exchange(name, sent).vectors, expected(CASES[name].texts, CASES[name].model))
    else:
        with pytest.raises(AnswerUnusable, match="which are no float32"):
            exchange(name, sent)


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        ({"script": [{"fault": "rate", "seconds": 3}]}, Throttled),
        ({"script": [{"fault": "status", "status": 503}]}, ServerFailed),
        ({"script": ["redirect"]}, RedirectRefused),
        ({"keys": ["another-key"]}, KeyRejected),
        ({"max_items": 0}, RequestTooLarge),
        ({"max_bytes": 1}, RequestTooLarge),
        ({"max_tokens": 1}, TextTooLong),
    ],
    ids=["rate", "503", "redirect", "key", "items", "bytes", "too long"],
)
@pytest.mark.parametrize("name", CASES)
def test_refusals(wire: Wire, name: str, plan: dict[str, Any], error: type[ProviderError]) -> None:
    """Each way of refusing, in each provider's own words, is the error that says what to do."""
    if name == "ollama" and error is Throttled:
        error = ServerFailed  # it has no rates: a full queue is a 503
    wire.plan(**plan)

    with pytest.raises(ProviderError) as caught:
        exchange(name, request(wire, name))

    assert type(caught.value) is error
    if error in (Throttled, ServerFailed) and "seconds" in plan["script"][0]:
        assert caught.value.retry_after_s == 3


@pytest.mark.parametrize("name", CASES)
def test_poisoned_text(wire: Wire, name: str) -> None:
    """One text that a provider cannot embed is told from a request that it cannot serve."""
    wire.plan(poison=[CASES[name].texts[0]])

    with pytest.raises(TextRefused):
        exchange(name, request(wire, name))


@pytest.mark.parametrize("name", CASES)
def test_key_is_sent_and_stays_secret(wire: Wire, name: str) -> None:
    """A configured key is sent to a local server too, in a header, and stands nowhere else."""
    asked = request(wire, name)

    exchange(name, asked)

    assert wire.truth()[-1]["key"] == KEY[-4:]
    assert KEY not in asked.url
    assert KEY not in repr(asked)
    assert KEY.encode() not in asked.body
    assert KEY not in repr(place(wire, name))
    assert any(KEY in value for value in asked.headers.values())


@pytest.mark.parametrize("name", CASES)
def test_key_is_struck_from_messages(wire: Wire, name: str) -> None:
    """A key that a provider repeats in its refusal is in no message."""
    module, asked = providers.protocol(name.partition("-")[0]), request(wire, name)
    said = orjson.dumps({"error": {"message": f"Incorrect API key provided: {KEY}. Look at it."}})

    with pytest.raises(KeyRejected) as caught:
        module.answer(401, {}, said, asked)

    assert "Incorrect API key provided: ***. Look at it." in caught.value.message
    assert KEY not in repr(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_no_key(wire: Wire, name: str) -> None:
    """Without a key a server of one's own is asked without one."""
    module = providers.protocol(name.partition("-")[0])

    asked = module.request(place(wire, name, key=None), CASES[name].model, CASES[name].texts, RequestOptions())

    assert not {"authorization", "api-key", "x-api-key", "x-goog-api-key"} & set(asked.headers)


@pytest.mark.parametrize("name", ["openai", "cohere", "voyage", "google", "mistral", "jina", "huggingface", "nomic"])
def test_vendor_without_key(name: str) -> None:
    """A vendor's own address without a key is refused before anything is sent, with the variable's name."""
    module = providers.protocol(name)

    with pytest.raises(ConfigurationInvalid) as caught:
        module.request(Provider(name=name, protocol=name), "m", ["a"], RequestOptions())

    assert module.KEY_VARIABLES[0] in (caught.value.hint or "")


@pytest.mark.parametrize(
    "url",
    ["https://user:pw@example.org", "https://pw@example.org", "https://example.org/?api_key=abcdef", "ftp://x", "://"],
)
@pytest.mark.parametrize("name", CASES)
def test_base_urls_that_are_refused(name: str, url: str) -> None:
    """A base_url that holds a key, or is no http URL, is refused without being repeated."""
    module, case = providers.protocol(name.partition("-")[0]), CASES[name]
    somewhere = Provider(name=name, protocol=name, base_url=url, api_key=Secret(KEY), options=case.options)

    with pytest.raises(ConfigurationInvalid) as caught:
        module.request(somewhere, case.model, case.texts, RequestOptions())

    assert "pw" not in caught.value.message
    assert "abcdef" not in caught.value.message


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel-0123", "a b c d e f"])
def test_keys_that_no_header_holds(key: str) -> None:
    """A key with a line break, a blank or a foreign letter is refused, and not shown."""
    somewhere = Provider(name="openai", protocol="openai", api_key=Secret(key))

    with pytest.raises(ConfigurationInvalid) as caught:
        providers.protocol("openai").request(somewhere, "m", ["a"], RequestOptions())

    assert key not in f"{caught.value.message} {caught.value.hint}"


def test_key_with_a_line_end() -> None:
    """A line end around a key, as files have it, is taken off."""
    somewhere = Provider(name="openai", protocol="openai", api_key=Secret(f"{KEY}\n"))

    asked = providers.protocol("openai").request(somewhere, "m", ["a"], RequestOptions())

    assert asked.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("name", CASES)
def test_own_headers_win(wire: Wire, name: str) -> None:
    """Headers from the user's config come last."""
    case, here = CASES[name], place(wire, name)
    with_header = Provider(
        name=name,
        protocol=here.protocol,
        base_url=here.base_url,
        api_key=here.api_key,
        options=here.options,
        headers={"Accept": "application/x", "X-Team": "kb"},
    )

    asked = providers.protocol(here.protocol).request(with_header, case.model, case.texts, RequestOptions())

    assert asked.headers["accept"] == "application/x"
    assert asked.headers["x-team"] == "kb"


@pytest.mark.parametrize("name", CASES)
def test_surrogates(wire: Wire, name: str) -> None:
    """A text that is no Unicode is refused as that text's fault."""
    with pytest.raises(TextRefused):
        request(wire, name, ["\ud800"])


def test_tei_says_its_limits(wire: Wire) -> None:
    """TEI's own /info says items and tokens of a request, and tokens of a text."""
    module: Any = providers.protocol("tei")
    asked = module.probe(place(wire, "tei"))
    with urllib.request.urlopen(asked.url, timeout=30) as answer:
        body = answer.read()

    assert (asked.method, asked.body) == ("GET", b"")
    assert module.limits(body) == Limits(items=32, tokens=16384, bytes=2_000_000)
    assert module.max_tokens(body) == 256
    assert module.limits(b"<html>") == module.LIMITS


@pytest.mark.parametrize("name", providers.PROTOCOLS)
def test_module_is_whole(name: str) -> None:
    """Every file of the folder has the names of the contract, and a limit on items."""
    module = providers.protocol(name)

    assert module.LIMITS.items
    assert isinstance(module.KEY_VARIABLES, tuple)
    assert isinstance(module.BASE_URL_VARIABLES, tuple)
    assert module.BASE_URL is None or not module.BASE_URL.endswith("/")
    assert isinstance(module.TAKES_TOKENS, bool)
    assert providers.is_local(name) == (name in ("onnx", "static"))


def test_unknown_protocol() -> None:
    """A protocol that is none is refused with the nearest name."""
    with pytest.raises(ConfigurationInvalid) as caught:
        providers.protocol("opnai")

    assert caught.value.hint == "did you mean 'openai'?"
