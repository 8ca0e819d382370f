"""What the name in a request means, who may ask for it, and what the lists of models show. Pure.

prefix of `model` > x-provider, field `provider` > the key's provider > the configured model's > the catalog's
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.providers import catalog
from embedctl.routing import allow, names
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.fallback import AllowList, ChainEntry
from embedctl.server.authentication import Client
from embedctl.server.refusals import Refused
from embedctl.settings import ProviderSettings, Settings

LOCAL = ("onnx", "static")
"""Providers whose models run here."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")


@dataclass(frozen=True, slots=True)
class Target:
    """Which model of which provider a request means; `pinned`: the client named the provider beside the model."""

    provider: str
    model: str
    pinned: bool = False


def target(settings: Settings, client: Client, model: str | None, header: str | None, field: str | None) -> Target:
    """What a request asks for.

    Args:
        header: Of x-provider.
        field: Of the body's `provider`.

    Raises:
        Refused: There is no such provider or model, or the request names two.
    """
    said = header or field
    if header and field and header != field:
        raise _disagree(f"x-provider {header!r} and provider {field!r} disagree")
    if said is not None:
        _check_provider(settings, said)
    if model is None:
        return _default(settings, client, said)
    prefix, rest = _prefix(settings, model)
    if prefix is not None:
        if said not in (None, prefix):
            raise _disagree(f"model {model!r} and provider {said!r} disagree")
        return _known(settings, client, prefix, rest or _default_of(settings, prefix), pinned=header is not None)
    if said is not None:
        return _known(settings, client, said, rest, pinned=header is not None)
    for provider in _candidates(settings, client, rest):
        if is_known(settings, client, provider, rest):
            return Target(provider, rest)
    raise _unknown(model)


def _disagree(message: str) -> Refused:
    return Refused("provider_model_mismatch", message, param="model")


def _unknown(model: str) -> Refused:
    return Refused("model_not_found", f"there is no model {model!r} here", param="model")


def _check_provider(settings: Settings, name: str) -> None:
    if not names.is_provider(settings, name):
        raise _no_provider(name, "provider")


def _no_provider(name: str, param: str) -> Refused:
    if any(one.provider == name for one in catalog.models()):
        return Refused("provider_unsupported", f"provider {name!r} is known, and not wired here", param=param)
    return Refused("unknown_provider", f"unknown provider: {name!r}", param=param)


def _prefix(settings: Settings, model: str) -> tuple[str | None, str]:
    """(provider, model) of `provider:model`, and of `provider/model` where no model is called so."""
    head, colon, rest = model.partition(":")
    if colon and names.is_provider(settings, head):
        return head, rest
    if catalog.named(model) or _is_configured(settings, model):
        return None, model
    if colon and "/" not in head:
        raise _no_provider(head, "model")
    head, slash, rest = model.partition("/")
    return (head, rest) if slash and names.is_provider(settings, head) else (None, model)


def _is_configured(settings: Settings, model: str) -> bool:
    return any(model in place.models or model == place.model for place in settings.providers.values())


def _default(settings: Settings, client: Client, said: str | None) -> Target:
    if said is not None:
        return Target(said, _default_of(settings, said), pinned=True)
    own = next((name for name in client.models or () if not name.endswith("*")), None)
    if own is not None:
        return target(settings, client, own, None, None)
    try:
        return Target(*names.asked_for(settings))
    except WrongUsage as wrong:
        raise Refused("model_not_found", wrong.message, param="model") from None


def _default_of(settings: Settings, provider: str) -> str:
    try:
        return names.default_model(settings, provider)
    except WrongUsage as wrong:
        raise Refused("model_not_found", wrong.message, param="model") from None


def _known(settings: Settings, client: Client, provider: str, model: str, *, pinned: bool) -> Target:
    if not is_known(settings, client, provider, model):
        raise _unknown(f"{provider}:{model}")
    return Target(provider, model, pinned)


def _candidates(settings: Settings, client: Client, model: str) -> Iterator[str]:
    """Providers that a bare name may mean, in order."""
    yield from (name for name in client.providers or () if names.is_provider(settings, name))
    if settings.options.provider is not None or settings.options.model is not None:
        with suppress(WrongUsage):
            yield names.asked_for(settings)[0]
    yield from (name for name, place in settings.providers.items() if model in place.models or model == place.model)
    found = [one for one in catalog.named(model) if one.served]
    yield from (one.provider for one in [one for one in found if one.status != "retired"] or found)


