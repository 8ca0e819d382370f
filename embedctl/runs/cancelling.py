"""`batch cancel JOB`: ends a run's batches at their provider, and collects and books what was done until then."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.embedding.canary import CanaryWatch
from embedctl.errors import BatchesPending, InputMissing, ProviderError, Temporary
from embedctl.journal import recover
from embedctl.journal.batches import known
from embedctl.journal.rescue import JOURNAL, LOCK, rescue
from embedctl.ledger import segment_owners
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.outputs import Existing, FolderOutput, Output
from embedctl.outputs.stream import StreamOutput
from embedctl.records import UNOBSERVED, Observer, Observers, RowCounts, Warned, format_duration, utc_now
from embedctl.routing import chain as chains
from embedctl.routing import space_lock
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import check_usable
from embedctl.routing.space_lock import SpaceLock
from embedctl.runs import batching, foundations, intake, space_locks, wiring
from embedctl.runs.job import JobRequest
from embedctl.runs.receipt import Spending
from embedctl.runs.registry import RunEntry, RunRegistry, home_trust
from embedctl.runs.stop import StopSignal
from embedctl.runs.wiring import RunPlan
from embedctl.settings import Paths, Settings
from embedctl.storage import DISK, Disk, locks

WAITS_S = 900.0
"""A provider takes up to ten minutes to end a batch."""

RunAsync = Callable[[Coroutine[Any, Any, None]], None]


def flags(paths: Paths, run: RunEntry) -> dict[str, Any]:
    """Options of a run that its batches were made with."""
    folder = str(run.folder.absolute())
    told = known(paths.batches, home_trust(paths, make=False))
    said = next((one.options for _, batches, _ in told for one in batches if one.folder == folder), {})
    options = {name: said[name] for name in wiring.SHAPES_THE_SPACE if said.get(name) is not None}
    return {**options, "model": run.model, "workspace": run.workspace_id, "fallback": "off"}


@dataclass(slots=True)
class Cancelled:
    """What became of a run's batches.

    Attributes:
        batches: That were under way.
        given_up: Of these, those that their provider knows nothing of any more: booked as perhaps billed.
    """

    batches: int = 0
    given_up: int = 0
    texts: int = 0
    spending: Spending = field(default_factory=lambda: Spending(lambda *_: None))

    def as_dict(self, run: RunEntry) -> dict[str, Any]:
        """For programs."""
        return {
            "run_id": str(run.run_id),
            "job": run.job_id or None,
            "batches": self.batches,
            "given_up": self.given_up,
            "collected": self.spending.texts_batched,
            "tokens": self.spending.tokens,
            "tokens_unknown": self.spending.tokens_unknown,
            "cost": self.spending.known_cost,
            "cost_at_risk": self.spending.cost_at_risk,
        }


def _watch(
    settings: Settings, observer: Observer, output: Output, existing: Existing, chain: FallbackChain
) -> CanaryWatch:
    """Looks at the model as the run itself would before it reads a batch; not where nobody can take the vectors."""
    if output.lock_path is None:
        return CanaryWatch(settings.paths.canaries, observer, chain.endpoints, when="off")
    lock: SpaceLock | None = None
    with suppress(InputMissing):
        lock = space_lock.read(output.lock_path)
    return space_locks.watch(settings, observer, lock, existing, chain.first)


def cancel(
    settings: Settings,
    run: RunEntry,
    run_async: RunAsync,
    *,
    observer: Observer = UNOBSERVED,
    disk: Disk = DISK,
) -> Cancelled:
    """End all batches of a run; what they did is in the journal and on its way to the ledger then.

    Of a model that has changed since the output was begun, what was done is booked, and its vectors are in no output.

    Raises:
        InputMissing: It has none.
        Locked: It is running.
        BatchesPending: Their provider takes longer to end them.
    """
    trust = home_trust(settings.paths, disk)
    copies, state, gone = settings.paths.batches, run.folder, not run.folder.is_dir()
    if gone:  # its vectors are of no use; what they cost is booked all the same
        state = settings.paths.journal / str(run.run_id)
        disk.make_folder(state)
    done = Cancelled()
    with locks.hold(state / LOCK, command="batch cancel"):
        found = batching.left(run.folder, copies, trust)
        if not found.pending:
            raise InputMissing(f"no batch of {run.job_id or run.run_id} is under way", hint="see `embedctl batch list`")
        prices = RunPrices(foundations.ledger_paths(settings).price_file, utc_now())
        done.spending = Spending(prices.price)
        done.batches, done.texts = len(found.pending), sum(one.texts for one in found.pending)
        chain = chains.chain(settings, observer=observer)
        check_usable(chain.first)
        batching.check_same_space(found, chain.first, None)
        output = StreamOutput(state, io.BytesIO(), disk=disk) if gone else FolderOutput(Path(run.output), trust, disk)
        give = segment_owners.routed(
            state, foundations.spool(settings, disk), trust, ledger=settings.paths.ledger, disk=disk
        )
        existing = Existing(recovered=recover(state / JOURNAL, trust))
        plan = RunPlan(
            job=JobRequest(settings=settings, inputs=(), kind="folder", job=run.job_id or None, command="batch cancel"),
            run_id=run.run_id,
            observer=Observers(done.spending, observer),
            stop=StopSignal(),
            chain=chain,
            source=None,  # type: ignore[arg-type]
            output=output,
            existing=existing,
            denied={},
            trust=trust,
            spending=done.spending,
            prices=prices,
            canary=_watch(settings, observer, output, existing, chain),
            facts=lambda *_: b"",
            rows=RowCounts(),
            disk=disk,
        )

        async def work() -> None:
            api = batching.usable(chain.first, None)
            async with wiring.opened_batches(plan, lambda: give, api, found, patient=True, cancels=True) as resources:
                answers = resources.answers
                until = time.monotonic() + WAITS_S
                try:
                    await answers.cancel()
                    while answers.pending and time.monotonic() < until:
                        await answers.wait()
                except ProviderError as error:
                    if isinstance(error, Temporary) or error.exit_code in (75, 77):
                        raise
                    done.given_up = len(answers.pending)
                    observer.notify(Warned("batch_unseen", run.job_id or str(run.run_id), error.message))
                    await answers.give_up("given up")
                if answers.pending:
                    raise BatchesPending(
                        f"{chain.first.provider} has not ended the batches within {format_duration(WAITS_S)}",
                        hint="run the same command again: it collects what was done",
                    )

        run_async(work())
        if gone:
            batching.forget(batching.left(state, copies, trust), disk)
            rescue(state / JOURNAL, give, trust, keeps_vectors=False, observer=observer, disk=disk)
    if gone:
        storage.remove_tree(disk, state)
    runs = RunRegistry(settings.paths.runs, disk=disk)
    if run.state == "waiting":
        runs.update(run, state="interrupted", last_error="its batches were cancelled")
    for note in intake.take_in(settings.paths, wait_s=5, now=utc_now(), observer=observer, disk=disk, thorough=True):
        observer.notify(Warned("ledger", detail=note))
    return done
