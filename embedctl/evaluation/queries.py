"""Questions whose answers are known: the user's own, or made of the texts themselves. Pure.

A text that stands there twice is one item, so that it takes one place in a ranking, and whoever is found with it is
found. Near-duplicates of a query's target are no part of that query's ranking: finding them is neither right nor wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid
from embedctl.evaluation.duplicates import first_alike, nearly_alike
from embedctl.evaluation.words import normalized
from embedctl.planning.headings import headed

LEAST_ITEMS = 20
LEAST_QUERIES = 10
"""With less, chance decides."""

FEW_ITEMS = 200
"""With less, the first ten are much of everything: that is said."""

_SENTENCE_END = re.compile(r"[.!?…](?=\s)|[。！？]")
_LETTERS = {"title": (3, 300), "sentence": (20, 300)}
"""Least and most of what may be a query."""
_LEAST_REST = 20
"""Letters of a text that is to be found."""

Kind = Literal["title", "heading", "sentence"]


@dataclass(frozen=True, slots=True)
class Item:
    """A row of the input.

    Attributes:
        title: Of the column that says it, which is not in the text.
    """

    id: str
    text: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question.

    Attributes:
        targets: Places of the items that answer it.
        left_out: Places of items that are not ranked for it.
    """

    text: str
    targets: tuple[int, ...]
    left_out: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySet:
    """Items, of which no two have the same text, and queries for them.

    Attributes:
        source: Where the queries are from.
        duplicates: Rows that have the text of another.
        near_duplicates: Queries in whose ranking some items are left out.
        notes: How it was made, in sentences.
    """

    items: tuple[Item, ...]
    queries: tuple[Question, ...]
    source: Literal["known_items", "file"]
    duplicates: int
    near_duplicates: int
    notes: tuple[str, ...]


def known_items(items: Sequence[Item]) -> QuerySet:
    """A query set of texts alone: a title or heading, else the first sentence, asks for the rest of its text.

    Raises:
        InputInvalid: There are too few.
    """
    parts = [_parted(item) for item in items]
    bodies = [item.text if part is None else part[2] for item, part in zip(items, parts, strict=True)]
    kinds: dict[Kind, int] = {}
    asked: list[tuple[str, int]] = []
    for place, part in enumerate(parts):
        if part is not None:
            kinds[part[0]] = kinds.get(part[0], 0) + 1
            asked.append((part[1], place))
    made = [f"{kinds[kind]:,} {words}" for kind, words in _MADE_OF.items() if kind in kinds]
    note = (
        f"queries are made of the texts ({', '.join(made) or 'none'}): the text that is searched lacks them. They rank "
        "models on your texts; real questions (--queries FILE) may rank them otherwise"
    )
    whole = [Item(item.id, body) for item, body in zip(items, bodies, strict=True)]
    return _collected(whole, asked, "known_items", [note])


_MADE_OF: Mapping[Kind, str] = {
    "title": "titles → bodies",
    "heading": "headings → what follows",
    "sentence": "first sentences → the rest",
}


def questions(items: Sequence[Item], asked: Sequence[tuple[str, str]], label: str) -> QuerySet:
    """A query set of the user's own questions.

    Args:
        asked: Question, id of the item that answers it; a question may stand there with several.
        label: What the questions are called in messages.

    Raises:
        InputInvalid: Ids that no item has, or too few of either.
    """
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.id, []).append(place)
    missing = list(dict.fromkeys(wanted for _, wanted in asked if wanted not in places))
    if missing:
        named = ", ".join(repr(one) for one in missing[:3]) + (" …" if len(missing) > 3 else "")
        raise InputInvalid(
            f"{label}: no row with text has the id {named}"
            + (f" ({len(missing):,} such ids)" if len(missing) > 1 else ""),
            hint="its column id names rows of INPUT; --id-column says which column of INPUT they stand in",
        )
    return _collected(items, [(text, place) for text, wanted in asked for place in places[wanted]], "file", [])


