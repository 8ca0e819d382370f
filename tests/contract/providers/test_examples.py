"""Every protocol against its wire example: what it sends, byte for byte in meaning, and what it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from embedctl import providers
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret

KEY = "test-key-0123456789"
EXAMPLES = {
    file.stem.removeprefix("wire_"): json.loads(file.read_text("utf-8"))
    for file in sorted(Path(__file__).parent.glob("wire_*.json"))
}


def built(name: str) -> tuple[dict[str, Any], HttpRequest]:
    example = EXAMPLES[name]
    place = {"name": name, "protocol": name, "api_key": KEY, **example["place"]}
    secret = Secret(place.pop("api_key")) if place["api_key"] else place.pop("api_key")
    request = providers.protocol(name).request(
        Provider(api_key=secret, **place), example["model"], example["texts"], RequestOptions(**example["options"])
    )
    return example, request


def test_every_protocol_has_an_example() -> None:
    """A protocol that is sent anywhere has its wire example."""
    sent = {name for name in providers.PROTOCOLS if not providers.is_local(name)}

    assert set(EXAMPLES) == sent


@pytest.mark.parametrize("name", EXAMPLES)
def test_request(name: str) -> None:
    """URL, headers and body are those of the example, nothing more and nothing less."""
    example, request = built(name)

    assert request.url == example["request"]["url"]
    assert dict(request.headers) == example["request"]["headers"]
    assert orjson.loads(request.body) == example["request"]["body"]
    assert request.method == "POST"


@pytest.mark.parametrize("name", EXAMPLES)
def test_answer(name: str) -> None:
    """Vectors, places, tokens, ids and who answered are read as the example says."""
    example, request = built(name)
    body = orjson.dumps(example["answer"]["body"])

    found = providers.protocol(name).answer(200, example["answer"]["headers"], body, request)

    np.testing.assert_allclose(found.vectors, np.array(example["vectors"], dtype=np.float32), atol=1e-7)
    assert found.vectors.dtype == np.float32
    assert (list(found.index) if found.index is not None else None) == example.get("index")
    assert found.tokens == example["tokens"]
    assert found.embedding_id == example.get("embedding_id")
    assert found.response_model == example.get("response_model")
    assert found.provider == example.get("provider")
    assert found.fallback_from == example.get("fallback_from")
    assert found.dimension_policy == example.get("dimension_policy")
