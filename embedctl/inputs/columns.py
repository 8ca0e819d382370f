"""Step 1, tables: which column is the text, which the id, which travel along. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from embedctl.errors import InputInvalid, WrongUsage, nearest
from embedctl.inputs.block import ReadOptions

TEXT_NAMES = ("text", "content", "body", "document", "passage", "chunk", "sentence", "page_content")
ID_NAMES = ("id", "_id", "uuid", "guid", "doc_id", "document_id", "key")
OUR_NAMES = frozenset(
    {
        "id",
        "chunk_index",
        "text",
        "embedding",
        "embedding_model",
        "embedding_provider",
        "embedding_tokens",
        "embedding_operation_id",
        "embedding_text_hash",
    }
)
"""Columns of the output (design.md 5); none of the input may carry one of these names along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What of a table is read.

    Attributes:
        text: Name of the column to embed.
        is_tokens: Whether it holds lists of integers.
        id: Name of the column that names rows; None numbers them.
        id_type: string or an integer type.
        kept: Other columns that travel along, dictionaries resolved, every kind of string as string.
    """

    text: str
    is_tokens: bool
    id: str | None
    id_type: pa.DataType
    kept: pa.Schema

    @property
    def names(self) -> list[str]:
        """All columns to read, each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.kept.names]))


def chosen(schema: pa.Schema, options: ReadOptions, label: str, *, all_text: bool = False) -> Columns:
    """The columns of a table that the options mean, found by name and type where they do not say.

    Args:
        schema: The table's; for formats without types, what the values look like.
        label: The table's name in messages.
        all_text: The format has no types (CSV): every column may be read as text.

    Raises:
        InputInvalid: A column that is not there, is there twice, or is of another type; none that is surely the text.
        WrongUsage: A column that would travel along carries one of our names.
    """
    types = {field.name: plain(field.type) for field in schema}
    if all_text:
        types = {name: pa.string() if pa.types.is_null(column) else column for name, column in types.items()}
    text = _text(types, options, label, all_text)
    named = None if options.id_column is None else _named(options.id_column, types, label)
    if named is not None and not can_be_id(types[named]):
        raise InputInvalid(
            f"{label}: column {named!r} is {types[named]}; an id is text or an integer", hint=_listed(types)
        )
    row_id = named or next((name for name in ID_NAMES if name in types and can_be_id(types[name])), None)
    row_id = None if named is None and row_id == text else row_id
    kept = _kept(types, options, label, {text, row_id})
    counts = Counter(schema.names)
    twice = [name for name in {text, row_id, *kept} if name and counts[name] > 1]
    if twice:
        raise InputInvalid(f"{label}: column {twice[0]!r} is there {counts[twice[0]]} times")
    return Columns(
        text=text,
        is_tokens=not all_text and is_token_list(types[text]),
        id=row_id,
        id_type=pa.int64() if row_id is None else pa.string() if all_text else types[row_id],
        kept=pa.schema([(name, pa.string() if all_text else types[name]) for name in kept]),
    )


def same(first: Columns, first_label: str, other: Columns, other_label: str) -> None:
    """Check that two tables can be read as one.

    Raises:
        InputInvalid: They differ; the first difference is named.
    """
    for what, here, there in (
        ("the text column", other.text, first.text),
        ("the id column", other.id, first.id),
        ("the id's type", str(other.id_type), str(first.id_type)),
        ("token arrays", other.is_tokens, first.is_tokens),
    ):
        if here != there:
            raise _differ(f"{what} is {here!r} in {other_label}, {there!r} in {first_label}")
    mine, yours = ({field.name: str(field.type) for field in each.kept} for each in (other, first))
    for name in dict.fromkeys([*mine, *yours]):
        if name not in mine or name not in yours:
            there, missing = (other_label, first_label) if name in mine else (first_label, other_label)
            raise _differ(f"column {name!r} is in {there}, not in {missing}")
        if mine[name] != yours[name]:
            raise _differ(f"column {name!r} is {mine[name]} in {other_label}, {yours[name]} in {first_label}")


def _differ(how: str) -> InputInvalid:
    return InputInvalid(f"the tables differ: {how}", hint="--keep with the columns they share, or one run for each")


def nested_as_text(columns: Columns) -> Columns:
    """Kept objects and lists as JSON text, for a format whose values may be of any shape."""
    kept = [(each.name, pa.string() if pa.types.is_nested(each.type) else each.type) for each in columns.kept]
    return replace(columns, kept=pa.schema(kept))


def plain(column: pa.DataType) -> pa.DataType:
    """A type without dictionary, every kind of string as string."""
    if pa.types.is_dictionary(column):
        return plain(column.value_type)
    if pa.types.is_large_string(column) or pa.types.is_string_view(column):
        return pa.string()
    return column


def is_token_list(column: pa.DataType) -> bool:
    """Whether it is a list of integers."""
    lists = pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)
    return bool(lists and pa.types.is_integer(column.value_type))


def can_be_id(column: pa.DataType) -> bool:
    """Whether a column of this type may name rows."""
    return bool(pa.types.is_string(column) or pa.types.is_integer(column))


def _text(types: Mapping[str, pa.DataType], options: ReadOptions, label: str, all_text: bool) -> str:
    if options.text_column is not None:
        name = _named(options.text_column, types, label)
        if not (all_text or pa.types.is_string(types[name]) or is_token_list(types[name])):
            raise InputInvalid(
                f"{label}: column {name!r} is {types[name]}, not text", hint=f"--text-column; {_listed(types)}"
            )
        return name
    texts = [name for name, column in types.items() if pa.types.is_string(column)]
    for wanted in (("text",), TEXT_NAMES):
        known = [name for name in texts if name.lower() in wanted]
        if len(known) == 1:
            return known[0]
    others = [name for name in texts if name not in ID_NAMES and name != options.id_column]
    tokens = [name for name, column in types.items() if is_token_list(column)]
    for only in (others, texts, tokens):
        if len(only) == 1:
            return only[0]
        if only:
            break
    raise InputInvalid(
        f"{label}: {'several columns could be' if texts or tokens else 'no column is'} the text",
        hint=f"--text-column NAME; {_listed(types)}" if texts or tokens else _listed(types),
    )


def _kept(types: Mapping[str, pa.DataType], options: ReadOptions, label: str, taken: set[str | None]) -> list[str]:
    if options.keep == "none":
        return []
    wanted = list(types) if options.keep == "all" else [_named(name, types, label) for name in options.keep]
    kept = [name for name in dict.fromkeys(wanted) if name not in taken]
    clash = [name for name in kept if name in OUR_NAMES]
    if clash:
        rest = ",".join(name for name in kept if name not in OUR_NAMES) or "none"
        raise WrongUsage(
            f"{label}: column {clash[0]!r} carries the name of a column of the output",
            hint=f"leave it out with --keep {rest}, or rename it",
        )
    return kept


def _named(wanted: str, types: Mapping[str, pa.DataType], label: str) -> str:
    if wanted in types:
        return wanted
    near = nearest(wanted, list(types))
    raise InputInvalid(
        f"{label}: no column {wanted!r}", hint=f"{f'did you mean {near!r}? ' if near else ''}{_listed(types)}"
    )


def _listed(types: Mapping[str, pa.DataType]) -> str:
    if not types:
        return "it has no columns"
    shown = [f"{name} ({column})" for name, column in list(types.items())[:40]]
    return f"columns: {', '.join(shown)}{', …' if len(types) > 40 else ''}"
