"""`embedctl config`: write, show and find the settings."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from embedctl import settings, storage, terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli._groups import Group
from embedctl.settings.options import Options
from embedctl.storage import named

app = Group(help="Write, show and find the settings.", epilog="Example: embedctl config show")

TEMPLATE = """\
# embedctl's settings. Stronger: a flag, an environment variable, ./embedctl.toml. Keys are never written here:
# they come from the environment.

# model = "openai:text-embedding-3-small"    # default: the bundled onnx:all-MiniLM-L6-v2
# workspace = "default"                      # who pays, when -w does not say

# A place of your own, or changes to a built-in provider.
# [providers.eu]
# protocol = "azure"
# base_url = "https://example.openai.azure.com"
# api_key_env = "AZURE_EU_KEY"
# models = { "text-embedding-3-small" = "my-deployment" }   # canonical name = name on the wire
# requests_per_minute = 3000
# tokens_per_minute = 1_000_000
# price_as = "azure"                         # or: per_hour = 2.50, a machine of your own; free = true

# Who may take over, in this order. Vectors of two models never meet in one output.
# [fallback]
# openai = ["eu"]

# What may be used at all.
# [allow]
# providers = ["openai", "eu", "onnx"]

# The service, `embedctl serve`.
# [serve]
# port = 8000

# [workspaces.acme]
# budget = { period = "month", amount = "50.00", action = "block" }
"""

JOB_FILE = "JOB.toml"
JOB_TEMPLATE = """\
# A job for `embedctl batch run JOB.toml`. Flags are stronger; paths are as seen from the folder it is run in.
# Every option of `embedctl batch run --help` may stand here: without dashes, with underscores.

input = ["tickets/*.parquet"]                # files, folders or globs
output = "tickets-vectors"                   # a folder of Parquet parts
# job = "nightly-tickets"                    # its name in `embedctl batch list` and in reports

# model = "openai:text-embedding-3-small"    # default: the bundled model, which is free
# workspace = "acme"                         # who pays
# workspace_column = "tenant"                # or: who pays for each row
# tag = { team = "support" }                 # stands with every usage event

# text_column = "body"                       # what is embedded; found when there is one
# id_column = "ticket_id"                    # what names a row; else its number
# keep = "all"                               # other columns: all, none, or names with commas
# chunk_size = 1000                          # tokens; documents are chunked, tables only when asked
# on_too_long = "fail"                       # fail, skip, truncate, chunk or mean
# on_blank = "skip"                          # skip or fail

# max_cost = "5.00"                          # USD; the run stops before it is exceeded, and goes on another time
# deadline = "6h"                            # it stops then, and goes on another time
# concurrency = 16
# fallback = "same-space"                    # who may take over: same-space, any or off
"""


@app.command(epilog="Example: embedctl config init")
def init(
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace a settings file that exists.")
    ] = False,
    job: Annotated[
        bool, typer.Option("--job", help=f"Write {JOB_FILE} for `batch run` here, not the settings.")
    ] = False,
    config: ConfigFlag = None,
) -> None:
    """Write a settings file to start from, with every line explained; or a job's."""
    path = Path(JOB_FILE) if job else config or settings.user_config_path(os.environ)
    named.check_local(path)
    storage.DISK.make_folder(path.parent)
    named.write(path, (JOB_TEMPLATE if job else TEMPLATE).encode(), overwrite=overwrite, mode=0o600)
    terminal.notice(f"wrote {path}")


@app.command(epilog="Example: embedctl config show --json")
def show(
    form: FormatFlag = "table", as_json: JsonFlag = False, config: ConfigFlag = None, ledger: LedgerFlag = None
) -> None:
    """Every option with its value and where that comes from; keys are not shown."""
    loaded = settings.load(config=config, ledger=ledger)
    notes = [*([loaded.misplaced] if loaded.misplaced else []), *loaded.unheeded]
    rows: list[dict[str, Any]] = [
        {"option": entry.name, "value": _value(getattr(loaded.options, entry.name)), "from": loaded.origins[entry.name]}
        for entry in fields(Options)
    ]
    places = {"home": loaded.paths.home, "ledger": loaded.paths.ledger, "spool": loaded.paths.spool}
    envelope = {
        "schema_version": 1,
        "options": {row["option"]: {"value": row["value"], "from": row["from"]} for row in rows},
        "paths": {name: str(path) for name, path in places.items()},
        "files": [str(path) for path in loaded.files],
        "providers": sorted(loaded.providers),
        "warnings": notes,
    }
    columns = [terminal.Column("option", "Option"), terminal.Column("value", "Value"), terminal.Column("from", "From")]
    footer = [f"{name}: {path}" for name, path in places.items()]
    footer.append("files: " + (", ".join(map(str, loaded.files)) or "none (`embedctl config init` writes one)"))
    footer += [f"note: {line}" for line in notes]
    terminal.table(
        terminal.Table(columns=columns, rows=rows, envelope=envelope, footer=footer), "json" if as_json else form
    )


@app.command(epilog="Example: $EDITOR $(embedctl config path)")
def path(config: ConfigFlag = None) -> None:
    """Where the user's settings file is, whether it exists or not."""
    found = config or settings.user_config_path(os.environ)
    terminal.out(f"{found}\n")
    if config is None and (word := settings.misplaced(os.environ, found)):
        terminal.warning(word)


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(dict(value)) if hasattr(value, "items") else str(value)
