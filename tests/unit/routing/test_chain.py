"""Who is asked for a model: names, addresses, limits, spaces, and who may take over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedctl.errors import ConfigurationInvalid, NotAllowed, WrongUsage
from embedctl.records import Limits
from embedctl.routing import chain as chains
from embedctl.routing.endpoint import Endpoint
from tests.support.calling import KEY, SMALL, load


def first(folder: Path, config: str = "", env: dict[str, str] | None = None, **flags: Any) -> Endpoint:
    return chains.chain(load(folder, config, env, **flags)).first


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({}, "onnx:all-MiniLM-L6-v2"),
        ({"model": "all-MiniLM-L6-v2"}, "onnx:all-MiniLM-L6-v2"),
        ({"model": f"openai:{SMALL}"}, f"openai:{SMALL}"),
        ({"model": SMALL}, f"openai:{SMALL}"),
        ({"provider": "voyage"}, "voyage:voyage-4"),
        ({"provider": "ollama", "model": "nomic-embed-text:latest"}, "ollama:nomic-embed-text:latest"),
        ({"model": "ollama:nomic-embed-text:latest"}, "ollama:nomic-embed-text:latest"),
        ({"provider": "openai", "model": f"openai:{SMALL}"}, f"openai:{SMALL}"),
        ({"model": "openai:a-model-nobody-knows"}, "openai:a-model-nobody-knows"),
    ],
)
def test_names(tmp_path: Path, flags: dict[str, str], wanted: str) -> None:
    """A prefix counts only when it is a provider; a bare name is looked up; without a name it is the bundled one."""
    provider, model = chains.asked_for(load(tmp_path, **flags))

    assert f"{provider}:{model}" == wanted


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"provider": "opnai"}, "did you mean 'openai'"),
        ({"model": "text-embeding-3-small"}, "did you mean 'text-embedding-3-small'"),
        ({"model": f"openai:{SMALL}", "provider": "azure"}, "give one"),
        ({"provider": "local_api"}, "local_api:MODEL"),
    ],
)
def test_names_that_are_none(tmp_path: Path, flags: dict[str, str], said: str) -> None:
    """A wrong name ends with 2 and the nearest right one."""
    with pytest.raises(WrongUsage) as caught:
        chains.asked_for(load(tmp_path, **flags))

    assert said in (caught.value.hint or "")


def test_retired(tmp_path: Path) -> None:
    """A model that is served no more is refused before anything is sent."""
    with pytest.raises(ConfigurationInvalid, match="is retired"):
        first(tmp_path, model="google:text-embedding-004", env={"GOOGLE_API_KEY": KEY})


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_place_of_ones_own(tmp_path: Path) -> None:
    """A second place has its address, key, names on the wire and limits, and no price until told."""
    config = """
    [providers.eu]
    protocol = "azure"
    base_url = "https://example.openai.azure.com/"
    api_key_env = "EU_KEY"
    models = { "text-embedding-3-small" = "my-deployment" }
    requests_per_minute = 30
    max_items = 16
    options = { api_version = "2024-10-21" }
    """
    endpoint = first(tmp_path, config, {"EU_KEY": KEY}, model=f"eu:{SMALL}")

    assert endpoint.wire_model == "my-deployment"
    assert endpoint.canonical == "openai/text-embedding-3-small"
    assert endpoint.place.base_url == "https://example.openai.azure.com"
    assert endpoint.place.options["api_version"] == "2024-10-21"
    assert (endpoint.limits.items, endpoint.rate_limits.requests_per_minute) == (16, 30)
    assert endpoint.price_as is None
    assert endpoint.dimensions == 1536


def test_a_key_goes_to_its_own_provider(tmp_path: Path) -> None:
    """A place that names no key gets none, whatever keys the environment holds; addresses do not wander either."""
    config = '[providers.mine]\nprotocol = "openai"\nbase_url = "https://gpu.example/v1"'
    env = {"OPENAI_BASE_URL": "https://proxy.example/v1"}

    assert first(tmp_path, config, env, model="mine:x").place.api_key is None
    assert first(tmp_path, "", env, model=f"openai:{SMALL}").place.base_url == "https://proxy.example/v1"
    assert first(tmp_path, "", {**env, "TOGETHER_API_KEY": KEY}, provider="together").place.base_url == (
        "https://api.together.ai/v1"
    )


def test_an_address_to_fill_in(tmp_path: Path) -> None:
    """A built-in address with a place for one's own is not usable as it is."""
    with pytest.raises(ConfigurationInvalid, match="address of your own"):
        chains.check_usable(first(tmp_path, "", {"AZURE_API_KEY": KEY}, model=f"azure:{SMALL}"))


