"""The table of a static model: a vector per token, or per group of tokens. The only door to safetensors.

Source: model2vec 0.10.0, `model.py`: `embeddings[mapping[token]] * weights[token]` (2026-11-26).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid

_FLOATS = ("F64", "F32", "F16")
_INTEGERS = ("I64", "I32", "I16", "U64", "U32", "U16", "U8")
_SHAPES = {"embeddings": (2, (*_FLOATS, "I8")), "weights": (1, _FLOATS), "mapping": (1, _INTEGERS)}
"""Dimensions and types of what a file may hold."""

_MOST_DIMENSIONS = 65_536
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class VectorTable:
    """Vectors of tokens.

    Attributes:
        rows: float32, float16 or int8, shape (n, D): a vector per token, or what `mapping` leads to.
        weights: float32, per token; None: all count the same.
        mapping: int64, token → its row; None: it is its row.
    """

    rows: NDArray[Any]
    weights: NDArray[np.float32] | None
    mapping: NDArray[np.int64] | None

    @property
    def tokens(self) -> int:
        """Tokens are smaller than this."""
        own = [len(part) for part in (self.mapping, self.weights) if part is not None]
        return min([*own, *([len(self.rows)] if self.mapping is None else [])])

    def mean(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """The mean of the vectors of one text's tokens, in float32; summed token by token, whatever else is asked for.

        Args:
            tokens: At least one, all smaller than `tokens`.
        """
        found = self.rows.take(tokens if self.mapping is None else self.mapping[tokens], axis=0)
        if self.weights is not None:
            found = found.astype(np.float32) * self.weights[tokens][:, None]
        total: NDArray[np.float32] = np.add.reduce(found, axis=0, dtype=np.float32)
        return total / np.float32(len(tokens))


def shape(path: Path) -> tuple[int, int]:
    """Rows and width of the table in a file; only its header is read.

    Raises:
        ConfigurationInvalid: It holds no such table.
    """
    with _opened(path) as file:
        return _shape(path, file)


def load(path: Path) -> VectorTable:
    """The table of a file.

    Raises:
        ConfigurationInvalid: It holds none, or one that cannot be: NaN, or a mapping to rows that are not there.
    """
    with _opened(path) as file:
        rows, _ = _shape(path, file)
        names = set(file.keys())
        table = file.get_tensor("embeddings")
        weights = file.get_tensor("weights").astype(np.float32) if "weights" in names else None
        mapping = file.get_tensor("mapping").astype(np.int64) if "mapping" in names else None
    if table.dtype == np.float64:
        table = table.astype(np.float32)
    if not (_is_finite(table) and (weights is None or _is_finite(weights))):
        raise ConfigurationInvalid(f"{path} contains NaN or infinity")
    if mapping is not None and (not len(mapping) or mapping.min() < 0 or mapping.max() >= rows):
        raise ConfigurationInvalid(f"{path} maps tokens to rows that it does not hold: there are {rows}")
    return VectorTable(table, weights, mapping)


def _shape(path: Path, file: Any) -> tuple[int, int]:
    names = set(file.keys())
    if "embeddings" not in names or names - _SHAPES.keys():
        raise ConfigurationInvalid(
            f"{path} holds no table of vectors alone, but {', '.join(sorted(names)[:3]) or 'nothing'}",
            hint="a static model is what model2vec saves: `embeddings`, and perhaps `weights` and `mapping`",
        )
    for name in names:
        part = file.get_slice(name)
        dimensions, types = _SHAPES[name]
        if len(part.get_shape()) != dimensions or part.get_dtype() not in types:
            raise ConfigurationInvalid(
                f"{path}: {name} is {part.get_dtype()} of {len(part.get_shape())} dimensions, "
                f"not {' or '.join(types)} of {dimensions}"
            )
    rows, width = file.get_slice("embeddings").get_shape()
    if not (rows and 0 < width <= _MOST_DIMENSIONS):
        raise ConfigurationInvalid(f"{path} holds {rows:,} vectors of {width:,} dimensions")
    return rows, width


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as problem:
        raise ConfigurationInvalid(f"{path} is no safetensors file: {problem}") from None
    with file as opened:
        yield opened


def _is_finite(values: NDArray[Any]) -> bool:
    if values.dtype.kind != "f":
        return True
    return all(np.isfinite(values[at : at + _ROWS_AT_ONCE]).all() for at in range(0, len(values), _ROWS_AT_ONCE))
