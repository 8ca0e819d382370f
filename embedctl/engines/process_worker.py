"""A worker process: `python -m embedctl.engines.process_worker FD`, whose command is at the other end of FD."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from embedctl.engines.packed_job import unpacked
from embedctl.engines.process_line import WorkerEnd, lost, portable
from embedctl.engines.worker_run import Reports, WorkerRun, signals
from embedctl.errors import EmbedctlError, Terminated
from embedctl.runs import memory
from embedctl.runs.run import JobWork
from embedctl.runs.store_plan import StorePlan
from embedctl.runs.store_run import StoreRun
from embedctl.telemetry.watching import watched


class ProcessWorkerRun(WorkerRun):
    """One of several workers, in a process of its own. The command has refused what is to be refused."""

    end: WorkerEnd

    async def _work(self, plan: StorePlan, work: JobWork) -> None:
        """Shards, one after the other; limits and money are asked for."""
        with self.end.listening():
            terms = await self.end.ask("join", str(self.run_id))
            self.share(self.end, terms)
            await super()._work(plan, work)


def work(fd: int) -> int:
    """Work for the command at the other end until the job is done, or this worker has to end; the exit code."""
    run: ProcessWorkerRun | None = None
    is_stopping = False

    def heard(frame: tuple[Any, ...]) -> None:
        nonlocal is_stopping
        if run is None:
            return
        if frame[0] == "stop":
            is_stopping = True
            _stop(run, frame[1])
        elif frame[0] == "dead":
            run.others_died(frame[1])

    def gone() -> None:
        if is_stopping:  # a second signal has ended the command: so it is meant here
            os._exit(Terminated.exit_code)
        if run is not None:
            _stop(run, lost())

    end = WorkerEnd(socket.socket(fileno=fd), heard, gone)
    error: EmbedctlError | None = None
    reports = Reports(lambda events: end.say("events", events))
    try:
        job = unpacked(end.first()[1], dict(os.environ))
        with watched(job.settings, reports) as observer:
            run = ProcessWorkerRun(job, observer)
            run.end = end
            with signals(run):
                error = run.execute(asyncio.run).error
    except EmbedctlError as failure:
        error = failure
    reports.flush()
    end.say("ended", portable(error))
    return 0 if error is None else error.exit_code


def _stop(run: StoreRun, reason: EmbedctlError) -> None:
    with suppress(EmbedctlError):  # nothing is sent yet: it looks itself before it does
        run.ask_to_stop(reason)


if __name__ == "__main__":
    memory.collect_seldom()
    memory.leave_pandas_out()
    memory.keep_memory()
    try:
        sys.exit(work(int(sys.argv[1])))
    finally:
        memory.collect_no_more()
