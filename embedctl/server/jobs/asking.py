"""What a job is asked to do: fields of a body or a query string, checked once, and what `batch run` is told of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

import orjson

from embedctl.dataclass import dataclass
from embedctl.records import format_money
from embedctl.server import fields, model_names
from embedctl.server.authentication import Client
from embedctl.server.refusals import Refused
from embedctl.settings import Settings

Mode = Literal["online", "batch", "auto"]

MOST_TEXTS = 10_000
_MODES = ("online", "batch", "auto")
_TOO_LONG = ("fail", "skip", "truncate", "chunk", "mean")
_NUMBERS = {"dimensions": 1, "chunk_size": 1, "chunk_overlap": 0, "priority": 0}
_MOST = 10**6
_LONGEST_KEY = 256
_LONGEST_COLUMN = 200
_LONGEST_ID = 512
KNOWN = frozenset(
    {"model", "provider", "input_type", "mode", "max_cost_usd", "dry_run", "on_too_long", "text_column", "id_column"}
    | _NUMBERS.keys()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What a job does with its input.

    Attributes:
        model, provider: As the client says them; None where it does not.
        max_cost: USD.
    """

    model: str | None = None
    provider: str | None = None
    dimensions: int | None = None
    input_type: str | None = None
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    on_too_long: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    mode: Mode = "online"
    max_cost: Decimal | None = None
    priority: int = 50
    dry_run: bool = False

    def flags(self) -> list[str]:
        """For `batch run`."""
        named = {
            "dimensions": self.dimensions, "input-type": self.input_type, "chunk-size": self.chunk_size,
            "chunk-overlap": self.chunk_overlap, "on-too-long": self.on_too_long, "text-column": self.text_column,
            "id-column": self.id_column, "max-cost": None if self.max_cost is None else format_money(self.max_cost),
        }  # fmt: skip
        found = [f"--{name}={value}" for name, value in named.items() if value is not None]
        return [*found, f"--mode={self.mode}"]


def wanted(said: Mapping[str, Any]) -> JobOptions:
    """Fields of a body, or of a query string, where everything is text.

    Raises:
        Refused: With the code and the field of what is wrong first.
    """
    numbers = {name: _number(said.get(name), name) for name in _NUMBERS}
    if numbers["chunk_size"] is not None and (numbers["chunk_overlap"] or 0) >= numbers["chunk_size"]:
        raise _wrong("chunk_overlap", "must be smaller than chunk_size")
    priority = numbers.pop("priority")
    if priority is not None and priority > 100:
        raise _wrong("priority", "must be a whole number from 0 to 100")
    return JobOptions(
        model=_name(said.get("model"), "model"),
        provider=_name(said.get("provider"), "provider"),
        input_type=fields.input_type(said.get("input_type")),
        on_too_long=_one_of(said.get("on_too_long"), "on_too_long", _TOO_LONG),
        text_column=_column(said.get("text_column"), "text_column"),
        id_column=_column(said.get("id_column"), "id_column"),
        mode=_one_of(said.get("mode"), "mode", _MODES) or "online",  # type: ignore[arg-type]
        max_cost=_amount(said.get("max_cost_usd")),
        priority=50 if priority is None else priority,
        dry_run=_switch(said.get("dry_run"), "dry_run"),
        **numbers,
    )


def check_known(said: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raises Refused when there is a field that nobody knows."""
    for name in said:
        if name not in known:
            raise Refused("unknown_parameter", f"unknown field: {name[:100]!r}", param=name[:100])


def _wrong(name: str, why: str) -> Refused:
    code = "invalid_dimensions" if name == "dimensions" else "invalid_job"
    return Refused(code, f"{name} {why}", param=name)


def _number(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not _NUMBERS[name] <= value <= _MOST:
        raise _wrong(name, f"must be a whole number of at least {_NUMBERS[name]}")
    return value


def _name(value: Any, name: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 256 or not value.isprintable() or value.startswith("-"):
        raise Refused(f"invalid_{name}", f"{name} must be a name", param=name)
    return value


def _column(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_COLUMN or not value.isprintable():
        raise _wrong(name, "must be the name of a column")
    return value


def _one_of(value: Any, name: str, words: tuple[str, ...]) -> str | None:
    if value is not None and value not in words:
        raise _wrong(name, f"must be one of {', '.join(words)}")
    return value if value is None else str(value)


def _amount(value: Any) -> Decimal | None:
    if value is None:
        return None
    amount = Decimal("nan")
    if isinstance(value, str | int | float) and not isinstance(value, bool) and len(str(value)) <= 40:
        try:
            amount = Decimal(str(value))
        except ArithmeticError:
            amount = Decimal("nan")
    if not amount.is_finite() or not 0 <= amount <= 10**12 or int(amount.as_tuple().exponent) < -12:
        raise _wrong("max_cost_usd", "must be an amount in USD")
    return amount


def _switch(value: Any, name: str) -> bool:
    if value in (None, "", False, "false", "0"):
        return False
    if (value in (True, "true", "1") and not isinstance(value, int | float)) or value is True:
        return True
    raise _wrong(name, "must be true or false")


def idempotency_key(said: str | None) -> str | None:
    """Of the header.

    Raises:
        Refused: It is none.
    """
    if said is None:
        return None
    if not 0 < len(said) <= _LONGEST_KEY or not said.isascii() or not said.isprintable():
        raise Refused("invalid_job", "Idempotency-Key must be printable ASCII, at most 256", param="Idempotency-Key")
    return said


def target(settings: Settings, client: Client, asked: JobOptions, header: str | None = None) -> model_names.Target:
    """What is embedded with.

    Raises:
        Refused: There is no such model, or two are named.
    """
    return model_names.target(settings, client, asked.model, header, asked.provider)


def fingerprint(*parts: Any) -> str:
    """Equal for equal parts."""
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def texts(value: Any) -> bytes:
    """Rows of a body's `texts` as JSON Lines.

    Raises:
        Refused: They are no texts, too many, or two have one id.
    """
    if not isinstance(value, list):
        raise Refused("invalid_input_type", "texts must be a list of {id, text}", param="texts")
    if not value:
        raise Refused("empty_input", "texts is empty", param="texts")
    if len(value) > MOST_TEXTS:
        raise Refused(
            "too_many_inputs", f"{len(value)} texts; at most {MOST_TEXTS}: send more as JSON Lines", param="texts"
        )
    lines, seen = [], set()
    for place, one in enumerate(value):
        param = f"texts[{place}]"
        if not isinstance(one, dict) or one.keys() != {"id", "text"} or not isinstance(one["text"], str):
            raise Refused("invalid_input_type", f"{param} must be {{id, text}}", param=param)
        name = one["id"]
        if not isinstance(name, str | int) or isinstance(name, bool) or len(str(name)) > _LONGEST_ID:
            raise Refused("invalid_input_type", f"{param}: id must be a string or a whole number", param=f"{param}.id")
        if str(name) in seen:
            raise Refused("invalid_input_type", f"{param}: its id stands there twice", param=f"{param}.id")
        seen.add(str(name))
        try:
            lines.append(orjson.dumps({"id": name, "text": one["text"]}, option=orjson.OPT_APPEND_NEWLINE))
        except (ValueError, TypeError):
            raise Refused("invalid_input_type", f"{param} is not Unicode text", param=param) from None
    return b"".join(lines)
