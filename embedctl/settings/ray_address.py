"""Where a Ray cluster is: `--engine ray --ray-address auto|local|HOST:PORT`. Without a default: none starts unasked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from embedctl.errors import WrongUsage

_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):(\d{1,5})\Z", re.ASCII)
_HINT = "auto, HOST:PORT as `ray start --head` has said, or local for one that ends with the command"


def check_ray(engine: Literal["local", "ray"], address: str | None, spelt: Callable[[str], str]) -> None:
    """Refuse an engine without an address, an address without the engine, and what is no address.

    Raises:
        WrongUsage: One of them.
    """
    if engine != "ray":
        if address is not None:
            raise WrongUsage(
                f"{spelt('ray_address')} says where Ray is, and nobody asked for Ray", hint=f"add {spelt('engine')} ray"
            )
        return
    if address is None:
        raise WrongUsage(
            f"{spelt('engine')} ray needs {spelt('ray_address')}: no cluster is started unasked", hint=_HINT
        )
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise WrongUsage(
            f"{spelt('ray_address')} {address}: Ray's client protocol is not spoken",
            hint="run the command on a node of the cluster, and give auto",
        )
    found = _HOST_PORT.match(address)
    if found is None or not 1 <= int(found[1]) <= 65535:
        raise WrongUsage(f"{spelt('ray_address')} is no address: {address!r}", hint=_HINT)
