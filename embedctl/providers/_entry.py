"""The way in: whatever a server sends becomes an answer in bounds, or an error of our tree. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from embedctl.errors import AnswerUnusable, EmbedctlError
from embedctl.providers import _foreign
from embedctl.providers._contract import HttpRequest, WireAnswer, WireProtocol

_STRINGS = ("embedding_id", "response_model", "provider", "fallback_from", "dimension_policy", "odd_cost")


def read(
    protocol: WireProtocol, status: int, headers: Mapping[str, str], body: bytes, request: HttpRequest
) -> WireAnswer:
    """What an answer says, by its protocol; no string in it is long, odd or holds the request's key.

    Args:
        headers: Names in lower case.

    Raises:
        ProviderError: The class says what to do next.
    """
    try:
        with np.errstate(all="ignore"):  # numbers beyond float32 are infinite, and refused by name
            wire = protocol.answer(status, headers, body, request)
    except AnswerUnusable as error:  # says how the body begins, and that may be anything
        error.message = _foreign.clean(error.message, request)
        raise
    except EmbedctlError:
        raise
    except Exception as error:  # a protocol's file need not think of everything that a server may send
        raise _foreign.unusable(f"the answer cannot be read ({type(error).__name__})") from error
    return cleaned(wire, request)


def cleaned(wire: WireAnswer, request: HttpRequest) -> WireAnswer:
    changed: dict[str, Any] = {}
    for field in _STRINGS:
        said = getattr(wire, field)
        if said is not None and (kept := _foreign.label(said, request)) != said:
            changed[field] = kept
    return replace(wire, **changed) if changed else wire