def test_atlas_keys(tmp_path: Path) -> None:
    """A Voyage key of MongoDB Atlas goes to Atlas, and only there."""
    endpoints = [
        first(tmp_path, "", {"VOYAGE_API_KEY": key}, provider="voyage") for key in ("al-0123456789", "pa-0123456789")
    ]

    urls = [
        endpoint.protocol.request(endpoint.place, endpoint.wire_model, ["a"], endpoint.wire).url
        for endpoint in endpoints
    ]

    assert urls == ["https://ai.mongodb.com/v1/embeddings", "https://api.voyageai.com/v1/embeddings"]


def test_flags_are_stronger(tmp_path: Path) -> None:
    """--rpm, --tpm win over the config; 0 lifts a limit."""
    config = "[providers.openai]\nrequests_per_minute = 30\ntokens_per_minute = 1000\n"

    endpoint = first(tmp_path, config, model=f"openai:{SMALL}", rpm=0, tpm=7)

    assert (endpoint.rate_limits.requests_per_minute, endpoint.rate_limits.tokens_per_minute) == (0, 7)


# ── what the vectors are ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prefix_or_a_field(tmp_path: Path) -> None:
    """The input type travels as a literal prefix or as a field, as the model was trained, and is part of the space."""
    env = {"DEEPINFRA_API_KEY": KEY, "VOYAGE_API_KEY": KEY}
    e5 = first(tmp_path, "", env, model="deepinfra:intfloat/multilingual-e5-large", input_type="query")
    voyage = first(tmp_path, "", env, model="voyage:voyage-4", input_type="query")
    plain = first(tmp_path, "", env, model=f"openai:{SMALL}", input_type="query")

    assert (e5.prefix, e5.wire.input_type) == ("query: ", None)
    assert (voyage.prefix, voyage.wire.input_type) == ("", "query")
    assert (plain.prefix, plain.wire.input_type, plain.input_type) == ("", None, None)
    spaces = {endpoint.space().space_id for endpoint in (e5, voyage, plain)}
    assert len(spaces) == 3


@pytest.mark.parametrize(
    ("model", "flags", "wanted"),
    [
        (f"openai:{SMALL}", {"dimensions": 256}, (256, 256, "native")),
        (f"openai:{SMALL}", {"dimensions": 1536}, (1536, None, "native")),
        ("mistral:mistral-embed", {"dimensions": 256, "force": True}, (256, None, "reduce")),
        ("mistral:mistral-embed", {"dimensions": 2048, "dimension_policy": "pad"}, (2048, None, "pad")),
        ("mistral:mistral-embed", {"dimensions": 256, "dimension_policy": "ignore"}, (1024, None, "ignore")),
        ("openai:nobody-knows", {"dimensions": 256}, (256, 256, "native")),
    ],
)
def test_dimensions(tmp_path: Path, model: str, flags: dict[str, Any], wanted: tuple[int, int | None, str]) -> None:
    """The provider is asked for a width when it makes it; else the policy decides, and is part of the space."""
    endpoint = first(tmp_path, "", {"MISTRAL_API_KEY": KEY}, model=model, **flags)

    assert (endpoint.dimensions, endpoint.wire.dimensions, endpoint.policy) == wanted


@pytest.mark.parametrize(
    "flags", [{"dimensions": 256}, {"dimensions": 2048}, {"dimensions": 256, "dimension_policy": "pad"}]
)
def test_dimensions_that_cannot_be_had(tmp_path: Path, flags: dict[str, Any]) -> None:
    """Cutting a model that was not trained for it, and widening without zeros, are refused."""
    with pytest.raises(WrongUsage):
        first(tmp_path, "", {"MISTRAL_API_KEY": KEY}, model="mistral:mistral-embed", **flags)


def test_limits_of_an_unknown_model(tmp_path: Path) -> None:
    """A model nobody knows has the protocol's limits, no width, no price of the catalog's model, and no space yet."""
    endpoint = first(tmp_path, model="openai:nobody-knows")

    assert endpoint.limits == Limits(items=2048, tokens=300_000)
    assert endpoint.space() is None
    assert endpoint.space(7).model == "openai:nobody-knows"


# ── who may take over ────────────────────────────────────────────────────────────────────────────────────────────────

TWO = f"""
[providers.second]
protocol = "openai"
base_url = "https://second.example/v1"
api_key_env = "SECOND_KEY"
[fallback]
openai = ["second:{SMALL}", "voyage", "onnx", "nobody"]
"""


def left_out(folder: Path, config: str, env: dict[str, str], **flags: Any) -> tuple[list[str], str]:
    chain = chains.chain(load(folder, config, env, model=f"openai:{SMALL}", **flags))
    return [endpoint.id for endpoint in chain.endpoints], "; ".join(map(str, chain.left_out))


