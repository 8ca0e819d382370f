"""Where a key may be sent: rules for base URLs, and the proxy on the way. Pure."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

from embedctl.errors import ConfigurationInvalid

# fmt: off
_KEY_WORDS = frozenset({
    "key", "apikey", "api-key", "api_key", "x-api-key", "subscription-key", "token", "access_token", "auth",
    "authorization", "bearer", "secret", "password", "passwd", "sig", "signature", "jwt",
})
# fmt: on
_METADATA_HOSTS = frozenset({"metadata.google.internal", "metadata"})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def checked(url: str, *, insecure: bool = False) -> SplitResult:
    """The URL, taken apart, when a key and texts may be sent there.

    Args:
        url: A base URL or a whole one.
        insecure: plain http to other machines is allowed too.

    Raises:
        ConfigurationInvalid: Not https (or http on this machine), a key or password inside, or a link-local host
            (169.254.169.254 hands out a cloud machine's own credentials). The message never holds the URL.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationInvalid("a base URL cannot be read", hint="https://HOST[:PORT][/PATH]") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationInvalid(
            f"a base URL must be https://HOST[:PORT][/PATH], not {parts.scheme or 'without a scheme'!r}"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationInvalid(
            f"the URL of {host} holds a user name or password", hint="put the key into an environment variable"
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name.lower() in _KEY_WORDS:
            raise ConfigurationInvalid(
                f"the URL of {host} holds a key ({name}=…)", hint="put the key into an environment variable"
            )
    address = _address(host)
    if host.lower() in _METADATA_HOSTS or (address is not None and address.is_link_local):
        raise ConfigurationInvalid(f"{host} is a link-local address, never a provider")
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ConfigurationInvalid(
            f"plain http to {host} would show the key and the texts to the network",
            hint="use https, or insecure = true in the provider's table when the network is yours",
        )
    return parts


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by its name alone; nothing is resolved."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    # 0.0.0.0 is where servers listen; connecting to it reaches this machine.
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_link_local(address: str) -> bool:
    """Whether an address is one that only machines on the same wire have; a cloud's metadata service is at one."""
    found = _address(address)
    return found is not None and found.is_link_local


def proxy_for(parts: SplitResult, environ: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for this URL: only for https, never for this machine.

    Lower-case names win over upper-case ones, `NO_PROXY` is honoured, as curl does.
    """
    host = parts.hostname or ""
    if parts.scheme != "https" or is_loopback(host):
        return None
    variables = {name.lower(): value for name, value in environ.items() if name.isupper() and value}
    variables |= {name: value for name, value in environ.items() if name.islower()}
    proxy = variables.get("https_proxy") or variables.get("all_proxy")
    if not proxy:
        return None
    where = f"{host}:{parts.port}" if parts.port else host
    if proxy_bypass_environment(where, {"no": variables.get("no_proxy", "")}):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _address(host: str) -> Address | None:
    """The address a host spells, in any spelling that a resolver takes ("2852039166", "0xa9fea9fe"); else None."""
    try:
        address: Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
