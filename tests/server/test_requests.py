"""What a request may say, and what is answered to what it may not: section by section of the contract."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.serving import MODEL, Reply, Serving, serving
from tests.support.wire.client import Wire, expected, started

TEXTS = ["one small text", "another text, a little longer", "ein dritter Text mit Umlauten: äöü"]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with started() as server:
        yield server


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("gateway"), wire) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(wire: Wire) -> None:
    wire.reset()


def vectors(reply: Reply) -> np.ndarray:
    """As a client reads them: decimals as float32, base64 as little-endian float32."""
    assert reply.status == 200, reply.body
    rows = [one["embedding"] for one in reply.json["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, dtype=np.float64).astype(np.float32)


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["/v1", "/api/v1"])
def test_an_answer_is_openai_s(server: Serving, door: str) -> None:
    """The answer has OpenAI's shape, vectors in the order of the inputs, and tokens of all of them."""
    reply = server.embed(TEXTS, door=door)

    assert reply.json.keys() == {"object", "data", "model", "usage"}
    assert [one["index"] for one in reply.json["data"]] == [0, 1, 2]
    assert {one["object"] for one in reply.json["data"]} == {"embedding"}
    assert reply.json["model"] == MODEL
    assert reply.json["usage"]["prompt_tokens"] == reply.json["usage"]["total_tokens"] > 0
    assert np.array_equal(vectors(reply), expected(TEXTS, MODEL))


def test_decimals_and_base64_are_the_same_bits(server: Serving) -> None:
    """Both formats read back to the provider's own float32, bit by bit, bought or from the cache."""
    first = [vectors(server.embed(TEXTS, encoding_format=form)) for form in ("float", "base64", None)]
    fresh_texts = [f"{text}, once more" for text in TEXTS]
    second = [vectors(server.embed(fresh_texts, encoding_format=form)) for form in ("base64", "float")]

    for found in first:
        assert found.tobytes() == expected(TEXTS, MODEL).tobytes()
    for found in second:
        assert found.tobytes() == expected(fresh_texts, MODEL).tobytes()


def test_a_string_is_one_input(server: Serving) -> None:
    """A single string gets a list of one vector."""
    assert len(server.embed("alone").json["data"]) == 1


def test_token_arrays_pass_as_they_are(server: Serving, wire: Wire) -> None:
    """Arrays of tokens go to a provider that takes them as they came, and are counted as they came."""
    single, several = server.embed([1, 2, 3]), server.embed([[4, 5], [6, 7, 8, 9]])

    assert len(single.json["data"]) == 1
    assert len(several.json["data"]) == 2
    assert single.json["usage"]["prompt_tokens"] == 3
    assert several.json["usage"]["prompt_tokens"] == 6
    assert len(wire.truth()) == 2


def test_token_arrays_are_decoded_for_a_model_that_takes_texts(server: Serving) -> None:
    """For a model that takes texts alone they are decoded with its own tokenizer: the same vector as for the text."""
    from embedctl import tokens

    text = "a harbour at night"
    ids = tokens.counter(tokens.BUNDLED).tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
    by_text = vectors(server.embed(text, model="onnx:all-MiniLM-L6-v2"))
    by_tokens = vectors(server.embed([ids], model="onnx:all-MiniLM-L6-v2"))

    assert np.allclose(by_text, by_tokens, atol=1e-5)


def test_another_provider_s_model_is_named_with_it(server: Serving) -> None:
    """`model` of the answer says who served: bare for openai, else with the provider before it."""
    reply = server.embed("x y z", model="all-MiniLM-L6-v2")

    assert reply.json["model"] == "onnx:all-MiniLM-L6-v2"
    assert reply.headers["x-embeddings-provider"] == "onnx"
    assert reply.headers["x-embedctl-cost-usd"] == "0"


