"""Prices: exact, dated, checked when they are loaded; and `embedctl prices`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.errors import ConfigurationInvalid, InputInvalid
from embedctl.ledger import prices
from embedctl.ledger.prices import PriceBook, imported, price_file
from embedctl.ledger.prices.price import Price, PriceKey, rate_at, timeline

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def table(**changes: Any) -> str:
    """One [[price]] table; None leaves a key out."""
    values = {"provider": "p", "model": "m", "usd_per_million": "0.02", "valid_from": "2026-01-01", "source": "s"}
    lines = ["[[price]]"]
    for key, value in (values | changes).items():
        if value is not None:
            bare = key.startswith("valid_") or isinstance(value, bool | int | float)
            lines.append(f"{key} = {str(value).lower() if bare else json.dumps(value)}")
    return "\n".join(lines) + "\n"


def book(*tables: str) -> PriceBook:
    """The price book of some tables."""
    return prices.load([("a file", "".join(tables))])


def test_the_shipped_prices_hold_together() -> None:
    """The catalog's own prices pass every check at load, and there is nothing in them to look at."""
    shipped = prices.load(prices.price_texts(None))
    small = shipped.price_at("openai", "text-embedding-3-small", at=datetime(2026, 12, 1, tzinfo=UTC))

    assert small is not None
    assert small.usd_per_million == Decimal("0.02")
    assert not [
        r for r in price_file.remarks(shipped, now=datetime(2026, 12, 1, tzinfo=UTC)) if r.kind in ("gap", "tier")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"usd_per_million": "0"},
        {"is_free": True},
        {"usd_per_million": "-1"},
        {"usd_per_million": "NaN"},
        {"usd_per_million": "0.0000000001"},
        {"usd_per_million": "0.00002"},
        {"usd_per_million": "20000"},
        {"usd_per_million": "cheap"},
        {"usd_per_million": None},
        {"provider": None},
        {"model": ""},
        {"source": None},
        {"valid_from": None},
        {"valid_from": "2026-02-01", "valid_to": "2026-01-01"},
        {"confidence": "surely"},
        {"kind": "bargain"},
        {"colour": "red"},
    ],
)
def test_a_wrong_price_is_refused_at_load(changes: dict[str, Any]) -> None:
    """Zero that is not free, units mixed up, missing and unknown keys: none gets in."""
    with pytest.raises(ConfigurationInvalid):
        book(table(**changes))


def test_all_problems_are_named() -> None:
    """A file with several mistakes names them all at once."""
    with pytest.raises(ConfigurationInvalid) as caught:
        book(table(confidence="x"), table(model="n", kind="x"))

    assert len(caught.value.details) == 2


def test_overlaps_are_refused() -> None:
    """Two prices of one key never hold at once; of different keys they may."""
    with pytest.raises(ConfigurationInvalid, match="two prices hold"):
        book(table(valid_to="2026-06-01"), table(valid_from="2026-05-01", usd_per_million="1"))
    with pytest.raises(ConfigurationInvalid, match="twice"):
        book(table(), table())

    assert len(book(table(), table(tier="batch"), table(region="eu"), table(kind="contract")).prices) == 4


def test_a_price_ends_where_the_next_begins() -> None:
    """Without valid_to a price holds until the next of its key; the border belongs to the next."""
    found = book(table(), table(valid_from="2026-06-01", usd_per_million="0.01"))

    def at(text: str) -> Decimal | None:
        price = found.price_at("p", "m", at=datetime.fromisoformat(text + "+00:00"))
        return None if price is None else price.usd_per_million

    assert at("2025-12-31T23:59:59.999999") is None
    assert at("2026-05-31T23:59:59.999999") == Decimal("0.02")
    assert at("2026-06-01T00:00:00") == Decimal("0.01")


def test_the_users_file_wins() -> None:
    """Of two prices with one key and start, the one of the later file holds; a younger one follows the older."""
    found = prices.load([("ours", table()), ("theirs", table(usd_per_million="0.5"))])

    assert [price.usd_per_million for price in found.prices] == [Decimal("0.5")]


def test_unknown_is_none_and_free_is_zero() -> None:
    """A model without a price has none; a free one costs 0. The two are never mixed up."""
    found = book(table(usd_per_million="0", is_free=True))
    free = found.price_at("p", "m", at=NOW)

    assert free is not None
    assert (free.is_free, free.usd_per_million) == (True, 0)
    assert found.price_at("p", "other", at=NOW) is None
    assert found.price_at(None, "m", at=NOW) is None
    assert found.price_at("p", "m", at=NOW, tier="batch") is None


