"""The wire server's formats, checked by the vendors' own clients: each reads the right vectors from it.

They are in the optional group `sdks`; where one is not installed, its test is skipped.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.wire.client import Wire, expected, started

TEXTS = ["alpha", "beta gamma", "delta\nepsilon"]
KEY = "test-key-0123456789"
pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own deprecations are theirs


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield
    gc.collect()  # some clients leave their sockets to the collector: let it complain here, where it is filtered


def client(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"the official client {name} is not installed (group `sdks`)")


def same(found: Any, model: str, dimensions: int | None = None) -> None:
    np.testing.assert_allclose(np.array(found, dtype=np.float32), expected(TEXTS, model, dimensions), rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_openai(wire: Wire, encoding: str) -> None:
    """The openai client reads the right vectors and the usage, in base64 and in floats."""
    sdk = client("openai").OpenAI(api_key=KEY, base_url=wire.base_url("openai"))
    # left to itself the client asks for base64
    more = {"encoding_format": "float"} if encoding == "float" else {}

    found = sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS, dimensions=64, **more)

    same([one.embedding for one in found.data], "text-embedding-3-small", 64)
    assert found.usage.total_tokens == wire.truth()[-1]["tokens_billed"]


def test_azure(wire: Wire) -> None:
    """The openai package's Azure client reads the right vectors from a deployment."""
    sdk = client("openai").AzureOpenAI(api_key=KEY, azure_endpoint=wire.base_url("azure"), api_version="2024-10-21")

    found = sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS)

    same([one.embedding for one in found.data], "text-embedding-3-small")


def test_openai_rate_limit(wire: Wire) -> None:
    """The openai client understands a 429 of the server as its own rate limit."""
    openai = client("openai")
    wire.plan(script=[{"fault": "rate", "form": "seconds", "seconds": 1}])
    sdk = openai.OpenAI(api_key=KEY, base_url=wire.base_url("openai"), max_retries=0)

    with pytest.raises(openai.RateLimitError) as caught:
        sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS)

    assert caught.value.response.headers["retry-after"] == "1"


def test_cohere(wire: Wire) -> None:
    """The cohere client reads the right vectors and the billed units."""
    sdk = client("cohere").ClientV2(api_key=KEY, base_url=wire.base_url("cohere"))

    found = sdk.embed(
        model="embed-v4.0", texts=TEXTS, input_type="search_document", embedding_types=["float"], output_dimension=256
    )

    same(found.embeddings.float_, "embed-v4.0", 256)
    assert found.meta.billed_units.input_tokens == wire.truth()[-1]["tokens_billed"]


def test_voyageai(wire: Wire) -> None:
    """The voyageai client reads the right vectors and the total tokens."""
    sdk = client("voyageai").Client(api_key=KEY, base_url=wire.base_url("voyage"))

    found = sdk.embed(TEXTS, model="voyage-4", input_type="document", output_dimension=256)

    same(found.embeddings, "voyage-4", 256)
    assert found.total_tokens == wire.truth()[-1]["tokens_billed"]


def test_mistralai(wire: Wire) -> None:
    """The mistralai client reads the right vectors and the usage."""
    sdk = client("mistralai.client").Mistral(api_key=KEY, server_url=wire.base_url("mistral").removesuffix("/v1"))

    found = sdk.embeddings.create(model="mistral-embed", inputs=TEXTS)

    same([one.embedding for one in found.data], "mistral-embed")
    assert found.usage.total_tokens == wire.truth()[-1]["tokens_billed"]


def test_google_genai(wire: Wire) -> None:
    """The google-genai client reads one right vector per text."""
    genai = client("google.genai")
    sdk = genai.Client(api_key=KEY, http_options={"base_url": wire.base_url("google")})

    found = sdk.models.embed_content(
        model="gemini-embedding-001", contents=TEXTS, config={"output_dimensionality": 768}
    )

    same([one.values for one in found.embeddings], "gemini-embedding-001", 768)


def test_ollama(wire: Wire) -> None:
    """The ollama client reads the right vectors and the tokens."""
    sdk = client("ollama").Client(host=wire.base_url("ollama"))

    found = sdk.embed(model="all-minilm", input=TEXTS, truncate=False)

    same(found.embeddings, "all-minilm")
    assert found.prompt_eval_count == wire.truth()[-1]["tokens_billed"]
