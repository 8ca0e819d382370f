"""Counting tokens, and turning token arrays back into text. The only door to tiktoken and tokenizers.

A tokenizer is named by its id, as the ledger records it: "bundled:minilm", "tiktoken:cl100k_base",
"hf:OWNER/NAME", "file:PATH" or "bytes/4". Counting never fails a run: what cannot be loaded is replaced by the next
of the chain model's tokenizer → cl100k_base → bytes/4, and the counter says who really counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedctl.errors import ConfigurationInvalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASSETS = Path(__file__).parent / "assets"
BUNDLED = "bundled:minilm"
FALLBACK = "tiktoken:cl100k_base"
BYTES = "bytes/4"

# The ids that tiktoken's special tokens have must never come out of ordinary text: `encode_ordinary`, always.


class Counter(Protocol):
    """Counts tokens, and says who counts."""

    @property
    def tokenizer_id(self) -> str:
        """As the ledger records it."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model sees it, special tokens included; 0 only for an empty text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a token array; special tokens left out.

        Raises:
            LookupError: A number is no token.
        """


@dataclass(frozen=True, slots=True)
class _Bytes:
    """UTF-8 bytes divided by four: off by up to 3x either way, and said so by its id."""

    tokenizer_id: str = BYTES

    def count(self, texts: Sequence[str]) -> list[int]:
        return [-(-len(text.encode("utf-8", "surrogatepass")) // 4) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        raise ConfigurationInvalid(
            f"{len(tokens)} tokens cannot be turned into text: the model's tokenizer is not known",
            hint='set fallback_tokenizer = "tiktoken:cl100k_base" for this model',
        )


@dataclass(frozen=True, slots=True)
class _Tiktoken:
    encoding: Any
    tokenizer_id: str

    def count(self, texts: Sequence[str]) -> list[int]:
        encode = self.encoding.encode_ordinary
        return [len(encode(text)) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        try:
            return str(self.encoding.decode([one for one in tokens if not self.encoding.is_special_token(one)]))
        except (KeyError, OverflowError) as problem:
            raise LookupError(f"no token of {self.tokenizer_id}: {problem}") from None


@dataclass(frozen=True, slots=True)
class _HuggingFace:
    tokenizer: Any
    tokenizer_id: str

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def decode(self, tokens: Sequence[int]) -> str:
        size = self.tokenizer.get_vocab_size(with_added_tokens=True)
        if outside := [one for one in tokens if not 0 <= one < size]:
            raise LookupError(f"no token of {self.tokenizer_id}: {outside[0]}")
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def counter(tokenizer_id: str | None, fallback: str = FALLBACK) -> Counter:
    """The counter of a model: its own tokenizer where it can be loaded, else `fallback`, else bytes/4.

    Args:
        tokenizer_id: The catalog's or the config's name for it; None or "unknown…" when nobody knows.
    """
    for name in (tokenizer_id, fallback):
        found = _load(name) if name else None
        if found is not None:
            return found
    return _Bytes()


@cache
def _load(tokenizer_id: str) -> Counter | None:
    """The counter of this very id, None when it cannot be had here (offline, unknown, broken)."""
    kind, _, name = tokenizer_id.partition(":")
    try:
        if tokenizer_id == BYTES:
            return _Bytes()
        if kind == "tiktoken":
            return _Tiktoken(_encoding(name), tokenizer_id)
        if tokenizer_id == BUNDLED:
            return _HuggingFace(tokenizer_file(ASSETS / "minilm" / "tokenizer.json"), tokenizer_id)
        if kind == "file":
            return _HuggingFace(tokenizer_file(Path(name)), tokenizer_id)
        if kind == "hf":
            path = _cached_tokenizer(name.split(" ")[0])
            return _HuggingFace(tokenizer_file(path), tokenizer_id) if path else None
    except Exception:
        return None
    return None


def _encoding(name: str) -> Any:
    """A tiktoken encoding; cl100k_base comes from the package, so that nothing is downloaded."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(ASSETS / "tiktoken"))
    import tiktoken

    if name != "cl100k_base" and os.environ["TIKTOKEN_CACHE_DIR"] == str(ASSETS / "tiktoken"):
        raise LookupError(name)  # it would be downloaded into the package
    return tiktoken.get_encoding(name)


def tokenizer_file(path: Path) -> Tokenizer:
    """A tokenizer.json without its padding and truncation: nothing is ever cut silently."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _cached_tokenizer(repository: str) -> Path | None:
    """tokenizer.json of a Hugging Face repository, if it is in the local hub cache; nothing is downloaded."""
    root = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    snapshots = root.expanduser() / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.glob("*/tokenizer.json"))
    return found[-1] if found else None


def splitter_source(tokenizer_id: str | None, fallback: str = FALLBACK) -> Any:
    """What the chunker measures with: a tokenizers.Tokenizer where there is one, else a counting function."""
    found = counter(tokenizer_id, fallback)
    if isinstance(found, _HuggingFace):
        return found.tokenizer
    return lambda text: found.count([text])[0]
