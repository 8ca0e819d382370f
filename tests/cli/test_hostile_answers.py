"""A server that answers anything at all: the command ends with an exit code that says so, and all is accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import embedctl, ledger
from tests.support.wire.client import Wire, started

MODEL = "text-embedding-3-small"
DEEP = "[" * 200_000 + "]" * 200_000
ABSURD_YEAR = "Sun, 06 Nov 999999999999 08:49:37 GMT"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Wire, Wire]]:
    with started() as one, started() as other:
        yield one, other


@pytest.fixture
def hostile(servers: tuple[Wire, Wire], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """The server of `openai`; `second` is another that serves the same model."""
    one, other = servers
    one.reset()
    other.reset()
    config = tmp_path / "config.toml"
    config.write_text(
        f'[providers.openai]\nbase_url = "{one.base_url()}"\nprice_as = "openai"\n'
        f'[providers.second]\nprotocol = "openai"\nbase_url = "{other.base_url()}"\n'
        f'[fallback]\nopenai = ["second:{MODEL}"]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCTL_CONFIG", str(config))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    (tmp_path / "texts.txt").write_text("\n".join(f"line {number} of a text" for number in range(6)))
    return one


def embed(*more: str) -> Any:
    return embedctl(
        "embed",
        "texts.txt",
        "--split",
        "lines",
        "-m",
        f"openai:{MODEL}",
        "--retries",
        "1",
        "--no-cache",
        "--json",
        *more,
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"body": DEEP},
        {"body": f'{{"data":[{{"embedding":{DEEP}}}]}}'},
        {"body": f'{{"model":{DEEP}}}'},
        {"body": f'{{"data":[{{"index":{10**23},"embedding":[1]}}]}}'},
        {"body": f'{{"data":[{{"index":{"9" * 4000},"embedding":[1]}}]}}'},
        {"status": 429, "headers": {"retry-after": ABSURD_YEAR}, "body": "{}"},
        {"status": 400, "body": f'{{"error":{{"message":"m","details":[{"[" * 500 + "]" * 500}]}}}}'},
        {"status": 400, "body": "[" * 900 + "]" * 900},
        {"status": 503, "body": "<script" * 9000},
        {"status": 400, "body": "eyJ" * 20_000},
    ],
    ids=range(10),
)
def test_no_answer_is_a_bug_of_ours(hostile: Wire, answer: dict[str, Any]) -> None:
    """Whatever a server answers, the run goes on with the next provider of its chain, and ends well."""
    hostile.plan(faults={"says": {"p": 1.0, **answer}})
    ran = embed("--max-wait", "0.1")
    alone = embed("--max-wait", "0.1", "--fallback", "off", "-o", "alone.parquet")

    assert ran.code == 0, ran.err
    assert ran.json["vectors"] == 6
    assert alone.code in (69, 75, 76, 78), alone.err
    assert "Traceback" not in ran.err + alone.err


def test_a_text_that_is_named_by_a_number_of_thousands_of_digits(hostile: Wire) -> None:
    """A refusal that names a text which no request can have is about a text all the same: the rows fail."""
    hostile.plan(faults={"says": {"p": 1.0, "status": 400, "body": f'{{"message":"at index {"9" * 5000}"}}'}})

    assert embed().code == 3


@pytest.mark.parametrize("deep", ["usage", "id", "model", "unknown"])
def test_a_place_that_nobody_needs_may_be_anything(hostile: Wire, deep: str) -> None:
    """An answer nested too deep anywhere is unusable, and the next provider is asked."""
    body = f'{{"data":[{{"embedding":[1,2],"index":0}}],"{deep}":{DEEP}}}'
    hostile.plan(faults={"says": {"p": 1.0, "body": body}})

    assert embed().code == 0


@pytest.mark.parametrize(
    ("cost", "reason"),
    [
        (1e13, "10000000000000.0"),
        ("1e99999999", "1e99999999"),
        (2.5, "2.5"),
        (-3, "-3"),
        ("free", "free"),
    ],
)
def test_an_amount_that_cannot_be(hostile: Wire, cost: Any, reason: str) -> None:
    """An absurd amount in an answer is in no receipt and no report: its tokens are priced, and the ledger says why."""
    (truth,) = _tokens(hostile)
    hostile.plan(faults={"says": {"p": 1.0, "more": {"usage": {"total_tokens": truth, "cost": cost}}}})
    ran = embed("--max-cost", "1", "--fallback", "off")
    report = embedctl("usage", "report", "--json")

    assert (ran.code, ran.json.get("tokens")) == (0, truth), ran
    assert Decimal(ran.json["cost"]) == Decimal(truth) * Decimal("0.02") / 1_000_000
    assert Decimal(report.json["totals"]["cost"]) == Decimal(ran.json["cost"])
    assert ledger("SELECT tokens_total, reason FROM usage_event") == [(truth, f"not believed: a cost of {reason}")]


def test_an_amount_that_can_be(hostile: Wire) -> None:
    """A plausible amount of the provider's is what the run costs, in the receipt as in the ledger."""
    (truth,) = _tokens(hostile)
    hostile.plan(
        faults={"says": {"p": 1.0, "more": {"usage": {"total_tokens": truth, "cost": 3.2000000000000003e-07}}}}
    )
    ran = embed()

    assert Decimal(ran.json["cost"]) == Decimal("3.2e-7")
    assert ledger("SELECT cost, cost_status, reason FROM usage_event") == [
        (Decimal("3.2e-7"), "provider_reported", None)
    ]


