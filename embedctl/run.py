"""One run from order to receipt: what is there already, the pipeline, the record for the next run, the ledger."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import UUID

from embedctl import before as befores
from embedctl import chunk, locks, money, plan, read, serving, storage, tokens, write
from embedctl.assemble import Purchases
from embedctl.before import Before
from embedctl.call import CallPoint
from embedctl.errors import DeadlinePassed, EmbedctlError, InputChanged, OutputRefused, WrongUsage, worst
from embedctl.events import Caller
from embedctl.intake import Intake, Wording
from embedctl.journal import Journal
from embedctl.known import Known
from embedctl.lanes import Lanes, check_usable
from embedctl.ledger import prices, spool
from embedctl.ledger.paths import LedgerPaths
from embedctl.options import Options
from embedctl.output import FileOutput, FolderOutput, Output, StreamOutput
from embedctl.pipeline import Pipeline, Segments, Steps, Stop
from embedctl.receipt import Receipt, Rows, Spending
from embedctl.records import Limits, Space, utc_now, uuid7
from embedctl.resilience.retry import Policy
from embedctl.serving import Chain, Offer
from embedctl.settings import Settings

_SHAPING = frozenset(
    "text_column id_column keep split encoding chunk_size chunk_overlap input_type dimensions dimension_policy "  # noqa: SIM905
    "on_too_long on_blank vector_type dtype max_row_bytes workspace_column model provider".split()
)
"""Options that decide what stands in the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a command asks for.

    Attributes:
        output: A file, a folder, or None for JSON lines on `stream`.
        resume: The command that continues the run, for people.
        vectors: How `stream` shows vectors.
    """

    settings: Settings
    inputs: Sequence[str]
    kind: Literal["file", "folder", "stream"]
    output: Path | None = None
    job: str | None = None
    overwrite: bool = False
    retry_failed: bool = False
    resume: str | None = None
    vectors: Literal["float", "base64"] = "float"
    stream: BinaryIO | None = None
    stdin: BinaryIO | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told what happens meanwhile.

    Attributes:
        rows: Rows handed over so far, requests in flight, spending so far.
        told: Why it waits, and what it learnt; for -v.
        warned: What is not as it should be.
    """

    rows: Callable[[Rows, int, Spending], None] = lambda rows, in_flight, spending: None
    told: Callable[[str], None] = lambda line: None
    warned: Callable[[str], None] = lambda line: None


