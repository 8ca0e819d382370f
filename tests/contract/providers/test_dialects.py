"""What is special in one protocol, and not in the others."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import numpy as np
import orjson
import pytest

from embedctl import providers
from embedctl.errors import AnswerUnusable, ConfigurationInvalid, RequestRefused, RequestTooLarge
from embedctl.providers import tldw
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret

KEY = Secret("test-key-0123456789")
JWT = Secret("eyJhbGciOi.eyJzdWIiOiJ.c2lnbmF0dXJl")


def asked(name: str, model: str = "m", texts: Any = ("a", "b"), key: Secret | None = KEY, **place: Any) -> HttpRequest:
    options = place.pop("asked", RequestOptions())
    return providers.protocol(name).request(
        Provider(name=name, protocol=name, api_key=key, **place), model, list(texts), options
    )


@pytest.mark.parametrize(
    ("base_url", "version", "url"),
    [
        ("https://r.openai.azure.com", None, "/openai/deployments/d%20%2F1/embeddings?api-version=2024-10-21"),
        ("https://r.openai.azure.com/", "2023-05-15", "/openai/deployments/d%20%2F1/embeddings?api-version=2023-05-15"),
        ("https://r.openai.azure.com", "v1", "/openai/v1/embeddings"),
        ("https://r.openai.azure.com", "preview", "/openai/v1/embeddings?api-version=preview"),
        ("https://r.openai.azure.com/openai/v1", None, "/openai/v1/embeddings"),
    ],
)
def test_azure_urls(base_url: str, version: str | None, url: str) -> None:
    """Azure's classic URL names deployment and version, its v1 URL neither."""
    options = {"api_version": version} if version else {}

    found = asked("azure", "d /1", base_url=base_url, options=options)

    assert found.url == "https://r.openai.azure.com" + url
    assert orjson.loads(found.body)["model"] == "d /1"


def test_azure_entra_token() -> None:
    """An Entra token goes as a bearer token, not as an api-key."""
    found = asked("azure", key=JWT, base_url="https://r.openai.azure.com")

    assert found.headers["authorization"] == f"Bearer {JWT.reveal()}"
    assert "api-key" not in found.headers


@pytest.mark.parametrize(("name", "says"), [("azure", "base_url"), ("bedrock", "region"), ("json", "body")])
def test_what_a_place_lacks(name: str, says: str) -> None:
    """A place without what its protocol needs is refused by name."""
    with pytest.raises(ConfigurationInvalid, match=says):
        asked(name)


def test_azure_resource_is_to_be_replaced() -> None:
    """The default's RESOURCE is no address."""
    with pytest.raises(ConfigurationInvalid, match="resource"):
        asked("azure", base_url="https://RESOURCE.openai.azure.com")


def test_voyage_atlas_keys() -> None:
    """A MongoDB Atlas key goes to MongoDB's host, unless the user names another."""
    atlas = Secret("al-0123456789abcdef")

    assert asked("voyage", key=atlas).url == "https://ai.mongodb.com/v1/embeddings"
    assert asked("voyage").url == "https://api.voyageai.com/v1/embeddings"
    assert asked("voyage", key=atlas, base_url="https://own.example/v1").url == "https://own.example/v1/embeddings"


def test_google_one_entry_per_text() -> None:
    """Every text has its own entry with one part: several parts would become one vector."""
    found = orjson.loads(asked("google", "models/gemini-embedding-2", ["a", "b", "c"]).body)

    assert [one["content"] for one in found["requests"]] == [{"parts": [{"text": text}]} for text in "abc"]
    assert {one["model"] for one in found["requests"]} == {"models/gemini-embedding-2"}


@pytest.mark.parametrize(
    ("model", "width", "length"),
    [("gemini-embedding-001", 4, 1.0), ("gemini-embedding-001", 3072, 2.0), ("gemini-embedding-2", 4, 2.0)],
)
def test_google_normalises_where_the_api_does_not(model: str, width: int, length: float) -> None:
    """gemini-embedding-001 below its full width is scaled to length 1 here; everything else is left alone."""
    request = asked("google", model, ["a"])
    values = [2.0] + [0.0] * (width - 1)
    body = orjson.dumps({"embeddings": [{"values": values}]})

    found = providers.protocol("google").answer(200, {}, body, request)

    assert np.linalg.norm(found.vectors[0]) == pytest.approx(length)


