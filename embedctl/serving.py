"""Who serves the model that was asked for: the offer itself and its fallbacks, from settings and catalog. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embedctl import catalog, providers
from embedctl.catalog import Model
from embedctl.errors import ConfigurationInvalid, WrongUsage
from embedctl.options import Options
from embedctl.providers._contract import Options as WireOptions
from embedctl.providers._contract import Place, Secret, WireProtocol
from embedctl.records import Limits, Space, UsageMode
from embedctl.resilience.fallback import Allow, Entry, LeftOut, allowed, require
from embedctl.resilience.hints import fingerprint
from embedctl.resilience.limiter import Ceiling
from embedctl.settings import ProviderSettings, Settings

BUNDLED = "onnx:all-MiniLM-L6-v2"
_NOT_FOR_PROTOCOLS = frozenset(
    "protocol base_url api_key_env models model requests_per_minute tokens_per_minute concurrency burst timeout_s "
    "price_as free insecure ca_file headers user max_items max_tokens max_bytes".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One provider serving one model, with everything a request needs.

    Attributes:
        model: As asked for; what the ledger calls it.
        wire_model: As the provider calls it.
        canonical: The weights; "PROVIDER:MODEL" where the catalog does not know them.
        price_as: A catalog provider, "free", or None: no price.
        dimensions: Width of the vectors that are written, None until the first answer.
        policy: How that width is reached: native, reduce, pad or ignore.
        normalise: Vectors are divided by their length here, because the provider does not.
        wire: What is asked of the provider; `base64` only where the dialect may know it.
    """

    provider: str
    model: str
    wire_model: str
    canonical: str
    entry: Model | None
    place: Place
    protocol: WireProtocol
    local: bool
    price_as: str | None
    limits: Limits
    ceiling: Ceiling
    timeout_s: float
    wire: WireOptions
    prefix: str = ""
    input_type: str | None = None
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
    insecure: bool = False
    ca_file: Path | None = None

    @property
    def id(self) -> str:
        """As a user names it."""
        return f"{self.provider}:{self.model}"

    @property
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
            dimensions=width,
            dimension_policy=self.policy,
            normalized=True if self.normalise or self.policy == "reduce" else self.normalized,
            input_type=self.input_type,
            prefix=self.prefix,
            truncation=self.truncation,
        )

    @property
    def in_chain(self) -> Entry:
        """The entry that the fallback policy reasons about."""
        known = self.canonical if self.entry else None
        space = self.space()
        return Entry(
            provider=self.provider,
            model=self.wire_model,
            canonical=known,
            space_id=space.space_id if space else None,
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """The offer asked for, then those that may take over; and who may not, with the reason."""

    offers: tuple[Offer, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def first(self) -> Offer:
        """The one that was asked for."""
        return self.offers[0]


def chain(settings: Settings) -> Chain:
    """The chain of the model that the options ask for.

    Raises:
        WrongUsage: No such model or provider, or the dimensions cannot be had.
        NotAllowed: An allow-list forbids the model asked for.
        ConfigurationInvalid: A provider of the chain is not configured whole.
    """
    options = settings.options
    provider, model = asked_for(settings)
    first = offer(settings, provider, model)
    lists = allow_lists(settings, options.workspace)
    require(first.in_chain, lists)
    others, refused = [], []
    for entry in _chain_entries(settings, first) if options.fallback != "off" else ():
        try:
            other = _fallback_offer(settings, entry, first)
        except (WrongUsage, ConfigurationInvalid) as problem:
            refused.append(LeftOut(Entry(provider=entry.partition(":")[0], model=""), problem.message))
            continue
        if other.id != first.id:
            others.append(other)
    kept, left_out = allowed([other.in_chain for other in others], lists)
    fitting = [other for other in others if other.in_chain in kept]
    if options.fallback == "same-space":
        strangers = [other for other in fitting if other.canonical != first.canonical or not first.entry]
        left_out += [
            LeftOut(other.in_chain, f"another model ({other.canonical}, not {first.canonical})") for other in strangers
        ]
        fitting = [other for other in fitting if other not in strangers]
    return Chain((first, *fitting), (*refused, *left_out))


def allow_lists(settings: Settings, workspace: str) -> list[Allow]:
    """Every list that a provider and model must pass."""

    def rule(name: str, source: Any) -> Allow:
        def chosen(values: Sequence[str] | None) -> frozenset[str] | None:
            return None if values is None else frozenset(values)

        return Allow(rule=name, providers=chosen(source.providers), models=chosen(source.models))

    lists = [rule(f"[allow] in {label}", found) for label, found in settings.narrowings]
    if workspace in settings.workspaces:
        lists.append(rule(f"[workspaces.{workspace}]", settings.workspaces[workspace]))
    return lists


def known_providers(settings: Settings) -> list[str]:
    """Built-in and configured names."""
    return list(dict.fromkeys([*catalog.providers(), *settings.providers]))


def asked_for(settings: Settings) -> tuple[str, str]:
    """(provider, model) of --model and --provider.

    Raises:
        WrongUsage: They disagree, or nobody knows the name.
    """
    options = settings.options
    known = known_providers(settings)
    if options.provider is not None and options.provider not in known:
        raise WrongUsage(f"unknown provider: {options.provider!r}", hint=_near(options.provider, known))
    if options.model is None and options.provider is None:
        return tuple(BUNDLED.split(":", 1))  # type: ignore[return-value]
    if options.model is None:
        return str(options.provider), default_model(settings, str(options.provider))
    prefix, colon, rest = options.model.partition(":")
    if colon and prefix in known:
        if options.provider not in (None, prefix):
            raise WrongUsage(f"--model {options.model} and --provider {options.provider} disagree", hint="give one")
        return prefix, rest or default_model(settings, prefix)
    if options.provider is not None:
        return options.provider, options.model
    return _bare(settings, options.model), options.model


def _bare(settings: Settings, name: str) -> str:
    """The provider that a name without one means."""
    for provider, place in settings.providers.items():
        if name in place.models or name == place.model:
            return provider
    found = [one for one in catalog.named(name) if one.served]
    usable = [one for one in found if one.status != "retired"] or found
    if not usable:
        names = sorted({part for one in catalog.models() for part in (one.name, one.name.rpartition("/")[2])})
        raise WrongUsage(
            f"unknown model: {name!r}", hint=f"{_near(name, names)}; or say who serves it: -m PROVIDER:{name}"
        )
    return usable[0].provider


def default_model(settings: Settings, provider: str) -> str:
    """What a provider without a model means.

    Raises:
        WrongUsage: It has none.
    """
    place = settings.providers.get(provider, ProviderSettings())
    entry = catalog.default_model(provider)
    name = place.model or next(iter(place.models), None) or (entry.name if entry else None)
    if name is None:
        raise WrongUsage(f"provider {provider!r} has no default model", hint=f"say which: -m {provider}:MODEL")
    return name


def offer(settings: Settings, provider: str, model: str) -> Offer:
    """One provider's offer of a model, known to the catalog or not.

    Raises:
        WrongUsage: Unknown provider, or dimensions that cannot be had.
        ConfigurationInvalid: The model is retired, or the provider has no protocol.
    """
    built_in = catalog.providers().get(provider)
    own = settings.providers.get(provider, ProviderSettings())
    protocol_name = own.protocol or (built_in.protocol if built_in else None)
    if protocol_name is None:
        raise ConfigurationInvalid(
            f"provider {provider!r} has no protocol", hint=f'set protocol = "openai" under [providers.{provider}]'
        )
    protocol = providers.protocol(protocol_name)
    entry = _entry(provider, own, built_in, protocol_name, model)
    if entry and entry.status == "retired":
        raise ConfigurationInvalid(
            f"{provider}:{model} is retired" + (f" since {entry.retires}" if entry.retires else ""),
            hint="`embedctl models list` shows what is served",
        )
    options = settings.options
    width, sent, policy = _width(entry, options, f"{provider}:{model}")
    local = providers.is_local(protocol_name)
    told_apart = entry is not None and options.input_type in entry.input_types
    asked = settings.models.get(f"{provider}:{model}") or settings.models.get(model)
    sends_type = told_apart and entry is not None and entry.field_input_type
    free = own.free if own.free is not None else bool(built_in and built_in.free)
    return Offer(
        provider=provider,
        model=model,
        wire_model=own.models.get(model)
        or (own.models.get(entry.name) if entry else None)
        or (entry.name if entry else model),
        canonical=entry.canonical if entry else f"{provider}:{model}",
        entry=entry,
        place=_place(settings, provider, protocol_name, own, protocol),
        protocol=protocol,
        local=local,
        price_as="free" if free else own.price_as or (built_in.price_as if built_in and not own.base_url else None),
        limits=_limits(own, entry, protocol, options),
        ceiling=_ceiling(own, built_in, options, local),
        timeout_s=own.timeout_s or options.timeout,
        wire=WireOptions(
            dimensions=sent,
            input_type=options.input_type if sends_type or (entry is None and not local) else None,
            base64=not local,
            user={"none": None, None: None, "workspace": options.workspace}.get(own.user, own.user),
        ),
        prefix=entry.prefixes.get(options.input_type, "") if entry else "",
        input_type=options.input_type if told_apart else None,
        dimensions=width,
        policy=policy,
        normalise=bool(entry and entry.normalized is False) or policy == "reduce",
        normalized=True if local else (entry.normalized if entry else None),
        max_tokens=own.max_tokens or (entry.max_tokens if entry else None),
        tokenizer=entry.tokenizer if entry else None,
        usage_mode=(asked.usage_mode if asked else None) or (entry.usage_mode if entry else "auto"),
        fallback_tokenizer=(asked.fallback_tokenizer if asked else None) or settings.token_usage.fallback_tokenizer,
        truncation=options.on_too_long if options.on_too_long in ("truncate", "mean") else "none",
        takes_tokens=_takes_tokens(built_in, protocol, local),
        insecure=own.insecure,
        ca_file=Path(own.ca_file) if own.ca_file else None,
    )


def _takes_tokens(built_in: Any, protocol: WireProtocol, local: bool) -> bool:
    """Whether token arrays go out as they are: as the provider says, else as its protocol does."""
    if local:
        return False
    said = built_in.takes_tokens if built_in else None
    return bool(protocol.TAKES_TOKENS if said is None else said)


def _entry(provider: str, own: ProviderSettings, built_in: Any, protocol: str, model: str) -> Model | None:
    """What the catalog knows: the provider's own entry, else (a place of one's own) that of the same weights."""
    found = catalog.find(provider, model)
    if found or built_in:
        return found
    relatives = [one for one in catalog.named(model) if one.provider == (own.price_as or protocol)]
    same = relatives or list(catalog.named(model))
    return replace(same[0], provider=provider, bundled=False) if same else None


def _width(entry: Model | None, options: Options, name: str) -> tuple[int | None, int | None, str]:
    """(width written, width asked of the provider, policy word)."""
    asked = options.dimensions
    native = entry.dimensions if entry else None
    if asked is None or asked == native:
        return native, None, "native"
    if entry is None or native is None or entry.makes(asked):
        return asked, asked, "native"
    if options.dimension_policy == "ignore":
        return native, None, "ignore"
    if options.dimension_policy == "pad":
        if asked < native:
            raise WrongUsage(f"{name} has {native} dimensions; {asked} cannot be padded to", hint="use reduce")
        return asked, None, "pad"
    if asked > native:
        raise WrongUsage(
            f"{name} has {native} dimensions, {asked} were asked for", hint="--dimension-policy pad adds zeros"
        )
    if not entry.reducible and not options.force:
        raise WrongUsage(f"{name} was not trained to be cut to {asked} dimensions", hint="--force does it all the same")
    return asked, None, "reduce"


def _limits(own: ProviderSettings, entry: Model | None, protocol: WireProtocol, options: Options) -> Limits:
    """Per request: the user's word, the catalog's, the protocol's."""
    known, general = entry.limits if entry else Limits(), protocol.LIMITS
    return Limits(
        items=own.max_items or known.items or general.items,
        tokens=known.tokens or general.tokens,
        bytes=own.max_bytes or known.bytes or general.bytes,
    )


def _ceiling(own: ProviderSettings, built_in: Any, options: Options, local: bool) -> Ceiling:
    def first(*values: float | None) -> float:
        return next((value for value in values if value is not None), 0)

    if local:
        return Ceiling(concurrency=2)
    return Ceiling(
        concurrency=int(first(own.concurrency, built_in.concurrency if built_in else None, options.concurrency)),
        requests_per_minute=first(
            options.rpm, own.requests_per_minute, built_in.requests_per_minute if built_in else None
        ),
        tokens_per_minute=first(options.tpm, own.tokens_per_minute, built_in.tokens_per_minute if built_in else None),
        burst=first(own.burst, built_in.burst if built_in else None, options.burst),
        counts_items=bool(built_in and built_in.requests_count_items),
    )


def _place(settings: Settings, name: str, protocol_name: str, own: ProviderSettings, protocol: WireProtocol) -> Place:
    built_in = catalog.providers().get(name)
    environment = settings.environment
    url = own.base_url
    if not url and built_in and name == protocol_name:  # OPENAI_BASE_URL is for openai, not for together
        url = next((environment[word] for word in protocol.BASE_URL_VARIABLES if environment.get(word)), None)
    variables = (own.api_key_env,) if own.api_key_env else (built_in.api_key_env if built_in else ())
    shared = dict(built_in.options) if built_in else {}
    mine = {
        key: value
        for key, value in ((key, getattr(own, key)) for key in own.__dataclass_fields__)
        if key not in _NOT_FOR_PROTOCOLS and value is not None
    }
    return Place(
        name=name,
        protocol=protocol_name,
        base_url=(url or (built_in.base_url if built_in else "") or "").rstrip("/"),
        api_key=_key(environment, variables),
        headers=own.headers,
        options={**shared, **mine},
    )


def _key(environment: Mapping[str, str], variables: Sequence[str]) -> Secret | None:
    """The first variable that is set, or the file that its `_FILE` twin names.

    Raises:
        ConfigurationInvalid: That file cannot be read, or others may read it.
    """
    for variable in variables:
        if environment.get(variable):
            return Secret(environment[variable])
        named = environment.get(f"{variable}_FILE")
        if named:
            try:
                with open(named, encoding="utf-8") as file:  # noqa: PTH123 - the mode is that of the file we read
                    import os

                    if os.fstat(file.fileno()).st_mode & 0o077:
                        raise ConfigurationInvalid(f"others may read {named}", hint=f"chmod 600 {named}")
                    return Secret(file.read().strip())
            except OSError as problem:
                raise ConfigurationInvalid(f"{variable}_FILE cannot be read: {problem.strerror}") from None
    return None


def _chain_entries(settings: Settings, first: Offer) -> Sequence[str]:
    if settings.chain_override is not None:
        return settings.chain_override
    for name in (first.id, first.provider):
        if name in settings.chains:
            return settings.chains[name]
    return catalog.default_chain(first.provider)


def _fallback_offer(settings: Settings, entry: str, first: Offer) -> Offer:
    """An entry of a chain: "provider:model", or a provider that serves the same weights, or its default model."""
    provider, colon, model = entry.partition(":")
    if provider not in known_providers(settings):
        raise WrongUsage(f"no such provider: {provider!r}", hint=_near(provider, known_providers(settings)))
    if not colon:
        same = [one for one in catalog.serving(first.canonical) if one.provider == provider]
        own = settings.providers.get(provider, ProviderSettings())
        if same:
            model = same[0].name
        elif first.entry and (first.model in own.models or first.entry.name in own.models):
            model = first.entry.name
        else:
            model = default_model(settings, provider)
    return offer(settings, provider, model)


def _near(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "`embedctl models list` and `providers list` show what there is"
