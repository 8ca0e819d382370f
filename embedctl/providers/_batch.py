"""What a provider's Batch API is: functions and data beside `request` and `answer` in the protocol's own file. Pure.

A protocol that has one adds `BATCH: BatchCapabilities`, and these functions; one that is refused says why in
`BATCH_REFUSED`. Names are fixed. A caller asks `_batch_places.batch_api(place, model, wanted)` first: the module and
what it can there, or ConfigurationInvalid (78) with the reason. Every answer is read through `_batch_entry`.

- `batch_line(place, model, line_id, texts, options) -> bytes`: one line of the upload, with its line end;
- `batch_upload(place, mark, content) -> HttpRequest`: one POST (multipart), the file is named after the mark;
- `batch_files(place, mark, cursor) -> HttpRequest`: a page of uploads, for where the answer of an upload was lost;
- `batch_create(place, model, file_id, mark, options) -> HttpRequest`: sent once, NEVER repeated by any retry;
- `batch_status(place, batch_id)`, `batch_cancel(place, batch_id)`, `batch_delete(place, file_id) -> HttpRequest`;
- `batch_list(place, mark, cursor) -> HttpRequest`: a page of batches, where the answer of a create was lost;
- `batch_results(place, model, state) -> tuple[ResultFile, ...]`: output and error file, read in EVERY ended state;
- `batch_result(line, request) -> LineResult`: one line of either file; `request` is that of its ResultFile;
- optionally `batch_refused(place) -> str | None`: why this very place has none (its key, its host);
- `batch_state(said)`, `batch_file(said)`, `batch_page(said, request)`: loaded JSON, read for `_batch_entry` alone.

Marks: one string names the file and the batch that is made of it, new for every attempt, `[a-z0-9-]`, at most 40
characters (Google's bound for file names): "ec-" and 32 hex digits. It comes back as `BatchFile.mark` and
`BatchState.mark`; what does not look like one is None there. Line ids: `[A-Za-z0-9_-]`, at most 64 characters,
unique in the file. Ids of files and batches are bare words of at most 512 characters, without path separators (too
long for file names). Cursors are opaque; None asks for the first page, and as an answer says that it was the last;
one that comes a second time is a list that cannot be walked: nothing is proven.

An upload may be repeated (it costs nothing, and one that is not used is deleted). A create may not: see CreateOutcome.
Proof of absence is a walk over all pages (`BatchPage.complete` each time), or as far as `walked_back` says, after the
grace time. Order of the lines is promised by nobody: the line id joins.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken, ProviderError
from embedctl.providers import _foreign
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, WireAnswer

BatchPhase = Literal["waiting", "ended_done", "ended_failed", "ended_expired", "ended_cancelled"]

MARK_CHARACTERS = 40
LINE_ID_CHARACTERS = 64
MOST_LINE_BYTES = 64 * 1024 * 1024
"""Of one line of a result: 2,048 vectors of 3,072 floats as base64 are 34 MB. A longer one is unreadable."""

_REMOTE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,511}")
_MARK = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{MARK_CHARACTERS - 1}}}")
_LINE_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{LINE_ID_CHARACTERS}}}")
_LAST_MOMENT = 32_503_680_000.0  # the year 3000
_MOMENT_CHARACTERS = 40
_MOST_COUNTED = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCapabilities:
    """What a Batch API takes and promises.

    Attributes:
        max_inputs: Texts of one batch.
        max_lines: Lines of one file. `max_bytes` likewise.
        inputs_per_line: Texts of one line at most. `tokens_per_line` likewise; None: no bound but a request's own.
        max_tokens_enqueued: Of all batches of a model in flight, in the lowest paid tier; None where nobody says.
        max_batches: In flight; None where nobody says.
        takes_tokens: Lines may carry token arrays.
        partial_results: What was done of a cancelled or expired batch can surely be read; False: perhaps not.
        keeps_order: Result lines stand in the order of the request lines.
        finds: How a mark is found again: the list filters by it, or the whole list is walked.
        window_s: After so long a batch expires.
        results_kept_s: Results can be read for so long after the end.
        files_kept_s: Uploads are kept for so long.
        unverified: Names of facts here that no primary source was seen for.
    """

    max_inputs: int
    max_lines: int
    max_bytes: int
    inputs_per_line: int
    tokens_per_line: int | None = None
    max_tokens_enqueued: int | None = None
    max_batches: int | None = None
    takes_tokens: bool = False
    partial_results: bool
    keeps_order: bool = False
    finds: Literal["filter", "walk"]
    window_s: float
    results_kept_s: float
    files_kept_s: float
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """A file at the provider.

    Attributes:
        mark: Of its name; None where the name is none of ours.
        bytes: Its size; None where it does not say. Two files of one mark that differ here: one was cut.
        ready: Whether a batch may be made of it now.
        created_at: Unix seconds. `expires_at` likewise.
    """

    id: str
    mark: str | None = None
    bytes: int | None = None
    ready: bool = True
    created_at: float | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """A batch as its provider tells of it.

    Attributes:
        status: The provider's word, cleaned.
        state: Unknown words are `waiting`. `ended_done` does not mean that every line was answered, nor
            `ended_failed` that none was: read the results of every ended batch.
        lines_done: Answered lines; None where it does not say. `lines_failed`, `lines_total` likewise.
        tokens: Of the whole batch, a cross-check only: what is booked stands in the lines.
        created_at: Unix seconds. `expires_at`, `ended_at`, `results_until` likewise.
        output_id: File of what was answered; None where there is none. `error_id`, `input_id` likewise.
        enqueued_refused: It ended because too much is in flight: nothing was bought, the same lines go again later.
        file_unseen: It ended because its file could not be read (yet): nothing was bought, a new attempt may do.
        errors: What it says of itself, cleaned, at most ten.
    """

    id: str
    mark: str | None = None
    status: str = ""
    state: BatchPhase = "waiting"
    lines_done: int | None = None
    lines_failed: int | None = None
    lines_total: int | None = None
    tokens: int | None = None
    created_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    results_until: float | None = None
    input_id: str | None = None
    output_id: str | None = None
    error_id: str | None = None
    enqueued_refused: bool = False
    file_unseen: bool = False
    errors: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be done."""
        return self.state != "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOutcome:
    """What the answer to a create means; no answer at all is `unknown`, too.

    Attributes:
        kind: `accepted`: `batch` is it. `rejected`: surely not made, nothing at risk; `error` says why. `unknown`:
            it may have been made (408, 409, 5xx, a redirect, or a 2xx without a readable id): look for the mark.
        enqueued_refused: Rejected because too much is in flight: wait, then the same lines in a new create.
        file_unseen: Rejected because its file is not seen (yet): the same file again after a while, a bounded number
            of times.
    """

    kind: Literal["accepted", "rejected", "unknown"]
    batch: BatchState | None = None
    error: ProviderError | None = None
    enqueued_refused: bool = False
    file_unseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    """Some of the account's batches, of anybody's making.

    Attributes:
        cursor: Of the next page; None: this is the last.
        complete: False where an entry could not be read: what is not here may be that one, absence is not proven.
    """

    batches: tuple[BatchState, ...] = ()
    cursor: str | None = None
    complete: bool = True


