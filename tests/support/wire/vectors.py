"""The vector of a text: of length 1, from the text's hash, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

WIDTHS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "embed-v4.0": 1536,
    "embed-english-v3.0": 1024,
    "embed-multilingual-v3.0": 1024,
    "voyage-4": 1024,
    "voyage-4-lite": 1024,
    "gemini-embedding-001": 3072,
    "gemini-embedding-2": 3072,
    "mistral-embed": 1024,
    "codestral-embed": 1536,
    "jina-embeddings-v3": 1024,
    "all-minilm": 384,
    "all-MiniLM-L6-v2": 384,
    "all-mpnet-base-v2": 768,
    "nomic-embed-text": 768,
    "nomic-embed-text-v1.5": 768,
    "bge-large-en-v1.5": 1024,
    "bge-m3": 1024,
    "multilingual-e5-large": 1024,
    "amazon.titan-embed-text-v2:0": 1024,
    "cohere.embed-english-v3": 1024,
}
OTHER_WIDTH = 16


def width(model: str) -> int:
    """A known model's real width, 16 for any other."""
    return WIDTHS.get(model) or WIDTHS.get(model.rpartition("/")[2]) or OTHER_WIDTH


def vector(text: str, native: int, dimensions: int | None = None, space: str = "") -> np.ndarray:
    """float32, shape (dimensions,), length 1; narrower ones are the first numbers, scaled again.

    Args:
        native: The model's own width.
        space: Another space gives another vector for the same text.
    """
    seed = blake2b(f"{space}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    numbers = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
    wide = numbers.standard_normal(native, dtype=np.float32)
    cut = wide[: dimensions or native]
    return (cut / np.linalg.norm(cut)).astype(np.float32)


def matrix(texts: Sequence[str], native: int, dimensions: int | None = None, space: str = "") -> np.ndarray:
    """One vector per text, float32, shape (n, dimensions)."""
    return np.stack([vector(text, native, dimensions, space) for text in texts])


def tokens_text(tokens: Sequence[int]) -> str:
    """What stands for a token array where a text is hashed."""
    return "tokens:" + ",".join(map(str, tokens))


def billed(text: str | Sequence[int]) -> int:
    """What the server bills: words and one more; a token array's length."""
    return len(text.split()) + 1 if isinstance(text, str) else len(text)
