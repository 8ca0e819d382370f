"""Models that run in this process. Nothing is sent: this file only says what one inference call may hold."""

from __future__ import annotations

from embedctl.records import Limits

LOCAL = True
LIMITS = Limits(items=256)
KEY_VARIABLES: tuple[str, ...] = ()
BASE_URL = None
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False
