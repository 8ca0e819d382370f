"""Everything a person sees, and the standard streams. The only door to rich.

Results go to stdout, everything else to stderr. What is said beside a result stops nothing; a result that cannot be
written is an error. What it needs beside the standard library is imported late: `--help` says things too.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import zip_longest
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, ModelChanged, StorageFailed, WrongUsage

if TYPE_CHECKING:
    from io import TextIOWrapper

    from embedctl.records import Event, LimitForeseen, Observer, Waiting
    from embedctl.runs.estimate import Estimate
    from embedctl.runs.receipt import Receipt, Unfinished

Format = Literal["table", "json", "csv", "md"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv", "md")

FORMULA_STARTS = ("=", "+", "-", "@")
"""A spreadsheet would run a text that begins so (OWASP ASVS 1.2.10); an apostrophe before it tells it not to."""

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NEEDS_QUOTES = frozenset(',"\r\n\0')

_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {char: f"\\{char}" for char in "\\|[]`*"})


_above: Callable[[str], None] | None = None


def write_above(write: Callable[[str], None] | None) -> None:
    """What goes to stderr from now on is written by this, over what is drawn there; None: nothing is."""
    global _above
    _above = write


def aside(text: str) -> None:
    """Text on stderr. One that takes no more (a log on a full disk) stops nothing that was going well."""
    (_above or _write_aside)(text)


def _write_aside(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def out(text: str) -> None:
    """Text on stdout.

    Raises:
        StorageFailed: It takes no more.
    """
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:  # a path that is no UTF-8: its own bytes; a stream that takes less than UTF-8 does
            cast("TextIOWrapper", sys.stdout).reconfigure(encoding="utf-8", errors="surrogateescape")
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        raise
    except OSError as refusal:
        raise StorageFailed(f"cannot write to stdout: {refusal.strerror}") from refusal


def stand_in_for_closed() -> None:
    """A stream that was closed (`2>&-`) leads nowhere, else the next file that is opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def let_go() -> None:
    """The end: what a stream does not take is dropped, else the interpreter would fail with it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)


def _silence(stream: TextIO) -> None:
    """What is left in its buffer goes nowhere, and so does all that comes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def safe(text: object) -> str:
    r"""Foreign text made harmless for a terminal: control, escape, bidi and surrogate characters shown as \x.."""
    from embedctl.records import printable

    shown = printable(str(text))
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def notice(text: str) -> None:
    """One line on stderr."""
    aside(f"{safe(text)}\n")


def from_signal(text: str, *, drawn: bool = False) -> None:
    """A line on stderr from a signal handler: past the streams, which may be in the middle of a write.

    Args:
        drawn: Something is drawn there: it stays above, with the cursor shown below.
    """
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{SHOW_CURSOR if drawn else ''}{safe(text)}\n".encode())


SHOW_CURSOR = "\x1b[?25h\n"


def warning(text: str) -> None:
    """One line on stderr that says something is not as it should be."""
    notice(f"warning: {text}")


def error(problem: EmbedctlError, *, as_json: bool) -> None:
    """Print an error: a line and its hint on stderr, or with `--json` one object on stdout."""
    if as_json:
        said = {
            "error": problem.word,
            "message": problem.message,
            "details": list(problem.details),
            "hint": problem.hint,
            "exit_code": problem.exit_code,
        }
        with suppress(StorageFailed):  # on stderr then, as without --json
            result(said)
            return
    notice(f"error: {problem.message}")
    if problem.hint:
        notice(f"hint: {problem.hint}")


