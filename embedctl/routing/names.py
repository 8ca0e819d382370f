"""What a name means: which provider and which model `--model` and `--provider` ask for. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from embedctl.errors import WrongUsage, nearest
from embedctl.providers import catalog
from embedctl.settings import ProviderSettings, Settings

BUNDLED = ("onnx", "all-MiniLM-L6-v2")


def known_providers(settings: Settings) -> list[str]:
    """Built-in and configured names."""
    return list(dict.fromkeys([*catalog.providers(), *settings.providers]))


def is_provider(settings: Settings, name: str) -> bool:
    """Whether a name is one of those."""
    return name in catalog.providers() or name in settings.providers


def checked_provider(settings: Settings, name: str) -> str:
    """`name` itself, when there is such a provider.

    Raises:
        WrongUsage: There is none; the nearest is named.
    """
    if not is_provider(settings, name):
        raise WrongUsage(f"unknown provider: {name!r}", hint=near(name, known_providers(settings)))
    return name


def asked_for(settings: Settings) -> tuple[str, str]:
    """(provider, model) of --model and --provider.

    Raises:
        WrongUsage: They disagree, or nobody knows the name.
    """
    options = settings.options
    if options.provider is not None:
        checked_provider(settings, options.provider)
    if options.model is None:
        if options.provider is None:
            return BUNDLED
        return options.provider, default_model(settings, options.provider)
    prefix, colon, rest = options.model.partition(":")
    if colon and is_provider(settings, prefix):
        if options.provider not in (None, prefix):
            raise WrongUsage(f"--model {options.model} and --provider {options.provider} disagree", hint="give one")
        return prefix, rest or default_model(settings, prefix)
    if options.provider is not None:
        return options.provider, options.model
    return _bare(settings, options.model)


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


def near(word: str, known: Sequence[str]) -> str:
    """A hint that names the known word most like `word`."""
    close = nearest(word, known)
    return f"did you mean {close!r}?" if close else "`embedctl models list` and `providers list` show what there is"


def _bare(settings: Settings, name: str) -> tuple[str, str]:
    """(provider, model) that a name without a provider means."""
    for provider, place in settings.providers.items():
        if name in place.models or name == place.model:
            return provider, name
    found = [one for one in catalog.named(name) if one.served]
    usable = [one for one in found if one.status != "retired"] or found
    if not usable:
        names = sorted({part for one in catalog.models() for part in (one.name, one.name.rpartition("/")[2])})
        prefix, colon, rest = name.partition(":")
        if colon and rest and not catalog.named(prefix):
            raise WrongUsage(f"unknown provider: {prefix!r} (of {name!r})", hint=_how_to_add(settings, prefix, rest))
        pulled = f", onnx:{name} or static:{name} if it was pulled" if "/" in name else ""
        raise WrongUsage(
            f"unknown model: {name!r}", hint=f"{near(name, names)}; or say who serves it: -m PROVIDER:{name}{pulled}"
        )
    bundled = next((one for one in usable if one.bundled and name in (one.name, one.canonical)), None)
    return (bundled.provider, bundled.name) if bundled else (usable[0].provider, name)


def _how_to_add(settings: Settings, provider: str, model: str) -> str:
    """A hint for a provider that is not known: what was meant, or the lines that make it one."""
    close = nearest(provider, known_providers(settings))
    served = [one.id for one in catalog.named(model) if one.served and one.status != "retired"]
    others = f"; {', '.join(served[:3])} {'serves' if len(served) == 1 else 'serve'} it" if served else ""
    return (
        (f"did you mean '{close}:{model}'? or " if close else "")
        + f'tell the settings (`embedctl config path`): [providers.{toml_key(provider)}] with protocol = "openai" and '
        + f'base_url = "http://127.0.0.1:PORT/v1"{others}; `embedctl providers list` shows all'
    )


def toml_key(name: str) -> str:
    """A name as a key of a TOML table."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
