"""One run from order to receipt: what is there already, what is sent, the record for the next run, the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from embedctl import inputs, storage
from embedctl.budgets import limits
from embedctl.embedding.router import check_usable
from embedctl.errors import EmbedctlError, OutputRefused
from embedctl.journal.commands import Spool
from embedctl.journal.rescue import JOURNAL, rescue
from embedctl.ledger import segment_owners, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import FolderOutput
from embedctl.outputs.file import FileOutput
from embedctl.outputs.stream import StreamOutput
from embedctl.records import utc_now, uuid7
from embedctl.routing import allow, credentials
from embedctl.routing import chain as chains
from embedctl.routing.chain import FallbackChain
from embedctl.runs import estimate, preparation, resume, target
from embedctl.runs.estimate import Estimate
from embedctl.runs.job import JobRequest, Observer
from embedctl.runs.receipt import Receipt, Spending
from embedctl.runs.receipt import made as receipt_made
from embedctl.runs.record import RunRecord
from embedctl.runs.registration import Registration
from embedctl.runs.registry import recover_dead, sweep
from embedctl.runs.resume import Existing
from embedctl.runs.stop import StopSignal
from embedctl.runs.wiring import Flow
from embedctl.storage import Disk

INGEST_WAIT_S = 5
LEFTOVER_S = 3600
"""Unfinished files in folders that runs share are removed when they are older than any write takes."""

AnyOutput = FileOutput | FolderOutput | StreamOutput


class Run:
    """A run while it is under way.

    Args:
        disk: Everything durable goes through it.
        ingest: Takes the spool into the ledger; duckdb's by default.
        segment_bytes: Of the journal.
    """

    def __init__(
        self,
        order: JobRequest,
        watch: Observer | None = None,
        *,
        disk: Disk = storage.DISK,
        ingest: Callable[[LedgerPaths], Sequence[str] | None] | None = None,
        segment_bytes: int = 64 << 20,
    ) -> None:
        self.order = order
        self.watch = watch or Observer()
        self.run_id: UUID = uuid7()
        self.stop = StopSignal()
        self._disk = disk
        self._ingest = ingest or _into_ledger
        self._segment_bytes = segment_bytes
        self._options = order.settings.options
        kept = order.settings.paths
        self._ledger = LedgerPaths(kept.ledger, kept.spool, kept.price_file)
        self._run_prices = RunPrices(kept.price_file, utc_now())
        self._record = RunRecord(order, self.run_id)
        self.spending = Spending(self._run_prices.price)

    def ask_to_stop(self, reason: EmbedctlError) -> None:
        """Stop sending, from a signal handler."""
        self.stop.ask(reason)

    def execute(self) -> Receipt:
        """The whole run; its spending is in the ledger or on its way when this returns or raises.

        Raises:
            EmbedctlError: Why nothing was done. Once a run has begun, its end is in the receipt instead.
        """
        started = time.monotonic()
        chain = self._chain()
        check_usable(chain.first)
        limits.check_priced(chain.endpoints, self._run_prices.of, self._options)
        self._record.space = chain.first.space()
        output = target.output(self.order, self.run_id, self._disk, self.watch.warned)
        failure: EmbedctlError | None = None
        with target.held(output, self.order, self._disk):
            entry = Registration(self.order, self.run_id, output, chain.first.id, self._disk, time.monotonic)
            entry.begin()
            try:
                self._fulfil(output, chain, entry)
            except EmbedctlError as error:
                failure = error
            finally:
                self.stop.too_late()
                if isinstance(output, StreamOutput):  # nobody comes back to its vectors
                    self._hand_over(output)
                    output.tidy()
            receipt = self._receipt(output, failure, time.monotonic() - started, chain)
            self._sign_off(entry, failure, receipt.exit_code)
            if failure is not None and not self._has_begun(failure):
                raise failure
        self._take_in()
        return receipt

    def _sign_off(self, entry: Registration, failure: EmbedctlError | None, exit_code: int) -> None:
        """Say in the registry how it ended; the output is what it is, whether that can be written or not."""
        try:
            entry.end(self._record.rows, self.spending, failure, exit_code)
        except EmbedctlError as refusal:
            self.watch.warned(f"`batch list` will call this run interrupted: {refusal.message}")

    def forecast(self) -> Estimate:
        """What `execute` would do; nothing is sent, made or changed.

        Raises:
            EmbedctlError: Why it could not be done.
        """
        chain = self._chain()
        limits.check_priced(chain.endpoints, self._run_prices.of, self._options)
        output = target.output(self.order, self.run_id, self._disk, self.watch.warned)
        source = self._source(output, None)
        endpoint, denied = chain.first, allow.denied(self.order.settings, chain.first.in_chain)
        asked = self._record.bind(source, endpoint, tuple(denied))
        before = Existing() if isinstance(output, StreamOutput) else resume.peek(output, asked)
        return estimate.forecast(
            source, endpoint, self._options, before, denied, lambda tier: self._run_prices.of(endpoint, tier)
        )

    def _chain(self) -> FallbackChain:
        """Who may be asked; a warning for each key that others could read."""
        chain = chains.chain(self.order.settings, warned=self.watch.warned)
        for name in dict.fromkeys(endpoint.provider for endpoint in chain.endpoints):
            variables = credentials.key_variables(self.order.settings, name)
            if note := credentials.exposed_key_file(self.order.settings.environment, variables):
                self.watch.warned(note)
        return chain

    def _has_begun(self, failure: EmbedctlError) -> bool:
        """Whether there is anything to account for."""
        return bool(self.spending.attempts or self._record.rows.read or failure.exit_code in (4, 75, 130, 143))

    def _fulfil(self, output: AnyOutput, chain: FallbackChain, entry: Registration) -> None:
        """Do what is left to do."""
        source = self._source(output, output.state)
        preparation.check_source(source, self._options, output.state)
        denied = allow.denied(self.order.settings, chain.first.in_chain)
        before = self._before(output, source, chain, tuple(denied))
        if before.finished is not None:
            self._hand_over(output)
            self._record.rows = before.finished
            self._record.rows.reused, self._record.rows.duplicates = before.finished.vectors, 0
        else:
            flow = Flow(
                order=self.order,
                watch=self.watch,
                stop=self.stop,
                chain=chain,
                source=source,
                output=output,
                before=before,
                denied=denied,
                record=self._record,
                spending=self.spending,
                run_prices=self._run_prices,
                entry=entry,
                spool=self._spool,
                ledger=self._ledger,
                disk=self._disk,
                segment_bytes=self._segment_bytes,
            )
            asyncio.run(flow.run())
        output.tidy()
        segment_owners.forget(output.state, self._disk)

    def _source(self, output: AnyOutput, spool_folder: Path | None) -> inputs.Source:
        """The input, without an output of ours that an argument means too.

        Raises:
            OutputRefused: The output would replace an input.
        """
        leave_out = resume.own_files(output)
        reading = preparation.read_options(self._options, spool_folder, leave_out)
        source = inputs.open_input(self.order.inputs, reading, stdin=self.order.stdin)
        for line in source.warnings:
            self.watch.warned(line)
        for file in source.files:
            if isinstance(output, FileOutput) and output.path.exists() and file.path.samefile(output.path):
                raise OutputRefused(f"{file.label} is an input: the output would replace it", hint="choose another -o")
        return source

    def _before(
        self, output: AnyOutput, source: inputs.Source, chain: FallbackChain, denied: tuple[str, ...]
    ) -> Existing:
        """What is there; the input is bound as it is now."""
        asked = self._record.bind(source, chain.first, denied)
        if isinstance(output, FileOutput):
            found = resume.of_file(output, asked)
        elif isinstance(output, FolderOutput):
            found = resume.of_folder(output, asked)
        else:
            return Existing()
        if found.space is None:
            endpoints = [endpoint.space for endpoint in chain.endpoints]
            where = self.order.output or output.state
            found.space = resume.space_of_journal(found, endpoints, where, overwrite=asked.overwrite)
        return found

    @property
    def _spool(self) -> Spool:
        def put(spool_id: str, events: Any) -> bool:
            return spool.publish(self._ledger.spool, spool_id, events, disk=self._disk)

        return put

    def _hand_over(self, output: AnyOutput) -> None:
        """Spool what the journal holds, whose vectors nobody needs."""
        give = segment_owners.routed(output.state, self._spool, ledger=self._ledger.database, disk=self._disk)
        rescue(output.state / JOURNAL, give, keeps_vectors=False, disk=self._disk)

    def _take_in(self) -> None:
        """Take what is spooled into the ledger; when it cannot be now, the next command does."""
        try:
            kept = self.order.settings.paths
            for folder in (kept.runs, kept.spool):
                storage.remove_leftovers(self._disk, folder, older_than_s=LEFTOVER_S)
            recover_dead(kept.runs, self._spool, ledger=kept.ledger, disk=self._disk)
            sweep(kept.journal, disk=self._disk)
            for note in self._ingest(self._ledger) or ():
                self.watch.warned(note)
        except EmbedctlError as error:
            self.watch.warned(f"usage is spooled, not in the ledger yet: {error.message}")

    def _receipt(
        self, output: AnyOutput, failure: EmbedctlError | None, seconds: float, chain: FallbackChain
    ) -> Receipt:
        return receipt_made(
            run_id=str(self.run_id),
            job=self.order.job,
            workspace=self._options.workspace,
            model=chain.first.id,
            dimension_policy=chain.first.policy,
            space=self._record.space,
            rows=self._record.rows,
            spending=self.spending,
            unit_price=self._run_prices.of(chain.first),
            seconds=round(seconds, 3),
            output=str(self.order.output) if self.order.output else None,
            failures=str(output.failures) if output.failures else None,
            failure=failure,
            resume=self.order.resume,
        )


def _into_ledger(paths: LedgerPaths) -> list[str]:
    from embedctl.ledger.ingest import ingest  # duckdb takes longer to import than a small run takes

    return ingest(paths, wait_s=INGEST_WAIT_S, now=utc_now()).notes()
