"""An endpoint: one provider serving one model, with everything that a request needs. Pure."""

from __future__ import annotations

from dataclasses import field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from embedctl.backends.http import urls
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid
from embedctl.providers._contract import Provider, RequestOptions, WireProtocol
from embedctl.providers.catalog import ModelEntry
from embedctl.records import Limits, Space, UsageMode
from embedctl.routing.fallback import ChainEntry
from embedctl.routing.input_types import InputTypeSent
from embedctl.routing.learned import fingerprint
from embedctl.routing.rate_limit import RateLimits
from embedctl.storage.token_count_cache import RunCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTerms:
    """How a provider's Batch API is used, as the settings say (`[providers.NAME] batch…`).

    Attributes:
        wanted: Whether the place speaks it; None: as its protocol says.
        grace_s, poll_s: Seconds.
        enqueued_tokens: 0 = no limit; None: the provider's lowest tier.
    """

    wanted: bool | None = None
    grace_s: float = 120.0
    poll_s: float = 30.0
    max_inputs: int = 10_000
    enqueued_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One provider serving one model, with everything a request needs.

    Attributes:
        model: As asked for; what the ledger calls it.
        wire_model: As the provider calls it.
        canonical: The weights; "PROVIDER:MODEL" where the catalog does not know them.
        revision: Of a local model's folder; see `backends.folders.Folder`.
        price_as: A catalog provider, "free", "hour", or None: no price.
        per_hour: USD per hour of its machine, where that is what it costs.
        dimensions: Width of the vectors that are written, None until the first answer.
        policy: How that width is reached: native, reduce, pad or ignore.
        normalise: Vectors are divided by their length here, because the provider does not.
        wire: What is asked of the provider; `base64` only where the dialect may know it.
        input_type_sent: How the input type gets to the model, or that it does not.
        folder: Of a local model that is not the bundled one.
        key_variable: Where the user said its key is.
        key_source: The variable that its key was found in; None without a key.
        counts: Tokens of texts, as they were counted before in this run; one for all offers of a chain.
    """

    provider: str
    model: str
    wire_model: str
    canonical: str
    entry: ModelEntry | None
    place: Provider
    protocol: WireProtocol
    local: bool
    price_as: str | None
    per_hour: Decimal | None
    limits: Limits
    rate_limits: RateLimits
    timeout_s: float
    wire: RequestOptions
    prefix: str = ""
    input_type: str | None = None
    input_type_sent: InputTypeSent = field(default_factory=InputTypeSent)
    dimensions: int | None = None
    policy: str = "native"
    normalise: bool = False
    normalized: bool | None = None
    max_tokens: int | None = None
    tokenizer: str | None = None
    usage_mode: UsageMode = "auto"
    fallback_tokenizer: str = "tiktoken:cl100k_base"
    truncation: str = "none"
    takes_tokens: bool = False
    revision: str | None = None
    insecure: bool = False
    ca_file: Path | None = None
    folder: Path | None = None
    key_variable: str | None = None
    key_source: str | None = None
    batch: BatchTerms = BatchTerms()
    counts: RunCounts = field(default_factory=RunCounts, compare=False, repr=False)

    @property
    def id(self) -> str:
        """As a user names it."""
        return f"{self.provider}:{self.model}"

    @cached_property
    def account(self) -> str:
        """A fingerprint of the key, "" without one."""
        return fingerprint(self.place.api_key.reveal()) if self.place.api_key else ""

    def space(self, dimensions: int | None = None) -> Space | None:
        """The space of its vectors; None while the width is not known."""
        width = dimensions or self.dimensions
        if width is None:
            return None
        return Space(
            model=self.canonical,
            revision=self.revision,
            dimensions=width,
            dimension_policy=self.policy,
            normalized=True if self.normalise or self.policy == "reduce" else self.normalized,
            input_type=self.input_type,
            prefix=self.prefix,
            truncation=self.truncation,
        )

    def like(self, space: Space) -> Endpoint:
        """This endpoint, as an older version would name its space, where `space` is named so; else itself."""
        mine = self.space(space.dimensions)
        return self if mine is None else replace(self, revision=mine.like(space).revision)

    @cached_property
    def in_chain(self) -> ChainEntry:
        """The entry that the fallback policy reasons about."""
        known = self.canonical if self.entry else None
        space = self.space()
        return ChainEntry(
            provider=self.provider,
            model=self.wire_model,
            canonical=known,
            space_id=space.space_id if space else None,
        )


def check_usable(endpoint: Endpoint) -> None:
    """Build a request that is not sent, so that a missing key or address is told before any work.

    Raises:
        ConfigurationInvalid: The place lacks what the protocol needs, or a key may not be sent to its address.
    """
    if endpoint.local:
        return
    shown = urls.shown(endpoint.place.base_url)
    if any(word in endpoint.place.base_url for word in ("RESOURCE", "REGION")):
        raise ConfigurationInvalid(
            f"provider {endpoint.provider!r} needs an address of your own",
            hint=f'set base_url under [providers.{endpoint.provider}], instead of "{shown}"',
        )
    if endpoint.key_variable and endpoint.place.api_key is None:
        raise ConfigurationInvalid(
            f"provider {endpoint.provider!r} has no key: {endpoint.key_variable} is not set",
            hint=f"set {endpoint.key_variable} in the environment, "
            f"or {endpoint.key_variable}_FILE to a file that holds it",
        )
    message = endpoint.protocol.request(endpoint.place, endpoint.wire_model, ["a"], endpoint.wire)
    urls.checked(message.url, insecure=endpoint.insecure)
