"""Models that run in this process, whatever runs them: what a folder holds, and one that is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from embedctl.backends.folders import Folder
from embedctl.backends.onnx import folders as onnx_folders
from embedctl.backends.static import folders as static_folders
from embedctl.errors import ConfigurationInvalid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LocalModel(Protocol):
    """A model that is loaded. Thread-safe."""

    def embed(
        self, texts: Sequence[str], done: Callable[[int, int], None] = ...
    ) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Embed all texts; blocks.

        Args:
            done: Told of texts that are embedded, and of their tokens, a few at a time; what it raises ends the work.

        Returns:
            float32, shape (n, D), row i of texts[i]; and the tokens of each text as the model counts them. A vector
            does not depend on what else is asked for.

        Raises:
            TextTooLong: A text is over the model's limit; nothing is ever cut.
            TextRefused: A text has no vector.
        """


def protocol_of(path: Path) -> str:
    """What runs the model of a folder: "static" where its settings say so, else "onnx".

    Raises:
        ConfigurationInvalid: They cannot be read.
    """
    return "static" if static_folders.is_static(path) else "onnx"


def read(protocol: str, path: Path) -> Folder:
    """What a folder says of its model.

    Raises:
        ConfigurationInvalid: Something is missing, or it works in a way that is not ours.
    """
    try:
        return static_folders.read(path) if protocol == "static" else onnx_folders.read(path)
    except ConfigurationInvalid as problem:
        if (other := protocol_of(path)) != protocol and other == "static":
            raise ConfigurationInvalid(problem.message, hint=f"it is a static model: -m static:{path}") from None
        raise


_LOADING = Lock()


def load(protocol: str, folder: Path | None, max_tokens: int | None) -> LocalModel:
    """A model, loaded once per process: who asks while another thread loads it waits for that one.

    Args:
        folder: None: the bundled one.

    Raises:
        ConfigurationInvalid: The bundled one is damaged, or the folder holds no model.
    """
    with _LOADING:
        return _loaded(protocol, folder, max_tokens)


@cache
def _loaded(protocol: str, folder: Path | None, max_tokens: int | None) -> LocalModel:
    if protocol == "static" and folder is not None:
        from embedctl.backends.static.static_model import StaticModel

        return StaticModel(folder, max_tokens)
    from embedctl.backends.onnx import local_model

    return local_model.load(folder, max_tokens or onnx_folders.MAX_TOKENS)
