"""Models side by side: what each finds of what should be found, what it would cost and store, and which are best.

Pure, but for `compare`, which buys vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedctl.dataclass import dataclass
from embedctl.evaluation import retrieval
from embedctl.evaluation.bm25 import KeywordIndex
from embedctl.evaluation.candidates import Candidate
from embedctl.evaluation.collection import Sampled
from embedctl.evaluation.embedded import Cut, Embedded, check_questions, cut, embedded, unit
from embedctl.evaluation.queries import QuerySet, Question
from embedctl.evaluation.retrieval import Quality
from embedctl.evaluation.words import words
from embedctl.ledger.prices.price import cost
from embedctl.outputs.parquet import quantised
from embedctl.planning import splitter
from embedctl.planning.packer import packed_limits
from embedctl.records import UNOBSERVED, Observer, format_money
from embedctl.runs.estimate import seconds_at_limits
from embedctl.storage.vector_cache import VectorCache

HOURS_A_MONTH = 730
"""Of a machine that runs all the time: 365 x 24 / 12."""

Dtype = Literal["float32", "int8"]
_BYTES: dict[Dtype, int] = {"float32": 4, "int8": 1}
_SHORT = range(1, splitter.DEFAULT_SIZE)  # limits that make chunks smaller
BASELINE = "keywords (BM25)"
_DECIMALS = 9  # of amounts that are no whole number of tokens' prices


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What embedding the whole input takes. Money in USD; None where nobody knows.

    Attributes:
        tokens, texts: Of the whole input, by the sample's ratio to its bytes.
        month: Of as many rows as come in a month; of a machine by the hour, that of a month of hours.
        seconds: At the provider's limits; None without limits.
        seconds_measured: As fast as the sample's texts were answered; None when none were asked for.
    """

    tokens: int
    texts: int
    cost: Decimal | None
    cost_batch: Decimal | None
    month: Decimal | None
    month_batch: Decimal | None
    seconds: float | None
    seconds_measured: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model at one width and number type.

    Attributes:
        is_trained: For this width.
        bytes: Of all vectors of the whole input.
        pareto: No other variant is at least as good in MRR, cost of the input and bytes, and better in one; None where
            the cost is not known.
        as_good_as_best: The distance of its MRR from the best one's may be chance (95 %).
    """

    model: str
    dimensions: int
    dtype: Dtype
    is_trained: bool
    quality: Quality
    expected: Expected
    embedded: Embedded
    per_hour: Decimal | None
    bytes: int
    pareto: bool | None = None
    as_good_as_best: bool = True

    def as_dict(self, resamples: NDArray[np.float64]) -> dict[str, Any]:
        """For programs."""
        expected = self.expected
        return {
            "model": self.model,
            "dimensions": self.dimensions,
            "dtype": self.dtype,
            "trained": self.is_trained,
            **self.quality.as_dict(resamples),
            "tokens": self.embedded.tokens,
            "usage_source": self.embedded.usage_source,
            "texts": len(self.embedded.cut.texts),
            "tokens_input": expected.tokens,
            "cost_sample": _money(self.embedded.spent),
            "cost_input": _money(expected.cost),
            "cost_input_batch": _money(expected.cost_batch),
            "cost_month": _money(expected.month),
            "cost_month_batch": _money(expected.month_batch),
            "per_hour": _money(self.per_hour),
            "bytes": self.bytes,
            "seconds": expected.seconds,
            "seconds_measured": expected.seconds_measured,
            "pareto": self.pareto,
            "as_good_as_best": self.as_good_as_best,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All variants of all candidates, and keyword search beside them."""

    variants: Sequence[Variant]
    baseline: Quality
    query_set: QuerySet
    sampled: Sampled
    rows_a_month: int
    seed: int
    resamples: NDArray[np.float64] = field(repr=False)
    warnings: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For programs (design.md 16)."""
        return {
            "schema_version": 1,
            "candidates": [one.as_dict(self.resamples) for one in self.variants],
            "baseline": {"model": BASELINE, **self.baseline.as_dict(self.resamples)},
            "queries": len(self.query_set.queries),
            "queries_from": self.query_set.source,
            "sample": len(self.query_set.items),
            "duplicates": self.query_set.duplicates,
            "near_duplicates": self.query_set.near_duplicates,
            "rows": self.sampled.rows,
            "rows_per_month": self.rows_a_month,
            "seed": self.seed,
            "currency": "USD",
            "warnings": list(self.warnings),
        }


def compare(
    candidates: Sequence[Candidate],
    query_set: QuerySet,
    sampled: Sampled,
    *,
    seed: int,
    dimensions: Sequence[int] = (),
    rows_a_month: int | None = None,
    max_cost: Decimal | None = None,
    cache: VectorCache | None = None,
    observer: Observer = UNOBSERVED,
    tell: Callable[[Candidate, int, int], None] = lambda candidate, texts, questions: None,
) -> Comparison:
    """Embed the query set through each candidate, and measure.

    Args:
        dimensions: Widths to look at beside the models' own; none: those that they were trained for.
        rows_a_month: None: as many as the input has.
        cache: None: everything is bought anew.
        tell: Told before each candidate: how many texts and questions it gets.

    Raises:
        InputInvalid: A question is too long for a candidate, or one refuses every text.
        EmbedctlError: As the call point does; what was bought is in the cache.
    """
    rows_a_month = sampled.rows if rows_a_month is None else rows_a_month
    pieces: list[Cut] = []
    for candidate in candidates:  # all that can be wrong is known before anything is bought
        check_questions(query_set.queries, candidate.questions.first)
        pieces.append(cut(query_set.items, candidate, sampled.source))
    weights = retrieval.resamples(len(query_set.queries), seed)
    variants: list[Variant] = []
    notes: list[str] = []
    for candidate, texts in zip(candidates, pieces, strict=True):
        tell(candidate, len(texts.texts), len(query_set.queries))
        found = embedded(candidate, query_set, texts, cache=cache, left=max_cost, observer=observer)
        if max_cost is not None:
            max_cost -= (found.spent or Decimal(0)) + found.at_risk
        expected = _expected(candidate, found, query_set, sampled, rows_a_month)
        variants += _variants(candidate, found, expected, query_set.queries, dimensions)
        notes += _notes(candidate, found, expected, dimensions, len(query_set.items))
    baseline = retrieval.quality(_keywords(query_set), query_set.queries)
    variants = _judged(variants, weights)
    return Comparison(
        variants=variants,
        baseline=baseline,
        query_set=query_set,
        sampled=sampled,
        rows_a_month=rows_a_month,
        seed=seed,
        resamples=weights,
        warnings=tuple(dict.fromkeys([*_about_all(query_set, sampled), *notes, *_beaten(variants, baseline)])),
    )


def _variants(
    candidate: Candidate, found: Embedded, expected: Expected, queries: Sequence[Question], asked: Sequence[int]
) -> list[Variant]:
    made = []
    dtypes: tuple[Dtype, ...] = ("float32", "int8")
    for width, is_trained in candidate.widths(found.native, asked):
        for dtype in dtypes:
            scores = _cosines(found, width, dtype)
            made.append(
                Variant(
                    model=candidate.endpoint.id,
                    dimensions=width,
                    dtype=dtype,
                    is_trained=is_trained,
                    quality=retrieval.quality(scores, queries),
                    expected=expected,
                    embedded=found,
                    per_hour=candidate.endpoint.per_hour,
                    bytes=expected.texts * width * _BYTES[dtype],
                )
            )
    return made


def _cosines(found: Embedded, width: int, dtype: Dtype) -> retrieval.Scores:
    """Cosine of each question with each item: that of the item's best text. Only stored vectors are ever int8."""
    texts = unit(found.vectors[:, :width])
    has_none = found.has_none(found.vectors)
    if dtype == "int8":
        texts[~has_none] = unit(quantised(texts[~has_none], "int8").astype(np.float32))
    questions, starts = unit(found.questions[:, :width]), found.cut.starts
    has_none_asked = found.has_none(found.questions)

    def scores(first: int, last: int) -> NDArray[np.float32]:
        cosines = questions[first:last] @ texts.T
        cosines[:, has_none] = -np.inf
        cosines[has_none_asked[first:last]] = -np.inf
        best: NDArray[np.float32] = np.maximum.reduceat(cosines, starts, axis=1)
        return best

    return scores


