"""Optional parts of the installation: what each consists of, and the command that installs it."""

from __future__ import annotations

import shlex
from importlib import metadata


def requirements(extra: str) -> list[str]:
    """What pyproject.toml lists under an extra, as pip takes it; empty when embedctl was not installed."""
    try:
        listed = metadata.requires("embedctl") or []
    except metadata.PackageNotFoundError:
        return []
    split = (line.partition(";") for line in listed)
    return [name.strip() for name, _, marker in split if f"extra == '{extra}'" in marker.replace('"', "'")]


def install(*extras: str) -> str:
    """The command for `extras`. It names the libraries themselves.

    `embedctl[EXTRA]` would be whatever an index has under that name, which need not be what is running here.
    """
    found = [requirement for extra in extras for requirement in requirements(extra)]
    if not found:
        return f"install embedctl with {' and '.join(f'[{extra}]' for extra in extras)}, as it was installed"
    return f"pip install {' '.join(map(shlex.quote, found))}"
