"""One call of a static model: each text's vector is the mean of its tokens' vectors. No inference.

Source: model2vec 0.10.0, `StaticModel.encode` (2026-11-26). Unlike there no text is ever cut, and one without a vector
is refused: model2vec makes zeros of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from embedctl.backends.static import folders, table
from embedctl.errors import ConfigurationInvalid, TextRefused, TextTooLong
from embedctl.tokens import model_tokenizer


class StaticModel:
    """A model folder: `model.safetensors`, `tokenizer.json` and `config.json`. Thread-safe.

    Raises:
        ConfigurationInvalid: The folder holds no such model, or its table does not fit its tokenizer.
    """

    def __init__(self, folder: Path, max_tokens: int | None) -> None:
        files = folders.open_folder(folder)
        self._table = table.load(files.table)
        self._tokenizer = model_tokenizer(files.tokenizer)
        self._unknown = _unknown_token(files.tokenizer, self._tokenizer)
        self._normalize = files.normalize
        self._max_tokens = max_tokens
        most = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if most > self._table.tokens:
            raise ConfigurationInvalid(
                f"{files.table} has vectors for {self._table.tokens:,} tokens, its tokenizer makes {most:,}",
                hint="the files of the folder do not belong together",
            )

    def embed(
        self, texts: Sequence[str], done: Callable[[int, int], None] = lambda texts, tokens: None
    ) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Embed all texts; blocks.

        Args:
            done: Told of texts that are embedded, and of their tokens; what it raises ends the work.

        Returns:
            float32, shape (n, D), row i of texts[i]; and the tokens of each text. A static model has no special tokens.

        Raises:
            TextTooLong: A text is over the model's limit; nothing is ever cut.
            TextRefused: The model knows no word of a text, so that it has no vector.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        vectors = np.empty((len(texts), self._table.rows.shape[1]), dtype=np.float32)
        lengths = []
        for index, encoding in enumerate(encodings):
            ids = np.array(encoding.ids, dtype=np.int64)
            lengths.append(len(ids))
            if self._max_tokens is not None and len(ids) > self._max_tokens:
                raise TextTooLong(
                    f"text {index} has {len(ids)} tokens, the model takes {self._max_tokens}",
                    details=[{"index": index, "tokens": len(ids), "max_tokens": self._max_tokens}],
                )
            known = ids if self._unknown is None else ids[ids != self._unknown]
            if len(known):
                vectors[index] = self._table.mean(known)
            if not (len(known) and vectors[index].any()):
                raise TextRefused(f"text {index} has no word that the model knows", details=[{"index": index}])
        done(len(texts), sum(lengths))
        if self._normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors, tuple(lengths)


def _unknown_token(path: Path, tokenizer: Any) -> int | None:
    """The token of what is in no vocabulary, which no vector is made of; None where there is none."""
    model = tokenizer.model
    if hasattr(model, "unk_token"):  # WordPiece, WordLevel, BPE
        return None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)
    found = orjson.loads(path.read_bytes())["model"].get("unk_id")  # Unigram does not say it otherwise
    return found if isinstance(found, int) else None
