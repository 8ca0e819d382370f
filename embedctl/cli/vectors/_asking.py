"""Flags of commands that ask the model which made an output: whom to ask, who pays; and what asking cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import pairs
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError
from embedctl.settings.options import checked_name

if TYPE_CHECKING:
    from embedctl.runs.receipt import Spending
    from embedctl.settings import Settings
    from embedctl.vectors.asking import Asking
    from embedctl.vectors.files import Stored

_T = TypeVar("_T")

MAX_WAIT_S = 60.0
"""A person waits for the answer: a provider that asks for more is told at once."""

ModelFlag = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", autocompletion=_completion.models, help="Model to ask (default: the one that made FILE)."
    ),
]
ProviderFlag = Annotated[
    str | None,
    typer.Option(
        "--provider", autocompletion=_completion.providers, help="Provider to ask (default: the one that made FILE)."
    ),
]
WorkspaceFlag = Annotated[
    str | None, typer.Option("--workspace", "-w", autocompletion=_completion.workspaces, help="Workspace to charge.")
]
TagFlag = Annotated[
    list[str] | None, typer.Option("--tag", help="K=V kept with every usage event; repeatable.", metavar="K=V")
]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is waited for and why.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingFlags:
    """Whom to ask, who pays, and where the settings are."""

    model: str | None
    provider: str | None
    workspace: str | None
    tag: list[str] | None
    config: Path | None
    ledger: Path | None
    verbose: bool

    def load(self, shaped: Mapping[str, Any]) -> Settings:
        """Settings for options that the output decides."""
        from embedctl import settings

        own = {
            "workspace": checked_name(self.workspace, "workspace") if self.workspace else None,
            "tag": pairs(self.tag) if self.tag else None,
            "max_wait": MAX_WAIT_S,
        }
        return settings.load(flags={**shaped, **own}, config=self.config, ledger=self.ledger)

    @property
    def observer(self) -> terminal.TerminalObserver:
        """Says what happens; with -v why it waits, too."""
        return terminal.TerminalObserver(verbose=self.verbose)

    def asking(self, stored: Stored, *, must: bool, as_query: bool = False) -> Asking | None:
        """Who can make vectors that fit the output; None when nobody can and nobody must."""
        from embedctl.vectors.asking import fitting

        if must or self.model or self.provider:
            return fitting(
                stored,
                self.load,
                model=self.model,
                provider=self.provider,
                as_query=as_query,
                observer=self.observer,
            )
        with suppress(EmbedctlError):
            return fitting(stored, self.load, model=None, provider=None, as_query=as_query)
        return None


def with_ledger(settings: Settings, call: Callable[[], _T]) -> _T:
    """Do it, and take what it cost into the ledger, however it ends."""
    try:
        return call()
    finally:
        _ledger.book(settings)


def spent(spending: Spending | None) -> dict[str, Any]:
    """Tokens and cost as JSON has them; nothing was asked when there is no spending."""
    if spending is None:
        return {"tokens": 0, "cost": None, "currency": "USD"}
    known = spending.priced or not spending.unpriced
    return {"tokens": spending.tokens, "cost": spending.cost if known else None, "currency": "USD"}
