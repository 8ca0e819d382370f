"""What was spent, for whoever asks through the service: the ledger, with what this process has not handed over yet.

DuckDB is loaded with the first question, and the file is open no longer than one takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedctl import terminal
from embedctl.errors import EmbedctlError, InvariantBroken, Locked, StorageFailed, WrongUsage
from embedctl.records import utc_now
from embedctl.runs import foundations, intake
from embedctl.server import answers, refusals
from embedctl.server.authentication import Client
from embedctl.server.refusals import Refused
from embedctl.server.state import ServerState

FRESH_S = 2.0
"""How old an answer may be: handing over and taking in cost files and a lock."""

MOST_GROUPS = 1000
_AT_ONCE = 2
_WAITING = 32
_LEDGER_WAIT_S = 5.0
_USAGE = "/api/v1/embeddings/usage"

_T = TypeVar("_T")


class Accounts:
    """The endpoints about money: everybody sees its own workspace, admins all."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._handing = asyncio.Lock()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._looked_at: float | None = None
        self._as_of = utc_now()
        self._notes: list[str] = []

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route(_USAGE, self.usage, methods=["GET"]),
            Route(f"{_USAGE}/summary", self.summary, methods=["GET"]),
        ]

    async def usage(self, request: Request) -> Response:
        """GET /embeddings/usage: as `usage report --json`, and until when it is complete."""
        from embedctl.reports.report import report

        asked = answers.parameters(
            request, "since", "until", "last", "by", "timezone", "workspace", "provider", "model", "job"
        )
        workspace = _workspace(answers.exchange(request).who, asked.get("workspace"))
        with _parameters():
            question = _question(asked, workspace)
        found, notes = await self._ask(lambda connection, now: report(connection, question, now=now, known_names=False))
        document = found.envelope()
        left = len(document["groups"]) - MOST_GROUPS
        if left > 0:
            document["groups"] = document["groups"][:MOST_GROUPS]
            notes.append(f"{left} more groups are in the totals only")
        waiting = await asyncio.to_thread(self._pending, workspace)
        document |= {"pending": waiting} if waiting else {}
        document["warnings"] = [*document["warnings"], *notes]
        return _document(document | {"as_of": self._as_of})

    async def summary(self, request: Request) -> Response:
        """GET /embeddings/usage/summary: what the dashboard shows."""
        from embedctl.ledger import budgets
        from embedctl.reports.dashboard import dashboard

        client = answers.exchange(request).who
        asked = answers.parameters(request, "timezone", "workspace")
        workspace = _workspace(client, asked.get("workspace"))
        timezone = asked.get("timezone", "UTC")
        state = self._state
        found, notes = await self._ask(
            lambda connection, now: dashboard(
                connection,
                workspace,
                budgets_set=budgets.configured(state.settings.workspaces),
                keys=self._keys(client, workspace),
                timezone=timezone,
                now=now,
            )
        )
        found["warnings"] += notes
        waiting = await asyncio.to_thread(self._pending, workspace)
        told = {
            "as_of": self._as_of,
            "workspace": client.workspace if workspace is None else workspace,
            "everybody": workspace is None,
            "role": client.role,
            "key": client.id or None,
            "pending": waiting,
            "circuits": [{"provider": name, **one} for name, one in sorted(state.circuits().items())],
            "active_requests": state.admission.in_flight if client.is_admin else None,
        }
        return _document(found | told)

    async def _ask(self, work: Callable[[Any, datetime], _T]) -> tuple[_T, list[str]]:
        """What `work` finds in the ledger, and what its reader should know beside it.

        Raises:
            Refused: The question is none, too many are asked at once, or the ledger cannot be read.
        """
        if self._waiting >= _WAITING:
            raise Refused("overloaded", "too many questions about usage wait", retry_after_s=1.0)
        self._waiting += 1
        try:
            async with self._places:
                await self._hand_over()
                with _parameters():
                    return await asyncio.to_thread(self._read, work), list(self._notes)
        finally:
            self._waiting -= 1

    def _read(self, work: Callable[[Any, datetime], _T]) -> _T:
        from embedctl.ledger import database

        now = utc_now()
        paths = foundations.ledger_paths(self._state.settings)
        with database.reader(paths, wait_s=_LEDGER_WAIT_S, now=now) as connection:
            return work(connection, now)

    async def _hand_over(self) -> None:
        """What has ended by now is in the ledger when this returns, or it is said what is not."""
        async with self._handing:
            now = self._state.clock()
            if self._looked_at is not None and now - self._looked_at < FRESH_S:
                return
            began = utc_now()
            try:
                held_since = await self._sealed()
                self._notes = await asyncio.to_thread(self._take_in)
            except (Locked, StorageFailed):
                self._notes = ["the ledger is in use, or cannot be written: what was spent since is not included"]
            except EmbedctlError as problem:
                raise refusals.of_error(problem) from None
            else:
                late_s = 0.0 if held_since is None else max(0.0, now - held_since)
                self._as_of = began - timedelta(seconds=late_s)
            self._looked_at = self._state.clock()

    async def _sealed(self) -> float | None:
        """What has ended is in the spool; since when what shares a segment with something under way is not."""
        held: list[float] = []
        for journal in self._state.journals():
            with suppress(InvariantBroken):  # closed meanwhile: then all of it is there
                since = await journal.seal()
                held += [] if since is None else [since]
        return min(held, default=None)

    def _take_in(self) -> list[str]:
        settings = self._state.settings
        return intake.take_in(settings.paths, wait_s=_LEDGER_WAIT_S, now=utc_now(), observer=self._state.log)

    def _pending(self, workspace: str | None) -> dict[str, Any] | None:
        from embedctl.runs.pending import pending

        paths = self._state.settings.paths
        found = pending(paths, () if workspace is None else (workspace,), ledger=str(paths.ledger.absolute()))
        return found.as_dict() if found else None

    def _keys(self, client: Client, workspace: str | None) -> list[Any]:
        """Keys with budgets that somebody may see: its own; an admin those of the workspace, or all."""
        from embedctl.ledger.budgets import Budget
        from embedctl.reports.dashboard import BudgetOfKey

        return [
            BudgetOfKey(
                key=key_id,
                name=key.name,
                budget=Budget(workspace=key.workspace, amount=key.budget, period=key.budget_period),
            )
            for key_id, key in self._state.keyring.keys.items()
            if key.budget is not None and key.revoked is None
            if (client.is_admin and workspace in (None, key.workspace)) or key_id == client.id
        ]


