"""Hugging Face's hub as the environment describes it: where it is, its library, and what goes wrong on the way.

A door to huggingface_hub, an extra; it reads HF_* variables when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from embedctl.errors import ConfigurationInvalid, ExtraMissing

ANSWER_S = 30.0
"""How long the hub may be silent when it is first asked: its library waits for ever."""


def endpoint(environment: Mapping[str, str]) -> str | None:
    """What HF_ENDPOINT says; None where it is not set: Hugging Face itself.

    Raises:
        ConfigurationInvalid: It is no address of a server. Its words are not repeated: they may hold a password.
    """
    address = environment.get("HF_ENDPOINT") or None
    if address is None:
        return None
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port beyond 65535
        is_one = False
    if not is_one or not address.isprintable() or " " in address:
        raise ConfigurationInvalid(
            "HF_ENDPOINT is no address of a hub", hint="like https://huggingface.co, which it is when it is not set"
        )
    return address


def import_library(what: str) -> None:
    """Import huggingface_hub.

    Args:
        what: Needs it, for the message.

    Raises:
        ExtraMissing: It is not installed.
        ConfigurationInvalid: It does not start, as with HF_HUB_DOWNLOAD_TIMEOUT=soon.
    """
    try:
        import huggingface_hub  # noqa: F401 - its parts are imported where they are used
        from huggingface_hub import HfApi, HfFileSystem  # noqa: F401 - lazy: only now are its variables read
    except ImportError:
        raise ExtraMissing(f"{what} needs huggingface_hub, which is not installed", extra="hub") from None
    except Exception as trouble:
        named = sorted(name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_")))
        raise ConfigurationInvalid(
            f"huggingface_hub does not start: {type(trouble).__name__}",
            hint=f"look at {', '.join(named)}" if named else "install it again",
        ) from None


def trouble_words(trouble: Exception) -> tuple[str, str, bool]:
    """What it says of the hub when its library fails: (words, hint, whether to try again is of use).

    Errors of its HTTP client are of another one from version to version (requests, httpx, httpx2).
    """
    name = type(trouble).__name__
    if name == "OfflineModeIsEnabled" or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "is not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE", False
    if isinstance(trouble, UnicodeError):
        return "is not asked: no header may hold such characters", "look at HF_TOKEN", False
    if isinstance(trouble, ValueError | AttributeError | TypeError | LookupError) and "HTTP" not in name:
        return f"does not answer as a hub does: {name}", "look at HF_ENDPOINT: it leads to something else", False
    return f"cannot be reached: {name}", "is the network up? proxies are honoured; look at HF_ENDPOINT", True
