"""What libcurl's error codes are among httpx's errors, and what led to them among Python's own."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import httpx
import pycurl

_UNSENT: dict[int, type[httpx.TransportError]] = {
    pycurl.E_OPERATION_TIMEDOUT: httpx.ConnectTimeout,
    pycurl.E_UNSUPPORTED_PROTOCOL: httpx.UnsupportedProtocol,
    pycurl.E_URL_MALFORMAT: httpx.LocalProtocolError,
}
_SENT: dict[int, type[httpx.TransportError]] = {
    pycurl.E_OPERATION_TIMEDOUT: httpx.ReadTimeout,
    pycurl.E_SEND_ERROR: httpx.WriteError,
    pycurl.E_RECV_ERROR: httpx.ReadError,
}
_NAME = (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY)
_CERTIFICATE = (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_ISSUER_ERROR)


class LinkLocalError(OSError):
    """A name led to a link-local address: a cloud machine's own credentials, never a provider."""


def httpx_error(
    code: int, text: str, number: int, *, sent: bool, proxied: bool, proxy_untrusted: bool = False
) -> httpx.TransportError:
    """The error that httpx raises in such a case; its cause is the one that Python would have.

    Args:
        code: One of `pycurl.E_…`.
        text: libcurl's own words; may name the URL.
        number: What the operating system said, 0 for nothing.
        sent: The request was about to leave, and perhaps did.
        proxied: The connection goes through a proxy.
        proxy_untrusted: A certificate that is not trusted is the proxy's.
    """
    kind = httpx.ProxyError if proxy_untrusted and not sent else _kind(code, number, sent=sent, proxied=proxied)
    problem = kind(text)
    problem.__cause__ = None if sent else _cause(code, text, number, proxied=proxied)
    return problem


def _kind(code: int, number: int, *, sent: bool, proxied: bool) -> type[httpx.TransportError]:
    if sent:
        return _SENT.get(code, httpx.RemoteProtocolError)
    if proxied and code not in _CERTIFICATE and code not in _UNSENT and number in (0, errno.ECONNREFUSED):
        return httpx.ProxyError
    return _UNSENT.get(code, httpx.ConnectError)


def _cause(code: int, text: str, number: int, *, proxied: bool) -> OSError | None:
    if code in _NAME:
        return socket.gaierror(socket.EAI_NONAME, text)
    if code in _CERTIFICATE:
        untrusted = ssl.SSLCertVerificationError(1, text)
        untrusted.verify_message = _reason(text)
        return untrusted
    if code == pycurl.E_SSL_CONNECT_ERROR and not proxied:  # a proxy's words before TLS break the handshake, too
        broken = ssl.SSLError(1, text)
        broken.reason = _reason(text)
        return broken
    return OSError(number, os.strerror(number)) if number else None


def _reason(text: str) -> str:
    """Why a certificate or a handshake is no good; libcurl says it behind a colon, and names only the host."""
    if "subject name" in text:
        return "hostname mismatch"
    return text.rpartition(": ")[2][:200] or "handshake failed"
