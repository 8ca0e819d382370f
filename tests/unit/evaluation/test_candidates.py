"""At which widths a model is looked at, and which variants no other beats."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.evaluation.candidates import trained_widths
from embedctl.evaluation.comparison import is_pareto_best
from embedctl.providers import catalog


@pytest.mark.parametrize(
    ("model", "native", "widths"),
    [
        ("openai:text-embedding-3-small", 1536, [1024, 512, 256]),
        ("openai:text-embedding-3-large", 3072, [2048, 1024, 512]),
        ("voyage:voyage-4", 1024, [512, 256]),
        ("cohere:embed-v4.0", 1536, [1024, 512, 256]),
        ("openai:text-embedding-ada-002", 1536, []),
        ("onnx:all-MiniLM-L6-v2", 384, []),
    ],
)
def test_widths_are_those_a_model_was_trained_for(model: str, native: int, widths: list[int]) -> None:
    """Those that the catalog lists, or, where a model makes any, a few down to an eighth; none for other models."""
    entry = catalog.find(*model.split(":"))

    assert trained_widths(entry, native) == widths
    assert trained_widths(None, native) == []


def variant(mrr: float, cost: str | None, size: int) -> Any:
    quality = SimpleNamespace(mean=lambda name: mrr)
    return SimpleNamespace(quality=quality, expected=SimpleNamespace(cost=cost and Decimal(cost)), bytes=size)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([None, "0", "1.5", "2"]), st.sampled_from([10, 20, 40])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_pareto_best_is_beaten_by_none(found: list[tuple[float, str | None, int]]) -> None:
    """A variant is Pareto-best when none is as good in MRR, cost and bytes and better in one; else not."""
    variants = [variant(*one) for one in found]
    for one, (mrr, cost, size) in zip(variants, found, strict=True):
        beaten = any(
            theirs is not None and cost is not None
            and (m >= mrr and Decimal(theirs) <= Decimal(cost) and s <= size)
            and (m > mrr or Decimal(theirs) < Decimal(cost) or s < size)
            for m, theirs, s in found
        )  # fmt: skip

        assert is_pareto_best(one, variants) is (None if cost is None else not beaten)