def test_huggingface_refuses_token_vectors() -> None:
    """A vector per token is refused unless the user says how to pool."""
    request = asked("huggingface", "bert")

    with pytest.raises(RequestRefused, match="per token"):
        providers.protocol("huggingface").answer(200, {}, b"[[[1,0],[0,1]],[[1,1],[1,1]]]", request)


@pytest.mark.parametrize(
    ("pool", "wanted"), [("mean", [[0.70710677, 0.70710677], [0.6, 0.8]]), ("cls", [[1, 0], [0.6, 0.8]])]
)
def test_huggingface_pools_when_told(pool: str, wanted: list[list[float]]) -> None:
    """Told how, token vectors become one of length 1, texts of different lengths too."""
    request = asked("huggingface", "bert", options={"pool": pool})

    found = providers.protocol("huggingface").answer(200, {}, b"[[[1,0],[0,1]],[[3,4]]]", request)

    np.testing.assert_allclose(found.vectors, wanted, rtol=1e-6)


def test_titan_takes_one_text() -> None:
    """Titan takes one text a request; more are to be halved."""
    with pytest.raises(RequestTooLarge):
        asked("bedrock", "amazon.titan-embed-text-v2:0", options={"region": "us-east-1"})


def test_titan_v1_knows_no_options() -> None:
    """The first Titan is sent the text alone."""
    found = asked(
        "bedrock",
        "amazon.titan-embed-text-v1",
        ["a"],
        options={"region": "us-east-1"},
        asked=RequestOptions(dimensions=256),
    )

    assert orjson.loads(found.body) == {"inputText": "a"}


def test_bedrock_region_cannot_leave_the_host() -> None:
    """A region that is none cannot send the key elsewhere."""
    with pytest.raises(ConfigurationInvalid):
        asked("bedrock", "amazon.titan-embed-text-v1", ["a"], options={"region": "x.evil.example/"})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434/api/embed"),
        ("0.0.0.0", "http://127.0.0.1:11434/api/embed"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000/api/embed"),
        ("gpu.local:11434", "http://gpu.local:11434/api/embed"),
        ("https://gpu.example/", "https://gpu.example/api/embed"),
    ],
)
def test_ollama_host(host: str, url: str) -> None:
    """OLLAMA_HOST is read as ollama itself reads it."""
    assert asked("ollama", base_url=host).url == url


def test_fireworks_dialect() -> None:
    """A server whose schema has no encoding_format is sent none, and is told to normalise."""
    found = orjson.loads(asked("openai", options={"encoding_format": False, "normalize": True}).body)

    assert found == {"model": "m", "input": ["a", "b"], "normalize": True}


def test_openai_accounts() -> None:
    """Organisation and project go as OpenAI's headers."""
    found = asked("openai", options={"organization": "org-1", "project": "proj-1"})

    assert found.headers["openai-organization"] == "org-1"
    assert found.headers["openai-project"] == "proj-1"


def test_a_header_of_ones_own_replaces_the_protocols() -> None:
    """What the user's config says of a header counts more than what the protocol would send."""
    found = asked("openai", options={"project": "proj-1"}, headers={"OpenAI-Project": "proj-2"})

    assert found.headers["openai-project"] == "proj-2"


def test_tldw_keys() -> None:
    """A key goes as X-API-KEY, a JSON Web Token as bearer, and one beside a key both ways."""
    single, multi = asked("tldw"), asked("tldw", key=JWT)
    both = asked("tldw", options={"bearer": JWT})

    assert (single.headers.get("x-api-key"), single.headers.get("authorization")) == (KEY.reveal(), None)
    assert (multi.headers.get("x-api-key"), multi.headers["authorization"]) == (None, f"Bearer {JWT.reveal()}")
    assert (both.headers["x-api-key"], both.headers["authorization"]) == (KEY.reveal(), f"Bearer {JWT.reveal()}")