def _keywords(query_set: QuerySet) -> retrieval.Scores:
    index = KeywordIndex([words(item.text) for item in query_set.items])
    asked = [words(query.text) for query in query_set.queries]
    return lambda first, last: index.scores(asked[first:last])


def _expected(
    candidate: Candidate, found: Embedded, query_set: QuerySet, sampled: Sampled, rows_a_month: int
) -> Expected:
    """What the whole input takes: tokens in proportion to the bytes of the sample's texts, texts to its rows."""
    endpoint = candidate.endpoint
    chosen = sum(len(item.text.encode("utf-8", "surrogatepass")) for item in query_set.items)
    ratio = sampled.bytes / chosen
    tokens = math.ceil(found.tokens * ratio)
    texts = math.ceil(len(found.cut.texts) * sampled.rows / len(query_set.items))
    price, batch = candidate.price, candidate.batch_price
    whole = None if price is None else cost(tokens, price)
    whole_batch = None if batch is None else cost(tokens, batch)
    month_share = Decimal(rows_a_month) / max(1, sampled.rows)
    if endpoint.per_hour is not None:
        bought = found.tokens_bought
        whole = round(found.spent * tokens / bought, _DECIMALS) if bought and found.spent is not None else None
    month = None if whole is None else round(whole * month_share, _DECIMALS)
    limits = packed_limits(
        endpoint.limits,
        batch_size=candidate.settings.options.batch_size,
        dimensions=found.native,
        concurrency=endpoint.rate_limits.concurrency,
    )
    requests = max(math.ceil(texts / (limits.items or texts)), math.ceil(tokens / (limits.tokens or tokens or 1)))
    measured = (
        round(found.seconds * len(found.cut.texts) / found.texts_bought * ratio, 1) if found.texts_bought else None
    )
    return Expected(
        tokens=tokens,
        texts=texts,
        cost=whole,
        cost_batch=whole_batch,
        month=endpoint.per_hour * HOURS_A_MONTH if endpoint.per_hour is not None else month,
        month_batch=None if whole_batch is None else round(whole_batch * month_share, _DECIMALS),
        seconds=seconds_at_limits(endpoint, requests, texts, tokens),
        seconds_measured=measured,
    )


