"""Where a key may be sent, and by which proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.backends.http import urls
from embedctl.errors import ConfigurationInvalid

KEY = "sk-canary-0123456789abcdef"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://example.openai.azure.com/openai/deployments/x/embeddings?api-version=2024-10-21",
        "http://localhost:11434",
        "http://LOCALHOST.:8080",
        "http://app.localhost",
        "http://127.0.0.1:8080",
        "http://127.8.9.1",
        "http://[::1]:8080/v1",
        "http://[::ffff:127.0.0.1]",
        "http://0.0.0.0:11434",
        "https://10.0.0.7",
    ],
)
def test_https_and_this_machine_are_allowed(url: str) -> None:
    """Https anywhere and http on this machine are allowed."""
    parts = urls.checked(url)

    assert parts.geturl().lower() == url.lower()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://api.openai.com/v1", "plain http to api.openai.com"),
        ("http://10.0.0.7:8080", "plain http"),
        ("http://localhost.evil.example", "plain http"),
        ("http://127.0.0.1.evil.example", "plain http"),
        ("ftp://api.openai.com", "must be https"),
        ("file:///etc/passwd", "must be https"),
        ("unix:/run/x.sock", "must be https"),
        ("api.openai.com/v1", "must be https"),
        ("", "must be https"),
        ("https://", "must be https"),
        ("https://[::1", "cannot be read"),
        ("https://h:99999", "cannot be read"),
        (f"https://me:{KEY}@h/v1", "user name or password"),
        (f"https://{KEY}@h/v1", "user name or password"),
        (f"https://h/v1?key={KEY}", "holds a key"),
        (f"https://h/v1?API_KEY={KEY}", "holds a key"),
        (f"https://h/v1?a=b&access_token={KEY}", "holds a key"),
        ("https://h/v1?token=", "holds a key"),
    ],
)
def test_what_would_give_a_key_away_is_refused(url: str, words: str) -> None:
    """Plain http to others, other schemes, and keys or passwords inside a URL are refused; the message repeats none."""
    with pytest.raises(ConfigurationInvalid) as caught:
        urls.checked(url)

    assert words in caught.value.message
    assert KEY not in caught.value.message + str(caught.value.hint)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "2852039166",
        "0xa9fea9fe",
        "169.254.43518",
        "metadata.google.internal",
    ],
)
@pytest.mark.parametrize("insecure", [False, True])
def test_a_link_local_host_is_refused_in_any_spelling(host: str, insecure: bool) -> None:
    """The addresses where clouds hand out credentials are refused, however they are spelt and whatever is allowed."""
    for scheme in ("http", "https"):
        with pytest.raises(ConfigurationInvalid, match="link-local"):
            urls.checked(f"{scheme}://{host}/v1", insecure=insecure)


def test_insecure_allows_plain_http_and_nothing_else() -> None:
    """`insecure` allows plain http to other machines, but no key in the URL and no other scheme."""
    assert urls.checked("http://10.0.0.7:8080", insecure=True).hostname == "10.0.0.7"
    for url in (f"http://h/?key={KEY}", f"http://a:{KEY}@h", "ftp://h"):
        with pytest.raises(ConfigurationInvalid):
            urls.checked(url, insecure=True)


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_a_configuration_error(text: str) -> None:
    """Whatever stands in a config: it is accepted or refused, never a crash."""
    for url in (text, f"https://{text}", f"http://{text}/v1?{text}"):
        try:
            urls.checked(url)
        except ConfigurationInvalid:
            continue


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://p:1"}, None),
        ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"ALL_PROXY": "p:1"}, "http://p:1"),
        ({"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}, "http://lower:1"),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": ""}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other, example.com"}, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": ".example.com"}, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "ample.com"}, "http://p:1"),
    ],
)
def test_the_environment_names_the_proxy(environ: dict[str, str], proxy: str | None) -> None:
    """HTTPS_PROXY, then ALL_PROXY, lower case first, unless NO_PROXY names the host."""
    assert urls.proxy_for(urls.checked("https://api.example.com/v1"), environ) == proxy


@pytest.mark.parametrize("url", ["http://localhost:1", "https://localhost", "https://127.0.0.1:8443", "https://[::1]"])
def test_this_machine_is_never_reached_through_a_proxy(url: str) -> None:
    """A proxy is for https to other machines: one that is asked for loopback would see the key."""
    environ = {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}

    assert urls.proxy_for(urls.checked(url), environ) is None


# ── base URLs ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        f"https://h/v1/{KEY}",
        f"https://h/{KEY.replace('-', '%2D')}/v1",
        "https://h/bot/Ab1Cd2Ef3Gh4Ij5Kl6Mn7/v1",
        "https://h/AIzaSyA1b2C3d4E5f6G7h8I9j0KlMnOpQrStUv",
        "https://h/hf_AbCdEfGhIjKlMnOpQrStUv12345",
        "https://h/v1?code=abc",
        "https://h/v1?Subscription-Key=abc",
        "https://h/v1?x=0123456789abcdef0123456789abcdef",
        "https://h/v1#eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0",
        "https://h/v1/plain-secret-word",
    ],
)
def test_a_key_in_a_base_url_is_refused(url: str) -> None:
    """A path or query that looks like a key, or holds the provider's own, is refused; the message repeats none."""
    with pytest.raises(ConfigurationInvalid, match="holds a key, or what looks like one") as caught:
        urls.check_base(url, key="plain-secret-word")

    assert url.removeprefix("https://h/") not in caught.value.message + str(caught.value.hint)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://example.openai.azure.com/openai/deployments/text-embedding-3-small/embeddings?api-version=2024-10-21",
        "https://api.cloudflare.com/client/v4/accounts/0123456789abcdef0123456789abcdef/ai/v1",
        "https://us-central1-aiplatform.googleapis.com/v1/projects/my-project-4711/locations/us-central1",
        "https://h/v1/sk-learn-embeddings",
        "https://h/0f8fad5b-d9cb-469f-a165-70867728950e/v1",
        "",
    ],
)
def test_ids_and_names_in_a_base_url_are_fine(url: str) -> None:
    """Accounts, deployments, projects and versions are no keys."""
    urls.check_base(url, key="plain-secret-word")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        (f"https://me:{KEY}@h:8443/v1?key={KEY}#{KEY}", "https://h:8443/v1"),
        (f"https://{KEY}@[::1]:8443", "https://[::1]:8443"),
        (f"https://h/{KEY}/v1", "https://h/***/v1"),
        (f"https://me:{KEY}@[", "(cannot be read)"),
        (f"https://me:{KEY}@h:99999", "(cannot be read)"),
        (KEY, "(cannot be read)"),
        ("", ""),
    ],
)
def test_a_base_url_is_shown_without_secrets(url: str, shown: str) -> None:
    """User name, password, query and what looks like a key are never part of what people see."""
    assert urls.shown(url) == shown


