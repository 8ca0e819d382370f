"""Whatever a server answers, in every protocol: an answer within bounds, or an error of our tree, in no time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl import providers
from embedctl.errors import AnswerUnusable, EmbedctlError, ProviderError
from embedctl.providers import _entry, _foreign
from embedctl.providers._contract import HttpRequest, WireAnswer
from tests.contract.providers.test_contract import CASES, KEY, answered, request
from tests.support.wire.client import started

STRINGS = ("embedding_id", "response_model", "provider", "fallback_from", "dimension_policy", "odd_cost")
HEADERS = (
    "x-request-id", "apim-request-id", "x-amzn-requestid", "request-id", "x-trace-id", "x-embeddings-provider",
    "x-embeddings-fallback-from", "x-embeddings-dimensions-policy", "x-compute-tokens",
    "x-amzn-bedrock-input-token-count",
)  # fmt: skip
DEEP = b"[" * 200_000 + b"]" * 200_000
Recorded = tuple[HttpRequest, dict[str, str], bytes]


@functools.cache
def recorded() -> dict[str, Recorded]:
    """One good answer of each protocol, with floats, and what was asked for it."""
    with started() as wire:
        asked = {name: request(wire, name) for name in CASES}
        found = {}
        for name, one in asked.items():
            status, headers, body = answered(one)
            assert status == 200
            found[name] = (one, headers, body)
        return found


def read(
    name: str, status: int, headers: dict[str, str], body: bytes, asked: HttpRequest
) -> WireAnswer | ProviderError:
    """What a protocol makes of an answer; never an error that it did not think of."""
    started_at = time.process_time()
    found: WireAnswer | ProviderError
    try:
        found = _entry.read(providers.protocol(name.partition("-")[0]), status, headers, body, asked)
    except ProviderError as error:
        found = error
    assert not isinstance(found, ProviderError) or "cannot be read (" not in found.message, repr(found.__cause__)
    assert time.process_time() - started_at < 2
    return found


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value but single numbers of a vector, of which the first stands for all."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:1] if value and isinstance(value[0], float) else value):
            yield from paths(inner, (*path, index))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with something else at one place."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: put(inner, path[1:], new) if key == path[0] else inner for key, inner in value.items()}
    return [put(inner, path[1:], new) if index == path[0] else inner for index, inner in enumerate(value)]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def everywhere(name: str, raw: bytes, fits: Callable[[Any], bool] = lambda old: True) -> Iterator[bytes]:
    """The recorded answer with this JSON at each of its places in turn, and at those where answers may say more."""
    _, _, body = recorded()[name]
    value = orjson.loads(body)
    marker = "\u2603 here"
    for path in paths(value):
        if fits(at(value, path)):
            yield orjson.dumps(put(value, path, marker)).replace(orjson.dumps(marker), raw)
    if isinstance(value, dict):
        for more in ("id", "model", "usage", "error", "meta", "unknown", "call", "usageMetadata", "prompt_eval_count"):
            yield orjson.dumps({**value, more: marker}).replace(orjson.dumps(marker), raw)
        usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
        for more in ("cost", "total_tokens", "prompt_tokens_details"):
            changed = {**value, "usage": {**usage, more: marker}}
            yield orjson.dumps(changed).replace(orjson.dumps(marker), raw)


def well_kept(found: WireAnswer | ProviderError, texts: int | None = None) -> None:
    """An answer's strings and numbers are as the ledger, Parquet and the terminal want them."""
    if isinstance(found, ProviderError):
        kept = [found.message, found.provider_code or ""]
        assert found.tokens_native is None or 0 <= found.tokens_native <= _foreign.MOST_TOKENS
        assert found.retry_after_s is None or 0 <= found.retry_after_s <= 31 * 86400
        numbers = [number for detail in found.details for number in detail.values()]
        assert all(type(number) is int and 0 <= number <= _foreign.MOST_TOKENS for number in numbers)
        assert len(found.details) <= 100
    else:
        kept = [getattr(found, field) or "" for field in STRINGS]
        assert found.vectors.dtype == np.float32
        assert found.vectors.ndim == 2
        assert found.index is None or all(abs(place) < 2**31 for place in found.index)
        for number in (found.tokens, found.tokens_cached, *(found.tokens_each or ())):
            assert number is None or 0 <= number <= _foreign.MOST_TOKENS
        assert found.cost is None or 0 <= found.cost < 10**13
    for said in kept:
        assert len(said) <= 200 + len("HTTP 400: ")
        assert said.isprintable()
        assert KEY not in said


