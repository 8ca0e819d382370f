"""The words of embedctl as values: Space, Request, Answer, UsageEvent. Pure, frozen, no I/O."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, field, is_dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import orjson

from embedctl.dataclass import dataclass
from embedctl.errors import InvariantBroken

if TYPE_CHECKING:
    import msgspec
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

Purpose = Literal["ingest", "query", "test"]
InputType = Literal["document", "query", "classification", "clustering"]
UsageMode = Literal["native", "fallback", "auto"]
UsageSource = Literal["native", "fallback"]
EntryKind = Literal["usage", "cache_hit", "correction", "refund", "credit", "true_up"]
OperationKind = Literal["chunk", "request", "job", "batch", "manual"]
Status = Literal["ok", "error", "timeout", "cancelled", "interrupted"]
Billable = Literal["yes", "no", "unknown"]

RowId = str | int | float
"""A row's id as it reads: text, integers and finite numbers as they are, all else as text (`inputs.row_ids`)."""

TEXT_HASH_BYTES = 16


def uuid7(now_s: float | None = None, random: bytes | None = None) -> uuid.UUID:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then 74 random bits.

    `uuid.uuid7` is in the standard library from Python 3.14 on.
    """
    milliseconds = int((time.time() if now_s is None else now_s) * 1000)
    tail = int.from_bytes(_random_bytes() if random is None else random, "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | tail & (1 << 80) - 1
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant 10
    return uuid.UUID(int=value)


def minted_at(made: uuid.UUID) -> float:
    """When a UUIDv7 was minted, in Unix seconds."""
    return (made.int >> 80) / 1000


def new_operation_id() -> str:
    """80 random bits as 20 hex digits: the ledger keeps them in 11.5 bytes, a UUID written out in 18.9."""
    return _random_bytes().hex()


_RANDOM_BYTES = 10
_random: list[bytes] = []
os.register_at_fork(after_in_child=_random.clear)


def _random_bytes() -> bytes:
    """10 bytes of the system's, which is asked for many at once: each time it is, other threads go first."""
    while True:
        try:
            return _random.pop()
        except IndexError:
            some = os.urandom(_RANDOM_BYTES * 256)
            _random.extend(some[at : at + _RANDOM_BYTES] for at in range(0, len(some), _RANDOM_BYTES))


def utc_now() -> datetime:
    """The wall clock, in UTC; only for time stamps, never for waiting."""
    return datetime.now(UTC)


def expanded(path: str | Path) -> Path:
    """A path whose `~` is the home folder; as it is for a user who has none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises then


def printable(text: str) -> str:
    r"""Text of the system (a path, an argument) for people: bytes that are no UTF-8 become `\xff`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace") if _is_undecoded(text) else text