def _plain(value: object) -> object:
    """Money as a string, times as ISO 8601 in UTC, bytes as hex."""
    from embedctl.records import format_money

    if isinstance(value, Decimal):
        return format_money(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def result(value: object) -> None:
    """One JSON document on stdout."""
    out(document(value).decode())


def document(value: object) -> bytes:
    """One JSON document, as `--json` prints it."""
    import orjson

    from embedctl.records import printable, to_json

    return _seen(to_json(value, default=_plain, option=orjson.OPT_INDENT_2, spelt=printable)) + b"\n"


def _seen(json: bytes) -> bytes:
    """JSON in which no character is raw that a terminal obeys or nobody sees: escaped, it parses to the same."""
    if json.isascii() and b"\x7f" not in json:
        return json
    text = json.decode()
    if text.replace("\n", "").isprintable():
        return json
    return "".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in text).encode()


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        key: In each row; also what CSV calls the column, unless it has a `name`.
        exact: Its texts are ids, or numbers written out: CSV has them as they are.
        optional: Left out where a terminal has no room for it, the highest first; 0: never.
    """

    key: str
    heading: str
    align: Literal["left", "right"] = "left"
    name: str | None = None
    exact: bool = False
    optional: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A result that has rows.

    Attributes:
        envelope: What `--format json` prints, whole.
        rows: One mapping per row; missing or None shows as "-" (in CSV: empty).
        totals: A last row, or None.
        footer: Lines below, for people; must be in the envelope too (its `warnings`).
    """

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    envelope: Mapping[str, Any]
    title: str | None = None
    totals: Mapping[str, Any] | None = None
    footer: Sequence[str] = field(default=())


def table(content: Table, form: Format) -> None:
    """Print a table on stdout in one of FORMATS."""
    if form not in FORMATS:
        raise WrongUsage(f"unknown format {form!r}", hint=f"one of {', '.join(FORMATS)}")
    if form == "json":
        result(content.envelope)
    elif form == "csv":
        out(_csv(content))
    elif form == "md":
        out(_markdown(content))
    elif sys.stdout.isatty():
        fitting, room = _fitting(content, width())
        out(_text(fitting, room, coloured=_coloured()))
    else:
        out(_text(content))


def width() -> int:
    """Cells of a line on stdout: the terminal's; 100 where it is none."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


INDENT = 2
"""Cells before the lines of a passage."""


def passage(head: str, lines: Sequence[str], marked: Callable[..., str], *, first: bool) -> None:
    """A text that was found, on stdout, set apart from the one before.

    Args:
        marked: A line and `mark` → the line with its matches marked.
    """
    bold = partial(_styled, code=_BOLD) if _coloured() else str
    shown = [bold(safe(head)), *(f"{' ' * INDENT}{marked(safe(line), mark=bold)}" for line in lines)]
    out("\n".join([*([] if first else [""]), *shown]) + "\n")


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _styled(line: str, code: str) -> str:
    return f"\x1b[{code}m{line}\x1b[0m" if line else line


def _cell(value: object, *, absent: str, shown: Callable[[object], str] = safe) -> str:
    from embedctl.records import format_money

    if value is None:
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if absent == "-" else str(value)
    if isinstance(value, Decimal):
        return format_money(value)
    return shown(value)


_csv_is_raw = False


def leave_formulas(raw: bool) -> None:
    """With `--csv-raw` texts of a CSV are as they are, whatever a spreadsheet would make of them."""
    global _csv_is_raw
    _csv_is_raw = raw


def _csv(content: Table) -> str:
    """Every character as it is, for programs; a terminal is shown none that it obeys."""
    shown = safe if sys.stdout.isatty() else str
    columns = content.columns
    rows = [[_csv_cell(column.key if column.name is None else column.name, shown) for column in columns]]
    rows += [[_csv_cell(row.get(column.key), shown, exact=column.exact) for column in columns] for row in content.rows]
    return "".join(f"{','.join(map(_csv_field, row))}\n" for row in rows)


def _csv_cell(value: object, shown: Callable[[object], str], *, exact: bool = False) -> str:
    """For a spreadsheet: a text is no formula, a number is a number, an id is what it is."""
    text = _cell(value, absent="", shown=shown)
    formula = isinstance(value, str) and value.startswith(FORMULA_STARTS) and not _NUMBER.fullmatch(value)
    return f"'{text}" if formula and not exact and not _csv_is_raw else text


def _csv_field(text: str) -> str:
    """In quotes where a reader would see more than one field or row. Source: RFC 4180."""
    if not _NEEDS_QUOTES.isdisjoint(text) or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _markdown_cell(value: object) -> str:
    """For a page: no HTML, link, picture, code or further cell."""
    return _cell(value, absent="-").translate(_MARKDOWN)


def _markdown(content: Table) -> str:
    lines = [
        "| " + " | ".join(_markdown_cell(column.heading) for column in content.columns) + " |",
        "| " + " | ".join("---:" if column.align == "right" else "---" for column in content.columns) + " |",
    ]
    for row in [*content.rows, *([content.totals] if content.totals else [])]:
        cells = (_markdown_cell(row.get(column.key)) for column in content.columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{_markdown_cell(line)}" for line in content.footer)]) + "\n"


def _text(content: Table, room: Mapping[str, int] = MappingProxyType({}), *, coloured: bool = False) -> str:
    """The table as lines.

    Args:
        room: Cells of columns whose texts are wrapped, by key.
    """
    from rich.cells import cell_len

    cells = [
        [_wrapped(text, room.get(column.key)) for text, column in zip(line, content.columns, strict=True)]
        for line in _cells(content)[0]
    ]
    widths = [max(cell_len(piece) for line in cells for piece in line[i]) for i in range(len(content.columns))]

    def padded(text: str, i: int) -> str:
        blanks = " " * (widths[i] - cell_len(text))
        return blanks + text if content.columns[i].align == "right" else text + blanks

    def row(line: list[list[str]], code: str = "") -> str:
        shown = [
            "  ".join(padded(text, i) for i, text in enumerate(pieces)).rstrip()
            for pieces in zip_longest(*line, fillvalue="")
        ]
        return "\n".join(styled(one, code) for one in shown)

    def styled(line: str, code: str) -> str:
        return _styled(line, code) if coloured and code else line

    head, *rows = cells
    lines = [row(head, _BOLD), *map(row, rows[:-1] if content.totals else rows)]
    if content.totals:
        rule = "-" * (sum(widths) + _GAP * (len(widths) - 1))
        lines += [styled(rule, _DIM), row(rows[-1], _BOLD)]
    title = [styled(safe(content.title), _DIM)] if content.title else []
    return "\n".join([*title, *lines, *(styled(safe(line), _YELLOW) for line in content.footer)]) + "\n"


def _wrapped(text: str, room: int | None) -> list[str]:
    """A cell's lines; one where there is room for it."""
    from rich.cells import cell_len

    if room is None or cell_len(text) <= room:
        return [text]
    from rich.console import Console
    from rich.text import Text

    return [line.plain.strip() for line in Text(text).wrap(Console(), room)]


