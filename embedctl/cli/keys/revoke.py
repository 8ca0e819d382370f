"""`embedctl keys revoke`: a key counts no more; a running server knows within a second."""

from __future__ import annotations

import typer

from embedctl import settings, terminal
from embedctl.cli._flags import ConfigFlag, JsonFlag
from embedctl.cli.keys._shown import KeyId, row

app = typer.Typer()


@app.command(epilog="Example: embedctl keys revoke abcdefgh")
def revoke(key_id: KeyId, as_json: JsonFlag = False, config: ConfigFlag = None) -> None:
    """End a key for good; running servers know within a second."""
    from embedctl.server import keys

    key = keys.KeyFile(settings.load(config=config).paths.keys).revoke(key_id)
    if as_json:
        terminal.result(row(key_id, key))
    else:
        terminal.notice(f"key {key_id} of workspace {key.workspace} is revoked")
