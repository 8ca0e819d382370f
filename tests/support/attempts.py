"""Attempts and answers for the tests of journal and runs."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np

from embedctl.journal import Journal, Trust
from embedctl.records import UsageEvent, text_hash, uuid7

SECRET = bytes(range(32))
TRUST = Trust(SECRET)
"""Of the home that the tests' journals are made in."""

TEXTS = ["alpha", "beta", "gamma"]
HASHES = b"".join(map(text_hash, TEXTS))


def die(book: Journal) -> None:
    """The journal's process is gone: what it held open is closed, and nothing more comes of it."""
    for segment in list(book._writer._segments.values()):
        segment.close()


def intent(**changes: object) -> UsageEvent:
    event = UsageEvent(
        event_id=uuid7(),
        workspace_id="default",
        operation_id="operation",
        provider="fake",
        model="fake",
        occurred_at=datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC),
        status="ok",
        billable="yes",
        tokens_total=0,
        usage_mode="auto",
        usage_source="native",
        tokens_estimated=30,
        input_count=3,
        content_bytes=14,
    )
    return dataclasses.replace(event, **changes)  # type: ignore[arg-type]


def vectors(seed: int, count: int = 3, dimensions: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