def _tokens(wire: Wire) -> list[int]:
    """What the server counts for the input, as one request; the output of that is thrown away."""
    ran = embed("-o", "first.parquet", "--ledger", "elsewhere.duckdb")
    assert ran.code == 0, ran.err
    found = [one["tokens_billed"] for one in wire.truth()]
    wire.reset()
    return found


def test_long_strings_block_nobody(hostile: Wire) -> None:
    """Answers with strings of megabytes are kept short; another workspace's run and the report go on."""
    long = "x" * 3_000_000
    hostile.plan(faults={"says": {"p": 1.0, "headers": {"x-request-id": "y" * 50_000}, "more": {"id": long}}})
    hostile_run = embed()
    hostile.reset()
    other = embed("-o", "other.parquet", "-w", "other")
    report = embedctl("usage", "report", "--workspace", "--json")

    assert (hostile_run.code, other.code, report.code) == (0, 0, 0), (hostile_run.err, other.err)
    assert {group["workspace"] for group in report.json["groups"]} == {"default", "other"}
    assert ledger("SELECT max(length(provider_request_id)), count(*) FROM usage_event") == [(200, 2)]


def test_a_spool_file_that_is_set_aside_is_said(hostile: Wire, clean_environment: Path) -> None:
    """A file that the ledger does not take is named by the ingest, by each report after it, and by the doctor."""
    spool = clean_environment / "spool"
    spool.mkdir(parents=True)
    with (spool / "odd.spool").open("wb") as sparse:
        sparse.truncate((1 << 30) + 1)
    ran = embed()
    ingest = embedctl("usage", "ingest")
    reports = [embedctl("usage", "report", "--json"), embedctl("usage", "report", "--json")]
    doctor = embedctl("usage", "doctor", "--json")
    words = f"1 spool file that could not be taken in lies in {spool / 'aside'}"

    assert [ran.code, ingest.code, doctor.code] == [0, 0, 0]
    assert words in ran.err
    assert words in ingest.err
    assert all(any(words in line for line in report.json["warnings"]) for report in reports)
    assert [found for found in doctor.json["findings"] if found["check"] == "spool aside"] == [
        {
            "check": "spool aside",
            "state": "look",
            "detail": f"1 spool file could not be taken in, and lies in {spool / 'aside'}: odd.spool",
        }
    ]
    assert ledger("SELECT count(*) FROM usage_event") == [(1,)]
