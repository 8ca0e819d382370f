"""Steps 1 to 3 as the options want them: how the input is read, which columns stay, what is taken in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedctl import inputs
from embedctl.errors import InputInvalid
from embedctl.outputs import parquet
from embedctl.planning import packer as packers
from embedctl.planning.duplicate_ids import DuplicateIds
from embedctl.planning.planner import Planner
from embedctl.planning.text_rules import text_rules
from embedctl.records import Limits, Refusal
from embedctl.routing.endpoint import Endpoint
from embedctl.settings.options import Options
from embedctl.storage.hash_index import HashIndex


def read_options(options: Options, spool: Path | None, leave_out: tuple[Path, ...] = ()) -> inputs.ReadOptions:
    """How the input is read; a column that names workspaces is read also when it is not kept.

    Args:
        spool: Where what comes through a pipe is kept for the next run.
        leave_out: Files that are no input.
    """
    column = options.workspace_column
    keep: Any = options.keep if options.keep in ("all", "none") else tuple(options.keep.split(","))
    if column is not None and keep != "all":
        keep = tuple(dict.fromkeys([*(() if keep == "none" else keep), column]))
    return inputs.ReadOptions(
        text_column=options.text_column,
        id_column=options.id_column,
        keep=keep,
        split=options.split,
        encoding=options.encoding,
        max_row_bytes=options.max_row_bytes,
        spool=spool,
        leave_out=leave_out,
    )


def check_source(source: inputs.Source, options: Options, folder: Path) -> None:
    """What the options ask of the input beside the columns that are read.

    Args:
        folder: Where an index of ids goes when it is large.

    Raises:
        InputInvalid: No such workspace column, or duplicate ids with --unique-ids.
    """
    column = options.workspace_column
    if column is not None and column not in source.schema_kept.names:
        columns = ", ".join(source.schema_kept.names) or "none"
        raise InputInvalid(f"no column {column!r} to take workspaces from", hint=f"columns: {columns}")
    if options.unique_ids:
        with DuplicateIds(source, folder) as ids:
            for block in source.blocks():
                ids.see(block)
            ids.refuse()


def row_columns(source: inputs.Source, options: Options) -> Any:
    """The fields of the output's rows beside the embedding ones: not a column that only names workspaces."""
    keep, column, kept = options.keep, options.workspace_column, source.schema_kept
    if column is not None and keep != "all" and column not in keep.split(","):
        kept = kept.remove(kept.get_field_index(column))
    return parquet.row_columns(source.id_type, kept, text=keep != "none" and not source.is_tokens)


def packer(source: inputs.Source, endpoint: Endpoint, options: Options) -> packers.Packer:
    """What collects texts into requests."""
    sends_tokens = source.is_tokens and endpoint.takes_tokens and not endpoint.prefix
    return packers.Packer(Limits(), purpose=options.purpose, token_arrays=sends_tokens)


def packed_limits(known: Limits, endpoint: Endpoint, options: Options) -> Limits:
    """What one request of this run may hold."""
    concurrency = endpoint.rate_limits.concurrency
    return packers.packed_limits(
        known, batch_size=options.batch_size, dimensions=endpoint.dimensions, concurrency=concurrency
    )


def intake(
    source: inputs.Source,
    endpoint: Endpoint,
    options: Options,
    packing: packers.Packer,
    known: HashIndex,
    seen: HashIndex,
    failed_before: Mapping[bytes, Refusal],
    denied: Mapping[str, str],
) -> Planner:
    """Steps 2 and 3."""
    columns = row_columns(source, options)
    return Planner(
        options=options,
        wording=text_rules(endpoint, options, source),
        packer=packing,
        known=known,
        seen=seen,
        columns=lambda block, at, chunks, texts: parquet.row_batch(block, at, chunks, texts, columns),
        failed_before=failed_before,
        denied=denied,
    )
