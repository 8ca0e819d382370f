"""Jobs, one after the other, by priority: each as child processes that go on, or are gone on with, whoever dies.

    queued → running → completed | failed | cancelled
                 ↕
              waiting: for its provider, or for a lock

What a job has bought is in its run's journal, so that a child may be started anew at any time: nothing is bought twice
but what was in flight. A server that comes back follows children that live, and starts those of the dead anew.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, Locked, StorageFailed
from embedctl.records import utc_now
from embedctl.routing import chain as chains
from embedctl.server import refusals
from embedctl.server.authentication import Client, Keyring
from embedctl.server.jobs import children
from embedctl.server.jobs.children import Child, ChildEnd
from embedctl.server.jobs.store import Job, JobStore, State
from embedctl.server.log import AccessLog
from embedctl.server.refusals import Refused
from embedctl.settings import JobSettings, Settings
from embedctl.storage import locks

LOOK_S = 0.2
"""How often is looked at what no child's end tells."""

MOST_DEATHS = 20
"""So often a child is started anew that a signal has ended unasked."""

MOST_WAITS = 60
"""So often in a row a job waits for something that passes; for a provider's batches it waits as long as it takes."""

LONGEST_WAIT = 10
"""Of `again_s`: the longer a job waits, the less often is looked."""

WINDOW_S = 86_400.0
"""A batch of OpenAI's shape that has not ended by then is ended, with what was done."""

ACCOUNTS_S = 30
_TOGETHER = 200
_EXPIRES_S = 600.0

_CODES = {
    2: "invalid_job", 4: "budget_exceeded", 65: "invalid_file", 66: "invalid_file", 69: "provider_unavailable",
    73: "storage_failed", 74: "storage_failed", 75: "provider_unavailable", 76: "provider_malformed_response",
    77: "provider_credentials_rejected", 78: "missing_provider_credentials",
}  # fmt: skip
"""Exit code of a run → code of the error that its job shows."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What belongs to a kind of job beside its run.

    Attributes:
        before: Makes the run's input; returns what changes of the job: its inputs, or its end.
        after: Makes of what is there what is shown at the end of the run; the same.
    """

    before: Callable[[Job], Awaitable[dict[str, Any]]]
    after: Callable[[Job], Awaitable[dict[str, Any]]]


