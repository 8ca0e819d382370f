"""Step 1, tables: which column is the text, which the id, which travel along. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace

import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, WrongUsage, nearest
from embedctl.inputs import template as templates
from embedctl.inputs.block import ReadOptions
from embedctl.inputs.row_ids import WORDS, can_be_id, is_text
from embedctl.inputs.template import Template

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
        text: Name of the column to embed; the first of `template`, where there is one.
        template: What the text is made of instead, columns as the table spells them.
        is_tokens: Whether it holds lists of integers.
        id: Name of the column that names rows; None numbers them.
        id_type: Of the id, without dictionary; every kind of string is string.
        kept: Other columns that travel along, dictionaries resolved, every kind of string as string.
        parts: The columns of `template`.
    """

    text: str
    is_tokens: bool
    id: str | None
    id_type: pa.DataType
    kept: pa.Schema
    template: Template | None = None
    parts: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @property
    def read(self) -> Columns:
        """What is read of the table: with a template, its columns as kept ones."""
        return self if self.template is None else replace(self, kept=_united(self.kept, self.parts))

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that the text is made of."""
        return (self.text,) if self.template is None else tuple(dict.fromkeys(self.template.columns))

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
    types = {each.name: plain(each.type) for each in schema}
    if all_text:
        types = {name: pa.string() if pa.types.is_null(column) else column for name, column in types.items()}
    template = _template(types, options, label)
    text = template.columns[0] if template else _text(types, options, label, all_text)
    named = None if options.id_column is None else _named(options.id_column, types, label)
    able = [name for name, column in types.items() if all_text or can_be_id(column)]
    if named is not None and named not in able:
        raise InputInvalid(f"{label}: column {named!r} is {types[named]}; an id is {WORDS}", hint=_listed(types))
    row_id = named or _found_id(able, None if template else text, label)
    kept = _kept(types, options, label, {row_id} if template else {text, row_id})
    counts = Counter(schema.names)
    parts = dict.fromkeys(template.columns) if template else {}
    twice = [name for name in {text, row_id, *kept, *parts} if name and counts[name] > 1]
    if twice:
        raise InputInvalid(f"{label}: column {twice[0]!r} is there {counts[twice[0]]} times")
    return Columns(
        text=text,
        is_tokens=not all_text and template is None and is_token_list(types[text]),
        id=row_id,
        id_type=pa.int64() if row_id is None else pa.string() if all_text else types[row_id],
        kept=pa.schema([(name, pa.string() if all_text else types[name]) for name in kept]),
        template=template,
        parts=pa.schema([(name, pa.string() if all_text else types[name]) for name in parts]),
    )


def _template(types: Mapping[str, pa.DataType], options: ReadOptions, label: str) -> Template | None:
    """The template that the options mean; a column whose whole name holds commas is no template."""
    asked = options.text_column
    if options.template is not None:
        found = templates.parsed(options.template)
    elif asked is not None and "," in asked and matching(asked, types, label) is None:
        found = templates.joined(asked)
    else:
        return None
    found = found.named(lambda name: _named(name, types, label))
    for name in found.columns:
        if not templates.can_be_part(types[name]):
            raise InputInvalid(f"{label}: column {name!r} is {types[name]}, which is no part of a text")
    return found


def _united(kept: pa.Schema, parts: pa.Schema) -> pa.Schema:
    return pa.schema([*kept, *(part for part in parts if part.name not in kept.names)])


def nested_as_text(columns: Columns) -> Columns:
    """Kept objects and lists as JSON text, for a format whose values may be of any shape."""
    kept, parts = (
        pa.schema([(each.name, pa.string() if pa.types.is_nested(each.type) else each.type) for each in schema])
        for schema in (columns.kept, columns.parts)
    )
    return replace(columns, kept=kept, parts=parts)


def plain(column: pa.DataType) -> pa.DataType:
    """A type without dictionary, every kind of string as string, and no views, of which arrow takes no rows."""
    if pa.types.is_dictionary(column):
        return plain(column.value_type)
    if is_text(column):
        return pa.string()
    return _without_views(column)


def _without_views(column: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(column):
        return pa.string()
    if pa.types.is_binary_view(column):
        return pa.binary()
    if not pa.types.is_nested(column) or pa.types.is_union(column):
        return column
    parts = [column.field(at) for at in range(column.num_fields)]
    without = [part.with_type(_without_views(part.type)) for part in parts]
    if without == parts:
        return column
    if pa.types.is_struct(column):
        return pa.struct(without)
    if pa.types.is_map(column):
        pair = without[0].type
        return pa.map_(pair.field(0), pair.field(1), keys_sorted=column.keys_sorted)
    if pa.types.is_fixed_size_list(column):
        return pa.list_(without[0], column.list_size)
    large = pa.types.is_large_list(column) or pa.types.is_large_list_view(column)
    return pa.large_list(without[0]) if large else pa.list_(without[0])


def is_bytes(column: pa.DataType) -> bool:
    """Whether its values are bytes of any length, which Impala, Hive and old Spark write for text."""
    sized = pa.types.is_binary(column) or pa.types.is_large_binary(column)
    return bool(sized or pa.types.is_binary_view(column))


def is_token_list(column: pa.DataType) -> bool:
    """Whether it is a list of integers."""
    lists = pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)
    return bool(lists and pa.types.is_integer(column.value_type))


def _text(types: Mapping[str, pa.DataType], options: ReadOptions, label: str, all_text: bool) -> str:
    if options.text_column is not None:
        name = _named(options.text_column, types, label)
        is_able = pa.types.is_string(types[name]) or is_bytes(types[name]) or is_token_list(types[name])
        if not (all_text or is_able):
            raise InputInvalid(
                f"{label}: column {name!r} is {types[name]}, not text", hint=f"--text-column; {_listed(types)}"
            )
        return name
    texts = [name for name, column in types.items() if pa.types.is_string(column)]
    able = [name for name, column in types.items() if pa.types.is_string(column) or is_bytes(column)]
    if known := matching("text", able, label):
        return known
    known_names = [name for name in able if name.lower() in TEXT_NAMES]
    if len(known_names) == 1:
        return known_names[0]
    row_id = options.id_column
    others = [name for name in texts if name.lower() not in ID_NAMES and not (row_id and is_name(name, row_id))]
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


def is_name(name: str, wanted: str) -> bool:
    """Whether a column is the one that is meant, as DuckDB has it: without regard to case."""
    return name == wanted or name.lower() == wanted.lower()


def matching(wanted: str, names: Iterable[str], label: str) -> str | None:
    """The column that a name means: the very name, else the one that differs by case only; None without one.

    Raises:
        InputInvalid: Several differ from it, and so from each other, by case only.
    """
    found = [name for name in names if is_name(name, wanted)]
    if wanted in found:
        return wanted
    if len(found) > 1:
        raise InputInvalid(
            f"{label}: {found[0]!r} and {found[1]!r} are both {wanted!r} but for case",
            hint="name the column exactly as it is spelt",
        )
    return found[0] if found else None


def _named(wanted: str, types: Mapping[str, pa.DataType], label: str) -> str:
    name = matching(wanted, types, label)
    if name is not None:
        return name
    near = nearest(wanted, list(types))
    raise InputInvalid(
        f"{label}: no column {wanted!r}", hint=f"{f'did you mean {near!r}? ' if near else ''}{_listed(types)}"
    )


def _found_id(able: Sequence[str], text: str | None, label: str) -> str | None:
    found = next(filter(None, (matching(name, able, label) for name in ID_NAMES)), None)
    return None if found is not None and found == text else found


def _listed(types: Mapping[str, pa.DataType]) -> str:
    if not types:
        return "it has no columns"
    shown = [f"{name} ({column})" for name, column in list(types.items())[:40]]
    return f"columns: {', '.join(shown)}{', …' if len(types) > 40 else ''}"
