"""Counting tokens, and turning token arrays back into text. The only door to tiktoken and tokenizers.

A tokenizer is named by its id, as the ledger records it: "bundled:minilm", "tiktoken:cl100k_base",
"hf:OWNER/NAME", "file:PATH", "plain:PATH" (the same without special tokens) or "bytes/4". Counting never fails a run:
what cannot be loaded is replaced by the next of the chain model's tokenizer → cl100k_base → bytes/4, and the counter
says who really counted.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid
from embedctl.records import expanded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASSETS = Path(__file__).parent / "assets"
BUNDLED = "bundled:minilm"
FALLBACK = "tiktoken:cl100k_base"
BYTES = "bytes/4"

_VOCABULARY = "tiktoken/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
_CHECKSUMS = {
    "minilm/model.onnx": 0x18471583,
    "minilm/tokenizer.json": 0x0B2E9C36,
    _VOCABULARY: 0xB99E2E8D,
    "swagger-ui/swagger-ui-bundle.js": 0x5BFE9126,
    "swagger-ui/swagger-ui.css": 0x03229A99,
    "uplot/uplot.min.css": 0x3261A45F,
    "uplot/uplot.min.js": 0x74660A92,
}
"""CRC-32 of each bundled file: 10 ms for the model, where its SHA-256 (assets/PROVENANCE.md) takes 60."""

# From tiktoken's own definition of cl100k_base (0.12.0, 2026-11-25), which reads the vocabulary through a cache that
# it deletes from, and fills from the network, when a file is not as it should be.
_CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
_CL100K_SPECIAL = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}

# The ids that tiktoken's special tokens have must never come out of ordinary text: `encode_ordinary`, always.


class Counter(Protocol):
    """Counts tokens, and says who counts."""

    @property
    def tokenizer_id(self) -> str:
        """As the ledger records it."""

    @property
    def content_id(self) -> str:
        """Who counts, whatever its file is called: two of them that are equal count alike, on any machine."""

    @property
    def vocabulary(self) -> int | None:
        """Tokens are smaller than this; None where that is not known."""

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
    content_id: str = BYTES
    vocabulary: int | None = None

    def count(self, texts: Sequence[str]) -> list[int]:
        return [-(-len(text.encode("utf-8", "surrogatepass")) // 4) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        raise ConfigurationInvalid(
            f"{len(tokens)} tokens cannot be turned into text: the model's tokenizer is not known",
            hint='set fallback_tokenizer = "tiktoken:cl100k_base" for this model',
        )


@dataclass(frozen=True, slots=True)
class _Tiktoken:
    """Loads its vocabulary with the first text that is counted: that takes 0.2 s, and most runs count none."""

    name: str
    tokenizer_id: str

    @property
    def encoding(self) -> Any:
        """Tiktoken's own."""
        with _LOADING:
            return _encoding(self.name)

    @property
    def content_id(self) -> str:
        return self.tokenizer_id

    @property
    def vocabulary(self) -> int:
        return int(self.encoding.n_vocab)

    def count(self, texts: Sequence[str]) -> list[int]:
        if not any(texts):
            return [0] * len(texts)
        encode = self.encoding.encode_ordinary
        return [len(encode(text)) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        encoding = self.encoding
        try:
            return str(encoding.decode([one for one in tokens if not encoding.is_special_token(one)]))
        except (KeyError, OverflowError) as problem:
            raise LookupError(f"no token of {self.tokenizer_id}: {problem}") from None


@dataclass(frozen=True, slots=True)
class _HuggingFace:
    tokenizer: Any
    tokenizer_id: str
    content_id: str
    special: bool = True

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def count(self, texts: Sequence[str]) -> list[int]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=self.special)
        return [len(encoding.ids) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        if outside := [one for one in tokens if not 0 <= one < self.vocabulary]:
            raise LookupError(f"no token of {self.tokenizer_id}: {outside[0]}")
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def counter(tokenizer_id: str | None, fallback: str = FALLBACK) -> Counter:
    """The counter of a model: its own tokenizer where it can be loaded, else `fallback`, else bytes/4.

    Args:
        tokenizer_id: The catalog's or the config's name for it; None or "unknown…" when nobody knows.

    Raises:
        ConfigurationInvalid: A bundled file that it needs is damaged or missing.
    """
    for name in (tokenizer_id, fallback):
        found = _load(name) if name else None
        if found is not None:
            return found
    return _Bytes()


@cache
def _load(tokenizer_id: str) -> Counter | None:
    """The counter of this very id, None when it cannot be had here (offline, unknown, broken).

    Raises:
        ConfigurationInvalid: A bundled file is damaged or missing: nobody counts in its place in silence.
    """
    kind, _, name = tokenizer_id.partition(":")
    try:
        if tokenizer_id == BYTES:
            return _Bytes()
        if kind == "tiktoken":
            if name == "cl100k_base":
                asset(_VOCABULARY)
            else:
                _encoding(name)
            return _Tiktoken(name, tokenizer_id)
        if tokenizer_id == BUNDLED:
            return _HuggingFace(tokenizer_file(asset("minilm/tokenizer.json")), tokenizer_id, tokenizer_id)
        if kind in ("file", "plain"):
            return _of_file(Path(name), tokenizer_id, special=kind == "file")
        if kind == "hf":
            path = _cached_tokenizer(name.split(" ")[0])
            return _of_file(path, tokenizer_id) if path else None
    except ConfigurationInvalid:
        raise
    except Exception:
        return None
    return None


def _of_file(path: Path, tokenizer_id: str, *, special: bool = True) -> _HuggingFace:
    """A tokenizer.json: what lies under a name differs from machine to machine, and over time."""
    content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return _HuggingFace(tokenizer_file(path), tokenizer_id, f"{'file' if special else 'plain'}:{content}", special)


def asset(name: str) -> Path:
    """A bundled file, checked to be the one that was shipped.

    Args:
        name: Its path below `assets/`.

    Raises:
        ConfigurationInvalid: It is damaged, missing, or cannot be read.
    """
    path = ASSETS / name
    found = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found = zlib.crc32(chunk, found)
    except OSError as problem:
        raise _damaged(path, problem.strerror or str(problem)) from problem
    if found != _CHECKSUMS[name]:
        raise _damaged(path, "its checksum is not the one it was shipped with")
    return path


def _damaged(path: Path, why: str) -> ConfigurationInvalid:
    return ConfigurationInvalid(
        f"{path}, which comes with embedctl, is damaged: {why}",
        hint="reinstall embedctl from where it came from (pip install --force-reinstall)",
    )


_LOADING = Lock()


@cache
def _encoding(name: str) -> Any:
    """A tiktoken encoding; cl100k_base comes from the package, so that nothing is downloaded."""
    if name != "cl100k_base" and not os.environ.get("TIKTOKEN_CACHE_DIR"):
        raise LookupError(name)  # it would be downloaded
    import tiktoken

    if name != "cl100k_base":
        return tiktoken.get_encoding(name)
    words = asset(_VOCABULARY).read_bytes().split()  # token and rank in turn
    ranks = dict(zip(map(binascii.a2b_base64, words[::2]), map(int, words[1::2]), strict=True))
    return tiktoken.Encoding(name, pat_str=_CL100K_PATTERN, mergeable_ranks=ranks, special_tokens=_CL100K_SPECIAL)


def tokenizer_file(path: Path) -> Tokenizer:
    """A tokenizer.json without its padding and truncation: nothing is ever cut silently. Loaded once."""
    found = path.stat()
    return _tokenizer(path, found.st_mtime_ns, found.st_size)


@lru_cache(4)
def _tokenizer(path: Path, _mtime_ns: int, _size: int) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def model_tokenizer(path: Path) -> Tokenizer:
    """The same, of a model that is nothing without it.

    Raises:
        ConfigurationInvalid: It cannot be read, or is no tokenizer.
    """
    try:
        return tokenizer_file(path)
    except Exception as problem:
        raise ConfigurationInvalid(f"{path} is no tokenizer: {problem}") from None
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":  # what the library's own faults become
            raise
        raise ConfigurationInvalid(f"{path} is no tokenizer that can be read") from None


def _cached_tokenizer(repository: str) -> Path | None:
    """tokenizer.json of a Hugging Face repository, if it is in the local hub cache; nothing is downloaded."""
    root = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    snapshots = expanded(root) / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.glob("*/tokenizer.json"))
    return found[-1] if found else None


def splitter_source(tokenizer_id: str | None, fallback: str = FALLBACK) -> Any:
    """What the chunker measures with: a tokenizers.Tokenizer where there is one, else a counting function."""
    found = counter(tokenizer_id, fallback)
    if isinstance(found, _HuggingFace):
        return found.tokenizer
    return lambda text: found.count([text])[0]
