"""The paths of the service's own jobs: texts, JSON Lines, Parquet or files of the server's in, vectors out.

Contract: facts/gateway.md 11 (2026-11-25), design.md 11.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from embedctl import storage
from embedctl.budgets.limits import key_account
from embedctl.budgets.reservations import SpendLimit
from embedctl.dataclass import dataclass
from embedctl.errors import BudgetReached
from embedctl.records import format_money
from embedctl.runs.registry import RunRegistry
from embedctl.server import answers, fields, refusals
from embedctl.server.authentication import Client
from embedctl.server.jobs import asking, children, uploads
from embedctl.server.jobs.asking import JobOptions
from embedctl.server.jobs.children import ChildEnd, Form
from embedctl.server.jobs.queue import JobQueue
from embedctl.server.jobs.store import Job, Kind, new_id
from embedctl.server.model_names import Target
from embedctl.server.refusals import Refused
from embedctl.server.state import ServerState

JOBS = "/api/v1/embeddings/jobs"
_JSON_LINES = frozenset(
    {"application/jsonl", "application/x-ndjson", "application/x-jsonlines", "application/jsonlines"}
)
_PARQUETS = frozenset({"application/vnd.apache.parquet", "application/x-parquet", "application/parquet"})
_STATUS = {"queued": "queued", "running": "processing", "waiting": "processing"}
STATUSES = ("queued", "processing", "completed", "failed", "cancelled")
"""As clients see them."""

_MOST_LISTED = 200
_MOST_SAID = 1 << 20
_A_PLACE = 1 << 20  # bytes of memory that one of these requests takes, about


def client_of(request: Request) -> Client:
    """Who asks; the door has found that out.

    Raises:
        Refused: It may look at metrics, and at nothing else.
    """
    who: Client = request.scope["exchange"].who
    if who.role == "metrics":
        raise Refused("admin_required", "this key is for metrics alone")
    return who


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON."""
    return Response(orjson.dumps(content, default=str), status, dict(headers or {}), media_type="application/json")


@dataclass(frozen=True, slots=True)
class JobInput:
    """What a new job reads: files in its own folder, or the server's.

    Attributes:
        name: In the job's folder, whither `content` or the file `moved` goes; "" for files of the server's.
        fingerprint: Of what is read.
    """

    fingerprint: str
    name: str = ""
    content: bytes = b""
    moved: Path | None = None
    files: tuple[Path, ...] = ()


