"""`usage report --html`: one page, whole, true to the JSON report, that reaches for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.ledger.paths import LedgerPaths
from tests.support.ledger_events import NOON, event, place, take

CHROMIUM = shutil.which("chromium")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
         "--virtual-time-budget=8000")  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)>$x$\x1b[31m"


@pytest.fixture
def paths(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """A ledger of ten days, with something of everything, and names that would like to be markup."""
    pytest.importorskip("plotly", reason="plotly is not installed here")
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
            )
            for day in range(1, 11)
        ),
        event(workspace_id=HOSTILE, job_id=HOSTILE, usage_source="fallback", tokens_total=5000),
        event(model="x", tokens_total=700),
        event(tokens_estimated=900_000, **lost),
    )
    return found


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["usage", "report", *args])


def embedded(page: str) -> Any:
    """The report that stands in the page for programs."""
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_the_report(paths: LedgerPaths) -> None:
    """The page holds the same report as --json, and shows its figures."""
    told = run("--html", "usage.html")
    page = Path("usage.html").read_text()
    report = json.loads(run("--json").stdout)
    tiles = {key: unescape(text) for key, text in re.findall(r'<b id="(\w+)">([^<]*)</b>', page)}
    totals = report["totals"]

    assert (told.exit_code, told.stdout) == (0, "")
    assert {key: value for key, value in embedded(page).items() if key != "generated_at"} == {
        key: value for key, value in report.items() if key != "generated_at"
    }
    assert tiles["cost"] == f"≥ {totals['cost']}00"
    assert tiles["cost_at_risk"] == f"{totals['cost_at_risk']}000"[:8]
    assert [tiles[key] for key in ("tokens", "calls", "unpriced_tokens")] == [
        f"{totals[key]:,}" for key in ("tokens", "calls", "unpriced_tokens")
    ]


def test_nothing_is_loaded_from_elsewhere(paths: LedgerPaths) -> None:
    """The page forbids itself every request, and no name in it becomes markup."""
    run("--html", "usage.html", "--by", "workspace,job")
    assert HOSTILE in {group["workspace"] for group in embedded(Path("usage.html").read_text())["groups"]}
    body = Path("usage.html").read_text().split("<body>")[1]

    assert "default-src 'none'" in Path("usage.html").read_text()
    assert not re.search(r'(src|href)="(https?:)?//', body)
    assert "<img" not in body
    assert "\x1b" not in body


def test_a_page_replaces_a_file_only_when_told_to(paths: LedgerPaths) -> None:
    """Any file that exists is left, with exit 73, unless --overwrite is said."""
    Path("mine.html").write_text("<p>mine</p>")

    assert [run("--html", "usage.html").exit_code for _ in range(2)] == [0, 73]
    assert run("--html", "usage.html", "--overwrite").exit_code == 0
    assert run("--html", "mine.html").exit_code == 73
    assert run("--html", "none/usage.html").exit_code == 73
    assert Path("mine.html").read_text() == "<p>mine</p>"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here: apt-get install chromium")
def test_the_page_renders_in_a_browser(paths: LedgerPaths, tmp_path: Path) -> None:
    """In a browser all charts are drawn with their bars, and the console stays silent."""
    run("--html", "usage.html")
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "usage.html").as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    bars = re.findall(r'<g class="point"', done.stdout)

    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert done.stdout.count('class="main-svg"') >= 6
    assert len(bars) > 60
    assert embedded(done.stdout)["totals"]["tokens"] == 55_005_700


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here: apt-get install chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_the_page_fits_its_screen_in_the_dark(paths: LedgerPaths, tmp_path: Path, width: int) -> None:
    """On a phone's and on a desk's dark screen the page is dark, nothing sticks out, and no chart covers another."""
    run("--html", "usage.html")
    page = Path("usage.html").read_text()
    probe = """<script>addEventListener('load', () => setTimeout(() => {
      const inside = [...document.querySelectorAll('.main-svg')].every(one => {
        const place = one.closest('.charts > div').getBoundingClientRect();
        const box = one.getBoundingClientRect();
        return box.left >= place.left - 1 && box.right <= place.right + 1;
      });
      const fits = innerWidth >= document.documentElement.scrollWidth;
      document.title = [inside, fits, getComputedStyle(document.body).backgroundColor].join('|');
    }, 2000))</script></body>"""
    Path("probe.html").write_text(page.replace("</body>", probe))
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},844"]
    done = subprocess.run(
        [*command, "--blink-settings=preferredColorScheme=0", "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert "<title>true|true|rgb(22, 24, 29)</title>" in done.stdout, re.findall("<title>.*?</title>", done.stdout)


def test_a_name_has_one_colour_on_every_chart(paths: LedgerPaths) -> None:
    """Series stand in one order on the charts of cost and of tokens, though their sums order them otherwise."""
    take(paths, event(workspace_id="free", price_as="free", tokens_total=900_000_000))
    run("--html", "usage.html")
    names = re.findall(r'"name": ?"(w0|w1|w2|free)"', Path("usage.html").read_text())

    assert len(names) == 8
    assert names[:4] == names[4:]
