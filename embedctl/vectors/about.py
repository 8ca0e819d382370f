"""What an output holds: its space, rows, failures, who made it, how large it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from embedctl.dataclass import dataclass
from embedctl.records import Space
from embedctl.routing.space_lock import SpaceLock
from embedctl.vectors import agreement, locks
from embedctl.vectors.files import RowBatch, Stored, counts_in

MOST_OPERATIONS = 100_000
"""Operations whose cost is looked up; more would take long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """An output in numbers.

    Attributes:
        makers: (provider, model) → rows.
        tokens: Of all rows that say so; `rows_without_tokens` do not.
        failures: Reason → how often the failures file lists it.
        rows_read: Rows of the input, where the run said it; likewise `failed` and `skipped`.
        operations: Ids in the ledger; None when there are too many.
        lock: Its `space.lock`; None when its runs wrote none.
    """

    path: str
    parts: int
    rows: int
    size_bytes: int
    dtype: str
    has_text: bool
    columns: tuple[str, ...]
    space: Space
    version: str | None
    run_id: str | None
    makers: Mapping[tuple[str, str], int]
    tokens: int
    rows_without_tokens: int
    failures: Mapping[str, int]
    rows_read: int | None
    failed: int | None
    skipped: int | None
    operations: frozenset[str] | None
    lock: SpaceLock | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "parts": self.parts,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "dtype": self.dtype,
            "has_text": self.has_text,
            "columns": list(self.columns),
            "space_id": self.space.space_id,
            "space": self.space.as_dict(),
            "version": self.version,
            "run_id": self.run_id,
            "models": [
                {"provider": provider, "model": model, "rows": rows} for (provider, model), rows in self.makers.items()
            ],
            "tokens": self.tokens,
            "rows_without_tokens": self.rows_without_tokens,
            "failures": dict(self.failures),
            "rows_read": self.rows_read,
            "failed": self.failed,
            "skipped": self.skipped,
            "lock": None if self.lock is None else self.lock.as_dict(),
        }


def about(stored: Stored) -> About:
    """Read everything but vectors and texts.

    Raises:
        InputInvalid: Something cannot be read.
    """
    makers: Counter[tuple[str, str]] = Counter()
    tokens = uncounted = 0
    operations: set[str] | None = set()
    columns = ["embedding_provider", "embedding_model", "embedding_tokens", "embedding_operation_id"]
    for batch in stored.batches(columns, rows=1 << 16):
        makers.update(_makers(batch))
        counted = batch.columns["embedding_tokens"]
        uncounted += counted.null_count
        tokens += int(counted.fill_null(0).to_numpy(zero_copy_only=False).sum(dtype=np.int64))
        if operations is not None:
            which, words = batch.words("embedding_operation_id")
            operations.update(words[at] for at in np.unique(which[which >= 0]))
            if len(operations) > MOST_OPERATIONS:
                operations = None
    record, facts = stored.record or {}, stored.facts
    is_of_another = record.get("state") == "running" and record.get("replacing")  # whose parts are not there
    counts = {} if is_of_another else counts_in(record) or counts_in(facts)
    return About(
        path=str(stored.path),
        parts=len(stored.parts),
        rows=stored.rows,
        size_bytes=stored.size_bytes,
        dtype=stored.dtype,
        has_text=stored.has_text,
        columns=tuple(stored.schema.names),
        space=stored.space,
        version=facts.get("version"),
        run_id=facts.get("run_id"),
        makers=dict(makers.most_common()),
        tokens=tokens,
        rows_without_tokens=uncounted,
        failures=dict(Counter(str(one.get("reason")) for one in agreement.failures(stored)).most_common()),
        rows_read=counts.get("read"),
        failed=counts.get("failed"),
        skipped=counts.get("skipped"),
        operations=None if operations is None else frozenset(operations),
        lock=locks.own_lock(stored),
    )


def _makers(batch: RowBatch) -> dict[tuple[str, str], int]:
    providers, provider_words = batch.words("embedding_provider")
    models, model_words = batch.words("embedding_model")
    pairs, counts = np.unique(np.stack([providers, models]), axis=1, return_counts=True)
    return {
        (provider_words[provider], model_words[model]): int(count)
        for (provider, model), count in zip(pairs.T, counts, strict=True)
    }