@pytest.mark.parametrize("name", CASES)
def test_depth(name: str) -> None:
    """200,000 nested lists in any place of an answer, also one that nobody looks at, are an answer or unusable."""
    asked, headers, _ = recorded()[name]

    for body in (DEEP, b'{"a":' * 200_000, *everywhere(name, DEEP)):
        well_kept(read(name, 200, headers, body, asked))


@pytest.mark.parametrize("name", CASES)
def test_strings(name: str) -> None:
    """No string of an answer, or of its headers, is long, holds what is not seen, or the key."""
    asked, headers, _ = recorded()[name]
    said = f"{KEY}\u202e\x1b[31m\x00 " + "x" * 100_000
    odd = dict.fromkeys(HEADERS, said.replace("\x00", "\x01"))

    for body in everywhere(name, orjson.dumps(said), lambda old: isinstance(old, str)):
        well_kept(read(name, 200, {**headers, **odd}, body, asked))
    found = read(name, 200, odd, recorded()[name][2], asked)
    well_kept(found)
    assert isinstance(found, WireAnswer)


@pytest.mark.parametrize("name", CASES)
def test_beginnings(name: str) -> None:
    """How the body of an unusable answer begins is said without the key, and without what is not seen."""
    asked, headers, _ = recorded()[name]

    for begins in (KEY, KEY[::-1], " ".join(KEY), f"\x1b{KEY}", f'{{"data":[{{"embedding":"{KEY}"}}],"x":'):
        found = read(name, 200, headers, f"{begins} and more".encode(), asked)
        well_kept(found)
        assert isinstance(found, AnswerUnusable)
        assert KEY[::-1] not in found.message
        assert " ".join(KEY) not in found.message


def test_token_vectors_of_two_widths() -> None:
    """Token vectors that are pooled to different widths are unusable, and the message names both."""
    module, text = providers.protocol("huggingface"), "[[[1, 2], [3, 4]], [[1, 2, 3]]]"
    asked = HttpRequest(url="", reading={"pool": "mean"})

    with pytest.raises(AnswerUnusable, match=r"\[1\] has 3 numbers, \[0\] has 2"):
        _entry.read(module, 200, {}, text.encode(), asked)


@pytest.mark.parametrize(
    "number",
    [b"1" + b"0" * 23, b"9" * 4000, b"9" * 5000, b"-1", b"-" + b"9" * 30, b"1e300", b"1e999", b"-0.0", b"1.5", b"true"],
)
@pytest.mark.parametrize("name", CASES)
def test_numbers(name: str, number: bytes) -> None:
    """A number of any size or kind in any place is believed within bounds, or not."""
    asked, headers, _ = recorded()[name]
    odd = dict.fromkeys(HEADERS, number.decode())

    for body in everywhere(name, number):
        well_kept(read(name, 200, {**headers, **odd}, body, asked))


