"""The tables of a settings file, as values. Pure.

A key of a file is a field here; a field without a default is a key that must be there. What its value must be beside
its type is the field's rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from decimal import Decimal
from typing import Any, Literal

from embedctl.dataclass import dataclass

Rule = Callable[[Any], str | None]
"""What is wrong with a value, as words to follow its key ("must be …"); None when nothing is. It never shows it."""

MOST_CONCURRENCY = 10_000
"""Requests in flight: each takes a task and may take a connection."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LONG_WORD = re.compile(r"[A-Za-z0-9]{20,}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_LONGEST_DAYS = 36_500
_MOST_PLACES = 100
_MOST_DECIMALS = 9
_OF_HTTP = frozenset({"connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"})


def between(least: float | Decimal, most: float | Decimal) -> Rule:
    """A number in a range, both ends included; NaN is in none."""

    def complaint(value: Any) -> str | None:
        is_number = not isinstance(value, Decimal) or is_amount(value)
        return None if is_number and least <= value <= most else f"must be between {least} and {most}"

    return complaint


def is_amount(value: Decimal) -> bool:
    """Whether it is a number that can be written out: "1e-99999999" would be a hundred million digits."""
    return value.is_finite() and -_MOST_PLACES <= int(value.as_tuple().exponent) <= _MOST_PLACES


def names_a_variable(value: str) -> str | None:
    """The name of an environment variable, and not the key that it should hold."""
    word = _LONG_WORD.search(value)
    if _VARIABLE.match(value) and not (word and any(letter.isdigit() for letter in word[0])):
        return None
    return "must be the name of an environment variable, never what that variable holds"


def are_headers(value: Mapping[str, str]) -> str | None:
    """Header fields that HTTP can carry and that are not its own. Source: RFC 9110, 5.1, 5.5 and 7.6.1."""
    for name, content in value.items():
        if wrong := is_header_name(name):
            return f"must hold headers, but a name {wrong}"
        if not (content.isascii() and content.isprintable()):
            return "must hold values of printable ASCII"
    return None


def is_header_name(value: str) -> str | None:
    """A header's name."""
    if not _TOKEN.match(value):
        return "must be a header's name: letters, digits and dashes"
    return "must be no header that HTTP itself needs" if value.lower() in _OF_HTTP else None


def keeps_counts(value: bool | str) -> str | None:
    """A switch, or the address of a Redis."""
    if isinstance(value, bool) or re.match(r"(rediss?://|unix:///)\S+\Z", value):
        return None
    return "must be true, false, or the address of a Redis (redis://, rediss://, unix://)"


def hourly(value: Decimal) -> str | None:
    """A price per hour, exact in millionths of an hour as the ledger keeps amounts."""
    is_exact = is_amount(value) and int(value.as_tuple().exponent) >= -_MOST_DECIMALS
    return (
        None
        if is_exact and 0 < value <= 10**6
        else f"must be an amount above 0, with at most {_MOST_DECIMALS} decimals"
    )


