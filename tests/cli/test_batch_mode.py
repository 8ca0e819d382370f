"""`batch run --mode batch|auto`: half the price, every text bought once, whatever becomes of run and provider."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.outputs.parquet import matrix
from tests.support.processes import MODEL, sentence
from tests.support.running import Ran, embedctl, ledger, user_settings
from tests.support.wire.client import Wire, expected

SETTINGS = """
[providers.openai]
batch = true
batch_poll_s = 0.01
batch_grace_s = 0.05
batch_max_inputs = {most}
"""
WIDTH = 8
BATCH = ("-m", f"openai:{MODEL}", "--dimensions", WIDTH, "--batch-size", 3, "--mode", "batch")


@pytest.fixture
def provider(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """A provider with a Batch API, and settings that make batches of twelve texts."""
    wire.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", wire.base_url())
    user_settings(SETTINGS.format(most=12))
    return wire


def be_patient() -> None:
    """What comes late is waited for, however slow the machine is; only what never comes is not."""
    user_settings(SETTINGS.format(most=12).replace("0.05", "3600"))


def table(texts: list[str], name: str = "in.parquet") -> Path:
    """An input."""
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), name)
    return Path(name)


def texts(count: int = 40, first: int = 0) -> list[str]:
    return [sentence(number) for number in range(first, first + count)]


def run(*words: object, source: object = "in.parquet") -> Ran:
    return embedctl("batch", "run", source, "-o", "out", *BATCH, "--json", "--no-progress", *words)


def check_rows(rows: list[str], width: int = WIDTH) -> None:
    """Each text stands once, in order, with its own vector."""
    parts = [pq.read_table(path) for path in sorted(Path("out").glob("part-*.parquet"))]
    whole = pa.concat_tables(parts).combine_chunks()

    assert whole.column("text").to_pylist() == rows
    assert np.allclose(matrix(whole.column("embedding"), width), expected(rows, MODEL, width), atol=1e-6)


def check_bought_once(wire: Wire, rows: list[str], tier: str | None = "batch") -> None:
    """Each text stands once on the provider's invoice, and no batch goes on that nobody looks at."""
    bought = wire.invoice()["texts"]

    assert [sum(tiers.values()) for tiers in bought.values()] == [1] * len(set(rows))
    if tier is not None:
        assert {name for tiers in bought.values() for name, times in tiers.items() if times} == {tier}
    assert not forgotten(wire)


def forgotten(wire: Wire) -> list[str]:
    """Batches that are not over: their texts will be billed."""
    return [one["id"] for one in wire.batches()["batches"] if one["status"] in ("open", "cancelling")]


def booked() -> dict[str, int]:
    """Billable → tokens, as the ledger has them; each event once."""
    embedctl("usage", "ingest")
    events = ledger("SELECT count(*), count(DISTINCT event_id) FROM usage_event")
    assert events[0][0] == events[0][1]
    return {
        billable: int(tokens)
        for billable, tokens in ledger(
            "SELECT billable, sum(CASE WHEN billable = 'yes' THEN tokens_total ELSE tokens_estimated END) "
            "FROM usage_event GROUP BY billable"
        )
        if tokens
    }


def online(wire: Wire) -> list[dict[str, Any]]:
    """What was asked at once."""
    return [one for one in wire.truth() if one["tier"] == "standard"]


def invoiced(wire: Wire, tier: str = "batch") -> int:
    return int(wire.invoice()["models"].get(MODEL, {}).get(tier, 0))


def check_bill(wire: Wire) -> None:
    """Confirmed ≤ the invoice ≤ confirmed + perhaps."""
    said = booked()
    billed = sum(tokens for tiers in wire.invoice()["models"].values() for tokens in tiers.values())

    assert said.get("yes", 0) <= billed <= said.get("yes", 0) + said.get("unknown", 0)