@pytest.mark.parametrize("name", CASES)
def test_memory_by_promise(name: str) -> None:
    """One long vector and a million places for others ask for no memory that the answer itself does not fill."""
    asked, headers, body = recorded()[name]
    value = orjson.loads(body)
    long = b"[" + b"0," * 200_000 + b"0]"

    def widened(one: Any) -> bytes:
        """The answer, its list of vectors with a long one first and a hundred thousand empty ones behind."""
        if isinstance(one, list) and one and (isinstance(one[0], dict) or _is_vector(one[0])):
            first = long if _is_vector(one[0]) else _object(one[0])
            rest = b"[]" if _is_vector(one[0]) else b"{}"
            return b"[" + first + (b"," + rest) * 100_000 + b"]"
        if isinstance(one, dict):
            return b"{" + b",".join(orjson.dumps(key) + b":" + widened(inner) for key, inner in one.items()) + b"}"
        return orjson.dumps(one)

    def _object(one: dict[str, Any]) -> bytes:
        pairs = (orjson.dumps(key) + b":" + (long if _is_vector(v) else orjson.dumps(v)) for key, v in one.items())
        return b"{" + b",".join(pairs) + b"}"

    found = read(name, 200, headers, widened(value), asked)

    well_kept(found)
    assert name in ("bedrock", "json") or isinstance(found, AnswerUnusable)  # one vector; one that is found


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], float)


@pytest.mark.parametrize("name", CASES)
def test_blanks(name: str) -> None:
    """Megabytes of blanks between a name and its value cost no more than a look."""
    asked, headers, body = recorded()[name]
    mark = b'"embedding":' if b'"embedding":' in body else b","

    well_kept(read(name, 200, headers, body.replace(mark, mark + b" " * 40_000_000, 1), asked))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "message",
                    "detail",
                    "details",
                    "code",
                    "type",
                    "loc",
                    "msg",
                    "data",
                    "embedding",
                    "index",
                    "embeddings",
                    "float",
                    "values",
                    "usage",
                    "cost",
                    "total_tokens",
                    "model",
                    "id",
                    "result",
                    "items",
                ]
            ),
            inner,
        )
    ),
    max_leaves=15,
)
QUIETLY = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", CASES)
@QUIETLY
@given(body=JSON, status=st.sampled_from([200, 200, 200, 201, 204, 307, 400, 401, 404, 413, 422, 429, 500, 503, 999]))
def test_any_json(name: str, body: Any, status: int) -> None:
    """Whatever JSON comes with whatever status is an answer or an error of our tree."""
    asked, headers, _ = recorded()[name]
    packed = orjson.dumps(body) if _fits(body) else repr(body).encode()

    well_kept(read(name, status, headers, packed, asked))


@pytest.mark.parametrize("name", CASES)
@QUIETLY
@given(
    data=st.data(),
    raw=st.sampled_from([b"null", b"[]", b"{}", b'""', b"[[]]", b"[{}]", b"0", b'"\xff"', b'"\\q"', b"NaN"]),
)
def test_any_place(name: str, data: st.DataObject, raw: bytes) -> None:
    """A good answer with something else in one place, cut or with a byte changed, is one or the other too."""
    asked, headers, body = recorded()[name]
    value = orjson.loads(body)
    path = data.draw(st.sampled_from(list(paths(value))))
    changed = bytearray(orjson.dumps(put(value, path, "\u2603")).replace('"\u2603"'.encode(), raw))
    flip = data.draw(st.none() | st.tuples(st.integers(0, len(changed) - 1), st.sampled_from(b'"\\:,{}[]0-.e\xff ')))
    if flip:
        changed[flip[0]] = flip[1]
    cut = data.draw(st.none() | st.integers(0, len(changed)))

    well_kept(read(name, 200, headers, bytes(changed[:cut]), asked))


