"""The provider's own account of what it billed: read with an admin key, through the one transport."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from embedctl import providers
from embedctl.backends.http.transport import Transport
from embedctl.errors import ConfigurationInvalid, WrongUsage
from embedctl.providers import _errors, _http
from embedctl.providers._contract import HttpRequest, Provider
from embedctl.records import expanded
from embedctl.routing import credentials
from embedctl.settings import ProviderSettings, Settings

if TYPE_CHECKING:
    from embedctl.reports.provider_export import Fetch

ADMIN_KEYS: Mapping[str, str] = {"openai": "OPENAI_ADMIN_KEY"}
"""Providers that can be asked, and where their admin key is; an ordinary key may not read the account.

Source: facts/accounting.md 1.11, 2026-11-21.
"""

TIMEOUT_S = 60.0
MAX_PAGE_BYTES = 64 << 20


@contextmanager
def fetching(settings: Settings, provider: str) -> Iterator[Fetch]:
    """A function that gets a path below the provider's base URL; the body of a 200.

    Raises:
        WrongUsage: This provider has no such API that is known here.
        ConfigurationInvalid: No admin key.
        ProviderError: From the function, by the class of the refusal.
    """
    if provider not in ADMIN_KEYS:
        raise WrongUsage(
            f"{provider} cannot be asked what it billed",
            hint="--file takes its usage or cost export: CSV or JSON, with a column day",
        )
    variable = ADMIN_KEYS[provider]
    key = credentials.key_in(settings.environment, (variable,))
    if key is None:
        raise ConfigurationInvalid(
            f"{variable} is not set: an ordinary key may not read what was billed",
            hint=f"set {variable}, or name the provider's export with --file",
        )
    dialect = providers.protocol(provider)
    own = settings.providers.get(provider, ProviderSettings())
    found = credentials.place(settings, provider, provider, dialect, 0)
    asked = Provider(name=provider, protocol=provider, base_url=found.base_url, api_key=key)
    transport = Transport(
        connections=1,
        insecure=own.insecure,
        ca_file=expanded(own.ca_file) if own.ca_file else None,
        environ=settings.environment,
    )

    def fetch(path: str, query: Sequence[tuple[str, str]]) -> bytes:
        request = _http.get(asked, f"{_http.base(asked, dialect.BASE_URL)}/{path}?{urlencode(query)}", key)
        return runner.run(_body(transport, request))

    with asyncio.Runner() as runner:
        try:
            yield fetch
        finally:
            runner.run(transport.aclose())


async def _body(transport: Transport, request: HttpRequest) -> bytes:
    answer = await transport.send(request, timeout_s=TIMEOUT_S, max_bytes=MAX_PAGE_BYTES)
    if answer.status != 200:
        raise _errors.refusal("openai", answer.status, answer.headers, answer.body, request)
    return answer.body
