"""Every promise of the call point over every protocol, against the wire server in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedctl.settings import Settings
from tests.contract.providers.test_contract import CASES as CONTRACT
from tests.support import calling
from tests.support.wire.client import Wire, expected, hash_of, started

CASES = list(CONTRACT)
LISTED = [name for name, case in CONTRACT.items() if case.listed]
PACKED = ["openai", "azure", "voyage", "mistral", "jina", "tldw"]
TEXTS = [f"text number {i} of some that are sent together" for i in range(8)]
JSON = """
path = "/make"
body = { documents = "{texts}", model_name = "{model}", width = "{dimensions}" }
each = { body = "{text}" }
vectors = "result.items[].vec"
index = "result.items[].n"
ids = "result.call"
tokens = "spent.tokens"
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.reset()
    return server


def configured(wire: Wire, name: str, folder: Path) -> Settings:
    """A place of one's own that speaks this protocol."""
    protocol = name.partition("-")[0]
    config = f"""
    [providers.mine]
    protocol = "{protocol}"
    base_url = "{wire.base_url(protocol)}"
    api_key_env = "MY_KEY"
    {JSON if protocol == "json" else ""}
    """
    env = {"MY_KEY": calling.KEY}
    return calling.load(folder, config, env, model=f"mine:{CONTRACT[name].model}", fallback="off")


def texts_of(name: str) -> list[str]:
    return TEXTS[:1] if name == "bedrock" else TEXTS


@pytest.mark.parametrize("name", CASES)
def test_vectors_in_order(wire: Wire, name: str, tmp_path: Path) -> None:
    """vectors[i] belongs to texts[i], in the journal as in the answer; tokens are what the server bills."""
    texts = texts_of(name)

    done = calling.embed(configured(wire, name, tmp_path), [texts], tmp_path)

    assert done.error is None
    wanted = expected(texts, CONTRACT[name].model)
    np.testing.assert_allclose(np.array(done.vectors[0]), wanted, rtol=0, atol=1e-6)
    (truth,) = wire.truth()
    (event,) = done.events
    assert truth["text_hashes"] == [hash_of(text) for text in texts]
    assert (event.status, event.billable, event.tokens_total) == ("ok", "yes", truth["tokens_billed"])
    assert event.usage_source == "native"


@pytest.mark.parametrize("name", LISTED)
def test_shuffled(wire: Wire, name: str, tmp_path: Path) -> None:
    """Vectors that arrive in another order are put where their index says."""
    wire.plan(script=["shuffled"])

    done = calling.embed(configured(wire, name, tmp_path), [TEXTS], tmp_path)

    np.testing.assert_allclose(np.array(done.vectors[0]), expected(TEXTS, CONTRACT[name].model), rtol=0, atol=1e-6)


def spoils(name: str) -> list[str]:
    """Faults after which an answer of this protocol cannot be used."""
    found = ["count", "extra", "empty", "nan", "null", "zero", "width", "truncated", "html", "error_200"]
    found += ["duplicate"] if CONTRACT[name].listed else []
    found += ["base64_length"] if name in PACKED else []
    if name == "bedrock":  # one text, one vector: nothing to miscount
        found = [one for one in found if one not in ("count", "extra", "empty")]
    return found


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in CASES for fault in spoils(name)])
def test_unusable_once(wire: Wire, name: str, fault: str, tmp_path: Path) -> None:
    """An answer that cannot be used is billed, written nowhere, and asked for again."""
    first = "ok" if fault == "width" else fault  # the width is known from the first answer on
    wire.plan(script=[first, fault] if fault == "width" else [fault])
    texts = texts_of(name)

    done = calling.embed(configured(wire, name, tmp_path), [texts, texts] if fault == "width" else [texts], tmp_path)

    assert done.error is None
    np.testing.assert_allclose(np.array(done.vectors[-1]), expected(texts, CONTRACT[name].model), rtol=0, atol=1e-6)
    spoilt = done.events[-2]
    assert (spoilt.status, spoilt.billable, spoilt.error_class) == ("error", "yes", "answer_unusable")
    assert spoilt.tokens_total > 0
    assert len(wire.truth()) == len(done.events)


@pytest.mark.parametrize("name", CASES)
def test_unusable_for_ever(wire: Wire, name: str, tmp_path: Path) -> None:
    """Answers that stay unusable end the run with 76, and fail no row."""
    wire.plan(faults={"truncated": 1.0})

    done = calling.embed(configured(wire, name, tmp_path), [texts_of(name)], tmp_path)

    assert done.error is not None
    assert done.error.exit_code == 76
    assert done.vectors == [[]]
    assert len(wire.truth()) == len(done.events) < 12


def final(name: str) -> list[str]:
    """Refusals that no further request will change; TEI knows neither quotas nor other models."""
    return ["unauthorized"] if name in ("tei", "huggingface") else ["unauthorized", "not_found", "quota"]


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in CASES for fault in final(name)])
def test_one_request_is_enough(wire: Wire, name: str, fault: str, tmp_path: Path) -> None:
    """A rejected key (77), an unknown model (78) and a used-up quota (69) are found out with one request."""
    wire.plan(faults={fault: 1.0})

    done = calling.embed(configured(wire, name, tmp_path), [texts_of(name)] * 3, tmp_path)

    assert done.error is not None
    assert done.error.exit_code == {"unauthorized": 77, "not_found": 78, "quota": 69}[fault]
    assert len(wire.truth()) == len(done.events) == 1


@pytest.mark.parametrize("name", [name for name in CASES if name != "bedrock"])
def test_poison(wire: Wire, name: str, tmp_path: Path) -> None:
    """One text that the server refuses is named, and every neighbour is embedded."""
    wire.plan(poison=[TEXTS[5]])

    done = calling.embed(configured(wire, name, tmp_path), [TEXTS], tmp_path)

    assert done.error is None
    assert [(text, reason) for _, text, reason in done.refusals] == [(5, "text_refused")]
    assert sum(vector is not None for vector in done.vectors[0]) == 7
    assert len(wire.truth()) == len(done.events) <= 2 * 3 + 1 + 2  # and a text that is known to be good