@given(st.text(max_size=40))
def test_any_text_can_be_shown(text: str) -> None:
    """Whatever stands in a config is shown, or said to be unreadable, and never a crash."""
    for url in (text, f"https://{text}", f"https://u:{KEY}@{text}/v1?{text}"):
        assert KEY not in urls.shown(url)
        try:
            urls.check_base(url)
        except ConfigurationInvalid:
            continue


@pytest.mark.parametrize(
    "host",
    [
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[::ffff:100.100.100.200]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[::169.254.169.254]",
        "100.100.100.200",
        "169.254.169.254.",
        "168.63.129.16",
        "192.0.0.192",
        "metadata.google.internal.",
        "METADATA.goog",
        "169。254。169。254",
        "１６９.254.169.254",
    ],
)
def test_a_metadata_service_is_refused_in_any_spelling(host: str) -> None:
    """Where clouds hand out a machine's credentials no key and no text goes, by whatever address or name."""
    with pytest.raises(ConfigurationInvalid, match="never a provider"):
        urls.checked(f"https://{host}/v1", insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1%2eevil.example", "127.0.0.1%00.evil.example", "localhost%2e", "a%62c"])
def test_a_name_holds_no_percent_sign(host: str) -> None:
    """A host is never escaped: what stands before the sign would pass for this machine."""
    for scheme in ("http", "https"):
        with pytest.raises(ConfigurationInvalid):
            urls.checked(f"{scheme}://{host}/v1", insecure=True)
    assert not urls.is_loopback(host)


def test_a_resolver_that_leads_to_a_metadata_service_is_not_followed() -> None:
    """What a name leads to is judged by the same rule as what is written."""
    for address in ("fd00:ec2::254", "100.100.100.200", "64:ff9b::a9fe:a9fe", "fe80::1%eth0"):
        assert urls.is_link_local(address)
    for address in ("8.8.8.8", "10.0.0.1", "127.0.0.1", "::1", "fd12::1"):
        assert not urls.is_link_local(address)
