"""The API guide's media paths: documents that lie where the settings say, each embedded by a job of its own.

Contract: facts/gateway.md 11 (2026-11-25); the guide's section on media.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedctl.server import answers
from embedctl.server.authentication import Client
from embedctl.server.fields import Asked
from embedctl.server.jobs import asking, children
from embedctl.server.jobs.asking import JobOptions
from embedctl.server.jobs.paths import JobInput, Jobs, client_of, file_digest, json_answer, listing
from embedctl.server.jobs.store import Job
from embedctl.server.refusals import Refused

MEDIA = "/api/v1/media"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
_MOST_IDS = 1000
_MOST_FILES = 1000
MOST_FOUND = 100
_KIND = frozenset({"media"})
_KNOWN = frozenset({
    "embedding_model", "embedding_provider", "chunk_size", "chunk_overlap", "force_regenerate", "priority",
})  # fmt: skip
CHUNK_SIZE, CHUNK_OVERLAP = 1000, 200
"""The guide's defaults, in tokens; a smaller limit of the model shrinks both."""


class MediaPaths:
    """What is behind the media paths."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._store = jobs.queue.store

    def routes(self) -> list[Route]:
        """Of the application; fixed words come before ids."""
        jobs = f"{MEDIA}/embeddings/jobs"
        return [
            Route(f"{MEDIA}/embeddings/batch", self.batch, methods=["POST"]),
            Route(f"{MEDIA}/embeddings/search", self.search, methods=["POST"]),
            Route(jobs, self.listed, methods=["GET"]),
            Route(f"{jobs}/{{id}}", self.one, methods=["GET"]),
            Route(f"{MEDIA}/{{media_id}}/embeddings/status", self.status, methods=["GET"]),
            Route(f"{MEDIA}/{{media_id}}/embeddings", self.create, methods=["POST"]),
            Route(f"{MEDIA}/{{media_id}}/embeddings", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST /media/{id}/embeddings."""
        async with self._jobs.admitted(request) as client:
            said = await self._jobs.body(request)
            asking.check_known(said, _KNOWN)
            job, is_new = await self._made(client, request.path_params["media_id"], said, request)
        message = "Embedding generation started" if is_new else "This is embedded already, or is being embedded"
        content = {
            "media_id": (await self._jobs.shown(job))["media_id"],
            "status": "accepted",
            "message": message,
            "embedding_count": job.counts.get("vectors"),
            "embedding_model": job.model,
            "chunks_processed": job.counts.get("vectors"),
            "job_id": job.id,
        }
        status = 200 if self._jobs.state.serve.guide_status else 202
        return json_answer(content, status, {"Location": f"{MEDIA}/embeddings/jobs/{job.id}"})

    async def _made(self, client: Client, media_id: Any, said: Mapping[str, Any], request: Request) -> tuple[Job, bool]:
        wanted = _wanted(said)
        anew = said.get("force_regenerate", False)
        if not isinstance(anew, bool):
            raise Refused("invalid_job", "force_regenerate must be true or false", param="force_regenerate")
        name = checked_id(media_id)
        target = await self._jobs.target(client, wanted, answers.exchange(request).headers.get("x-provider") or None)
        given = await asyncio.to_thread(self._input, client, name)
        key = asking.idempotency_key(answers.exchange(request).headers.get("idempotency-key"))
        return await self._jobs.made(
            client, "media", wanted, target, given, key=key, anew=anew, media_id=name, flags=["--split=document"]
        )

    def _input(self, client: Client, media_id: str) -> JobInput:
        """The files of a media id.

        Raises:
            Refused: There are none.
        """
        pattern = self._jobs.state.serve.media
        missing = Refused("media_not_found", f"there is no media item {media_id!r}")
        if pattern is None:
            raise missing
        folder, _, name = pattern.replace("{workspace}", client.workspace).rpartition("/")
        wanted = name.replace("{media_id}", media_id)  # an id holds no character that means something in a pattern
        files = []
        try:
            with os.scandir(folder or "/") as entries:
                for entry in entries:
                    if fnmatchcase(entry.name, wanted) and entry.is_file(follow_symlinks=False):
                        files.append(Path(entry.path))
                        if len(files) > _MOST_FILES:
                            raise missing
        except OSError:
            raise missing from None
        if not files:
            raise missing
        files.sort()
        marks = [(path.name, file_digest(path)) for path in files]
        return JobInput(asking.fingerprint(media_id, marks), files=tuple(files))

    async def batch(self, request: Request) -> Response:
        """POST /media/embeddings/batch: several media, a job for each."""
        async with self._jobs.admitted(request) as client:
            return await self._several(request, client)

    async def _several(self, request: Request, client: Client) -> Response:
        said = await self._jobs.body(request)
        asking.check_known(said, _KNOWN | {"media_ids"})
        ids = said.get("media_ids")
        if not isinstance(ids, list) or not ids:
            raise Refused("empty_input", "media_ids must be a list of ids", param="media_ids")
        if len(ids) > _MOST_IDS:
            raise Refused("too_many_inputs", f"{len(ids)} media; at most {_MOST_IDS}", param="media_ids")
        rest = {name: value for name, value in said.items() if name != "media_ids"}
        made: list[str] = []
        failed: dict[str, str] = {}
        for one in ids:
            try:
                made.append((await self._made(client, one, rest, request))[0].id)
            except Refused as refused:
                if refused.code not in ("media_not_found", "budget_exceeded", "overloaded"):
                    raise
                failed[str(one)[:128]] = refused.code
        if not made:
            raise Refused("media_not_found", "none of these media can be embedded", more={"failure_reasons": failed})
        content = {
            "status": "partial" if failed else "accepted",
            "job_ids": made,
            "submitted": len(made),
            "failed_media_ids": [one for one in ids if str(one)[:128] in failed],
            "failure_reasons": failed,
        }
        return json_answer(content, 202)

    async def status(self, request: Request) -> Response:
        """GET /media/{id}/embeddings/status."""
        client = client_of(request)
        media_id = checked_id(request.path_params["media_id"])
        jobs = self._of(client, media_id)
        done = next((job for job in jobs if job.state == "completed" and job.counts.get("vectors")), None)
        if not jobs:
            await asyncio.to_thread(self._input, client, media_id)
        shown = {
            "media_id": int(media_id) if media_id.isdigit() and media_id[:1] != "0" else media_id,
            "has_embeddings": done is not None,
            "embedding_count": done.counts["vectors"] if done else 0,
            "embedding_model": done.model if done else None,
            "last_generated": int(done.finished_at) if done and done.finished_at else None,
            "job_id": jobs[0].id if jobs else None,
        }
        return json_answer(shown)

    def _of(self, client: Client, media_id: str) -> list[Job]:
        return [job for job in self._store.jobs(client.workspace, _KIND) if job.media_id == media_id]

    async def search(self, request: Request) -> Response:
        """POST /media/embeddings/search: the chunks of this workspace's media that are nearest to a query."""
        client = self._jobs.begin(request)
        said = await self._jobs.body(request)
        asking.check_known(said, frozenset({"query", "top_k", "media_ids", "embedding_model", "embedding_provider"}))
        query, count = said.get("query"), said.get("top_k", 10)
        if not isinstance(query, str) or not query.strip():
            raise Refused("empty_input", "query must be some words", param="query")
        if type(count) is not int or not 1 <= count <= MOST_FOUND:
            raise Refused("invalid_job", f"top_k must be a whole number from 1 to {MOST_FOUND}", param="top_k")
        jobs = await self._searched(client, said)
        if not jobs:
            return json_answer({"results": [], "count": 0})
        vector = await self._query_vector(request, client, jobs[0], query)
        folders = {str(job.media_id): str(self._store.folder(job.id) / children.OUTPUT) for job in jobs}
        asked = {"folders": folders, "query": vector.tolist(), "count": count}
        with tempfile.TemporaryDirectory(prefix="search-", dir=self._store.root) as folder:
            path = Path(folder) / "asked.json"
            await asyncio.to_thread(path.write_bytes, orjson.dumps(asked))
            argv = children.program("search", str(path))
            ended = await self._jobs.queue.help(argv, path.parent, self._jobs.queue.environment(jobs[0]), "found")
        if ended.code:
            raise Refused("storage_failed", "the vectors cannot be searched now", reason=ended.complained)
        found = ended.said["results"]
        return json_answer({"results": found, "count": len(found)})

    async def _searched(self, client: Client, said: Mapping[str, Any]) -> list[Job]:
        """The newest job of each media item, of one model: the one that is named, else that of the newest of all.

        Raises:
            Refused: A media item that is named has no vectors.
        """
        newest: dict[str, Job] = {}
        for job in self._store.jobs(client.workspace, _KIND):
            if job.state == "completed" and job.counts.get("vectors"):
                newest.setdefault(str(job.media_id), job)
        ids = said.get("media_ids")
        if ids is not None:
            if not isinstance(ids, list) or len(ids) > _MOST_IDS:
                raise Refused("invalid_job", "media_ids must be a list of ids", param="media_ids")
            named = [checked_id(one) for one in ids]
            for name in named:
                if name not in newest:
                    raise Refused("media_not_found", f"media item {name!r} has no embeddings")
            newest = {name: newest[name] for name in named}
        found = sorted(newest.values(), key=lambda job: job.created_at, reverse=True)
        if not found:
            return []
        model = (found[0].provider, found[0].model)
        if said.get("embedding_model") is not None or said.get("embedding_provider") is not None:
            wanted = asking.wanted({"model": said.get("embedding_model"), "provider": said.get("embedding_provider")})
            target = await self._jobs.target(client, wanted)
            model = (target.provider, target.model)
        return [job for job in found if (job.provider, job.model) == model]

    async def _query_vector(self, request: Request, client: Client, job: Job, query: str) -> Any:
        """The query's vector, accounted as one of its key's calls."""
        state = self._jobs.state
        deadline = request.scope["exchange"].started + state.serve.deadline_s
        asked = Asked(inputs=[query], model=f"{job.provider}:{job.model}", input_type="query", purpose="query")
        slot = await state.admission.enter(client, len(query) * 4, wait_s=deadline - state.clock())
        try:
            served = await state.gateway.embed(client, asked, slot, x_provider=None, deadline=deadline)
        finally:
            slot.release()
        return served.vectors[0]

    async def delete(self, request: Request) -> Response:
        """DELETE /media/{id}/embeddings: the vectors of a media item; the item itself stays."""
        client = self._jobs.begin(request)
        media_id = checked_id(request.path_params["media_id"])
        jobs = self._of(client, media_id)
        if not jobs:
            raise Refused("media_not_found", f"there are no embeddings of media item {media_id!r}")
        if any(job.is_open for job in jobs):
            raise Refused("not_finished", "the item is being embedded: cancel that job first")
        for job in jobs:
            await asyncio.to_thread(self._store.remove, job.id)
        return json_answer({"status": "success", "message": f"Embeddings of media item {media_id} deleted"})

    async def listed(self, request: Request) -> Response:
        """GET /media/embeddings/jobs."""
        return await listing(self._jobs, request, _KIND)

    async def one(self, request: Request) -> Response:
        """GET /media/embeddings/jobs/{id}."""
        job = self._jobs.queue.found(client_of(request), request.path_params["id"], ("media",))
        return json_answer(await self._jobs.shown(job))


def checked_id(value: Any) -> str:
    """A media id: a whole number or a short name, with nothing in it that could be a path or a pattern.

    Raises:
        Refused: It is none, and so there is no such item.
    """
    name = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not _ID.match(name):
        raise Refused("media_not_found", "there is no such media item")
    return name


def _wanted(said: Mapping[str, Any]) -> JobOptions:
    named = {
        "model": said.get("embedding_model"),
        "provider": said.get("embedding_provider"),
        "chunk_size": said.get("chunk_size", CHUNK_SIZE),
        "chunk_overlap": said.get("chunk_overlap", CHUNK_OVERLAP),
        "priority": said.get("priority"),
    }
    return asking.wanted(named)