def _collected(
    items: Sequence[Item],
    asked: Sequence[tuple[str, int]],
    source: Literal["known_items", "file"],
    notes: list[str],
) -> QuerySet:
    """Each text once, each question once, and who is left out of which ranking.

    Args:
        asked: Question, place of an item.
    """
    first = first_alike([item.text for item in items])
    kept = sorted(set(first))
    place_of = {old: new for new, old in enumerate(kept)}
    targets: dict[str, dict[int, None]] = {}
    texts: dict[str, str] = {}
    for text, place in asked:
        key = normalized(text)
        texts.setdefault(key, text)
        targets.setdefault(key, {})[place_of[first[place]]] = None
    ambiguous = {key for key, found in targets.items() if len(found) > 1} if source == "known_items" else set()
    near = nearly_alike([items[place].text for place in kept])
    queries = [
        Question(text, tuple(targets[key]), _left_out(near, targets[key]))
        for key, text in texts.items()
        if key not in ambiguous
    ]
    duplicates, left_out = len(items) - len(kept), sum(bool(query.left_out) for query in queries)
    _check_enough(len(kept), duplicates, len(queries), source)
    if duplicates:
        notes.append(
            f"{_several(duplicates, 'row has', 'rows have')} the text of another (but for case and spaces): each text "
            "is one item, and a query counts as found when any row with its target's text is"
        )
    if left_out:
        notes.append(
            f"{_several(left_out, 'query has', 'queries have')} a target with near-duplicates (80 % of three-word "
            "sequences in common): these are left out of that query's ranking, neither right nor wrong"
        )
    if ambiguous:
        notes.append(
            f"{_several(len(ambiguous), 'query was', 'queries were')} left out: several texts have the same title or "
            "first sentence"
        )
    if len(kept) < FEW_ITEMS:
        notes.append(
            f"only {len(kept):,} different texts: with chance alone {10 / len(kept):.0%} of all targets are among the "
            "first 10"
        )
    return QuerySet(
        items=tuple(items[place] for place in kept),
        queries=tuple(queries),
        source=source,
        duplicates=duplicates,
        near_duplicates=left_out,
        notes=tuple(notes),
    )


def _left_out(near: Sequence[frozenset[int]], targets: Mapping[int, None]) -> frozenset[int]:
    return frozenset().union(*(near[target] for target in targets)) - targets.keys()


def _check_enough(items: int, duplicates: int, queries: int, source: str) -> None:
    if items < LEAST_ITEMS:
        besides = f" ({duplicates:,} more repeat one of them)" if duplicates else ""
        raise InputInvalid(
            f"{items:,} different texts are too few to compare models on{besides}",
            hint=f"{LEAST_ITEMS} at least, better {FEW_ITEMS} and more",
        )
    if queries < LEAST_QUERIES:
        where = "can be made of the texts" if source == "known_items" else "are too few to compare models on"
        raise InputInvalid(
            f"{queries:,} different queries {where}{'' if source == 'file' else ': too few to compare models on'}",
            hint=f"{LEAST_QUERIES} at least, better 100 and more"
            + ("" if source == "file" else "; --queries FILE has some, with the ids of what should be found"),
        )


def _parted(item: Item) -> tuple[Kind, str, str] | None:
    """How a query is made of an item, the query, and the text without it; None when that leaves too little."""
    if item.title is not None:
        title, body = _line(item.title), item.text.strip()
        if body.startswith(item.title.strip()):
            body = body[len(item.title.strip()) :].lstrip(" \t\r\n.:-")
        return _fitting("title", title, body)
    heading, rest = headed(item.text)
    if heading is not None and (made := _fitting("heading", _line(heading), rest.strip())) is not None:
        return made
    text = item.text.strip()
    for end in _SENTENCE_END.finditer(text):
        if (made := _fitting("sentence", _line(text[: end.end()]), text[end.end() :].strip())) is not None:
            return made
    return None


def _fitting(kind: Kind, query: str, body: str) -> tuple[Kind, str, str] | None:
    least, most = _LETTERS["sentence" if kind == "sentence" else "title"]
    if not least <= len(query) <= most or len(body) < _LEAST_REST:
        return None
    return kind, query, body


def _several(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _line(text: str) -> str:
    return " ".join(text.split())
