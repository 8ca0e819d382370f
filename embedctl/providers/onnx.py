"""Models that run in this process. Nothing is sent: this file only says what one inference call may hold."""

from __future__ import annotations

from embedctl.records import Limits

LOCAL = True
LIMITS = Limits(items=64)
"""A second of a core's work, which is what Ctrl-C and kills lose of it; with 256 a text takes 2 % less CPU."""

KEY_VARIABLES: tuple[str, ...] = ()
BASE_URL = None
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False
