"""Whose request the current task serves: where requests wait for a provider, keys take turns."""

from __future__ import annotations

from contextvars import ContextVar

_KEY: ContextVar[str] = ContextVar("key", default="")


def serve_for(key_id: str) -> None:
    """From now on this task, and those it begins, work for this key."""
    _KEY.set(key_id)


def current_key() -> str:
    """Whom the current task works for."""
    return _KEY.get()
