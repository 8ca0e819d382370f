"""The user's own prices.toml: set one, write it down, and look closely at all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.ledger.prices import price_entries, price_list
from embedctl.ledger.prices.price import Price, named
from embedctl.ledger.prices.price_list import PriceBook

_HEAD = "# Your own prices, USD per million units; stronger than the catalog's of the same key and day.\n"


def add(place: Path, new: Iterable[Price]) -> None:
    """Append prices to the file, whole or not at all; one of the same key and start is replaced.

    Raises:
        ConfigurationInvalid: With them the file would not hold together (overlaps).
        StorageFailed: The disk refused.
    """
    known = {(*price.key, price.valid_from): price for price in _own(place)}
    for price in new:
        known[(*price.key, price.valid_from)] = price
    ordered = sorted(known.values(), key=lambda price: (price.key, price.valid_from))
    text = _HEAD + "".join(map(_table, ordered))
    price_list.load([*price_list.price_texts(None), (str(place), text)])
    storage.DISK.make_folder(place.parent)
    storage.replace(storage.DISK, place, text.encode())


def _own(place: Path) -> list[Price]:
    """The file's prices as they were written, without the ends that follow from the next one."""
    text = price_list.own_text(place)
    price_list.load([(str(place), text)])  # says in which price what is wrong
    return [price_entries.parse(entry) for entry in price_entries.entries(str(place), text)]


def _table(price: Price) -> str:
    lines = ["", "[[price]]"]
    for key, value in (
        ("provider", price.provider),
        ("model", price.model),
        ("region", price.region),
        ("tier", price.tier),
        ("meter", price.meter),
        ("kind", price.kind),
        ("usd_per_million", format(price.usd_per_million, "f")),
        ("source", price.source),
        ("source_ref", price.source_ref),
        ("confidence", price.confidence),
    ):
        if value is not None:
            lines.append(f"{key} = {_quoted(value)}")
    lines.append(f"valid_from = {price.valid_from.isoformat()}")
    if price.valid_to is not None:
        lines.append(f"valid_to = {price.valid_to.isoformat()}")
    lines.append(f"is_free = {'true' if price.is_free else 'false'}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, with DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a price that a person should look at."""

    price: Price
    kind: str
    sentence: str


def remarks(book: PriceBook, *, now: datetime) -> Iterator[Remark]:
    """Gaps between intervals, outliers among siblings, prices that ended or are still to come.

    What must not be at all (overlaps, zeros that are not free, impossible amounts) `prices.load` refuses.
    """
    by_key: dict[tuple[str, ...], list[Price]] = {}
    for price in book.prices:
        by_key.setdefault(price.key, []).append(price)
    for series in by_key.values():
        for one, after in itertools.pairwise(series):
            if one.valid_to is not None and one.valid_to < after.valid_from:
                yield Remark(one, "gap", f"no price from {one.valid_to:%Y-%m-%d} to {after.valid_from:%Y-%m-%d}")
        if series[-1].valid_to is not None and series[-1].valid_to <= now:
            yield Remark(series[-1], "ended", f"no price since {series[-1].valid_to:%Y-%m-%d}")
        if series[0].valid_from > now:
            yield Remark(series[0], "future", f"holds only from {series[0].valid_from:%Y-%m-%d} on")
    yield from _outliers(book, now)


def _outliers(book: PriceBook, now: datetime) -> Iterator[Remark]:
    """Prices 20 times above or below the median of the same provider's, and tiers dearer than standard."""
    current = [
        price for price in book.prices if price.holds(now) and not price.is_free and price.meter == "input_token"
    ]
    for price in current:
        siblings = sorted(
            other.usd_per_million for other in current if other.provider == price.provider and other.tier == price.tier
        )
        median = siblings[len(siblings) // 2]
        if len(siblings) >= 3 and not median / 20 <= price.usd_per_million <= median * 20:
            yield Remark(price, "outlier", f"{price.usd_per_million} beside a median of {median} at {price.provider}")
        standard = book.price_at(price.provider, price.model, at=now, region=price.region)
        if price.tier == "batch" and standard is not None and price.usd_per_million > standard.usd_per_million:
            yield Remark(price, "tier", f"batch costs more than standard ({standard.usd_per_million})")


def split(name: str) -> tuple[str, str]:
    """PROVIDER:MODEL as its two parts.

    Raises:
        WrongUsage: It has no colon.
    """
    provider, colon, model = name.partition(":")
    if not colon or not provider or not model:
        raise WrongUsage(f"{name!r} is not PROVIDER:MODEL", hint="like openai:text-embedding-3-small")
    return provider, model


def new_price(
    name: str, usd_per_million: str, *, tier: str, region: str, meter: str, kind: str, source: str, start: datetime
) -> Price:
    """A price as typed.

    Raises:
        WrongUsage: Something is wrong with it.
    """
    provider, model = split(name)
    try:
        return price_entries.parse(
            {
                "provider": provider,
                "model": model,
                "usd_per_million": usd_per_million,
                "tier": tier,
                "region": region,
                "meter": meter,
                "kind": kind,
                "source": source,
                "confidence": "confirmed",
                "valid_from": start,
                "is_free": price_entries.exact(usd_per_million) == 0,
            }
        )
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def shown(price: Price) -> dict[str, Any]:
    """A price for people and programs."""
    return {
        "name": named(price),
        "provider": price.provider,
        "model": price.model,
        "region": price.region,
        "tier": price.tier,
        "meter": price.meter,
        "kind": price.kind,
        "usd_per_million": price.usd_per_million,
        "is_free": price.is_free,
        "valid_from": price.valid_from.date().isoformat(),
        "valid_to": None if price.valid_to is None else price.valid_to.date().isoformat(),
        "source": price.source,
        "source_ref": price.source_ref,
        "confidence": price.confidence,
    }
