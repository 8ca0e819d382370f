"""What a project's ./embedctl.toml may set, and how each is narrowed: one table. What is not in it is refused by name.

Whoever wrote a folder wrote that file, and a folder may be a stranger's: it may say what its texts are and ask for
less, never how money is counted, what is shared, where keys go, or more than the user allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from embedctl.errors import ConfigurationInvalid
from embedctl.settings.options import Options

Narrowing = Callable[[Any, Any], Any]
"""(the project's value, what would hold without it) → what holds."""


def _as_said(asked: Any, ours: Any) -> Any:
    return asked


def _lowest(asked: Any, ours: Any) -> Any:
    """None is no limit."""
    return min((one for one in (asked, ours) if one is not None), default=None)


def _lowest_rate(asked: Any, ours: Any) -> Any:
    """0 is no limit, and None what the provider's own table or the catalog says."""
    return min(asked, ours) if asked and ours else asked or ours


_STRICTER = ("off", "same-space", "any")


def _strictest(asked: Any, ours: Any) -> Any:
    return min(asked, ours, key=_STRICTER.index)


OPTIONS: Mapping[str, Narrowing] = {
    "model": _as_said,
    "workspace": _as_said,  # one that the user's settings list
    "tag": _as_said,
    "text_column": _as_said,
    "template": _as_said,
    "id_column": _as_said,
    "keep": _as_said,
    "split": _as_said,
    "chunk_size": _as_said,
    "chunk_overlap": _as_said,
    "input_type": _as_said,
    "dimensions": _as_said,
    "dimension_policy": _as_said,
    "on_too_long": _as_said,
    "on_blank": _as_said,
    "on_bad_row": _as_said,
    "on_bad_file": _as_said,
    "fallback": _strictest,
    "max_cost": _lowest,
    "batch_size": _lowest,
    "concurrency": _lowest,
    "rpm": _lowest_rate,
    "tpm": _lowest_rate,
    "burst": _lowest,
    "retries": _lowest,
    "timeout": _lowest,
    "max_wait": _lowest,
    "deadline": _lowest,
    "max_row_bytes": _lowest,
}
"""Options by name. A new option is none of these until somebody decides how it is narrowed."""


def is_limit(option: str) -> bool:
    """Whether it is a number that only grows smaller."""
    return OPTIONS[option] in (_lowest, _lowest_rate)


TABLES: Mapping[str, Literal["passed too", "filters"]] = {
    "allow": "passed too",  # beside the user's: all lists must allow it
    "fallback": "filters",  # what the user's chain, or the catalog's, lists
}

_WHY = {
    "providers": "keys go only to hosts the user configured",
    "workspaces": "who may spend how much is the user's word",
    "models": "it would change how tokens are counted",
    "serve": "who may ask a server is the user's word",
    "token_usage": "it would change how tokens are counted",
    "usage_mode": "it would change how tokens are counted",
    "fallback_tokenizer": "it would change how tokens are counted",
    "cache": "the cache is shared with other projects",
    "insecure": "it would let keys be read on the way",
    "allow_unpriced": "it would let a run pass what it may cost",
    "purpose": "it would change how money is counted",
    "sql": "it would say which files are read",
    "attach": "it would say which files are read",
    "workspace_column": "it would change who pays",
    "ledger": "it would change where money is counted",
    "prices": "it would change how money is counted",
    "stores": "credentials go only to stores the user configured",
    "store_option": "credentials go only to stores the user configured",
    "budgets": "who may spend how much is the user's word",
    "engine": "it would say whose machines see the texts",
    "ray_address": "it would say whose machines see the texts",
}
_NAMED_TABLES = ("providers", "workspaces", "models", "stores")
HINT = "set it in your own settings (`embedctl config path`), or name this file with --config or EMBEDCTL_CONFIG"


def check_keys(content: Mapping[str, Any], label: str) -> None:
    """Refuse what a project may not set; keys that nobody knows are for others to complain of.

    Raises:
        ConfigurationInvalid: With the name of the first of them.
    """
    known = {entry.name for entry in fields(Options)} | _WHY.keys()
    for key, value in content.items():
        allowed = TABLES if isinstance(value, dict) and key != "tag" else OPTIONS
        if key in known and key not in allowed:
            name = f"[{key}.*]" if key in _NAMED_TABLES else f"[{key}]" if isinstance(value, dict) else key
            why = f": {_WHY[key]}" if key in _WHY else ""
            raise ConfigurationInvalid(f"{label}: a project's file may not set {name}{why}", hint=HINT)


def check_workspace(name: str, ours: str, listed: Mapping[str, Any], label: str) -> None:
    """A project may charge only a workspace that the user's settings list, or the one that pays anyhow.

    Raises:
        ConfigurationInvalid: It is neither.
    """
    if name != ours and name not in listed:
        raise ConfigurationInvalid(
            f"{label}: a project's file may not set workspace to {name!r}: your settings do not list it",
            hint=f"add [workspaces.{name}] to your own settings (`embedctl config path`), or give -w {name}",
        )


def narrowed_chain(chain: Sequence[str], only: Sequence[str] | None) -> Sequence[str]:
    """The entries of a chain that a project's list has too, whole or by their provider, in the chain's order."""
    if only is None:
        return chain
    return [entry for entry in chain if entry in only or entry.partition(":")[0] in only]
