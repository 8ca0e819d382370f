"""Settings: flags, environment, files and defaults, resolved once and passed as frozen values."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedctl.settings.layers import LEDGER_NAME as LEDGER_NAME
    from embedctl.settings.layers import Paths as Paths
    from embedctl.settings.layers import Settings as Settings
    from embedctl.settings.layers import home_of as home_of
    from embedctl.settings.layers import load as load
    from embedctl.settings.layers import misplaced as misplaced
    from embedctl.settings.layers import read_job as read_job
    from embedctl.settings.layers import user_config_path as user_config_path
    from embedctl.settings.tables import Allow as Allow
    from embedctl.settings.tables import BudgetSettings as BudgetSettings
    from embedctl.settings.tables import CacheSettings as CacheSettings
    from embedctl.settings.tables import JobSettings as JobSettings
    from embedctl.settings.tables import JwtSettings as JwtSettings
    from embedctl.settings.tables import ModelSettings as ModelSettings
    from embedctl.settings.tables import ProviderSettings as ProviderSettings
    from embedctl.settings.tables import ServeSettings as ServeSettings
    from embedctl.settings.tables import TokenUsage as TokenUsage
    from embedctl.settings.tables import WorkspaceSettings as WorkspaceSettings


def __getattr__(name: str) -> Any:
    """The names above, when they are first used: the flags of a command are made without reading a file."""
    for room in ("layers", "tables"):
        module = importlib.import_module(f"{__name__}.{room}")
        if hasattr(module, name):
            globals()[name] = getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
