"""The user's own prices.toml: set one, import a list of others, and look closely at all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from embedctl import storage
from embedctl.errors import InputInvalid, InputMissing, WrongUsage
from embedctl.ledger import prices
from embedctl.ledger.prices import Price, PriceBook, named

AGREEMENT = Decimal("0.01")
"""Two sources that differ by no more than this share agree (facts/accounting.md 1.7, decision 8)."""

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
    prices.load([*prices.price_texts(None), (str(place), text)])
    storage.DISK.make_folder(place.parent)
    storage.replace(storage.DISK, place, text.encode())


def _own(place: Path) -> list[Price]:
    """The file's prices as they were written, without the ends that follow from the next one."""
    if not place.is_file():
        return []
    return [prices.parse(entry) for entry in prices.entries(str(place), place.read_text("utf-8"))]


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
class Offer:
    """A price that another list names, beside ours.

    Attributes:
        ours: What holds now; None when nothing does.
        verdict: "same", "new", "agrees" (a second source says so within 1 %) or "differs".
    """

    price: Price
    ours: Price | None
    verdict: str


def read_offers(path: Path, *, now: datetime) -> list[Price]:
    """Embedding prices of a litellm or genai-prices JSON file, as observed now.

    Raises:
        InputMissing, InputInvalid: No such file; neither of the two formats.
    """
    try:
        content = json.loads(path.read_text("utf-8"), parse_float=Decimal)
    except FileNotFoundError:
        raise InputMissing(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise InputInvalid(f"{path} is no JSON: {error}") from None
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if isinstance(content, list) and all(isinstance(entry, dict) and "models" in entry for entry in content):
        found = _genai(content, day, path.name)
    elif isinstance(content, dict) and any(isinstance(e, dict) and "mode" in e for e in content.values()):
        found = _litellm(content, day, path.name)
    else:
        raise InputInvalid(f"{path} is neither litellm's nor genai-prices' list", hint="their JSON files")
    return list({price.key: price for price in found}.values())


def _litellm(content: Mapping[str, Any], day: datetime, name: str) -> Iterator[Price]:
    """Zero and missing prices there mean unknown (facts/accounting.md 1.1): left out."""
    for key, entry in content.items():
        if not isinstance(entry, dict) or entry.get("mode") != "embedding":
            continue
        provider = _PROVIDERS.get(str(entry.get("litellm_provider")), str(entry.get("litellm_provider")))
        model = key.removeprefix(f"{entry.get('litellm_provider')}/")
        for field, tier in (("input_cost_per_token", "standard"), ("input_cost_per_token_batches", "batch")):
            price = _observed(provider, model, tier, entry.get(field), 1_000_000, day, f"litellm:{name}")
            if price is not None:
                yield price


def _genai(content: Sequence[Mapping[str, Any]], day: datetime, name: str) -> Iterator[Price]:
    for provider in content:
        for model in provider["models"]:
            if "embed" not in str(model.get("id", "")).lower():
                continue
            listed = model.get("prices")
            entry = listed[-1].get("prices", {}) if isinstance(listed, list) and listed else listed
            value = entry.get("input_mtok") if isinstance(entry, dict) else None
            own = _PROVIDERS.get(str(provider.get("id")), str(provider.get("id")))
            price = _observed(own, str(model["id"]), "standard", value, 1, day, f"genai-prices:{name}")
            if price is not None:
                yield price


_PROVIDERS = {"voyageai": "voyage", "jina_ai": "jina", "together_ai": "together", "fireworks_ai": "fireworks",
              "gemini": "google", "aws": "bedrock", "x-ai": "xai"}  # fmt: skip
"""Their names of our providers."""


def _observed(provider: str, model: str, tier: str, value: Any, scale: int, day: datetime, source: str) -> Price | None:
    """A price as another list has it; None where it has none or an impossible one."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value <= 0:
        return None
    try:
        usd = (Decimal(value) * scale).quantize(Decimal("0.000000001")).normalize()
    except InvalidOperation:
        return None
    if not prices.LOWEST <= usd <= prices.HIGHEST:
        return None
    return Price(
        provider=provider,
        model=model,
        tier=tier,
        usd_per_million=usd,
        valid_from=day,
        source=source,
        confidence="observed_only",
    )


def judge(offers: Iterable[Price], book: PriceBook, others: Iterable[Price] = (), *, now: datetime) -> list[Offer]:
    """Each offered price beside ours; `others` is a second source. Differences are listed, never averaged."""
    second = {price.key: price for price in others}
    found = []
    for price in offers:
        ours = book.price_at(price.provider, price.model, at=now, region=price.region, tier=price.tier)
        listed = ours if ours is not None and ours.kind == "list" else None
        witness = second.get(price.key)
        if listed is not None and listed.usd_per_million == price.usd_per_million:
            verdict = "same"
        elif witness is not None and agree(witness, price):
            verdict = "agrees"
        else:
            verdict = "new" if listed is None else "differs"
        confirmed = replace(price, confidence="confirmed") if verdict == "agrees" else price
        found.append(Offer(confirmed, ours, verdict))
    return found


def agree(one: Price, other: Price) -> bool:
    """Whether two prices are within 1 % of the larger."""
    low, high = sorted((one.usd_per_million, other.usd_per_million))
    return high - low <= high * AGREEMENT


def accepted(offers: Iterable[Offer], *, confirm: bool) -> list[Price]:
    """The offers that go in: agreed by two sources, or all that differ when a person confirms."""
    wanted = ("agrees", "new", "differs") if confirm else ("agrees",)
    return [offer.price for offer in offers if offer.verdict in wanted]


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
        return prices.parse(
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
                "is_free": prices.exact(usd_per_million) == 0,
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
