"""What a request asks for: its JSON, checked field by field, once. Pure. Contract: facts/gateway.md 1.2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from embedctl.dataclass import dataclass
from embedctl.records import InputType
from embedctl.server.refusals import Refused

MOST_INPUTS = 2048
MOST_TOKENS = 1_000_000
MOST_DEPTH = 4
_LONGEST_USER = 256
_LONGEST_NAME = 256
_LARGEST_TOKEN = 2**31
_MOST_DIMENSIONS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for vectors.

    Attributes:
        inputs: Texts, or token arrays where `token_arrays`.
        model, provider: As the client says them; None where it does not.
        ignored: Fields that nobody knows.
    """

    inputs: Sequence[str] | Sequence[Sequence[int]]
    token_arrays: bool = False
    model: str | None = None
    provider: str | None = None
    base64: bool = False
    dimensions: int | None = None
    user: str | None = None
    input_type: InputType | None = None
    purpose: str | None = None
    ignored: tuple[str, ...] = ()


def asked(body: bytes, *, ignore_unknown: bool = False) -> Asked:
    """The request of `/embeddings`.

    Raises:
        Refused: With the code and the field of what is wrong first.
    """
    return asked_in(read_object(body), ignore_unknown=ignore_unknown)


def asked_in(fields: Mapping[str, Any], *, ignore_unknown: bool = False) -> Asked:
    """The same, of an object that is read already.

    Raises:
        Refused: As `asked`.
    """
    known = {"input", "model", "encoding_format", "dimensions", "user", "provider", "input_type", "purpose"}
    ignored = _unknown(fields, known, ignore_unknown)
    inputs, token_arrays = _inputs(fields.get("input"))
    return Asked(
        inputs=inputs,
        token_arrays=token_arrays,
        base64=_base64(fields.get("encoding_format")),
        user=_user(fields.get("user")),
        input_type=input_type(fields.get("input_type")),
        purpose=_purpose(fields.get("purpose")),
        ignored=ignored,
        **_common(fields),
    )


