"""What a failed exchange means, in our errors and in words. Names the host, never the path, query or headers."""

from __future__ import annotations

import socket
import ssl

import httpx

from embedctl.backends.http.curl_codes import LinkLocalError
from embedctl.errors import AnswerLost, NotSent, ProviderError

WORDS: dict[type[Exception], str] = {
    httpx.ConnectError: "cannot connect to {host}",
    httpx.ConnectTimeout: "{host} does not take the connection",
    httpx.PoolTimeout: "no connection to {host} became free",
    httpx.ProxyError: "the proxy refuses to connect to {host}",
    httpx.UnsupportedProtocol: "{host} is asked for in a protocol that is not http",
    httpx.LocalProtocolError: "the request to {host} is not valid HTTP",
    httpx.ReadTimeout: "{host} took the request and fell silent",
    httpx.WriteTimeout: "{host} stopped reading the request",
    httpx.ReadError: "{host} closed the connection before its answer was complete",
    httpx.WriteError: "{host} closed the connection while the request was sent",
    httpx.CloseError: "the connection to {host} could not be closed",
    httpx.RemoteProtocolError: "{host} broke off, or answered something that is not HTTP",
    httpx.DecodingError: "{host} sent an answer whose encoding is broken",
    httpx.TooManyRedirects: "{host} redirects in circles",
    httpx.HTTPStatusError: "{host} answered with an error",
}
"""What each error of httpx means, for people; a test fails when httpx grows one that is not here."""


def translated(problem: Exception, host: str, *, written: bool) -> ProviderError:
    """Our error for one of httpx's, or of the operating system's. Names the host, never the path, query or headers.

    Args:
        written: Whether anything of the request had been written: `AnswerLost`, else `NotSent`.
    """
    sentence = next((WORDS[kind] for kind in type(problem).__mro__ if kind in WORDS), "{host} cannot be reached")
    message = sentence.format(host=host)
    if written:
        return AnswerLost(message)
    if isinstance(problem, httpx.ProxyError):
        host = f"the proxy on the way to {host}"
    cause = problem.__cause__
    if isinstance(cause, LinkLocalError):
        return NotSent(f"{host} leads to a link-local address, never a provider", provider_code="link_local")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return NotSent(
            f"the certificate of {host} is not trusted: {cause.verify_message}",
            hint="ca_file = FILE in the provider's table names certificates to trust besides the public ones",
            provider_code="certificate",
        )
    if isinstance(cause, ssl.SSLError):
        return NotSent(f"no TLS with {host}: {cause.reason}", provider_code="tls")
    if isinstance(cause, socket.gaierror):
        return NotSent(f"cannot resolve {host}", hint="is the network up, the name right?")
    if isinstance(cause, ConnectionRefusedError):
        return NotSent(f"{host} refuses the connection", hint="is a server running there?")
    return NotSent(message)
