"""`usage metrics`: what Prometheus reads is true, well formed, and never half written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from prometheus_client.utils import floatToGoString
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.ledger.adjustments import entry
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import uuid7
from embedctl.reports import prometheus
from embedctl.runs.registry import RunEntry, RunRegistry
from embedctl.storage import locks
from tests.support.ledger_events import event, place, take

PROMTOOL = shutil.which("promtool")
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def paths(clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerPaths:
    """A ledger with something of everything."""
    monkeypatch.chdir(tmp_path)
    found = place(clean_environment)
    lost = {"billable": "unknown", "status": "timeout", "tokens_total": 0, "tokens_native": None}
    take(
        found,
        event(tokens_total=1_500_000, tokens_estimated=1_400_000, workspace_id='a"b\\c\nd'),
        event(model="x", usage_source="fallback", fallback_from="openai:y"),
        event(tokens_estimated=500, **lost),
        event(status="error", billable="no", tokens_total=0, tokens_native=None, error_class="Throttled"),
        event(entry_kind="cache_hit", tokens_total=0, tokens_native=None, billable="no", input_count=96),
    )
    return found


def told() -> str:
    """What `embedctl usage metrics` prints."""
    result = CliRunner().invoke(app, ["usage", "metrics"])
    assert result.exit_code == 0, result.output
    return result.stdout


def counters(text: str) -> dict[str, Decimal]:
    """Value of every series of every counter."""
    names = set(re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE))
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {series: Decimal(value) for series, _, value in lines if series.partition("{")[0] in names}


def a_run(paths: LedgerPaths, job: str, code: int | None, hours_ago: int, ledger: str = "") -> None:
    folder = paths.database.parent / job
    RunRegistry(paths.database.parent / "runs").register(
        RunEntry(
            run_id=uuid7(),
            job_id=job,
            folder=folder,
            output=str(folder),
            ledger=ledger,
            state="completed" if code == 0 else "failed",
            started_at=NOW - timedelta(hours=hours_ago),
            finished_at=NOW - timedelta(hours=hours_ago),
            exit_code=code,
        )
    )


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed here: apt-get install prometheus")
def test_promtool_finds_nothing(paths: LedgerPaths) -> None:
    """Prometheus' own linter reads every line and has nothing to say."""
    a_run(paths, "nightly", 0, 1)
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=told(), capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_age_of_the_prices_is_the_lists(paths: LedgerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The age grows from the day that reports name as the prices', whenever they were loaded; a fresh ledger has it."""
    own = told()
    monkeypatch.setenv("EMBEDCTL_LEDGER", "fresh.duckdb")
    listed = orjson.loads(CliRunner().invoke(app, ["usage", "report", "--json"]).stdout)["prices_as_of"]
    ages = re.findall(r"^embedctl_prices_age_seconds (\S+)$", own + told(), re.MULTILINE)
    wanted = (datetime.now(UTC) - datetime.fromisoformat(listed).replace(tzinfo=UTC)).total_seconds()

    assert len(ages) == 2
    assert all(float(age) == pytest.approx(wanted, abs=60) for age in ages)


def test_counters_never_decrease(paths: LedgerPaths) -> None:
    """Prices told late, corrections, refunds and true-ups never lower a counter; they stand in a gauge of their own."""
    before = counters(told())
    about = {"workspace": "acme", "reason": "why", "at": NOW, "provider": "pay"}
    take(paths, *(entry(kind, Decimal("-0.01"), **about) for kind in ("credit", "refund", "correction", "true_up")))
    paths.price_file.write_text(paths.price_file.read_text().replace('"0.02"', '"0.01"'))
    CliRunner().invoke(app, ["prices", "set", "pay:x", "2", "--from", "2026-01-01"])
    CliRunner().invoke(app, ["usage", "reprice", "--apply"])
    take(paths, event())
    text = told()
    after = counters(text)

    assert len(before) > 12
    assert {series for series, value in before.items() if after[series] < value} == set()
    assert 'embedctl_usage_adjustments_usd{kind="refund",workspace="acme"} -0.01' in text


def test_jobs_say_when_they_last_succeeded(paths: LedgerPaths) -> None:
    """Each job has its last success and its last exit code, of the runs that pay into this ledger."""
    for job, code, hours_ago in (("nightly", 0, 48), ("nightly", 0, 24), ("nightly", 75, 1), ("never", 3, 2)):
        a_run(paths, job, code, hours_ago)
    a_run(paths, "killed", None, 1)
    a_run(paths, "elsewhere", 0, 1, ledger="/elsewhere.duckdb")
    text, yesterday = told(), floatToGoString((NOW - timedelta(hours=24)).timestamp())

    assert re.findall(r"^embedctl_job\S+ .*", text, re.MULTILINE) == [
        f'embedctl_job_last_success_timestamp_seconds{{job="nightly"}} {yesterday}',
        'embedctl_job_last_exit_code{job="never"} 3.0',
        'embedctl_job_last_exit_code{job="nightly"} 75.0',
    ]


def test_circuits_of_living_runs(paths: LedgerPaths) -> None:
    """An open circuit of a run that lives shows; without one, every model that was called is closed."""
    folder = paths.database.parent / "circuits"
    folder.mkdir()
    (folder / "a.json").write_bytes(orjson.dumps([{"provider": "pay", "model": "m", "state": "open"}]))
    closed = told()
    with locks.hold(folder / "a.lock", command="test"):
        opened = told()

    assert 'embedding_provider_circuit_state{model="m",provider="pay"} 0.0\n' in closed
    assert 'embedding_provider_circuit_state{model="m",provider="pay"} 2.0\n' in opened
    assert 'embedding_provider_circuit_state{model="x",provider="pay"} 0.0\n' in opened


def test_the_vector_cache_is_counted(paths: LedgerPaths) -> None:
    """Texts whose vector came from the cache are hits, texts that were sent are misses."""
    text = told()

    assert 'embedding_vector_cache_hits_total{model="m",provider="pay"} 96.0\n' in text
    assert 'embedding_vector_cache_misses_total{model="m",provider="pay"} 1.0\n' in text


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    """Whoever reads while it is written sees the old file or the new one, whole, and no other *.prom."""
    sizes = (1, 5000)
    name = "embedctl_job_last_exit_code"
    writings = [[prometheus.Metric(name, [({"job": str(n)}, n) for n in range(size)])] for size in sizes]
    whole = {prometheus.text(each) for each in writings}
    prometheus.write(writings[0], tmp_path)
    seen: set[str] = set()
    names: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((tmp_path / prometheus.FILE_NAME).read_text())
            names.update(name for name in os.listdir(tmp_path) if name.endswith(".prom"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        prometheus.write(writings[turn % 2], tmp_path)
    done.set()
    reader.join()

    assert seen == whole
    assert names == {prometheus.FILE_NAME}
