"""Static models: folders as model2vec writes them.

Source: model2vec 0.10.0, `persistence/persistence.py` and `model.py` (2026-11-26): `config.json`, `tokenizer.json`, and
`model.safetensors` with the table `embeddings` and, after vocabulary quantisation, `weights` and `mapping`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedctl.backends.folders import Folder, checked_file, digest, settings_file
from embedctl.backends.static import table
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid

TABLE = "model.safetensors"
MAX_TOKENS = 512
"""Of a text, where config.json says nothing: what model2vec reads of it by default, and silently.

`max_length` is what newer versions write; the published potion models have `seq_length` of a million.
"""

_MOST_BYTES = {TABLE: 8 << 30, "tokenizer.json": 256 << 20, "config.json": 1 << 20, "modules.json": 1 << 20}


@dataclass(frozen=True, slots=True)
class StaticFolder:
    """The files of a static model, checked to be some, and what its settings say.

    Attributes:
        max_tokens: Of a text; None: any number.
        normalize: Vectors are divided by their length.
    """

    table: Path
    tokenizer: Path
    max_tokens: int | None
    normalize: bool


def read(path: Path) -> Folder:
    """What a folder says of its model.

    Raises:
        ConfigurationInvalid: Something is missing, broken, or elsewhere.
    """
    files = open_folder(path)
    return Folder(
        protocol="static",
        path=path,
        weights=files.table,
        pooling="mean",
        dimensions=table.shape(files.table)[1],
        max_tokens=files.max_tokens,
        digest=digest([files.table, files.tokenizer], b"normalize" if files.normalize else b""),
        normalized=files.normalize,
    )


def open_folder(path: Path) -> StaticFolder:
    """The files of the model in a folder, none of which has been read but its settings.

    Raises:
        ConfigurationInvalid: One is missing, too large, or a link to somewhere else; or a setting is none.
    """
    missing = next((name for name in (TABLE, "tokenizer.json", "config.json") if not (path / name).exists()), None)
    if missing is not None:
        raise ConfigurationInvalid(
            f"{path} holds no {missing}",
            hint="a static model is what model2vec saves: model.safetensors, tokenizer.json and config.json",
        )
    config = _settings(path, "config.json")
    longest = config.get("max_length", config.get("seq_length", MAX_TOKENS))
    if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool) or longest < 1):
        raise ConfigurationInvalid(f"{path / 'config.json'}: its length of a text is no number of tokens")
    normalize = config.get("normalize", False)
    if not isinstance(normalize, bool):
        raise ConfigurationInvalid(f"{path / 'config.json'}: normalize must be true or false")
    return StaticFolder(
        table=checked_file(path / TABLE, path, _MOST_BYTES[TABLE]),
        tokenizer=checked_file(path / "tokenizer.json", path, _MOST_BYTES["tokenizer.json"]),
        max_tokens=longest,
        normalize=normalize,
    )


def is_static(path: Path) -> bool:
    """Whether a folder's settings say that its model is a static one; its weights need not be there yet.

    Raises:
        ConfigurationInvalid: They cannot be read.
    """
    config = _settings(path, "config.json")
    architectures = config.get("architectures")
    if config.get("model_type") == "model2vec" or (isinstance(architectures, list) and "StaticModel" in architectures):
        return True
    steps = _settings(path, "modules.json", list)
    first = steps[0] if steps and isinstance(steps[0], dict) else {}
    return str(first.get("type", "")).endswith(".StaticEmbedding")


def _settings(path: Path, name: str, expected: type = dict) -> Any:
    if not (path / name).exists():
        return expected()
    return settings_file(checked_file(path / name, path, _MOST_BYTES[name]), expected)
