"""How providers stand: configured, allowed, with a key, left alone, ill in a running job; and whether they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from embedctl import providers
from embedctl.backends.http import urls
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError
from embedctl.providers import catalog
from embedctl.providers._contract import HttpRequest
from embedctl.records import expanded
from embedctl.routing import allow, circuits, credentials, learned, names
from embedctl.routing.learned import Account, Learned, Served
from embedctl.settings import ProviderSettings, Settings

ONLINE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """What is known of one provider without asking it.

    Attributes:
        base_url: "" for models that run here; without what could be a secret.
        key: set, missing, optional (a server of one's own may want none), or none: none is looked for.
        key_variables: Where it is looked for.
        configured: Whether the user's config has a table for it.
        circuit: closed, or the worst state in a running job: half_open, open, dead.
        held_s: Seconds for which it asked to be left alone; 0 when it did not.
        reason: Why it is held or its circuit is not closed.
        problem: What is wrong with its configuration; None when nothing is.
    """

    name: str
    protocol: str | None
    base_url: str
    key: str
    key_variables: tuple[str, ...]
    configured: bool
    allowed: bool
    circuit: str = "closed"
    held_s: float = 0.0
    reason: str | None = None
    problem: str | None = None


def standings(settings: Settings, *, now_s: float | None = None) -> list[ProviderStatus]:
    """Every known provider, in the order of the catalog, then those of one's own."""
    now = time.time() if now_s is None else now_s
    remembered, _ = learned.load(settings.paths.home / "hints.json")
    running = circuits.running(settings.paths.home / "circuits")
    return [_standing(settings, name, remembered, running, now) for name in names.known_providers(settings)]


def _standing(
    settings: Settings, name: str, remembered: Learned, running: Sequence[dict[str, Any]], now: float
) -> ProviderStatus:
    own = settings.providers.get(name, ProviderSettings())
    built_in = catalog.providers().get(name)
    protocol = own.protocol or (built_in.protocol if built_in else None)
    variables = credentials.key_variables(settings, name)
    url, key, problem = "", "none", None
    try:
        if protocol is None:
            problem = "no protocol"
        else:
            place = credentials.place(settings, name, protocol, providers.protocol(protocol), now)
            url = urls.shown(place.base_url)
            needed = url.startswith("https://") or own.api_key_env is not None
            key = "set" if place.api_key else "none" if not variables else "missing" if needed else "optional"
            if url:
                urls.checked(place.base_url, insecure=own.insecure or settings.options.insecure)
    except EmbedctlError as error:
        problem = error.message
    held = max(
        (
            (remembered.held_s(account, now), hold.reason)
            for account, hold in remembered.holds.items()
            if _named(account.provider) == name
        ),
        default=(0.0, None),
    )
    ill = sorted(
        (one for one in running if one["provider"] == name),
        key=lambda one: ("half_open", "open", "dead").index(one["state"]),
    )
    lists = allow.lists(settings, settings.options.workspace)
    return ProviderStatus(
        name=name,
        protocol=protocol,
        base_url=url,
        key=key,
        key_variables=tuple(variables),
        configured=name in settings.providers,
        allowed=all(rule.providers is None or name in rule.providers for rule in lists),
        circuit=ill[-1]["state"] if ill else "closed",
        held_s=held[0],
        reason=ill[-1]["reason"] if ill else held[1] if held[0] else None,
        problem=problem,
    )


def reachable(settings: Settings, found: Sequence[ProviderStatus]) -> dict[str, str]:
    """Provider → "yes", "here", or why not. Asked without a key, and without a text; any answer is one.

    Only those are asked that could be used: allowed, and configured, with a key, or on this machine.
    """
    usable = [one for one in found if one.allowed and (one.configured or one.key == "set" or _is_near(one))]
    return asyncio.run(_reachable(settings, usable))


def _is_near(one: ProviderStatus) -> bool:
    return not one.base_url or urls.is_loopback(urlsplit(one.base_url).hostname or "")


async def _reachable(settings: Settings, found: Sequence[ProviderStatus]) -> dict[str, str]:
    answers = await asyncio.gather(*(_answers(settings, one) for one in found))
    return {one.name: answer for one, answer in zip(found, answers, strict=True)}


async def _answers(settings: Settings, one: ProviderStatus) -> str:
    from embedctl.backends.http.transport import Transport

    if one.protocol is not None and providers.is_local(one.protocol):
        return "here"
    if not one.base_url or any(word in one.base_url for word in ("RESOURCE", "REGION")):
        return "no address"
    if one.problem:
        return one.problem
    own = settings.providers.get(one.name, ProviderSettings())
    ca_file = expanded(own.ca_file) if own.ca_file else None
    transport = Transport(connections=1, insecure=own.insecure, ca_file=ca_file)
    try:
        await transport.send(HttpRequest(url=one.base_url, method="GET"), timeout_s=ONLINE_S)
    except EmbedctlError as error:
        return "yes" if error.word in ("redirect_refused", "answer_unusable") else error.message
    finally:
        await transport.aclose()
    return "yes"


def forget(settings: Settings, name: str, *, now_s: float | None = None) -> int:
    """Forget what a provider said of itself, and close its circuits in running jobs; how many things were forgotten.

    Raises:
        OutputRefused, StorageFailed: What is remembered cannot be written.
    """
    forgotten = 0

    def change(known: Learned) -> Learned:
        nonlocal forgotten
        keys: list[Account | Served] = [*known.holds, *known.limits, *known.floats_only]
        mine = [key.provider for key in keys if _named(key.provider) == name]
        forgotten = len(mine)
        for provider in set(mine):
            known = known.without(provider)
        return known

    learned.update(settings.paths.home / "hints.json", change, time.time() if now_s is None else now_s)
    ill = [one for one in circuits.running(settings.paths.home / "circuits") if one["provider"] == name]
    circuits.ask_to_close(settings.paths.home / "circuits", name)  # also when none is ill: what is ill is told late
    return forgotten + len(ill)


def _named(place: str) -> str:
    """The provider in "provider@address"."""
    return place.partition("@")[0]
