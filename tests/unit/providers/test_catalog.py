"""The catalog: what it promises of models, providers and prices."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from embedctl.ledger import prices
from embedctl.providers import PROTOCOLS, catalog, is_local, protocol
from embedctl.records import Limits

MODELS = catalog.models()
PROVIDERS = catalog.providers()
PRICES = prices.load(prices.price_texts(None)).prices


def test_the_bundled_model() -> None:
    """The bundled model is known in full: width, limit, revision, exact tokenizer, no cost."""
    bundled = [one for one in MODELS if one.bundled]

    assert [one.id for one in bundled] == ["onnx:all-MiniLM-L6-v2"]
    (model,) = bundled
    assert model.canonical == "sentence-transformers/all-MiniLM-L6-v2"
    assert (model.dimensions, model.max_tokens, model.revision) == (384, 256, "w8-1")
    assert (model.tokenizer, model.usage_mode, model.cost_class) == ("bundled:minilm", "native", "free")
    assert model.normalized is True
    assert model.unverified == ()
    assert PROVIDERS["onnx"].free


def test_openai_small() -> None:
    """What is known of a model is in its place."""
    model = catalog.find("openai", "text-embedding-3-small")

    assert model is not None
    assert model.canonical == "openai/text-embedding-3-small"
    assert (model.dimensions, model.max_tokens, model.reducible) == (1536, 8191, True)
    assert model.limits == Limits(items=2048, tokens=300_000)
    assert model.tokenizer == "tiktoken:cl100k_base"
    assert model.unverified == ("normalized",)
    assert (model.quality, model.speed, model.cost_class) == ("high", "fast", "low")
    assert model.makes(1536)
    assert model.makes(1)
    assert not model.makes(1537)


def test_every_offer_is_one() -> None:
    """No provider offers the same name twice."""
    repeated = [key for key, count in Counter((one.provider, one.name) for one in MODELS).items() if count > 1]

    assert repeated == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_offer_is_consistent(model: catalog.ModelEntry) -> None:
    """Facts of one offer do not contradict each other."""
    assert model.served == (model.provider in PROVIDERS)
    assert model.status == "retired" or model.dimensions
    assert not (model.field_input_type and model.prefixes)
    assert set(model.prefixes) <= set(model.input_types)
    assert not model.dimensions_allowed or model.dimensions in model.dimensions_allowed
    assert not model.reducible or model.dimensions_allowed
    assert model.retires is None or date.fromisoformat(model.retires)
    assert model.status != "retired" or date.fromisoformat(model.retires or "") < date(2026, 11, 21)


@pytest.mark.parametrize("place", PROVIDERS.values(), ids=lambda place: place.name)
def test_provider_is_consistent(place: catalog.ProviderEntry) -> None:
    """A provider's protocol exists; keys and address agree with it; its chain and default model are known."""
    module = protocol(place.protocol)

    assert place.protocol in PROTOCOLS
    assert (place.base_url is None) == is_local(place.protocol)
    if place.name == place.protocol:
        assert place.api_key_env == module.KEY_VARIABLES
        assert module.BASE_URL in (None, place.base_url)
    assert {entry.partition(":")[0] for entry in place.fallback} <= set(PROVIDERS)
    assert place.default_model is None or catalog.default_model(place.name) is not None
    assert not (place.free and place.price_as)


def test_builtin_providers() -> None:
    """The built-in providers are those of the documentation."""
    listed = (
        "openai azure cohere voyage google mistral jina huggingface onnx static local_api together fireworks deepinfra "
        "nomic bedrock tei ollama tldw"
    )

    assert sorted(PROVIDERS) == sorted(listed.split())


def test_no_foreign_key_goes_to_a_server_of_ones_own() -> None:
    """Local servers that speak OpenAI's dialect never get OpenAI's key by themselves."""
    takers = [place.name for place in PROVIDERS.values() if "OPENAI_API_KEY" in place.api_key_env]

    assert takers == ["openai"]


