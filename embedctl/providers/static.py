"""Static models, which run in this process: a vector per token, looked up. Nothing is sent."""

from __future__ import annotations

from embedctl.records import Limits

LOCAL = True
LOOKUP = True
LIMITS = Limits(items=1024)
KEY_VARIABLES: tuple[str, ...] = ()
BASE_URL = None
BASE_URL_VARIABLES: tuple[str, ...] = ()
TAKES_TOKENS = False