class Jobs:
    """What all kinds of jobs share: who may, what it may cost, what is made and shown of it."""

    def __init__(self, state: ServerState, queue: JobQueue) -> None:
        self.state = state
        self.queue = queue
        self._making: dict[str, asyncio.Lock] = {}
        self._adding: dict[str, asyncio.Lock] = {}

    # before anything is read

    def begin(self, request: Request) -> Client:
        """Who asks, once that counts against its rate.

        Raises:
            Refused: It asks too often, or the server stops.
        """
        if self.state.draining:
            raise Refused("draining", "the server is stopping", retry_after_s=1.0)
        client = client_of(request)
        self.state.rates.take(client)
        return client

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[Client]:
        """The same, with a place in flight: for what takes its time.

        Raises:
            Refused: As `begin`; or too much is in flight.
        """
        client = self.begin(request)
        slot = await self.state.admission.enter(client, _A_PLACE, wait_s=self.state.serve.deadline_s)
        try:
            yield client
        finally:
            slot.release()

    async def body(self, request: Request) -> dict[str, Any]:
        """A JSON object; an empty body is an empty one.

        Raises:
            Refused: It is none, or too large.
        """
        most = self.state.serve.body_bytes
        uploads.check_length(request, most)
        found = bytearray()
        async for piece in request.stream():
            found += piece
            if len(found) > most:
                raise Refused("body_too_large", f"the body is larger than {most} bytes")
        if not found:
            return {}
        kind = answers.exchange(request).headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (kind in ("application/json", "text/json") or kind.endswith("+json")):
            raise Refused("unsupported_media_type", "the body must be application/json")
        return await asyncio.to_thread(fields.read_object, bytes(found))

    async def target(self, client: Client, wanted: JobOptions, header: str | None = None) -> Target:
        """What is embedded with.

        Raises:
            Refused: It is not known, not allowed, or not usable here.
        """
        settings = self.state.settings
        found = asking.target(settings, client, wanted, header)
        await self.state.gateway.routes.of(
            client,
            found,
            dimensions=wanted.dimensions,
            input_type=wanted.input_type,  # type: ignore[arg-type]
            token_arrays=False,
        )
        return found

    # a new job

    async def made(
        self,
        client: Client,
        kind: Kind,
        wanted: JobOptions,
        target: Target,
        given: JobInput,
        *,
        key: str | None = None,
        anew: bool = False,
        flags: Sequence[str] = (),
        **more: Any,
    ) -> tuple[Job, bool]:
        """The job that does this, and whether it is a new one.

        Args:
            key: Of the client, for one that repeats its request.
            anew: Also when there is one that has done the same.

        Raises:
            Refused: Its budget does not have it, or there is no room.
        """
        told = [*wanted.flags(), *flags]
        if target.pinned and not self.state.serve.pinned_fallback:
            told.append("--fallback=off")
        mark = asking.fingerprint(kind, given.fingerprint, target.provider, target.model, told)
        async with _alone(self._adding, f"{client.workspace}/{key or mark}"):
            before = self.queue.store.same(client.workspace, mark, key)
            if before is not None and not anew:
                return before, False
            await self.queue.check_room(client.workspace)
            now = self.queue.store.clock()
            job = Job(
                id=new_id(kind), kind=kind, workspace=client.workspace, key=client.id, model=target.model,
                provider=target.provider, created_at=now, updated_at=now, flags=told, fingerprint=mark,
                idempotency_key=key, priority=wanted.priority, **more,
            )  # fmt: skip
            folder = self.queue.store.folder(job.id)
            try:
                job = await asyncio.to_thread(_placed, job, folder, given)
                job = await self._within_budget(client, job, wanted)
                return await self.queue.add(job), True
            except BaseException:
                self.queue.store.remove(job.id)
                raise

    async def estimate(self, client: Client, wanted: JobOptions, target: Target, given: JobInput) -> Mapping[str, Any]:
        """What a job would take; nothing of it stays.

        Raises:
            Refused: It could not be done.
        """
        now = self.queue.store.clock()
        job = Job(
            id=new_id("job"), kind="job", workspace=client.workspace, key=client.id, model=target.model,
            provider=target.provider, created_at=now, updated_at=now, flags=wanted.flags(),
        )  # fmt: skip
        folder = self.queue.store.folder(job.id)
        try:
            job = await asyncio.to_thread(_placed, job, folder, given)
            return await self._estimated(job, folder)
        finally:
            self.queue.store.remove(job.id)

    async def _within_budget(self, client: Client, job: Job, wanted: JobOptions) -> Job:
        """The job with what it will about cost, where that must be known before it begins.

        Raises:
            Refused: 402: it is more than is left, or nobody knows.
        """
        limit = await self._tightest(client)
        if limit is None:
            return job
        said = await self._estimated(job, self.queue.store.folder(job.id))
        cost = said.get("cost_batch") if said.get("mode") == "batch" else said.get("cost")
        if cost is None:
            raise Refused("price_unknown", f"{job.provider}:{job.model} has no price, so the budget cannot hold")
        left = limit.amount - limit.spent - limit.reserved
        if Decimal(str(cost)) > left:
            error = BudgetReached(
                f"the job would cost about {format_money(Decimal(str(cost)))} USD, and {limit.name} has "
                f"{format_money(max(left, Decimal(0)))} USD left"
            )
            error.limit = limit
            raise refusals.of_error(error)
        return replace(job, estimate_usd=str(cost))

    async def _tightest(self, client: Client) -> SpendLimit | None:
        money = self.state.gateway.money
        return await asyncio.to_thread(money.tightest, client.workspace, key_account(client.id))

    async def _estimated(self, job: Job, folder: Path) -> Mapping[str, Any]:
        argv = self.queue.run_command(job, "--dry-run")
        ended = await self.queue.help(argv, folder, self.queue.environment(job), "estimate")
        if ended.code or not ended.said.get("dry_run"):
            raise _refused(ended, [*job.inputs, str(folder)])
        return ended.said

    # what is shown

    async def shown(self, job: Job) -> dict[str, Any]:
        """A job as its client sees it."""
        rows, done, total = job.counts.get("rows", 0), job.counts.get("vectors", 0), job.counts.get("rows", 0)
        tokens, cost = job.tokens, job.cost_usd
        run_id = job.run_id
        if job.state == "running":
            live = await asyncio.to_thread(self._live, job)
            done, total = live.get("vectors", done), live.get("rows_total", total)
            rows, tokens = live.get("rows", rows), live.get("tokens", tokens)
            cost, run_id = live.get("cost", cost), live.get("run_id", run_id)
        percent = 100.0 if job.state == "completed" else round(100 * min(1.0, rows / total), 1) if total else 0.0
        return {
            "id": job.id,
            "object": "embedding.job",
            "media_id": _as_number(job.media_id),
            "user_id": job.workspace,
            "status": _STATUS.get(job.state, job.state),
            "embedding_model": job.model,
            "embedding_provider": job.provider,
            "embedding_count": done,
            "chunks_processed": done,
            "total_chunks": done if job.state == "completed" else None,
            "progress_percent": percent,
            "error": job.error,
            "created_at": int(job.created_at),
            "updated_at": int(job.updated_at),
            "rows": rows or None,
            "tokens": tokens,
            "cost_usd": cost,
            "at_risk_usd": job.at_risk_usd,
            "estimate_usd": job.estimate_usd,
            "failed_rows": job.counts.get("failed", 0),
            "skipped_rows": job.counts.get("skipped", 0),
            "run_id": run_id,
            "resumable": job.state in ("failed", "cancelled") or bool(job.counts.get("failed")),
        }

    def _live(self, job: Job) -> dict[str, Any]:
        """How far its run is, as that says of itself."""
        path = self.queue.store.folder(job.id) / children.OUTPUT / "_embedctl" / "run.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            run_id = orjson.loads(storage.read_small(path, max_bytes=_MOST_SAID, follow=False))["run_id"]
            entry = RunRegistry(self.state.settings.paths.runs).entry(UUID(run_id))
            if entry is not None and entry.job_id == job.id:
                counts = {
                    name: entry.counts[name] for name in ("rows", "rows_total", "vectors") if name in entry.counts
                }
                return {**counts, "run_id": run_id}
        return {}

    async def result(self, job: Job, form: Form) -> Path:
        """The file of a job's result; made when somebody asks for it first.

        Raises:
            Refused: It has not ended, or there is nothing in it.
        """
        if job.is_open:
            raise Refused("not_finished", "the job has not ended")
        if job.state != "completed":
            raise Refused("not_finished", f"the job is {job.state}: there is no result, and `retry` goes on with it")
        path = self.queue.store.folder(job.id) / children.result_name(form)
        async with _alone(self._making, f"{job.id}/{form}"):
            if not path.exists():
                if not job.counts.get("vectors"):
                    raise Refused("not_found", "no row of the job has a vector; its failures say why")
                argv = children.program("results", str(path.parent), form)
                ended = await self.queue.help(argv, path.parent, self.queue.environment(job), "made")
                if ended.code:
                    raise Refused("storage_failed", "the result cannot be made", reason=ended.complained)
        return path