class JobQueue:
    """All jobs of a server.

    Args:
        settings, keyring: As they are now.
        flags: `--config` and `--ledger` as the server has them.

    Attributes:
        is_elsewhere: Another server works on these jobs.
    """

    def __init__(
        self,
        store: JobStore,
        settings: Callable[[], Settings],
        keyring: Callable[[], Keyring],
        log: AccessLog,
        flags: Sequence[str] = (),
    ) -> None:
        self.store = store
        self._settings = settings
        self._keyring = keyring
        self._log = log
        self._flags = tuple(flags)
        self.steps: dict[str, Steps] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._children: dict[str, Child] = {}
        self._told: set[str] = set()  # jobs whose child, started by another server, was asked to stop
        self._wake = asyncio.Event()
        self._helping = asyncio.Semaphore(max(1, self.settings.at_once))
        self._accounting: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._stopping = False
        self._lock: locks.Lock | None = None
        self.is_elsewhere = False
        self._expired_at = 0.0

    @property
    def settings(self) -> JobSettings:
        """Those of `[serve.jobs]`."""
        return self._settings().serve.jobs

    # what clients ask for

    async def add(self, job: Job) -> Job:
        """A new one, to be worked on.

        Raises:
            Refused: Its workspace has as many as it may, or takes as much room.
        """
        await self.check_room(job.workspace)
        await asyncio.to_thread(self.store.add, job)
        self._log.say("job", job=job.id, key=job.key or None, workspace=job.workspace, state=job.state, act="created")
        self._wake.set()
        return job

    async def check_room(self, workspace: str) -> None:
        """Raises Refused when a workspace has as many jobs as it may, or takes as much room on the disk."""
        waiting = sum(one.workspace == workspace for one in self.store.open_jobs())
        if waiting >= self.settings.queue:
            raise Refused("overloaded", f"{waiting} jobs of this workspace have not ended", retry_after_s=60)
        used, most = await asyncio.to_thread(self.store.used_bytes, workspace), self.settings.workspace_bytes
        if used >= most:
            raise Refused("body_too_large", f"jobs and files of this workspace take {used} bytes, and may take {most}")

    def found(self, client: Client, job_id: str, kinds: Sequence[str] = ()) -> Job:
        """A job that a client may see: its workspace's; an admin's are all.

        Raises:
            Refused: There is none, or it is somebody else's: told alike.
        """
        job = self.store.job(job_id)
        foreign = job is None or not (client.is_admin or job.workspace == client.workspace)
        if job is None or foreign or (kinds and job.kind not in kinds):
            raise Refused("job_not_found", "there is no such job")
        return job

    async def cancel(self, job: Job) -> Job:
        """It is to end; one that has ended stays as it is."""
        if not job.is_open:
            return job
        job = await self._changed(job, cancel=True)
        self._log.say("job", job=job.id, workspace=job.workspace, act="cancel")
        self._stop_child(job)
        self._wake.set()
        return job

    async def retry(self, job: Job, client: Client) -> Job:
        """Go on with one that has ended before all was there; who asks for it pays for what is left.

        Raises:
            Refused: It has not ended, or nothing of it is left.
        """
        if job.is_open:
            raise Refused("not_finished", "the job has not ended")
        if job.state == "completed" and not job.counts.get("failed"):
            return job
        job = await self._changed(
            job,
            state="queued", key=client.id, cancel=False, error=None, deaths=0, waits=0, again_at=None,
            finished_at=None, accounted=False, retry_failed=bool(job.counts.get("failed")), expired=False,
            batch={**job.batch, "since": self.store.clock()} if job.batch else {},
        )  # fmt: skip
        self._log.say("job", job=job.id, key=client.id or None, workspace=job.workspace, act="retry")
        self._wake.set()
        return job

    async def help(self, argv: Sequence[str], folder: Path, env: Mapping[str, str], name: str) -> ChildEnd:
        """Run a short child of a job, no more than so many at once; how it ended.

        Raises:
            Refused: It cannot be started.
        """
        async with self._helping:
            said = folder / f"{name}.json"
            try:
                child = await Child.start(argv, env, said, folder / "log")
            except OSError as problem:
                raise Refused("storage_failed", "the job cannot be worked on now", reason=str(problem)) from None
            try:
                return await child.wait()
            except asyncio.CancelledError:
                child.kill()
                raise

    def environment(self, job: Job) -> dict[str, str]:
        """Of a job's children."""
        return children.environment(self._settings(), job.provider, job.model)

    def run_command(self, job: Job, *more: str) -> list[str]:
        """`batch run` for a job."""
        folder = self.store.folder(job.id)
        words = ["batch", "run", *job.inputs, f"--output={folder / children.OUTPUT}", f"--job={job.id}"]
        words += ["--json", "--no-progress", "--no-wait", f"--model={job.provider}:{job.model}"]
        words.append("--fallback=off" if self._settings().options.fallback == "off" else "--fallback=same-space")
        words += [f"--workspace={job.workspace}", *self._paid_by(job), *self._shared_rate(job), *job.flags]
        words += ["--retry-failed"] if job.retry_failed else []
        if self._is_pinned(job):
            words.append("--fallback=off")
        return children.command(*words, *self._flags, *more)

    def _is_pinned(self, job: Job) -> bool:
        """Whether nobody may take over: who does may be one that its key may not ask."""
        key = self._keyring().keys.get(job.key)
        return key is not None and (key.models is not None or key.providers is not None)

    def _paid_by(self, job: Job) -> list[str]:
        """Whose key pays, and what of its budget every run of it sees."""
        if not job.key:
            return []
        found = [f"--tag=key={job.key}"]
        key = self._keyring().keys.get(job.key)
        if key is not None and key.budget is not None:
            found.append(f"--key-budget={job.key}={key.budget:f}/{key.budget_period}")
        return found

    def _shared_rate(self, job: Job) -> list[str]:
        """Of what a provider may be asked a minute, half is for those who wait for an answer."""
        settings = self._settings()
        with suppress(EmbedctlError):
            limits = chains.endpoint(settings, job.provider, job.model).rate_limits
            share = 2 * max(1, settings.serve.jobs.at_once)
            named = (("rpm", limits.requests_per_minute), ("tpm", limits.tokens_per_minute))
            return [f"--{name}={max(1, int(limit) // share)}" for name, limit in named if limit]
        return []

    # while it serves

    async def open(self) -> None:
        """Read what is there, and begin; one server at a time does."""
        await asyncio.to_thread(storage.DISK.make_folder, self.store.root)
        try:
            self._lock = await asyncio.to_thread(locks.hold, self.store.root / "lock", command="embedctl serve")
        except Locked as held:
            self.is_elsewhere = True
            self._log.say("jobs_elsewhere", message=held.message)
            return
        await asyncio.to_thread(self.store.open)
        for job in self.store.open_jobs():
            if job.state == "running":
                self._log.say("job", job=job.id, workspace=job.workspace, act="resumed")
        self._looking = asyncio.create_task(self._look())

    def stop(self) -> None:
        """Let children end: what they have asked for is kept, and the next server goes on with them."""
        self._stopping = True
        if self._looking is not None:
            self._looking.cancel()
        for child in self._children.values():
            child.ask_to_stop()

    async def close(self, seconds: float) -> None:
        """The same, and wait until they have."""
        self.stop()
        tasks = [*self._working.values()]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=max(1.0, seconds))
            for child in self._children.values():
                child.kill()
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=2)
        if self._accounting is not None:
            self._accounting.cancel()
        if self._lock is not None:
            self._lock.release()

    async def _look(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._looked()
            except EmbedctlError as problem:
                self._log.say("jobs_not_looked_at", message=problem.message)
            except Exception as bug:
                self._log.bug(bug)

    async def _looked(self) -> None:
        now = self.store.clock()
        for job in self.store.open_jobs():
            if job.kind == "batch" and not job.cancel and now >= job.batch.get("since", job.created_at) + WINDOW_S:
                self._log.say("job", job=job.id, workspace=job.workspace, act="expired")
                self._stop_child(await self._changed(job, cancel=True, expired=True))
        for job in self.store.open_jobs():
            if not self._is_paid(job) and not job.cancel and job.id in self._working:
                self._stop_child(job)
            if job.id not in self._working and (job.cancel or not self._is_paid(job)):
                self._begin(job, self._given_up)
        ready = [
            one
            for one in self.store.open_jobs()
            if one.id not in self._working and (one.again_at is None or one.again_at <= now)
        ]
        order = sorted(ready, key=lambda one: (one.state != "running", -one.priority, one.created_at))
        for job in order[: max(0, self.settings.at_once - len(self._working))]:
            self._begin(job, self._worked)
        if self.store.unaccounted() and (self._accounting is None or self._accounting.done()):
            self._accounting = asyncio.create_task(self._account())
        if now - self._expired_at > _EXPIRES_S:
            self._expired_at = now
            if gone := await asyncio.to_thread(self.store.expire):
                self._log.say("jobs_expired", count=gone)

    def _begin(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(self._guarded(job, work))
        self._working[job.id] = task

        def done(_: object) -> None:
            self._working.pop(job.id, None)
            self._children.pop(job.id, None)
            self._wake.set()

        task.add_done_callback(done)

    async def _guarded(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        try:
            await work(job)
        except asyncio.CancelledError:
            raise
        except Refused as refused:
            await self._ended(job, "failed", code=refused.code, message=refused.message)
        except EmbedctlError as problem:
            self._log.say("job_not_worked_on", job=job.id, message=problem.message)
            await self._again(job)
        except Exception as bug:
            self._log.bug(bug, job.id)
            await self._ended(job, "failed", code="internal_error", message="something went wrong here")

    def _is_paid(self, job: Job) -> bool:
        """Whether the key of a job may still ask for anything."""
        ring = self._keyring()
        key = ring.keys.get(job.key)
        if key is not None:
            return key.state(utc_now()) == "active"
        return not re.fullmatch(r"[a-z2-7]{8}", job.key)

    def _stop_child(self, job: Job) -> None:
        child = self._children.get(job.id)
        if child is not None:
            child.ask_to_stop()
        elif job.state == "running" and job.id not in self._told:
            self._told.add(job.id)
            children.stop_foreign(self.store.folder(job.id))

    async def _given_up(self, job: Job) -> None:
        """It was cancelled, or its key counts no more, and no child of this server is at it."""
        await self._followed(job)
        await self._stopped(job)

    async def _stopped(self, job: Job) -> None:
        """No run of it lives, and none is to begin."""
        if job.state == "waiting":  # batches may be under way
            await self.help(
                children.command("batch", "cancel", job.id, "--json", "--no-progress", *self._config()),
                self.store.folder(job.id), self.environment(job), "cancel",
            )  # fmt: skip
        if (self.store.job(job.id) or job).cancel:
            await self._ended(job, "cancelled", **await self._shown(job, "cancelled"))
        else:
            await self._ended(job, "failed", code="invalid_key", message="the key that pays for it counts no more")

    def _config(self) -> list[str]:
        """What `batch cancel` knows of the server's flags."""
        return [one for one in self._flags if one.startswith("--config=")]

    async def _followed(self, job: Job) -> None:
        """Wait until a run ends that another server has started."""
        folder = self.store.folder(job.id)
        while await asyncio.to_thread(children.is_at_work, folder):
            current = self.store.job(job.id) or job
            if current.cancel or not self._is_paid(job):
                self._stop_child(current)
            await asyncio.sleep(LOOK_S)

    async def _worked(self, job: Job) -> None:
        """Work on a job until it has ended, waits, or the server stops."""
        folder = self.store.folder(job.id)
        steps = self.steps.get(job.kind)
        if steps is not None and not job.inputs:
            job = await self._changed(job, state="running", started_at=job.started_at or self.store.clock())
            job = await self._changed(job, **await steps.before(job))
            if not job.is_open:
                await self._ended(job, job.state)
                return
            if not job.inputs:  # nothing of it can be embedded
                await self._ended(job, "completed", **await self._shown(job, "completed"))
                return
        ended = await self._left(job, folder) if job.state == "running" and job.tries else None
        if ended is None:
            ended = await self._child_ran(job, folder)
        await self._judged(self.store.job(job.id) or job, ended)

    async def _left(self, job: Job, folder: Path) -> ChildEnd | None:
        """How a child ended that another server has started; None where it came to no end of its own."""
        followed = await asyncio.to_thread(children.is_at_work, folder)
        await self._followed(job)
        found = await asyncio.to_thread(children.ended, -9, folder / f"receipt-{job.tries}.json", folder / "log")
        code = int(found.said.get("exit_code", found.code))
        stopped = code < 0 or code in (130, 143)
        return None if stopped and not followed else replace(found, code=code)

    async def _child_ran(self, job: Job, folder: Path) -> ChildEnd:
        job = await self._changed(
            job, state="running", tries=job.tries + 1, again_at=None, started_at=job.started_at or self.store.clock()
        )
        argv = self.run_command(job)
        said, mark = folder / f"receipt-{job.tries}.json", children.mark_of(folder)
        try:
            child = await Child.start(argv, self.environment(job), said, folder / "log", mark=mark)
        except OSError as problem:
            raise StorageFailed(f"a job's process cannot be started: {problem.strerror}") from problem
        self._children[job.id] = child
        self._told.discard(job.id)
        if self._stopping or (self.store.job(job.id) or job).cancel:
            child.ask_to_stop()
        ended = await child.wait()
        self._children.pop(job.id, None)
        return ended

    async def _judged(self, job: Job, ended: ChildEnd) -> None:
        """What a run's end means for its job."""
        said = ended.said
        self._log.say("job", job=job.id, workspace=job.workspace, act="run_ended", code=ended.code)
        if "rows" in said:
            counts = {name: int(said[name]) for name in ("rows", "vectors", "failed", "skipped", "reused")}
            job = await self._changed(job, counts=counts, run_id=str(said["run_id"]))
        if ended.code in (0, 3):
            await self._ended(job, "completed", exit_code=ended.code, **await self._shown(job, "completed"))
        elif ended.code < 0 or ended.code in (130, 143):
            if job.cancel or not self._is_paid(job):
                await self._stopped(job)
            elif self._stopping:
                return  # it stays "running", and the next server goes on with it
            elif job.deaths >= MOST_DEATHS:
                await self._ended(job, "failed", code="internal_error", message="its process has died too often")
            else:
                await self._changed(job, deaths=job.deaths + 1)
        elif ended.code == 75:
            pending = (said.get("batch") or {}).get("pending")
            if job.cancel:
                await self._stopped(await self._changed(job, state="waiting"))  # batches of it may be under way
            elif job.waits >= MOST_WAITS and not pending:
                await self._ended(job, "failed", code="provider_unavailable", message=self._why(job, ended))
            else:
                await self._again(job)
        else:
            code = _CODES.get(ended.code, "internal_error")
            more = await self._shown(job, "failed")
            await self._ended(job, "failed", code=code, message=self._why(job, ended), exit_code=ended.code, **more)

    async def _shown(self, job: Job, state: State) -> dict[str, Any]:
        """What changes of a job that ends so, once that is made which it shows."""
        steps = self.steps.get(job.kind)
        return {} if steps is None else await steps.after(replace(job, state=state))

    def _why(self, job: Job, ended: ChildEnd) -> str:
        """In words for the client: without the server's paths."""
        words = str(ended.said.get("message") or ended.complained or f"the run ended with exit code {ended.code}")
        for path in (*job.inputs, str(self.store.folder(job.id))):
            words = words.replace(f"{path}/", "").replace(path, "the input")
        return refusals.clean(words)

    async def _again(self, job: Job) -> Job:
        waits = job.waits + 1
        seconds = self.settings.again_s * min(waits, LONGEST_WAIT)
        return await self._changed(job, state="waiting", waits=waits, again_at=self.store.clock() + seconds)

    async def _ended(
        self,
        job: Job,
        state: State,
        *,
        code: str | None = None,
        message: str = "",
        exit_code: int | None = None,
        **more: Any,
    ) -> None:
        if code is not None:
            more["error"] = {"code": code, "message": message}
        ended = {"state": state, "finished_at": self.store.clock(), "again_at": None, "retry_failed": False}
        await self._changed(job, **{**ended, **more})
        self._log.say("job", job=job.id, workspace=job.workspace, state=state, error=code, code=exit_code)

    async def _changed(self, job: Job, **changes: Any) -> Job:
        """The job as it is by now, with changes, on the disk too."""
        return await asyncio.to_thread(self.store.change, job.id, **changes)

    async def _account(self) -> None:
        """What ended jobs came to, as the ledger has it; asked again as long as it cannot be read."""
        waiting = self.store.unaccounted()[:_TOGETHER]
        folder = self.store.root / "accounts"
        await asyncio.to_thread(storage.DISK.make_folder, folder)
        argv = children.program("accounts", *self._flags, *waiting)
        env = children.environment(self._settings(), "", "")
        try:
            ended = await self.help(argv, folder, env, "said")
        except Refused as refused:
            ended = ChildEnd(75, {}, refused.message)
        if ended.code:
            self._log.say("jobs_not_accounted", message=ended.complained or None)
            await asyncio.sleep(ACCOUNTS_S)
            return
        for name in waiting:
            current = self.store.job(name)
            if current is not None and not current.is_open:
                await asyncio.to_thread(self.store.change, name, accounted=True, **ended.said[name])
