"""What goes wrong, and when: a script first, then seeded chance. Set by POST /_plan.

    {"script": ["ok", "rate", {"fault": "status", "status": 503}],      one per request, in order
     "faults": {"reset_after": 0.05, "rate": {"p": 0.1, "form": "ms", "seconds": 0.2}}, "seed": 7,
     "latency_s": 0.01, "dimensions": 8, "spaces": {"model": "another space"}, "keys": ["sk-good"],
     "poison": ["bad text"], "poison_kind": "poison|bad|server|reset|lost",
     "max_items": 96,                     lost: billed, and then a reset
     "texts": {"bad text": {"fault": "hang"}},   whatever else is planned, for requests that hold this text
     "hold_after": 8,                     answers so many requests; later ones wait for the next plan, or a reset
     "per_second": 40, "burst": 10, "window_s": 20, "max_tokens": 8191, "max_request_tokens": 300000,
     "max_bytes": 2000000,
     "batch": {...}}                                                     of the Batch APIs: batches.py

Faults: rate quota status unauthorized forbidden not_found too_large too_long redirect reset_before reset_after hang
hang_before drip truncated html count extra empty shuffled duplicate no_index no_index_0 index_from_1 usage_missing
usage_zero usage_string usage_characters nan null zero width ragged string_numbers base64_length floats
base64_refused huge error_200 other_model says.

    {"fault": "says", "status": 200, "headers": {...}, "more": {"id": "{key}"}}    more beside the good answer
    {"fault": "says", "body": "[[[["}                                              another body
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Plan:
    """The running plan; see the module."""

    script: list[Any] = field(default_factory=list)
    faults: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    latency_s: float = 0.0
    dimensions: int | None = None
    spaces: dict[str, str] = field(default_factory=dict)
    keys: list[str] | None = None
    poison: list[str] = field(default_factory=list)
    poison_kind: str = "poison"
    max_items: int | None = None
    max_tokens: int | None = None
    max_request_tokens: int | None = None
    max_bytes: int | None = None
    protocols: list[str] | None = None
    batch: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    hold_after: int | None = None
    per_second: float | None = None
    burst: int = 10
    window_s: float | None = None

    def __post_init__(self) -> None:
        self._left, self._at = float(self.burst), 0.0
        self._taken: deque[float] = deque()
        self._arrived = 0
        self._chance = random.Random(self.seed)
        self._place = 0

    def next(self, protocol: str) -> dict[str, Any]:
        """The next request's fault, `{"fault": "ok"}` for none."""
        if self.protocols is not None and protocol not in self.protocols:
            return {"fault": "ok"}
        if self._place < len(self.script):
            step = self.script[self._place]
            self._place += 1
            return {"fault": step} if isinstance(step, str) else dict(step)
        draw = self._chance.random()
        for name, how in self.faults.items():
            chance = how["p"] if isinstance(how, dict) else how
            if draw < chance:
                return {"fault": name, **(how if isinstance(how, dict) else {})}
            draw -= chance
        return {"fault": "ok"}

    def of(self, texts: Sequence[Any]) -> dict[str, Any] | None:
        """What is planned for one of these texts."""
        return next((dict(self.texts[text]) for text in texts if isinstance(text, str) and text in self.texts), None)

    def is_held(self) -> bool:
        """Whether a request that arrives has to wait for another plan."""
        self._arrived += 1
        return self.hold_after is not None and self._arrived > self.hold_after

    def is_too_fast(self, now: float) -> bool:
        """Whether a request is one too many: of `per_second` with `burst` at once, or on average of any `window_s`."""
        if self.per_second is None:
            return False
        if self.window_s is not None:
            while self._taken and self._taken[0] <= now - self.window_s:
                self._taken.popleft()
            if len(self._taken) >= self.per_second * self.window_s:
                return True
            self._taken.append(now)
            return False
        self._left = min(float(self.burst), self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left < 1:
            return True
        self._left -= 1
        return False
