"""What a run needs last and loads first: the bundled model, while the rest of it is still being imported."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

from embedctl.errors import EmbedctlError

if TYPE_CHECKING:
    from embedctl.settings import Settings


def load_model(settings: Settings) -> None:
    """Begin to load the bundled model in a thread, if it is what is asked for; returns at once.

    onnxruntime leaves the interpreter to others meanwhile. What goes wrong here is said by whoever needs the model.
    """
    Thread(target=_load_model, args=(settings,), name="model-ahead").start()


def _load_model(settings: Settings) -> None:
    from embedctl.providers import catalog
    from embedctl.routing import names

    with suppress(EmbedctlError, ImportError, OSError):
        asked = names.asked_for(settings)
        entry = catalog.find(*asked)
        if asked == names.BUNDLED and entry is not None:
            own = settings.providers.get(entry.provider)
            from embedctl.backends import local

            local.load("onnx", None, (own and own.max_tokens) or entry.max_tokens)