def test_headers_say_what_it_came_to(server: Serving) -> None:
    """Cost, tokens, their source and the cache's part stand in headers; a repeated call costs nothing and says so."""
    bought, again = server.embed("headers of a call"), server.embed("headers of a call")
    partly = server.embed(["headers of a call", "headers of another"])

    assert bought.headers["x-embedctl-cache"] == "miss"
    assert bought.headers["x-embedctl-usage-source"] == "native"
    assert float(bought.headers["x-embedctl-cost-usd"]) > 0
    assert bought.headers["x-embedctl-tokens-billed"] == str(bought.json["usage"]["total_tokens"])
    assert again.headers["x-embedctl-cache"] == "hit"
    assert again.headers["x-embedctl-cost-usd"] == "0"
    assert again.headers["x-embedctl-tokens-billed"] == "0"
    assert again.headers["x-embedctl-usage-source"] == "cache"
    assert again.json["usage"] == bought.json["usage"]
    assert partly.headers["x-embedctl-cache"] == "partial; hits=1/2"
    assert bought.headers["x-embedctl-operation-id"] != again.headers["x-embedctl-operation-id"]


def test_every_answer_has_an_id(server: Serving) -> None:
    """A client's request id is taken over when it is plain, else replaced; errors have one too."""
    taken = server.embed("id", headers={"X_Request_Id": "my-id.1"})
    replaced = server.embed("", headers={"X_Request_Id": "a b\\n"})

    assert taken.headers["x-request-id"] == "my-id.1"
    assert len(replaced.headers["x-request-id"]) == 24
    assert replaced.headers["x-content-type-options"] == "nosniff"
    assert replaced.headers["cache-control"] == "no-store"
    assert "server" not in replaced.headers
    assert "content-length" in taken.headers


def test_dimensions_are_kept_or_refused(server: Serving) -> None:
    """The width is the one asked for, and a header says how it was reached; each width has its own cache entry."""
    plain = vectors(server.embed("wide or narrow"))
    narrow = server.embed("wide or narrow", dimensions=256)
    query = server.embed("wide or narrow", dimensions=256, input_type="query")

    assert plain.shape == (1, 1536)
    assert vectors(narrow).shape == (1, 256)
    assert narrow.headers["x-embeddings-dimensions-policy"] == "native"
    assert vectors(query).shape == (1, 256)
    assert server.embed("x", dimensions=4000).code == "invalid_dimensions"
    assert server.embed("x", model="onnx:all-MiniLM-L6-v2", dimensions=64).code == "invalid_dimensions"


def test_a_long_list_is_split_and_one_operation(server: Serving, wire: Wire) -> None:
    """More texts than a provider takes at once are split into requests of one operation, and answered in order."""
    wire.plan(max_items=32)
    texts = [f"number {n} of many" for n in range(100)]

    reply = server.embed(texts, encoding_format="base64")

    assert vectors(reply).tobytes() == expected(texts, MODEL).tobytes()
    assert len(wire.truth()) > 3


def test_the_order_is_the_inputs_whatever_the_provider_s(server: Serving, wire: Wire) -> None:
    """A provider that answers out of order, with an index, is put in order."""
    wire.plan(script=["shuffled"])
    texts = [f"in order, please: {n}" for n in range(8)]

    assert vectors(server.embed(texts)).tobytes() == expected(texts, MODEL).tobytes()


def test_equal_texts_of_one_request_are_bought_once(server: Serving, wire: Wire) -> None:
    """Duplicates in one request cost once, and all get their vector."""
    reply = server.embed(["the same words"] * 5)

    assert len(vectors(reply)) == 5
    assert [one["items"] for one in wire.truth()] == [1]


def test_the_batch_endpoint_is_the_same_call(server: Serving) -> None:
    """`/embeddings/batch` gives lists of numbers, the model without its provider, and a count."""
    reply = server.ask("POST", "/api/v1/embeddings/batch", {"texts": TEXTS, "model": MODEL, "provider": "openai"})

    assert reply.json.keys() == {"embeddings", "model", "provider", "count"}
    assert (reply.json["model"], reply.json["provider"], reply.json["count"]) == (MODEL, "openai", 3)
    assert np.array(reply.json["embeddings"]).astype(np.float32).tobytes() == expected(TEXTS, MODEL).tobytes()
    assert float(reply.headers["x-embedctl-cost-usd"]) >= 0


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