def walked_back(pages: Sequence[BatchPage], since: float) -> bool:
    """Whether pages that were walked from the first one on reach back to before a moment.

    No provider promises an order but Mistral: only where everything seen so far is newest first, and not all of one
    moment, is what follows older still.

    Args:
        since: Unix seconds.
    """
    times = [one.created_at for page in pages for one in page.batches]
    known = [at for at in times if at is not None]
    if len(known) < len(times) or len(known) < 2 or known[0] == known[-1]:
        return False
    last = pages[-1].batches
    newest_first = all(one >= after for one, after in itertools.pairwise(known))
    return newest_first and bool(last) and all(one < since for one in known[-len(last) :])


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePage:
    """Some of the account's files; as BatchPage."""

    files: tuple[BatchFile, ...] = ()
    cursor: str | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """A file to be streamed to disk, then read line by line.

    Attributes:
        request: A GET. What `_batch_entry.not_there` says of its answer may be over in some minutes,
            and a redirect is followed once by what `_batch_entry.moved` makes of it, without the key.
    """

    kind: Literal["output", "error"]
    file_id: str
    request: HttpRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What one line of a result says.

    Attributes:
        line_id: As it was sent; None where the line does not say it readably.
        kind: `answered`: `answer` has the vectors. `refused`: the server looked at the texts and declined (4xx):
            `error` says which way, not bought. `cut_off`: not executed, or for a passing reason (expired, cancelled,
            429, 5xx): not bought, goes again; whoever sends it again counts. `unusable`: a 200 that cannot be used:
            bought (`tokens`). `unreadable`: no JSON of this shape: it may have been bought.
        tokens: What the provider counted; None where it does not say.
    """

    line_id: str | None
    kind: Literal["answered", "refused", "cut_off", "unusable", "unreadable"]
    answer: WireAnswer | None = None
    error: ProviderError | None = None
    tokens: int | None = None


class BatchProtocol(Protocol):
    """The shape of a protocol module that has a Batch API."""

    BATCH: BatchCapabilities

    def batch_line(
        self,
        place: Provider,
        model: str,
        line_id: str,
        texts: Sequence[str] | Sequence[Sequence[int]],
        options: RequestOptions,
    ) -> bytes:
        """One line of the upload, with its line end.

        Raises:
            TextRefused: A text is not Unicode.
        """

    def batch_upload(self, place: Provider, mark: str, content: bytes) -> HttpRequest:
        """The file, whole, with the mark as its name. Read by `_batch_entry.uploaded`."""

    def batch_files(self, place: Provider, mark: str, cursor: str | None) -> HttpRequest:
        """A page of uploads, newest first where that can be asked for. Read by `_batch_entry.files`."""

    def batch_create(
        self, place: Provider, model: str, file_id: str, mark: str, options: RequestOptions
    ) -> HttpRequest:
        """The batch of a file. Sent once. Read by `_batch_entry.created`."""

    def batch_status(self, place: Provider, batch_id: str) -> HttpRequest:
        """Read by `_batch_entry.state`."""

    def batch_list(self, place: Provider, mark: str, cursor: str | None) -> HttpRequest:
        """A page of batches. Read by `_batch_entry.page`; where the list filters the mark is still compared."""

    def batch_results(self, place: Provider, model: str, state: BatchState) -> tuple[ResultFile, ...]:
        """What there is to read; () where the state names no file."""

    def batch_result(self, line: bytes, request: HttpRequest) -> LineResult:
        """One line of a result, by `_batch_entry.line`."""

    def batch_cancel(self, place: Provider, batch_id: str) -> HttpRequest:
        """Ask to end it; it may still end as done. Read by `_batch_entry.cancelled`."""

    def batch_delete(self, place: Provider, file_id: str) -> HttpRequest:
        """Delete a file. Read by `_batch_entry.deleted`: one that is gone is fine."""

    def batch_state(self, said: Any) -> BatchState | None:
        """A batch out of loaded JSON, None where it has no id."""

    def batch_file(self, said: Any) -> BatchFile | None:
        """A file out of loaded JSON, None where it has no id."""

    def batch_page(self, said: Any, request: HttpRequest) -> Listing | None:
        """A page of a list of batches or files, None where it is no list."""


class Listing(NamedTuple):
    """The entries of one page, unread.

    Attributes:
        complete: False where there is more, and no word of how to ask for it.
    """

    entries: Sequence[Any]
    cursor: str | None = None
    complete: bool = True


def remote_id(said: Any, prefix: str = "") -> str | None:
    """An id of a file or a batch as it may stand in a URL, without its prefix ("files/"); None for anything else."""
    if not isinstance(said, str) or not said.startswith(prefix):
        return None
    bare = said[len(prefix) :]
    return bare if _REMOTE_ID.fullmatch(bare) else None


def segment(known_id: str) -> str:
    """An id that was read by `remote_id`, for a URL.

    Raises:
        InvariantBroken: It is none, wherever it comes from.
    """
    if not _REMOTE_ID.fullmatch(known_id):
        raise InvariantBroken("an id of the Batch API is none that a provider gave")
    return known_id


def mark_of(said: Any) -> str | None:
    """A mark that came back, None for anything else."""
    return said if isinstance(said, str) and _MARK.fullmatch(said) else None


def line_id_of(said: Any) -> str | None:
    """A line id that came back, None for anything else."""
    return said if isinstance(said, str) and _LINE_ID.fullmatch(said) else None


def moment(said: Any) -> float | None:
    """Unix seconds of a time as it is written: a number, or RFC 3339; None for anything else."""
    if isinstance(said, bool):
        return None
    if isinstance(said, int | float):
        return float(said) if 0 < said < _LAST_MOMENT else None
    if not isinstance(said, str) or len(said) > _MOMENT_CHARACTERS:
        return None
    try:
        found = datetime.fromisoformat(said)
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < _LAST_MOMENT else None


def counted(said: Any) -> int | None:
    """A count of lines or tokens; Google writes them as strings. None for anything else."""
    if isinstance(said, str) and said.isascii() and said.isdecimal() and len(said) <= len(str(_MOST_COUNTED)):
        said = int(said)
    return _foreign.whole(said, most=_MOST_COUNTED)
