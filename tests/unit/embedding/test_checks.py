"""What every answer must be: count, order, numbers, width, model; and how wide the vectors are that are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from embedctl.embedding import checks
from embedctl.embedding.checks import AnswerIdentity
from embedctl.errors import AnswerUnshaped, AnswerUnusable, SpaceMismatch
from embedctl.providers._contract import WireAnswer
from embedctl.routing import chain
from embedctl.routing.endpoint import Endpoint
from tests.support import calling

MODEL = "text-embedding-3-small"


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return replace(chain.chain(calling.load(tmp_path, model=f"openai:{MODEL}", fallback="off")).first, dimensions=4)


def rows(count: int = 3, width: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, width), dtype=np.float32)


def checked(endpoint: Endpoint, vectors: Any = None, count: int = 3, **said: Any) -> NDArray[np.float32]:
    before = said.pop("before", None)
    dimensions = said.pop("output", None)
    wire = WireAnswer(vectors=rows() if vectors is None else vectors, **said)
    return checks.checked(wire, endpoint, count, dimensions, before)


def test_a_good_answer_is_kept_as_it_is(endpoint: Endpoint) -> None:
    """Vectors without an index stay in their order, bit for bit, contiguous, float32."""
    found = checked(endpoint)

    np.testing.assert_array_equal(found, rows())
    assert found.flags.c_contiguous
    assert found.dtype == np.float32


@given(st.permutations(range(6)))
def test_any_order_is_put_right(order: list[int]) -> None:
    """Whatever permutation an answer comes in, vector i ends at text i."""
    vectors = rows(6)
    found = checks._in_order(vectors[order], order)

    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize(
    "index", [[0, 1, 1], [0, 1], [0, 1, 3], [-1, 0, 1], [1, 2, 3], [0, 1, 10**23], [2**63, 0, 1], [-(10**30), 1, 2]]
)
def test_indexes_that_are_none(endpoint: Endpoint, index: list[int]) -> None:
    """Duplicate, missing and foreign indexes are refused: nothing is guessed."""
    with pytest.raises(AnswerUnusable, match="indexes"):
        checked(endpoint, index=index)


@pytest.mark.parametrize("count", [2, 4])
def test_counts(endpoint: Endpoint, count: int) -> None:
    """One vector more or less than texts, and the whole answer is refused."""
    with pytest.raises(AnswerUnusable, match=f"asked openai for {count} vectors, got 3"):
        checked(endpoint, count=count)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(endpoint: Endpoint, value: float) -> None:
    """One NaN or infinity anywhere, and the answer is refused."""
    vectors = rows()
    vectors[2, 1] = value

    with pytest.raises(AnswerUnusable, match="vector 2"):
        checked(endpoint, vectors)


def test_a_zero_vector(endpoint: Endpoint) -> None:
    """A vector of zeros is near to nothing: refused."""
    vectors = rows()
    vectors[1] = 0

    with pytest.raises(AnswerUnusable, match="all zeros"):
        checked(endpoint, vectors)


def test_tokens_of_a_refused_answer(endpoint: Endpoint) -> None:
    """An answer that is refused was counted all the same."""
    with pytest.raises(AnswerUnusable) as caught:
        checked(endpoint, count=9, tokens=41)

    assert caught.value.tokens_native == 41


@pytest.mark.parametrize(("known", "output"), [(5, None), (None, 5), (4, 5)])
def test_widths(endpoint: Endpoint, known: int | None, output: int | None) -> None:
    """Another width than the model's, or than the output's, is another space at first, and may be a slip later."""
    narrow = replace(endpoint, dimensions=known)

    with pytest.raises(SpaceMismatch, match="4 dimensions instead of 5"):
        checked(narrow, output=output)
    with pytest.raises(AnswerUnshaped, match="4 dimensions instead of 5"):
        checked(narrow, output=output, before=AnswerIdentity())


def test_reduce(endpoint: Endpoint) -> None:
    """`reduce` cuts and divides by the length that is left."""
    found = checked(replace(endpoint, dimensions=2, policy="reduce"))

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 0] / found[:, 1], rows()[:, 0] / rows()[:, 1], rtol=1e-5)


def test_pad(endpoint: Endpoint) -> None:
    """`pad` adds zeros, and leaves the rest."""
    found = checked(replace(endpoint, dimensions=6, policy="pad"))

    np.testing.assert_array_equal(found[:, :4], rows())
    assert not found[:, 4:].any()


def test_normalise(endpoint: Endpoint) -> None:
    """Vectors of a model that does not arrive with length 1 are divided by their length."""
    found = checked(replace(endpoint, normalise=True))

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("said", [MODEL, f"openai/{MODEL}", f"{MODEL}-2", "TEXT-embedding-3-small", None])
def test_names_of_the_same_model(endpoint: Endpoint, said: str | None) -> None:
    """An owner before it, a version behind it, and other capitals are the same model."""
    assert checked(endpoint, response_model=said) is not None


def test_another_model(endpoint: Endpoint) -> None:
    """A vendor that answers from another model than asked for is refused."""
    with pytest.raises(SpaceMismatch, match="got text-embedding-ada-002"):
        checked(endpoint, response_model="text-embedding-ada-002")


def test_a_server_of_ones_own_is_free_in_its_names(endpoint: Endpoint) -> None:
    """llama.cpp calls its one model what it likes, but stays with it."""
    own = replace(endpoint, place=replace(endpoint.place, base_url="http://127.0.0.1:8080/v1"))

    assert checked(own, response_model="gpt-3.5-turbo") is not None
    assert checked(own, response_model="gpt-3.5-turbo", before=AnswerIdentity("gpt-3.5-turbo")) is not None
    with pytest.raises(SpaceMismatch, match=r"gpt-3\.5-turbo before, and from bert now"):
        checked(own, response_model="bert", before=AnswerIdentity("gpt-3.5-turbo"))


@pytest.mark.parametrize("model", ["sentence-transformers/all-MiniLM-L6-v2", None])
def test_a_gateway_that_fell_back(endpoint: Endpoint, model: str | None) -> None:
    """A gateway that answers from another provider must name the model that was asked for."""
    own = replace(endpoint, place=replace(endpoint.place, base_url="http://127.0.0.1:8000/api/v1"))
    said = {"fallback_from": "openai", "provider": "huggingface"}

    assert checked(own, response_model=f"huggingface:{MODEL}", **said) is not None
    with pytest.raises(SpaceMismatch, match="took over for openai"):
        checked(own, response_model=model, **said)


def test_a_gateway_that_changes_how_it_cuts(endpoint: Endpoint) -> None:
    """The width reached in another way than before is another space."""
    with pytest.raises(SpaceMismatch, match="by pad before, and by reduce now"):
        checked(endpoint, dimension_policy="reduce", before=AnswerIdentity(None, None, "pad"))


NAMES = st.none() | st.sampled_from([MODEL, f"openai/{MODEL}", "", ":", "/", "x" * 200]) | st.text(max_size=20)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vectors=arrays.arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(0, 5)), elements=st.floats(width=32, allow_subnormal=True)
    ),
    index=st.none() | st.lists(st.integers(-1, 5) | st.integers(), max_size=5),
    said=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("response_model", "provider", "fallback_from", "dimension_policy"), NAMES)
    ),
    policy=st.sampled_from(["native", "reduce", "pad", "ignore"]),
    wanted=st.none() | st.integers(1, 6),
)
def test_any_answer(
    endpoint: Endpoint, vectors: Any, index: Any, said: dict[str, Any], policy: Any, wanted: int | None
) -> None:
    """Whatever an answer holds, it is kept finite, in order and as wide as wanted, or refused; nothing else happens."""
    asked = replace(endpoint, dimensions=wanted, policy=policy, normalise=policy == "ignore")
    try:
        found = checked(asked, vectors, index=index, **said)
    except (AnswerUnusable, SpaceMismatch):
        return

    assert found.shape == (3, wanted or vectors.shape[1])
    assert np.isfinite(found).all()
    assert (found != 0).any(axis=1).all()


def test_alike() -> None:
    """The least cosine of a pair decides; vectors of two widths are not alike."""
    ours = rows()
    theirs = ours.copy()
    theirs[2] = -theirs[2]

    assert checks.alike(ours, ours * 3) == pytest.approx(1)
    assert checks.alike(ours, theirs) == pytest.approx(-1)
    assert checks.alike(ours, rows(3, 5)) == 0