WRONG: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"input": ""}, 400, "empty_input", "input[0]"),
    ({"input": []}, 400, "empty_input", "input"),
    ({"input": ["a", "b", "c", ""]}, 400, "empty_input", "input[3]"),
    ({"input": [[1, 2], []]}, 400, "empty_input", "input[1]"),
    ({"input": None}, 400, "invalid_input_type", "input"),
    ({"input": 7}, 400, "invalid_input_type", "input"),
    ({"input": {"text": "a"}}, 400, "invalid_input_type", "input"),
    ({"input": ["a", 1]}, 400, "invalid_input_type", "input"),
    ({"input": ["a", [1]]}, 400, "invalid_input_type", "input"),
    ({"input": ["a"] * 2049}, 400, "too_many_inputs", "input"),
    ({"input": [[1, -1]]}, 400, "invalid_token_array", "input[0][1]"),
    ({"input": [[1, True]]}, 400, "invalid_token_array", "input[0][1]"),
    ({"input": [1, 2.5]}, 400, "invalid_token_array", "input[1]"),
    ({"input": [[1, 100_277]]}, 400, "invalid_token_array", "input[0][1]"),
    ({"model": "no-such-model"}, 404, "model_not_found", "model"),
    ({"model": "openai:no-such-model"}, 404, "model_not_found", "model"),
    ({"model": "nobody:model"}, 400, "unknown_provider", "model"),
    ({"model": 7}, 400, "invalid_model", "model"),
    ({"encoding_format": "hex"}, 400, "invalid_encoding_format", "encoding_format"),
    ({"dimensions": 0}, 400, "invalid_dimensions", "dimensions"),
    ({"dimensions": -1}, 400, "invalid_dimensions", "dimensions"),
    ({"dimensions": True}, 400, "invalid_dimensions", "dimensions"),
    ({"dimensions": 1537}, 400, "invalid_dimensions", "dimensions"),
    ({"dimensions": "64"}, 400, "invalid_dimensions", "dimensions"),
    ({"user": 7}, 400, "invalid_user", "user"),
    ({"user": "u" * 257}, 400, "invalid_user", "user"),
    ({"input_type": "poem"}, 400, "invalid_input_kind", "input_type"),
    ({"purpose": "fun"}, 400, "invalid_purpose", "purpose"),
    ({"provider": "nobody"}, 400, "unknown_provider", "provider"),
    ({"provider": 7}, 400, "invalid_provider", "provider"),
    ({"provider": "perplexity"}, 501, "provider_unsupported", "provider"),
    ({"model": "vertex:gemini-embedding-001"}, 501, "provider_unsupported", "model"),
    ({"model": "openai:" + MODEL, "provider": "onnx"}, 400, "provider_model_mismatch", "model"),
    ({"api_base": "http://example.org"}, 400, "unknown_parameter", "api_base"),
    ({"base_url": "http://example.org"}, 400, "unknown_parameter", "base_url"),
    ({"api_key": "sk-x"}, 400, "unknown_parameter", "api_key"),
]


