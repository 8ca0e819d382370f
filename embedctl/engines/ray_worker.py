"""A worker of a job on Ray: the same loop over shards as everywhere, in a task; a retry of the task is another worker.

Keys, roles and folders are those of the machine it runs on. What comes with the task is what was asked for, and no key.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.engines.leases import LimitsLine
from embedctl.engines.packed_job import packed, unpacked
from embedctl.engines.process_line import portable
from embedctl.engines.worker_run import EVERY_S, Reports, WorkerRun, signals
from embedctl.errors import ConfigurationInvalid, EmbedctlError, Terminated
from embedctl.journal.rescue import LOCK
from embedctl.records import uuid7
from embedctl.runs import memory
from embedctl.runs.job import JobRequest
from embedctl.settings import LEDGER_NAME, Paths, ProviderSettings, Settings, home_of
from embedctl.storage import DISK, locks
from embedctl.telemetry.watching import watched

_SECRET = re.compile(r"auth|key|token|secret|password|cookie|signature|credential", re.IGNORECASE)
"""Names of headers that may hold a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPaths(Paths):
    """A worker's paths: what belongs to the job is its own, the rest its machine's.

    Attributes:
        own: Folder of this worker; removed when it ends.
    """

    own: Path

    @property
    def price_file(self) -> Path:
        """Prices as the command's user has set them."""
        return self.own / "prices.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handed:
    """What every worker gets.

    Attributes:
        job: As `packed_job` has made it.
        prices: The user's own, as their file has them.
        folder: Where relative names of inputs begin.
    """

    job: bytes
    prices: bytes
    folder: str


def check_headers(settings: Settings, provider: str) -> None:
    """Refuse headers of a provider that look like keys: what is handed to workers is no place for them.

    Raises:
        ConfigurationInvalid: One does; its value is not repeated.
    """
    for name in settings.providers.get(provider, ProviderSettings()).headers:
        if _SECRET.search(name):
            raise ConfigurationInvalid(
                f"[providers.{provider}] headers: {name} looks like a key, and none is sent to Ray's workers",
                hint="api_key_env names a variable, which each machine has for itself",
            )


def _without_secrets(settings: Settings) -> Settings:
    """Headers that look like keys go nowhere."""
    providers = {
        name: replace(one, headers={key: value for key, value in one.headers.items() if not _SECRET.search(key)})
        for name, one in settings.providers.items()
    }
    return replace(settings, providers=providers)


def handed(job: JobRequest) -> bytes:
    """A job for `work`; nothing in it is a key."""
    job = replace(job, settings=_without_secrets(job.settings))
    prices = job.settings.paths.price_file
    found = prices.read_bytes() if prices.exists() else b""
    return pickle.dumps(_Handed(job=packed(job), prices=found, folder=str(Path.cwd())))


class WorkerLine(LimitsLine, Protocol):
    """How a worker reaches whoever keeps the limits, and the command."""

    def join(self, number: int) -> dict[str, Any]:
        """As `SharedLimits.join`."""

    def report(self, events: bytes) -> None:
        """Events for the command, pickled; none of them says that this worker lives. Never raises."""

    def orders(self, timeout_s: float) -> tuple[Sequence[str], str | None]:
        """Workers that have died meanwhile; why this one has to end, if it has to. Nothing of both after so long."""

    def close(self) -> None:
        """Nothing is held any more."""


def work(number: int, content: bytes, open_line: Callable[[str], WorkerLine]) -> dict[str, Any]:
    """Work on the job until all of it is done, or this worker must end.

    Args:
        number: Of the worker's place, from 0.
        content: As `handed` has made it.
        open_line: The line of a worker with this id.

    Returns:
        `host` where it ran, and `error`, pickled, with which it has ended; None: nothing was left to do.
    """
    memory.collect_seldom()
    memory.keep_memory()
    error: EmbedctlError | None = None
    try:
        with _job(pickle.loads(content)) as job:  # noqa: S301 - of the command, as this code is
            error = _worked(number, job, open_line)
    except EmbedctlError as failure:
        error = failure
    return {"host": socket.gethostname(), "error": None if error is None else pickle.dumps(portable(error))}


def _worked(number: int, job: JobRequest, open_line: Callable[[str], WorkerLine]) -> EmbedctlError | None:
    run = WorkerRun(job)
    with closing(open_line(str(run.run_id))) as line, signals(run):
        run.share(line, line.join(number))
        reports = Reports(lambda events: line.report(pickle.dumps(events)))
        with watched(job.settings, reports) as observer:
            run.watch(observer)
            with _in_touch(line, run):
                try:
                    return run.execute(_run_async).error
                finally:
                    reports.flush()


@contextmanager
def _job(given: _Handed) -> Iterator[JobRequest]:
    """The job on this machine, with a folder beside the scratch: who finds that one unlocked removes it."""
    environment = dict(os.environ)
    job, home = unpacked(given.job, environment), home_of(environment)
    at_home = Paths(home=home, ledger=home / LEDGER_NAME)
    own = replace(job, settings=replace(job.settings, paths=at_home)).scratch / f"own-{uuid7()}"
    DISK.make_folder(own)
    try:
        with locks.hold(own / LOCK, command=job.command), _current(given.folder):
            paths = WorkerPaths(home=home, ledger=own / LEDGER_NAME, own=own)
            paths.price_file.write_bytes(given.prices)
            yield replace(job, settings=replace(job.settings, paths=paths))
    finally:
        storage.remove_tree(DISK, own)


@contextmanager
def _current(folder: str) -> Iterator[None]:
    """Relative names of inputs mean what they mean to the command, where its folder is there."""
    before = Path.cwd()
    with suppress(OSError):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _in_touch(line: WorkerLine, run: WorkerRun) -> Iterator[None]:
    """Say that this worker lives, and hear what the command wants, in threads."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(4 * EVERY_S):
            line.report(pickle.dumps([]))

    def listen() -> None:
        while not over.is_set():
            dead, reason = line.orders(1.0)
            run.others_died(dead)
            if reason is not None:
                with suppress(EmbedctlError):  # nothing is sent yet: it looks itself before it does
                    run.ask_to_stop(Terminated(reason))
                return

    for one in (beat, listen):
        threading.Thread(target=one, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _run_async(work: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, in the standard library's loop: Ray puts uvloop in its place where that is installed, and
    connections are watched through calls that uvloop refuses.
    """
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(work)
