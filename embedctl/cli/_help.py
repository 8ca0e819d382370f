"""How `--help` shows the flags of a run: in groups, those of every day first. Plain text: rich costs start-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Every day": (
        "model", "output", "job", "workspace", "text_column", "id_column", "max_cost", "dry_run", "overwrite",
        "as_json", "quiet",
    ),
    "Input": (
        "split", "template", "keep", "format", "delimiter", "header", "encoding", "sql", "attach", "chunk_size",
        "chunk_overlap", "on_too_long", "on_blank", "on_bad_row", "on_bad_file", "unique_ids", "max_row_bytes",
        "store_option",
    ),
    "Vectors": ("input_type", "dimensions", "dimension_policy", "force", "dtype", "vector_type", "vectors"),
    "Accounts": ("workspace_column", "tag", "purpose", "allow_unpriced", "ledger"),
    "Providers": ("provider", "fallback", "insecure"),
    "Pace": (
        "concurrency", "batch_size", "rpm", "tpm", "burst", "retries", "timeout", "max_wait", "deadline", "mode",
        "wait", "batch_min_inputs", "keep_remote_files", "workers", "shard_rows", "lease", "shard", "share",
    ),
    "Reruns": ("reuse", "retry_failed", "cache", "canary", "on_drift", "locked"),
    "Command": ("state", "config", "no_progress", "verbose", "help"),
}  # fmt: skip
"""Title → flags by the names of their parameters, in the order of `--help`. The first title holds ten of `embed`."""


class GroupedFlags(TyperCommand):
    """A command whose flags are shown in GROUPS; those that are in none stand before them, as Options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and flags."""
        shown = {param.name: param for param in self.get_params(ctx) if param.get_help_record(ctx) is not None}
        arguments = [name for name, param in shown.items() if param.param_type_name == "argument"]
        grouped = {name for names in GROUPS.values() for name in names}
        rest = [name for name in shown if name not in grouped and name not in arguments]
        for title, names in {"Arguments": arguments, "Options": rest, **GROUPS}.items():
            records = [shown[name].get_help_record(ctx) for name in names if name in shown]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