@pytest.mark.parametrize("door", ["/v1", "/api/v1"])
@pytest.mark.parametrize(("change", "status", "code", "param"), WRONG)
def test_a_wrong_field_is_named(
    server: Serving, wire: Wire, door: str, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    """Each wrong field has its status, its code and its name in the answer; nothing is sent to a provider."""
    reply = server.ask("POST", f"{door}/embeddings", {"model": MODEL, "input": "a", **change})
    error = reply.json["error"]

    assert (reply.status, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == ("server_error" if status == 501 else "invalid_request_error")
    assert error["message"]
    assert ("detail" in reply.json) == (door == "/api/v1")
    assert wire.truth() == []


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'"a"', b"null", b'{"input": NaN}', b'{"input": "a", "input": "b"}', b"\xff\xfe", b"[" * 100_000,
     b'{"input": "a", "model": "m", "x": [[[[[1]]]]]}', b'{"input": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}',
     b'{"input": [{"\\udfff": 1}]}'],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(server: Serving, raw: bytes) -> None:
    """Broken, nested, ambiguous or unbounded JSON is 400 `invalid_json`, whatever else it would say."""
    reply = server.ask("POST", "/v1/embeddings", raw=raw)

    assert (reply.status, reply.code) == (400, "invalid_json")


def test_a_lone_surrogate_is_no_text(server: Serving) -> None:
    """Text that cannot be Unicode is refused by its place, and not sent."""
    reply = server.ask("POST", "/v1/embeddings", raw=b'{"model": "text-embedding-3-small", "input": ["a", "\\ud800"]}')

    assert (reply.status, reply.json["error"]["param"]) == (400, "input[1]")


def test_too_long_is_told_by_index_in_both_dresses(server: Serving, wire: Wire) -> None:
    """A text over the model's limit is refused with its index and tokens: the guide's object, and OpenAI's phrase."""
    texts = ["short", "word " * 9000]
    guide, plain = server.embed(texts, door="/api/v1"), server.embed(texts)

    assert guide.status == plain.status == 400
    assert guide.json["error"] == "input_too_long"
    assert guide.json["details"][0]["index"] == 1
    assert guide.json["details"][0]["tokens"] > 8191
    assert "max tokens 8191 for model text-embedding-3-small" in guide.json["message"]
    assert plain.code == "input_too_long"
    assert plain.json["error"]["param"] == "input[1]"
    assert "maximum context length is 8191 tokens" in plain.json["error"]["message"]
    assert wire.truth() == []


def test_too_long_is_cut_where_the_operator_says_so(wire: Wire, tmp_path: Path) -> None:
    """With `on_too_long = "truncate"` the end is left out, a header says of which, and a space of its own keeps it."""
    texts = ["short enough", "word " * 9000, "word " * 9001]
    with serving(tmp_path / "g", wire) as server:
        assert server.embed(texts[:1]).headers["x-embedctl-cache"] == "miss"
    (tmp_path / "g" / "log").unlink()
    with serving(tmp_path / "g", wire, settings='on_too_long = "truncate"\n') as server:
        reply, arrays = server.embed(texts), server.embed([[5] * 9000, [6]])

    assert (reply.status, arrays.status) == (200, 200)
    assert reply.headers["x-embedctl-truncated"] == "1,2"
    assert arrays.headers["x-embedctl-truncated"] == "0"
    assert reply.headers["x-embedctl-cache"].startswith("partial; hits=1/3")  # both long ones begin alike
    assert reply.json["usage"]["prompt_tokens"] <= 2 * 8191 + 10
    assert all(one["status"] == 200 for one in wire.truth())


def test_the_sum_has_no_limit_of_its_own(server: Serving, wire: Wire) -> None:
    """Inputs that are short one by one and long together are split inside, never refused."""
    wire.plan(max_request_tokens=20_000)

    assert len(vectors(server.embed([f"{n} " + "word " * 2000 for n in range(30)], encoding_format="base64"))) == 30


def everything(client: socket.socket) -> bytes:
    """What comes until the connection ends, also where it ends by a reset: not all that was sent was read."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(4096):
            found += piece
    return found


def test_a_body_is_bounded_before_it_is_read(server: Serving) -> None:
    """A body over the limit is 413 by its stated length, and by its real one where none is stated."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9000000\r\n\r\n"
        )
        stated = everything(client)
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        counted = b""
        try:
            for _ in range(9):
                client.sendall(chunk)
        except ConnectionError:
            pass
        counted = everything(client)

    assert stated.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in stated.lower()
    assert b"body_too_large" in stated
    assert counted.startswith(b"HTTP/1.1 413")


def test_other_media_and_compression_are_415(server: Serving) -> None:
    """Only JSON is taken, and nothing compressed: a small body could grow without bound."""
    body = json.dumps({"model": MODEL, "input": "a"}).encode()
    kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    refused = [server.ask("POST", "/v1/embeddings", raw=body, Content_Type=kind) for kind in kinds]
    refused.append(server.ask("POST", "/v1/embeddings", raw=body, Content_Encoding="gzip"))
    taken = [
        server.ask("POST", "/v1/embeddings", raw=body, Content_Type=kind)
        for kind in ("application/json; charset=utf-8", "text/json", "application/vnd.api+json")
    ]

    assert [(one.status, one.code) for one in refused] == [(415, "unsupported_media_type")] * 4
    assert [one.status for one in taken] == [200] * 3


def test_paths_and_methods(server: Serving) -> None:
    """An unknown path is 404, another method 405 with the ones that count; both in the common shape."""
    nowhere, wrong = server.ask("GET", "/v1/nothing"), server.ask("GET", "/v1/embeddings")

    assert (nowhere.status, nowhere.code) == (404, "not_found")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert server.ask("GET", "/v1/embeddings/").status == 404


