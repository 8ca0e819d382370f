"""`/dashboard` and `/docs` in a real browser: what they show, what they ask for, and what they never run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedctl.server.openapi import OPERATIONS
from tests.support.browser import CHROMIUM, MISSING
from tests.support.devtools import Tab, tab
from tests.support.serving import MODEL, Serving, serving
from tests.support.wire.client import Wire

HOSTILE = "</script><img src=x onerror=alert(1)><b>$x"
USAGE = "/api/v1/embeddings/usage"
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with usage of names that would like to be markup, and keys of an admin and of a tenant."""
    wire.reset()
    settings = (
        f'[providers.mine]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nmodel = {json.dumps(HOSTILE)}\n'
        '[workspaces.acme]\nbudget = { period = "month", amount = "2", action = "block" }\n[serve]\nuser = "keep"\n'
        f'[models."openai:text-embedding-3-large"]\nusage_mode = "fallback"\n'
    )
    with serving(tmp_path_factory.mktemp("pages"), wire, settings=settings) as found:
        found.keys = {  # type: ignore[attr-defined]
            "admin": found.key("--role", "admin", workspace="office"),
            "acme": found.key("--budget", "1/day", "--name", HOSTILE),
            "other": found.key(workspace="other"),
        }
        for who, model in (("acme", MODEL), ("acme", "text-embedding-3-large"), ("other", f"mine:{HOSTILE}")):
            assert found.embed(["a", "b", "some words"], key=found.keys[who], model=model).status == 200  # type: ignore[attr-defined]
        found.embed(["a"], key=found.keys["acme"])  # type: ignore[attr-defined]
        yield found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def browser(chromium: Tab) -> Tab:
    """A tab of one's own."""
    chromium.renew()
    return chromium


def enter(browser: Tab, key: str) -> None:
    """Type a key into the dashboard."""
    browser.until("!document.getElementById('enter').classList.contains('hidden')")
    browser.run(f"document.getElementById('key').value = {json.dumps(key)}")
    browser.run("document.querySelector('#enter button').click()")


def shown(browser: Tab) -> None:
    browser.until("!document.getElementById('board').classList.contains('hidden')")
    browser.until("document.querySelector('#days canvas') !== null")


def summary(server: Serving, who: str) -> Any:
    key = server.keys[who]  # type: ignore[attr-defined]
    return server.ask("GET", f"{USAGE}/summary", Authorization=f"Bearer {key}").json


def text(browser: Tab, place: str) -> str:
    return str(browser.run(f"document.getElementById('{place}').innerText"))


def usd(amount: str) -> str:
    """As a page writes it: cents, and two digits of what is less."""
    value = float(amount)
    return f"{value:.2f} USD" if value >= 0.01 or not value else f"{float(f'{value:.1e}'):.15f}".rstrip("0") + " USD"


# ── without a browser ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "most"), [("/dashboard", 300_000), ("/docs", 2_200_000)])
def test_a_page_holds_nothing_and_reaches_for_nothing(server: Serving, path: str, most: int) -> None:
    """A page is the same for strangers, light, names no other host to load from, and its policy forbids all else."""
    reply = server.ask("GET", path)
    page = reply.body.decode()
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[0]

    assert reply.status == 200
    assert len(reply.body) < most
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert reply.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert reply.headers["x-frame-options"] == "DENY"
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=(\S*)", page.split("<script>")[0]) == [
        '"data:,">'
    ]
    for secret in ("acme", "office", MODEL if path == "/dashboard" else "acme", str(server.folder)):
        assert secret not in page.split("<script>")[0].partition('id="description"')[0]


def test_pages_can_be_switched_off(wire: Wire, tmp_path: Path) -> None:
    """With `pages = false` there is nothing at their paths; the description is for admins at all times."""
    with serving(tmp_path / "g", wire, settings="[serve]\npages = false\n") as found:
        replies = [found.ask("GET", path) for path in ("/dashboard", "/docs", "/openapi.json")]
        assert [(one.status, one.code) for one in replies] == [(404, "not_found")] * 3


def test_the_description_is_for_admins(server: Serving) -> None:
    """`/openapi.json` wants an admin's key."""
    keys = server.keys  # type: ignore[attr-defined]
    assert server.ask("GET", "/openapi.json").status == 401
    assert server.ask("GET", "/openapi.json", Authorization=f"Bearer {keys['acme']}").code == "admin_required"
    assert server.ask("GET", "/openapi.json", Authorization=f"Bearer {keys['admin']}").json["openapi"] == "3.1.0"


# ── the dashboard ────────────────────────────────────────────────────────────────────────────────────────────────────


