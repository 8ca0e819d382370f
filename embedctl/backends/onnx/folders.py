"""ONNX models: folders as sentence-transformers writes them.

Source: sentence-transformers' `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json` (2026-11-21); of
tensors in files of their own: onnx.proto, `TensorProto.external_data`, and onnx/docs/ExternalData.md (2026-11-26).
"""

from __future__ import annotations

import mmap
import os
import re
from contextlib import closing
from pathlib import Path

from embedctl.backends.folders import Folder, Pooling, checked_file, digest, settings_file
from embedctl.errors import ConfigurationInvalid
from embedctl.records import files_revision

MODEL_FILES = ("model.onnx", "onnx/model.onnx")
MAX_TOKENS = 512
"""Of a text, where the folder says nothing."""

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")
"""The entry of a tensor that names its file, as protobuf writes it: key, value, and the length of the name."""

_MOST_BYTES = 64 << 30


def read(path: Path) -> Folder:
    """What a folder says of its model.

    Raises:
        ConfigurationInvalid: Something is missing, or it works in a way that is not ours.
    """
    weights = weights_in(path)
    config = settings_file(path / "config.json")
    said = (
        settings_file(path / "sentence_bert_config.json").get("max_seq_length"),
        settings_file(path / "tokenizer_config.json").get("model_max_length"),
        config.get("max_position_embeddings"),
    )
    lengths = [length for length in said if isinstance(length, int) and 0 < length < 1_000_000]
    longest, pooling = lengths[0] if lengths else MAX_TOKENS, pooling_of(path)
    width = config.get("hidden_size")
    return Folder(
        protocol="onnx",
        path=path,
        weights=weights,
        pooling=pooling,
        dimensions=width if isinstance(width, int) else None,
        max_tokens=longest,
        digest=digest([weights]),
        revision=files_revision(
            digest([*external(weights, path), path / "tokenizer.json"], f"{pooling} {longest}".encode())
        ),
    )


def external(weights: Path, folder: Path) -> list[Path]:
    """Files that a model keeps tensors in, beside its own.

    Raises:
        ConfigurationInvalid: One is missing, or not of its folder.
    """
    try:
        with weights.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            found = {content[one.end() : one.end() + one[1][0]] for one in _LOCATION.finditer(content)}
    except (OSError, ValueError) as problem:  # ValueError: it is empty
        raise ConfigurationInvalid(f"{weights} cannot be read: {problem}") from None
    return [checked_file(weights.parent / os.fsdecode(name), folder, _MOST_BYTES) for name in sorted(found)]


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
    steps = settings_file(path / "modules.json", expected=list)
    kinds = [str(step.get("type", "")).rpartition(".")[2] for step in steps if isinstance(step, dict)]
    if strange := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigurationInvalid(f"{path} has a step that is not ours: {strange[0]}", hint="choose another model")
    said = settings_file(path / "1_Pooling" / "config.json")
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
