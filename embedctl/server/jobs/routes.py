"""All paths of jobs, media, files and batches, for the application."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedctl.server.jobs.batch_api import BatchPaths
from embedctl.server.jobs.media import MediaPaths
from embedctl.server.jobs.paths import JOBS, JobPaths, Jobs
from embedctl.server.jobs.queue import JobQueue
from embedctl.server.refusals import Refused
from embedctl.server.state import ServerState

UPLOADS = frozenset({JOBS, "/v1/files", "/api/v1/files"})
"""Paths whose bodies may be large, and take their time."""


def routes(state: ServerState, queue: JobQueue) -> list[Route]:
    """What is behind them; where another server of this machine works on the jobs, a word that says so."""
    jobs = Jobs(state, queue)
    found = [route for paths in (JobPaths, MediaPaths, BatchPaths) for route in paths(jobs).routes()]
    if queue.is_elsewhere:
        return [Route(route.path, _elsewhere, methods=[*(route.methods or ())]) for route in found]
    return found


async def _elsewhere(request: Request) -> Response:
    raise Refused("storage_failed", "another server of this machine works on the jobs of this state folder")