_BOLD, _DIM, _YELLOW = "1", "2", "33"
_GAP = 2
_LEAST_CELLS = 12
"""A column of text is not made narrower than this."""


def _cells(content: Table) -> tuple[list[list[str]], list[int]]:
    """The headings and all rows as text, and how wide each column is."""
    from rich.cells import cell_len

    rows = [*content.rows, *([content.totals] if content.totals else [])]
    cells = [[_cell(row.get(column.key), absent="-") for column in content.columns] for row in rows]
    cells.insert(0, [safe(column.heading) for column in content.columns])
    return cells, [max(cell_len(line[i]) for line in cells) for i in range(len(content.columns))]


def _fitting(content: Table, width: int) -> tuple[Table, dict[str, int]]:
    """The table for so many cells a line, and the cells of each column whose texts are wrapped.

    Where it is wider, it goes without optional columns, and its longest texts take several lines: none is cut.
    """
    left_out = []
    while _over(content, width) > 0 and (least := max(content.columns, key=lambda column: column.optional)).optional:
        left_out.append(least.heading)
        content = replace(content, columns=[column for column in content.columns if column is not least])
    texts = {column.key: size for column, size in zip(content.columns, _cells(content)[1], strict=True)
             if column.align == "left" and size > _LEAST_CELLS}  # fmt: skip
    too_much = _over(content, width)
    while too_much > 0 and any(size > _LEAST_CELLS for size in texts.values()):
        longest = max(texts, key=lambda key: texts[key])
        texts[longest] -= 1
        too_much -= 1
    footer = [*content.footer, *([f"no room for: {', '.join(left_out)}"] if left_out else [])]
    return replace(content, footer=footer), texts


def _over(content: Table, width: int) -> int:
    """How many cells too wide it is."""
    return sum(_cells(content)[1]) + _GAP * (len(content.columns) - 1) - width


