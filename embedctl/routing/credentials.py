"""Where a provider is and how it may be asked: address, key, limits, speed. Reads nothing but key files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from embedctl import storage
from embedctl.backends.http import urls
from embedctl.errors import ConfigurationInvalid
from embedctl.providers import catalog
from embedctl.providers._contract import Provider, Secret, WireProtocol
from embedctl.providers.catalog import ModelEntry, ProviderEntry
from embedctl.records import Limits
from embedctl.routing.rate_limit import RateLimits
from embedctl.settings import ProviderSettings, Settings
from embedctl.settings.share import share_of

# fmt: off
_NOT_FOR_PROTOCOLS = frozenset({
    "protocol", "base_url", "api_key_env", "models", "model", "requests_per_minute", "tokens_per_minute", "concurrency",
    "burst", "timeout_s", "price_as", "free", "per_hour", "insecure", "ca_file", "headers", "user", "max_items",
    "max_tokens", "max_bytes", "jwt_secret_env", "jwt_subject", "pin", "options",
})
# fmt: on


Exposure = Literal["fine", "warned", "refused"]

_QUOTES = "\"'"
MAX_KEY_BYTES = 1 << 16
"""Of a key's file: a private key of any size fits."""


def place(settings: Settings, name: str, protocol_name: str, protocol: WireProtocol, now_s: float) -> Provider:
    """A provider as its protocol sees it.

    Args:
        now_s: Unix time, for a token that is minted for this run.

    Raises:
        ConfigurationInvalid: A key's file or a signing secret cannot be read; a key stands in the base URL.
    """
    own = settings.providers.get(name, ProviderSettings())
    built_in = catalog.providers().get(name)
    url = own.base_url
    if not url and built_in and name == protocol_name:  # OPENAI_BASE_URL is for openai, not for together
        url = next((found for word in protocol.BASE_URL_VARIABLES if (found := settings.environment.get(word))), None)
    options = {**(built_in.options if built_in else {}), **own.options}
    for key in own.__dataclass_fields__:
        if key not in _NOT_FOR_PROTOCOLS and getattr(own, key) is not None:
            options[key] = getattr(own, key)
    if own.pin is not None:
        options["provider"] = own.pin
    if own.jwt_secret_env is not None:
        options["bearer"] = _minted(settings.environment, name, own, now_s)
    secret = key_in(settings.environment, key_variables(settings, name))
    if url:
        urls.check_base(url, key=secret.reveal() if secret else None)
    return Provider(
        name=name,
        protocol=protocol_name,
        base_url=(url or (built_in.base_url if built_in else "") or "").rstrip("/"),
        api_key=secret,
        headers=own.headers,
        options=options,
    )


def key_variables(settings: Settings, name: str) -> tuple[str, ...]:
    """Environment variables in which a provider's key is looked for, first that is set wins."""
    own = settings.providers.get(name, ProviderSettings())
    built_in = catalog.providers().get(name)
    if own.api_key_env:
        return (own.api_key_env,)
    return built_in.api_key_env if built_in else ()


def key_in(environment: Mapping[str, str], variables: Sequence[str]) -> Secret | None:
    """The first variable that is set, or the file that its `_FILE` twin names; None where there is neither.

    Quotes that an env file has left around it are no part of a key: `docker --env-file` and systemd differ in that.

    Raises:
        ConfigurationInvalid: That file cannot be read, or others may read or change it; or a key holds one quote.
    """
    found = _secret_in(environment, variables)
    return None if found is None else Secret(_unquoted(*found))


def _secret_in(environment: Mapping[str, str], variables: Sequence[str]) -> tuple[str, str] | None:
    """(variable, what it or its file holds), as it is."""
    for variable in variables:
        if environment.get(variable):
            return variable, environment[variable]
        named = environment.get(f"{variable}_FILE")
        if named:
            return f"{variable}_FILE", _read(variable, named)[0]
    return None


