"""`usage report --html`: one small page, whole, true to the JSON report, that reaches for nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.ledger.paths import LedgerPaths
from embedctl.reports import charts
from tests.support.browser import CHROMIUM, MISSING, look
from tests.support.ledger_events import NOON, event, place, take

HOSTILE = "</script><img src=x onerror=alert(1)>$x$\x1b[31m\u2028=1+1"
LIGHT = 300_000
_CHOOSE = """
  const box = label => [...document.querySelectorAll('#filters label')]
    .find(each => each.textContent.startsWith(label)).querySelector('select,input');
  const choose = (label, value) => {
    const one = box(label);
    one.value = value;
    one.dispatchEvent(new Event('change'));
  };
"""
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture
def paths(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """A ledger of ten days, with something of everything, and names that would like to be markup."""
    monkeypatch.chdir(tmp_path)
    found = place(clean_environment)
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(
        found,
        *(
            event(
                occurred_at=NOON - timedelta(days=day),
                tokens_total=1_000_000 * day,
                workspace_id=f"w{day % 3}",
                job_id="nightly",
                tags={"team": f"t{day % 2}"},
            )
            for day in range(1, 11)
        ),
        event(
            workspace_id=HOSTILE, job_id=HOSTILE, usage_source="fallback", tokens_total=5000, tags={HOSTILE: HOSTILE}
        ),
        event(model="x", tokens_total=700),
        event(tokens_estimated=900_000, **lost),
    )
    return found


@pytest.fixture
def empty(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """A ledger without any usage."""
    monkeypatch.chdir(tmp_path)
    return place(clean_environment)


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["usage", "report", *args])


def page(*args: str) -> Path:
    """The page that a report with these flags is."""
    done = run(*args, "--html", "usage.html", "--overwrite")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert Path("usage.html").stat().st_size <= LIGHT
    return Path("usage.html")


def embedded(text: str, name: str = "report") -> Any:
    """What stands in a page for programs."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def tiles(text: str) -> Mapping[str, str]:
    """The figures of a page by their ids."""
    return {key: unescape(value) for key, value in re.findall(r'<b id="(\w+)">([^<]*)</b>', text)}


def test_the_page_is_the_report(paths: LedgerPaths) -> None:
    """The page holds the same report as --json, and shows its figures, money as people write it."""
    text = page().read_text()
    report = json.loads(run("--json").stdout)
    totals = report["totals"]

    assert embedded(text) | {"generated_at": ""} == report | {"generated_at": ""}
    assert tiles(text)["cost"] == "≥ 1.10 USD"
    assert tiles(text)["cost_at_risk"] == "0.02 USD"
    assert tiles(text)["fallback_share"] == "~0.0%"
    assert [tiles(text)[key] for key in ("tokens", "calls", "unpriced_tokens")] == [
        f"{totals[key]:,}" for key in ("tokens", "calls", "unpriced_tokens")
    ]


def test_nothing_is_loaded_from_elsewhere(paths: LedgerPaths) -> None:
    """The page's policy lets nothing in and only its own scripts run; no name in it becomes markup."""
    text = page("--by", "workspace,job").read_text()
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0]
    body = text.split("<body>")[1]

    assert HOSTILE in {group["workspace"] for group in embedded(text)["groups"]}
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r'(src|href)="?(https?:)?//', text)
    assert "<img" not in body
    assert not re.search("[\x1b\u2028\u2029]", text)
    assert body.count("</script>") == 4  # two of JSON, two that run