class _Screen:
    """Stderr for rich: what it does not take stops nothing."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        _write_aside(text)
        return len(text)

    def flush(self) -> None:
        """Done with each text."""

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


def can_be_drawn_on(stream: TextIO) -> bool:
    """Whether lines of it can be drawn anew."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def live_progress(described: Callable[[], tuple[str, float | None, Sequence[str]]], elapsed_s: float) -> Any:
    """Rich's progress on stderr, not yet started: a bar and some lines below, drawn anew a few times a second.

    Args:
        described: The headline, the share that is done (None: nobody knows), and the lines below.

    Returns:
        A `rich.progress.Progress`; its `above` prints a text over it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Display(Progress):
        def get_renderables(self) -> Any:
            if not self.tasks:  # it asks before there is one
                return
            headline, share, lines = described()
            task = self.tasks[0]
            task.description, task.total = safe(headline), None if share is None else 1.0
            task.completed = share or 0.0
            yield self.make_tasks_table([task])
            for line in filter(None, lines):
                yield Text(f"  {safe(line)}", no_wrap=True, overflow="ellipsis")

        def above(self, text: str) -> None:
            self.console.print(Text(text.removesuffix("\n")), soft_wrap=True)

        def start(self) -> None:
            super().start()
            self.console.show_cursor(True)  # whoever kills the process finds it where it was

    display = Display(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=Console(file=cast("TextIO", _Screen()), highlight=False),
        refresh_per_second=5,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    display.add_task("", total=None)
    display.tasks[0].start_time = display.get_time() - elapsed_s
    return display


class TerminalObserver:
    """Says on stderr what happens: warnings unless quiet, everything else with -v, progress on a line of its own.

    Args:
        notices: Whether choices are said; programs, who asked for JSON, have not asked for these.
    """

    def __init__(
        self, *, verbose: bool = False, quiet: bool = False, notices: bool = True, progress: Observer | None = None
    ) -> None:
        self._verbose = verbose
        self._quiet = quiet
        self._notices = notices and not quiet
        self._progress = progress

    def notify(self, event: Event) -> None:
        """Say it, when it is to be said."""
        if self._progress is not None:
            self._progress.notify(event)
        if (words := sentence(event)) is None:
            return
        if is_warning(event):
            if not self._quiet:
                warning(words)
        elif self._verbose or (self._notices and is_notice(event)):
            notice(words)


LONG_WAIT_S = 5.0
"""A wait that somebody who looks at the screen wonders about: it is a warning."""

_CONCERNS = {
    "damaged_part": "{subject} is damaged: its rows are embedded again",
    "other_ledger": "what an interrupted run spent here is counted in the ledger it ran under: {subject}",
    "key_file": "{detail}",
    "not_registered": "`batch list` will call this run interrupted: {detail}",
    "budgets_unknown": "nobody knows how budgets stand: {detail}",
    "not_ingested": "usage is spooled, not in the ledger yet: {detail}",
    "ledger": "{detail}",
    "duplicate_ids": "{count:,} rows have an id that another row has, the first is {subject}",
    "cache": "the {subject} is not used: {detail}; `embedctl cache clear` makes a new one",
    "learned_file": "{detail}",
    "input": "{detail}",
    "foreign_journal": "{count:,} journal files here were not made by this user's embedctl: they are set aside as "
    "{subject}, nothing of them is used or counted",
    "folder_gone": "{subject} is gone, with what a killed run kept there: what that run spent is counted all the same "
    "({count:,} attempts)",
    "damaged_journal": "{count:,} bytes of {subject} cannot be read: what was spent for them is counted as "
    "unconfirmed, and their texts are bought again",
    "set_aside": "a damaged or foreign state file is set aside as {subject}",
    "model_changed": "{detail}",
    "model_version": "{detail}",
    "older_space": "{subject} was begun by an older version, whose spaces say nothing of a local model's tokenizer and "
    "pooling: it is gone on with as it is, and --overwrite makes it anew",
    "canary": "whether {subject} is still the model it was is not known: {detail}",
    "other_model": "{subject} says that it answers from {detail}: is it the model that was asked for?",
    "input_type_lost": "{subject}: {detail}",
    "bad_file": "left out: {detail}",
    "bad_row": "skipped: row {subject}: {detail}",
    "left_out": "left out: {subject}: {detail}",
    "telemetry": "telemetry: {detail}",
    "count_cache": "the token count cache {subject} is not used: {detail}; tokens are counted here",
    "store_usage": "what the job spent belongs to the ledger it was begun under: `embedctl usage ingest --from "
    "{subject}` takes it in",
    "batch_mode": "{subject}: {detail}",
    "batch_unseen": "how batch {subject} stands is not known now: {detail}",
    "batch_twin": "the provider has a second batch {subject} with the same mark: it is cancelled, and what it did is "
    "counted",
    "batch_line": "a result of batch {subject} is passed over: {detail}",
    "batch_files": "files of batch {subject} stay at the provider: {detail}",
    "few_shards": "{count:,} shards are left to do: no more workers are started; --shard-rows makes smaller ones",
    "worker_died": "worker {subject} died{detail}: another one takes its place",
    "workers_waiting": "{count} workers have not begun: no machine of the Ray cluster may have --ray-cpus CPUs free",
    "input_differs": "the input is not what an interrupted run read: it is planned anew, known texts are reused",
}


def sentence(event: Event) -> str | None:
    """An event in words; None for those that have a place of their own, or are not worth a line."""
    from embedctl import records

    match event:
        case records.Waiting(_, _, seconds):
            return waiting(event, seconds)
        case records.Paced(endpoint, per_second, unit):
            if per_second is None:
                return f"{endpoint} refuses no more than single requests: nothing is held back"
            return f"{endpoint} refuses more: {_rate(per_second, unit)}, rising"
        case records.GaveUp(endpoint, reason):
            return f"{endpoint} is not asked again in this run: {reason}"
        case records.FellBack(endpoint, instead_of):
            return f"fallback to {endpoint} from {instead_of}"
        case records.LimitLearned(endpoint, limits):
            most = [f"{limits.items:,} texts"] if limits.items else []
            most += [f"{limits.bytes:,} bytes"] if limits.bytes else []
            return f"{endpoint}: a request takes at most {' and '.join(most)}"
        case records.BudgetLow(name, spent, amount):
            nearly = "" if spent >= amount else "nearly "
            return f"{name} is {nearly}used up: {records.format_usd(spent)} of {records.format_usd(amount)} USD"
        case records.LimitForeseen():
            return _foreseen(event)
        case records.ColumnsChosen(text, row_id, candidate):
            asked = f" (is {candidate} the id? --id-column {candidate})" if candidate else ""
            return f"text: {text}, id: {row_id or 'row number'}{asked}"
        case records.AtRisk(requests, cost):
            return f"at risk if a worker dies: {requests:,} requests" + (
                "" if not cost else f", about {records.format_cents(cost)} USD"
            )
        case records.RowFailed(failure):
            return f"{'skipped' if failure.skipped else 'failed'}: row {failure.id}: {failure.message}"
        case records.Warned(concern, subject, detail, count):
            return _CONCERNS[concern].format(subject=subject, detail=detail, count=count)
    return None


def _foreseen(limit: LimitForeseen) -> str:
    """What a run that is only estimated would meet, and how it would end."""
    from embedctl.records import format_usd

    stops = "rows of it would fail (`budget`, exit 3)" if limit.by_row else "the run would stop with 4, to be resumed"
    more = "" if limit.cost is None else f", about {format_usd(limit.cost)} more"
    amounts = f"{format_usd(limit.spent)} of {format_usd(limit.amount)} USD"
    match limit.outcome:
        case "unpriced":
            return (
                f"{limit.name} cannot hold without a price of the model: the run would be refused with 2; "
                "`embedctl prices set` tells one, or --allow-unpriced"
            )
        case "used_up":
            ends = "all its rows would fail (`budget`, exit 3)" if limit.by_row else "the run would be refused with 4"
            return f"{limit.name} is used up: {amounts}; {ends if limit.blocks else 'it only warns'}"
        case "passed":
            if limit.workspace is None:
                amounts, more = f"about {format_usd(limit.cost or limit.spent)} of {format_usd(limit.amount)} USD", ""
            return f"{limit.name} would be passed: {amounts}{more}; {stops if limit.blocks else 'it only warns'}"
    return f"{limit.name} would be nearly used up: {amounts}{more}"


def waiting(event: Waiting, seconds: float) -> str:
    """Why requests wait, and for how long from now."""
    from embedctl.records import format_duration

    return f"{event.endpoint}: {event.reason.rstrip('.')}; retry in {format_duration(seconds)}"


def _rate(per_second: float, unit: str) -> str:
    """A rate in words: "12 requests/s", "3 texts/min"."""
    for amount, word in ((per_second, "s"), (per_second * 60, "min")):
        if amount >= 1:
            return f"{amount:,.0f} {unit}/{word}" if amount >= 10 else f"{amount:.1f} {unit}/{word}"
    return f"{per_second * 3600:.0f} {unit}/h"


def is_warning(event: Event) -> bool:
    """Whether it is said without -v."""
    from embedctl import records

    if isinstance(event, records.Waiting):
        return event.seconds >= LONG_WAIT_S
    if isinstance(event, records.Paced):
        return event.first
    if isinstance(event, records.Warned):
        return event.concern not in ("learned_file", "left_out")
    return isinstance(event, records.BudgetLow | records.LimitForeseen | records.RowFailed)


def is_notice(event: Event) -> bool:
    """Whether it is said without -v, and nothing is wrong: a choice that is not the obvious one."""
    from embedctl import records

    if isinstance(event, records.AtRisk):
        return True
    return isinstance(event, records.ColumnsChosen) and (event.text.lower() != "text" or event.row_id is None)


_MOST_NAMED = 8
"""Workspaces in a receipt for people."""
_REASONS = {
    "too_long": ("longer than the model takes", "--on-too-long truncate, chunk, mean or skip"),
    "too_large": ("larger than --max-row-bytes", "--max-row-bytes N"),
    "blank": ("no text", "--on-blank skip"),
    "null": ("no text", "--on-blank skip"),
    "invalid_utf8": ("no UTF-8", "--encoding NAME"),
    "bad_row": ("cannot be read", "--on-bad-row skip leaves them out"),
    "bad_value": ("a value that does not fit its column", "--on-bad-row skip leaves them out"),
    "no_id": ("no id", "--id-column NAME"),
    "not_allowed": ("the workspace may not use the model", "`embedctl config show` lists who may"),
    "bad_workspace": ("no name of a workspace", "lower-case letters, digits, dots and dashes"),
    "budget": ("the workspace's budget is used up", "`embedctl usage budget list`"),
    "text_refused": ("refused by the provider", "--retry-failed tries again"),
    "unusable_vector": ("no usable vector came", "--retry-failed tries again"),
    "provider_failed": ("the provider failed at it", "--retry-failed tries again"),
}
"""Why a row failed: in words, and the flag or command that helps."""


def _reason(reason: str, *, every_row: bool) -> tuple[str, str]:
    """What a row's reason means, and what helps; where no row can be read, it is not the rows that are wrong."""
    if reason == "bad_row" and every_row:
        return "cannot be read", "not one can: is the first line the header? --no-header, --delimiter, --format"
    return _REASONS.get(reason, ("", ""))


