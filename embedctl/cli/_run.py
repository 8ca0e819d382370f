"""What `embed` and `batch run` share: an order from flags, signals, what is said meanwhile, the receipt."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from embedctl import terminal
from embedctl.cli._progress import ProgressDisplay
from embedctl.dataclass import dataclass
from embedctl.errors import BatchesPending, Interrupted, Terminated, WrongUsage
from embedctl.telemetry.watching import watched

if TYPE_CHECKING:
    from embedctl.inputs import Query
    from embedctl.records import Observer
    from embedctl.runs.job import JobRequest
    from embedctl.runs.receipt import Receipt
    from embedctl.runs.run import Run
    from embedctl.settings import Settings
    from embedctl.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What is printed, and how."""

    as_json: bool
    quiet: bool
    progress: bool
    verbose: bool


_COMPRESSED = re.compile(r"\.(gz|zstd?|bz2|xz)$")


def default_name(inputs: Sequence[str]) -> str:
    """STEM.embeddings.parquet of a single input, embeddings.parquet of several or of none with a name (a query).

    Raises:
        InputMissing: The current folder is gone.
    """
    if len(inputs) != 1 or inputs[0] == "-" or any(mark in inputs[0] for mark in "*?["):
        return "embeddings.parquet"
    try:
        path = Path(os.path.realpath(inputs[0]))  # not `resolve`: a link may lead to itself
    except FileNotFoundError:
        from embedctl.settings.layers import current_folder

        path = current_folder() / inputs[0]  # which says that it is gone
    stem = path.name if path.is_dir() else _COMPRESSED.sub("", path.name).rpartition(".")[0]
    return f"{stem or path.name}.embeddings.parquet"


def execute(
    command: str,
    *,
    inputs: Sequence[str],
    kind: Literal["file", "folder", "stream"],
    output: Path | None,
    flags: Mapping[str, Any],
    talk: Talk,
    config: Path | None,
    ledger: Path | None,
    job_options: Mapping[str, Any] | None = None,
    job_file: Path | None = None,
    dry_run: bool = False,
    **about: Any,
) -> None:
    """Do it (or, with `dry_run`, say what it would take), print the receipt, and exit with its code.

    Args:
        job_file: Where `job_options` come from.
    """
    shown = talk.progress and not talk.quiet and not (kind == "stream" and sys.stdout.isatty())
    with ProgressDisplay(shown=shown) as display:
        from embedctl import settings  # who waits for these sees that something is done

        loaded = settings.load(flags=flags, job=job_options, config=config, ledger=ledger)
        if loaded.misplaced and not talk.quiet:
            terminal.warning(loaded.misplaced)
        alone = loaded.options.workers == 1 and loaded.options.engine == "local"  # else workers load, and watch
        is_there = output is not None and os.path.exists(output)  # noqa: PTH110 - whatever its name: others refuse it
        if alone and not dry_run and not is_there:  # else it may be finished
            from embedctl.runs import ahead

            ahead.load_model(loaded)
        from embedctl.runs.job import JobRequest

        store = _store(loaded, output) if kind == "folder" and output is not None else None
        job = JobRequest(
            settings=loaded,
            inputs=inputs,
            query=_query(loaded, job_file),
            kind=kind,
            output=None if store else output,
            store=store,
            command=command,
            resume=shlex.join(["embedctl", *sys.argv[1:]]),
            stream=sys.stdout.buffer if kind == "stream" else None,
            waits=sys.stderr.isatty(),
            stdin=sys.stdin.buffer if "-" in inputs and not sys.stdin.isatty() else None,
            **about,
        )
        observer = terminal.TerminalObserver(
            verbose=talk.verbose, quiet=talk.quiet, notices=not talk.as_json, progress=display
        )
        if dry_run:
            estimate, receipt = _run(job, observer).estimate(), None
        else:
            watch = ExitStack()
            told = watch.enter_context(watched(loaded, observer)) if alone else observer  # workers watch themselves
            run = _run(job, told)
            with _signals(run, display), watch:
                estimate, receipt = None, run.execute(asyncio.run)
    if estimate is not None:
        if talk.as_json:
            terminal.result(estimate.as_dict())
        else:
            terminal.estimate(estimate)
    if receipt is not None:
        _say(receipt, talk)


def _store(loaded: Settings, output: Path) -> Store | None:
    """What the output is a store of: an address, or a folder that several workers write, or wrote."""
    from embedctl.runs import target
    from embedctl.storage import store_url

    if not store_url.is_store_url(str(output)):
        options = loaded.options
        if options.engine == "ray" and options.ray_address != "local":
            raise WrongUsage(
                f"{output} is a folder of this machine, which others of a Ray cluster do not see",
                hint=f"write to a store: {store_url.WRITABLE}",
            )
        return target.shared_folder(
            output, workers=options.workers if options.engine == "local" else max(2, options.workers)
        )
    url = store_url.parse(str(output))
    if url.scheme == "hf":
        raise WrongUsage(f"{url} is read only", hint=f"give {store_url.WRITABLE}")
    return loaded.stores.open(url)


def _run(job: JobRequest, observer: Observer) -> Run:
    """A run, a worker where the output is on a store, or a command with several of them."""
    if job.settings.options.engine == "ray":
        from embedctl.engines.ray_run import RayRun

        return RayRun(job, observer)
    if job.store is not None and job.settings.options.workers > 1:
        from embedctl.engines.processes import ProcessesRun

        return ProcessesRun(job, observer)
    if job.store is not None:
        from embedctl.runs.store_run import StoreRun

        return StoreRun(job, observer)
    from embedctl.runs.run import Run

    return Run(job, observer)


def _say(receipt: Receipt, talk: Talk) -> None:
    """The receipt; exit with its code."""
    if talk.as_json:
        terminal.result(receipt.as_dict())
    elif not talk.quiet:
        terminal.receipt(receipt)
    if receipt.error is not None and not isinstance(receipt.error, BatchesPending):  # that is no error, and told
        terminal.error(receipt.error, as_json=False)
    elif talk.quiet and receipt.failed:
        terminal.failed_rows(receipt)
    if receipt.exit_code:
        raise typer.Exit(receipt.exit_code)


def _query(loaded: Settings, job_file: Path | None) -> Query | None:
    """The query that is asked; a job file's reads below that file's folder only."""
    from embedctl import inputs

    options = loaded.options
    if options.sql is None:
        if options.attach:
            raise WrongUsage("--attach belongs to --sql", hint="--sql QUERY says what is read of it")
        return None

    def folder(option: str) -> Path | None:
        return job_file.absolute().parent if job_file and loaded.origins[option] == "job file" else None

    return inputs.asked(options.sql, options.attach, folder=folder("sql"), attach_folder=folder("attach"))


@contextmanager
def _signals(run: Run, display: ProgressDisplay) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP stop the sending; a second one ends the process at once. Both are safe."""
    kinds: dict[int, type[Interrupted | Terminated]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            if (unfinished := run.unfinished()) is not None:
                display.from_signal(f"stopped at once: {terminal.kept(unfinished)}", last=True)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        asked = True
        reason = kinds[number]("stopped; what was answered is kept", hint=f"continue with: {run.job.resume}")
        run.ask_to_stop(reason)
        display.from_signal("stopping: waiting for requests in flight (once more to stop at once)")

    before = {number: signal.signal(number, stop) for number in kinds}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
