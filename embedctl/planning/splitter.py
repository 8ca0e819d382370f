"""Step 2. Rows → chunks, at the borders of headings, paragraphs, sentences, words, in this order. Pure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

DEFAULT_SIZE = 1000
DEFAULT_OVERLAP = 200

Measure: TypeAlias = Callable[[str], int] | Any
"""Tokens of a text: a function, or a tokenizers.Tokenizer without padding and truncation, which counts no
special tokens here."""

_MARKDOWN = frozenset({".md", ".markdown", ".mdx"})


@dataclass(frozen=True, slots=True)
class Splitter:
    """A measure and a size, made once for many texts."""

    size: int
    measure: Measure
    _inner: TextSplitter | MarkdownSplitter


def is_markdown(name: str) -> bool:
    """Whether a file's name says so."""
    return PurePath(name.lower().removesuffix(".gz")).suffix in _MARKDOWN


def capacity(size: int, overlap: int, max_tokens: int | None) -> tuple[int, int]:
    """Chunk size and overlap in tokens that a model can take; both shrink in proportion.

    Args:
        size: Asked for.
        overlap: Of neighbours, asked for; less than `size`.
        max_tokens: The model's limit less its special tokens, None when unknown.

    Raises:
        WrongUsage: A size of nothing, or an overlap as large as the size.
    """
    if size < 1 or not 0 <= overlap < size:
        raise WrongUsage(
            f"chunks of {size} tokens that share {overlap} are not possible",
            hint="--chunk-overlap must be less than --chunk-size, and neither negative",
        )
    if max_tokens is None or max_tokens >= size:
        return size, overlap
    fitting = max(1, max_tokens)
    return fitting, overlap * fitting // size


def splitter(measure: Measure, size: int, overlap: int = 0, *, markdown: bool = False) -> Splitter:
    """Prepare to cut texts into chunks of at most `size` tokens of which neighbours share up to `overlap`.

    Making one of a Tokenizer takes some 30 ms and of a function none. Speed, over MiniLM's tokenizer: 0.2 to 0.5 MB
    of Markdown a second, most of it counting tokens; over tiktoken: 0.8 to 1.6.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = MarkdownSplitter if markdown else TextSplitter
    if callable(measure):
        return Splitter(size, measure, kind.from_callback(measure, size, overlap))
    return Splitter(size, measure, kind.from_huggingface_tokenizer(measure, size, overlap))


def chunks(text: str, by: Splitter) -> list[str]:
    """The text in pieces that fit; the unchanged text alone if it fits whole.

    White space at the borders is left off; every other character is in some chunk, in order.
    """
    found = by._inner.chunks(text)
    if len(found) > 1:
        return found
    if not found or found[0] == text or tokens(text, by.measure) <= by.size:
        return [text]
    return found


def pieces(text: str, limit: int, measure: Measure) -> list[str]:
    """A text over a model's limit in parts that fit and share nothing, for `--on-too-long chunk` and `mean`."""
    return chunks(text, splitter(measure, limit))


def truncated(text: str, limit: int, measure: Measure) -> str:
    """As much of the beginning as `limit` tokens hold, the whole text if it fits, for `--on-too-long truncate`."""
    if tokens(text, measure) <= limit:  # asked first: half a word can have more tokens than the whole
        return text
    fits, probe = 0, max(limit, 1)
    while probe < len(text) and tokens(text[:probe], measure) <= limit:
        fits, probe = probe, probe * 2
    too_long = min(probe, len(text))
    while fits + 1 < too_long:
        middle = (fits + too_long) // 2
        if tokens(text[:middle], measure) <= limit:
            fits = middle
        else:
            too_long = middle
    return text[:fits]


def tokens(text: str, measure: Measure) -> int:
    """Tokens of a text."""
    if callable(measure):
        return int(measure(text))
    return len(measure.encode(text, add_special_tokens=False))