def receipt(done: Receipt) -> None:
    """The end of a run, for people, on stderr; nothing of one that an error ended before there was a row."""
    if done.error is not None and not (done.rows or done.requests or done.batch or done.unfinished):
        return
    if done.batch is not None and done.batch["pending"]:
        notice(under_way(done.batch))
    elif done.unfinished is not None:
        notice(f"stopped after {done.seconds:.1f} s: {kept(done.unfinished, done.error)}")
    else:
        notice(_receipt_rows(done))
    for reason, count in done.failed_reasons.items():
        words, help_ = _reason(reason, every_row=count == done.rows > 1)
        about = f": {words} ({help_})" if words else ""
        notice(f"failed: {count:,} {reason}{about}")
    notice(_receipt_usage(done))
    if done.batch is not None and done.batch["saved"]:
        from embedctl.records import format_cents

        notice(f"batches: {format_cents(done.batch['saved'])} USD less than online")
    if not _pays_alone(done):
        notice(f"paid in USD by {_shares([(one['workspace'], one['cost']) for one in done.workspaces])}")
    if done.output and done.output_is_there and done.error is None:
        space = f"{done.model}, {done.dimensions} dimensions" if done.dimensions else done.model
        notice(f"output: {done.output} ({space})")
    if done.failures:
        notice(f"failures: {done.failures}")
    if done.left_out["count"]:
        reasons = ", ".join(f"{count:,} {_LEFT_OUT[why]}" for why, count in done.left_out["reasons"].items())
        notice(f"{several(done.left_out['count'], 'file')} left out ({reasons}); -v lists them")