@asynccontextmanager
async def _alone(locks: dict[str, asyncio.Lock], name: str) -> AsyncIterator[None]:
    """One at a time under a name; others wait."""
    lock = locks.setdefault(name, asyncio.Lock())
    try:
        async with lock:
            yield
    finally:
        if not lock.locked():
            locks.pop(name, None)


def _placed(job: Job, folder: Path, given: JobInput) -> Job:
    """The job with its input in its folder."""
    storage.DISK.make_folder(folder)
    if not given.name:
        return replace(job, inputs=[str(path) for path in given.files])
    path = folder / given.name
    if given.moved is not None:
        given.moved.replace(path)
    else:
        storage.replace(storage.DISK, path, given.content)
    return replace(job, inputs=[str(path)])


def _refused(ended: ChildEnd, paths: Sequence[str]) -> Refused:
    """Why there is no estimate, without the server's paths."""
    message = said = str(ended.said.get("message") or ended.complained or "it cannot be embedded")
    for path in paths:
        message = message.replace(f"{path}/", "").replace(path, "the input")
    match ended.code:
        case 2:
            return Refused("invalid_dimensions" if "dimensions" in said else "invalid_job", message)
        case 65 | 66:
            return Refused("invalid_file", message)
        case 4:
            return Refused("budget_exceeded", message)
        case 77 | 78:
            return Refused("missing_provider_credentials", "the provider is not configured", reason=message)
        case 3:
            return Refused("model_denied", message)
        case 73 | 74 | 75:
            return Refused("storage_failed", "the job cannot be looked at now", reason=message)
    return Refused("internal_error", "something went wrong here; the request's id leads to the log", reason=message)


def _as_number(media_id: str | None) -> str | int | None:
    """As the guide has them, where it is one."""
    return int(media_id) if media_id is not None and media_id.isdigit() and media_id[:1] != "0" else media_id