def test_a_page_replaces_a_file_only_when_told_to(paths: LedgerPaths) -> None:
    """Any file that exists is left, with exit 73, unless --overwrite is said."""
    Path("mine.html").write_text("<p>mine</p>")

    assert [run("--html", "usage.html").exit_code for _ in range(2)] == [0, 73]
    assert run("--html", "usage.html", "--overwrite").exit_code == 0
    assert run("--html", "mine.html").exit_code == 73
    assert run("--html", "none/usage.html").exit_code == 73
    assert Path("mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("events", [60_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_year_of_many_events_is_a_small_page(empty: LedgerPaths, events: int) -> None:
    """A year of a million events weighs no more, says what it leaves out, and adds up to the report's totals."""
    take(empty, event(tokens_total=999_983))
    connection = duckdb.connect(str(empty.database))
    connection.execute(
        "INSERT INTO usage_event SELECT e.* REPLACE (gen_random_uuid() AS event_id, n::VARCHAR AS operation_id, "
        "occurred_at - to_minutes((n * 7919 % 525600)::INT) AS occurred_at, 'w' || n % 31 AS workspace_id, "
        f"'m' || n % 17 AS model, 'j' || n % 501 AS job_id) FROM usage_event e, range({events - 1}) t(n)"
    )
    connection.close()
    text = page("--by", "job,run").read_text()
    found, report = embedded(text, "page"), embedded(text)

    assert report["totals"]["calls"] == sum(found["cells"]["calls"]) == events
    assert sum(found["cells"]["cost"]) == pytest.approx(float(report["totals"]["cost"]), rel=1e-5)
    assert re.search(r"\d+ smaller workspace groups together as “others”", text)
    assert re.search(r"the bars are (week|month)s: by day there are too many for a page", text)
    assert f"{502 - len(report['groups'])} more groups of the report are in the totals only" in text


@pytest.mark.parametrize("events", [60_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_twelve_years_of_everything_are_a_small_page(empty: LedgerPaths, events: int) -> None:
    """Also where months are too many for a page it stays small: fewer names are told apart."""
    take(empty, event(tokens_total=999_983, tags={"team": "red"}))
    connection = duckdb.connect(str(empty.database))
    connection.execute(
        "INSERT INTO usage_event SELECT e.* REPLACE (gen_random_uuid() AS event_id, n::VARCHAR AS operation_id, "
        "occurred_at - to_days((n * 7919 % 4383)::INT) AS occurred_at, 'w' || hash(n) % 9 AS workspace_id, "
        f"'m' || hash(n + 7) % 8 AS model, 'j' || hash(n + 9) % 11 AS job_id) "
        f"FROM usage_event e, range({events - 1}) t(n)"
    )
    connection.close()
    found = embedded(page("--by", "job,tag:team").read_text(), "page")

    assert found["unit"] == "month"
    assert sum(found["cells"]["calls"]) == events


def test_the_groups_asked_for_are_the_pages(paths: LedgerPaths) -> None:
    """--by decides what the bars are and what they are stacked by, --last which days; else days and workspaces."""
    usual = embedded(page().read_text(), "page")
    asked = embedded(
        page("--by", "month,tag:team", "--since", "2026-11-06", "--until", "2026-11-12").read_text(), "page"
    )
    model = embedded(page("--by", "model").read_text(), "page")

    assert (usual["unit"], usual["stack"], usual["buckets"][0]) == ("day", "workspace", "2026-11-05")
    assert (asked["unit"], asked["stack"], asked["buckets"]) == ("month", "asked", ["2026-11-01"])
    assert [each["title"] for each in asked["dimensions"]] == ["workspace", "model", "tag:team"]
    assert set(asked["dimensions"][2]["names"]) == {"t0", "t1"}
    assert model["stack"] == "model"


def test_days_are_those_of_the_time_zone(empty: LedgerPaths) -> None:
    """An event just before midnight in UTC stands on the next day in Berlin, in the bars as in the report."""
    take(empty, event(occurred_at=datetime(2026, 11, 10, 23, 30, tzinfo=UTC)))
    flags = ("--since", "2026-11-10", "--until", "2026-11-12", "--by", "day")
    there = page(*flags, "--timezone", "Europe/Berlin").read_text()

    assert embedded(there)["groups"][0]["day"] == "2026-11-11"
    found = embedded(there, "page")
    assert found["buckets"][found["cells"]["steps"][0]] == "2026-11-11"


def test_a_month_without_data_is_a_gap(empty: LedgerPaths) -> None:
    """Months between two that have usage stand on the axis, empty."""
    take(empty, *(event(occurred_at=NOON - timedelta(days=days)) for days in (0, 150)))
    found = embedded(page("--by", "month", "--until", "2026-11-20").read_text(), "page")

    assert found["buckets"] == [f"2026-{month:02}-01" for month in range(6, 12)]
    assert found["cells"]["calls"] == [1, 1]


def test_what_is_free_is_shown_in_tokens(empty: LedgerPaths) -> None:
    """When nothing costs anything the bars are tokens, not empty."""
    take(empty, event(model="gift", tokens_total=5000))

    assert embedded(page().read_text(), "page")["measure"] == "tokens"


def test_changes_of_prices_are_on_the_page(empty: LedgerPaths) -> None:
    """A price that changed while its model was used is named with its day, before and after."""
    take(empty, *(event(model="moving", occurred_at=NOON - timedelta(days=days)) for days in (1, 9)))

    assert embedded(page().read_text(), "page")["prices"] == [
        {"number": 1, "at": "2026-11-10", "model": "pay:moving", "old": "0.10", "new": "0.05"}
    ]


@given(st.text() | st.sampled_from(["</script>", "<!--", "&lt;", "\u2028"]))
def test_json_in_a_page_is_nothing_but_json(text: str) -> None:
    """Whatever a name holds, its JSON in a page says the same and has no character that a page or script obeys."""
    written = charts.inline(json.dumps({text: text}, ensure_ascii=False))

    assert json.loads(written) == {text: text}
    assert not set(written) & set("<>&\u2028\u2029")


@in_browser
def test_the_page_renders_in_a_browser(paths: LedgerPaths, tmp_path: Path) -> None:
    """Under its own policy the browser draws both charts, fills the tables, and complains about nothing."""
    seen = look(page(), tmp_path)

    assert seen.console == []
    assert seen.dom.count("<canvas") == 2
    assert 'aria-roledescription="chart"' in seen.dom
    assert {"over-time", "month", "by-workspace", "by-model", "jobs"} <= set(
        re.findall(r'<section[^>]*id="([^"]+)"', seen.dom)
    )
    shown = re.sub(r"<script.*?</script>", "", seen.dom.split("<body>")[1], flags=re.DOTALL)
    assert "&lt;img src=x onerror" in shown
    assert "<img" not in shown


@in_browser
def test_filters_change_figures_charts_and_tables(paths: LedgerPaths, tmp_path: Path) -> None:
    """A workspace, a period and a measure are chosen without any network; all that is shown follows, and back again."""
    probe = (
        _CHOOSE
        + """
      const tokens = () => document.getElementById('tokens').textContent;
      const rows = () => document.querySelectorAll('#by-workspace tbody tr').length;
      const before = [tokens(), rows(), document.getElementById('over-time-title').textContent];
      const w1 = [...box('Workspace').options].find(each => each.textContent === 'w1').value;
      choose('Workspace', w1);
      const one = [tokens(), rows(), document.getElementById('scope').textContent.includes('workspace w1')];
      choose('From', '2026-11-08');
      choose('To', '2026-11-12');
      const period = tokens();
      choose('Measure', 'calls');
      choose('Stacked by', 'model');
      const title = document.getElementById('over-time-title').textContent;
      [...document.querySelectorAll('#filters button')].pop().click();
      return {before, one, period, title, after: [tokens(), rows()]};
    """
    )
    told = look(page(), tmp_path, probe=probe).told

    assert told["before"] == ["55,005,700", 5, "Cost by day, by workspace"]
    assert told["one"] == ["22,000,000", 1, True]  # days 1, 4, 7, 10 before
    assert told["period"] == "11,000,000"  # days 4 and 7
    assert told["title"] == "Calls by day, by model"
    assert told["after"] == told["before"][:2]


@in_browser
def test_each_chart_is_a_table_and_a_csv(paths: LedgerPaths, tmp_path: Path) -> None:
    """Buttons show the numbers of a chart, and save them as CSV in which no name is a formula; keys read the bars."""
    take(paths, event(workspace_id="=1+1", job_id="=1+1", tokens_total=90_000_000))
    probe = """
      let saved = '';
      URL.createObjectURL = blob => { blob.text().then(text => { saved = text; }); return 'data:,'; };
      const card = document.getElementById('over-time');
      const [table, csv] = card.querySelectorAll('button');
      table.click();
      const rows = [...card.querySelectorAll('tbody tr')].map(row => row.textContent);
      const hidden = getComputedStyle(card.querySelector('.plot')).display;
      document.querySelector('#jobs .head button').click();
      await new Promise(done => setTimeout(done, 50));
      const jobs = saved;
      csv.click();
      await new Promise(done => setTimeout(done, 50));
      table.click();
      const plot = card.querySelector('.plot');
      for (const key of ['End', 'ArrowLeft', 'Home']) plot.dispatchEvent(new KeyboardEvent('keydown', {key}));
      const read = plot.querySelector('.live').textContent;
      return {rows, hidden, saved, jobs, read, focus: plot.tabIndex, label: plot.getAttribute('aria-label')};
    """
    told = look(page("--until", "2026-11-16"), tmp_path, probe=probe).told

    assert len(told["rows"]) == len(told["saved"].splitlines()) - 1 == 11
    assert told["hidden"] == "none"
    assert "'=1+1," in told["jobs"]
    assert told["read"].startswith("2026-11-05, w1 0.20 USD, total 0.20 USD")
    assert told["focus"] == 0
    assert told["label"].startswith("Cost by day, by workspace. 11 days, total")


@in_browser
@pytest.mark.parametrize("width", [500, 1200])
def test_the_page_fits_its_screen_in_the_dark(paths: LedgerPaths, tmp_path: Path, width: int) -> None:
    """On a phone's and on a desk's dark screen the page is dark, and nothing sticks out."""
    probe = """
      const inside = [...document.querySelectorAll('canvas')].every(one => {
        const place = one.closest('.card').getBoundingClientRect(), box = one.getBoundingClientRect();
        return box.left >= place.left - 1 && box.right <= place.right + 1;
      });
      const fits = innerWidth >= document.documentElement.scrollWidth;
      return [inside, fits, getComputedStyle(document.body).backgroundColor];
    """

    assert look(page(), tmp_path, probe=probe, width=width, dark=True).told == [True, True, "rgb(22, 24, 29)"]


_COLUMNS_OF = """
  const canvas = document.querySelector('#over-time canvas'), context = canvas.getContext('2d');
  const wanted = [...document.querySelectorAll('#over-time .keys .swatch')]
    .map(one => getComputedStyle(one).backgroundColor.match(/\\d+/g).map(Number));
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const columns = wanted.map(() => new Set());
  for (let at = 0; at < pixels.length; at += 4) wanted.forEach(([red, green, blue], index) => {
    const same = pixels[at] === red && pixels[at + 1] === green && pixels[at + 2] === blue;
    if (same) columns[index].add((at / 4) % canvas.width);
  });
"""


@in_browser
def test_one_day_is_one_bar(empty: LedgerPaths, tmp_path: Path) -> None:
    """A single day is a bar of a bar's width in the middle, all its series in it, and one line of the table."""
    take(empty, event(tokens_total=60_000_000), event(workspace_id="b", tokens_total=30_000_000))
    probe = (
        _COLUMNS_OF + "return {columns: columns.map(one => [Math.min(...one), Math.max(...one)]), width: canvas.width};"
    )
    told = look(page("--until", "2026-11-16", "--since", "2026-11-15"), tmp_path, probe=probe).told
    (first, last), second = told["columns"]

    assert second == [first, last]
    assert 30 <= last - first <= 60
    assert abs((first + last) / 2 - told["width"] / 2) < 60


@in_browser
def test_a_name_has_one_colour_on_every_chart(paths: LedgerPaths, tmp_path: Path) -> None:
    """Whatever is measured, and whatever is filtered, a workspace keeps its colour."""
    take(paths, event(workspace_id="free", model="gift", tokens_total=900_000_000))
    probe = (
        _CHOOSE
        + """
      const colours = () => Object.fromEntries([...document.querySelectorAll('#over-time .keys button')]
        .map(one => [one.textContent, one.firstChild.style.background]));
      const cost = colours();
      choose('Measure', 'tokens');
      const tokens = colours();
      choose('Model', '0');
      return {cost, tokens, filtered: colours()};
    """
    )
    told = look(page(), tmp_path, probe=probe).told

    assert told["cost"] == told["tokens"]
    assert len(set(told["cost"].values())) == len(told["cost"]) == 6
    assert told["filtered"].items() <= told["tokens"].items()


@in_browser
def test_a_page_of_nothing_says_so(empty: LedgerPaths, tmp_path: Path) -> None:
    """Without usage there are no charts, no filters, and no complaint."""
    seen = look(page(), tmp_path)

    assert seen.console == []
    assert "There is no usage here." in seen.dom
    assert "<canvas" not in seen.dom