_LEFT_OUT = {
    "other_kind": "of another kind",
    "other_format": "of another format",
    "binary": "binary",
    "link_outside": "behind a link that leads out",
    "unreadable": "unreadable",
    "odd_name": "whose names cannot be read",
}


def under_way(batch: Mapping[str, Any]) -> str:
    """What is under way at a provider: "2 batches under way, 40 texts, 0.12 USD at risk; the same command collects"."""
    from embedctl.records import format_cents

    many = "1 batch" if batch["pending"] == 1 else f"{batch['pending']:,} batches"
    cost = "cost unknown" if batch["cost_at_risk"] is None else f"{format_cents(batch['cost_at_risk'])} USD at risk"
    return f"{many} under way, {several(batch['texts'], 'text')}, {cost}; the same command collects what is done"


def kept(unfinished: Unfinished, error: EmbedctlError | None = None) -> str:
    """What a run that stopped has kept, and what is left: "kept 40 of 60 texts; 20 to go; the same command goes on".

    Args:
        error: Why it stopped; of a model that is another one, what to do is for its hint to say.
    """
    from embedctl.records import format_cents
    from embedctl.runs.receipt import RESUMABLE

    goes_on = "" if isinstance(error, ModelChanged) else "; the same command goes on"
    if goes_on and error is not None and error.exit_code not in RESUMABLE:
        goes_on = "; once that is mended, the same command goes on"
    if unfinished.left is None:
        return f"kept {several(unfinished.kept, 'text')}{goes_on and goes_on + ' with the rest'}"
    about = "" if unfinished.is_exact else "about "
    cost = "" if unfinished.cost is None else f", about {format_cents(unfinished.cost)} USD"
    total = several(unfinished.kept + unfinished.left, "text")
    return f"kept {unfinished.kept:,} of {about}{total}; {about}{unfinished.left:,} to go{cost}{goes_on}"