@in_browser
@pytest.mark.parametrize("who", ["admin", "acme"])
def test_the_dashboard_shows_what_the_api_says(server: Serving, browser: Tab, who: str) -> None:
    """Figures, tables and bars are the API's; nothing complains, nobody else is asked, no address has the key."""
    key = server.keys[who]  # type: ignore[attr-defined]
    browser.open(f"{server.base}/dashboard")
    enter(browser, key)
    shown(browser)
    found = summary(server, who)

    for place, of in (("today", found["of_today"]), ("month", found["of_month"])):
        lower = "≥ " if of["cost_is_lower_bound"] else ""
        assert text(browser, f"{place}-cost") == lower + usd(of["cost"])
        assert text(browser, f"{place}-tokens") == f"{of['tokens']:,}"
        assert text(browser, f"{place}-calls") == str(of["calls"])
        assert text(browser, f"{place}-errors") == str(of["errors"])
        assert text(browser, f"{place}-hits") == str(of["cache_hits"])
        assert text(browser, f"{place}-risk") == usd(of["cost_at_risk"])
    models = found["of_month_by"]["model"]["rows"]
    rows = browser.run(
        "[...document.querySelectorAll('#models tbody tr')].map(row => [...row.children].map(one => one.textContent))"
    )
    assert [(row[0], row[1], row[5]) for row in rows] == [
        (one["name"], f"{one['tokens']:,}", str(one["calls"])) for one in models
    ]
    assert {row[0]: row[2] for row in rows}["openai:text-embedding-3-large"] == "~100.0%"
    assert browser.run("document.querySelectorAll('#budgets tbody tr').length") == len(found["budgets"])
    assert browser.run("document.querySelectorAll('#circuits tbody tr').length") == len(found["circuits"])
    assert text(browser, "whose") == ("all workspaces" if who == "admin" else "workspace acme")
    assert (HOSTILE in text(browser, "models")) == (who == "admin")
    assert HOSTILE in text(browser, "budgets")
    assert browser.run("document.querySelectorAll('img, b:not(.tile b)').length") == 0
    assert browser.console == []
    assert {one["url"].split("/")[2] for one in browser.asked} == {server.base.split("/")[2]}
    assert not any(key in one["url"] for one in browser.asked)
    assert browser.run("location.href") == f"{server.base}/dashboard"
    assert browser.run("document.cookie") == ""


@in_browser
def test_the_dashboard_lives(server: Serving, browser: Tab) -> None:
    """What is bought while somebody looks appears; other measures are drawn, and told as a table."""
    key = server.keys["acme"]  # type: ignore[attr-defined]
    browser.open(f"{server.base}/dashboard")
    enter(browser, key)
    shown(browser)
    before = text(browser, "today-calls")
    server.embed(f"bought while somebody looks at {before}", key=key)
    browser.until(f"document.getElementById('today-calls').innerText !== '{before}'", seconds=40)
    browser.run("document.querySelector('#filters select').value = 'tokens'")
    browser.run("document.querySelector('#filters select').dispatchEvent(new Event('change'))")
    heading = browser.run("document.getElementById('days-title').textContent")
    browser.run("document.querySelector('#days .head button').click()")
    cells = browser.run("[...document.querySelectorAll('#days tbody tr:last-child > *')].map(one => one.textContent)")
    browser.run("document.getElementById('forget').click()")

    assert heading.startswith("Tokens by day and model")
    assert cells[-1] == f"{summary(server, 'acme')['of_today']['tokens']:,}"
    assert browser.run("sessionStorage.length") == 0
    assert browser.run("document.getElementById('board').classList.contains('hidden')") is True
    assert browser.console == []


@in_browser
def test_a_wrong_key_is_told_and_forgotten(server: Serving, browser: Tab) -> None:
    """A key that is none shows why, is kept nowhere, and is not tried again by itself."""
    browser.open(f"{server.base}/dashboard")
    enter(browser, "emb_wrong")
    browser.until("document.getElementById('why').textContent !== ''")

    assert text(browser, "why") == "the key is not valid"
    assert browser.run("document.getElementById('key').value + sessionStorage.length") == "0"
    assert len([one for one in browser.asked if "summary" in one["url"]]) == 1


@in_browser
def test_a_server_without_keys_asks_for_none(wire: Wire, tmp_path: Path, browser: Tab) -> None:
    """On this machine alone the dashboard is there at once, also before anything was bought."""
    with serving(tmp_path / "g", wire) as found:
        browser.open(f"{found.base}/dashboard")
        browser.until("!document.getElementById('board').classList.contains('hidden')")

        assert text(browser, "today-cost") == "0.00 USD"
        assert "no usage" in text(browser, "days")
        assert browser.console == []


# ── the description ──────────────────────────────────────────────────────────────────────────────────────────────────


@in_browser
def test_the_description_is_shown_and_tried_out(server: Serving, browser: Tab) -> None:
    """Every operation is there; one that is tried out with a key asks this server; nobody else is asked."""
    key = server.keys["acme"]  # type: ignore[attr-defined]
    browser.open(f"{server.base}/docs")
    browser.until(f"document.querySelectorAll('.opblock').length === {len(OPERATIONS)}")
    browser.run("document.querySelector('button.authorize').click()")
    browser.until("document.querySelector('.auth-container input') !== null")
    browser.run(
        "{ const box = document.querySelector('.auth-container input');"
        "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(box, "
        f"{json.dumps(key)}); box.dispatchEvent(new Event('input', {{ bubbles: true }})); }}"
    )
    browser.run("document.querySelector('.auth-container button.authorize').click()")
    browser.run("document.querySelector('.modal-ux .close-modal').click()")
    browser.run("document.querySelector('#operations-Vectors-post_v1_embeddings .opblock-summary-control').click()")
    browser.until("document.querySelector('#operations-Vectors-post_v1_embeddings .execute') !== null")
    before = len(browser.asked)
    status = "#operations-Vectors-post_v1_embeddings .live-responses-table tbody .response-col_status"
    browser.until(  # what is pressed before the page has its example ready is pressed for nothing
        f"document.querySelector({json.dumps(status)}) !== null || "
        "(document.querySelector('#operations-Vectors-post_v1_embeddings .execute').click(), false)"
    )
    sent = [one for one in browser.asked[before:] if not one["url"].startswith("data:")]

    assert browser.run(f"document.querySelector({json.dumps(status)}).innerText").startswith("200")
    assert {one["url"] for one in sent} == {f"{server.base}/v1/embeddings"}
    assert {one["url"].split("/")[2] for one in browser.asked if not one["url"].startswith("data:")} == {
        server.base.split("/")[2]
    }
    assert browser.console == []
