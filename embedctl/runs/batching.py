"""`--mode batch|auto`: what a run buys through its provider's Batch API before it does anything else.

A slice stays open for seconds, a batch for hours. So the input is planned twice: here, all of it, text by text, for
lines of batches, which stand in the journal under the hashes of their texts; then, once no batch is under way any more,
by the steps of `pipeline.py`, which find the vectors there like those of any interrupted run, and ask online for what
is left: refused lines, and what came back when the deadline had passed. No text is ever asked for online while it is in
a batch that is not over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import field, replace
from decimal import Decimal
from pathlib import Path

from embedctl import inputs
from embedctl.dataclass import dataclass
from embedctl.embedding.batch_answers import BatchAnswers, FullError
from embedctl.embedding.batch_lines import TIER
from embedctl.errors import BatchesPending, BudgetReached, ConfigurationInvalid, OutputRefused
from embedctl.journal import Trust, batches
from embedctl.journal.batches import Batch, Found
from embedctl.journal.rescue import JOURNAL
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.planning.packer import PackedRequest
from embedctl.providers._batch_places import BatchApi, batch_api
from embedctl.records import Space, format_duration, total_cost
from embedctl.routing.endpoint import Endpoint
from embedctl.runs.estimate import Estimate
from embedctl.settings.options import Options
from embedctl.storage import Disk

SHORTEST_DEADLINE_S = 3600.0
"""Batches take minutes as a rule, and promise a day: with less time than this, `auto` asks online."""


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """How a run gets its answers.

    Attributes:
        api: Of the provider; None: online.
        min_inputs: Fewer texts than so many are asked for online all the same.
        why: What speaks against batches, where they were not chosen.
    """

    api: BatchApi | None
    min_inputs: int = 0
    why: str = ""


def choice(endpoint: Endpoint, options: Options, source: inputs.Source | None, prices: RunPrices) -> ModeChoice:
    """Whether batches can be used, and are.

    Raises:
        ConfigurationInvalid: They are asked for, and cannot be used here.
    """
    if options.mode == "online":
        return ModeChoice(None)
    try:
        api = usable(endpoint, source)
    except ConfigurationInvalid as refusal:
        if options.mode == "batch":
            raise
        return ModeChoice(None, why=refusal.message)
    if options.mode == "batch":
        return ModeChoice(api)
    if options.deadline is not None and options.deadline < SHORTEST_DEADLINE_S:
        return ModeChoice(None, why=f"--deadline is shorter than {format_duration(SHORTEST_DEADLINE_S)}")
    if prices.of(endpoint, TIER) is None and prices.of(endpoint) != 0:
        return ModeChoice(None, why=f"nobody knows what a batch at {endpoint.provider} costs")
    return ModeChoice(api, options.batch_min_inputs)


def usable(endpoint: Endpoint, source: inputs.Source | None) -> BatchApi:
    """The Batch API of an endpoint.

    Raises:
        ConfigurationInvalid: There is none, or it does not take such an input.
    """
    if endpoint.local:
        raise ConfigurationInvalid(f"{endpoint.id} runs here: there is no Batch API", hint="run it with --mode online")
    if endpoint.per_hour is not None:
        raise ConfigurationInvalid(
            f"{endpoint.id} costs by the hour, not by the token: batches are no cheaper",
            hint="run it with --mode online",
        )
    api = batch_api(endpoint.place, endpoint.wire_model, endpoint.batch.wanted)
    sends_tokens = source is not None and source.is_tokens and endpoint.takes_tokens and not endpoint.prefix
    if sends_tokens and not api.capabilities.takes_tokens:
        raise ConfigurationInvalid(
            f"the Batch API of {endpoint.provider} takes no token arrays", hint="run it with --mode online"
        )
    return api


def with_choice(found: Estimate, endpoint: Endpoint, source: inputs.Source, chosen: ModeChoice) -> Estimate:
    """An estimate that says how its run would get its answers, and how long batches may take."""
    try:
        window_s: float | None = usable(endpoint, source).capabilities.window_s
    except ConfigurationInvalid:
        window_s = None
    mode, why = ("online", chosen.why) if chosen.api is None else ("batch", "")
    if mode == "batch" and found.texts < chosen.min_inputs:
        mode, why = "online", f"{found.texts:,} texts are fewer than --batch-min-inputs {chosen.min_inputs:,}"
    return replace(found, mode=mode, mode_reason=why or None, seconds_batch=window_s)


def left(state: Path, copies: Path, trust: Trust) -> Found:
    """What earlier runs of an output have of batches."""
    return batches.take_over(state / JOURNAL, copies, trust)


def forget(found: Found, disk: Disk) -> None:
    """Remove what is said of batches that are all over."""
    for path in found.paths:
        disk.unlink(path)


def check_same_space(found: Found, endpoint: Endpoint, space: Space | None) -> None:
    """Batches that are under way must be of the space that is asked for now.

    Raises:
        OutputRefused: They are not.
    """
    space = space or endpoint.space()
    for one in found.pending:
        other = space is not None and one.space_id is not None and one.space_id != space.space_id
        if other or one.provider != endpoint.provider:
            raise OutputRefused(
                f"a batch of {one.provider}:{one.model} is under way for this output, "
                f"and {endpoint.id} is asked for now",
                hint="run it with the options it began with, or end it: `embedctl batch cancel JOB`",
            )


@dataclass(slots=True)
class Bought:
    """What came of the batches of a run, for its receipt.

    Attributes:
        chosen: They were used.
        pending: Those that are not over.
        submitted: Made by this run.
        why: Why they were not used.
    """

    chosen: bool = False
    pending: list[Batch] = field(default_factory=list)
    submitted: int = 0
    why: str = ""

    @property
    def texts(self) -> int:
        """That wait."""
        return sum(one.texts for one in self.pending)

    @property
    def tokens(self) -> int:
        """Of these."""
        return sum(one.tokens for one in self.pending)

    @property
    def cost_at_risk(self) -> Decimal | None:
        """USD that they come to at most; None when nobody knows."""
        return total_cost(one.cost_at_risk() for one in self.pending)

    def as_dict(self, saved: Decimal | None) -> dict[str, object] | None:
        """For the receipt; None where batches had nothing to do with it.

        Args:
            saved: USD that it cost less than online.
        """
        if not self.chosen:
            return None
        return {
            "submitted": self.submitted,
            "pending": len(self.pending),
            "texts": self.texts,
            "tokens": self.tokens,
            "cost_at_risk": self.cost_at_risk,
            "saved": saved,
        }


async def buy(
    answers: BatchAnswers,
    lines: Callable[[], AsyncIterator[PackedRequest]],
    *,
    patient: bool,
    submits: bool,
    min_inputs: int = 0,
) -> None:
    """Collect what is over, submit what is in no batch, and wait until none is under way.

    Args:
        patient: Else there is no waiting.
        min_inputs: Fewer texts than so many are left for later.

    Raises:
        BatchesPending: Batches are under way, and nobody waits.
        EmbedctlError: Why it stopped; everything is in the journal.
    """
    answers.heed_deadline()
    await answers.poll(all_now=True)
    while True:
        full, short = False, None
        if submits and not answers.cancelling:
            try:
                full = not await _submit(answers, lines(), min_inputs)
            except BudgetReached as reached:
                short = reached
        if answers.heed_deadline():
            await answers.poll(all_now=True)
        if (answers.pending or full) and not patient and not (answers.cancelling and not answers.pending):
            raise _pending(answers)
        while answers.pending:
            await answers.wait()
        if short is not None:
            raise short
        if not submits or answers.cancelling or not (answers.dirty or full):
            return


async def _submit(answers: BatchAnswers, lines: AsyncIterator[PackedRequest], min_inputs: int) -> bool:
    """Put every text that nobody has into a batch; False when not all of them could be."""
    answers.dirty = False
    held: list[PackedRequest] = []
    texts = 0
    try:
        async for packed in lines:
            if texts < min_inputs:
                held.append(packed)
                texts += len(packed.request)
                if texts < min_inputs:
                    continue
                for one in held:
                    await answers.submit(one)
                held.clear()
            else:
                await answers.submit(packed)
        await answers.flush()
    except FullError:
        return False
    finally:
        await answers.abandon_draft()
    return True


def _pending(answers: BatchAnswers) -> BatchesPending:
    waiting = answers.pending
    many = "1 batch is" if len(waiting) == 1 else f"{len(waiting)} batches are"
    texts = sum(one.texts for one in waiting)
    if not waiting:
        return BatchesPending(
            "no more batches can be in flight at the provider now", hint="run the same command again later"
        )
    return BatchesPending(
        f"{many} under way at {waiting[0].provider}, with {texts:,} texts",
        hint="run the same command again: it collects what is done",
    )


__all__ = ["Bought", "ModeChoice", "buy", "check_same_space", "choice", "forget", "left", "usable"]
