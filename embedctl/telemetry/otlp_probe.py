"""Whether a collector answers, found out without its SDK: one request that holds nothing.

Source: https://opentelemetry.io/docs/specs/otlp/ (2026-11-26): a server should take an empty request as it takes
others; 429, 502, 503 and 504 say "later".
"""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

ANSWER_S = 5.0
"""Nothing waits for it meanwhile."""

_LATER = 429
_BROKEN = 500


def answers(endpoint: str) -> bool:
    """Whether somebody there speaks HTTP and does not say "later". Nothing is sent that could be secret.

    What else is wrong (a password, a path, an address that cannot be read) is for the SDK to find out, which has all
    that the environment says. Of https, whose certificates are its business too, only the connection is tried.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        return True
    if not host or parts.scheme not in ("http", "https"):
        return True
    try:
        if parts.scheme == "https":
            socket.create_connection((host, port or 443), ANSWER_S).close()
            return True
        connection = http.client.HTTPConnection(host, port or 80, timeout=ANSWER_S)
        try:
            path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            connection.request("POST", path, b"", {"Content-Type": "application/x-protobuf"})
            status = connection.getresponse().status
        finally:
            connection.close()
    except http.client.InvalidURL:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return status < _BROKEN and status != _LATER
