"""Workers as processes of this machine: started, heard, started again when they die, ended with the command."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from embedctl.budgets.reservations import Reservations
from embedctl.dataclass import dataclass
from embedctl.engines.host_run import HostRun
from embedctl.engines.packed_job import packed
from embedctl.engines.process_line import Frames, framed
from embedctl.engines.shared_limits import SharedLimits
from embedctl.errors import EmbedctlError, Interrupted, ShardLost, ShardsHeld, Terminated
from embedctl.planning.shards import Shard
from embedctl.records import Warned
from embedctl.runs.store_plan import StorePlan

_READ = 1 << 18
MOST_AGAIN = 32
"""How often workers are started again that have ended in order, though nobody here had told them to."""

_STARTED_AGAIN = (ShardLost, Interrupted, Terminated)
"""Ends of a worker alone, that say nothing about the job."""


@dataclass(slots=True, eq=False)
class _Child:
    """A worker process.

    Attributes:
        worker: Its run's id, once it has joined.
        has_ended: It has said how; `error` then.
    """

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    worker: str = ""
    has_ended: bool = False
    error: EmbedctlError | None = None

    def say(self, *frame: Any) -> None:
        """Send a frame; a worker that is gone hears nothing."""
        if not self.writer.is_closing():
            self.writer.write(framed(*frame))


class ProcessesRun(HostRun):
    """A command whose workers are processes beside it."""

    async def _run_workers(self, plan: StorePlan, left: Sequence[Shard], money: Reservations) -> None:
        """Start them, and return when all have ended."""
        limits = self._shared_limits(money)
        count = self._worker_count(left)
        self._children: set[_Child] = set()
        self._dead_workers: list[str] = []
        self._again = 0
        content = packed(self.job)
        stopping = asyncio.create_task(self._pass_on_stop())
        try:
            async with asyncio.TaskGroup() as places:
                for _ in range(count):
                    places.create_task(self._place(plan, content, count, limits))
        finally:
            stopping.cancel()
            for child in self._children:
                with suppress(ProcessLookupError):
                    child.process.kill()
        self.stop.proceed()

    async def _pass_on_stop(self) -> None:
        """Told to stop, or one of them has failed: all of them end in order."""
        await self.stop.asked.wait()
        for child in self._children:
            child.say("stop", self.stop.reason)

    async def _place(self, plan: StorePlan, content: bytes, count: int, limits: SharedLimits) -> None:
        """One worker after the other, until one ends in order, or none may be started any more."""
        try:
            while not self.stop.reasons:
                child = await self._started(content, count)
                self._children.add(child)
                if self.stop.reason is not None:
                    child.say("stop", self.stop.reason)
                try:
                    await self._heard_to_its_end(child, limits)
                    code = await child.process.wait()
                finally:
                    self._children.discard(child)
                    child.writer.close()
                if not await self._is_started_again(plan, child, code):
                    return
        except EmbedctlError as error:
            self.stop.because(error)

    async def _is_started_again(self, plan: StorePlan, child: _Child, code: int) -> bool:
        """Whether another worker takes its place.

        Raises:
            EmbedctlError: The job is at its end.
        """
        if child.has_ended and (child.error is None or isinstance(child.error, ShardsHeld)):
            self._crew.ended(child.worker)
            return False
        if child.worker:
            self._dead_workers.append(child.worker)
        if self.stop.reasons:
            return False
        if child.error is not None:
            self._crew.ended(child.worker)
            self._again += 1
            if self._again > MOST_AGAIN or not isinstance(child.error, _STARTED_AGAIN):
                raise child.error
            return True
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        shard = await asyncio.to_thread(self._shard_of_dead, plan, child.worker)
        self._crew.died(child.worker, how, shard)
        where = f" at shard {shard}" if shard else ""
        self._observer.notify(Warned("worker_died", str(child.process.pid), f" {how}{where}"))
        for other in self._children:
            other.say("dead", [child.worker])
        return True

    async def _started(self, content: bytes, count: int) -> _Child:
        ours, theirs = socket.socketpair()
        cores = str(max(1, (os.cpu_count() or 1) // count))
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing in the current folder takes the place of a module of ours
                "-m",
                "embedctl.engines.process_worker",
                str(theirs.fileno()),
                env={"OMP_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": "1", **os.environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is passed on once, by us
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        child = _Child(process, reader, writer)
        child.say("job", content)
        if self._dead_workers:
            child.say("dead", list(self._dead_workers))
        return child

    async def _heard_to_its_end(self, child: _Child, limits: SharedLimits) -> None:
        """Hear a worker until its end of the line is closed."""
        frames = Frames()
        told: set[asyncio.Task[None]] = set()
        asked: set[asyncio.Task[None]] = set()
        while content := await _received(child.reader):
            for frame in frames.of(content):
                self._on_frame(child, frame, limits, told, asked)
        await asyncio.gather(*told)
        await limits.gone(child.worker)  # who waits for an answer is not there any more
        await asyncio.gather(*asked)

    def _on_frame(
        self,
        child: _Child,
        frame: tuple[Any, ...],
        limits: SharedLimits,
        told: set[asyncio.Task[None]],
        asked: set[asyncio.Task[None]],
    ) -> None:
        """What a worker says.

        Args:
            told, asked: What of it is still being done.
        """
        match frame:
            case ("events", events):
                for event in events:
                    self._hear(child.worker, event)
            case ("ended", error):
                child.has_ended, child.error = True, error
            case ("ask", number, "join", (worker,)):
                child.worker = worker
                child.say("answer", number, limits.join(worker))
            case ("ask", number, method, arguments):
                _keep(asked, self._answer(child, number, getattr(limits, method), arguments))
            case ("tell", method, arguments):
                _keep(told, getattr(limits, method)(child.worker, *arguments))

    async def _answer(self, child: _Child, number: int, method: Any, arguments: Any) -> None:
        child.say("answer", number, await method(child.worker, *arguments))


def _keep(tasks: set[asyncio.Task[None]], what: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(what)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _received(reader: asyncio.StreamReader) -> bytes:
    """What has come; empty when the worker has ended."""
    try:
        return await reader.read(_READ)
    except ConnectionError:
        return b""
