"""Prices that another list names (litellm's, genai-prices'), beside ours: what agrees, what differs, what is new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid
from embedctl.ledger.prices.price import Price
from embedctl.ledger.prices.price_entries import HIGHEST, LOWEST
from embedctl.ledger.prices.price_list import PriceBook
from embedctl.storage import given_files

AGREEMENT = Decimal("0.01")
"""Two sources that differ by no more than this share agree (facts/accounting.md 1.7, decision 8)."""


@dataclass(frozen=True, slots=True)
class ImportedPrice:
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
    content = given_files.parse_json(given_files.read_text(path), str(path))
    try:
        return _offers(content, path, now)
    except (AttributeError, TypeError, KeyError, ValueError, RecursionError):
        raise InputInvalid(f"{path} has a shape of its own, neither litellm's nor genai-prices'") from None


def _offers(content: Any, path: Path, now: datetime) -> list[Price]:
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if isinstance(content, list) and all(
        isinstance(one, dict) and isinstance(one.get("models"), list) for one in content
    ):
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
        provider = _known_as(entry.get("litellm_provider"))
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
            own = _known_as(provider.get("id"))
            price = _observed(own, str(model["id"]), "standard", value, 1, day, f"genai-prices:{name}")
            if price is not None:
                yield price


_PROVIDERS = {"voyageai": "voyage", "jina_ai": "jina", "together_ai": "together", "fireworks_ai": "fireworks",
              "gemini": "google", "aws": "bedrock", "x-ai": "xai"}  # fmt: skip
"""Their names of our providers."""


def _known_as(name: object) -> str:
    """Our name of a provider of theirs."""
    return _PROVIDERS.get(str(name), str(name))


def _observed(provider: str, model: str, tier: str, value: Any, scale: int, day: datetime, source: str) -> Price | None:
    """A price as another list has it; None where it has none or an impossible one."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 < value <= HIGHEST:
        return None
    if not (given_files.is_word(provider) and given_files.is_word(model)):
        return None
    try:
        usd = (Decimal(value) * scale).quantize(Decimal("0.000000001")).normalize()
    except ArithmeticError:
        return None
    if not LOWEST <= usd <= HIGHEST:
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


def judge(
    offers: Iterable[Price], book: PriceBook, others: Iterable[Price] = (), *, now: datetime
) -> list[ImportedPrice]:
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
        found.append(ImportedPrice(confirmed, ours, verdict))
    return found


def agree(one: Price, other: Price) -> bool:
    """Whether two prices are within 1 % of the larger."""
    low, high = sorted((one.usd_per_million, other.usd_per_million))
    return high - low <= high * AGREEMENT


def accepted(offers: Iterable[ImportedPrice], *, confirm: bool) -> list[Price]:
    """The offers that go in: agreed by two sources, or all that differ when a person confirms."""
    wanted = ("agrees", "new", "differs") if confirm else ("agrees",)
    return [offer.price for offer in offers if offer.verdict in wanted]