def test_buys_all_in_batches(provider: Wire) -> None:
    """Every text is bought once, through batches, at their price; nothing is asked online, and no file stays there."""
    rows = [*texts(), *texts(2)]
    table(rows)

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)
    assert online(provider) == []
    assert booked() == {"yes": invoiced(provider)}
    assert ledger("SELECT DISTINCT price_tier, cost_status FROM usage_event") == [("batch", "priced")]
    assert all(one["deleted"] for one in provider.batches()["uploads"])
    assert len(provider.batches()["batches"]) == 4
    receipt = ended.json
    assert receipt["rows"] == receipt["vectors"] == 42
    assert (receipt["reused"], receipt["duplicates"]) == (0, 2)
    assert receipt["batch"]["submitted"] == 4
    assert Decimal(receipt["batch"]["saved"]) == Decimal(receipt["cost"])
    assert list(Path("out/_embedctl/journal").iterdir()) == []
    assert list((Path(os.environ["EMBEDCTL_HOME"]) / "batches").iterdir()) == []


def test_not_waiting(provider: Wire) -> None:
    """Without --wait a run submits and exits 75; the next one sends nothing again, and collects what is done."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"polls": 1}})

    first = run("--no-wait")
    assert first.code == 75, first.err
    assert first.json["batch"]["pending"] == 4
    assert first.json["batch"]["texts"] == 40
    assert first.json["resume"]
    assert embedctl("batch", "list", "--status", "waiting", "--json").json["total"] == 1
    again = run("--no-wait", "-q")
    assert again.code == 75
    assert again.err == ""  # cron sends no mail
    assert len(provider.batches()["batches"]) == 4

    third = run("--no-wait")
    assert third.code == 0, third.err
    assert embedctl("batch", "list", "--status", "waiting", "--json").json["total"] == 0
    check_rows(rows)
    check_bought_once(provider, rows)
    assert booked() == {"yes": invoiced(provider)}


def test_input_changes_meanwhile(provider: Wire) -> None:
    """What a batch brings belongs to its texts, wherever they stand when it is collected."""
    table(texts())
    provider.plan(batch={"each": {"polls": 1}})
    assert run("--no-wait").code == 75
    rows = [*texts(10, first=100), *reversed(texts(30))]
    table(rows)

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, texts(40) + texts(10, first=100))
    assert booked() == {"yes": invoiced(provider)}


def test_expired_half(provider: Wire) -> None:
    """What was cut off goes into the next batch, and what was done is kept: each text is bought once."""
    rows = texts()
    table(rows)
    provider.plan(batch={"batches": [{"ends": "expired"}, {"ends": "expired", "left": "absent"}, {"fails": 0.5}]})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)
    assert booked() == {"yes": invoiced(provider)}
    assert len(provider.batches()["batches"]) > 4


def test_one_bad_text(provider: Wire) -> None:
    """A text that its provider refuses spoils its line in the batch, and then stands alone online."""
    rows = texts()
    table(rows)
    provider.plan(poison=[rows[4]])

    ended = run("--wait")

    assert ended.code == 3, ended.err
    assert ended.json["failed"] == 1
    check_rows([text for text in rows if text != rows[4]])
    bought = provider.invoice()["texts"]
    assert sorted(sum(tiers.values()) for tiers in bought.values() if sum(tiers.values())) == [1] * 39
    check_bill(provider)


@pytest.mark.parametrize("how", ["failed", 400, 429])
def test_enqueued_limit(provider: Wire, how: str | int) -> None:
    """A provider that takes no more in flight is given less, and later; nothing is bought twice, and nothing lost."""
    rows = texts()
    table(rows)
    provider.plan(batch={"enqueued_limit": 110, "enqueued_how": how, "each": {"polls": 2}})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)
    assert booked() == {"yes": invoiced(provider)}


@pytest.mark.parametrize(
    "create", ["lost", "late", "odd", "twice", "unseen", "rate", "lost_before", {"status": 503, "made": True}]
)
def test_create_goes_wrong(provider: Wire, create: object) -> None:
    """A create is never repeated blindly: a batch whose answer was lost is found by its mark, one never made is not."""
    if create != "lost_before":
        be_patient()
    rows = texts()
    table(rows)
    provider.plan(batch={"create": [create], "each": {"lag_s": 0.02}})

    ended = run("--wait", "--timeout", 0.7 if create == "late" else 60)

    assert ended.code == 0, ended.err
    check_rows(rows)
    bought = [sum(tiers.values()) for tiers in provider.invoice()["texts"].values()]
    assert len(bought) == 40
    assert sum(bought) <= 40 + (12 if create == "twice" else 0)  # that the provider has made two of one is no text's
    assert create == "twice" or not forgotten(provider)
    assert booked() == {"yes": invoiced(provider)}


def test_the_grace_time_begins_when_no_answer_came(provider: Wire) -> None:
    """A create that was waited for as long as the grace time is, and is listed later than that, is made once."""
    user_settings(SETTINGS.format(most=12).replace("0.05", "4"))
    rows = texts(12)
    table(rows)
    provider.plan(batch={"create": [{"fault": "late", "seconds": 60}], "each": {"lag_s": 5}})

    ended = run("--wait", "--timeout", 4)

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)


@pytest.mark.parametrize("upload", ["lost", "lost_before", "cut", {"status": 500}])
def test_upload_goes_wrong(provider: Wire, upload: object) -> None:
    """An upload whose answer was lost is looked for, and made again where it is not whole."""
    rows = texts()
    table(rows)
    provider.plan(batch={"upload": [upload]})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)


@pytest.mark.parametrize(
    "behaviour",
    [
        {"output": ["shuffled", "duplicated", "unknown_id"]},
        {"empty_ids": True},
        {"missing": 2},
        {"late": 1},
        {"counts": 3},
        {"output": ["bare", "usage_missing"]},
        {"ends": "failed", "code": "token_limit_exceeded"},
        {"ends": "failed", "code": "input_no_permissions"},
    ],
    ids=str,
)
def test_results_go_wrong(provider: Wire, behaviour: dict[str, Any]) -> None:
    """Results in any order, told twice, late, without ids of files or usage: each line counts once."""
    if behaviour.keys() & {"missing", "late"}:
        be_patient()
    rows = texts()
    table(rows)
    provider.plan(batch={"batches": [behaviour]})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)
    assert booked().get("yes") == invoiced(provider)


@pytest.mark.parametrize("fault", ["truncated", "unparsable", "empty_ids", "nan", "other_width"])
def test_results_that_cannot_be_read(provider: Wire, fault: str) -> None:
    """A line that was bought and cannot be used costs that line alone, and the ledger says so."""
    rows = texts()
    table(rows)
    provider.plan(batch={"batches": [{"output": [fault]}]})

    ended = run("--wait")

    assert ended.code == (76 if fault == "other_width" else 0), ended.err
    check_bill(provider)
    if ended.code == 0:
        check_rows(rows)


def test_results_are_looked_for_once_more(provider: Wire) -> None:
    """Results that were not there at the first look are there at the second; the first outlasted the grace time."""
    user_settings(SETTINGS.format(most=12).replace("0.05", "0.0001"))
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"late": 1}})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows)


def test_vectors_of_another_width_end_the_run_also_after_canaries(
    provider: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of another width ends with 76 whoever was asked before it: nothing is bought again, or written."""
    monkeypatch.setenv("EMBEDCTL_CANARY", "daily")
    rows = texts()
    table(rows)
    provider.plan(batch={"batches": [{"output": ["other_width"]}]})

    ended = run("--wait")

    assert ended.code == 76, ended.err
    assert not list(Path("out").glob("part-*"))
    check_bill(provider)
    assert max(sum(tiers.values()) for tiers in provider.invoice()["texts"].values()) == 1