def ruled(default: Any, rule: Rule) -> Any:
    """A field with a rule; None needs none."""
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """`[providers.NAME]`: a place that serves models, or changes to a built-in one.

    Attributes:
        models: Canonical name → name on the wire.
        timeout_s: Seconds one request may take.
        price_as: Whose catalog prices apply; a place of one's own has none until told.
        batch: Whether it speaks its protocol's Batch API; None: as the protocol says for the place.
        batch_grace_s: How long a batch may be missing from its provider's list before it was surely never made.
        batch_poll_s: Seconds between two looks at a batch; up to ten times as many, the longer nothing changes.
        batch_max_inputs: Texts of one batch.
        batch_enqueued_tokens: Of all batches in flight together; 0 = no limit.
        free: This place costs nothing.
        per_hour: USD per hour that its machine runs, whatever it is asked; calls are charged their share of its time.
        insecure: Allow plain http to a host that is not loopback.
        body, each, vectors, index, ids, tokens, error, path, key_header: The json protocol's template and JMESPath
            expressions.
        jwt_secret_env, jwt_subject, pin: tldw's: a token minted per run, and the provider that must answer.
        options: Whatever else the protocol understands (providers/PROTOCOL.py).
    """

    protocol: str | None = None
    base_url: str | None = None
    api_key_env: str | None = ruled(None, names_a_variable)
    models: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    requests_per_minute: int | None = ruled(None, between(0, 10**9))
    tokens_per_minute: int | None = ruled(None, between(0, 10**15))
    concurrency: int | None = ruled(None, between(1, MOST_CONCURRENCY))
    burst: int | None = ruled(None, between(1, 10**9))
    timeout_s: float | None = ruled(None, between(0.001, 10**9))
    price_as: str | None = None
    free: bool | None = None
    per_hour: Decimal | None = ruled(None, hourly)
    region: str | None = None
    insecure: bool = False
    ca_file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, metadata={"rule": are_headers})
    batch: bool | None = None
    batch_grace_s: float = ruled(120.0, between(0, 10**6))
    batch_poll_s: float = ruled(30.0, between(0.001, 86_400))
    batch_max_inputs: int = ruled(10_000, between(1, 10**9))
    batch_enqueued_tokens: int | None = ruled(None, between(0, 10**15))
    user: str | None = None
    api_version: str | None = None
    max_items: int | None = ruled(None, between(1, 10**9))
    max_tokens: int | None = ruled(None, between(1, 10**9))
    max_bytes: int | None = ruled(None, between(1, 10**12))
    jwt_secret_env: str | None = ruled(None, names_a_variable)
    jwt_subject: str | None = None
    pin: str | None = None
    path: str | None = None
    body: Mapping[str, Any] | str | None = None
    vectors: str | None = None
    index: str | None = None
    ids: str | None = None
    tokens: str | None = None
    error: str | None = None
    each: Mapping[str, Any] | str | None = None
    key_header: str | None = ruled(None, is_header_name)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """`[allow]`: None allows all."""

    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """`[workspaces.NAME] budget`: amount in USD per period."""

    amount: Decimal = field(metadata={"rule": between(0, 10**12)})
    period: Literal["day", "week", "month"] = "month"
    action: Literal["warn", "block"] = "block"
    timezone: str = "UTC"
    warn_ratio: Decimal = ruled(Decimal("0.8"), between(Decimal("0.001"), 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceSettings:
    """`[workspaces.NAME]`: what a workspace may use, and how much."""

    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    budget: BudgetSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """`[token_usage]`: how tokens are counted where the provider does not.

    Attributes:
        cache: Whether counts are kept across runs; or the address of a Redis that keeps them, which may hold a password
            and is never shown.
    """

    fallback_tokenizer: str = "tiktoken:cl100k_base"
    cache: bool | str = field(default=False, repr=False, metadata={"rule": keeps_counts})
    cache_ttl_s: int = ruled(86_400, between(1, _LONGEST_DAYS * 86_400))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """`[models."PROVIDER:MODEL"]`."""

    usage_mode: Literal["native", "fallback", "auto"] | None = None
    fallback_tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """`[serve.jwt]`: JSON Web Tokens that a server takes in place of keys.

    Attributes:
        secret_env: Variable with what tokens are signed with, at least 32 bytes; `_FILE` names a file that holds it.
        issuer, audience: What `iss` and `aud` must be; None: they are not looked at.
        workspace_claim: Says who pays.
        role_claim: Says tenant, admin or metrics; None: every token is a tenant's.
        lifetime_s: Between `iat` and `exp` at most.
        leeway_s: By which clocks may differ.
    """

    secret_env: str = field(metadata={"rule": names_a_variable})
    algorithms: tuple[Literal["HS256", "HS384", "HS512"], ...] = ("HS256",)
    issuer: str | None = None
    audience: str | None = None
    workspace_claim: str = "sub"
    role_claim: str | None = None
    lifetime_s: int = ruled(86_400, between(1, _LONGEST_DAYS * 86_400))
    leeway_s: int = ruled(30, between(0, 600))


def is_absolute(value: str) -> str | None:
    """A path that means the same wherever the server is started."""
    return None if value.startswith("/") else "must be an absolute path"


def names_folders(value: Mapping[str, str]) -> str | None:
    """Short names, and the folders they stand for."""
    if not all(re.match(r"[a-z0-9][a-z0-9_-]{0,62}\Z", name) for name in value):
        return "must have names of lower-case letters, digits, dashes and underscores"
    return None if all(path.startswith("/") for path in value.values()) else "must hold absolute paths"


def names_media(value: str) -> str | None:
    """Where media are: one folder, and the id in the last part of the path alone."""
    folder, _, name = value.rpartition("/")
    if not value.startswith("/") or name.count("{media_id}") != 1 or "{media_id}" in folder:
        return "must be an absolute path whose last part holds {media_id}"
    rest = value.replace("{media_id}", "").replace("{workspace}", "")
    return "knows {workspace} and {media_id} alone" if "{" in rest or "}" in rest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """`[serve.jobs]`: work that a service does in the background, as child processes.

    Attributes:
        folder: Where inputs and results are; None: `jobs` in the state folder.
        at_once: Jobs that are worked on; the others wait.
        queue: Jobs of one workspace that have not ended.
        upload_bytes: Of one upload.
        workspace_bytes: Of all that one workspace has there; beyond it nothing new is taken.
        keep_days: After its end a job goes, and a file after its upload.
        again_s: Seconds until a job is looked at again that waits for its provider; ten times that in the end.
        mode: How `/v1/batches` buys.
        sources: Name → folder whose files a job may name as its input.
    """

    folder: str | None = ruled(None, is_absolute)
    at_once: int = ruled(2, between(1, 1000))
    queue: int = ruled(100, between(1, 100_000))
    upload_bytes: int = ruled(1 << 30, between(1024, 1 << 40))
    workspace_bytes: int = ruled(20 << 30, between(1 << 20, 1 << 50))
    keep_days: int = ruled(30, between(1, _LONGEST_DAYS))
    again_s: float = ruled(30.0, between(0.05, 86_400))
    mode: Literal["online", "batch", "auto"] = "auto"
    sources: Mapping[str, str] = field(default_factory=dict, metadata={"rule": names_folders})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """`[serve]`: the HTTP service.

    Attributes:
        durability: "sync": what may cost is on the disk before it is sent; "process": safe from a kill, not from loss
            of power.
        cache: Whose calls share vectors: those of a workspace, all, or none.
        require_x_api_key: Keys count in X-API-KEY alone, as the API guide has it for a single user.
        unknown_parameters: What becomes of a field that nobody knows.
        user: What becomes of the field `user`: a tag, the hash of one, or nothing.
        cl100k: Token arrays for a model whose tokenizer is not known are taken for cl100k_base.
        cost_headers: Answers say what they cost.
        pinned_fallback: Others may take over for a provider that a request names.
        deadline_s: Seconds a request may take.
        in_flight, key_in_flight, queue: Requests at once, of one key, and waiting.
        bytes_in_flight: Of bodies and answers.
        header_s, body_s, idle_s: Seconds for a request's headers, its body, and between two requests.
        grace_s, drain_s: After SIGTERM: seconds in which it still listens, then in which requests may end.
        hosts: What a Host header may name beside the address that is listened on; checked on loopback only.
        origins: Web pages that may ask, as `https://host`.
        locks: Files `space.lock`: vectors of their models must fit those of the outputs they were made of.
        downloads: Models of the hub that admins may have fetched beside those of the catalog: `OWNER/NAME`, `OWNER/*`.
        pages: Whether `/docs` and `/dashboard` are there.
        media: Files of a media id, as `/data/{workspace}/{media_id}.*`; None: there are no media.
        guide_status: Media jobs are accepted with 200 as the API guide has it, not with 202.
    """

    host: str = "127.0.0.1"
    port: int = ruled(8000, between(0, 65_535))
    durability: Literal["sync", "process"] = "sync"
    cache: Literal["workspace", "shared", "off"] = "workspace"
    require_x_api_key: bool = False
    unknown_parameters: Literal["refuse", "ignore"] = "refuse"
    user: Literal["keep", "hash", "drop"] = "keep"
    cl100k: bool = False
    cost_headers: bool = True
    pinned_fallback: bool = False
    deadline_s: float = ruled(60.0, between(0.001, 3600))
    body_bytes: int = ruled(8 << 20, between(1024, 1 << 30))
    in_flight: int = ruled(256, between(1, MOST_CONCURRENCY))
    key_in_flight: int = ruled(16, between(1, MOST_CONCURRENCY))
    queue: int = ruled(1024, between(0, 100_000))
    bytes_in_flight: int = ruled(256 << 20, between(1 << 20, 1 << 40))
    header_s: float = ruled(10.0, between(0.01, 3600))
    body_s: float = ruled(30.0, between(0.01, 3600))
    idle_s: float = ruled(75.0, between(0.01, 86_400))
    grace_s: float = ruled(5.0, between(0, 3600))
    drain_s: float = ruled(30.0, between(0, 3600))
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    downloads: tuple[str, ...] = ()
    pages: bool = True
    media: str | None = ruled(None, names_media)
    guide_status: bool = False
    jobs: JobSettings = field(default_factory=JobSettings)
    jwt: JwtSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """`[cache]`: the shared vector cache."""

    max_bytes: int = ruled(2 * 1024**3, between(1 << 20, 1 << 50))
    ttl_days: int = ruled(90, between(1, _LONGEST_DAYS))