def _workspace(client: Client, asked: str | None) -> str | None:
    """Whose usage is told; None: everybody's.

    Raises:
        Refused: Somebody else's, and the client is no admin.
    """
    if client.is_admin:
        return asked
    if asked not in (None, client.workspace):
        raise Refused("workspace_denied", "usage of other workspaces is for keys with the role admin")
    return client.workspace


def _question(asked: dict[str, str], workspace: str | None) -> Any:
    """What the parameters ask.

    Raises:
        WrongUsage: A time, a time zone or a key that is none.
    """
    from embedctl.ledger import periods
    from embedctl.reports.query import KEYS, ReportQuery

    timezone = asked.get("timezone", "UTC")
    where = periods.zone(timezone)
    only: dict[str, list[str]] = {name: [asked[name]] for name in ("provider", "model", "job") if name in asked}
    if workspace is not None:
        only["workspace"] = [workspace]
    by = list(dict.fromkeys(name.strip() for name in asked.get("by", "").split(",") if name.strip()))
    if wrong := [name for name in by if name not in KEYS and not (name.startswith("tag:") and len(name) > 4)]:
        raise WrongUsage(f"cannot group by {wrong[0]!r}: one of {', '.join(KEYS)}, tag:KEY")
    within = periods.chosen(asked.get("since"), asked.get("until"), asked.get("last"), where, utc_now())
    return replace(ReportQuery(by=by, only=only, timezone=timezone), within=within)


@contextmanager
def _parameters() -> Iterator[None]:
    """A question that is none is the client's fault; a ledger that cannot be read is not."""
    try:
        yield
    except WrongUsage as wrong:
        raise Refused("invalid_parameter", wrong.message.replace("--", "")) from None
    except EmbedctlError as problem:
        raise refusals.of_error(problem) from None


def _document(content: dict[str, Any]) -> Response:
    return Response(terminal.document(content), media_type="application/json")
