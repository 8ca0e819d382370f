"""OpenAI's Batch API over our jobs: files in, batches of them, files out; for any provider that embedctl knows.

    upload → create → validating → in_progress → finalizing → completed | failed | cancelled | expired

Shapes and statuses as OpenAI's own SDK reads them. Source: facts/batch_apis.md 2 (2026-11-25).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from embedctl import storage
from embedctl.server import answers
from embedctl.server.authentication import Client
from embedctl.server.jobs import asking, batch_lines, children, uploads
from embedctl.server.jobs.asking import JobOptions
from embedctl.server.jobs.paths import Jobs, client_of, json_answer
from embedctl.server.jobs.queue import WINDOW_S, Steps
from embedctl.server.jobs.store import Job, StoredFile, new_id
from embedctl.server.refusals import Refused

MOST_METADATA, LONGEST_NAME, LONGEST_VALUE = 16, 64, 512
PURPOSES = (
    "batch", "batch_output", "assistants", "assistants_output", "evals", "fine-tune", "fine-tune-results", "user_data",
    "vision",
)  # fmt: skip
"""Of files at OpenAI; here are those of the first two."""

_MOST_FILES = 10_000
_MOST_BATCHES = 100
_SHORTEST_S, _LONGEST_S = 3600, 30 * 86_400
_ENDED = ("completed", "failed", "cancelled")


class BatchPaths:
    """What is behind `/v1/files` and `/v1/batches`."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._queue = jobs.queue
        self._store = jobs.queue.store
        self._queue.steps["batch"] = Steps(self._read, self._written)

    def routes(self) -> list[Route]:
        """Of the application, behind both doors."""
        found = []
        for door in ("/v1", "/api/v1"):
            found += [
                Route(f"{door}/files", self.upload, methods=["POST"]),
                Route(f"{door}/files", self.files, methods=["GET"]),
                Route(f"{door}/files/{{id}}", self.file, methods=["GET"]),
                Route(f"{door}/files/{{id}}", self.delete_file, methods=["DELETE"]),
                Route(f"{door}/files/{{id}}/content", self.content, methods=["GET"]),
                Route(f"{door}/batches", self.create, methods=["POST"]),
                Route(f"{door}/batches", self.listed, methods=["GET"]),
                Route(f"{door}/batches/{{id}}", self.batch, methods=["GET"]),
                Route(f"{door}/batches/{{id}}/cancel", self.cancel, methods=["POST"]),
            ]
        return found

    # files

    async def upload(self, request: Request) -> Response:
        """POST /files."""
        async with self._jobs.admitted(request) as client:
            return await self._uploaded(request, client)

    async def _uploaded(self, request: Request, client: Client) -> Response:
        most = self._queue.settings.upload_bytes
        uploads.check_length(request, most + (64 << 10))
        await self._queue.check_room(client.workspace)
        path = self._store.upload()
        try:
            form = await uploads.save_form(request, path, most)
            if form.fields.get("purpose") != "batch":
                raise Refused("invalid_file", "purpose must be batch", param="purpose")
            if not form.filename.endswith(".jsonl"):
                raise Refused("invalid_file", "Invalid file format for Batch API. Must be .jsonl", param="file")
            file = await asyncio.to_thread(self._kept, client, path, form)
        finally:
            with suppress(OSError):
                await asyncio.to_thread(path.unlink)
        return json_answer(_file(file))

    def _kept(self, client: Client, path: Path, form: uploads.Form) -> StoredFile:
        now = self._store.clock()
        file = StoredFile(
            id=new_id("file"), workspace=client.workspace, filename=form.filename, bytes=form.bytes, purpose="batch",
            created_at=now, expires_at=now + self._keep_s(form.fields),
        )  # fmt: skip
        storage.DISK.make_folder(self._store.folder(file.id))
        path.replace(self._store.content(file))
        return self._store.add_file(file)

    def _keep_s(self, fields: dict[str, str]) -> float:
        most = self._queue.settings.keep_days * 86_400
        said = fields.get("expires_after[seconds]")
        if said is None:
            return most
        if not (said.isascii() and said.isdigit() and _SHORTEST_S <= int(said[:12]) <= _LONGEST_S):
            raise Refused(
                "invalid_file", f"expires_after must be {_SHORTEST_S} to {_LONGEST_S} s", param="expires_after"
            )
        return min(int(said), most)

    async def files(self, request: Request) -> Response:
        """GET /files."""
        query = request.query_params
        purpose = answers.one_of(query.get("purpose"), "purpose", PURPOSES)
        order = answers.one_of(query.get("order"), "order", ("asc", "desc"))
        found = [one for one in self._store.files(self._whose(request)) if purpose in (None, one.purpose)]
        if order == "asc":
            found.reverse()
        return json_answer(_page([_file(one) for one in found], query, _MOST_FILES, _MOST_FILES))

    def _whose(self, request: Request) -> str | None:
        client = client_of(request)
        return None if client.is_admin else client.workspace

    def _found(self, request: Request) -> StoredFile:
        return self._store.file(self._whose(request), request.path_params["id"])

    async def file(self, request: Request) -> Response:
        """GET /files/{id}."""
        return json_answer(_file(self._found(request)))

    async def content(self, request: Request) -> Response:
        """GET /files/{id}/content."""
        file = self._found(request)
        path = self._store.content(file)
        if not await asyncio.to_thread(path.is_file):
            raise Refused("file_not_found", "the file has expired")
        return FileResponse(path, media_type="application/jsonl", filename=f"{file.id}.jsonl")

    async def delete_file(self, request: Request) -> Response:
        """DELETE /files/{id}."""
        self._jobs.begin(request)
        file = self._found(request)
        if any(job.is_open and job.batch.get("input_file_id") == file.id for job in self._store.jobs(file.workspace)):
            raise Refused("not_finished", "a batch of this file has not ended")
        await asyncio.to_thread(self._store.remove, file.id)
        return json_answer({"id": file.id, "object": "file", "deleted": True})

    # batches

    async def create(self, request: Request) -> Response:
        """POST /batches. The same file and metadata once more: the batch that there is, gone on with where it ended."""
        client = self._jobs.begin(request)
        said = await self._jobs.body(request)
        asking.check_known(
            said, frozenset({"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"})
        )
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(said.get(name), str):
                raise Refused("invalid_job", f"{name} is missing", param=name)
        if said["endpoint"] != batch_lines.ENDPOINT:
            raise Refused("invalid_job", f"endpoint must be {batch_lines.ENDPOINT}", param="endpoint")
        if said["completion_window"] != "24h":
            raise Refused("invalid_job", "completion_window must be 24h", param="completion_window")
        metadata = _metadata(said.get("metadata"))
        file = self._store.file(client.workspace, said["input_file_id"])
        if file.purpose != "batch":
            raise Refused("invalid_file", "the file is not for batches", param="input_file_id")
        mark = asking.fingerprint("batch", file.id, metadata)
        key = asking.idempotency_key(answers.exchange(request).headers.get("idempotency-key"))
        before = self._store.same(client.workspace, mark, key)
        if before is not None and (before.state != "failed" or before.inputs):
            if before.state in ("failed", "cancelled"):
                before = await self._queue.retry(before, client)
            return json_answer(self._shown(before))
        now = self._store.clock()
        job = Job(
            id=new_id("batch"), kind="batch", workspace=client.workspace, key=client.id, model="", provider="",
            created_at=now, updated_at=now, fingerprint=mark, idempotency_key=key,
            batch={"input_file_id": file.id, "window": "24h", "metadata": metadata},
        )  # fmt: skip
        return json_answer(self._shown(await self._queue.add(job)))

    async def listed(self, request: Request) -> Response:
        """GET /batches."""
        found = self._store.jobs(self._whose(request), frozenset({"batch"}))
        return json_answer(_page([self._shown(one) for one in found], request.query_params, 20, _MOST_BATCHES))

    async def batch(self, request: Request) -> Response:
        """GET /batches/{id}."""
        return json_answer(self._shown(self._batch(request)))

    def _batch(self, request: Request) -> Job:
        return self._queue.found(client_of(request), request.path_params["id"], ("batch",))

    async def cancel(self, request: Request) -> Response:
        """POST /batches/{id}/cancel."""
        self._jobs.begin(request)
        return json_answer(self._shown(await self._queue.cancel(self._batch(request))))

    def _shown(self, job: Job) -> dict[str, Any]:
        """A batch as OpenAI shows one."""
        about = job.batch
        status: str = job.state if job.state in _ENDED else "in_progress" if job.inputs else "validating"
        expired = job.expired and job.state == "cancelled"
        if expired:
            status = "expired"
        elif job.is_open and job.cancel:
            status = "finalizing" if job.expired else "cancelling"
        done = about.get("counts", {})
        finished = int(job.finished_at) if job.finished_at else None
        return {
            "id": job.id,
            "object": "batch",
            "endpoint": batch_lines.ENDPOINT,
            "model": about.get("model"),
            "errors": {"object": "list", "data": about["errors"]} if about.get("errors") else _of_job(job),
            "input_file_id": about["input_file_id"],
            "completion_window": about["window"],
            "status": status,
            "output_file_id": about.get("output_file_id"),
            "error_file_id": about.get("error_file_id"),
            "created_at": int(job.created_at),
            "in_progress_at": int(job.started_at) if job.started_at and job.inputs else None,
            "expires_at": int(about.get("since", job.created_at)) + int(WINDOW_S),
            "finalizing_at": finished if job.state == "completed" else None,
            "completed_at": finished if job.state == "completed" else None,
            "failed_at": finished if job.state == "failed" else None,
            "expired_at": finished if expired else None,
            "cancelling_at": int(job.updated_at) if job.cancel and not job.expired else None,
            "cancelled_at": finished if job.state == "cancelled" and not expired else None,
            "request_counts": {
                "total": about.get("lines", 0),
                "completed": done.get("completed", 0),
                "failed": done.get("failed", 0),
            },
            "usage": None if job.tokens is None else _usage(job.tokens),
            "metadata": about.get("metadata") or None,
        }

    # what a batch does beside its run

    async def _read(self, job: Job) -> dict[str, Any]:
        """Check the file, and make the run's rows of it."""
        folder = self._store.folder(job.id)
        try:
            file = self._store.file(job.workspace, str(job.batch["input_file_id"]))
        except Refused as refused:
            return _failed(job, refused)
        argv = children.program("read", str(folder), str(self._store.content(file)))
        ended = await self._queue.help(argv, folder, children.environment(self._jobs.state.settings, "", ""), "read")
        said = ended.said
        if ended.code:
            raise Refused("storage_failed", "the file cannot be read", reason=ended.complained)
        if said.get("errors"):
            return {"state": "failed", "batch": {**job.batch, "errors": said["errors"]}}
        about = {**job.batch, "lines": said["lines"], "model": said["model"]}
        if not said["rows"]:
            return {"batch": about}
        try:
            client = self._client(job)
            wanted = JobOptions(
                model=said["model"], provider=said["provider"], dimensions=said["dimensions"],
                input_type=said["input_type"], mode=self._queue.settings.mode,
                text_column="tokens" if said["token_arrays"] else "text", id_column="id",
            )  # fmt: skip
            target = await self._jobs.target(client, wanted)
        except Refused as refused:
            return _failed(job, refused)
        return {
            "batch": about, "model": target.model, "provider": target.provider,
            "inputs": [str(folder / batch_lines.ROWS)], "flags": [*wanted.flags(), "--on-blank=fail", "--keep=all"],
        }  # fmt: skip

    def _client(self, job: Job) -> Client:
        """Who asked for it, with what its key may now."""
        key = self._jobs.state.keyring.keys.get(job.key)
        return Client(
            id=job.key,
            workspace=job.workspace,
            models=key.models if key else None,
            providers=key.providers if key else None,
            budget=key.budget if key else None,
        )

    async def _written(self, job: Job) -> dict[str, Any]:
        """Answer every line, in two files."""
        folder = self._store.folder(job.id)
        if not (folder / batch_lines.LINES).exists():
            return {}
        reason = "batch_failed"
        if job.state == "cancelled":
            reason = "batch_expired" if job.expired else "batch_cancelled"
        argv = children.program("write", str(folder), reason)
        ended = await self._queue.help(argv, folder, children.environment(self._jobs.state.settings, "", ""), "written")
        if ended.code:
            raise Refused("storage_failed", "the files of the batch cannot be made", reason=ended.complained)
        found = {}
        for what, name in (("output_file_id", batch_lines.COMPLETED), ("error_file_id", batch_lines.FAILED)):
            found[what] = await asyncio.to_thread(self._result, job, name, job.batch.get(what))
        return {"batch": {**job.batch, **found, "counts": dict(ended.said)}}

    def _result(self, job: Job, name: str, file_id: str | None) -> str | None:
        """The id of a file that a batch has made; None where there is nothing in it."""
        path = self._store.folder(job.id) / name
        size = path.stat().st_size
        if not size:
            return None
        now = self._store.clock()
        file = StoredFile(
            id=file_id or new_id("file"), workspace=job.workspace, filename=f"{job.id}_{name}", bytes=size,
            purpose="batch_output", created_at=now, expires_at=now + self._queue.settings.keep_days * 86_400,
            job=job.id, name=name,
        )  # fmt: skip
        return self._store.add_file(file).id


