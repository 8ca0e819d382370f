"""What a failed exchange means, in our errors and in words. Names the host, never the path, query or headers."""

from __future__ import annotations

import errno

import pycurl

from embedctl.backends.http.curls import CurlError
from embedctl.errors import AnswerLost, NotSent, ProviderError

_PROXY_REFUSES = "the proxy refuses to connect to {host}"
_BROKE_OFF = "{host} broke off, or answered something that is not HTTP"
WORDS: dict[int, str] = {
    pycurl.E_COULDNT_CONNECT: "cannot connect to {host}",
    pycurl.E_OPERATION_TIMEDOUT: "{host} does not take the connection",
    pycurl.E_UNSUPPORTED_PROTOCOL: "{host} is asked for in a protocol that is not http, or answered in another",
    pycurl.E_URL_MALFORMAT: "the URL of {host} cannot be asked",
    pycurl.E_SEND_ERROR: "{host} closed the connection while the request was sent",
    pycurl.E_RECV_ERROR: "{host} closed the connection before its answer was complete",
    pycurl.E_GOT_NOTHING: _BROKE_OFF,
    pycurl.E_PARTIAL_FILE: _BROKE_OFF,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: _BROKE_OFF,
    pycurl.E_WRITE_ERROR: _BROKE_OFF,
    pycurl.E_ABORTED_BY_CALLBACK: _BROKE_OFF,
}
"""What errors of libcurl mean, for people."""

_CERTIFICATE = (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_ISSUER_ERROR)


def translated(problem: CurlError, host: str, *, written: bool, proxied: bool = False) -> ProviderError:
    """Our error for one of libcurl's. Names the host, never the path, query or headers.

    Args:
        written: Whether anything of the request had been written: `AnswerLost`, else `NotSent`.
        proxied: Whether the connection goes through a proxy.
    """
    if written:
        return AnswerLost(WORDS.get(problem.code, _BROKE_OFF).format(host=host))
    sentence = WORDS.get(problem.code, "{host} cannot be reached")
    if problem.code in _CERTIFICATE:
        return NotSent(
            f"the certificate of {host} is not trusted: {_reason(problem.text)}",
            hint="ca_file = FILE in the provider's table names certificates to trust besides the public ones",
            provider_code="certificate",
        )
    if problem.code == pycurl.E_SSL_CONNECT_ERROR and not proxied:
        return NotSent(f"no TLS with {host}: {_reason(problem.text)}", provider_code="tls")
    there = f"the proxy on the way to {host}" if proxied else host
    if problem.code in (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY):
        return NotSent(f"cannot resolve {there}", hint="is the network up, the name right?")
    if problem.code == pycurl.E_COULDNT_CONNECT and problem.errno == errno.ECONNREFUSED:
        return NotSent(f"{there} refuses the connection", hint="is a server running there?")
    if proxied and problem.code == pycurl.E_SSL_CONNECT_ERROR:
        sentence = _PROXY_REFUSES
    elif proxied and problem.errno == errno.ECONNRESET:
        sentence = WORDS[pycurl.E_COULDNT_CONNECT]
    elif proxied and not problem.errno and problem.code != pycurl.E_OPERATION_TIMEDOUT:
        sentence = _PROXY_REFUSES
    return NotSent(sentence.format(host=host))


def _reason(text: str) -> str:
    """Why a certificate or a handshake is no good; libcurl says it behind a colon, and names only the host."""
    if "subject name" in text:
        return "hostname mismatch"
    return text.rpartition(": ")[2][:200] or "handshake failed"
