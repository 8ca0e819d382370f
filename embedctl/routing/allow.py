"""Who may use what: the allow-lists of settings files and workspaces. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedctl.routing.fallback import AllowList, ChainEntry
from embedctl.settings import Settings


def lists(settings: Settings, workspace: str) -> list[AllowList]:
    """Every list that a provider and model must pass when a workspace pays."""
    found = [_list(f"[allow] in {label}", narrowing) for label, narrowing in settings.narrowings]
    if workspace in settings.workspaces:
        found.append(_of_workspace(settings, workspace))
    return found


def denied(settings: Settings, asked: ChainEntry) -> dict[str, str]:
    """Workspaces that rows may name and that may not use the model asked for → why."""
    reasons = {name: _of_workspace(settings, name).against(asked) for name in _of_rows(settings)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def of_rows(settings: Settings, asked: ChainEntry) -> list[AllowList]:
    """The lists of all workspaces that rows may name and that may use the model asked for.

    A fallback passes them all: requests of different workspaces wait for the same lines.
    """
    refused = denied(settings, asked)
    return [_of_workspace(settings, name) for name in _of_rows(settings) if name not in refused]


def _of_rows(settings: Settings) -> Sequence[str]:
    """Workspaces with a table of their own, when each row names its workspace."""
    return () if settings.options.workspace_column is None else tuple(settings.workspaces)


def _of_workspace(settings: Settings, name: str) -> AllowList:
    return _list(f"[workspaces.{name}]", settings.workspaces[name])


def _list(rule: str, source: Any) -> AllowList:
    def chosen(values: Sequence[str] | None) -> frozenset[str] | None:
        return None if values is None else frozenset(values)

    return AllowList(rule=rule, providers=chosen(source.providers), models=chosen(source.models))