def test_headers_are_bounded(server: Serving) -> None:
    """More than 64 KiB of headers, 100 lines, or an address of 8 KiB is 431."""
    lines = {f"X-{n}": "v" for n in range(101)}
    large = server.ask("POST", "/v1/embeddings", {"input": "a"}, X_Large="v" * 70_000)

    assert server.ask("GET", "/v1/models", **lines).code == "headers_too_large"
    assert server.ask("GET", "/v1/models?" + "q" * 9000).status == 431
    assert (large.status, large.code) == (431, "headers_too_large")


def test_two_lengths_are_no_request(server: Serving) -> None:
    """Content-Length together with Transfer-Encoding is refused: two readers would see two requests."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 400")


def test_what_is_no_http_is_told_so(server: Serving) -> None:
    """Bytes that are no HTTP get a 400 in JSON, and the connection ends."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = everything(client)

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/json" in answer


def test_x_provider_chooses_and_may_not_contradict(server: Serving) -> None:
    """`x-provider` chooses who serves; a prefix that says otherwise is refused on every path."""
    other = {"X_Provider": "onnx"}
    chosen = server.embed("who serves", model="all-MiniLM-L6-v2", headers=other)
    contradicted = server.embed("a", model=f"openai:{MODEL}", headers=other)
    batch = server.ask(
        "POST", "/api/v1/embeddings/batch", {"texts": ["a"], "model": f"openai:{MODEL}", "provider": "onnx"}
    )

    assert chosen.headers["x-embeddings-provider"] == "onnx"
    assert contradicted.code == batch.code == "provider_model_mismatch"
    assert server.embed("a", headers={"X_Provider": "nobody"}).code == "unknown_provider"
    assert server.embed("a", model=f"openai/{MODEL}").status == 200


def test_unknown_fields_are_ignored_where_the_operator_says_so(wire: Wire, tmp_path: Path) -> None:
    """With `unknown_parameters = "ignore"` extra fields are not passed on, and their names are logged once."""
    with serving(tmp_path / "g", wire, settings='[serve]\nunknown_parameters = "ignore"\n') as lenient:
        replies = [lenient.embed("extra", extra_field=1) for _ in range(3)]
        lenient.stop()

        assert [one.status for one in replies] == [200] * 3
        assert [one["name"] for one in lenient.log() if one["event"] == "unknown_parameter"] == ["extra_field"]


# ── lists of models, health ──────────────────────────────────────────────────────────────────────────────────────────


def test_lists_and_health_ask_nobody(server: Serving, wire: Wire) -> None:
    """Models, their facts, health and readiness come from here: no provider is asked, however often."""
    for _ in range(20):
        models = server.ask("GET", "/api/v1/embeddings/models").json
        one = server.ask("GET", f"/api/v1/embeddings/models/{MODEL}").json
        health = server.ask("GET", "/api/v1/embeddings/health").json
        openai = server.ask("GET", "/v1/models").json
        alone = server.ask("GET", f"/v1/models/{MODEL}").json
        assert server.ask("GET", "/livez").body == b"ok"
        assert server.ask("GET", "/readyz").status == 200

    assert {"provider": "openai", "model": MODEL, "allowed": True, "default": True} in models["data"]
    assert models["allowed_providers"] is None
    assert models["allowed_models"] is None
    assert one["dimension"] == 1536
    assert one["max_tokens"] == 8191
    assert one["price_usd_per_mtok"] == "0.02"
    assert health["status"] == "healthy"
    assert health["cache_stats"].keys() == {"size", "max_size", "ttl_seconds"}
    assert MODEL in [model["id"] for model in openai["data"]]
    assert alone["owned_by"] == "openai"
    for name in ("nothing", "zzz:nothing", "openai:nothing"):
        assert server.ask("GET", f"/v1/models/{name}").code == "model_not_found"
    for name in (f"openai:{MODEL}", f"openai%3A{MODEL}"):  # whatever embeddings takes for a name
        assert server.ask("GET", f"/v1/models/{name}").json["id"] == f"openai:{MODEL}"
    assert server.ask("GET", "/api/v1/embeddings/models/nothing").code == "model_not_found"
    assert wire.truth() == []
