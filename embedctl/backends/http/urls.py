"""Where a key may be sent: rules for base URLs, and the proxy on the way. Pure."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from embedctl.errors import ConfigurationInvalid

# fmt: off
_KEY_WORDS = frozenset({
    "key", "apikey", "api-key", "api_key", "x-api-key", "subscription-key", "token", "access_token", "auth",
    "authorization", "bearer", "code", "secret", "password", "passwd", "sig", "signature", "jwt",
})
# fmt: on
_LOOKS_LIKE_A_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:sk|pk|hf|gsk|xai|nvapi|jina|fw|tgp|ghp)[-_](?=[\w-]*\d)[\w-]{8,}"
    r"|(?<![A-Za-z0-9])(?:AIza|AKIA|ABSK)\w{12,}|eyJ[\w-]{8,}\.[\w-]+"
    r"|(?<![A-Za-z0-9])(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{20,}"
)
"""A word that chance made, or that begins as the vendors' keys do. Ids of hexadecimal digits are none."""
_RANDOM_VALUE = re.compile(r"(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{20,}")

_METADATA_HOSTS = frozenset({"metadata.google.internal", "metadata.goog", "metadata", "instance-data"})
_METADATA_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    )
)
"""Where clouds hand out a machine's own credentials, beside link-local ones: AWS, Google, Alibaba, Oracle, Azure."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

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
    if host and "%" in host and ":" not in host:  # a name is never escaped; only IPv6 has a zone behind it
        raise ConfigurationInvalid("the host of a base URL holds a percent sign", hint="https://HOST[:PORT][/PATH]")
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
    if _plain(host) in _METADATA_HOSTS or (address is not None and is_metadata(address)):
        raise ConfigurationInvalid(f"{host} is a link-local or metadata address, never a provider")
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ConfigurationInvalid(
            f"plain http to {host} would show the key and the texts to the network",
            hint="use https, or insecure = true in the provider's table when the network is yours",
        )
    return parts


def check_base(url: str, *, key: str | None = None) -> None:
    """Refuse a base URL with a key in it: it would stand in messages, listings and files.

    Args:
        key: The provider's own, which may look like anything.

    Raises:
        ConfigurationInvalid: Its path or query looks like one, or holds this one. The message never holds the URL.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or "a provider"
    except ValueError:
        return  # `checked` says so
    said = unquote(f"{parts.path}?{parts.query}#{parts.fragment}")
    values = [value for name, value in parse_qsl(parts.query, keep_blank_values=True)]
    named = any(name.lower() in _KEY_WORDS for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    random = _LOOKS_LIKE_A_KEY.search(said) or any(_RANDOM_VALUE.search(value) for value in values)
    if named or random or (key and len(key) >= _SHORTEST_KEY and key in said):
        raise ConfigurationInvalid(
            f"the URL of {host} holds a key, or what looks like one",
            hint="put the key into an environment variable, and its name into api_key_env",
        )


def shown(url: str) -> str:
    """A base URL for people: where it leads, and nothing in it that could be a secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "(cannot be read)"
    if not host:
        return "(cannot be read)" if url else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{_LOOKS_LIKE_A_KEY.sub('***', parts.path)}"


_SHORTEST_KEY = 8


def is_metadata(address: Address) -> bool:
    """Whether a cloud machine's own credentials are handed out there: link-local, or known for it. Never a provider."""
    inside = _inside(address)
    return any(one.is_link_local or one in _METADATA_ADDRESSES for one in (address, inside))


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by its name alone; nothing is resolved."""
    host = _plain(host)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    # 0.0.0.0 is where servers listen; connecting to it reaches this machine.
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_link_local(address: str) -> bool:
    """Whether an address is one that only machines on the same wire have, or a cloud's metadata service."""
    found = _address(address)
    return found is not None and is_metadata(found)


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
    # Only where there is a proxy: it brings a client and the parsers of mail along.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

    where = f"{host}:{parts.port}" if parts.port else host
    if proxy_bypass_environment(where, {"no": variables.get("no_proxy", "")}):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _address(host: str) -> Address | None:
    """The address a host spells, in any spelling that a resolver takes ("2852039166", "0xa9fea9fe"); else None."""
    host = _plain(host)
    try:
        return _inside(ipaddress.ip_address(host.partition("%")[0] if ":" in host else host), only_mapped=True)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None


def _plain(host: str) -> str:
    """A host as resolvers take it: small letters, no dot at its end, dots and digits of other scripts as ASCII."""
    return re.sub("[\u3002\uff0e\uff61]", ".", unicodedata.normalize("NFKC", host)).lower().rstrip(".")


def _inside(address: Address, *, only_mapped: bool = False) -> Address:
    """The IPv4 address that an IPv6 one leads to, by mapping, 6to4 or NAT64; else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if only_mapped:
        return address.ipv4_mapped or address
    if address in _NAT64 or int(address) < 2**32:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
