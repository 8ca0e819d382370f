"""Local models: where their folders are looked for, what a folder says of its model, and what may be read of it."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid
from embedctl.records import expanded
from embedctl.storage import paths_in

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A local model that is not the bundled one.

    Attributes:
        protocol: What runs it: "onnx" or "static".
        pooling: How the vectors of a text's tokens become one.
        dimensions: Width; None where config.json does not say.
        max_tokens: Of a text, special tokens included; None: any number.
        digest: 16 hex digits of its weights.
        revision: Of all else that makes its vectors; None where `digest` is of that, too.
        normalized: Its vectors have unit length.
    """

    protocol: Literal["onnx", "static"]
    path: Path
    weights: Path
    pooling: Pooling
    dimensions: int | None
    max_tokens: int | None
    digest: str
    revision: str | None = None
    normalized: bool = True


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


def pulled_names(pulled: Path) -> dict[str, Path]:
    """OWNER/NAME of every model that `models pull` has brought, and where it is."""
    found = [path for path in paths_in(pulled) if path.is_dir() and not path.name.startswith(".")]
    return {path.name.replace("--", "/", 1): path for path in found}


def settings_file(path: Path, expected: type = dict) -> Any:
    """A settings file of the folder; empty where there is none.

    Raises:
        ConfigurationInvalid: It cannot be read.
    """
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return expected()
    except (OSError, orjson.JSONDecodeError) as problem:
        raise ConfigurationInvalid(f"{path} cannot be read: {problem}") from None
    return found if isinstance(found, expected) else expected()


def checked_file(path: Path, folder: Path, most_bytes: int) -> Path:
    """A file of a model, when it is one that may be read: regular, of the folder, and not larger than such files are.

    A link may stay in the folder, or lead where the hub's cache keeps its files: `blobs` beside `snapshots`.

    Raises:
        ConfigurationInvalid: It is not.
    """
    try:
        found, root = path.resolve(strict=True), folder.resolve(strict=True)
        facts = found.stat()
    except (OSError, RuntimeError) as problem:  # RuntimeError: links in a circle, before Python 3.13
        raise ConfigurationInvalid(f"{path} cannot be read: {getattr(problem, 'strerror', problem)}") from None
    if not (found.is_relative_to(root) or found.parent == root.parent.parent / "blobs"):
        raise ConfigurationInvalid(f"{path} is a link out of its folder", hint="copy the file into the folder")
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigurationInvalid(f"{path} is no file")
    if facts.st_size > most_bytes:
        raise ConfigurationInvalid(f"{path} has {facts.st_size:,} bytes; at most {most_bytes:,} are read")
    return found


def digest(files: Iterable[Path], more: bytes = b"") -> str:
    """16 hex digits of what files hold, one after the other.

    Raises:
        ConfigurationInvalid: One cannot be read.
    """
    found = blake2b(digest_size=8)
    for path in files:
        try:
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    found.update(piece)
        except OSError as problem:
            raise ConfigurationInvalid(f"{path} cannot be read: {problem.strerror}") from None
    found.update(more)
    return found.hexdigest()
