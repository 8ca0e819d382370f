"""The tables of a settings file, as values. Pure.

A key of a file is a field here; a field without a default is a key that must be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """`[providers.NAME]`: a place that serves models, or changes to a built-in one.

    Attributes:
        models: Canonical name → name on the wire.
        timeout_s: Seconds one request may take.
        price_as: Whose catalog prices apply; a place of one's own has none until told.
        free: This place costs nothing.
        insecure: Allow plain http to a host that is not loopback.
        body, each, vectors, index, ids, tokens, error, path, key_header: The json protocol's template and JMESPath
            expressions.
        jwt_secret_env, jwt_subject, pin: tldw's: a token minted per run, and the provider that must answer.
        options: Whatever else the protocol understands (providers/PROTOCOL.py).
    """

    protocol: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    burst: int | None = None
    timeout_s: float | None = None
    price_as: str | None = None
    free: bool | None = None
    region: str | None = None
    insecure: bool = False
    ca_file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    api_version: str | None = None
    max_items: int | None = None
    max_tokens: int | None = None
    max_bytes: int | None = None
    jwt_secret_env: str | None = None
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
    key_header: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """`[allow]`: None allows all."""

    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """`[workspaces.NAME] budget`: amount in USD per period."""

    amount: Decimal
    period: Literal["day", "week", "month"] = "month"
    action: Literal["warn", "block"] = "block"
    timezone: str = "UTC"
    warn_ratio: Decimal = Decimal("0.8")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceSettings:
    """`[workspaces.NAME]`: what a workspace may use, and how much."""

    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    budget: BudgetSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """`[token_usage]`: how tokens are counted where the provider does not."""

    fallback_tokenizer: str = "tiktoken:cl100k_base"
    cache: bool = False
    cache_ttl_s: int = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """`[models."PROVIDER:MODEL"]`."""

    usage_mode: Literal["native", "fallback", "auto"] | None = None
    fallback_tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """`[cache]`: the shared vector cache."""

    max_bytes: int = 2 * 1024**3
    ttl_days: int = 90
