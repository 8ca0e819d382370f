"""Some rows of an input, chosen by chance in one pass, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from embedctl import inputs
from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, WrongUsage
from embedctl.evaluation.queries import Item
from embedctl.records import is_blank

TITLES = ("title", "subject", "headline", "heading")
"""Columns that are taken for titles when none is named."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was chosen, and how much there is.

    Attributes:
        items: In the order of the input.
        rows: Of the whole input that have text; `bytes`: of these texts in UTF-8.
    """

    items: tuple[Item, ...]
    rows: int
    bytes: int
    source: inputs.Source


def read(
    named: Sequence[str],
    options: inputs.ReadOptions,
    *,
    size: int,
    seed: int,
    title_column: str | None,
    wanted: Collection[str] = (),
) -> Sampled:
    """At most `size` rows that have text, each with the same chance, in one pass and bounded memory.

    Args:
        title_column: None: one of TITLES, where there is one.
        wanted: Ids of rows that are kept whatever chance says.

    Raises:
        InputInvalid, InputMissing: It cannot be read.
        WrongUsage: Rows are token arrays.
    """
    title = title_column or _title(named, options)
    source = inputs.open_input(named, replace(options, keep=(title,) if title else "none"))
    if source.is_tokens:
        raise WrongUsage("rows are token arrays: models cannot be compared on them", hint="give the texts")
    names = source.schema_kept.names
    draw = np.random.default_rng(seed)
    certain: list[tuple[float, int, Item]] = []
    kept: list[tuple[float, int, Item]] = []
    bound, rows, size_bytes = 1.0, 0, 0
    for block in source.blocks():
        titles = _strings(block, names[0] if names else None)
        chances = draw.random(len(block)).tolist()
        for at, text in enumerate(block.texts):
            if text is None or is_blank(text):
                continue
            rows += 1
            size_bytes += len(text.encode("utf-8", "surrogatepass"))
            row_id = str(block.ids[at])
            if row_id in wanted:
                certain.append((0.0, block.first_row + at, Item(row_id, text, titles[at])))
            elif chances[at] < bound:
                kept.append((chances[at], block.first_row + at, Item(row_id, text, titles[at])))
        if len(kept) > size:
            kept = sorted(kept, key=lambda one: one[:2])[:size]
            bound = kept[-1][0]
    others = sorted(kept, key=lambda one: one[:2])[: max(0, size - len(certain))]
    chosen = sorted([*certain, *others], key=lambda one: one[1])
    return Sampled(tuple(item for _, _, item in chosen), rows, size_bytes, source)


def asked(file: Path) -> list[tuple[str, str]]:
    """Question and id of each row of a file with the columns `query` and `id`.

    Raises:
        InputInvalid, InputMissing: It cannot be read, or lacks one of them.
    """
    source = inputs.open_input([str(file)], inputs.ReadOptions(text_column="query", id_column="id", keep="none"))
    if source.kind != "table":
        raise InputInvalid(f"{file} is no table", hint="questions stand in the columns query and id of a table")
    found = [
        (text, str(block.ids[at]))
        for block in source.blocks()
        for at, text in enumerate(block.texts)
        if text is not None and not is_blank(text)
    ]
    if not found:
        raise InputInvalid(f"{file} holds no questions")
    return found


def some(asked_for: Sequence[tuple[str, str]], size: int, seed: int) -> list[tuple[str, str]]:
    """As many questions, by chance, as are answered by `size` items together; in their order."""
    order = np.random.default_rng(seed).permutation(len(asked_for)).tolist()
    ids: set[str] = set()
    kept = []
    for place in order:
        row_id = asked_for[place][1]
        if row_id in ids or len(ids) < size:
            ids.add(row_id)
            kept.append(place)
    return [asked_for[place] for place in sorted(kept)]


def _title(named: Sequence[str], options: inputs.ReadOptions) -> str | None:
    """The column that is taken for the titles; None without one."""
    try:
        names = inputs.open_input(named, replace(options, keep="all")).schema_kept.names
    except WrongUsage:  # of an output, whose other columns cannot travel along
        return None
    return next((name for wanted in TITLES for name in names if name.casefold() == wanted), None)


def _strings(block: inputs.Block, column: str | None) -> list[str | None]:
    if column is None or block.kept is None:
        return [None] * len(block)
    values = block.kept.column(column).to_pylist()
    return [None if value is None or is_blank(str(value)) else str(value) for value in values]