def test_same_space(tmp_path: Path) -> None:
    """Only who serves the same weights may take over; each of the others is left out with its reason."""
    kept, why = left_out(tmp_path, TWO, {"SECOND_KEY": KEY})

    assert kept == [f"openai:{SMALL}", f"second:{SMALL}"]
    assert "voyage:voyage-4: another model" in why
    assert "nobody" in why


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ('protocol = "openai"', f"eu:{SMALL}"),  # the catalog of its protocol
        ('protocol = "azure"\nprice_as = "azure"', f"eu:{SMALL}"),
        (f'protocol = "azure"\nmodels = {{ "{SMALL}" = "a-deployment" }}', f"eu:{SMALL}"),
        ('protocol = "tei"', f"eu:{SMALL}"),  # a place of one's own that does not say
        ('protocol = "openai"\nmodel = "text-embedding-3-large"', f"eu:{SMALL}"),
        ('protocol = "azure"\nmodels = { "text-embedding-3-large" = "d" }', "eu:text-embedding-3-large"),
        ('protocol = "cohere"\nmodel = "embed-v4.0"', "eu:embed-v4.0"),
    ],
)
def test_an_entry_without_a_model(tmp_path: Path, place: str, wanted: str) -> None:
    """It means the model that was asked for, where that place serves it; elsewhere that place's default."""
    config = f'[providers.eu]\n{place}\nbase_url = "https://eu.example/v1"\n[fallback]\nopenai = ["eu"]\n'

    found = chains.chain(load(tmp_path, config, {}, model=f"openai:{SMALL}", fallback="any"))

    assert [endpoint.id for endpoint in found.endpoints] == [f"openai:{SMALL}", wanted]


@pytest.mark.parametrize(
    ("asked", "entry", "wanted"),
    [
        ("ollama:nomic-embed-text", "nomic", "nomic:nomic-embed-text-v1.5"),
        ("openai:text-embedding-3-large", "azure", "azure:text-embedding-3-large"),
        ("openai:text-embedding-3-small", "voyage", "voyage:voyage-4"),
        ("onnx:all-MiniLM-L6-v2", "huggingface", "huggingface:sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_a_built_in_entry_without_a_model(tmp_path: Path, asked: str, entry: str, wanted: str) -> None:
    """A built-in provider serves what the catalog says, under its own name for it."""
    env = {"NOMIC_API_KEY": KEY, "AZURE_OPENAI_API_KEY": KEY, "VOYAGE_API_KEY": KEY, "HF_TOKEN": KEY}
    env |= {"AZURE_OPENAI_ENDPOINT": "https://house.openai.azure.com", "EMBEDCTL_FALLBACK_CHAIN": entry}

    found = chains.chain(load(tmp_path, "", env, model=asked, fallback="any"))

    assert wanted in [endpoint.id for endpoint in found.endpoints]


def test_readmes_two_regions(tmp_path: Path) -> None:
    """README's example of two regions is a chain of two endpoints of one space, both with a price."""
    readme = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
    example = readme.partition("**Two regions of one model.**")[2].partition("```toml\n")[2].partition("```")[0]

    found = chains.chain(load(tmp_path, example, {"OPENAI_EU_KEY": KEY}, model=f"openai:{SMALL}"))

    assert [one.id for one in found.endpoints] == [f"openai:{SMALL}", f"eu:{SMALL}"]
    assert {one.price_as for one in found.endpoints} == {"openai"}
    assert len({str(one.space()) for one in found.endpoints}) == 1


def test_no_key_no_fallback(tmp_path: Path) -> None:
    """A place without its key is left out, not found out about in the middle of the night."""
    kept, why = left_out(tmp_path, TWO, {})

    assert kept == [f"openai:{SMALL}"]
    assert "SECOND_KEY is not set" in why


def test_any(tmp_path: Path) -> None:
    """With `any`, other models stand in the chain, in its order."""
    kept, _ = left_out(tmp_path, TWO, {"SECOND_KEY": KEY, "VOYAGE_API_KEY": KEY}, fallback="any")

    assert kept == [f"openai:{SMALL}", f"second:{SMALL}", "voyage:voyage-4", "onnx:all-MiniLM-L6-v2"]


def test_off(tmp_path: Path) -> None:
    """With `off` there is one."""
    assert left_out(tmp_path, TWO, {"SECOND_KEY": KEY}, fallback="off") == ([f"openai:{SMALL}"], "")


def test_the_chain_of_the_environment(tmp_path: Path) -> None:
    """EMBEDCTL_FALLBACK_CHAIN is stronger than the config's chain."""
    env = {"SECOND_KEY": KEY, "EMBEDCTL_FALLBACK_CHAIN": "onnx"}

    assert left_out(tmp_path, TWO, env, fallback="any")[0] == [f"openai:{SMALL}", "onnx:all-MiniLM-L6-v2"]


def test_lists(tmp_path: Path) -> None:
    """A list forbids the model asked for with its name, and takes forbidden ones out of the chain."""
    env = {"SECOND_KEY": KEY}
    kept, why = left_out(tmp_path, TWO + '[allow]\nproviders = ["openai"]\n', env)
    with pytest.raises(NotAllowed, match=r"\[allow\]"):
        left_out(tmp_path, TWO + '[allow]\nproviders = ["onnx"]\n', env)

    assert kept == [f"openai:{SMALL}"]
    assert "provider 'second' is not in providers of [allow]" in why
