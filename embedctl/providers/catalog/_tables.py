"""The catalog's files, read once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from embedctl.errors import InvariantBroken


def table(name: str) -> dict[str, Any]:
    """One TOML file of this folder.

    Raises:
        InvariantBroken: It is missing or broken: the installation is.
    """
    file = Path(__file__).with_name(f"{name}.toml")
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvariantBroken(
            f"the catalog's {file.name} cannot be read: {error}", hint="install embedctl again"
        ) from error
