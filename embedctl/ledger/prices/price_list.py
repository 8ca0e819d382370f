"""The price files, joined: what one million units cost, from when, and who says so.

prices.toml is a list of tables, the catalog's own and the user's (`$EMBEDCTL_HOME/prices.toml`) alike:

    [[price]]
    provider = "openai"
    model = "text-embedding-3-small"
    tier = "standard"                # batch, flex …; "standard" by default
    region = "*"                     # "*" (any) by default
    meter = "input_token"            # input_token_cached, image …; "input_token" by default
    kind = "list"                    # or "contract": your own, stronger than any list price; "list" by default
    usd_per_million = "0.02"         # a string: exact
    valid_from = 2024-01-25          # a day (UTC) or a time
    valid_to = 2025-01-01            # not included; by default until the next price of the same key
    source = "https://…"
    source_ref = "…"                 # optional
    confidence = "confirmed"         # listed, derived, observed_only
    is_free = false                  # true exactly where usd_per_million is 0
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid
from embedctl.ledger.prices.price import Price, PriceKey, bare_name, named, rate_at
from embedctl.ledger.prices.price_entries import entries, parse
from embedctl.settings import toml_files

MAX_BYTES = 8 << 20
"""Of the user's own price file: some 30,000 prices."""


@dataclass(frozen=True)
class PriceBook:
    """All prices that hold or held, checked.

    Attributes:
        fingerprint: Of the files they came from.
    """

    prices: tuple[Price, ...]
    fingerprint: str

    @cached_property
    def _by_model(self) -> Mapping[str, list[Price]]:
        found: dict[str, list[Price]] = {}
        for price in self.prices:
            found.setdefault(price.model, []).append(price)
        return found

    def price_at(
        self,
        provider: str | None,
        model: str,
        *,
        at: datetime,
        region: str = "*",
        tier: str = "standard",
        meter: str = "input_token",
        place: str | None = None,
    ) -> Price | None:
        """What is paid at `at`; None means unknown, never free.

        Args:
            provider: Whose prices (`price_as`).
            place: The configured provider's own name where it differs, for a contract set by that name.
        """
        for name in dict.fromkeys((model, bare_name(model, provider))):
            key = PriceKey(
                provider=place or provider or "", price_as=provider, model=name, region=region, tier=tier, meter=meter
            )
            if (found := rate_at(self._by_model.get(name, ()), key, at).effective) is not None:
                return found
        return None


STALE_AFTER = timedelta(days=180)
"""Providers change prices about once a year: a list that was young at a call by less than this is taken at its word."""


def catalog_day(now: datetime) -> date | None:
    """The day of the shipped list: of its youngest price that holds; None without one."""
    begun = [price.valid_from for price in load(price_texts(None)).prices if price.valid_from <= now]
    return max(begun).date() if begun else None


def catalog_text() -> str:
    """The shipped prices.toml; empty when this installation has none."""
    file = resources.files("embedctl.providers.catalog") / "prices.toml"
    return file.read_text("utf-8") if file.is_file() else ""


def price_texts(own: Path | None) -> list[tuple[str, str]]:
    """(place, TOML) of the shipped prices and the user's own, weaker first."""
    texts = [("the catalog's prices.toml", catalog_text())]
    if own is not None and (text := own_text(own)):
        texts.append((str(own), text))
    return texts


def own_text(place: Path) -> str:
    """The user's own price file; empty where there is none.

    Raises:
        ConfigurationInvalid: It is there and cannot be read.
    """
    if not place.exists() and not place.is_symlink():
        return ""
    try:
        return toml_files.content_of(place, max_bytes=MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(
            f"{place}: byte {error.start} is not UTF-8", hint="prices are TOML in UTF-8"
        ) from None


def fingerprint(texts: Iterable[tuple[str, str]]) -> str:
    """Changes when any price does."""
    return hashlib.blake2b("\0".join(text for _, text in texts).encode(), digest_size=16).hexdigest()


def load(texts: Iterable[tuple[str, str]]) -> PriceBook:
    """Read, check and join price files; of two prices with one key and start the later file's holds.

    Raises:
        ConfigurationInvalid: A file is no TOML, or a price in it is wrong; all that is wrong is named.
    """
    return _joined(tuple(texts))


@lru_cache(maxsize=4)
def _joined(texts: tuple[tuple[str, str], ...]) -> PriceBook:
    found: dict[tuple[Any, ...], Price] = {}
    problems: list[str] = []
    for place, text in texts:
        here: set[tuple[Any, ...]] = set()
        for index, entry in enumerate(entries(place, text), 1):
            try:
                price = parse(entry)
            except ValueError as error:
                problems.append(f"{place}, price {index}: {error}")
                continue
            identity = (*price.key, price.valid_from)
            if identity in here:
                problems.append(f"{place}, price {index}: twice the same key and valid_from: {named(price)}")
            here.add(identity)
            found[identity] = price
    prices = _closed(found.values(), problems)
    if problems:
        raise ConfigurationInvalid(
            problems[0] if len(problems) == 1 else f"{len(problems)} prices are wrong; first: {problems[0]}",
            hint="correct the file; `embedctl prices check` looks closer",
            details=[{"problem": problem} for problem in problems],
        )
    return PriceBook(tuple(prices), fingerprint(texts))


def _closed(prices: Iterable[Price], problems: list[str]) -> list[Price]:
    """Each price until the next of its key; overlaps are problems."""
    ordered = sorted(prices, key=lambda price: (price.key, price.valid_from))
    closed = []
    for index, price in enumerate(ordered):
        after = ordered[index + 1] if index + 1 < len(ordered) and ordered[index + 1].key == price.key else None
        if after is not None and price.valid_to is not None and price.valid_to > after.valid_from:
            problems.append(f"{named(price)}: two prices hold from {after.valid_from:%Y-%m-%d} on")
        closed.append(replace(price, valid_to=after.valid_from) if after and price.valid_to is None else price)
    return closed