class Run:
    """A run while it is under way."""

    def __init__(self, order: Order, watch: Watch | None = None) -> None:
        self.order = order
        self.watch = watch or Watch()
        self.run_id: UUID = uuid7()
        self.stop = Stop()
        self.rows = Rows()
        self.spending = Spending(self._price)
        self._options = order.settings.options
        self._book = prices.load(prices.price_texts(self._ledger_paths.price_file))
        self._now = utc_now()
        self._space: Space | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bound = ""
        self._seen_at_start = ""

    @property
    def _ledger_paths(self) -> LedgerPaths:
        paths = self.order.settings.paths
        return LedgerPaths(paths.ledger, paths.spool)

    def _price(self, provider: str, model: str, price_as: str | None) -> Decimal | None:
        if price_as == "free":
            return Decimal(0)
        found = self._book.price_at(price_as, model, at=self._now, place=provider)
        return found.usd_per_million if found else None

    def ask_to_stop(self, reason: EmbedctlError) -> None:
        """Stop sending, from a signal handler or another thread."""
        if self._loop is None:
            raise reason
        self._loop.call_soon_threadsafe(self.stop.because, reason)

    def execute(self) -> Receipt:
        """The whole run; its spending is in the ledger or on its way when this returns or raises.

        Raises:
            EmbedctlError: Why nothing was done. Once a run has begun, its end is in the receipt instead.
        """
        started = time.monotonic()
        chain = serving.chain(self.order.settings)
        check_usable(chain.first)
        self._check_money(chain)
        output = self._output()
        with ExitStack() as stack:
            self._space = chain.first.space()
            made = _prepare_folder(output)
            stack.enter_context(locks.hold(output.state / "lock", command=self.order.resume or ""))
            failure: EmbedctlError | None = None
            try:
                source = read.open_input(self.order.inputs, self._read_options(output), stdin=self.order.stdin)
                before = self._before(output, source, chain)
                if before.finished is not None and not self.order.retry_failed:
                    self.rows = before.finished
                    self.rows.reused, self.rows.duplicates = self.rows.vectors, 0
                else:
                    asyncio.run(self._flow(output, source, chain, before))
            except EmbedctlError as error:
                if not self.spending.attempts and not self.rows.read and error.exit_code not in (75, 130, 143):
                    _tidy(output, made=made)
                    raise
                failure = error
            else:
                _tidy(output, made=True)
        self._ingest()
        return self._receipt(output, failure, time.monotonic() - started, chain)

    def _check_money(self, chain: Chain) -> None:
        """With --max-cost every offer needs a price.

        Raises:
            WrongUsage: One has none.
        """
        if self._options.max_cost is None or self._options.allow_unpriced:
            return
        for offer in chain.offers:
            if self._price(offer.provider, offer.wire_model, offer.price_as) is None:
                raise WrongUsage(
                    f"{offer.id} has no price, so --max-cost cannot hold",
                    hint="set one with `embedctl prices set`, or --allow-unpriced",
                )

    def _output(self) -> Output:
        order = self.order
        if order.kind == "stream":
            assert order.stream is not None  # noqa: S101 - the command gives it with this kind
            state = order.settings.paths.journal / str(self.run_id)
            return StreamOutput(state, order.stream, order.vectors, told=self.watch.warned)
        assert order.output is not None  # noqa: S101 - likewise
        if order.kind == "file":
            return FileOutput(order.output)
        return FolderOutput(order.output)

    def _read_options(self, output: Output) -> read.ReadOptions:
        options = self._options
        keep: Any = options.keep if options.keep in ("all", "none") else tuple(options.keep.split(","))
        return read.ReadOptions(
            text_column=options.text_column,
            id_column=options.id_column,
            keep=keep,
            split=options.split,
            encoding=options.encoding,
            max_row_bytes=options.max_row_bytes,
            spool=output.state,
        )

    def _before(self, output: Output, source: read.Source, chain: Chain) -> Before:
        shaping = {f.name: getattr(self._options, f.name) for f in fields(Options) if f.name in _SHAPING}
        space = chain.first.space()
        shaping["space"] = space.space_id if space else chain.first.id
        self._bound = befores.binding(source.fingerprint(), shaping)
        about: dict[str, Any] = {"overwrite": self.order.overwrite, "reuse": self._options.reuse}
        if isinstance(output, FileOutput):
            found = befores.of_file(output, space, self._bound, **about)
        elif isinstance(output, FolderOutput):
            found = befores.of_folder(output, space, self._bound, **about)
        else:
            return Before()
        if found.space is None and not self.order.overwrite:
            offers = [offer.space for offer in chain.offers]
            found.space = befores.space_of_journal(found, offers, self.order.output or output.state)
        if self.order.retry_failed:
            found.failed = {}
        return found

    async def _flow(self, output: Output, source: read.Source, chain: Chain, before: Before) -> None:
        """The pipeline with everything it needs, and the record of how it ended."""
        self._loop = asyncio.get_running_loop()
        options, offer = self._options, chain.first
        deadline = time.monotonic() + options.deadline if options.deadline is not None else None
        allowances = [money.Allowance("--max-cost", options.max_cost)] if options.max_cost is not None else []
        till = money.Till(lambda one: self._price(one.provider, one.wire_model, one.price_as), allowances)
        concurrency = offer.ceiling.concurrency
        packer = plan.Packer(Limits(), purpose=options.purpose, token_arrays=self._sends_tokens(offer, source))

        def limits(known: Limits) -> None:
            packer.limits = plan.packed_limits(
                known, batch_size=options.batch_size, dimensions=offer.dimensions, concurrency=concurrency
            )

        lanes = Lanes(
            chain,
            hints_file=self.order.settings.paths.home / "hints.json",
            mode=options.fallback,
            max_wait_s=options.max_wait,
            jitter=random.random,
            connections=concurrency,
            sleep=self._sleep,
            changed=limits,
            told=self.watch.told,
        )
        limits(lanes.limits())
        segments, purchases = Segments(), Purchases()
        journal = Journal.open(
            output.state / "journal",
            spool=lambda spool_id, events: spool.publish(self.order.settings.paths.spool, spool_id, events),
            recovered=before.recovered,
            sync_intents=any(one.price_as != "free" for one in chain.offers),
            dimensions=offer.dimensions or 0,
        )
        call = CallPoint(
            lanes,
            journal,
            till,
            Caller(run_id=self.run_id, job_id=self.order.job, tags=options.tag),
            policy=Policy(retries=options.retries, max_wait_s=options.max_wait, deadline=deadline),
            space=before.space,
            sleep=self._sleep,
            watch=self.spending.count,
            told=self.watch.told,
            proceed=self._proceed,
        )
        finished = False
        with Known(output.state) as known, Known(output.state) as seen:
            befores.index(before, before.space.space_id if before.space else None, known, segments, purchases)
            columns = write.row_columns(
                source.id_type, source.schema_kept, text=options.keep != "none" and not source.is_tokens
            )
            intake = Intake(
                options=options,
                wording=wording(offer, options, source),
                packer=packer,
                known=known,
                seen=seen,
                columns=lambda block, at, chunks, texts: write.row_batch(block, at, chunks, texts, columns),
                failed_before=before.failed,
            )
            pipeline = Pipeline(
                Steps(
                    blocks=source.blocks(),
                    intake=intake,
                    call=call,
                    journal=journal,
                    output=output,
                    purchases=purchases,
                    parts=before.parts,
                    segments=segments,
                    done=before.done.get,
                    layout=lambda width: write.Layout(
                        columns=columns, dimensions=width, dtype=options.dtype, vector_type=options.vector_type
                    ),
                    facts=lambda written, counts: self._facts(call.space or offer.space(), source, written, counts),
                    dimensions=offer.dimensions,
                    concurrency=concurrency,
                    watch=lambda rows, in_flight: self.watch.rows(rows, in_flight, self.spending),
                ),
                self.stop,
            )
            timer = asyncio.create_task(self._watch_deadline(deadline))
            self._record(output, before, source, "running")
            try:
                self.rows = pipeline.rows
                await pipeline.run()
                self._check_unchanged(source)
                layout = None if pipeline.width is None else pipeline.layout(pipeline.width)
                output.finish(
                    layout, lambda written: self._facts(call.space or offer.space(), source, written, self.rows)
                )
                finished = True
            finally:
                self._space = call.space or offer.space()
                timer.cancel()
                await journal.close(published=finished)
                await lanes.aclose()
                if isinstance(output, FileOutput | StreamOutput):
                    output.close()
            self._record(output, before, source, "complete")

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless the run is told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.stop.asked.wait()
        except TimeoutError:
            return
        self._proceed()

    def _proceed(self) -> None:
        if self.stop.reason is not None:
            raise self.stop.reason

    async def _watch_deadline(self, deadline: float | None) -> None:
        if deadline is not None:
            await asyncio.sleep(max(0.0, deadline - time.monotonic()))
            self.stop.because(DeadlinePassed("the --deadline has come", hint="run the same command again to go on"))

    def _sends_tokens(self, offer: Offer, source: read.Source) -> bool:
        return source.is_tokens and offer.takes_tokens and not offer.prefix

    def _check_unchanged(self, source: read.Source) -> None:
        """Raise InputChanged when a file is not what it was at the start."""
        if befores.binding(source.fingerprint(), {}) != self._seen_at_start:
            raise InputChanged("the input changed while it was read", hint="run the same command again")

    def _facts(self, space: Space | None, source: read.Source, written: int, counts: Rows) -> bytes:
        if space is None:
            raise OutputRefused("no vector was made, so nobody knows how wide one is")
        extra = {"binding": self._bound, "counts": asdict(counts)}
        return write.metadata(space, run_id=str(self.run_id), source=source.fingerprint(), rows=written, extra=extra)

    def _record(self, output: Output, before: Before, source: read.Source, state: str) -> None:
        if state == "running":
            self._seen_at_start = befores.binding(source.fingerprint(), {})
        if not isinstance(output, FolderOutput):
            return
        befores.write_record(
            output.state,
            {
                "run_id": str(self.run_id),
                "job": self.order.job,
                "state": state,
                "binding": self._bound,
                "replacing": output.replacing if state == "running" else False,
                "parts": len(output.parts()),
                "space": self._space.as_dict() if self._space else None,
                "space_id": self._space.space_id if self._space else None,
                "counts": asdict(self.rows),
                "at": utc_now(),
            },
        )

    def _ingest(self) -> None:
        """Take what is spooled into the ledger; when it cannot be now, the next command does."""
        from embedctl.ledger.ingest import ingest  # duckdb takes longer to import than a small run takes

        try:
            ingest(self._ledger_paths, wait_s=5, now=utc_now())
        except EmbedctlError as error:
            self.watch.warned(f"usage is spooled, not in the ledger yet: {error.message}")

    def _receipt(self, output: Output, failure: EmbedctlError | None, seconds: float, chain: Chain) -> Receipt:
        rows, spent = self.rows, self.spending
        codes = [3] if rows.failed else []
        code = worst([*codes, *([failure.exit_code] if failure else [])])
        if failure is not None and failure.exit_code in (130, 143):
            code = failure.exit_code
        unit = self._price(chain.first.provider, chain.first.wire_model, chain.first.price_as)
        each = spent.tokens / rows.vectors if rows.vectors and spent.tokens else None
        saved = Decimal(0) if unit == 0 else None
        if unit and each:
            saved = prices.cost(round(each * (rows.reused + rows.duplicates)), unit)
        known_cost = spent.cost if spent.priced or not spent.unpriced else None
        return Receipt(
            run_id=str(self.run_id),
            job=self.order.job,
            workspace=self._options.workspace,
            model=chain.first.id,
            providers=tuple(spent.providers),
            fallback_from=spent.fallback_from,
            dimensions=self._space.dimensions if self._space else None,
            dimension_policy=chain.first.policy,
            space_id=self._space.space_id if self._space else None,
            usage_source=spent.usage_source,
            rows=rows.read,
            vectors=rows.vectors,
            reused=rows.reused,
            duplicates=rows.duplicates,
            failed=rows.failed,
            skipped=rows.skipped,
            requests=len(spent.requests),
            attempts=spent.attempts,
            tokens=spent.tokens,
            tokens_estimated=spent.tokens_estimated,
            tokens_unknown=spent.tokens_unknown,
            cost=known_cost,
            cost_is_lower_bound=spent.unpriced,
            cost_at_risk=spent.cost_at_risk,
            cost_saved=saved,
            seconds=round(seconds, 3),
            output=str(self.order.output) if self.order.output else None,
            failures=str(output.failures) if output.failures else None,
            exit_code=code,
            retryable=failure.retryable if failure else False,
            resume=self.order.resume if failure is not None and failure.exit_code in (4, 75, 130, 143) else None,
            error=failure,
        )