def _unquoted(variable: str, value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
        value = value[1:-1].strip()
    if any(quote in value for quote in _QUOTES):
        raise ConfigurationInvalid(
            f"the key in {variable} holds a quote: no key does", hint=f"look at {variable}, and set it without quotes"
        )
    return value


def key_source(environment: Mapping[str, str], variables: Sequence[str]) -> str | None:
    """The variable that `key_in` takes the key from; None without one."""
    named = (name for variable in variables for name in (variable, f"{variable}_FILE") if environment.get(name))
    return next(named, None)


def exposed_key_file(environment: Mapping[str, str], variables: Sequence[str]) -> str | None:
    """The sentence that warns of the file which `key_in` reads, when others may read it too; None when all is well."""
    for variable in variables:
        named = environment.get(f"{variable}_FILE")
        if environment.get(variable):
            return None
        if named:
            exposed = _read(variable, named)[1] == "warned"
            return f"others than its owner may read the key in {named} (chmod 600)" if exposed else None
    return None


def _read(variable: str, named: str) -> tuple[str, Exposure]:
    """A key's file, and what to think of who else may get at it."""
    try:
        found = storage.open_small(Path(named), max_bytes=MAX_KEY_BYTES)
        exposed = exposure(found.mode, mine=found.owner == os.geteuid(), sealed=found.sealed)
        if exposed == "refused":
            doing = "change" if found.mode & 0o022 else "read"
            raise ConfigurationInvalid(f"others may {doing} {named}", hint=f"chmod 600 {named}")
        return found.content.decode("utf-8").strip(), exposed
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is no text"
        raise ConfigurationInvalid(f"{variable}_FILE cannot be read: {why}", hint=f"see {named}") from None


def exposure(mode: int, *, mine: bool, sealed: bool) -> Exposure:
    """What to think of a key's file that is not for its owner alone.

    A mounted secret is as its mount made it, often 0444 and root's: its reader cannot change that, and who else is in
    the container sees it anyhow. A file of one's own that everybody may read is a mistake; one for a group may be
    meant so, and one of another user is not this user's to change.

    Args:
        mine: Whether this process's user owns it.
        sealed: Whether it lies on a read-only mount, or where secrets are mounted.
    """
    if sealed:
        return "fine"
    if mode & 0o022 or (mine and mode & 0o004):
        return "refused"
    return "warned" if mode & 0o004 or (mine and mode & 0o040) else "fine"


def _minted(environment: Mapping[str, str], name: str, own: ProviderSettings, now_s: float) -> Secret:
    """A token for this run, signed with the secret that the user's config names."""
    signing = _secret_in(environment, (own.jwt_secret_env or "",))  # any bytes may sign: its quotes are its own
    if signing is None or not own.jwt_subject:
        missing = f"{own.jwt_secret_env} is not set" if signing is None else "jwt_subject is missing"
        raise ConfigurationInvalid(
            f"provider {name!r} cannot sign a token: {missing}",
            hint=f"[providers.{name}] needs jwt_secret_env, the name of a variable that is set, and jwt_subject",
        )
    from embedctl.providers import tldw  # and OpenAI's, whose dialect it speaks: few runs mint a token

    return tldw.minted(Secret(signing[1]), own.jwt_subject, now_s)


def limits(own: ProviderSettings, entry: ModelEntry | None, protocol: WireProtocol) -> Limits:
    """What one request may hold: the user's word, the catalog's, the protocol's."""
    known, general = entry.limits if entry else Limits(), protocol.LIMITS
    return Limits(
        items=own.max_items or known.items or general.items,
        tokens=known.tokens or general.tokens,
        bytes=own.max_bytes or known.bytes or general.bytes,
    )


def rate_limits(settings: Settings, name: str, *, local: bool) -> RateLimits:
    """How fast one may ask: a flag's word on rates, then the user's, the catalog's, the default.

    What a project's file narrowed is the lowest of all these: it lifts nothing that a provider's own table says.
    They are of the whole job: a share of it has that part of them.
    """
    own = settings.providers.get(name, ProviderSettings())
    built_in = catalog.providers().get(name)
    options = settings.options
    shares = share_of(options.shard).count

    def first(option: str, *values: float | None) -> float:
        if option in settings.narrowed:
            return min(filter(None, values), default=0)
        return next((value for value in values if value is not None), 0)

    def own_part(whole: float) -> float:
        return whole if shares == 1 else whole / shares

    if local:
        return RateLimits(concurrency=2)
    return RateLimits(
        concurrency=int(
            first("concurrency", own.concurrency, built_in.concurrency if built_in else None, options.concurrency)
        ),
        requests_per_minute=own_part(
            first("rpm", options.rpm, own.requests_per_minute, built_in.requests_per_minute if built_in else None)
        ),
        tokens_per_minute=own_part(
            first("tpm", options.tpm, own.tokens_per_minute, built_in.tokens_per_minute if built_in else None)
        ),
        burst=max(1, own_part(first("burst", own.burst, built_in.burst if built_in else None, options.burst))),
        counts_items=bool(built_in and built_in.requests_count_items),
    )


def timeout_s(settings: Settings, name: str) -> float:
    """How long one request may take: the provider's own word, else the option; the shorter where a project says."""
    own, asked = settings.providers.get(name, ProviderSettings()).timeout_s, settings.options.timeout
    return min(own or asked, asked) if "timeout" in settings.narrowed else own or asked


def takes_tokens(built_in: ProviderEntry | None, protocol: WireProtocol, *, local: bool) -> bool:
    """Whether token arrays go out as they are: as the provider says, else as its protocol does."""
    if local:
        return False
    said = built_in.takes_tokens if built_in else None
    return bool(protocol.TAKES_TOKENS if said is None else said)