def test_default_chains() -> None:
    """Without configuration the chains are those of the API guide."""
    chains = {name: catalog.default_chain(name) for name in PROVIDERS if catalog.default_chain(name)}

    assert chains == {
        "openai": ("huggingface", "onnx", "local_api"),
        "huggingface": ("onnx", "local_api"),
        "onnx": ("huggingface", "local_api"),
        "local_api": ("huggingface",),
    }
    assert catalog.default_chain("nobody") == ()


def test_default_models() -> None:
    """A chain entry without a model means MiniLM where it is free, and nothing where the server decides."""
    wanted = {
        "onnx": "onnx:all-MiniLM-L6-v2",
        "huggingface": "huggingface:sentence-transformers/all-MiniLM-L6-v2",
        "openai": "openai:text-embedding-3-small",
        "local_api": None,
        "nobody": None,
    }

    found = {name: catalog.default_model(name) for name in wanted}

    assert {name: one.id if one else None for name, one in found.items()} == wanted


@pytest.mark.parametrize(
    ("name", "first", "all_of"),
    [
        ("text-embedding-3-small", "openai:text-embedding-3-small", 2),
        ("all-MiniLM-L6-v2", "onnx:all-MiniLM-L6-v2", 4),
        ("sentence-transformers/all-MiniLM-L6-v2", "huggingface:sentence-transformers/all-MiniLM-L6-v2", 4),
        ("nomic-embed-text:latest", "ollama:nomic-embed-text", 1),
        ("openai/text-embedding-3-large", "openai:text-embedding-3-large", 2),
    ],
)
def test_bare_names(name: str, first: str, all_of: int) -> None:
    """A bare name is the provider's own name, the canonical one, or its last part, in that order."""
    found = catalog.named(name)

    assert found[0].id == first
    assert len(found) == all_of


def test_unknown_names() -> None:
    """What the catalog does not know it does not guess."""
    assert catalog.named("gpt-9-embed") == ()
    assert catalog.find("openai", "gpt-9-embed") is None
    assert catalog.serving("gpt-9-embed") == ()


def test_same_weights_elsewhere() -> None:
    """Everyone who serves the same weights is found; retired and unserved offers are not among them."""
    mini = [one.id for one in catalog.serving("sentence-transformers/all-MiniLM-L6-v2")]
    gemini = [one.id for one in catalog.serving("google/gemini-embedding-001")]

    assert mini[0] == "onnx:all-MiniLM-L6-v2"
    assert {"huggingface", "tei", "ollama"} <= {one.partition(":")[0] for one in mini}
    assert gemini == ["google:gemini-embedding-001"]
    assert catalog.serving("google/text-embedding-004") == ()


@pytest.mark.parametrize(
    ("provider", "name", "document", "query"),
    [
        ("tei", "nomic-ai/nomic-embed-text-v1.5", "search_document: ", "search_query: "),
        ("ollama", "nomic-embed-text", "search_document: ", "search_query: "),
        ("tei", "intfloat/multilingual-e5-large", "passage: ", "query: "),
        ("google", "gemini-embedding-2", "title: none | text: ", "task: search result | query: "),
        ("tei", "BAAI/bge-large-en-v1.5", None, "Represent this sentence for searching relevant passages: "),
        ("nomic", "nomic-embed-text-v1.5", None, None),
        ("cohere", "embed-v4.0", None, None),
        ("openai", "text-embedding-3-small", None, None),
    ],
)
def test_prefixes(provider: str, name: str, document: str | None, query: str | None) -> None:
    """Literal prefixes are those of the model's own convention, and none where a field says it."""
    model = catalog.find(provider, name)

    assert model is not None
    assert (model.prefixes.get("document"), model.prefixes.get("query")) == (document, query)


