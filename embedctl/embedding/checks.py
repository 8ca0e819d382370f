"""What every answer must be, whoever gave it; and how wide the vectors are that are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.errors import AnswerUnshaped, AnswerUnusable, SpaceMismatch
from embedctl.providers._contract import WireAnswer
from embedctl.routing.endpoint import Endpoint

_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class AnswerIdentity:
    """Who an answer says it comes from; None where it does not say."""

    model: str | None = None
    provider: str | None = None
    dimension_policy: str | None = None


def identity(wire: WireAnswer) -> AnswerIdentity:
    """Who speaks in an answer."""
    return AnswerIdentity(wire.response_model, wire.provider, wire.dimension_policy)


def checked(
    wire: WireAnswer, endpoint: Endpoint, count: int, dimensions: int | None, before: AnswerIdentity | None = None
) -> NDArray[np.float32]:
    """The vectors of an answer: in request order, as wide as the output, finite, none zero.

    Args:
        count: Texts of the request.
        dimensions: Width of the output; None while nobody knows it.
        before: Who spoke in this server's first answer; None when this is it.

    Returns:
        float32, shape (count, D), C order; row i belongs to text i.

    Raises:
        AnswerUnusable: Count, index, numbers or width are wrong; the work was done all the same.
        SpaceMismatch: The answer is of another model than asked for, or the first one is of another width.
    """
    try:
        _check_model(wire, endpoint, before)
        _check_count(wire.vectors, endpoint, count)
        vectors = _in_order(wire.vectors, wire.index)
        _check_numbers(vectors, endpoint)
        vectors = _wide(vectors, endpoint)
        _check_width(vectors.shape[1], endpoint, dimensions, before)
    except (AnswerUnusable, SpaceMismatch) as error:
        error.tokens_native = wire.tokens
        raise
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _check_count(vectors: NDArray[np.float32], endpoint: Endpoint, count: int) -> None:
    if vectors.ndim != 2 or len(vectors) != count:
        raise AnswerUnusable(f"asked {endpoint.provider} for {count} vectors, got {len(vectors)}")


def _check_width(width: int, endpoint: Endpoint, dimensions: int | None, before: AnswerIdentity | None) -> None:
    """The first answer's width is the server's; a later one's may be a slip, once."""
    wanted = dimensions or endpoint.dimensions
    if wanted is not None and width != wanted:
        error = SpaceMismatch if before is None else AnswerUnshaped
        raise error(
            f"{endpoint.id} answers with {width} dimensions instead of {wanted}",
            hint="vectors of different widths are never mixed; is it the model that was asked for?",
        )


def _check_model(wire: WireAnswer, endpoint: Endpoint, before: AnswerIdentity | None) -> None:
    """A gateway that answers from another model than asked for says so in the answer, sooner or later."""
    said = wire.response_model
    strict = endpoint.entry is not None and not _is_own_server(endpoint)
    if wire.fallback_from is not None or (said and strict):
        if not said or not _means(said, wire, endpoint):
            who = f" from {wire.provider}, which took over for {wire.fallback_from}" if wire.fallback_from else ""
            raise SpaceMismatch(
                f"asked {endpoint.provider} for {endpoint.wire_model}, got {said or 'a model it does not name'}{who}",
                hint="nothing of it was written: vectors of two models are never mixed",
            )
    elif before is not None and said and before.model and not _alike(said, before.model):
        raise SpaceMismatch(
            f"{endpoint.provider} answered from {before.model} before, and from {said} now",
            hint="nothing of it was written: vectors of two models are never mixed",
        )
    if before is not None and wire.dimension_policy != before.dimension_policy:
        raise SpaceMismatch(
            f"{endpoint.provider} reached the width by {before.dimension_policy or 'itself'} before, "
            f"and by {wire.dimension_policy or 'itself'} now"
        )


def another_model(wire: WireAnswer, endpoint: Endpoint) -> str | None:
    """The model that a good answer says it comes from, where that is another name than any that was asked for."""
    said = wire.response_model
    return said if said and not _means(said, wire, endpoint) else None


def _is_own_server(endpoint: Endpoint) -> bool:
    """Servers of one's own call their one model what they like (facts/providers.md 10, 12)."""
    return endpoint.place.base_url.startswith(("http://", "https://127.", "https://localhost"))


def _means(said: str, wire: WireAnswer, endpoint: Endpoint) -> bool:
    known = {endpoint.wire_model, endpoint.model, endpoint.canonical}
    if endpoint.entry:
        known.add(endpoint.entry.name)
    name = _bare(said)
    name = name.removeprefix(f"{wire.provider}:".casefold()) if wire.provider else name
    return any(_alike(name, one) for one in known)


def _alike(one: str, other: str) -> bool:
    """The same name but for an owner before it or a version behind it."""
    one, other = _bare(one), _bare(other)
    return one.startswith(other) or other.startswith(one) or one.endswith(f":{other}")


def _bare(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(":latest").casefold()


def _in_order(vectors: NDArray[np.float32], index: Sequence[int] | None) -> NDArray[np.float32]:
    wanted = list(range(len(vectors)))
    if index is None or list(index) == wanted:
        return vectors
    if sorted(index) != wanted:  # as Python's integers: an answer's may be larger than numpy's
        raise AnswerUnshaped(f"the answer's indexes are not 0 to {len(vectors) - 1}, each once")
    ordered = np.empty_like(vectors)
    ordered[list(index)] = vectors
    return ordered


def _check_numbers(vectors: NDArray[np.float32], endpoint: Endpoint) -> None:
    """One pass: the squared length of a row is NaN or infinite when one of its numbers is."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if len(squares) and squares.min() > 0 and squares.max() < np.inf:  # neither holds with a NaN among them
        return
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise AnswerUnusable(f"vector {bad[0]} from {endpoint.provider} contains NaN or infinity")
    zero = np.flatnonzero(squares == 0)
    if len(zero):
        raise AnswerUnusable(f"vector {zero[0]} of {endpoint.provider} is all zeros")


def _wide(vectors: NDArray[np.float32], endpoint: Endpoint) -> NDArray[np.float32]:
    """Vectors as wide as the space says: cut and renormalised, padded, or as they are."""
    wanted, width = endpoint.dimensions, vectors.shape[1]
    if endpoint.policy == "reduce" and wanted is not None and width > wanted:
        return _unit(vectors[:, :wanted])
    if endpoint.policy == "pad" and wanted is not None and width < wanted:
        padded = np.zeros((len(vectors), wanted), np.float32)
        padded[:, :width] = vectors
        return padded
    if endpoint.normalise:
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