def failed_rows(done: Receipt) -> None:
    """What `-q` says of a run that came to its end without some rows: one line, so that cron sends a mail."""
    named = [
        f"{count:,} {reason}"
        + (f" ({_reason(reason, every_row=count == done.rows > 1)[1]})" if reason in _REASONS else "")
        for reason, count in done.failed_reasons.items()
    ]
    why = f": {'; '.join(named)}" if named else ""
    where = f"; see {done.failures}" if done.failures else ""
    notice(f"error: {done.failed:,} of {several(done.rows, 'row')} failed{why}{where}")


def estimate(found: Estimate) -> None:
    """What a run would take, for people, on stdout: with --dry-run it is the result."""
    spread = found.tokens_high - found.tokens
    about = f"about {found.tokens:,} (±{spread:,}, {found.counted:,} counted)" if spread else f"{found.tokens:,}"
    left_out = [
        f"{count:,} {word}"
        for count, word in (
            (found.reused, "reused"),
            (found.duplicates, "duplicates"),
            (found.failed, "rows would fail"),
            (found.skipped, "rows skipped"),
        )
        if count
    ]
    lines = [
        f"{several(found.rows, 'row')}: {', '.join([several(found.texts, 'text') + ' to send', *left_out])}",
        f"{several(found.requests, 'request')} to {found.model}, {about} tokens",
        _estimate_cost(found),
    ]
    if found.by_row and found.workspaces:
        lines.append(f"to be paid in USD by {_shares([(one.workspace, one.cost) for one in found.workspaces])}")
    if found.seconds is not None:
        from embedctl.records import format_duration

        lines.append(f"at least {format_duration(found.seconds)} at the limits per minute")
    if found.seconds_batch is not None:
        from embedctl.records import format_duration

        lines.append(f"in batches: within {format_duration(found.seconds_batch)}, most take minutes")
    if found.mode == "batch":
        lines.append("it would be sent in batches")
    elif found.mode_reason is not None:
        lines.append(f"it would be asked online: {found.mode_reason}")
    out("\n".join([*map(safe, lines), "nothing was sent"]) + "\n")


