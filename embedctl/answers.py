"""What every answer must be, whoever gave it; and how wide the vectors are that are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedctl.errors import AnswerUnusable, SpaceMismatch
from embedctl.providers._contract import WireAnswer
from embedctl.serving import Offer

_UNIT_TOLERANCE = 1e-3


def checked(wire: WireAnswer, offer: Offer, count: int, dimensions: int | None) -> NDArray[np.float32]:
    """The vectors of an answer: in request order, as wide as the output, finite, none zero.

    Args:
        count: Texts of the request.
        dimensions: Width of the output; None while nobody knows it.

    Returns:
        float32, shape (count, D), C order; row i belongs to text i.

    Raises:
        AnswerUnusable: Count, index, numbers or widths are wrong; the work was done all the same.
        SpaceMismatch: The answer is of another model or width than asked for.
    """
    vectors = wire.vectors
    if vectors.ndim != 2 or len(vectors) != count:
        raise AnswerUnusable(f"asked {offer.provider} for {count} vectors, got {len(vectors)}")
    _check_model(wire, offer)
    vectors = _in_order(vectors, wire.index)
    _check_numbers(vectors, offer)
    vectors = _wide(vectors, offer)
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise SpaceMismatch(
            f"{offer.id} answers with {vectors.shape[1]} dimensions, the output has {dimensions}",
            hint="vectors of different spaces are never mixed; use another output",
        )
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _check_model(wire: WireAnswer, offer: Offer) -> None:
    """A gateway that answers from another model than asked for does so in the answer's words."""
    said = wire.response_model
    if not said:
        return
    known = {offer.wire_model, offer.model, offer.canonical}
    if offer.entry:
        known.add(offer.entry.name)
    bare = {name.rpartition("/")[2].removesuffix(":latest").casefold() for name in known}
    name = said.rpartition("/")[2].removesuffix(":latest").casefold()
    name = name.removeprefix(f"{wire.provider}:".casefold()) if wire.provider else name
    if any(name == one or name.startswith(one) or one.startswith(name) or name.endswith(f":{one}") for one in bare):
        return
    if offer.entry is None or offer.place.base_url.startswith(("http://", "https://127.", "https://localhost")):
        return  # servers of one's own call their one model what they like (facts/providers.md 10, 12)
    raise SpaceMismatch(
        f"asked {offer.provider} for {offer.wire_model}, got {said}",
        hint="the provider answers from another model; nothing of it was written",
    )


def _in_order(vectors: NDArray[np.float32], index: Sequence[int] | None) -> NDArray[np.float32]:
    if index is None:
        return vectors
    places = np.asarray(index, dtype=np.int64)
    if len(places) != len(vectors) or not np.array_equal(np.sort(places), np.arange(len(vectors))):
        raise AnswerUnusable(f"the answer's indexes are not 0 to {len(vectors) - 1}, each once")
    if np.array_equal(places, np.arange(len(vectors))):
        return vectors
    ordered = np.empty_like(vectors)
    ordered[places] = vectors
    return ordered


def _check_numbers(vectors: NDArray[np.float32], offer: Offer) -> None:
    """One pass: the squared length of a row is NaN or infinite when one of its numbers is."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise AnswerUnusable(f"vector {bad[0]} of {offer.provider} holds numbers that are none")
    zero = np.flatnonzero(squares == 0)
    if len(zero):
        raise AnswerUnusable(f"vector {zero[0]} of {offer.provider} is all zeros")


def _wide(vectors: NDArray[np.float32], offer: Offer) -> NDArray[np.float32]:
    """Vectors as wide as the space says: cut and renormalised, padded, or as they are."""
    wanted, width = offer.dimensions, vectors.shape[1]
    if offer.policy == "reduce" and wanted is not None and width > wanted:
        return _unit(vectors[:, :wanted])
    if offer.policy == "pad" and wanted is not None and width < wanted:
        padded = np.zeros((len(vectors), wanted), np.float32)
        padded[:, :width] = vectors
        return padded
    if offer.normalise:
        return _unit(vectors)
    return vectors


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise AnswerUnusable("a vector is all zeros after it was cut")
    return np.asarray(vectors / lengths, dtype=np.float32)


def alike(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The least cosine between vectors of the same texts; 0 when the widths differ."""
    if ours.shape != theirs.shape:
        return 0.0
    products = np.einsum("ij,ij->i", _unit(ours), _unit(theirs))
    return float(products.min())
