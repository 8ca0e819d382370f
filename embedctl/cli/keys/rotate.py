"""`embedctl keys rotate`: a new secret for a key, while the old one counts for a while yet."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from embedctl import settings
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.cli.keys._shown import KeyId, minted
from embedctl.settings.options import seconds

app = typer.Typer()


@app.command(epilog="Example: embedctl keys rotate abcdefgh --overlap 1h")
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the old one counts yet.", metavar="TIME")] = "24h",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Give a key a new secret, printed this once; its limits, budget and workspace stay."""
    from embedctl.server import keys

    made = keys.KeyFile(settings.load(config=config).paths.keys).rotate(
        key_id, overlap=timedelta(seconds=seconds(overlap))
    )
    minted(made, as_json=as_json)
