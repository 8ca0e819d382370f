"""A text over which the provider breaks the connection: its row fails, all others have vectors, the bill is right."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from embedctl.errors import BudgetReached, EmbedctlError
from embedctl.outputs.parquet import matrix
from embedctl.runs.receipt import Receipt
from tests.support.crashed_runs import MODEL, WIDTH, Small
from tests.support.processes import sentence
from tests.support.wire.client import Wire, expected, hash_of, started

BAD = 4
FEW = {"retries": 3}  # real seconds pass between them


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as wire:
        yield wire


@pytest.fixture
def small(tmp_path: Path, server: Wire) -> Small:
    server.reset()
    return Small(tmp_path, server)


def receipt(ended: object) -> Receipt:
    assert isinstance(ended, Receipt), ended
    return ended


def events(small: Small) -> list[dict[str, Any]]:
    return [event for file in small.books.values() for event in file]


def check_others(small: Small, texts: list[str]) -> None:
    """Every row but the bad one has its vector."""
    whole = pq.read_table(small.output / "part-000000.parquet")
    left = [text for number, text in enumerate(texts) if number != BAD]
    assert whole.column("text").to_pylist() == left
    assert abs(matrix(whole.column("embedding"), WIDTH) - expected(left, MODEL, WIDTH)).max() < 1e-6


@pytest.mark.parametrize(
    ("rows", "batch_size", "kind"),
    [pytest.param(36, 3, "lost", id="several requests, billed"), pytest.param(12, 12, "reset", id="one request")],
)
def test_its_row_fails_alone(small: Small, rows: int, batch_size: int, kind: str) -> None:
    """Exit 3 and one failed row; a rerun buys nothing, --retry-failed that text alone; the bill holds throughout."""
    texts = [sentence(number) for number in range(rows)]
    small.fill(texts, files=1)
    small.wire.plan(poison=[texts[BAD]], poison_kind=kind)
    flags = {"batch_size": batch_size, **FEW}
    first = receipt(small.run(flags=flags))

    assert (first.exit_code, first.failed, first.vectors) == (3, 1, rows - 1)
    failure = orjson.loads(Path(str(first.failures)).read_bytes())
    assert (failure["id"], failure["reason"], failure["text_hash"]) == (BAD, "provider_failed", hash_of(texts[BAD]))
    check_others(small, texts)
    small.check_bill()
    lost = [event for event in events(small) if event["billable"] == "unknown"]
    assert {(event["status"], event["tokens_total"]) for event in lost} == {("timeout", 0)}
    bought = small.wire.truth()
    assert receipt(small.run(flags=flags)).exit_code == 3
    assert small.wire.truth() == bought

    again = receipt(small.run(flags=flags, retry_failed=True))

    assert (again.exit_code, again.failed, again.vectors) == (3, 1, rows - 1)
    asked = [one["text_hashes"] for one in small.wire.truth()[len(bought) :] if one["fault"] == kind]
    assert asked == [[hash_of(texts[BAD])]] * (FEW["retries"] + 1)
    assert len(events(small)) == len(small.wire.truth())
    assert sum(one.get("purpose") == "test" for one in events(small)) <= 5  # a text that is known to be good
    small.check_bill()


@pytest.mark.parametrize(("rows", "concurrency"), [(12, 2), (120, 16)])
def test_an_outage_fails_no_row(small: Small, rows: int, concurrency: int) -> None:
    """When nobody is answered the run ends with 75 and no row has failed; the same command finishes it."""
    texts = [sentence(number) for number in range(rows)]
    small.fill(texts, files=1)
    small.wire.plan(faults={"reset_after": 1.0})
    flags = {"concurrency": concurrency, **FEW}
    ended = small.run(flags=flags)

    assert (ended.exit_code if isinstance(ended, Receipt | EmbedctlError) else None) == 75
    small.check_bill()
    small.wire.plan()
    done = receipt(small.run(flags=flags))
    assert (done.exit_code, done.failed, done.vectors) == (0, 0, rows)
    small.check_rows(texts)


def test_a_bad_text_in_each_request_stops_no_run(small: Small) -> None:
    """When a server fails over a text in each of more requests than are in flight, these rows fail and no other."""
    texts = [sentence(number) for number in range(72)]
    small.fill(texts, files=1)
    bad = texts[1::3]
    small.wire.plan(poison=bad, poison_kind="server")
    done = receipt(small.run(flags={"concurrency": 8, "retries": 2}))

    assert (done.exit_code, done.failed, done.vectors) == (3, len(bad), len(texts) - len(bad))
    assert done.failed_reasons == {"provider_failed": len(bad)}
    small.check_bill()


def test_looking_for_it_stays_within_the_budget(small: Small) -> None:
    """--max-cost holds what may have been billed against the run: it ends with 4 before it is passed."""
    texts = [sentence(number) for number in range(12)]
    small.fill(texts, files=1)
    small.wire.plan(poison=[texts[BAD]], poison_kind="lost")
    flags = {"batch_size": 12, **FEW}
    most = 185  # tokens: of three times all texts, four each, a text known to be good, and not much of a half
    ended = small.run(flags={**flags, "max_cost": most * Decimal("0.02") / 1_000_000})

    assert isinstance(ended, BudgetReached) or receipt(ended).exit_code == 4
    assert 3 * 48 < small.wire.billed() <= most
    small.check_bill()
