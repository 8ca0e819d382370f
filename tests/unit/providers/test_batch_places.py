"""Which places have a Batch API that can be used, and what the others say."""

from __future__ import annotations

from typing import Any

import pytest

from embedctl import providers
from embedctl.errors import ConfigurationInvalid
from embedctl.providers import catalog
from embedctl.providers._batch_places import batch_api
from embedctl.providers._contract import Provider, Secret

KEY = "test-key-0123456789"


def place(name: str, protocol: str = "", *, base_url: str = "", key: str = KEY, **options: Any) -> Provider:
    return Provider(name=name, protocol=protocol or name, base_url=base_url, api_key=Secret(key), options=options)


@pytest.mark.parametrize(
    ("name", "protocol", "model"),
    [
        ("openai", "openai", "text-embedding-3-small"),
        ("deepinfra", "openai", "intfloat/multilingual-e5-large"),
        ("mistral", "mistral", "mistral-embed"),
        ("voyage", "voyage", "voyage-4"),
        ("google", "google", "gemini-embedding-001"),
        ("openai", "openai", "a-model-of-tomorrow"),
    ],
)
def test_places_of_the_catalog(name: str, protocol: str, model: str) -> None:
    """A place that is known to have a Batch API has it at its own address, without a word in the settings."""
    url = catalog.providers()[name].base_url or ""

    found = batch_api(place(name, protocol, base_url=url), model)

    assert found.protocol is providers.protocol(protocol)
    assert found.capabilities.max_inputs >= 50_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("azure", "runs no embedding model"),
        ("cohere", "delivers nothing"),
        ("jina", "carries no mark"),
    ],
)
@pytest.mark.parametrize("wanted", [None, True])
def test_places_that_are_refused(name: str, words: str, wanted: bool | None) -> None:
    """A Batch API that cannot be used safely is refused with the reason, whatever the settings say: exit code 78."""
    with pytest.raises(ConfigurationInvalid, match=words) as caught:
        batch_api(place(name), "m", wanted)

    assert caught.value.exit_code == 78
    assert "online" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "url", ["https://openrouter.ai/api/v1", "https://OPENROUTER.ai/api/v1/", "https://eu.openrouter.ai/v1"]
)
def test_openrouter_is_refused_by_its_address(url: str) -> None:
    """OpenRouter speaks OpenAI's dialect, but its batches carry no mark: refused wherever its address is given."""
    with pytest.raises(ConfigurationInvalid, match="no mark"):
        batch_api(place("router", "openai", base_url=url), "m", True)


@pytest.mark.parametrize("name", ["together", "fireworks", "local_api"])
def test_places_that_are_not_known_to_have_one(name: str) -> None:
    """A server that speaks OpenAI's dialect has a Batch API when the user says so, and not before."""
    entry = catalog.providers()[name]
    here = place(name, entry.protocol, base_url=entry.base_url or "")

    with pytest.raises(ConfigurationInvalid, match="not known to have a Batch API") as caught:
        batch_api(here, "m")

    assert "batch = true" in (caught.value.hint or "")
    assert batch_api(here, "m", True).protocol is providers.protocol("openai")


@pytest.mark.parametrize("name", ["ollama", "tei", "nomic", "huggingface", "bedrock", "tldw", "json", "onnx"])
def test_protocols_without_one(name: str) -> None:
    """A protocol without a Batch API is refused, whatever the settings say."""
    with pytest.raises(ConfigurationInvalid, match="has no Batch API"):
        batch_api(place(name), "m", True)


def test_another_address_is_another_server() -> None:
    """A known name at another address is not the known server: absence in a proxy's list proves nothing (LiteLLM)."""
    elsewhere = place("openai", base_url="https://proxy.example.org/v1")

    with pytest.raises(ConfigurationInvalid, match="not known"):
        batch_api(elsewhere, "text-embedding-3-small")

    assert batch_api(elsewhere, "text-embedding-3-small", True)


def test_batch_false_in_the_settings() -> None:
    """Who writes `batch = false` gets none."""
    with pytest.raises(ConfigurationInvalid, match="batch = false"):
        batch_api(place("openai"), "text-embedding-3-small", False)


@pytest.mark.parametrize("model", ["voyage-code-4", "voyage-finance-2"])
def test_models_that_are_not_served(model: str) -> None:
    """A model that the Batch API does not serve is refused before anything is sent."""
    with pytest.raises(ConfigurationInvalid, match=f"does not serve {model}"):
        batch_api(place("voyage"), model)


def test_keys_of_atlas() -> None:
    """Keys of MongoDB Atlas are not known to buy batches."""
    with pytest.raises(ConfigurationInvalid, match="Atlas"):
        batch_api(place("voyage", key="al-0123456789abcdef"), "voyage-4")


def test_token_arrays() -> None:
    """Lines carry token arrays where the protocol's do and the place is not known to refuse them."""
    deepinfra = place("deepinfra", "openai", base_url=catalog.providers()["deepinfra"].base_url or "")

    assert batch_api(place("openai"), "text-embedding-3-small").capabilities.takes_tokens
    assert not batch_api(deepinfra, "m").capabilities.takes_tokens
    assert not batch_api(place("voyage"), "voyage-4").capabilities.takes_tokens