def wording(offer: Offer, options: Options, source: read.Source) -> Wording:
    """What the model wants of texts, from its offer and the options."""
    counter = tokens.counter(offer.tokenizer, offer.fallback_tokenizer)
    measure = tokens.splitter_source(offer.tokenizer, offer.fallback_tokenizer)
    special = counter.count([""])[0] + (chunk.tokens(offer.prefix, measure) if offer.prefix else 0)
    limit = offer.max_tokens - special if offer.max_tokens else None
    asked = options.chunk_size is not None or options.chunk_overlap is not None
    splitters: dict[bool, chunk.Splitter] = {}

    def chunked(text: str, row_id: str | int) -> list[str]:
        markdown = source.kind == "text" and chunk.is_markdown(str(row_id))
        if markdown not in splitters:
            size = options.chunk_size or chunk.DEFAULT_SIZE
            overlap = options.chunk_overlap
            if overlap is None:
                overlap = chunk.DEFAULT_OVERLAP * size // chunk.DEFAULT_SIZE
            fitting = chunk.capacity(size, overlap, limit)
            splitters[markdown] = chunk.splitter(measure, *fitting, markdown=markdown)
        return chunk.chunks(text, splitters[markdown])

    most = limit or chunk.DEFAULT_SIZE
    return Wording(
        prefix=offer.prefix,
        max_tokens=offer.max_tokens,
        counter=counter,
        count_all=offer.local,
        takes_tokens=offer.takes_tokens,
        chunked=chunked if source.is_document or asked else None,
        pieces=lambda text: chunk.pieces(text, most, measure),
        shortened=lambda text: chunk.truncated(text, most, measure),
    )


def _prepare_folder(output: Output) -> bool:
    """Make the state folder; whether it was not there.

    Raises:
        OutputRefused: It cannot be made, or an output is in the way that is not ours.
    """
    if isinstance(output, FolderOutput):
        _check_folder(output)
    elif isinstance(output, FileOutput) and output.path.is_dir():
        raise OutputRefused(f"{output.path} is a folder", hint="-o names a file; `batch run` writes folders")
    made = not output.state.is_dir()
    storage.DISK.make_folder(output.state)
    return made


def _check_folder(output: FolderOutput) -> None:
    if output.folder.exists() and not output.folder.is_dir():
        raise OutputRefused(f"{output.folder} is a file", hint="-o names a folder; `embed` writes files")
    if output.folder.is_dir() and not output.state.is_dir() and any(output.folder.iterdir()):
        raise OutputRefused(
            f"{output.folder} is not empty and not embedctl's", hint="choose a new folder: nothing in it is touched"
        )


def _tidy(output: Output, *, made: bool) -> None:
    """Remove the state of an output that is done, or of one that this run made and did nothing for."""
    if made and not isinstance(output, FolderOutput):
        shutil.rmtree(output.state, ignore_errors=True)