def asked_in_batch(body: bytes, *, ignore_unknown: bool = False) -> Asked:
    """The request of `/embeddings/batch`: texts alone.

    Raises:
        Refused: As `asked`.
    """
    fields = read_object(body)
    ignored = _unknown(fields, {"texts", "model", "provider", "dimensions"}, ignore_unknown)
    texts = fields.get("texts")
    if not isinstance(texts, list):
        raise Refused("invalid_input_type", "texts must be a list of strings", param="texts")
    inputs, token_arrays = _inputs(texts, name="texts")
    if token_arrays:
        raise Refused("invalid_input_type", "texts must be strings; token arrays go to /embeddings", param="texts")
    return Asked(inputs=inputs, ignored=ignored, **_common(fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedModel:
    """A request about a model, not for vectors.

    Attributes:
        paid: It may cost something.
    """

    model: str | None = None
    provider: str | None = None
    paid: bool = False


def asked_of_model(body: bytes, *known: str) -> AskedModel:
    """The request of `/embeddings/models/warmup` and its like.

    Args:
        known: Fields beside `model` and `provider`.

    Raises:
        Refused: As `asked`.
    """
    fields = read_object(body)
    _unknown(fields, {"model", "provider", *known}, ignore=False)
    model = _name(fields.get("model"), "model")
    paid = fields.get("paid", False)
    if not isinstance(paid, bool):
        raise Refused("invalid_parameter", "paid must be true or false", param="paid")
    return AskedModel(model=model, provider=_name(fields.get("provider"), "provider"), paid=paid)


def read_object(body: bytes) -> dict[str, Any]:
    """A body's JSON object.

    Raises:
        Refused: It is none.
    """
    found = read_json(body, "the body")
    if not isinstance(found, dict):
        raise _not_json("the body must be a JSON object")
    check_depth(found)
    return found


def read_json(content: bytes, what: str) -> Any:
    """JSON as it is meant: no name twice in an object, no NaN.

    Args:
        what: It is, for the message.

    Raises:
        Refused: It is none.
    """
    try:
        return _DECODER.decode(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise _not_json(f"{what} is not UTF-8") from None
    except _NameError as problem:
        raise _not_json(f"{problem} in {what}") from None
    except (ValueError, RecursionError):
        raise _not_json(f"{what} is not JSON") from None


def check_depth(found: Mapping[str, Any]) -> None:
    """Raises Refused when something stands too deep in it."""
    for name, value in found.items():
        if _depth(value) >= MOST_DEPTH:
            raise Refused("invalid_json", f"{name[:_LONGEST_NAME]!r} is nested too deeply", param=name[:_LONGEST_NAME])


class _NameError(ValueError):
    """A name of an object that none may have."""


def _named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NameError("a key stands twice")
    if not all(map(is_unicode, found)):  # it would stand in an answer, which is UTF-8
        raise _NameError("a key is not Unicode text")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_named, parse_constant=_no_number)


def _depth(value: Any, level: int = 0) -> int:
    """How deep lists and objects stand in each other; beyond the limit it does not matter."""
    if not isinstance(value, list | dict) or level >= MOST_DEPTH:
        return level
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return level + 1
    return max((_depth(one, level + 1) for one in inner), default=level + 1)


def _not_json(why: str) -> Refused:
    return Refused("invalid_json", why)


def _unknown(fields: Mapping[str, Any], known: set[str], ignore: bool) -> tuple[str, ...]:
    unknown = [name for name in fields if name not in known]
    if unknown and not ignore:
        name = unknown[0][:_LONGEST_NAME]
        raise Refused("unknown_parameter", f"unknown field: {name!r}", param=name)
    return tuple(unknown)


def _inputs(value: Any, name: str = "input") -> tuple[list[str] | list[list[int]], bool]:
    """Texts or token arrays, and which of them."""
    if value is None:
        raise Refused("invalid_input_type", f"{name} is missing", param=name)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _wrong_input(name)
    if not value:
        raise Refused("empty_input", f"the {name} list is empty", param=name)
    if all(isinstance(one, int | float) for one in value):
        _check_tokens(value, name)
        return [value], True
    if len(value) > MOST_INPUTS:
        raise Refused("too_many_inputs", f"{len(value)} inputs; at most {MOST_INPUTS} in one request", param=name)
    if all(isinstance(one, str) for one in value):
        for place, text in enumerate(value):
            if not text:
                raise Refused("empty_input", f"input {place} is empty", param=f"{name}[{place}]")
            if not is_unicode(text):
                raise Refused("invalid_input_type", f"input {place} is not Unicode text", param=f"{name}[{place}]")
        return value, False
    if all(isinstance(one, list) for one in value):
        total = 0
        for place, array in enumerate(value):
            if not array:
                raise Refused("empty_input", f"input {place} is empty", param=f"{name}[{place}]")
            _check_tokens(array, f"{name}[{place}]")
            total += len(array)
        if total > MOST_TOKENS:
            raise Refused("invalid_token_array", f"{total} tokens; at most {MOST_TOKENS} in one request", param=name)
        return value, True
    raise _wrong_input(name)


def _wrong_input(name: str) -> Refused:
    return Refused(
        "invalid_input_type", f"{name} must be a string, a list of strings, or token arrays, not mixed", param=name
    )


def _check_tokens(array: list[Any], name: str) -> None:
    if len(array) > MOST_TOKENS:
        raise Refused("invalid_token_array", f"{len(array)} tokens; at most {MOST_TOKENS}", param=name)
    for place, token in enumerate(array):
        if type(token) is not int or not 0 <= token < _LARGEST_TOKEN:
            raise Refused("invalid_token_array", f"item {place} is no token", param=f"{name}[{place}]")


def is_unicode(text: str) -> bool:
    """Whether it is without halves of surrogate pairs: JSON may escape them alone, UTF-8 has none."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _common(fields: Mapping[str, Any]) -> dict[str, Any]:
    dimensions = fields.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= _MOST_DIMENSIONS):
        raise Refused(
            "invalid_dimensions", f"dimensions must be a whole number from 1 to {_MOST_DIMENSIONS}", param="dimensions"
        )
    return {
        "model": _name(fields.get("model"), "model"),
        "provider": _name(fields.get("provider"), "provider"),
        "dimensions": dimensions,
    }


def _name(value: Any, name: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not value.isprintable():
        raise Refused(f"invalid_{name}", f"{name} must be a name", param=name)
    return value


def _base64(value: Any) -> bool:
    if value not in (None, "float", "base64"):
        raise Refused("invalid_encoding_format", "encoding_format must be float or base64", param="encoding_format")
    return bool(value == "base64")


def _user(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_USER or not is_unicode(value):
        raise Refused("invalid_user", f"user must be a string of at most {_LONGEST_USER} characters", param="user")
    return value


def input_type(value: Any) -> InputType | None:
    """What the vectors are for, as a field or a header says it.

    Raises:
        Refused: It is none.
    """
    if value is None or value == "":
        return None
    if value not in get_args(InputType):
        raise Refused(
            "invalid_input_kind", f"input_type must be one of {', '.join(get_args(InputType))}", param="input_type"
        )
    found: InputType = value
    return found


def _purpose(value: Any) -> str | None:
    if value not in (None, "ingest", "query"):
        raise Refused("invalid_purpose", "purpose must be ingest or query", param="purpose")
    return value if value is None else str(value)
