"""Local models: folders as sentence-transformers writes them, and where they are looked for.

Source: sentence-transformers' `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json` (2026-11-21).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import orjson

from embedctl.errors import ConfigurationInvalid
from embedctl.records import expanded

MODEL_FILES = ("model.onnx", "onnx/model.onnx")
MAX_TOKENS = 512
"""Of a text, where the folder says nothing."""

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A local model that is not the bundled one.

    Attributes:
        pooling: How the vectors of a text's tokens become one.
        dimensions: Width; None where config.json does not say.
        max_tokens: Of a text, special tokens included.
        digest: 16 hex digits of the weights: another file is another space.
    """

    path: Path
    weights: Path
    pooling: Pooling
    dimensions: int | None
    max_tokens: int
    digest: str


def find(name: str, pulled: Path) -> Path | None:
    """The folder that a local model's name means: a path, or what `models pull` made of it; None for neither."""
    path = expanded(name)
    if path.is_dir() and ("/" in name or (path / "tokenizer.json").is_file()):
        return path.resolve()
    path = home(name, pulled)
    return path if path.is_dir() else None


def home(name: str, pulled: Path) -> Path:
    """Where `models pull` puts OWNER/NAME."""
    return pulled / name.replace("/", "--")


def read(path: Path) -> Folder:
    """What a folder says of its model.

    Raises:
        ConfigurationInvalid: Something is missing, or it works in a way that is not ours.
    """
    weights = weights_in(path)
    config = _json(path / "config.json")
    said = (
        _json(path / "sentence_bert_config.json").get("max_seq_length"),
        _json(path / "tokenizer_config.json").get("model_max_length"),
        config.get("max_position_embeddings"),
    )
    lengths = [length for length in said if isinstance(length, int) and 0 < length < 1_000_000]
    width = config.get("hidden_size")
    return Folder(
        path=path,
        weights=weights,
        pooling=pooling_of(path),
        dimensions=width if isinstance(width, int) else None,
        max_tokens=lengths[0] if lengths else MAX_TOKENS,
        digest=_digest(weights),
    )


def weights_in(path: Path) -> Path:
    """The model's file.

    Raises:
        ConfigurationInvalid: It is not there, or the tokenizer is not.
    """
    weights = next((path / name for name in MODEL_FILES if (path / name).is_file()), None)
    missing = "model.onnx" if weights is None else "tokenizer.json"
    if weights is None or not (path / "tokenizer.json").is_file():
        raise ConfigurationInvalid(
            f"{path} holds no {missing}",
            hint="a local model is a folder with model.onnx (or onnx/model.onnx) and tokenizer.json",
        )
    return weights


def pooling_of(path: Path) -> Pooling:
    """How the vectors of a text's tokens become one; mean where the folder does not say.

    Raises:
        ConfigurationInvalid: In a way that is not ours.
    """
    steps = _json(path / "modules.json", expected=list)
    kinds = [str(step.get("type", "")).rpartition(".")[2] for step in steps if isinstance(step, dict)]
    if strange := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigurationInvalid(f"{path} has a step that is not ours: {strange[0]}", hint="choose another model")
    said = _json(path / "1_Pooling" / "config.json")
    modes = [name.removeprefix("pooling_mode_") for name, on in said.items() if "pooling_mode_" in name and on is True]
    if not modes and isinstance(said.get("pooling_mode"), str):
        modes = [said["pooling_mode"]]
    if modes in ([], ["mean_tokens"], ["mean"]):
        return "mean"
    if modes in (["cls_token"], ["cls"]):
        return "cls"
    raise ConfigurationInvalid(
        f"{path} pools by {' and '.join(modes)}; only mean and cls are known here", hint="choose another model"
    )


def _json(path: Path, expected: type = dict) -> Any:
    """A settings file of the folder; empty where there is none."""
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return expected()
    except (OSError, orjson.JSONDecodeError) as problem:
        raise ConfigurationInvalid(f"{path} cannot be read: {problem}") from None
    return found if isinstance(found, expected) else expected()


def _digest(weights: Path) -> str:
    found = blake2b(digest_size=8)
    try:
        with weights.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    except OSError as problem:
        raise ConfigurationInvalid(f"{weights} cannot be read: {problem.strerror}") from None
    return found.hexdigest()