def _judged(variants: Sequence[Variant], weights: NDArray[np.float64]) -> list[Variant]:
    """Which are Pareto-best, and which are as good as the best as far as these queries can tell."""
    best = max(variants, key=lambda one: one.quality.mean("mrr"))
    judged = []
    for one in variants:
        behind = one.quality.lead(best.quality, "mrr", weights)
        judged.append(replace(one, pareto=is_pareto_best(one, variants), as_good_as_best=one is best or behind[1] >= 0))
    return judged


def is_pareto_best(one: Variant, variants: Sequence[Variant]) -> bool | None:
    """Whether no other is at least as good in everything and better in something; None without a known cost."""
    mine = _merits(one)
    if mine is None:
        return None
    others = [merits for merits in map(_merits, variants) if merits is not None and merits != mine]
    return not any(t[0] >= mine[0] and t[1] >= mine[1] and t[2] >= mine[2] for t in others)


def _merits(one: Variant) -> tuple[float, Decimal, int] | None:
    """The greater the better."""
    if one.expected.cost is None:
        return None
    return round(one.quality.mean("mrr"), 4), -one.expected.cost, -one.bytes


def _about_all(query_set: QuerySet, sampled: Sampled) -> list[str]:
    notes = list(query_set.notes)
    chosen = len(query_set.items) + query_set.duplicates
    if chosen < sampled.rows:
        notes.append(
            f"searched are {chosen:,} of {sampled.rows:,} rows: among all of them less is found. The figures compare "
            "models; costs, bytes and times are those of all rows, in proportion to the bytes of their texts"
        )
    return [*notes, *sampled.source.warnings]


def _notes(candidate: Candidate, found: Embedded, expected: Expected, asked: Sequence[int], items: int) -> list[str]:
    endpoint, name = candidate.endpoint, candidate.endpoint.id
    notes = []
    if len(found.cut.texts) > items:
        limit = f" (it takes {endpoint.max_tokens:,} tokens)" if (endpoint.max_tokens or 0) in _SHORT else ""
        notes.append(
            f"{name}: {items:,} items are {len(found.cut.texts):,} texts{limit}; an item's score is its best text's"
        )
    if endpoint.per_hour is not None:
        notes.append(
            f"{name}: cost of the input by the time that its machine took for the sample; a month is "
            f"{HOURS_A_MONTH} hours at {format_money(endpoint.per_hour)} USD"
        )
        if expected.cost is None:
            notes.append(
                f"{name}: all vectors came from the cache, so what its time costs is not known: --no-cache asks"
            )
    elif candidate.price is None:
        notes.append(f"{name} has no price: what it costs is unknown until `embedctl prices set` tells one")
    if found.usage_source != "native" and candidate.price != 0:
        counted = "in part " if found.usage_source == "mixed" else ""
        if not found.cut.is_exact:
            notes.append(f"{name}: tokens are {counted}counted by {found.cut.tokenizer_id}, not by its own tokenizer")
        if found.texts_bought < len(set(found.cut.texts)):
            notes.append(
                f"{name}: tokens of texts that came from the cache are counted here, not those that were billed for "
                "them: --no-cache asks again"
            )
    refused = [f"{count:,} {what}" for count, what in zip(found.refused, ("texts", "queries"), strict=True) if count]
    if refused:
        notes.append(f"{name} refused {' and '.join(refused)}: what they would find counts as not found")
    untrained = [str(width) for width, is_trained in candidate.widths(found.native, asked) if not is_trained]
    if untrained:
        notes.append(f"{name} is not known to be trained for {', '.join(untrained)} dimensions: `embed` needs --force")
    return notes


def _beaten(variants: Sequence[Variant], baseline: Quality) -> list[str]:
    """Models that find no more than keywords do."""
    best: dict[str, float] = {}
    for one in variants:
        best[one.model] = max(best.get(one.model, 0.0), one.quality.mean("mrr"))
    worse = [name for name, mrr in best.items() if mrr <= baseline.mean("mrr")]
    return [f"keyword search ranks no worse than {', '.join(worse)} (MRR {baseline.mean('mrr'):.3f})"] if worse else []


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else format_money(amount)