class JobPaths:
    """What is behind the paths of our own jobs."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._queue = jobs.queue

    def routes(self) -> list[Route]:
        """Of the application."""
        return [
            Route(JOBS, self.create, methods=["POST"]),
            Route(JOBS, self.listed, methods=["GET"]),
            Route(f"{JOBS}/{{id}}", self.one, methods=["GET"]),
            Route(f"{JOBS}/{{id}}/result", self.result, methods=["GET"]),
            Route(f"{JOBS}/{{id}}/failures", self.failures, methods=["GET"]),
            Route(f"{JOBS}/{{id}}/cancel", self.cancel, methods=["POST"]),
            Route(f"{JOBS}/{{id}}/retry", self.retry, methods=["POST"]),
            Route(f"{JOBS}/{{id}}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST /embeddings/jobs: texts or a source in JSON, or JSON Lines or Parquet with the fields in the query."""
        async with self._jobs.admitted(request) as client:
            return await self._created(request, client)

    async def _created(self, request: Request, client: Client) -> Response:
        key = asking.idempotency_key(answers.exchange(request).headers.get("idempotency-key"))
        kind = answers.exchange(request).headers.get("content-type", "").partition(";")[0].strip().lower()
        header = answers.exchange(request).headers.get("x-provider") or None
        upload: Path | None = None
        try:
            if kind in _JSON_LINES or kind in _PARQUETS:
                said: Mapping[str, Any] = dict(request.query_params)
                asking.check_known(said, asking.KNOWN)
                wanted = asking.wanted(said)
                target = await self._jobs.target(client, wanted, header)
                await self._queue.check_room(client.workspace)
                upload = self._queue.store.upload()
                given = await self._uploaded(request, upload, is_parquet=kind in _PARQUETS)
            else:
                if kind and "json" not in kind:
                    raise Refused("unsupported_media_type", "the body must be JSON, JSON Lines or Parquet")
                said = await self._jobs.body(request)
                asking.check_known(said, asking.KNOWN | {"texts", "source"})
                wanted = asking.wanted(said)
                if "texts" in said:
                    wanted = replace(wanted, text_column="text", id_column="id")
                target = await self._jobs.target(client, wanted, header)
                given = await self._said(said, client)
            if wanted.dry_run:
                return json_answer(await self._jobs.estimate(client, wanted, target, given))
            job, is_new = await self._jobs.made(client, "job", wanted, target, given, key=key)
        finally:
            if upload is not None:
                with suppress(OSError):
                    await asyncio.to_thread(upload.unlink)
        headers = {"Location": f"{JOBS}/{job.id}"}
        return json_answer(await self._jobs.shown(job), 202 if is_new or job.is_open else 200, headers)

    async def _uploaded(self, request: Request, path: Path, *, is_parquet: bool) -> JobInput:
        most = self._queue.settings.upload_bytes
        uploads.check_length(request, most)
        size = await uploads.save(request, path, most)
        if not size:
            raise Refused("empty_input", "the body is empty")
        await asyncio.to_thread(uploads.check_parquet if is_parquet else uploads.check_json_lines, path)
        digest = await asyncio.to_thread(file_digest, path)
        return JobInput(digest, name="input.parquet" if is_parquet else "input.jsonl", moved=path)

    async def _said(self, said: Mapping[str, Any], client: Client) -> JobInput:
        texts, source = said.get("texts"), said.get("source")
        if (texts is None) == (source is None):
            raise Refused("invalid_input_type", "either texts or source says what is embedded", param="texts")
        if source is None:
            content = await asyncio.to_thread(asking.texts, texts)
            return JobInput(asking.fingerprint(content.decode()), name="input.jsonl", content=content)
        path = await asyncio.to_thread(self._source, source, client)
        return JobInput(await asyncio.to_thread(file_digest, path), files=(path,))

    def _source(self, source: Any, client: Client) -> Path:
        """A file below one of the folders that the settings name for it.

        Raises:
            Refused: There is none there, or it leads elsewhere.
        """
        missing = Refused("invalid_file", "there is no such source", param="source")
        if not isinstance(source, str) or len(source) > 1024 or not source.isprintable():
            raise missing
        name, _, rest = source.partition("/")
        root = self._queue.settings.sources.get(name, "").replace("{workspace}", client.workspace)
        parts = rest.split("/")
        if not root or not rest or any(part in ("", ".", "..") or part.startswith("-") for part in parts):
            raise missing
        folder = Path(root).resolve()
        path = folder.joinpath(*parts)
        if path.resolve() != path or not path.is_file():  # a link on the way leads elsewhere
            raise missing
        return path

    async def listed(self, request: Request) -> Response:
        """GET /embeddings/jobs."""
        return await listing(self._jobs, request, frozenset({"job", "media", "batch"}))

    async def one(self, request: Request) -> Response:
        """GET /embeddings/jobs/{id}."""
        return json_answer(await self._jobs.shown(self._found(request)))

    def _found(self, request: Request) -> Job:
        return self._queue.found(client_of(request), request.path_params["id"])

    async def result(self, request: Request) -> Response:
        """GET …/result: Parquet or JSON Lines, as `format` or Accept say; ranges too."""
        job = self._found(request)
        query = answers.parameters(request, "format", "encoding_format")
        said = answers.one_of(query.get("format"), "format", ("parquet", "jsonl"))
        encoding = answers.one_of(query.get("encoding_format"), "encoding_format", ("float", "base64"))
        accept = answers.exchange(request).headers.get("accept", "")
        form: Form = "parquet"
        if said == "jsonl" or (not said and any(kind in accept for kind in (*_JSON_LINES, "jsonl"))):
            form = "base64" if encoding == "base64" else "jsonl"
        path = await self._jobs.result(job, form)
        kind = "application/vnd.apache.parquet" if form == "parquet" else "application/jsonl"
        suffix = "parquet" if form == "parquet" else "jsonl"
        return FileResponse(path, media_type=kind, filename=f"{job.id}.{suffix}")

    async def failures(self, request: Request) -> Response:
        """GET …/failures: JSON Lines, one for each row without a vector."""
        job = self._found(request)
        if job.is_open:
            raise Refused("not_finished", "the job has not ended")
        path = self._queue.store.folder(job.id) / children.OUTPUT / "failures.jsonl"
        if not await asyncio.to_thread(path.is_file):
            return Response(b"", media_type="application/jsonl")
        return FileResponse(path, media_type="application/jsonl", filename=f"{job.id}.failures.jsonl")

    async def cancel(self, request: Request) -> Response:
        """POST …/cancel."""
        self._jobs.begin(request)
        return json_answer(await self._jobs.shown(await self._queue.cancel(self._found(request))))

    async def retry(self, request: Request) -> Response:
        """POST …/retry: go on with one that failed or was cancelled, or try its failed rows again."""
        client = self._jobs.begin(request)
        job = self._found(request)
        await self._jobs.target(client, JobOptions(model=f"{job.provider}:{job.model}"))
        if job.workspace != client.workspace:
            raise Refused("job_not_found", "only its own workspace goes on with a job")
        return json_answer(await self._jobs.shown(await self._queue.retry(job, client)), 202)

    async def delete(self, request: Request) -> Response:
        """DELETE …: a job that has ended, with all that it has on the disk."""
        self._jobs.begin(request)
        job = self._found(request)
        if job.is_open:
            raise Refused("not_finished", "the job has not ended: cancel it first")
        await asyncio.to_thread(self._queue.store.remove, job.id)
        return json_answer({"id": job.id, "object": "embedding.job", "deleted": True})


async def listing(jobs: Jobs, request: Request, kinds: frozenset[str]) -> Response:
    """A page of jobs, newest first."""
    client = client_of(request)
    query = answers.parameters(request, "status", "limit", "offset")
    limit, offset = (
        _within(query.get("limit"), "limit", 50, 1, _MOST_LISTED),
        _within(query.get("offset"), "offset", 0, 0),
    )
    status = answers.one_of(query.get("status"), "status", STATUSES)
    found = [
        job
        for job in jobs.queue.store.jobs(None if client.is_admin else client.workspace, kinds)
        if status in (None, _STATUS.get(job.state, job.state))
    ]
    page = [await jobs.shown(job) for job in found[offset : offset + limit]]
    pagination = {"limit": limit, "offset": offset, "count": len(page), "total": len(found)}
    return json_answer({"data": page, "pagination": pagination})


def _within(said: str | None, name: str, default: int, least: int, most: int = 10**9) -> int:
    if said is None or said == "":
        return default
    if not (said.isascii() and said.isdigit() and len(said) < 10 and least <= int(said) <= most):
        raise Refused("invalid_job", f"{name} must be a whole number from {least} to {most}", param=name)
    return int(said)


def file_digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
