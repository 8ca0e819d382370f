"""Who serves the model that was asked for: the endpoint itself and its fallbacks, from settings and catalog."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import field, replace

from embedctl import providers
from embedctl.backends import folders
from embedctl.backends import local as local_models
from embedctl.backends.folders import Folder
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, WrongUsage
from embedctl.providers import catalog
from embedctl.providers._contract import RequestOptions as WireOptions
from embedctl.providers.catalog import ModelEntry, ProviderEntry
from embedctl.records import BY_THE_HOUR, UNOBSERVED, Observer, Space, Warned, expanded
from embedctl.routing import allow, credentials, input_types
from embedctl.routing.endpoint import BatchTerms, Endpoint, check_usable
from embedctl.routing.fallback import ChainEntry, Excluded, allowed, require
from embedctl.routing.input_types import InputTypeSent
from embedctl.routing.names import asked_for, checked_provider, default_model, known_providers
from embedctl.settings import ProviderSettings, Settings, project
from embedctl.settings.options import Options
from embedctl.storage.token_count_cache import RunCounts, count_store

__all__ = [
    "Endpoint",
    "FallbackChain",
    "asked_for",
    "chain",
    "check_usable",
    "default_model",
    "endpoint",
    "known_providers",
]


@dataclass(frozen=True, slots=True)
class FallbackChain:
    """The endpoint asked for, then those that may take over; and who may not, with the reason."""

    endpoints: tuple[Endpoint, ...]
    left_out: tuple[Excluded, ...] = field(default=())

    @property
    def first(self) -> Endpoint:
        """The one that was asked for."""
        return self.endpoints[0]

    def like(self, space: Space) -> FallbackChain:
        """The chain that goes on with vectors of this space, which an older version may have named."""
        return replace(self, endpoints=tuple(one.like(space) for one in self.endpoints))

    def close(self) -> None:
        """Nobody counts any more."""
        self.first.counts.close()


def chain(
    settings: Settings,
    wall: Callable[[], float] = time.time,
    observer: Observer = UNOBSERVED,
    *,
    type_by_flag: bool = False,
) -> FallbackChain:
    """The chain of the model that the options ask for.

    Args:
        observer: Told when token counts of other runs cannot be had, though the settings ask for them, and when the
            model does not get to know the input type.
        type_by_flag: The input type was asked for by flag: it is refused where it would be lost.

    Raises:
        WrongUsage: No such model or provider, or the dimensions cannot be had.
        NotAllowed: An allow-list forbids the model asked for.
        ConfigurationInvalid: Its provider is not configured whole.
    """
    options = settings.options
    first = endpoint(settings, *asked_for(settings), now_s=wall())
    lists = allow.lists(settings, options.workspace)
    require(first.in_chain, lists)
    if type_by_flag:
        input_types.refuse(first.id, first.place, first.input_type_sent)
    if first.input_type_sent.lost is not None and first.entry is not None:
        observer.notify(Warned("input_type_lost", first.id, first.input_type_sent.lost))
    others, refused = [], []
    entries = _chain_entries(settings, first) if options.fallback != "off" else ()
    within = _narrowed(settings, first, entries)
    refused += [_left_out(entry, _FILTERED) for entry in entries if entry not in within]
    for entry in within:
        try:
            other = _fallback_offer(settings, entry, first, wall())
        except (WrongUsage, ConfigurationInvalid) as problem:
            refused.append(_left_out(entry, problem.message))
            continue
        if other.id != first.id:
            others.append(other)
    lists += allow.of_rows(settings, first.in_chain)
    kept, left_out = allowed([other.in_chain for other in others], lists)
    fitting = [other for other in others if other.in_chain in kept]
    if options.fallback == "same-space":
        strangers = [other for other in fitting if other.canonical != first.canonical or not first.entry]
        left_out += [
            Excluded(other.in_chain, f"another model ({other.canonical}, not {first.canonical})") for other in strangers
        ]
        fitting = [other for other in fitting if other not in strangers]
    usable = []
    for other in fitting:
        try:
            check_usable(other)
        except ConfigurationInvalid as problem:
            left_out.append(Excluded(other.in_chain, problem.message))
        else:
            usable.append(other)
    counts = _counts(settings, observer)
    return FallbackChain(tuple(replace(one, counts=counts) for one in (first, *usable)), (*refused, *left_out))


def _counts(settings: Settings, observer: Observer) -> RunCounts:
    asked = settings.token_usage
    return RunCounts(count_store(asked.cache, settings.paths.cache, ttl_s=asked.cache_ttl_s, observer=observer))


_FILTERED = "the project's [fallback] does not list it"


def _left_out(entry: str, why: str) -> Excluded:
    provider, _, model = entry.partition(":")
    return Excluded(ChainEntry(provider=provider, model=model), why)


def endpoint(settings: Settings, provider: str, model: str, *, now_s: float | None = None) -> Endpoint:
    """One provider's endpoint of a model, known to the catalog or not.

    Args:
        now_s: Unix time; None: now.

    Raises:
        WrongUsage: Unknown provider, or dimensions that cannot be had.
        ConfigurationInvalid: The model is retired or not here, or the provider has no protocol.
    """
    built_in = catalog.providers().get(provider)
    own = settings.providers.get(provider, ProviderSettings())
    protocol_name = own.protocol or (built_in.protocol if built_in else None)
    if protocol_name is None:
        raise ConfigurationInvalid(
            f"provider {provider!r} has no protocol", hint=f'set protocol = "openai" under [providers.{provider}]'
        )
    try:
        protocol = providers.protocol(protocol_name)
    except ConfigurationInvalid as unknown:
        raise ConfigurationInvalid(f"[providers.{provider}]: {unknown.message}", hint=unknown.hint) from None
    entry = _entry(provider, own, built_in, protocol_name, model)
    if entry and entry.status == "retired":
        raise ConfigurationInvalid(
            f"{provider}:{model} is retired" + (f" since {entry.retires}" if entry.retires else ""),
            hint="`embedctl models list` shows what is served",
        )
    options = settings.options
    local = providers.is_local(protocol_name)
    folder = _folder(settings, protocol_name, model) if local and not (entry and entry.bundled) else None
    if folder is not None:
        entry = _weights_of(provider, model) if folder.protocol == "onnx" else None
    width, sent, policy = _width(entry, folder, options, f"{provider}:{model}")
    told_apart = entry is not None and options.input_type in entry.input_types
    place = credentials.place(settings, provider, protocol_name, protocol, time.time() if now_s is None else now_s)
    said = InputTypeSent() if local else input_types.sent(place, protocol, entry, options.input_type)
    asked = settings.models.get(f"{provider}:{model}") or settings.models.get(model)
    return Endpoint(
        provider=provider,
        model=model,
        wire_model=own.models.get(model)
        or (own.models.get(entry.name) if entry else None)
        or (entry.name if entry else model),
        canonical=_canonical(provider, model, entry, folder),
        entry=entry,
        place=place,
        protocol=protocol,
        local=local,
        price_as=_price_as(provider, own, built_in),
        per_hour=own.per_hour,
        limits=credentials.limits(own, None if local else entry, protocol),
        rate_limits=credentials.rate_limits(settings, provider, local=local),
        timeout_s=credentials.timeout_s(settings, provider),
        wire=WireOptions(
            dimensions=sent,
            input_type=options.input_type if said.protocol else None,
            base64=not local,
            fields=said.fields,
            user={"none": None, None: None, "workspace": options.workspace}.get(own.user, own.user),
        ),
        prefix=entry.prefixes.get(options.input_type, "") if entry else "",
        input_type=options.input_type if told_apart else None,
        input_type_sent=said,
        dimensions=width,
        policy=policy,
        normalise=bool(entry and entry.normalized is False) or policy == "reduce",
        normalized=folder.normalized if folder else True if local else (entry.normalized if entry else None),
        max_tokens=own.max_tokens or (folder.max_tokens if folder else entry.max_tokens if entry else None),
        tokenizer=_tokenizer(folder) if folder else entry.tokenizer if entry else None,
        usage_mode=(asked.usage_mode if asked else None) or (entry.usage_mode if entry else "auto"),
        fallback_tokenizer=(asked.fallback_tokenizer if asked else None) or settings.token_usage.fallback_tokenizer,
        truncation=options.on_too_long if options.on_too_long in ("truncate", "mean") else "none",
        takes_tokens=credentials.takes_tokens(built_in, protocol, local=local),
        insecure=own.insecure or options.insecure,
        ca_file=expanded(own.ca_file) if own.ca_file else None,
        folder=folder.path if folder else None,
        revision=folder.revision if folder and not entry else None,
        key_variable=own.api_key_env,
        key_source=credentials.key_source(settings.environment, credentials.key_variables(settings, provider)),
        batch=BatchTerms(
            wanted=own.batch,
            grace_s=own.batch_grace_s,
            poll_s=own.batch_poll_s,
            max_inputs=own.batch_max_inputs,
            enqueued_tokens=own.batch_enqueued_tokens,
        ),
    )


def _price_as(provider: str, own: ProviderSettings, built_in: ProviderEntry | None) -> str | None:
    """Whose prices apply.

    Raises:
        ConfigurationInvalid: The settings say several things of what it costs.
    """
    said = [key for key in ("free", "per_hour", "price_as") if getattr(own, key)]
    if own.per_hour is not None:
        if len(said) > 1:
            raise ConfigurationInvalid(f"[providers.{provider}]: {' and '.join(said)} exclude each other")
        return BY_THE_HOUR
    free = own.free if own.free is not None else bool(built_in and built_in.free)
    return "free" if free else own.price_as or (built_in.price_as if built_in and not own.base_url else None)


def _folder(settings: Settings, protocol: str, model: str) -> Folder:
    """What lies where a local model's name points.

    Raises:
        ConfigurationInvalid: Nothing does, or it is no model.
    """
    path = folders.find(model, settings.paths.models)
    if path is None:
        if model.startswith((".", "/", "~")):
            raise ConfigurationInvalid(f"there is no folder {model} here", hint="a path is relative to this folder")
        raise ConfigurationInvalid(
            f"there is no local model {model!r} here",
            hint=f"`embedctl models pull {model}` fetches one; a folder is named by its path: -m {protocol}:./FOLDER",
        )
    return local_models.read(protocol, path)


def _tokenizer(folder: Folder) -> str:
    """Who counts as the model does: a static model sees no special tokens."""
    return f"{'plain' if folder.protocol == 'static' else 'file'}:{folder.path / 'tokenizer.json'}"


def _weights_of(provider: str, model: str) -> ModelEntry | None:
    """What the catalog knows of the weights of a pulled model: prefixes, input types."""
    found = next(iter(catalog.named(model)), None) if "/" in model else None
    if found is None or found.canonical != model:
        return None
    return replace(
        found, provider=provider, name=model, bundled=False, dimensions_allowed=(), usage_mode="native", normalized=True
    )


def _canonical(provider: str, model: str, entry: ModelEntry | None, folder: Folder | None) -> str:
    """The weights by name; a folder that only its owner knows is told apart by what it holds."""
    if entry is not None:
        return entry.canonical
    if folder is not None:
        return f"{provider}:{folder.path.name}@{folder.digest}"
    return f"{provider}:{model}"


def _entry(
    provider: str, own: ProviderSettings, built_in: ProviderEntry | None, protocol: str, model: str
) -> ModelEntry | None:
    """What the catalog knows: the provider's own entry, else (a place of one's own) that of the same weights."""
    found = catalog.find(provider, model)
    if found or built_in:
        return found
    relatives = [one for one in catalog.named(model) if one.provider == (own.price_as or protocol)]
    same = relatives or list(catalog.named(model))
    return replace(same[0], provider=provider, bundled=False) if same else None


def _width(
    entry: ModelEntry | None, folder: Folder | None, options: Options, name: str
) -> tuple[int | None, int | None, str]:
    """(width written, width asked of the provider, policy word)."""
    asked = options.dimensions
    native = folder.dimensions if folder else entry.dimensions if entry else None
    if asked is None or asked == native:
        return native, None, "native"
    if native is None or (folder is None and (entry is None or entry.makes(asked))):
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
    if not (entry and entry.reducible) and not options.force:
        raise WrongUsage(f"{name} was not trained to be cut to {asked} dimensions", hint="--force does it all the same")
    return asked, None, "reduce"


def _chain_entries(settings: Settings, first: Endpoint) -> Sequence[str]:
    if settings.chain_override is not None:
        return settings.chain_override
    for name in (first.id, first.provider):
        if name in settings.chains:
            return settings.chains[name]
    return catalog.default_chain(first.provider)


def _narrowed(settings: Settings, first: Endpoint, entries: Sequence[str]) -> Sequence[str]:
    """What a project's [fallback] leaves of a chain; the environment's word on the chain is stronger than a project."""
    if settings.chain_override is not None:
        return entries
    names = (name for name in (first.id, first.provider) if name in settings.chain_filters)
    return project.narrowed_chain(entries, settings.chain_filters.get(next(names, "")))


def _fallback_offer(settings: Settings, entry: str, first: Endpoint, now_s: float) -> Endpoint:
    """An entry of a chain: "provider:model"; or a provider, which means what was asked for where it serves that."""
    provider, colon, model = entry.partition(":")
    checked_provider(settings, provider)
    if not colon:
        model = _served(settings, provider, first) or default_model(settings, provider)
    return endpoint(settings, provider, model, now_s=now_s)


def _served(settings: Settings, provider: str, first: Endpoint) -> str | None:
    """The name under which a provider serves the model that was asked for; None where it does not.

    It does when the catalog says so of it, its own `models` do, or (a place of one's own without `models`) the
    catalog does of its protocol or of whose prices apply; and when such a place says nothing at all.
    """
    for offer in catalog.serving(first.canonical):
        if offer.provider == provider:
            return offer.name
    own, built_in = settings.providers.get(provider, ProviderSettings()), catalog.providers().get(provider)
    asked = (first.model, first.entry.name) if first.entry else (first.model,)
    if own.models:
        return next((name for name in asked if name in own.models), None)
    if built_in is not None and own.base_url is None:
        return None
    for alike in (own.price_as, own.protocol or (built_in.protocol if built_in else None)):
        for offer in catalog.serving(first.canonical):
            if offer.provider == alike:
                return offer.name
    return first.model if own.model is None else None