def is_known(settings: Settings, client: Client, provider: str, model: str) -> bool:
    """Whether catalog, settings or an allow-list know a provider's model: a client's word is not enough."""
    own = settings.providers.get(provider, ProviderSettings())
    if model in own.models or model == own.model:
        return True
    entry = catalog.find(provider, model)
    if entry is not None:
        return entry.served or provider in settings.providers
    if provider in LOCAL and is_repository(model) and is_listed(settings, model):
        return True
    if provider not in catalog.providers() and catalog.named(model):
        return True  # a place of one's own that serves a model by its common name
    listed = [rule.models for _, rule in settings.narrowings]
    listed += [one.models for one in settings.workspaces.values()]
    listed.append(client.models)
    named = {name for models in listed for name in models or ()}
    try:
        is_default = (provider, model) == names.asked_for(settings)
    except WrongUsage:
        is_default = False
    return is_default or f"{provider}:{model}" in named or (model in named and provider in settings.providers)


def is_repository(name: str) -> bool:
    """Whether a name is OWNER/NAME of the hub, which no path is: no part begins with a dot, and there is no third.

    The hub has neither `--` nor `..` in names; with them two names could mean one folder here.
    """
    return _REPOSITORY.fullmatch(name) is not None and "--" not in name and ".." not in name


def is_listed(settings: Settings, name: str) -> bool:
    """Whether `[serve] downloads` names it; an entry that ends in `*` has all that begin so."""
    return _matches(settings.serve.downloads, {name})


def check_allowed(settings: Settings, client: Client, endpoint: Endpoint) -> None:
    """Raises Refused when a list forbids what was asked for: the key's, its workspace's, or everybody's."""
    check_entry_allowed(settings, client, endpoint.in_chain)


def check_entry_allowed(settings: Settings, client: Client, entry: ChainEntry) -> None:
    """The same, of what need not be there yet."""
    denied = why_not(client, entry) or _by_lists(settings, client, entry)
    if denied is not None:
        code, message = denied
        raise Refused(code, message, param="model")


def _by_lists(settings: Settings, client: Client, entry: ChainEntry) -> tuple[str, str] | None:
    for rule in allow.lists(settings, client.workspace):
        only_providers = AllowList(rule=rule.rule, providers=rule.providers)
        if only_providers.against(entry):
            return "provider_denied", f"provider {entry.provider!r} is not allowed"
        if rule.against(entry):
            return "model_denied", f"model {entry.model!r} is not allowed"
    return None


def why_not(client: Client, entry: ChainEntry) -> tuple[str, str] | None:
    """(code, sentence) of what a key does not allow, None when it does."""
    if client.providers is not None and not _matches(client.providers, {entry.provider}):
        return "provider_denied", f"provider {entry.provider!r} is not allowed for this key"
    spellings = {entry.model, str(entry)}
    if entry.canonical is not None:
        spellings |= {entry.canonical, entry.canonical.rpartition("/")[2], f"{entry.provider}:{entry.canonical}"}
    if client.models is not None and not _matches(client.models, spellings):
        return "model_denied", f"model {entry.model!r} is not allowed for this key"
    return None


def _matches(patterns: Sequence[str], spellings: set[str]) -> bool:
    """Whether a list has one of the names; an entry that ends in `*` has all that begin so."""
    return any(
        one in spellings or (one.endswith("*") and any(name.startswith(one[:-1]) for name in spellings))
        for one in patterns
    )


def listed(settings: Settings, client: Client, provider: str | None = None) -> list[dict[str, Any]]:
    """Every model that can be asked for, as `/embeddings/models` shows it: what this client may, and the default."""
    try:
        default = names.asked_for(settings)
    except WrongUsage:
        default = ("", "")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one, model in _all(settings, default):
        if provider in (None, one) and (one, model) not in found:
            entry = catalog.find(one, model)
            in_chain = ChainEntry(provider=one, model=model, canonical=entry.canonical if entry else None)
            allowed = why_not(client, in_chain) is None and _by_lists(settings, client, in_chain) is None
            found[one, model] = {
                "provider": one,
                "model": model,
                "allowed": allowed,
                "default": (one, model) == default or model == _default_name(settings, one),
            }
    return list(found.values())


def _all(settings: Settings, default: tuple[str, str]) -> Iterator[tuple[str, str]]:
    if default[0]:
        yield default
    for name, place in settings.providers.items():
        yield from ((name, model) for model in (place.model, *place.models) if model)
    for entry in catalog.models():
        if entry.served and entry.status != "retired":
            yield entry.provider, entry.name


def _default_name(settings: Settings, provider: str) -> str | None:
    try:
        return names.default_model(settings, provider)
    except WrongUsage:
        return None