def test_retired_models_are_marked() -> None:
    """Models whose requests fail are still known, as retired."""
    retired = {one.id for one in MODELS if one.status == "retired"}

    assert retired == {
        "cohere:embed-english-v2.0",
        "cohere:embed-english-light-v2.0",
        "cohere:embed-multilingual-v2.0",
        "google:text-embedding-004",
    }


def test_prices() -> None:
    """Prices are exact, plausible, of known models, dated, and say where they come from."""
    known = {(one.provider, one.name) for one in MODELS}

    for price in PRICES:
        assert (price.provider, price.model) in known
        assert Decimal(0) < price.usd_per_million < Decimal(10)
        assert price.usd_per_million == round(price.usd_per_million, 9)
        assert price.source_ref
        assert price.valid_from in {datetime(2026, 11, day, tzinfo=UTC) for day in (21, 25)}


def test_price_confidence() -> None:
    """Two lists that agree confirm a price; what one list shows, or what was computed, says so."""
    found = {
        (one.provider, one.model, one.tier, one.region): (str(one.usd_per_million), one.confidence) for one in PRICES
    }

    assert found["openai", "text-embedding-3-small", "standard", "*"] == ("0.02", "confirmed")
    assert found["openai", "text-embedding-3-small", "batch", "*"][0] == "0.01"
    assert found["voyage", "voyage-4", "standard", "*"] == ("0.06", "observed_only")
    assert found["voyage", "voyage-4", "batch", "*"] == ("0.0402", "derived")
    assert found["azure", "text-embedding-3-large", "standard", "eu"][0] == "0.143"
    assert found["deepinfra", "intfloat/multilingual-e5-large", "standard", "*"] == ("0.01", "listed")


@pytest.mark.parametrize(
    ("provider", "discount"),
    [("openai", "0.5"), ("google", "0.5"), ("mistral", "0.5"), ("voyage", "0.33"), ("deepinfra", "0.2")],
)
def test_batch_prices(provider: str, discount: str) -> None:
    """Each model that a Batch API serves has a batch price there, its own provider's discount below the list price."""
    found = {(one.model, one.tier): one.usd_per_million for one in PRICES if one.provider == provider}
    served = [
        one.name for one in MODELS if one.provider == provider and one.batch is not False and one.status != "retired"
    ]

    priced = [name for name in served if (name, "standard") in found]

    assert PROVIDERS[provider].batch
    assert priced
    for name in priced:
        assert found[name, "batch"] == found[name, "standard"] * (1 - Decimal(discount))


def test_models_of_batches_say_where_that_is_known() -> None:
    """Whether a Batch API serves a model has a source, or is said to be unverified where its provider has one."""
    for one in MODELS:
        place = PROVIDERS.get(one.provider)
        if one.batch is not None:
            assert place is not None
            assert place.batch
            assert one.sources["batch"]
        elif place is not None and place.batch and one.status != "retired":
            assert "batch" in one.unverified, one.id


def test_one_price_at_a_time() -> None:
    """No two prices hold for the same thing from the same day."""
    keys = Counter((one.provider, one.model, one.region, one.tier, one.meter, one.valid_from) for one in PRICES)

    assert max(keys.values()) == 1


def test_free_providers_need_no_price() -> None:
    """A provider that is free has no price to be taken from anyone."""
    free = {name for name, place in PROVIDERS.items() if place.free}

    assert free == {"onnx", "static", "tei", "ollama"}
    assert not free & {one.provider for one in PRICES}


def test_costs_little_to_read() -> None:
    """Reading models and providers costs a few milliseconds of CPU, and imports no heavy library."""
    code = (
        "import time, sys, embedctl.records\n"
        "start = time.process_time()\n"
        "from embedctl.providers import catalog\n"
        "catalog.models()\n"
        "print(time.process_time() - start)\n"
        "heavy = {'numpy', 'httpx', 'pyarrow', 'duckdb', 'rich', 'typer', 'pydantic', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    best = min(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    )

    assert best < 0.06  # 0.015 on a quiet machine