@given(
    starts=st.lists(st.integers(0, 2000), min_size=1, max_size=6, unique=True),
    regions=st.lists(st.sampled_from(["*", "eu", "us"]), min_size=6, max_size=6),
    kinds=st.lists(st.sampled_from(["list", "contract"]), min_size=6, max_size=6),
    moments=st.lists(st.integers(-10, 2100), min_size=5, max_size=5),
)
def test_the_timeline_is_the_rule(starts: list[int], regions: list[str], kinds: list[str], moments: list[int]) -> None:
    """The intervals that events are joined with say at every moment what the rule for one moment says."""

    def day(number: int) -> datetime:
        return datetime.fromtimestamp(1_600_000_000 + 86_400 * number, UTC)

    tables = [
        table(valid_from=day(start).isoformat(), region=region, kind=kind, usd_per_million=str(index + 1))
        for index, (start, region, kind) in enumerate(zip(starts, regions, kinds, strict=False))
    ]
    found = book(*tables)
    key = PriceKey(provider="place", price_as="p", model="m", region="eu")
    rates = timeline(found.prices, key)
    for moment in map(day, moments):
        holding = [rate for rate in rates if rate.since <= moment and (rate.until is None or moment < rate.until)]
        expected = rate_at(found.prices, key, moment)

        assert [rate.effective for rate in holding] == ([expected.effective] if expected.effective else [])
        assert [rate.listed for rate in holding] == ([expected.listed] if expected.effective else [])


def test_remarks_name_gaps_outliers_and_odd_tiers() -> None:
    """Gaps, endings, future starts, prices 20 times off their siblings and dear batches are pointed out."""
    found = book(
        table(valid_to="2026-02-01"),
        table(valid_from="2026-03-01", valid_to="2026-04-01"),
        table(model="later", valid_from="2027-01-01"),
        *(table(model=f"n{n}", usd_per_million="0.02") for n in range(4)),
        table(model="dear", usd_per_million="20"),
        table(model="n0", tier="batch", usd_per_million="0.03"),
    )
    kinds = sorted((remark.kind, remark.price.model) for remark in price_file.remarks(found, now=NOW))

    assert kinds == [("ended", "m"), ("future", "later"), ("gap", "m"), ("outlier", "dear"), ("tier", "n0")]


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    usd=st.decimals("0.0001", "1000", places=9),
)
def test_a_price_file_reads_back(tmp_path_factory: pytest.TempPathFactory, text: str, usd: Decimal) -> None:
    """What is written to the user's file is what is read from it, whatever characters the names have."""
    place = tmp_path_factory.mktemp("p") / "prices.toml"
    price = Price(
        provider=text,
        model=text,
        usd_per_million=usd,
        valid_from=NOW,
        source=text,
        source_ref=text,
        confidence="listed",
    )
    price_file.add(place, [price])

    assert prices.load([("it", place.read_text("utf-8"))]).prices == (price,)


def test_two_sources_must_agree() -> None:
    """A new price goes in when two lists name it within 1 %, or a person confirms; it is never averaged."""
    ours = book(table(model="known"))

    def offer(model: str, usd: str) -> Price:
        return Price(
            provider="p",
            model=model,
            usd_per_million=Decimal(usd),
            valid_from=NOW,
            source="x",
            confidence="observed_only",
        )

    first = [offer("known", "0.02"), offer("two", "1.00"), offer("one", "1"), offer("apart", "1.00")]
    second = [offer("two", "1.009"), offer("apart", "1.02")]
    found = imported.judge(first, ours, second, now=NOW)
    taken = imported.accepted(found, confirm=False)

    assert [each.verdict for each in found] == ["same", "agrees", "new", "new"]
    assert [(price.model, price.usd_per_million, price.confidence) for price in taken] == [("two", 1, "confirmed")]
    assert len(imported.accepted(found, confirm=True)) == 3


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `embedctl prices ARGS…` in a home of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["prices", *args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return command


def test_set_and_show(run: Run) -> None:
    """A price that is set is shown with its history, exact, and is private to the home."""
    run("set", "eu:m", "0.018", "--from", "2026-01-01")
    run("set", "eu:m", "0.012", "--from", "2026-06-01", "--source", "contract 7")
    code, out, _ = run("show", "eu:m", "--json")
    found = [(p["usd_per_million"], p["valid_from"], p["valid_to"], p["kind"]) for p in json.loads(out)["prices"]]

    assert code == 0
    assert found == [
        ("0.018", "2026-01-01", "2026-06-01", "contract"),
        ("0.012", "2026-06-01", None, "contract"),
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("set", "no-colon", "1"),
        ("set", "p:m", "free"),
        ("set", "p:m", "-1"),
        ("set", "p:m", "1e9"),
        ("set", "p:m", "1", "--from", "soon"),
        ("show", "openai:text-embedding-3-smol"),
        ("list", "--provider", "opnai"),
    ],
)
def test_wrong_arguments_exit_2(run: Run, args: tuple[str, ...]) -> None:
    """Names and amounts that are none are usage errors, with a hint where something is near."""
    code, out, err = run(*args)

    assert (code, out) == (2, "")
    assert "error: " in err.lower()