def test_deadline(provider: Wire) -> None:
    """At the deadline batches are cancelled, what was done is collected, and only the rest is asked for online."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"seconds": 3600, "cancel_polls": 2}})

    ended = run("--wait", "--deadline", "0.3s")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows, tier=None)
    times = provider.invoice()["models"][MODEL]
    assert times["batch"] > 0
    assert times["standard"] > 0
    assert booked() == {"yes": sum(times.values())}


def test_deadline_without_waiting(provider: Wire) -> None:
    """The deadline counts from the first batch, over runs that do not wait."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"seconds": 3600}})

    assert run("--no-wait", "--deadline", "1h").code == 75
    time.sleep(1.1)
    ended = run("--no-wait", "--deadline", "1s")

    assert ended.code == 0, ended.err
    check_rows(rows)
    check_bought_once(provider, rows, tier=None)


def test_online_leaves_what_is_in_a_batch(provider: Wire) -> None:
    """Nothing is asked online for an output that has batches under way; once they are over, what they did is used."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"polls": 1}})
    assert run("--no-wait").code == 75
    table([*rows, *texts(3, first=200)])

    refused = run("--mode", "online")
    assert refused.code == 75
    assert online(provider) == []
    ended = run("--mode", "online")

    assert ended.code == 0, ended.err
    check_rows([*rows, *texts(3, first=200)])
    check_bought_once(provider, [*rows, *texts(3, first=200)], tier=None)
    assert len(online(provider)) == 1


def test_detaches(provider: Wire, tmp_path: Path) -> None:
    """Ctrl-C while it waits ends the run, not the batches; the same command goes on."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"seconds": 3600}})
    words = ["batch", "run", "in.parquet", "-o", "out", *map(str, BATCH), "--wait", "--json", "--no-progress"]
    child = subprocess.Popen([sys.executable, "-m", "embedctl", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(provider.batches()["batches"]) < 4:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)

    assert child.returncode == 130, err
    assert json.loads(out)["batch"]["pending"] == 4
    assert "continue with: embedctl batch run" in err.decode()
    assert {one["status"] for one in provider.batches()["batches"]} == {"open"}
    assert embedctl("batch", "list", "--status", "waiting", "--json").json["total"] == 1


def test_auto(provider: Wire) -> None:
    """`auto` takes batches for what is large enough, and asks for the rest at once."""
    rows = texts()
    table(rows)

    small = run("--mode", "auto", "--wait")
    assert small.code == 0, small.err
    assert provider.batches()["batches"] == []
    more = [*rows, *texts(40, first=100)]
    table(more)
    large = run("--mode", "auto", "--wait", "--batch-min-inputs", 20)

    assert large.code == 0, large.err
    check_rows(more)
    check_bought_once(provider, more, tier=None)
    assert len(provider.batches()["batches"]) == 4


def test_refused_where_there_is_none(provider: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider without a Batch API, or whose batches cannot be found again, is refused with the reason."""
    table(texts(3))
    monkeypatch.setenv("COHERE_API_KEY", "k")
    words = ("batch", "run", "in.parquet", "-o", "out", "--mode", "batch")

    for model in ("cohere:embed-v4.0", "onnx:all-MiniLM-L6-v2"):
        refused = embedctl(*words, "-m", model)
        assert refused.code == 78, refused.err
        assert "--mode online" in refused.err


def test_max_cost(provider: Wire) -> None:
    """Nothing is submitted that could pass --max-cost at the batch's price; what was is kept."""
    rows = texts()
    table(rows)
    price = Decimal("0.01") / 1_000_000  # a token of text-embedding-3-small in a batch

    ended = run("--wait", "--max-cost", price * 100)

    assert ended.code == 4, ended.err
    spent = invoiced(provider) * price
    assert Decimal(0) < spent <= price * 100
    assert online(provider) == []
    again = run("--wait")
    assert again.code == 0, again.err
    check_bought_once(provider, rows)


def test_cancels(provider: Wire) -> None:
    """`batch cancel` ends batches at the provider, and keeps and books what was done; the run goes on with the rest."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"seconds": 3600, "cancel_polls": 1}})
    assert run("--no-wait", "--job", "nightly").code == 75
    shown = embedctl("batch", "status", "nightly", "--json").json
    assert [one["texts"] for one in shown["batches"]] == [12, 12, 12, 4]
    assert all(one["status"] and one["expires_at"] for one in shown["batches"])
    assert sum(Decimal(one["cost_at_risk"]) for one in shown["batches"]) > 0

    ended = embedctl("batch", "cancel", "nightly", "--json")

    assert ended.code == 0, ended.err
    assert ended.json["batches"] == 4
    assert 0 < ended.json["collected"] < 40
    assert booked() == {"yes": invoiced(provider)}
    assert embedctl("batch", "status", "nightly", "--json").json["batches"] == []
    assert embedctl("batch", "cancel", "nightly").code == 66
    provider.plan()
    again = run("--wait", "--job", "nightly")
    assert again.code == 0, again.err
    check_rows(rows)
    check_bought_once(provider, rows)


def test_cancels_for_a_folder_that_is_gone(provider: Wire) -> None:
    """What a run has under way whose folder was removed is still known, ended and booked."""
    table(texts())
    provider.plan(batch={"each": {"seconds": 3600}})
    assert run("--no-wait", "--job", "nightly").code == 75
    shutil.rmtree("out")
    assert len(embedctl("batch", "status", "nightly", "--json").json["batches"]) == 4

    ended = embedctl("batch", "cancel", "nightly", "--json")

    assert ended.code == 0, ended.err
    assert booked() == {"yes": invoiced(provider)}
    assert {one["status"] for one in provider.batches()["batches"]} == {"cancelled"}
    assert list((Path(os.environ["EMBEDCTL_HOME"]) / "batches").iterdir()) == []


def test_what_waits_is_told(provider: Wire) -> None:
    """Reports, budgets and `doctor` tell what is under way beside what is booked, at the batch's price."""
    rows = texts()
    table(rows)
    assert embedctl("usage", "budget", "set", "-w", "default", "--amount", "1").code == 0
    provider.plan(batch={"each": {"polls": 1}})
    assert run("--no-wait", "--job", "nightly").code == 75

    shown = embedctl("usage", "report", "--json").json
    assert shown["pending"]["batches"] == 4
    assert shown["pending"]["texts"] == 40
    cost = Decimal(shown["pending"]["cost_at_risk"])
    assert cost == Decimal(shown["pending"]["tokens"]) * Decimal("0.01") / 1_000_000
    assert shown["totals"]["tokens"] == 0
    assert "4 batches under way at openai" in embedctl("usage", "report").out
    assert Decimal(embedctl("usage", "budget", "list", "--json").json["budgets"][0]["at_risk"]) == cost
    doctor = embedctl("doctor", "--json").json
    assert next(one for one in doctor["checks"] if one["check"] == "batches")["facts"]["batches"] == 4

    assert run("--wait", "--job", "nightly").code == 0
    after = embedctl("usage", "report", "--by", "tier", "--json").json
    assert "pending" not in after
    assert [group["tier"] for group in after["groups"]] == ["batch"]
    assert Decimal(after["totals"]["cost"]) == cost
    assert all(one["check"] != "batches" for one in embedctl("doctor", "--json").json["checks"])


def test_what_waits_counts_against_budgets(provider: Wire) -> None:
    """A budget holds for what other runs have under way, and what is bought already is collected all the same."""
    table(texts())
    price = Decimal("0.01") / 1_000_000
    assert embedctl("usage", "budget", "set", "-w", "default", "--amount", format(price * 180, "f")).code == 0
    assert run("--no-wait").code == 75
    table(texts(40, first=100), "other.parquet")

    other = embedctl("batch", "run", "other.parquet", "-o", "other", *BATCH, "--no-wait", "--json")
    assert other.code in (4, 75), other.err
    assert len(provider.batches()["batches"]) <= 5
    embedctl("usage", "budget", "set", "-w", "default", "--amount", format(price, "f"))
    ended = run("--no-wait")

    assert ended.code == 0, ended.err
    assert booked()["yes"] <= invoiced(provider)


def test_what_waits_counts_against_the_budget_of_a_service_s_key(provider: Wire) -> None:
    """Its jobs are runs: what one has under way at the provider is gone for the next one, and for nobody else's key."""
    table(texts())
    shown = embedctl("batch", "run", "in.parquet", "-o", "out", *BATCH, "--dry-run", "--json").json
    amount = format(Decimal(shown["cost_batch"]) * Decimal("1.5"), "f")
    paid = ("-w", "acme", "--tag", "key=mine", "--key-budget", f"mine={amount}/month")
    assert run("--no-wait", *paid).code == 75
    table(texts(20, first=100), "other.parquet")
    rest = ("batch", "run", "other.parquet", "-o", "other", "-m", BATCH[BATCH.index("-m") + 1], "--json")

    stopped = embedctl(*rest, *paid)
    others = embedctl(*rest, "-w", "acme", "--tag", "key=other", "--key-budget", f"other={amount}/month")
    assert stopped.code == 4, stopped.err
    assert "key mine" in stopped.err + stopped.out
    assert others.code == 0, others.err


def test_dry_run_shows_both(provider: Wire) -> None:
    """--dry-run shows both prices, both times, and what `auto` would take and why; nothing is sent."""
    table(texts())

    shown = embedctl("batch", "run", "in.parquet", "-o", "out", *BATCH, "--mode", "auto", "--dry-run", "--json").json
    assert (shown["mode"], shown["seconds_batch"]) == ("online", 86400)
    assert "1,000" in shown["mode_reason"]
    assert Decimal(shown["cost_batch"]) * 2 == Decimal(shown["cost"])
    large = embedctl(
        "batch", "run", "in.parquet", "-o", "out", *BATCH, "--mode", "auto", "--batch-min-inputs", 10, "--dry-run"
    )
    assert "it would be sent in batches" in large.out
    soon = embedctl(
        "batch", "run", "in.parquet", "-o", "out", *BATCH, "--mode", "auto", "--deadline", "10m", "--dry-run", "--json"
    )
    assert "deadline" in soon.json["mode_reason"]
    assert provider.batches()["uploads"] == []


def test_given_up(provider: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody can collect any more counts as perhaps billed: never as nothing."""
    table(texts())
    provider.plan(batch={"each": {"seconds": 3600}})
    assert run("--no-wait").code == 75
    shutil.rmtree("out")
    assert embedctl("usage", "ingest").code == 0
    assert embedctl("usage", "report", "--json").json["pending"]["batches"] == 4
    pending = embedctl("usage", "report", "--json").json["pending"]["tokens"]

    later = time.time() + 100 * 86_400
    monkeypatch.setattr("embedctl.runs.intake.utc_now", lambda: datetime.fromtimestamp(later, UTC))
    assert embedctl("usage", "ingest").code == 0

    assert booked() == {"unknown": pending}
    assert "pending" not in embedctl("usage", "report", "--json").json
    assert ledger("SELECT DISTINCT error_class, price_tier FROM usage_event") == [("batch_given_up", "batch")]
    assert ledger("SELECT sum(cost_at_risk) > 0 FROM usage_event") == [(True,)]


def test_files_may_stay(provider: Wire) -> None:
    """With --keep-remote-files nothing is deleted at the provider."""
    table(texts(5))

    assert run("--wait", "--keep-remote-files").code == 0
    assert not any(one["deleted"] for one in provider.batches()["uploads"])


OTHERS = {
    "mistral": ("mistral-embed", None),
    "voyage": ("voyage-3.5", 256),
    "google": ("gemini-embedding-001", 768),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_providers(name: str, provider: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral, Voyage and Google the same: lost creates found, half-expired batches gone on with, texts bought once."""
    model, width = OTHERS[name]
    key = {"mistral": "MISTRAL_API_KEY", "voyage": "VOYAGE_API_KEY", "google": "GEMINI_API_KEY"}[name]
    monkeypatch.setenv(key, "k-test")
    user_settings(
        f'[providers.{name}]\nbase_url = "{provider.base_url(name)}"\nbatch = true\nbatch_poll_s = 0.01\n'
        f'batch_grace_s = 3600\nbatch_max_inputs = 12\nprice_as = "{name}"\n'
    )
    rows = texts()
    table(rows)
    half = {"ends": "expired"} if name != "google" else {"fails": 0.5}
    provider.plan(dimensions=width, batch={"create": ["ok", "lost"], "batches": [half], "each": {"lag_s": 0.02}})
    words = ("batch", "run", "in.parquet", "-o", "out", "-m", f"{name}:{model}", "--mode", "batch", "--json")
    words = (*words, "--dimensions", width) if width else words

    first = embedctl(*words, "--no-wait")
    assert first.code == 75, first.err
    ended = embedctl(*words, "--wait")

    assert ended.code == 0, ended.err
    assert ended.json["vectors"] == 40
    assert online(provider) == []
    bought = [sum(tiers.values()) for tiers in provider.invoice()["texts"].values()]
    assert bought == [1] * 40
    said = booked()
    assert said.get("yes") == sum(tiers["batch"] for tiers in provider.invoice()["models"].values())


def test_a_list_in_any_order(provider: Wire) -> None:
    """A batch whose answer was lost is found in a list of many pages, whichever end it begins with."""
    rows = texts()
    table(rows)
    provider.plan(batch={"create": ["ok", "ok", "lost", "lost"], "order": "oldest", "page": 2, "each": {"polls": 2}})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_bought_once(provider, rows)


def test_results_behind_a_link(provider: Wire) -> None:
    """A provider may answer with a link to the content, which needs no key."""
    rows = texts()
    table(rows)
    provider.plan(batch={"each": {"redirect": True}})

    ended = run("--wait")

    assert ended.code == 0, ended.err
    check_rows(rows)


def test_all_lines_declined(provider: Wire) -> None:
    """A batch of which every line is declined ends the run: nothing is asked for online at twice the price."""
    rows = texts()
    table(rows)
    provider.plan(poison=rows, poison_kind="bad")

    for _ in range(2):
        ended = run("--wait")

        assert ended.code == 78, ended.err
        assert online(provider) == []


def test_a_provider_that_answers_nothing(provider: Wire) -> None:
    """Batches that end without an answer, one after the other, end the run for now: there is no circle of them."""
    table(texts(20))
    provider.plan(batch={"each": {"fails": 1.0}})

    ended = run("--wait")

    assert ended.code == 75, ended.err
    assert len(provider.batches()["batches"]) <= 5
    assert online(provider) == []


def test_a_file_that_is_refused(provider: Wire) -> None:
    """A batch that its provider refuses as such ends the run with what it says."""
    table(texts(5))
    provider.plan(batch={"each": {"ends": "failed", "code": "model_not_found"}})

    ended = run("--wait")

    assert ended.code == 78, ended.err
    assert "model_not_found" in ended.json["message"]
    assert booked() == {}


def test_another_key(provider: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another key nothing proves that a batch was never made: it is not made again."""
    table(texts(5))
    provider.plan(batch={"create": ["lost"], "each": {"lag_s": 3600}})
    be_patient()
    assert run("--no-wait").code == 75
    user_settings(SETTINGS.format(most=12))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")

    ended = run("--wait")

    assert ended.code == 78, ended.err
    assert len(provider.batches()["batches"]) == 1


def test_another_model_meanwhile(provider: Wire) -> None:
    """Batches of another space under way are not mixed in: the run is refused, and says how to go on."""
    table(texts(5))
    provider.plan(batch={"each": {"seconds": 3600}})
    assert run("--no-wait", "--job", "nightly").code == 75

    refused = run("--wait", "--dimensions", 16)

    assert refused.code == 73, refused.err
    assert "batch cancel" in refused.json["hint"]


def test_tenants(provider: Wire) -> None:
    """Each line is one workspace's, who pays for it; whose budget is used up fails alone."""
    rows = texts(30)
    payers = [("acme", "initech", "umbrella")[number % 3] for number in range(30)]
    pq.write_table(pa.table({"id": list(range(30)), "text": rows, "payer": payers}), "in.parquet")
    price = Decimal("0.01") / 1_000_000
    assert embedctl("usage", "budget", "set", "-w", "acme", "--amount", format(price * 14, "f")).code == 0

    ended = run("--wait", "--workspace-column", "payer")

    assert ended.code == 3, ended.err
    assert 0 < ended.json["failed"] < 10
    assert ended.json["failed_reasons"] == {"budget": ended.json["failed"]}
    embedctl("usage", "ingest")
    spent = dict(ledger("SELECT workspace_id, sum(tokens_total)::INT FROM usage_event GROUP BY ALL"))
    assert spent["acme"] <= 14
    assert spent["initech"] == spent["umbrella"] == 40
    assert online(provider) == []