def _estimate_cost(found: Estimate) -> str:
    from embedctl.records import format_money

    if found.per_hour is not None:
        return f"cost unknown: {format_money(found.per_hour)} USD for each hour that its machine runs"
    if found.cost is None or found.cost_low is None or found.cost_high is None:
        provider = found.model.partition(":")[0]
        return (
            f"cost unknown: no price (`embedctl prices set {found.model} USD_PER_MILLION` tells one, "
            f"or price_as under [providers.{provider}] whose prices apply)"
        )
    exact = found.cost_low == found.cost_high
    spread = "" if exact else f" ({format_money(found.cost_low)} to {format_money(found.cost_high)})"
    batch = f", {format_money(found.cost_batch)} USD through the provider's batch interface" if found.cost_batch else ""
    return f"cost {format_money(found.cost)} USD{spread}{batch}"


def several(count: int, noun: str) -> str:
    """A count and its noun: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _receipt_rows(done: Receipt) -> str:
    parts = [f"{several(done.rows, 'row')}: {several(done.vectors, 'vector')}"]
    parts += [
        f"{count:,} {word}"
        for count, word in (
            (done.reused, "reused"),
            (done.duplicates, "duplicate" if done.duplicates == 1 else "duplicates"),
            (done.failed, "failed"),
            (done.skipped, "skipped"),
        )
        if count
    ]
    return ", ".join(parts) + f" in {done.seconds:.1f} s"


def who_pays(workspace: str, column: str | None) -> str:
    """The workspace that pays; or, where each row names its own: "per row (tenant)"."""
    return workspace if column is None else f"per row ({column})"


def _pays_alone(done: Receipt) -> bool:
    """Whether the one workspace that was named pays for all, or nobody pays."""
    return [one["workspace"] for one in done.workspaces] in ([], [done.workspace])


def _shares(shares: Sequence[tuple[str, Decimal | None]]) -> str:
    """Who pays what: "acme 0.12, beta 0.01 and 7 more workspaces"."""
    from embedctl.records import format_money

    paid = [f"{who} {'unknown' if cost is None else format_money(cost)}" for who, cost in shares[:_MOST_NAMED]]
    more = len(shares) - len(paid)
    return f"{', '.join(paid)}{f' and {more:,} more workspaces' if more else ''}"


def _receipt_usage(done: Receipt) -> str:
    from embedctl.records import format_money

    share = f" ({done.tokens_estimated:,} of them estimated)" if done.tokens_estimated else ""
    why = "no price" if done.tokens or not done.vectors else "the provider gave no usage"
    cost = f"cost unknown: {why}" if done.cost is None else f"cost {'at least ' if done.cost_is_lower_bound else ''}"
    cost += "" if done.cost is None else f"{format_money(done.cost)} USD"
    risk = f", up to {format_money(done.cost_at_risk)} USD unconfirmed" if done.cost_at_risk else ""
    saved = f", {format_money(done.cost_saved)} USD saved" if done.cost_saved else ""
    served = f" by {', '.join(done.providers)}" if done.providers else ""
    asked = f" instead of {done.fallback_from}" if done.fallback_from else ""
    by_row = done.workspace_column is not None and not done.workspaces
    payer = who_pays(done.workspace, done.workspace_column) if by_row else f"by {done.workspace}"
    return (
        f"{several(done.requests, 'request')}{served}{asked}, {several(done.tokens, 'token')}{share}, {cost}{risk}"
        f"{saved}{f', paid {payer}' if _pays_alone(done) else ''}"
    )