def _failed(job: Job, refused: Refused) -> dict[str, Any]:
    error = {"code": refused.code, "message": refused.message, "line": None, "param": refused.param}
    return {"state": "failed", "batch": {**job.batch, "errors": [error]}}


def _of_job(job: Job) -> dict[str, Any] | None:
    if job.error is None:
        return None
    return {"object": "list", "data": [{**job.error, "line": None, "param": None}]}


def _usage(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": tokens, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens,
    }  # fmt: skip


def _file(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _page(found: list[dict[str, Any]], query: Any, default: int, most: int) -> dict[str, Any]:
    """As OpenAI pages: what comes after an id."""
    said = query.get("limit") or str(default)
    if not (said.isascii() and said.isdigit() and len(said) < 10 and 1 <= int(said) <= most):
        raise Refused("invalid_job", f"limit must be a whole number from 1 to {most}", param="limit")
    after = query.get("after")
    if after:
        at = next((place for place, one in enumerate(found) if one["id"] == after), len(found))
        found = found[at + 1 :]
    page = found[: int(said)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, **ends, "has_more": len(found) > len(page)}


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > MOST_METADATA
        or not all(isinstance(one, str) and len(one) <= LONGEST_VALUE for one in value.values())
        or not all(len(name) <= LONGEST_NAME for name in value)
    ):
        raise Refused(
            "invalid_job",
            f"metadata must be at most {MOST_METADATA} strings of at most {LONGEST_VALUE} characters",
            param="metadata",
        )
    return value
