"""What a command asks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from embedctl.budgets.limits import KeyBudget
from embedctl.inputs import Query
from embedctl.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a command asks for.

    Attributes:
        command: "embed" or "batch run".
        output: A file, a folder, or None for JSON lines on `stream`.
        resume: The command that continues the run, as a shell takes it.
        vectors: How `stream` shows vectors.
        stdin: What "-" means; None when it is a terminal.
        query: What is asked instead of `inputs`.
        waits: Batches are waited for where no option says so: somebody looks on.
        key_budget: Of the service's key that pays for it beside its workspace.
    """

    settings: Settings
    inputs: Sequence[str]
    kind: Literal["file", "folder", "stream"]
    command: str = "embed"
    output: Path | None = None
    job: str | None = None
    overwrite: bool = False
    retry_failed: bool = False
    resume: str | None = None
    vectors: Literal["float", "base64"] = "float"
    stream: BinaryIO | None = None
    stdin: BinaryIO | None = None
    query: Query | None = None
    waits: bool = False
    key_budget: KeyBudget | None = None
