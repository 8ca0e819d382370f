"""What a command asks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Literal

from embedctl.budgets.limits import KeyBudget
from embedctl.dataclass import dataclass
from embedctl.inputs import Query
from embedctl.settings import Settings
from embedctl.storage.store import Store


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
        store: What is under `url`, where the output is on an object store; `output` is None then.
        waits: Batches are waited for where no option says so: somebody looks on.
        is_worker: A command has started it beside others; that command is registered, and holds the job's name.
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
    store: Store | None = None
    is_worker: bool = False

    @property
    def url(self) -> str | None:
        """Address of the output, where it is on a store."""
        return None if self.store is None else self.store.url

    @property
    def scratch(self) -> Path:
        """Where workers of this job have their scratch folders on this machine."""
        root = self.settings.options.state
        name = blake2b((self.url or "").encode(), digest_size=8).hexdigest()
        return (Path(root) if root else self.settings.paths.home / "scratch") / name

    @property
    def shown_output(self) -> str | None:
        """What a person calls the output."""
        return self.url or (None if self.output is None else str(self.output))
