"""Step 4, the slow way: texts are bought through a provider's Batch API, at its price.

    lines ─▶ file ─▶ upload ─▶ create ─▶ … hours … ─▶ results ─▶ journal

Every step is in the journal before the next call is made (`journal/batches.py`), so whoever comes after this process
goes on where it stopped. A create is never repeated: where its answer is lost, the batch is looked for by its mark, and
only a walk over the whole list, later than the grace time, proves that there is none. What belongs to a text is its
hash: nothing here knows which row it stands in, and a later run may have read another input since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from uuid import UUID

from embedctl.dataclass import dataclass
from embedctl.embedding import batch_lines, usage
from embedctl.embedding.batch_calls import BatchCalls
from embedctl.embedding.batch_collector import BatchCollector, BatchSpendGuard, Collected, OpenBatch
from embedctl.embedding.leg import Leg
from embedctl.embedding.route import Route
from embedctl.embedding.usage_events import Caller
from embedctl.errors import (
    AnswerUnusable,
    BudgetReached,
    ConfigurationInvalid,
    EmbedctlError,
    ModelChanged,
    NotSent,
    ProviderError,
    RequestRefused,
    ServerFailed,
    TextRefused,
    Throttled,
)
from embedctl.journal import Journal
from embedctl.journal.batches import Batch, BatchLog, Line, new_mark
from embedctl.planning.packer import PackedRequest
from embedctl.providers._batch import BatchState
from embedctl.records import BatchesProgressed, Limits, Observer, Request, Warned, total_cost

MOST_OPEN = 50
"""Batches in flight, where their provider does not say how many."""

MOST_BATCH_TOKENS = 2_000_000
MOST_BATCH_BYTES = 32 << 20
MOST_LINE_TEXTS = 100
MOST_LINE_TOKENS = 50_000
"""A batch and a line are small enough that what is lost with one of them is little, and large enough to be few."""

LONGEST_POLL = 10.0
"""Times the shortest wait between two looks."""

_POLL_GROWTH = 1.5
_UNSEEN_TRIES = 20
"""How often a batch is made of a file that its provider does not see yet."""

_GIVES_BASE64 = ("openai", "mistral")

_MOST_FRUITLESS = 3
_SURELY_ALL = 4
"""Lines, all of them declined: it is the request that is wrong, not a text of each."""


_CHANGED_HINT = (
    "nothing was written: its batches wait at their provider. --on-drift warn takes what they brought; "
    "`embedctl batch cancel` ends them, and books what they cost"
)


async def _unwatched() -> None:
    """Nobody looks."""


class FullError(Exception):
    """No more can be submitted now, and nobody waits. Internal to batches."""


def line_limits(calls: BatchCalls, known: Limits, *, batch_size: int | None) -> Limits:
    """What one line may hold: little enough that one bad text spoils few others.

    Args:
        known: Limits of one request.
    """
    most = calls.capabilities
    tokens = min(filter(None, (MOST_LINE_TOKENS, most.tokens_per_line, known.tokens)))
    return Limits(
        items=min(filter(None, (MOST_LINE_TEXTS, most.inputs_per_line, known.items, batch_size))),
        tokens=tokens * 8 // 10,
        bytes=known.bytes,
    )


@dataclass(slots=True)
class _Draft:
    """Lines that will be one batch."""

    content: list[bytes] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=list)
    reservations: dict[int, object] = field(default_factory=dict)
    size: int = 0
    texts: int = 0
    tokens: int = 0
    tokenizer_id: str | None = None

    def workspace(self, name: str) -> int:
        if name not in self.workspaces:
            self.workspaces.append(name)
        return self.workspaces.index(name)


class BatchAnswers:
    """Buys lines in batches; what is bought stands in the journal, under the hash of its text.

    Args:
        about: What every batch of this run says of itself (output, job, …).
        known: See `BatchCollector`; likewise `folder`.
        had: Told text hashes that are for no batch (any more).
        patient: Whether there is waiting for anything that takes long.
        deadline_s: So long after the first of them was planned, all batches are cancelled.
        sleep: Waits; raises when the run is told to stop.
        proceed: Called before each create; raises when nothing more may be sent.
        look: Sees to it that the model is what it was; raises ModelChanged when it is not.
        books_all: What a model that changed has brought is read all the same: booked, and kept for who wants it.

    Attributes:
        dirty: Texts have come back without an answer: they are to be planned again.
        cancelling: Nothing is submitted any more, and what is under way is to end.
        since: When the first of them was planned, in Unix seconds; 0 while there is none.
        submitted: Batches that this process has made.
    """

    def __init__(
        self,
        calls: BatchCalls,
        *,
        route: Route,
        leg: Leg,
        log: BatchLog,
        journal: Journal,
        budget: BatchSpendGuard,
        caller: Caller,
        observer: Observer,
        folder: Path,
        about: Batch,
        known: Mapping[UUID, bool],
        had: Callable[[bytes], object],
        patient: bool = True,
        deadline_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]],
        proceed: Callable[[], None] = lambda: None,
        look: Callable[[], Awaitable[None]] = _unwatched,
        books_all: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._leg = leg
        self._endpoint = leg.endpoint
        self._log = log
        self._budget = budget
        self._observer = observer
        self._about = about
        self._collector = BatchCollector(
            calls,
            route=route,
            leg=leg,
            journal=journal,
            budget=budget,
            caller=caller,
            observer=observer,
            folder=folder,
            known=known,
            had=had,
            sleep=sleep,
            clock=clock,
        )
        self._had = had
        self._deadline_s = deadline_s
        self._patient = patient
        self._sleep = sleep
        self._proceed = proceed
        self._watch = look
        self._books_all = books_all
        self._clock = clock
        self._open: list[OpenBatch] = []
        self._draft = _Draft()
        self._cap = leg.endpoint.batch.enqueued_tokens or None
        self._most_tokens = min(MOST_BATCH_TOKENS, self._cap or MOST_BATCH_TOKENS)
        self._not_before = 0.0
        self._refusals = 0
        self._fruitless = 0
        self._verdict: ProviderError | None = None
        self.cancelling = False
        self._over: list[Batch] = []
        self.since = 0.0
        self.dirty = False
        self.submitted = 0

    # what there is

    @property
    def pending(self) -> list[Batch]:
        """Batches that are not over."""
        return [one.batch for one in self._open]

    @property
    def in_flight_tokens(self) -> int:
        """Of all of them."""
        return sum(one.batch.tokens for one in self._open)

    async def take_over(self, batches: Sequence[Batch]) -> None:
        """Go on with what a dead run, or one that did not wait, has under way.

        Raises:
            StorageFailed: It cannot be written down.
        """
        for batch in batches:
            if batch.step in ("planned", "uploaded"):  # it was not made: its texts are planned anew
                await self._drop(OpenBatch(batch))
                continue
            if batch.step == "dropped" or (batch.step == "cleaned" and not batch.refused):
                continue
            await self._put(batch)
            if batch.step in ("collected", "cleaned"):
                self._is_over(batch)
            elif batch.pending:
                one = OpenBatch(batch)
                for number in range(len(batch.lines)):
                    request = batch_lines.stand_in(batch, number)
                    one.reservations[number] = await self._budget.reserve(self._endpoint, request, anyway=True)
                self._open.append(one)
                self.since = min(filter(None, (self.since, batch.since)), default=0.0)

    def _is_over(self, batch: Batch) -> None:
        """What was refused is for no batch: it is asked for online, where the text that is to blame is found."""
        self._had(batch.refused_hashes)
        self._over.append(batch)
        batch.hashes, batch.lines = b"", []  # they stand in the file, and may be many

    # submitting

    async def submit(self, packed: PackedRequest) -> None:
        """Take a line; waits while as much is under way as the provider allows.

        Raises:
            FullError: Nobody waits, and no more can be submitted now.
            BudgetReached: It could pass a limit.
            ProviderError: No batch can be made.
        """
        request = packed.request
        tokens, tokenizer_id = await asyncio.to_thread(usage.exact, self._endpoint, request)
        request = replace(request, tokens=tokens, tokens_each=None)
        draft = self._draft
        number = len(draft.lines)
        try:
            content = self._calls.line(self._about.line_id(number), request.texts, base64=self._base64)
        except TextRefused:
            return  # asked for online, where it has its reason
        if draft.lines and not self._fits(request, tokens, len(content)):
            await self.flush()
            draft = self._draft
            content = self._calls.line(self._about.line_id(0), request.texts, base64=self._base64)
        try:
            reservation = await self._budget.reserve(self._endpoint, request, patient=False)
        except BudgetReached as reached:
            if reached.workspace_id == request.workspace_id:  # a tenant's: its rows have that for a reason, later
                return
            await self.flush()
            if not (self._patient and self._open):
                raise
            reservation = await self._when_money_is_back(request)
            draft = self._draft
            content = self._calls.line(self._about.line_id(0), request.texts, base64=self._base64)
        characters = 0 if request.token_arrays else sum(len(str(text)) for text in request.texts)
        draft.reservations[len(draft.lines)] = reservation
        workspace = draft.workspace(request.workspace_id)
        draft.lines.append(Line(len(request), tokens, request.content_bytes, characters, workspace))
        draft.content.append(content)
        draft.hashes.append(request.hashes)
        draft.size += len(content)
        draft.texts += len(request)
        draft.tokens += tokens
        draft.tokenizer_id = tokenizer_id

    async def _when_money_is_back(self, request: Request) -> object:
        """Wait until batches that are over have given back what was set aside for them."""
        while True:
            try:
                return await self._budget.reserve(self._endpoint, request, patient=False)
            except BudgetReached:
                if not self._open:
                    raise
                if self.cancelling:
                    raise FullError from None
                await self.wait()

    def _fits(self, request: Request, tokens: int, size: int) -> bool:
        draft, most = self._draft, self._calls.capabilities
        return (
            draft.texts + len(request) <= min(self._endpoint.batch.max_inputs, most.max_inputs)
            and len(draft.lines) < most.max_lines
            and draft.tokens + tokens <= self._most_tokens
            and draft.size + size <= min(MOST_BATCH_BYTES, most.max_bytes * 8 // 10)
        )

    @property
    def _base64(self) -> bool:
        """Where it is known to be given: a line that is refused for it would be asked for online."""
        state, endpoint = self._leg.state, self._endpoint
        known = endpoint.place.name in _GIVES_BASE64 or bool(state.base64_works)
        return endpoint.wire.base64 and state.asks_base64 and known

    async def flush(self) -> None:
        """Make a batch of the lines that were taken.

        Raises:
            FullError: Nobody waits, and no more can be submitted now.
            ProviderError: It was not made.
        """
        if not self._draft.lines:
            return
        await self._room(self._draft.tokens)
        draft, self._draft = self._draft, _Draft()
        one = OpenBatch(self._planned(draft), draft.reservations)
        content = b"".join(draft.content)
        draft.content.clear()
        await self._put(one.batch)
        try:
            await self._upload(one, content)
            await self._make(one)
        except (FullError, ProviderError):
            await self._drop(one)
            raise
        except EmbedctlError:  # told to stop
            await self._release(one)
            raise

    def _planned(self, draft: _Draft) -> Batch:
        now = self._clock()
        risk: dict[str, int] = {}
        for line in draft.lines:
            name = draft.workspaces[line.workspace]
            risk[name] = risk.get(name, 0) + line.tokens
        self.since = self.since or now
        return replace(
            self._about,
            mark=new_mark(),
            unit_price=self._budget.price(self._endpoint),
            workspaces=draft.workspaces,
            planned_at=now,
            since=self.since,
            content_bytes=draft.size,
            texts=draft.texts,
            tokens=draft.tokens,
            tokenizer_id=draft.tokenizer_id,
            lines_total=len(draft.lines),
            lines=draft.lines,
            risk=risk,
            hashes=b"".join(draft.hashes),
            result_ids=[],
            refused=[],
        )

    async def _room(self, tokens: int) -> None:
        """Wait until one batch more may be in flight."""
        while not self._has_room(tokens):
            if not self._patient or self.cancelling:
                raise FullError
            await self.wait()

    def _has_room(self, tokens: int) -> bool:
        most = self._calls.capabilities.max_batches or MOST_OPEN
        if self._clock() < self._not_before:
            return False
        if not self._open:
            return True
        return len(self._open) < min(most, MOST_OPEN) and (not self._cap or self.in_flight_tokens + tokens <= self._cap)

    async def _upload(self, one: OpenBatch, content: bytes) -> None:
        file = await self._calls.upload(one.batch.mark, content)
        one.batch.file_id, one.batch.step = file.id, "uploaded"
        await self._put(one.batch)

    async def _make(self, one: OpenBatch) -> None:
        """Create the batch of a file that is uploaded: accepted, rejected for good, or unknown until it is found."""
        batch = one.batch
        unseen = failures = 0
        while True:
            self._proceed()
            batch.step, batch.created_at = "creating", self._clock()
            await self._put(batch)
            outcome = await self._calls.create(batch.file_id or "", batch.mark, base64=self._base64)
            if outcome.kind == "accepted" and outcome.batch is not None:
                self._open.append(one)
                self.submitted += 1
                self._refusals = 0
                await self._made(one, outcome.batch)
                return
            if outcome.kind == "unknown":
                self._open.append(one)
                batch.unanswered_at = self._clock()  # until then it may have been on its way
                await self._put(batch)
                one.interval = self._endpoint.batch.poll_s
                one.next_poll = self._clock() + one.interval
                return
            batch.step = "uploaded"  # surely not made: nothing is at risk
            await self._put(batch)
            error = outcome.error or RequestRefused("the batch was refused")
            if outcome.file_unseen and unseen < _UNSEEN_TRIES:
                unseen += 1
                await self._sleep(min(self._endpoint.batch.poll_s, 1.0 * unseen))
            elif outcome.enqueued_refused:
                self._too_much(batch)
                if not self._patient:
                    raise FullError
                await self._room(batch.tokens)
            elif isinstance(error, Throttled | NotSent | ServerFailed):
                failures += 1
                await self._calls._pause(error, failures)
            else:
                raise error

    def _too_much(self, batch: Batch) -> None:
        """The provider has refused more in flight: less from now on, and later."""
        flying = self.in_flight_tokens
        if flying:
            self._cap = flying
        else:
            self._most_tokens = max(1, min(self._most_tokens, batch.tokens) // 2)
        poll = self._endpoint.batch.poll_s
        self._not_before = self._clock() + min(poll * _POLL_GROWTH**self._refusals, poll * LONGEST_POLL)
        self._refusals += 1

    async def _made(self, one: OpenBatch, state: BatchState) -> None:
        batch = one.batch
        batch.batch_id, batch.step = state.id, "submitted"
        one.interval = self._endpoint.batch.poll_s
        one.next_poll = self._clock() + one.interval
        self._take_in(one, state)
        await self._put(batch)

    def _take_in(self, one: OpenBatch, state: BatchState) -> bool:
        """How it stands now; whether that is news."""
        batch = one.batch
        before = (batch.status, batch.lines_done)
        one.state = state
        batch.status, batch.lines_done = state.status, state.lines_done
        batch.expires_at, batch.results_until = state.expires_at, state.results_until
        return before != (batch.status, batch.lines_done)

    # waiting

    async def wait(self) -> bool:
        """Wait until there is something to look at, and look; whether a batch is over now."""
        now = self._clock()
        due = min((one.next_poll for one in self._open), default=now + self._endpoint.batch.poll_s)
        if not self._open and self._not_before > now:
            due = self._not_before
        if self.deadline is not None and not self.cancelling:
            due = min(due, self.deadline)
        await self._sleep(max(0.0, due - now))
        return await self.poll(all_now=self.heed_deadline())

    @property
    def deadline(self) -> float | None:
        """Unix seconds; counted from the first batch that texts of this output were in."""
        return None if self._deadline_s is None else (self.since or self._clock()) + self._deadline_s

    def heed_deadline(self) -> bool:
        """Whether it has just come: all batches are cancelled when they are looked at next."""
        if self.cancelling or self.deadline is None or self._clock() < self.deadline:
            return False
        self.cancelling = True
        return True

    async def poll(self, *, all_now: bool = False) -> bool:
        """Look at what is due, and collect what is over; whether anything is.

        Raises:
            ProviderError: A key or an id is of no use any more, or no batch is to be made after one that is over now.
                What passes is looked at again later.
        """
        ended = False
        for one in list(self._open):
            if not all_now and self._clock() < one.next_poll:
                continue
            try:
                ended |= await self._look(one)
            except ProviderError as error:
                if error.exit_code != 75 and not isinstance(error, NotSent | AnswerUnusable):
                    raise
                self._observer.notify(Warned("batch_unseen", one.batch.batch_id or one.batch.mark, error.message))
                self._later(one, news=False)
        self._tell()
        if self._verdict is not None:
            raise self._verdict
        return ended

    async def _look(self, one: OpenBatch) -> bool:
        batch = one.batch
        if batch.step == "creating":
            return await self._find(one)
        assert batch.batch_id is not None  # noqa: S101 - it is submitted
        if self.cancelling and not batch.cancelling:
            batch.cancelling = True
            await self._put(batch)
            state = await self._calls.cancel(batch.batch_id)
        else:
            state = await self._calls.state(batch.batch_id)
        news = self._take_in(one, state)
        self._later(one, news=news)
        if state.ended:
            await self._collect(one)
            return True
        if news:
            await self._put(batch, sync=False)
        return False

    def _later(self, one: OpenBatch, *, news: bool) -> None:
        poll = self._endpoint.batch.poll_s
        one.interval = poll if news or not one.interval else min(one.interval * _POLL_GROWTH, poll * LONGEST_POLL)
        one.next_poll = self._clock() + one.interval

    async def _find(self, one: OpenBatch) -> bool:
        """Whether a batch whose create was not answered was made."""
        batch, begun = one.batch, self._clock()
        states, complete = await self._calls.find(batch.mark, batch.file_id, batch.created_at)
        if states:
            for other in states[1:]:
                await self._twin(batch, other)
            await self._made(one, states[0])
            return await self._look(one)
        proven_at = max(batch.created_at, batch.unanswered_at) + self._endpoint.batch.grace_s
        if complete and begun >= proven_at:
            if batch.account != self._endpoint.account:
                raise ConfigurationInvalid(
                    f"a batch may have been made at {self._endpoint.provider} with another key than the one used now",
                    hint="run it with that key: only with it the batch can be found",
                )
            self._open.remove(one)
            await self._drop(one)
            self.dirty = True
            return True
        self._later(one, news=False)
        if complete:  # look again as soon as that proves something
            one.next_poll = min(one.next_poll, proven_at)
        return False

    async def _twin(self, batch: Batch, state: BatchState) -> None:
        """A second batch with the same mark: not wanted, but its lines are paid for as well."""
        if any(one.batch.batch_id == state.id for one in self._open):
            return
        self._observer.notify(Warned("batch_twin", state.id, batch.mark))
        twin = OpenBatch(replace(batch, twin=True, batch_id=state.id, cancelling=True, refused=[], result_ids=[]))
        for number in range(len(batch.lines)):
            request = batch_lines.stand_in(batch, number)
            twin.reservations[number] = await self._budget.reserve(self._endpoint, request, anyway=True)
        self._open.append(twin)
        await self._made(twin, state)
        if not state.ended:
            await self._calls.cancel(state.id)
        twin.next_poll = 0.0

    async def cancel(self) -> None:
        """Ask the provider to end all of them; what was done until then is collected."""
        self.cancelling = True
        await self.poll(all_now=True)

    # collecting

    async def _collect(self, one: OpenBatch) -> None:
        """Read all results of a batch that is over into the journal, each line once.

        It was answered hours after it was ordered: of a model that is another one by now, nothing is read. What was
        bought stays at its provider, under way and at risk, until somebody decides.
        """
        batch = one.batch
        try:
            await self._watch()
        except ModelChanged as changed:
            if not self._books_all:
                changed.hint = _CHANGED_HINT
                raise
            detail = f"{changed.message}; what its batches brought is booked, and only --on-drift warn takes it"
            self._observer.notify(Warned("model_changed", self._endpoint.id, detail))
        found = await self._collector.collect(one)
        state = one.state
        assert state is not None  # noqa: S101 - it has ended
        declined = found.declined if len(found.refused) == len(batch.lines) >= _SURELY_ALL else None
        batch.answered, batch.refused = found.answered, [] if declined else sorted(found.refused)
        batch.result_ids = [one_id for one_id in (state.output_id, state.error_id) if one_id]
        batch.step = "collected"
        await self._put(batch)
        self._open.remove(one)
        self._is_over(batch)
        await self._release(one)
        if declined is not None:
            declined.provider = declined.provider or self._endpoint.provider
            declined.hint = declined.hint or "every line of a batch was declined; --mode online asks text by text"
        verdict = declined or self._judged(batch, state, found)
        if not self.cancelling:  # else there is none after it anyhow
            self._verdict = self._verdict or verdict

    async def _release(self, one: OpenBatch) -> None:
        for reservation in one.reservations.values():
            await self._budget.release(reservation)
        one.reservations.clear()

    def _judged(self, batch: Batch, state: BatchState, found: Collected) -> ProviderError | None:
        """What follows from how a batch ended; why no other is to be made, when its vectors are of no use, its provider
        refuses such batches, or answers no line of them.
        """
        if found.mismatch is not None or batch.twin or not found.cut_off:
            self._fruitless = 0
            return found.mismatch
        self.dirty = True
        if state.enqueued_refused:
            self._too_much(batch)
            return None
        if found.answered or found.refused or state.file_unseen or self.cancelling:
            self._fruitless = 0
            return None
        said = "; ".join(state.errors) or state.status
        provider = self._endpoint.provider
        if state.state == "ended_failed" and state.errors:
            return RequestRefused(f"{provider} refused batch {batch.batch_id}: {said}", provider=provider)
        self._fruitless += 1
        if self._fruitless < _MOST_FRUITLESS:
            return None
        return ServerFailed(
            f"{provider} has ended {self._fruitless} batches one after the other without an answer ({said})",
            hint="run the same command again later, or with --mode online",
            provider=provider,
        )

    # the end

    async def abandon_draft(self) -> None:
        """Lines that no batch was made of: nothing of them is at risk."""
        draft, self._draft = self._draft, _Draft()
        for reservation in draft.reservations.values():
            await self._budget.release(reservation)

    async def give_up(self, why: str) -> None:
        """Nobody will read these batches any more: what they may cost is booked as perhaps billed."""
        for one in list(self._open):
            await self._collector.give_up(one)
            one.batch.step, one.batch.status = "collected", why
            await self._put(one.batch)
            self._open.remove(one)
            self._is_over(one.batch)
            await self._release(one)

    async def clean(self, *, keep_files: bool) -> None:
        """Delete the files of batches whose spending is on its way to the ledger; what cannot be is told, no more."""
        for batch in self._over:
            if batch.step != "collected":
                continue
            if not keep_files:
                try:
                    for file_id in (batch.file_id, *batch.result_ids):
                        if file_id is not None and not (batch.twin and file_id == batch.file_id):
                            await self._calls.delete(file_id)
                except ProviderError as error:
                    self._observer.notify(Warned("batch_files", batch.batch_id or batch.mark, error.message))
                    continue
            batch.step = "cleaned"
            await self._put(batch, sync=False)

    async def _drop(self, one: OpenBatch) -> None:
        """It was surely not made."""
        batch = one.batch
        batch.step = "dropped"
        await self._put(batch)
        await self._release(one)
        if batch.file_id is not None:
            with suppress(ProviderError):  # it costs nothing, and is gone by itself in time
                await self._calls.delete(batch.file_id)

    async def _put(self, batch: Batch, *, sync: bool = True) -> None:
        await asyncio.to_thread(self._log.put, batch, sync=sync)

    def _tell(self) -> None:
        batches = self.pending
        self._observer.notify(
            BatchesProgressed(
                batches=len(batches),
                lines_done=sum(batch.lines_done or 0 for batch in batches),
                lines=sum(batch.lines_total for batch in batches),
                texts=sum(batch.texts for batch in batches),
                tokens=sum(batch.tokens for batch in batches),
                cost_at_risk=total_cost(batch.cost_at_risk() for batch in batches),
                seconds=max(0.0, self._clock() - min((one.planned_at for one in batches), default=self._clock())),
            )
        )