def test_a_price_for_nobody_is_pointed_out(run: Run) -> None:
    """A price of a provider that is not known here is kept, for it may come, and its name is asked about."""
    code, _, err = run("set", "opnai:m", "1")
    quiet = run("set", "openai:text-embedding-3-small", "0.01")[2]

    assert code == 0
    assert "did you mean openai?" in err
    assert "warning" not in quiet


def test_list_shows_what_holds(run: Run) -> None:
    """`prices list` shows prices that hold now; --all the others too."""
    run("set", "eu:m", "1", "--from", "2090-01-01")
    _, now, _ = run("list", "--json")
    _, everything, _ = run("list", "--all", "--json")
    names = [[price["name"] for price in json.loads(out)["prices"]] for out in (now, everything)]

    assert "eu:m (contract)" not in names[0]
    assert "eu:m (contract)" in names[1]


LITELLM = {
    "sample_spec": {"mode": "one of"},
    "voyage/voyage-99": {"mode": "embedding", "litellm_provider": "voyage", "input_cost_per_token": 6e-8},
    "text-embedding-3-small": {"mode": "embedding", "litellm_provider": "openai", "input_cost_per_token": 2e-8},
    "unknown-zero": {"mode": "embedding", "litellm_provider": "x", "input_cost_per_token": 0},
    "unit-mix-up": {"mode": "embedding", "litellm_provider": "x", "input_cost_per_token": 0.13},
    "chat": {"mode": "chat", "litellm_provider": "openai", "input_cost_per_token": 1e-6},
}
GENAI = [{"id": "voyageai", "models": [{"id": "voyage-99-embed", "prices": {"input_mtok": 0.06}}]}]


def test_import_lists_and_takes(run: Run, tmp_path: Path) -> None:
    """An import takes nothing on one list's word; differences are listed; zeros and unit mix-ups are no prices."""
    (tmp_path / "litellm.json").write_text(json.dumps(LITELLM))
    (tmp_path / "second.json").write_text(json.dumps(LITELLM))
    (tmp_path / "genai.json").write_text(json.dumps(GENAI))
    alone = json.loads(run("import", "litellm.json", "--json")[1])
    both = json.loads(run("import", "litellm.json", "--second", "second.json", "--json")[1])
    genai = json.loads(run("import", "genai.json", "--confirm", "--json")[1])
    shown = json.loads(run("show", "voyage:voyage-99", "--json")[1])["prices"]

    assert (alone["taken"], alone["same"], [o["model"] for o in alone["offers"]]) == (0, 1, ["voyage-99"])
    assert both["taken"] == 1
    assert [(o["model"], o["taken"]) for o in genai["offers"]] == [("voyage-99-embed", True)]
    assert [(p["usd_per_million"], p["confidence"]) for p in shown] == [("0.06", "confirmed")]


@pytest.mark.parametrize(("content", "code"), [("{", 65), ("[1]", 65), ("{}", 65), (None, 66)])
def test_import_refuses_what_is_no_list(run: Run, tmp_path: Path, content: str | None, code: int) -> None:
    """A file that is no price list, or not there, is named."""
    if content is not None:
        (tmp_path / "x.json").write_text(content)

    assert run("import", "x.json")[0] == code


def test_check_exits_78_for_what_cannot_be(run: Run, clean_environment: Path) -> None:
    """`prices check` exits 0 for good files, 3 with --strict for remarks, 78 when a file is wrong."""
    fine = run("check")[0]
    run("set", "eu:m", "1", "--from", "2090-01-01")
    strict = run("check", "--strict")[0]
    (clean_environment / "prices.toml").write_text(table(confidence="x"))

    assert (fine, strict, run("check")[0]) == (0, 3, 78)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000 + b"]" * 200_000,
        b'[{"models":[7]}]',
        b'[{"models":7}]',
        b'[{"models":[{"id":"embed-1","prices":[7]}]}]',
        b"9" * 5000,
        b"null",
    ],
    ids=range(6),
)
def test_a_list_of_any_shape(tmp_path: Path, content: bytes) -> None:
    """A price list that is nested without end, or of another shape inside, is refused by its name."""
    (tmp_path / "list.json").write_bytes(content)

    with pytest.raises(InputInvalid, match=r"list\.json"):
        imported.read_offers(tmp_path / "list.json", now=NOW)


def test_prices_that_are_no_numbers(tmp_path: Path) -> None:
    """A price beyond any number's exponent is none, and the others are read."""
    said = b",".join(
        b'"m%d":{"mode":"embedding","litellm_provider":"openai","input_cost_per_token":%s}' % (number, price)
        for number, price in enumerate([b"1e400", b"1e9999999", b"1e-9999999", b"2e-8"])
    )
    (tmp_path / "list.json").write_bytes(b"{" + said + b"}")

    assert [price.model for price in imported.read_offers(tmp_path / "list.json", now=NOW)] == ["m3"]
