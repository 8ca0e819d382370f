"""The registry of protocols is this folder: a file without a leading underscore is one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from embedctl.errors import ConfigurationInvalid, nearest
from embedctl.providers._contract import WireProtocol

PROTOCOLS = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))
"""The names a provider's `protocol` may have."""


def protocol(name: str) -> WireProtocol:
    """The module of one protocol.

    Raises:
        ConfigurationInvalid: There is none of that name; the hint names the nearest.
    """
    if name not in PROTOCOLS:
        near = nearest(name, PROTOCOLS)
        hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(PROTOCOLS)}"
        raise ConfigurationInvalid(f"there is no protocol {name!r}", hint=hint)
    return cast("WireProtocol", importlib.import_module(f"embedctl.providers.{name}"))


def is_local(name: str) -> bool:
    """Whether a protocol runs in this process: it has limits, and nothing to send."""
    return bool(getattr(protocol(name), "LOCAL", False))


def is_lookup(name: str) -> bool:
    """Whether a text's vector takes no longer than counting its tokens: these are not counted before."""
    return bool(getattr(protocol(name), "LOOKUP", False))
