"""`embedctl` in this process, as a shell calls it: words in, exit code and both streams out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from typer.testing import CliRunner

from embedctl import settings
from embedctl.cli import app


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def embedctl(*words: object, stdin: str | bytes | None = None) -> Ran:
    """Run the command; an exception that is no exit is the test's."""
    done = CliRunner().invoke(app, [str(word) for word in words], input=stdin, prog_name="embedctl")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


def user_settings(text: str) -> Path:
    """The user's own settings file, with this text."""
    path = settings.user_config_path(os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def rows(path: Path | str) -> list[dict[str, Any]]:
    """Rows of an output, without the vectors and what differs from run to run."""
    table = pq.read_table(path)
    return table.drop_columns(["embedding", "embedding_operation_id", "embedding_text_hash"]).to_pylist()


def ledger(query: str) -> list[tuple[Any, ...]]:
    """What the ledger answers."""
    path = Path(os.environ["EMBEDCTL_HOME"]) / "usage.duckdb"
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()
