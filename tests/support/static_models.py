"""Static models as model2vec saves them, made of a small vocabulary and a random table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = (
    "the", "cell", "is", "charged", "parcels", "leave", "at", "noon", "les", "colis", "partent", "à", "midi", "short",
    "text", "of", "some", "words", ".", ",",
)  # fmt: skip
VOCABULARY = {
    word: index
    for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *(f"##{c}" for c in "aeinrst")])
}
WIDTH = 32


def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    """A tokenizer with special tokens, which a static model leaves out; "unigram" and "bpe" know words alone."""
    if kind == "unigram":
        made = Tokenizer(models.Unigram([("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)], unk_id=0))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        return made
    if kind == "bpe":
        letters = sorted({letter for word in WORDS for letter in word})
        made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        return made
    made = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])]
    )
    made.enable_truncation(4)  # as published tokenizers have it: whoever trusts it cuts texts in silence
    return made


def table(rows: int = len(VOCABULARY), width: int = WIDTH, seed: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def saved(place: Path, *, kind: str = "wordpiece", config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A folder with a static model: a random table, or these tensors."""
    place.mkdir(parents=True, exist_ok=True)
    made = tokenizer(kind)
    made.save(str(place / "tokenizer.json"))
    save_file(tensors or {"embeddings": table(made.get_vocab_size())}, place / "model.safetensors")
    said = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True, **(config or {})}
    (place / "config.json").write_bytes(orjson.dumps(said))
    return place


def files(place: Path) -> dict[str, bytes]:
    """The files of a folder, as a hub serves them."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
