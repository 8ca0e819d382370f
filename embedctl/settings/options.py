"""Every option of a run, once: the flags of `embed` and `batch run`, the keys of JOB.toml and of the settings files.

Flags are spelt with dashes, keys with underscores. `cli.flags` makes the flags of it, `settings` checks the keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from decimal import Decimal
from typing import Any, Literal

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.records import InputType, Purpose, printable
from embedctl.settings.ray_address import check_ray
from embedctl.settings.share import check_share
from embedctl.settings.tables import MOST_CONCURRENCY, is_amount

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
"""Workspace and job names: safe as file names, labels and SQL values."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\Z")


def option(
    default: Any,
    description: str,
    *,
    short: str | None = None,
    metavar: str | None = None,
    only: str | None = None,
) -> Any:
    """A field of Options: its default, and what its flag says in --help.

    Args:
        only: The one command that has the flag.
    """
    about = {"help": description, "short": short, "metavar": metavar, "only": only}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is asked to do. Times in seconds, sizes in tokens, money in USD."""

    model: str | None = option(None, "Model, as NAME or PROVIDER:NAME. [default: the bundled one]", short="-m")
    provider: str | None = option(None, "Provider to use; must agree with a prefix of --model.")
    workspace: str = option("default", "Workspace to charge; stored on every ledger row.", short="-w")
    workspace_column: str | None = option(None, "Table column that names the workspace of each row.")
    tag: Mapping[str, str] = option({}, "K=V kept with every usage event; repeatable.", metavar="K=V")
    purpose: Purpose = option("ingest", "A label in the ledger, for reports; the vectors stay the same.")
    sql: str | None = option(
        None, "Embed the rows of a query, which DuckDB reads: one SELECT or FROM, in its own order.", metavar="QUERY"
    )
    attach: Mapping[str, str] = option(
        {}, "With --sql: a DuckDB file that the query reads as NAME; repeatable.", metavar="NAME=PATH"
    )
    text_column: str | None = option(
        None,
        "Table column to embed; of several (title,body) a blank line makes one. [default: found when unambiguous]",
    )
    template: str | None = option(
        None,
        r"Text of several table columns, like '{title}\n\n{body}'; \t, {{ and }} too. Null is empty text; a row "
        "without any part is blank.",
    )
    id_column: str | None = option(None, "Table column of row ids. [default: found when unambiguous]")
    keep: str = option("all", "Other columns to keep: all, none, or names with commas.")
    split: Literal["document", "lines", "paragraphs"] = option("document", "Unit of a text file that becomes one row.")
    encoding: str = option("utf-8", "Encoding of text files.")
    format: str | None = option(
        None,
        "Format of the inputs: text, csv, tsv, jsonl, json, parquet or arrow. [default: by name, else by content]",
        metavar="NAME",
    )
    delimiter: str | None = option(None, "CSV: what stands between values. [default: as the first rows look]")
    header: bool | None = option(None, "CSV: whether the first row is names. [default: as the first rows look]")
    chunk_size: int | None = option(None, "Tokens per chunk. [default: 1000 for documents, none for table rows]")
    chunk_overlap: int | None = option(None, "Tokens that neighbouring chunks share. [default: 200 for documents]")
    input_type: InputType = option("document", "What the model is told: it embeds queries and documents differently.")
    dimensions: int | None = option(None, "Number of dimensions. [default: the model's own]")
    dimension_policy: Literal["reduce", "pad", "ignore"] = option(
        "reduce",
        "When the model does not support --dimensions: truncate and renormalise, pad with zeros, or ignore.",
    )
    force: bool = option(False, "Cut vectors of models not trained for it; replaces no file, as --overwrite does.")
    on_too_long: Literal["fail", "skip", "truncate", "chunk", "mean"] = option(
        "fail",
        "A text that exceeds the model's limit: fail the row, skip it, truncate it, chunk it, or average its chunks.",
    )
    on_blank: Literal["skip", "fail"] = option("skip", "An empty or blank text: skip the row or fail it.")
    on_bad_row: Literal["fail", "skip"] = option("fail", "A row that cannot be read: fail it or skip it.")
    on_bad_file: Literal["fail", "skip"] = option(
        "fail", "A file that cannot be read: stop the run, or leave the file out."
    )
    fallback: Literal["same-space", "any", "off"] = option(
        "same-space", "Providers that may take over when the first is unavailable."
    )
    max_cost: Decimal | None = option(
        None, "Maximum cost of the run in USD; it stops before this is exceeded.", metavar="USD"
    )
    allow_unpriced: bool = option(False, "With --max-cost: allow models without a price.")
    batch_size: int | None = option(None, "Maximum texts per request. [default: the model's limits]")
    concurrency: int = option(16, "Maximum requests in flight.")
    rpm: int | None = option(None, "Requests per minute, 0 = no limit. [default: config or catalog]")
    tpm: int | None = option(None, "Tokens per minute, 0 = no limit. [default: config or catalog]")
    burst: int = option(10, "Requests allowed in a burst before --rpm applies.")
    retries: int = option(6, "Maximum retries per request.")
    timeout: float = option(120.0, "Timeout of one request, e.g. 90 or 2m.", metavar="TIME")
    max_wait: float = option(600.0, "Maximum wait for a rate-limited provider.", metavar="TIME")
    deadline: float | None = option(None, "Stop after this time; the run stays resumable.", metavar="TIME")
    mode: Literal["online", "batch", "auto"] = option(
        "online", "Ask at once, or through the provider's Batch API, cheaper within a day.", only="batch run"
    )
    wait: bool | None = option(
        None,
        "Wait for batches (and, with a store, for other workers); else exit 75. [default: on a terminal; with a store]",
        only="batch run",
    )
    batch_min_inputs: int = option(
        1000, "With --mode auto: fewer texts than so many are asked for at once.", only="batch run"
    )
    keep_remote_files: bool = option(False, "Leave the files of batches at the provider.", only="batch run")
    workers: int = option(
        1, "Worker processes on this machine, which share --rpm, --tpm, --max-cost and budgets.", only="batch run"
    )
    shard_rows: int | None = option(
        None,
        "With a store or --workers: rows that one worker takes at a time, whole files or row groups. "
        "[default: 1000000, with --workers fewer]",
        only="batch run",
    )
    lease: float = option(
        60.0, "With a store: a worker that was silent for so long is taken over.", metavar="TIME", only="batch run"
    )
    shard: str | None = option(
        None,
        "With a store: only every N-th shard, from the I-th (0 is the first), and 1/N of --rpm, --tpm and --max-cost; "
        "auto (or auto/N) as the array of Slurm, Cloud Run, AWS Batch or Kubernetes says.",
        metavar="I/N",
        only="batch run",
    )
    share: bool = option(
        True,
        "With a store: workers may share the job; off for one that does not refuse to overwrite.",
        only="batch run",
    )
    state: str | None = option(
        None, "With a store: folder for scratch, which may vanish. [default: in EMBEDCTL_HOME]", metavar="DIR",
        only="batch run",
    )  # fmt: skip
    engine: Literal["local", "ray"] = option(
        "local", "With a store: where its workers run: on this machine, or on a Ray cluster.", only="batch run"
    )
    ray_address: str | None = option(
        None,
        "With --engine ray: auto (the cluster that this machine is part of), HOST:PORT of one, or local: one that ends "
        "with the command.",
        metavar="ADDRESS",
        only="batch run",
    )
    ray_cpus: int = option(1, "With --engine ray: CPUs that Ray counts for each worker.", only="batch run")
    insecure: bool = option(False, "Allow plain http to another machine: texts and keys are sent unencrypted.")
    vector_type: Literal["fixed", "list"] = option(
        "fixed", "Parquet type of the vectors: fixed-size or variable-size list."
    )
    dtype: Literal["float32", "float16", "int8"] = option("float32", "Number type of the vectors in the output.")
    reuse: bool = option(True, "Reuse vectors of unchanged texts from the existing output.")
    canary: Literal["daily", "always", "off"] = option(
        "daily", "How often three fixed texts are embedded again, to see whether the model is still the same."
    )
    on_drift: Literal["stop", "warn"] = option(
        "stop", "A model that makes other vectors than it did: stop before anything is written, or warn."
    )
    locked: bool = option(False, "Buy nothing when anything differs from the output's space.lock.")
    unique_ids: bool = option(False, "Fail on duplicate ids.")
    cache: bool | None = option(None, "Use the shared vector cache. [default: on for `embed` with a paid model]")
    max_row_bytes: int = option(104_857_600, "Maximum size of a row in bytes; a longer one fails.")
    store_option: Mapping[str, str] = option(
        {}, "How an object store is reached, like endpoint=https://…; repeatable.", metavar="K=V"
    )


def seconds(text: str | float) -> float:
    """A duration in seconds: 90, "90", "90s", "2m", "1h30m".

    Raises:
        WrongUsage: It is none.
    """
    if isinstance(text, int | float | Decimal) and not isinstance(text, bool):
        value = float(text)
    else:
        match = _DURATION.fullmatch(str(text).strip())
        if not match or not any(match.groups()):
            raise WrongUsage(f"not a duration: {text!r}", hint="like 90, 90s, 2m or 1h30m")
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + rest
    if not 0 <= value < 10**9:
        raise WrongUsage(f"not a duration: {text!r}", hint="like 90, 90s, 2m or 1h30m")
    return value


def checked_name(name: str, what: str) -> str:
    """`name` itself, when it is a legal workspace or job name.

    Raises:
        WrongUsage: It is not.
    """
    if not NAME_PATTERN.match(name):
        raise WrongUsage(
            f"bad {what} name: {name!r}",
            hint="lower-case letters, digits, dots, dashes and underscores; at most 63; first a letter or digit",
        )
    return name


_LEAST = {
    "chunk_size": 1, "chunk_overlap": 0, "dimensions": 1, "batch_size": 1, "concurrency": 1, "rpm": 0, "tpm": 0,
    "burst": 1, "retries": 0, "max_cost": 0, "max_row_bytes": 1, "batch_min_inputs": 0,
    "workers": 1, "shard_rows": 1, "lease": 1, "ray_cpus": 0,
}  # fmt: skip
_MOST = 10**15
MOST_WORKERS = 1024
MOST_TAGS, MOST_TAG = 20, 200
"""How many, and characters of each: they stand in every usage event."""

DURATIONS = frozenset({"timeout", "max_wait", "deadline", "lease"})
"""Options that are times: given as `seconds` reads them."""


def _shown(value: float | Decimal) -> str:
    """A number that is out of range; Python does not write out thousands of digits."""
    return str(value) if -(10**30) < value < 10**30 else "as many digits"


def flag(name: str) -> str:
    """How an option is spelt on the command line."""
    return "--" + name.replace("_", "-")


def check(options: Options, *, spelt: Callable[[str], str] = flag) -> Options:
    """`options` itself, when its values agree with each other.

    Args:
        spelt: How an option is named in the message.

    Raises:
        WrongUsage: A number is out of range, or two options contradict.
    """
    checked_name(options.workspace, "workspace")
    for name, least in _LEAST.items():
        value = getattr(options, name)
        most = {"concurrency": MOST_CONCURRENCY, "workers": MOST_WORKERS}.get(name, _MOST)
        if isinstance(value, Decimal) and not is_amount(value):
            raise WrongUsage(f"{spelt(name)} must be an amount, not {value}")
        if value is not None and value < least:
            raise WrongUsage(f"{spelt(name)} must be at least {least}, not {_shown(value)}")
        if value is not None and value > most:
            raise WrongUsage(f"{spelt(name)} must be at most {most}, not {_shown(value)}")
    too_long = any(len(word) > MOST_TAG for pair in options.tag.items() for word in pair)
    if len(options.tag) > MOST_TAGS or too_long:
        raise WrongUsage(f"{spelt('tag')}: at most {MOST_TAGS} tags, of at most {MOST_TAG} characters each")
    for entry in fields(options):
        value = getattr(options, entry.name)
        words = [*value, *value.values()] if isinstance(value, Mapping) else [value]
        if any(isinstance(word, str) and printable(word) != word for word in words):
            raise WrongUsage(f"{spelt(entry.name)} is no text: a byte of it is not UTF-8")
    if options.template is not None and options.text_column is not None:
        raise WrongUsage(f"{spelt('template')} and {spelt('text_column')} both say what the text is")
    if options.shard is not None:
        check_share(options.shard, spelt("shard"))
    check_ray(options.engine, options.ray_address, spelt)
    if options.timeout <= 0:
        raise WrongUsage(f"{spelt('timeout')} must be more than 0", hint="like 90, 90s or 2m")
    if options.chunk_size is not None and (options.chunk_overlap or 0) >= options.chunk_size:
        raise WrongUsage(
            f"{spelt('chunk_overlap')} {options.chunk_overlap} must be smaller than "
            f"{spelt('chunk_size')} {options.chunk_size}"
        )
    return options
