"""A run's entry in the registry: what it does, how far it is, how it ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from uuid import UUID

from embedctl.errors import EmbedctlError, OutputRefused
from embedctl.journal.rescue import JOURNAL
from embedctl.outputs import Output
from embedctl.records import Event, Progressed, RowCounts
from embedctl.runs import registry
from embedctl.runs.job import JobRequest
from embedctl.runs.receipt import RESUMABLE, Spending
from embedctl.runs.registry import RunRegistry, State
from embedctl.storage import Disk, paths_in
from embedctl.storage.background import Background

EVERY_S = 5.0
"""How often a running run says how far it is."""

KEPT_RUNS = 2000
"""Entries of ended runs that are kept at least."""


class Registration:
    """Keeps one entry true. The output's lock is held as long as it exists. A worker has none: its command has."""

    def __init__(
        self,
        job: JobRequest,
        run_id: UUID,
        output: Output,
        model: str,
        disk: Disk,
        clock: Callable[[], float],
        spending: Spending,
    ) -> None:
        self._registry = RunRegistry(job.settings.paths.runs, disk=disk)
        self._disk = disk
        self._clock = clock
        self._spending = spending
        self._background = Background()
        self._said_at = clock()
        self._is_worker = job.is_worker
        self._entry = registry.RunEntry(
            run_id=run_id,
            job_id=job.job or "",
            folder=output.state.absolute(),
            output=job.url or ("-" if job.output is None else str(job.output.absolute())),
            ledger=str(job.settings.paths.ledger.absolute()),
            workspace_id=job.settings.options.workspace,
            workspace_column=job.settings.options.workspace_column,
            model=model,
            command=job.command,
            keeps_vectors=job.kind != "stream" and job.store is None,
        )

    def begin(self) -> None:
        """Register; runs of this output that never said their end are dead, for we hold their lock.

        What one of them waits for is ours to collect.
        """
        if self._is_worker:
            return
        entries = self._registry.all()
        for run in entries:
            if run.state in (*registry.OPEN, "waiting") and run.folder == self._entry.folder:
                self._registry.update(run, state="interrupted")
        for run in entries[KEPT_RUNS:]:
            with suppress(OutputRefused):  # nobody may look into it: nobody knows that it holds nothing
                if run.finished_at is not None and not paths_in(run.folder / JOURNAL):
                    self._disk.unlink(self._registry.folder / f"{run.run_id}.json")
        self._registry.register(self._entry)

    def running(self) -> None:
        """It has begun to send."""
        if not self._is_worker:
            self._entry = self._registry.update(self._entry, state="running")

    def notify(self, event: Event) -> None:
        """Say how far it is, now and then."""
        if self._is_worker or not isinstance(event, Progressed) or self._clock() - self._said_at < EVERY_S:
            return
        self._said_at = self._clock()
        counts = {"rows": event.rows, "in_flight": event.in_flight, **spent(self._spending)}
        if event.rows_total is not None:
            counts["rows_total"] = event.rows_total
        entry, cost, problem = self._entry, _cost(self._spending), self._spending.last_error
        self._background(lambda: self._registry.update(entry, counts=counts, cost_usd=cost, last_error=problem))

    def end(
        self,
        rows: RowCounts,
        spending: Spending,
        failure: EmbedctlError | None,
        exit_code: int,
        *,
        reached: Progressed | None = None,
        waiting: bool = False,
    ) -> None:
        """It has ended, one way or the other.

        Args:
            reached: How far it was; of a run that failed, not all is in `rows` that is kept.
            waiting: Batches of it are under way.
        """
        self._background.close()
        if self._is_worker:
            return
        state: State = "completed" if failure is None else "failed"
        if failure is not None and exit_code in RESUMABLE:
            state = "interrupted"
        elif failure is None and rows.failed:
            state = "partial"
        if failure is not None and waiting:
            state = "waiting"
        counts = {"rows": rows.read, **asdict(rows), **spent(spending)}
        if failure is not None and reached is not None:
            counts["rows"] = max(rows.read, reached.rows)
            if reached.rows_total is not None:
                counts["rows_total"] = reached.rows_total
        self._entry = self._registry.finish(
            self._entry,
            state,
            exit_code,
            counts=counts,
            cost_usd=_cost(spending),
            last_error=failure.message if failure else spending.last_error,
        )


def spent(spending: Spending) -> dict[str, int]:
    """A run's spending as the registry's counts."""
    return {
        "requests": spending.requests,
        "attempts": spending.attempts,
        "tokens": spending.tokens,
        "tokens_unknown": spending.tokens_unknown,
    }


def _cost(spending: Spending) -> str | None:
    return None if spending.known_cost is None else str(spending.known_cost)
