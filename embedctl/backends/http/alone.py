"""Imports httpx without its command line, which brings click, pygments and rich's progress bars: 36 ms of CPU."""

import sys

if "httpx" not in sys.modules:
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # "cannot be imported": httpx does without
    import httpx as httpx

    del sys.modules["httpx._main"]