@pytest.mark.parametrize("name", CASES)
@QUIETLY
@given(value=st.text(max_size=60), status=st.sampled_from([200, 401, 429, 503]))
def test_any_header(name: str, value: str, status: int) -> None:
    """Whatever the headers hold, an answer is read, and a wait is bounded."""
    asked, _, body = recorded()[name]
    names = (*HEADERS, "retry-after", "retry-after-ms", "date", "x-ratelimit-reset", "x-amzn-errortype", "content-type")

    well_kept(read(name, status, dict.fromkeys(names, value), body, asked))


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("status", [400, 401, 422, 429, 500])
def test_refusals_of_any_depth_and_length(name: str, status: int) -> None:
    """A refusal nested in any depth, or with words of any length in any place, is an error in one short line."""
    asked, headers, _ = recorded()[name]
    long = orjson.dumps(f"{KEY} at index {'9' * 5000} " + "x" * 60_000)
    envelopes = (
        b"%s", b'{"error":%s}', b'{"error":{"message":%s}}', b'{"error":{"message":"m","code":%s,"details":[%s]}}',
        b'{"error":{"details":{"a":%s},"type":%s,"param":%s}}', b'{"detail":[%s]}', b'{"code":%s,"error_type":%s}',
        b'{"detail":[{"loc":[%s],"msg":%s,"type":%s}]}', b'{"message":"m","details":[{"index":%s,"tokens":%s}]}',
    )  # fmt: skip

    for envelope in envelopes:
        for inner in (long, DEEP[99_000:-99_000], b"[" * 900 + b"]" * 900, b"[" * 300 + b"]" * 300, b"9" * 4000):
            found = read(name, status, headers, envelope.replace(b"%s", inner), asked)
            assert isinstance(found, ProviderError)
            well_kept(found)


def test_a_protocol_that_thinks_of_nothing() -> None:
    """An error that a protocol's file did not think of is an answer that cannot be used, with the error's name."""

    class Careless:
        @staticmethod
        def answer(*_: object) -> WireAnswer:
            raise LookupError("nobody thought of it")

    with pytest.raises(AnswerUnusable, match=r"cannot be read \(LookupError\)"):
        _entry.read(Careless, 200, {}, b"{}", HttpRequest(url=""))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "info",
    [DEEP, b'{"model_id":' + DEEP + b"}", b'{"max_client_batch_size":' + b"9" * 30 + b',"max_input_length":-1}',
     b'{"max_batch_tokens":1e300,"max_client_batch_size":"x"}', b'{"model_id":"\xff"}', b"[]", b""],
)  # fmt: skip
def test_limits_that_a_server_says(info: bytes) -> None:
    """What TEI's /info says of its limits is believed within bounds; what cannot be read changes nothing."""
    module: Any = providers.protocol("tei")

    assert module.limits(info) == module.LIMITS
    assert module.max_tokens(info) is None
    assert module.served_model(info, HttpRequest(url="")) is None


def test_the_model_that_a_server_names() -> None:
    """The model that TEI's /info names is cut and cleaned, as all names are."""
    module: Any = providers.protocol("tei")
    asked = HttpRequest(url="", headers={"authorization": f"Bearer {KEY}"})
    info = orjson.dumps({"model_id": f"org/{KEY}\u202e" + "x" * 999})

    found = module.served_model(info, asked)

    assert found.startswith("org/*** xxx")
    assert len(found) == 200


@pytest.mark.parametrize(
    ("expression", "body"),
    [("sum(a[].b)", {"a": [{"b": "x"}]}), ("length(a)", {"a": None}), ("to_string(a)", {}), ("a[::0]", {"a": [1]}),
     ("sort_by(a, &b)", {"a": [{"b": 1}, {"b": "x"}]}), ("join(',', a)", {"a": [1]})],
)  # fmt: skip
@pytest.mark.parametrize("option", ["vectors", "index", "tokens", "ids", "error"])
def test_expressions_that_do_not_fit(option: str, expression: str, body: Any) -> None:
    """An expression of the json protocol whose function is not made for what the server sent says so, by its name."""
    module = providers.protocol("json")
    options = {"body": {"t": "{texts}"}, "vectors": "v", option: expression}
    here = providers._contract.Provider(name="mine", protocol="json", base_url="http://127.0.0.1", options=options)
    asked = module.request(here, "m", ["a"], providers._contract.RequestOptions())

    deep = orjson.loads(b"[" * 1000 + b"]" * 1000)
    for value in (body, {"a": deep}, {"v": deep, "a": deep}):
        with pytest.raises(EmbedctlError) as caught:
            _entry.read(module, 200, {}, orjson.dumps(body) if value is body else _deep(value), asked)
        assert "cannot be read (" not in caught.value.message


def _deep(value: dict[str, Any]) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % (key.encode(), b"[" * 1000 + b"]" * 1000) for key in value) + b"}"