_VISIBLE = re.compile(
    "[^\0- \x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Anything but white space, control and format characters, and those that show nothing of their own.

Source: Unicode 16, general categories Z*, Cc and Cf, and the property Default_Ignorable_Code_Point.
"""


def is_blank(text: str) -> bool:
    """Whether a text says nothing: it is empty, or all white space, zero-width and control characters."""
    return not text or (not "!" <= text[0] <= "~" and _VISIBLE.search(text) is None)


def storable(text: str) -> str:
    r"""Text of the system for JSON that is read again: bytes that are no UTF-8 become `\0` and two hex digits."""
    if not _is_undecoded(text):
        return text
    return "".join(f"\0{ord(one) - 0xDC00:02x}" if _is_undecoded(one) else one for one in text)


def stored(text: str) -> str:
    """What `storable` was given; no path holds a NUL of its own."""
    if "\0" not in text:
        return text
    first, *rest = text.split("\0")
    try:
        return first + "".join(chr(0xDC00 + int(part[:2], 16)) + part[2:] for part in rest)
    except ValueError:
        return text


def to_json(value: Any, *, default: Callable[[Any], Any] = str, option: int = 0, spelt: Callable[[str], str]) -> bytes:
    """JSON of anything, also where a path or an argument in it is no UTF-8.

    Args:
        default: What becomes of types that JSON does not know.
        spelt: `printable` or `storable`.
    """
    try:
        return orjson.dumps(value, default=default, option=option)
    except TypeError:
        return orjson.dumps(_spelt(value, spelt), default=lambda one: _spelt(default(one), spelt), option=option)


def from_json(content: bytes, kind: type[T], *, hook: Callable[[type, Any], Any] | None = None) -> T:
    """A dataclass of ours that was JSON.

    Args:
        hook: Makes what JSON does not know, of its type and what stands there.

    Raises:
        ValueError: The content is no such JSON.
    """
    import msgspec

    try:
        made: T = decoder(kind, hook).decode(content)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise ValueError(f"no {kind.__name__}: {problem}") from problem
    return made


_MAKING = threading.Lock()


@cache
def decoder(kind: Any, hook: Callable[[type, Any], Any] | None = None) -> msgspec.json.Decoder[Any]:
    """What decodes JSON into a dataclass of ours, made by one thread at a time.

    msgspec looks at a class when it first decodes it. A second thread that decodes it meanwhile, and has not waited,
    finds fields that are not there yet: the process ends by SIGSEGV (msgspec 0.22, where classes hold others).
    """
    import msgspec

    with _MAKING:
        return msgspec.json.Decoder(kind, dec_hook=hook)


def _spelt(value: Any, spelt: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return spelt(value)
    if isinstance(value, Mapping):
        return {_spelt(key, spelt): _spelt(one, spelt) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(one, spelt) for one in value]
    return _spelt(asdict(value), spelt) if is_dataclass(value) and not isinstance(value, type) else value


def _is_undecoded(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= one <= "\udcff" for one in text)


BY_THE_HOUR = "hour"
"""Whose prices apply to a machine that costs by the hour, whatever it is asked: nobody's. Beside "free"."""

IDLE_METER = "idle_microhour"
"""What is counted of a machine's time that no call was charged."""

NO_USAGE = "native usage missing"
"""Why an answer has no tokens and no cost: its provider said none, and in `native` mode nobody else counts."""

JOURNAL_DAMAGED = "journal_damaged"
"""Error class of attempts of which nothing is known but that a journal has no whole record of them."""


def text_hash(wire_text: str) -> bytes:
    """blake2b-128 of the exact text sent (prefix included), 16 bytes."""
    return bytes_hash(wire_text.encode("utf-8", "surrogatepass"))


def bytes_hash(wire_text: bytes) -> bytes:
    """The same, of the text in UTF-8."""
    return blake2b(wire_text, digest_size=TEXT_HASH_BYTES).digest()


def tokens_hash(tokens: Sequence[int]) -> bytes:
    """blake2b-128 of a token array as little-endian int32, under a key so that no text collides."""
    packed = b"".join(int(token).to_bytes(4, "little") for token in tokens)
    return blake2b(packed, digest_size=TEXT_HASH_BYTES, person=b"tokens").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold; None means no limit is known.

    Attributes:
        items: Texts per request.
        tokens: Tokens per request, summed.
        bytes: Bytes of the request body.
    """

    items: int | None = None
    tokens: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    """What makes vectors comparable. Two vectors may be compared only if their `space_id` is equal.

    Attributes:
        model: Canonical model (the weights), e.g. "openai/text-embedding-3-small".
        revision: Of the weights or their quantisation where known.
        dimensions: Width D of every vector.
        dimension_policy: How D was reached: native, reduce, pad or ignore.
        normalized: Whether vectors have unit length; None when the provider does not say.
        input_type: document, query, classification or clustering where the model tells them apart.
        prefix: Literal text put before each text.
        truncation: "none" (nothing is ever cut), "truncate" or "mean" when the run asked for it.
    """

    model: str
    dimensions: int
    revision: str | None = None
    dimension_policy: str = "native"
    normalized: bool | None = None
    input_type: str | None = None
    prefix: str = ""
    truncation: str = "none"

    @cached_property
    def space_id(self) -> str:
        """blake2b-128 (hex) of the canonical JSON of all fields."""
        canonical = orjson.dumps(self.as_dict(), option=orjson.OPT_SORT_KEYS)
        return blake2b(canonical, digest_size=16).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """All fields, as they stand in the Parquet metadata."""
        return asdict(self)

    def differences(self, other: Space) -> list[str]:
        """Sentences that name each field in which two spaces differ."""
        mine, theirs = self.as_dict(), other.as_dict()
        return [f"{name}: {mine[name]!r} here, {theirs[name]!r} there" for name in mine if mine[name] != theirs[name]]

    def like(self, other: Space) -> Space:
        """This space as an older version would name it, where `other` is named so; else itself.

        They named a local model by its weights alone, without tokenizer, pooling and longest text.
        """
        of_files = self.revision is not None and self.revision.startswith(_FILES)
        older = replace(self, revision=None) if of_files and other.revision is None else self
        return older if older == other else self


_FILES = "files:"


def files_revision(digest: str) -> str:
    """The revision of a model that nobody but its files names."""
    return f"{_FILES}{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Texts sent together; one operation, however many attempts and providers it takes.

    Attributes:
        operation_id: The same for every attempt and fallback.
        texts: Exact texts for the wire, prefix included; or token arrays where `token_arrays`.
        hashes: One 16-byte text hash per text, concatenated.
        workspace_id: Who pays; a request never mixes workspaces.
        content_bytes: UTF-8 bytes of all texts.
        tokens: Tokens of all texts where they are known exactly (local model, token arrays), else None.
        tokens_each: Tokens per text where known exactly.
    """

    operation_id: str
    texts: Sequence[str] | Sequence[Sequence[int]]
    hashes: bytes
    workspace_id: str = "default"
    purpose: Purpose = "ingest"
    token_arrays: bool = False
    content_bytes: int = 0
    tokens: int | None = None
    tokens_each: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def subject(self) -> int:
        """Equal for equal texts in this process: tells an input that fails again from a provider that fails."""
        return hash(self.hashes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an attempt used, and how sure that is.

    Attributes:
        tokens_total: What counts: native when usable, else the estimate. 0 when not billable or unknown.
        tokens_native: The provider's own count, None when it gave none.
        tokens_estimated: The tokenizer's count, None when nothing was counted.
        tokens_cached: Provider-side cached part of the total; None when the provider does not say.
        source: Where `tokens_total` comes from.
        tokenizer_id: Who counted, when it was counted here ("tiktoken:cl100k_base", "bytes/4").
        tokens_each: `tokens_estimated`, text by text, where a tokenizer ran.
    """

    tokens_total: int
    source: UsageSource
    mode: UsageMode = "auto"
    tokens_native: int | None = None
    tokens_estimated: int | None = None
    tokens_cached: int | None = None
    tokenizer_id: str | None = None
    tokens_each: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the call point returns for one request.

    Attributes:
        vectors: float32, shape (n, D); vectors[i] belongs to request.texts[i]; finite, no zero row.
        usage_tokens: Billed tokens, see `usage` for how sure.
        embedding_id: The provider's own id of the answer or request.
        raw_response: The body as received; empty for local models and where it was not kept.
        tokens_each: Tokens per text where the provider or the local tokenizer says.
    """

    vectors: NDArray[np.float32]
    usage: Usage
    request: Request
    provider: str
    model: str
    event_id: uuid.UUID
    embedding_id: str | None = None
    response_model: str | None = None
    raw_response: bytes = b""
    tokens_each: tuple[int, ...] | None = None
    fallback_from: str | None = None

    @property
    def usage_tokens(self) -> int:
        """Tokens that count for the bill."""
        return self.usage.tokens_total


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One attempt as the ledger keeps it (ledger.sql, `usage_event`), before it is priced.

    Attributes:
        event_id: UUIDv7 minted before the attempt is sent.
        occurred_at: When the answer came (UTC).
        price_as: Whose price applies: a catalog provider, "free", "hour" (`cost_provider` is what its time comes to),
            or None when nobody's does.
        fallback_from: "provider:model" first asked for, None if this was it.
        quantity: In units of `meter`; tokens_total for input_token.
    """

    event_id: uuid.UUID
    workspace_id: str
    operation_id: str
    provider: str
    model: str
    occurred_at: datetime
    status: Status
    billable: Billable
    tokens_total: int
    usage_mode: UsageMode
    usage_source: UsageSource
    entry_kind: EntryKind = "usage"
    corrects_event_id: uuid.UUID | None = None
    job_id: str | None = None
    run_id: uuid.UUID | None = None
    operation_kind: OperationKind = "request"
    purpose: Purpose = "ingest"
    attempt: int = 1
    fallback_from: str | None = None
    response_model: str | None = None
    region: str = "*"
    provider_account: str | None = None
    provider_request_id: str | None = None
    batch_id: str | None = None
    duration_ms: int | None = None
    error_class: str | None = None
    price_tier: str = "standard"
    price_as: str | None = None
    meter: str = "input_token"
    quantity: int | None = None
    tokens_cached: int | None = None
    tokens_native: int | None = None
    tokens_estimated: int | None = None
    tokenizer_id: str | None = None
    input_count: int = 1
    content_bytes: int | None = None
    cost_provider: Decimal | None = None
    tags: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    tool_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A row or chunk that has no vector, as the failures file lists it.

    Attributes:
        row: Ordinal of the row in the input; not listed.
        skipped: Not wanted (a blank text), rather than failed.
        reason: One of a fixed set: blank, null, too_long, too_large, invalid_utf8, invalid_unicode, invalid_tokens,
            bad_row, bad_value, no_id, not_allowed, bad_workspace, budget, text_refused, unusable_vector,
            provider_failed.
    """

    row: int
    id: RowId
    chunk_index: int
    reason: str
    message: str
    skipped: bool = False
    provider: str | None = None
    attempts: int = 0
    tokens: int | None = None
    max_tokens: int | None = None
    text_hash: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object of one line, without the fields that say nothing."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "row"}
        return {name: value for name, value in fields.items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a wanted vector will not come."""

    reason: str
    message: str
    provider: str | None = None
    attempts: int = 0
    tokens: int | None = None
    max_tokens: int | None = None

    def of(self, row: int, row_id: RowId, chunk_index: int, digest: bytes) -> Failure:
        """The failure of the row that wanted it."""
        return Failure(
            row=row,
            id=row_id,
            chunk_index=chunk_index,
            reason=self.reason,
            message=self.message,
            provider=self.provider,
            attempts=self.attempts,
            tokens=self.tokens,
            max_tokens=self.max_tokens,
            text_hash=digest.hex(),
        )


@dataclass(frozen=True, slots=True)
class VectorRef:
    """Where vectors stand in a journal.

    Attributes:
        segment: The segment's id.
        offset: Byte in its answers file at which the first vector begins.
        count: Vectors, n.
        dimensions: Width, D.
    """

    segment: str
    offset: int
    count: int
    dimensions: int

    def row(self, index: int) -> VectorRef:
        """The place of one of the vectors."""
        return VectorRef(self.segment, self.offset + index * self.dimensions * 4, 1, self.dimensions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of some texts of a request: vectors in the journal, or the reason why there are none.

    Attributes:
        targets: Which texts: their positions in the request; once a run has taken it, their ordinals in the run.
        ref: Where the vectors stand in the journal, one after the other.
        answer: Who made them, and what that came to.
    """

    targets: Sequence[int]
    ref: VectorRef | None = None
    answer: Answer | None = None
    refusal: Refusal | None = None


@dataclass(slots=True)
class RowCounts:
    """Where every row of the input went.

    Attributes:
        read: Rows of the input.
        embedded: Rows that have a vector for each of their chunks.
        vectors: Vectors written: chunks, not rows.
    """

    read: int = 0
    embedded: int = 0
    failed: int = 0
    skipped: int = 0
    vectors: int = 0
    reused: int = 0
    duplicates: int = 0

    def add(self, other: RowCounts) -> None:
        """Count another slot's rows too."""
        self.read += other.read
        self.embedded += other.embedded
        self.failed += other.failed
        self.skipped += other.skipped
        self.vectors += other.vectors

    def check(self) -> None:
        """Raise InvariantBroken unless rows in = embedded + failed + skipped."""
        if self.read != self.embedded + self.failed + self.skipped:
            raise InvariantBroken(
                f"{self.read} rows read, but {self.embedded} embedded + {self.failed} failed + {self.skipped} skipped"
            )


def format_money(amount: Decimal) -> str:
    """All digits of an amount, without exponent and without trailing zeros beyond cents."""
    digits = format(amount.normalize(), "f")
    whole, _, fraction = digits.partition(".")
    return f"{whole}.{fraction.ljust(2, '0')}"


def format_cents(amount: Decimal) -> str:
    """An amount for people: cents, and two digits of what is less than one."""
    if 0 < abs(amount) < Decimal("0.01"):
        return f"{Decimal(f'{amount:.1e}'):f}"
    return f"{amount:,.2f}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests to an endpoint wait.

    Attributes:
        reason: What its server said, or why embedctl holds them back.
        seconds: For about so long.
    """

    endpoint: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Paced:
    """An endpoint refuses more than so much: less is sent from now on, or more again.

    Attributes:
        per_second: What goes per second; None: as much as goes.
        unit: What its provider counts: "requests" or "texts".
        first: It did not refuse before.
    """

    endpoint: str
    per_second: float | None
    unit: str
    first: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """An endpoint is asked no more in this run."""

    endpoint: str
    reason: str


@dataclass(frozen=True, slots=True)
class FellBack:
    """Another endpoint of the chain is asked from now on."""

    endpoint: str
    instead_of: str


@dataclass(frozen=True, slots=True)
class LimitLearned:
    """A server takes less in one request than was thought; remembered for later runs."""

    endpoint: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class BudgetLow:
    """A budget is nearly used up, or all of it.

    Attributes:
        name: Whose and which.
        spent, amount: USD.
    """

    name: str
    spent: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True)
class LimitForeseen:
    """A limit on spending, before a run that is estimated.

    Attributes:
        name: "--max-cost", or whose budget and which.
        spent, amount: USD, without this run.
        cost: USD that the run would about cost under it; None: nobody knows.
        blocks: It stops the run; else it only warns.
        by_row: It is of one workspace among others: only its rows would fail.
        workspace: Whose budget it is; None: the run's own limit.
        warn_at: USD from which on a warning is due.
        needs_price: Without a price of the model it cannot hold, and the run is refused.
    """

    name: str
    spent: Decimal
    amount: Decimal
    cost: Decimal | None
    blocks: bool
    by_row: bool
    workspace: str | None = None
    warn_at: Decimal | None = None
    needs_price: bool = False

    @property
    def outcome(self) -> Literal["used_up", "unpriced", "passed", "low", "kept"]:
        """What the run would meet: it is used up by now; would be passed, or nearly used up; or cannot hold."""
        if self.cost is None and self.blocks and self.needs_price:
            return "unpriced"
        if self.spent >= self.amount and self.workspace is not None:
            return "used_up"
        if self.cost is None:
            return "kept"
        if self.spent + self.cost > self.amount:
            return "passed"
        return "low" if self.warn_at is not None and self.spent + self.cost >= self.warn_at else "kept"

    @property
    def is_met(self) -> bool:
        """Whether there is anything to say."""
        return self.outcome != "kept"


@dataclass(frozen=True, slots=True)
class OperationBegan:
    """A request is about to be sent. Parts of one operation may be under way together: each begins and ends."""

    operation_id: str


@dataclass(frozen=True, slots=True)
class OperationEnded:
    """A request is at its end, after all its attempts.

    Attributes:
        error: The word of what ended it; None when it got what it could: an answer, or a reason for each text.
    """

    operation_id: str
    error: str | None


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt was answered, has failed, or was never sent.

    Attributes:
        server: Host and port that were asked; None for a local model.
        dimensions: Of the vectors that were asked for, or came; None while nobody knows.
        encoding: What vectors were asked for as, where the protocol has a word for it.
    """

    event: UsageEvent
    server: tuple[str, int] | None = None
    dimensions: int | None = None
    encoding: str | None = None


Phase = Literal["reading", "chunking", "embedding", "batches", "writing", "accounting"]
"""What a run does most of all: `reading` is also looking at what is there, `accounting` is the ledger."""


@dataclass(frozen=True, slots=True)
class ColumnsChosen:
    """Which columns of a table are read, where nobody said.

    Attributes:
        row_id: Names rows; None: they are numbered.
        candidate: A column that may name them, when none was found.
    """

    text: str
    row_id: str | None
    candidate: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseBegan:
    """A run does something else from now on."""

    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far a run is; a few times a second.

    Attributes:
        rows: Read, and with nothing left to wait for (of chunked rows: about).
        rows_total: Of the input, where it is known.
        in_flight: Requests.
        tokens: Confirmed so far.
        cost: USD so far; None when nobody knows.
        rows_read: Read, and cut into texts.
        documents: Rows are files.
        share_read: How much of the input is read, 0 to 1, where that is known.
        texts: That have a vector, or will have none.
        texts_total: Of the whole input; None while nobody can know.
        is_exact: Whether `texts_total` is counted, not estimated from what is read.
        cutting: Id and characters of a large row that is being cut into chunks now: nobody can say how far that is.
    """

    rows: int
    rows_total: int | None
    in_flight: int
    tokens: int
    cost: Decimal | None
    phase: Phase = "embedding"
    rows_read: int = 0
    documents: bool = False
    share_read: float | None = None
    texts: int = 0
    texts_total: int | None = None
    is_exact: bool = False
    cutting: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Inferred:
    """A local model has embedded some more texts of a request that it works on."""

    texts: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesProgressed:
    """How far the batches at a provider are.

    Attributes:
        batches: That are not over; all else is of these.
        lines_done: As the provider says.
        cost_at_risk: USD at most; None when nobody knows.
        seconds: Since the oldest was planned.
    """

    batches: int
    lines_done: int
    lines: int
    texts: int
    tokens: int
    cost_at_risk: Decimal | None
    seconds: float


@dataclass(frozen=True, slots=True)
class RowFailed:
    """A row of an output that has no failures file was skipped, or has failed."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class AtRisk:
    """A worker begins; said once.

    Attributes:
        requests: Whose texts are bought again at most when its machine vanishes.
        cost: Of these, about, in USD; None when nobody knows.
    """

    requests: int
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class ShardBegan:
    """A worker has taken a shard of a job on a store.

    Attributes:
        shard: Its name among objects; `rows` of it, where they are counted.
    """

    shard: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class ShardEnded:
    """The worker's hands are off it.

    Attributes:
        counts: What became of its rows; None: it is not done.
    """

    shard: str
    counts: RowCounts | None


Concern = Literal[
    "damaged_part", "other_ledger", "key_file", "not_registered", "not_ingested", "budgets_unknown", "ledger",
    "duplicate_ids", "cache", "learned_file", "input", "folder_gone", "foreign_journal", "damaged_journal", "set_aside",
    "input_differs", "other_model", "input_type_lost", "bad_file", "bad_row", "left_out", "telemetry", "count_cache",
    "store_usage", "batch_mode", "batch_unseen", "batch_twin", "batch_line", "batch_files", "model_changed",
    "model_version", "canary", "older_space", "few_shards", "worker_died", "workers_waiting",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Warned:
    """Something is not as it should be, and stops nothing.

    Attributes:
        concern: A fixed word; `terminal` has the sentence.
        subject: The file, ledger or row that it is about.
        detail: What was found, as whoever found it says it.
    """

    concern: Concern
    subject: str = ""
    detail: str = ""
    count: int = 0


Event = (
    Waiting | Paced | GaveUp | FellBack | LimitLearned | BudgetLow | LimitForeseen | OperationBegan | OperationEnded
    | AttemptEnded | ColumnsChosen | AtRisk | ShardBegan | ShardEnded | PhaseBegan | Progressed | BatchesProgressed
    | Inferred | RowFailed | Warned
)  # fmt: skip


class Observer(Protocol):
    """Is told what happens. The core makes no sentences for people: `terminal` does, and so can a log or a server."""

    def notify(self, event: Event) -> None:
        """Called where it happens, in the loop or in a thread: it must not block."""


class Unobserved:
    """Nobody is told."""

    def notify(self, event: Event) -> None:
        """Nothing."""


UNOBSERVED = Unobserved()


class Observers:
    """Tells several observers, one after the other."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def notify(self, event: Event) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.notify(event)


def format_duration(seconds: float) -> str:
    """A duration as people say it: "0.4 s", "75 s", "12 min", "2 h 10 min", "24 h"."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def total_cost(costs: Iterable[Decimal | None]) -> Decimal | None:
    """The sum; None when nobody knows one of them, 0 of none."""
    total = Decimal(0)
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total


def format_usd(amount: Decimal) -> str:
    """An amount with six decimals, with all of them where six would show nothing."""
    shown = f"{amount:.6f}"
    return shown if Decimal(shown) or not amount else f"{amount.normalize():f}"