@pytest.mark.parametrize(
    ("model", "options", "pinned", "sent"),
    [
        ("openai:text-embedding-3-small", {}, "openai", "text-embedding-3-small"),
        ("text-embedding-3-small", {"provider": "openai"}, "openai", "text-embedding-3-small"),
        ("nomic-embed-text:latest", {}, None, "nomic-embed-text:latest"),
    ],
)
def test_tldw_is_pinned(model: str, options: dict[str, str], pinned: str | None, sent: str) -> None:
    """Where the provider behind the gateway is known, x-provider pins it."""
    found = asked("tldw", model, options=options)

    assert found.headers.get("x-provider") == pinned
    assert orjson.loads(found.body)["model"] == sent


def test_tldw_token() -> None:
    """The minted token is signed with HS256, names the user, and lives for 24 hours."""
    token = tldw.minted(Secret("secret"), "user123", 1_700_000_000.9)

    head, claims, signature = token.reveal().split(".")
    wanted = hmac.digest(b"secret", f"{head}.{claims}".encode(), hashlib.sha256)
    assert unpadded(head) == {"alg": "HS256", "typ": "JWT"}
    assert unpadded(claims) == {"sub": "user123", "iat": 1_700_000_000, "exp": 1_700_086_400}
    assert base64.urlsafe_b64decode(signature + "==") == wanted
    assert "secret" not in repr(token)


def unpadded(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=="))


JSON = {"body": {"docs": "{texts}"}, "vectors": "out"}
BASE = {"base_url": "https://example.org"}


def test_json_template() -> None:
    """Placeholders become values or text; absent ones leave their key out; texts are never read as templates."""
    template = {"q": "say {model}: {text}", "n": "{dimensions}", "list": ["{text}", "{user}", 1], "keep": "{other}"}

    found = asked("json", "m1", ["{model} {x}"], options={**JSON, "body": template}, **BASE)

    assert orjson.loads(found.body) == {
        "q": "say m1: {model} {x}",
        "list": ["{model} {x}", 1],
        "keep": "{other}",
    }


def test_json_template_as_text() -> None:
    """The template may be JSON in a string."""
    found = asked("json", options={**JSON, "body": '{"docs": "{texts}"}'}, **BASE)

    assert orjson.loads(found.body) == {"docs": ["a", "b"]}


def test_json_one_text() -> None:
    """A template for one text takes one."""
    with pytest.raises(RequestTooLarge):
        asked("json", options={**JSON, "body": {"q": "{text}"}}, **BASE)


def test_json_key_header() -> None:
    """The key goes in the header that the user names."""
    found = asked("json", options={**JSON, "key_header": "X-Token"}, **BASE)

    assert found.headers["x-token"] == KEY.reveal()
    assert "authorization" not in found.headers


@pytest.mark.parametrize(
    "options",
    [{"vectors": "out"}, {"body": {}}, {**JSON, "vectors": "[["}, {**JSON, "body": "{"}, {**JSON, "body": "[1]"}],
)
def test_json_descriptions_that_are_none(options: dict[str, Any]) -> None:
    """A description that cannot work is refused before anything is sent."""
    with pytest.raises(ConfigurationInvalid):
        asked("json", options=options, **BASE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"out": null}',
        b"{}",
        b'{"out": []}',
        b'{"out": [[1, null]]}',
        b'{"out": [["1"]]}',
        b'{"out": [[1],[1,2]]}',
        b"x",
    ],
)
def test_json_answers_that_are_none(body: bytes) -> None:
    """Where the expression finds no vectors the answer is unusable."""
    with pytest.raises(AnswerUnusable):
        providers.protocol("json").answer(200, {}, body, asked("json", options=JSON, **BASE))


def test_json_error_in_a_200() -> None:
    """An error that the API hides in a 200 is found by its expression."""
    request = asked("json", options={**JSON, "error": "problem"}, **BASE)

    with pytest.raises(AnswerUnusable, match="quota"):
        providers.protocol("json").answer(200, {}, b'{"problem": "no quota", "out": [[1]]}', request)
