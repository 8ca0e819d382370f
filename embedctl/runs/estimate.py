"""`--dry-run`: what a run would do, take and cost. Reads the input as the run would; sends and changes nothing."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl import inputs, tokens
from embedctl.dataclass import dataclass
from embedctl.ledger.prices.price import cost
from embedctl.outputs import Existing
from embedctl.planning.packer import PackedRequest
from embedctl.records import UNOBSERVED, LimitForeseen, Observer, Progressed
from embedctl.routing.endpoint import Endpoint
from embedctl.runs import foundations, wiring
from embedctl.runs.progress import EVERY_S, large
from embedctl.settings.options import Options
from embedctl.storage.token_count_cache import RunCounts

SAMPLE_TEXTS = 1000
"""So many texts are counted exactly; all of them, when there are no more."""

FIRST_TEXTS = 20
"""So many are counted for what is said before the end."""

Z_95 = 1.96
"""Two-sided 95 % of the normal distribution."""


MOST_WORKSPACES = 1000
"""In an estimate for programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceEstimate:
    """What a run would about send for one workspace; the cost is None where nobody knows a price."""

    workspace: str
    texts: int
    tokens: int
    cost: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would do. Money in USD; None where nobody knows a price or a limit.

    Attributes:
        texts: Chunks that would be sent; `reused` and `duplicates` would not.
        failed: Rows that would fail here, before anything is sent.
        tokens: Of `texts`; with 95 % between tokens_low and tokens_high.
        cost_batch: The same through the provider's own batch interface, where it has a price.
        seconds: At the least, at the limits per minute; None without limits.
        mode: What the run would use: "online" or "batch"; `mode_reason` says why.
        seconds_batch: At the most, as the provider promises; None where it has no Batch API for this.
        per_hour: Of the place's machine, where that is what it costs: how long it takes nobody knows.
        workspaces: Who would pay, the one who would pay most first.
        by_row: Whether each row names who pays. Not part of the JSON object.
        limits: Limits on spending that it would meet.
    """

    model: str
    rows: int
    texts: int
    reused: int
    duplicates: int
    failed: int
    skipped: int
    requests: int
    tokens: int
    tokens_low: int
    tokens_high: int
    counted: int
    cost: Decimal | None
    cost_low: Decimal | None
    cost_high: Decimal | None
    cost_batch: Decimal | None
    seconds: float | None
    mode: str = "online"
    mode_reason: str | None = None
    seconds_batch: float | None = None
    currency: str = "USD"
    per_hour: Decimal | None = None
    workspaces: tuple[WorkspaceEstimate, ...] = ()
    by_row: bool = False
    limits: tuple[LimitForeseen, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        said = {"dry_run": True, **asdict(self)}
        said["workspaces"] = said["workspaces"][:MOST_WORKSPACES]
        del said["by_row"]
        for shown, one in zip(said["limits"], self.limits, strict=True):
            shown["outcome"] = one.outcome
        return said


@dataclass(slots=True)
class _Share:
    """Texts of one workspace; see `_TokenSample`."""

    texts: int = 0
    content_bytes: int = 0
    known_tokens: int = 0


@dataclass(slots=True)
class _TokenSample:
    """A fair sample of texts (reservoir), and the sums of all."""

    chance: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - no secret depends on it
    texts: list[str] = field(default_factory=list)
    density: float = 0.0
    seen: int = 0
    all_texts: int = 0
    content_bytes: int = 0
    known_tokens: int = 0
    shares: dict[str, _Share] = field(default_factory=dict)

    def take(self, packed: PackedRequest) -> None:
        request = packed.request
        share = self.shares.setdefault(request.workspace_id, _Share())
        self.all_texts += len(request)
        share.texts += len(request)
        if request.tokens is not None:
            self.known_tokens += request.tokens
            share.known_tokens += request.tokens
            return
        self.content_bytes += request.content_bytes
        share.content_bytes += request.content_bytes
        for text in request.texts:
            self.seen += 1
            if len(self.texts) < SAMPLE_TEXTS:
                self.texts.append(str(text))
            elif (place := self.chance.randrange(self.seen)) < SAMPLE_TEXTS:
                self.texts[place] = str(text)

    def tokens_so_far(self, counter: tokens.Counter) -> int:
        """About; from the first texts, which are counted once."""
        if not self.density and self.texts:
            first = self.texts[:FIRST_TEXTS]
            first_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in first)
            self.density = sum(counter.count(first)) / max(1, first_bytes)
        return self.known_tokens + round(self.density * self.content_bytes)

    def tokens(self, counter: tokens.Counter, kept: RunCounts) -> tuple[int, int]:
        """Tokens of all texts, and half the width of their 95 % interval: 0 when all of them were counted."""
        if not self.texts:
            return self.known_tokens, 0
        counts = kept.of(counter, self.texts)
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in self.texts]
        ratio = sum(counts) / max(1, sum(sizes))
        if self.seen == len(self.texts):
            return self.known_tokens + sum(counts), 0
        n = len(counts)
        spread = sum((count - ratio * size) ** 2 for count, size in zip(counts, sizes, strict=True)) / (n - 1)
        error = self.seen * math.sqrt(spread / n * (1 - n / self.seen))
        return self.known_tokens + round(ratio * self.content_bytes), math.ceil(Z_95 * error)


def _shares(sample: _TokenSample, total: int, unit: Decimal | None) -> tuple[WorkspaceEstimate, ...]:
    """Who would pay for what of `total` tokens, each by the bytes of its texts."""
    rest = total - sample.known_tokens
    found = []
    for workspace, share in sample.shares.items():
        tokens_of = share.known_tokens + round(rest * share.content_bytes / max(1, sample.content_bytes))
        of = None if unit is None else cost(tokens_of, unit)
        found.append(WorkspaceEstimate(workspace=workspace, texts=share.texts, tokens=tokens_of, cost=of))
    return tuple(sorted(found, key=lambda one: (-one.tokens, one.workspace)))


def estimate(
    source: inputs.Source,
    endpoint: Endpoint,
    options: Options,
    existing: Existing,
    denied: Mapping[str, str],
    price: Callable[[str], Decimal | None],
    observer: Observer = UNOBSERVED,
    clock: Callable[[], float] = time.monotonic,
) -> Estimate:
    """Read the input, and add up what a run would send.

    Args:
        existing: What the output holds; nothing of it is touched.
        denied: Workspaces of rows that may not use the model.
        price: Price tier ("standard", "batch") → USD per million tokens.
        observer: Told how far it is.
    """
    sample = _TokenSample()
    rows = failed = skipped = requests = 0
    counter = tokens.counter(endpoint.tokenizer, endpoint.fallback_tokenizer)
    unit, batch = price("standard"), price("batch")
    told, is_chunking = clock(), False
    cutting: tuple[str, int] | None = None

    def tell() -> None:
        nonlocal told
        if (now := clock()) - told >= EVERY_S:
            told, so_far = now, sample.tokens_so_far(counter)
            money = None if unit is None else cost(so_far, unit)
            so_far_told = _so_far(source, rows, is_chunking, sample.all_texts, so_far, money)
            observer.notify(replace(so_far_told, cutting=cutting))

    def cut(rows_cut: int, name: str, characters: int) -> None:
        nonlocal rows, is_chunking, cutting, told
        rows, is_chunking, cutting = rows_cut, True, large(name, characters)
        if cutting is not None:
            told = -EVERY_S  # or nothing is told until it is cut
        tell()

    packing = wiring.packer(source, endpoint, options)
    packing.limits = foundations.packed_limits(endpoint.limits, endpoint, options)
    with tempfile.TemporaryDirectory(prefix="embedctl-") as name:
        wiring.check_source(source, options, Path(name))
        with wiring.planner(
            source,
            endpoint,
            options,
            packing,
            Path(name),
            existing=existing,
            denied=denied,
            cut=cut,
        ) as planner:
            blocks: Iterator[Any] = source.blocks()
            for block in blocks:
                slice_ = planner.open_slice(0, block.first_row)
                for packed in planner.take(block, slice_):
                    sample.take(packed)
                rows = block.first_row + len(block)
                tell()
                lost = {one.row for one in slice_.failures if not one.skipped} | {
                    slice_.row_of[at] for at, place in enumerate(slice_.rows) if place in slice_.refusals
                }
                failed += len(lost)
                skipped += len({one.row for one in slice_.failures if one.skipped} - lost)
            for packed in packing.rest():
                sample.take(packed)
            requests, reused, duplicates = packing.packed, planner.reused, planner.duplicates
    total, error = sample.tokens(counter, endpoint.counts)
    endpoint.counts.close()
    low, high = max(0, total - error), total + error
    return Estimate(
        model=endpoint.id,
        rows=rows,
        texts=sample.all_texts,
        reused=reused,
        duplicates=duplicates,
        failed=failed,
        skipped=skipped,
        requests=requests,
        tokens=total,
        tokens_low=low,
        tokens_high=high,
        counted=len(sample.texts),
        cost=None if unit is None else cost(total, unit),
        cost_low=None if unit is None else cost(low, unit),
        cost_high=None if unit is None else cost(high, unit),
        cost_batch=None if batch is None else cost(total, batch),
        seconds=seconds_at_limits(endpoint, requests, sample.all_texts, total),
        per_hour=endpoint.per_hour,
        workspaces=_shares(sample, total, unit),
        by_row=options.workspace_column is not None,
    )


def _so_far(
    source: inputs.Source, rows: int, is_chunking: bool, texts: int, tokens_so_far: int, money: Decimal | None
) -> Progressed:
    total = source.rows_hint
    return Progressed(
        rows=rows,
        rows_total=total,
        in_flight=0,
        tokens=tokens_so_far,
        cost=money,
        phase="chunking" if is_chunking else "reading",
        rows_read=rows,
        documents=source.is_document,
        share_read=min(1.0, rows / total) if total else source.share_read,
        texts=texts,
    )


def seconds_at_limits(endpoint: Endpoint, requests: int, texts: int, total: int) -> float | None:
    """The time that the limits per minute ask for."""
    rate_limits = endpoint.rate_limits
    minutes = []
    if rate_limits.requests_per_minute:
        minutes.append((texts if rate_limits.counts_items else requests) / rate_limits.requests_per_minute)
    if rate_limits.tokens_per_minute:
        minutes.append(total / rate_limits.tokens_per_minute)
    return round(60 * max(minutes), 1) if minutes else None
