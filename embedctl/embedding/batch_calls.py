"""The calls of a provider's Batch API: what may be repeated is, a create never.

What stands in an answer is for the protocol (`providers/_batch_entry.py`); here is how often it is asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from embedctl.errors import (
    AnswerLost,
    AnswerUnusable,
    NotSent,
    ProviderError,
    RedirectRefused,
    Remedy,
)
from embedctl.providers import _batch_entry
from embedctl.providers._batch import (
    BatchCapabilities,
    BatchFile,
    BatchPage,
    BatchProtocol,
    BatchState,
    CreateOutcome,
    ResultFile,
    walked_back,
)
from embedctl.providers._contract import HttpRequest
from embedctl.routing import retry
from embedctl.routing.endpoint import Endpoint

if TYPE_CHECKING:
    from embedctl.backends.http.transport import HttpResponse, Transport

_T = TypeVar("_T")

LONG_S = 3600.0
"""Most that an upload or a download may take."""

MOST_RESULT_BYTES = 16 << 30
MOST_PAGES = 10_000
MARGIN_S = 900.0
"""A page of batches that are all older than the intent by so much is the last one that is looked at."""


class NoFileYetError(Exception):
    """A result's content is not there (yet). Internal to collecting."""


class BatchCalls:
    """One endpoint's Batch API.

    Args:
        retries: Of a call that may be repeated.
        sleep: Waits; raises when the run is told to stop.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        api: Any,
        capabilities: BatchCapabilities,
        *,
        retries: int,
        sleep: Callable[[float], Awaitable[None]],
        jitter: retry.Jitter,
    ) -> None:
        self.endpoint = endpoint
        self.capabilities = capabilities
        self.api = cast("BatchProtocol", api)
        self._transport = transport
        self._protocol = endpoint.place.protocol
        self._retries = retries
        self._sleep = sleep
        self._jitter = jitter

    def line(self, line_id: str, texts: Any, *, base64: bool) -> bytes:
        """One line of an upload."""
        return self.api.batch_line(
            self.endpoint.place, self.endpoint.wire_model, line_id, texts, self._options(base64=base64)
        )

    def _options(self, *, base64: bool) -> Any:
        from dataclasses import replace

        wire = self.endpoint.wire
        return wire if wire.base64 == base64 else replace(wire, base64=base64)

    async def upload(self, mark: str, content: bytes) -> BatchFile:
        """Upload a file; one that is there already, because an answer was lost, is taken.

        Raises:
            ProviderError: It cannot be.
        """
        request = self.api.batch_upload(self.endpoint.place, mark, content)
        failures = 0
        while True:
            try:
                return await self._once(request, _batch_entry.uploaded, LONG_S)
            except ProviderError as error:
                failures += 1
                await self._pause(error, failures)
                if not isinstance(error, NotSent) and (there := await self._uploaded(mark, len(content))) is not None:
                    return there

    async def _uploaded(self, mark: str, size: int) -> BatchFile | None:
        """The file with this mark and size, where there is one; one of another size was cut, and goes."""
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            request = self.api.batch_files(self.endpoint.place, mark, cursor)
            page = await self._ask(request, _batch_entry.files)
            for file in page.files:
                if file.mark == mark and file.bytes in (None, size):
                    return file
                if file.mark == mark:
                    await self.delete(file.id)
            cursor = page.cursor
            if cursor is None:
                return None
        return None

    async def create(self, file_id: str, mark: str, *, base64: bool) -> CreateOutcome:
        """Make a batch. Sent once; whatever comes of it is told, not raised."""
        request = self.api.batch_create(
            self.endpoint.place, self.endpoint.wire_model, file_id, mark, self._options(base64=base64)
        )
        try:
            answer = await self._transport.send(request, timeout_s=self.endpoint.timeout_s)
        except NotSent as error:
            return CreateOutcome(kind="rejected", error=error)
        except (AnswerLost, AnswerUnusable, RedirectRefused) as error:
            return CreateOutcome(kind="unknown", error=error)
        return _batch_entry.created(self._protocol, answer.status, answer.headers, answer.body, request)

    async def state(self, batch_id: str) -> BatchState:
        """How a batch stands.

        Raises:
            ProviderError: No word of it.
        """
        return await self._ask(self.api.batch_status(self.endpoint.place, batch_id), _batch_entry.state)

    async def find(self, mark: str, file_id: str | None, since: float) -> tuple[list[BatchState], bool]:
        """Batches with this mark, or of this file, the oldest first; whether none can have been overlooked.

        Args:
            since: Unix seconds; when it was to be made.

        Raises:
            ProviderError: The list cannot be had: nothing is proven.
        """
        found: dict[str, BatchState] = {}
        pages: list[BatchPage] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            request = self.api.batch_list(self.endpoint.place, mark, cursor)
            page = await self._ask(request, _batch_entry.page)
            pages.append(page)
            for state in page.batches:
                if state.mark == mark or (file_id is not None and state.input_id == file_id):
                    found[state.id] = state
            cursor = page.cursor
            if cursor is None or walked_back(pages, since - MARGIN_S):
                break
        complete = len(pages) < MOST_PAGES and all(page.complete for page in pages)
        return sorted(found.values(), key=lambda one: (one.created_at or 0.0, one.id)), complete

    async def cancel(self, batch_id: str) -> BatchState:
        """Ask to end a batch; how it stands then. One that has ended is not an error."""
        try:
            said = await self._ask(self.api.batch_cancel(self.endpoint.place, batch_id), _batch_entry.cancelled)
        except ProviderError:
            said = None
        return said or await self.state(batch_id)

    async def delete(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            ProviderError: It is not gone.
        """
        await self._ask(self.api.batch_delete(self.endpoint.place, file_id), _batch_entry.deleted)

    def results(self, state: BatchState) -> tuple[ResultFile, ...]:
        """The files that a batch has made."""
        return self.api.batch_results(self.endpoint.place, self.endpoint.wire_model, state)

    async def download(self, file: ResultFile, path: Path) -> None:
        """Stream a file to the disk, anew when it breaks off.

        Raises:
            NoFileYetError: It has no content (yet).
            ProviderError: It cannot be had.
        """
        failures = 0
        while True:
            try:
                answer = await self._pour(file.request, path)
                if (elsewhere := _batch_entry.moved(answer.status, answer.headers, file.request)) is not None:
                    answer = await self._pour(elsewhere, path)
                if _batch_entry.not_there(self._protocol, answer.status):
                    raise NoFileYetError
                if answer.status < 300:
                    return
                raise _batch_entry.refused(self._protocol, answer.status, answer.headers, answer.body, file.request)
            except ProviderError as error:
                failures += 1
                await self._pause(error, failures)

    async def _pour(self, request: HttpRequest, path: Path) -> HttpResponse:
        with path.open("wb") as into:
            return await self._transport.send(
                request, timeout_s=LONG_S, max_bytes=MOST_RESULT_BYTES, into=into, moves=True
            )

    async def _ask(self, request: HttpRequest, read: Callable[..., _T]) -> _T:
        """A call that may be repeated."""
        failures = 0
        while True:
            try:
                return await self._once(request, read, self.endpoint.timeout_s)
            except ProviderError as error:
                failures += 1
                await self._pause(error, failures)

    async def _once(self, request: HttpRequest, read: Callable[..., _T], timeout_s: float) -> _T:
        answer = await self._transport.send(request, timeout_s=timeout_s)
        return read(self._protocol, answer.status, answer.headers, answer.body, request)

    async def _pause(self, error: ProviderError, failures: int) -> None:
        """Wait before it is tried again; raise the error when it is not."""
        error.provider = error.provider or self.endpoint.provider
        if error.remedy not in (Remedy.RETRY, Remedy.WAIT) or failures > self._retries:
            raise error
        await self._sleep(retry.wait_before(failures, error, jitter=self._jitter))
