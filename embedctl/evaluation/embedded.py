"""Texts and questions of a query set through one candidate: cut to what it takes, bought once, kept in the cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedctl import inputs, tokens
from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, InvariantBroken
from embedctl.evaluation.candidates import Candidate, with_cap
from embedctl.evaluation.queries import Item, QuerySet, Question
from embedctl.planning.chunks import Chunks
from embedctl.planning.slice import Slice
from embedctl.planning.text_rules import text_rules
from embedctl.records import UNOBSERVED, Observer
from embedctl.routing.endpoint import Endpoint
from embedctl.runs import adhoc
from embedctl.runs.adhoc import AdhocAnswers
from embedctl.storage.vector_cache import VectorCache

COMMAND = "models compare"


@dataclass(frozen=True, slots=True)
class Cut:
    """Items as one model takes them.

    Attributes:
        texts: On the wire, prefix included; those of an item one after the other.
        starts: Place of the first text of each item.
        bytes: Of the texts, in UTF-8.
        tokens: Of each text.
        tokenizer_id: Who counted; `is_exact`: the model's own tokenizer did.
    """

    texts: list[str]
    starts: list[int]
    bytes: int
    tokens: list[int]
    tokenizer_id: str
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A query set in one model's space.

    Attributes:
        vectors: float32, shape (texts, D), of length 1; rows of 0 where the provider refused a text.
        questions: float32, shape (queries, D), likewise.
        tokens: Of the items' texts, `usage_source`: native where the provider counted all of them, fallback where
            they were counted here, mixed.
        tokens_bought: Of texts and questions that were bought now, as billed; the others came from the cache.
        spent: USD of what was bought now; None when nobody knows. `at_risk`: sent, and no word of what became of it.
        seconds: That the texts took which were bought now; `texts_bought`: so many.
    """

    cut: Cut
    vectors: NDArray[np.float32]
    questions: NDArray[np.float32]
    tokens: int
    usage_source: str
    tokens_bought: int
    spent: Decimal | None
    at_risk: Decimal
    seconds: float
    texts_bought: int

    @staticmethod
    def has_none(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which of them are no vectors: the provider refused the text."""
        return np.asarray(vectors.any(axis=1) == 0)

    @property
    def refused(self) -> tuple[int, int]:
        """Texts, and questions, that have no vector."""
        return int(self.has_none(self.vectors).sum()), int(self.has_none(self.questions).sum())

    @property
    def native(self) -> int:
        """Dimensions of the vectors."""
        return int(self.vectors.shape[1])


def cut(items: Sequence[Item], candidate: Candidate, source: inputs.Source) -> Cut:
    """The items as `embed` would send them, a text over the model's limit in pieces that fit.

    Args:
        source: Whose kind decides whether rows are chunked like documents.
    """
    options, endpoint = candidate.settings.options, candidate.endpoint
    rules = text_rules(endpoint, options, source)
    block: Any = inputs.Block(0, [item.id for item in items], [item.text for item in items])
    found = Chunks(options, rules, {}).of(block, Slice(0, 0, 0))
    texts = [endpoint.prefix + str(chunk.text) for chunk in found]
    positions = [chunk.position for chunk in found]
    starts = np.searchsorted(positions, np.arange(len(items))).tolist()
    if [positions[start] for start in starts if start < len(positions)] != list(range(len(items))):
        raise InvariantBroken(f"an item has no text for {endpoint.id}")
    return Cut(
        texts=texts,
        starts=starts,
        bytes=sum(chunk.content_bytes for chunk in found),
        tokens=rules.counter.count(texts),
        tokenizer_id=rules.counter.tokenizer_id,
        is_exact=rules.counter.tokenizer_id == endpoint.tokenizer,
    )


def check_questions(queries: Sequence[Question], endpoint: Endpoint) -> None:
    """A question must be short enough for the model: none is cut.

    Raises:
        InputInvalid: One is too long.
    """
    if endpoint.max_tokens is None:
        return
    counter = tokens.counter(endpoint.tokenizer, endpoint.fallback_tokenizer)
    for query, count in zip(queries, counter.count([endpoint.prefix + query.text for query in queries]), strict=True):
        if count > endpoint.max_tokens:
            raise InputInvalid(
                f"a question has {count} tokens, {endpoint.id} takes {endpoint.max_tokens}: {query.text[:60]!r} …",
                hint="shorten it, or leave the model out",
            )


def embedded(
    candidate: Candidate,
    query_set: QuerySet,
    pieces: Cut,
    *,
    cache: VectorCache | None,
    left: Decimal | None,
    observer: Observer = UNOBSERVED,
) -> Embedded:
    """Buy what the cache has not; every text once.

    Args:
        left: Of --max-cost.

    Raises:
        BudgetReached: It would cost more than is left; what was bought is in the cache.
        EmbedctlError: The provider cannot serve, or the disk refused.
    """
    began = time.monotonic()
    texts = _each_once(pieces.texts)
    documents = _asked(candidate, list(texts), cache, left, observer, questions=False)
    seconds = time.monotonic() - began
    spent = documents.spending.cost + documents.spending.cost_at_risk
    prefix = candidate.questions.first.prefix
    wires = _each_once([prefix + query.text for query in query_set.queries])
    questions = _asked(candidate, list(wires), cache, None if left is None else left - spent, observer, questions=True)
    width = next(len(vector) for vector in documents.vectors_by_place.values())
    counted, source = _tokens(pieces, texts, documents)
    costs = [each.spending.known_cost for each in (documents, questions)]
    return Embedded(
        cut=pieces,
        vectors=_matrix(documents, [texts[text] for text in pieces.texts], width),
        questions=_matrix(questions, [wires[prefix + query.text] for query in query_set.queries], width),
        tokens=counted,
        usage_source=source,
        tokens_bought=documents.spending.tokens + questions.spending.tokens,
        spent=sum((cost for cost in costs if cost is not None), Decimal(0)) if None not in costs else None,
        at_risk=documents.spending.cost_at_risk + questions.spending.cost_at_risk,
        seconds=seconds,
        texts_bought=len(texts) - len(documents.recalled),
    )


def _asked(
    candidate: Candidate,
    texts: Sequence[str],
    cache: VectorCache | None,
    left: Decimal | None,
    observer: Observer,
    *,
    questions: bool,
) -> AdhocAnswers:
    settings = candidate.query_settings if questions else candidate.settings
    answers = asyncio.run(
        adhoc.embed(
            with_cap(settings, left),
            candidate.questions if questions else candidate.documents,
            texts,
            purpose="test",
            command=COMMAND,
            cache=cache,
            observer=observer,
        )
    )
    if not answers.vectors_by_place:
        why = next(iter(answers.refusals.values())).message
        raise InputInvalid(f"{candidate.endpoint.id} has refused every text: {why}")
    return answers


def _each_once(texts: Sequence[str]) -> dict[str, int]:
    """Text → its place among the different ones."""
    places: dict[str, int] = {}
    for text in texts:
        places.setdefault(text, len(places))
    return places


def _matrix(answers: AdhocAnswers, places: Sequence[int], width: int) -> NDArray[np.float32]:
    """Vectors of length 1 at these places; 0 where there is none."""
    found = np.zeros((len(places), width), np.float32)
    for row, place in zip(found, places, strict=True):
        vector = answers.vector(place)
        if vector is not None:
            row[:] = vector
    return unit(found)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors divided by their length; those of nothing but 0 as they are."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    found: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return found


def _tokens(pieces: Cut, places: dict[str, int], answers: AdhocAnswers) -> tuple[int, str]:
    """Tokens of the texts, and who counted: where the provider did for some, its count is that of the others, too."""
    counted = sum(pieces.tokens)
    told = sum(answer.usage.tokens_total for answer in answers.answers if answer.usage.source == "native")
    if not told:
        return counted, "fallback"
    count_of = dict(zip(pieces.texts, pieces.tokens, strict=True))
    same = sum(count_of[str(text)] for answer in answers.answers if answer.usage.source == "native"
               for text in answer.request.texts)  # fmt: skip
    is_whole = not answers.recalled and len(count_of) == sum(len(a.vectors) for a in answers.answers)
    return round(counted * told / max(1, same)), "native" if is_whole else "mixed"
