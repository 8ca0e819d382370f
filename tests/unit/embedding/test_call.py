"""The call point under fire: what it retries, halves, learns, falls back to, refuses; and that every request counts."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from embedctl import tokens
from embedctl.embedding.route import Route
from embedctl.errors import ConfigurationInvalid
from embedctl.ledger.ingest import ingest
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import Space
from embedctl.routing import chain, learned
from embedctl.routing.breaker import State
from embedctl.runs.receipt import Spending
from embedctl.settings import Settings
from tests.support import places
from tests.support.calling import KEY, SMALL, embed, load
from tests.support.wire.client import Wire, expected, hash_of, started

TEXTS = [f"text number {i} of some that are long enough to compare" for i in range(8)]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Wire, Wire]]:
    with started() as one, started() as other:
        yield one, other


@pytest.fixture
def wire(servers: tuple[Wire, Wire]) -> Wire:
    servers[0].reset()
    return servers[0]


@pytest.fixture
def other(servers: tuple[Wire, Wire]) -> Wire:
    servers[1].reset()
    return servers[1]


def openai(wire: Wire, folder: Path, *, more: str = "", env: dict[str, str] | None = None, **flags: Any) -> Settings:
    config = f'[providers.openai]\nbase_url = "{wire.base_url()}"\n{more}'
    return load(folder, config, env, **{"model": f"openai:{SMALL}", "fallback": "off", **flags})


def two_hosts(wire: Wire, other: Wire, folder: Path, **flags: Any) -> Settings:
    """openai, and `second`: the same model on another host."""
    more = f"""
    [providers.second]
    protocol = "openai"
    base_url = "{other.base_url()}"
    [fallback]
    openai = ["second:{SMALL}"]
    """
    return openai(wire, folder, more=more, **{"fallback": "same-space", **flags})


def right(found: list[np.ndarray | None], texts: list[str]) -> None:
    np.testing.assert_allclose(np.array(found), expected(texts, SMALL), rtol=0, atol=1e-6)


# ── every request counts ─────────────────────────────────────────────────────────────────────────────────────────────


def counted_alike(count: int) -> list[str]:
    """Texts of which the tokenizer makes as many tokens as the wire server bills: words and one more."""
    counter = tokens.counter("tiktoken:cl100k_base")
    words = ["ship", "glacier", "refund", "harbour", "seven", "office", "valley", "ferry", "quay", "lighthouse"]
    made = (" ".join(picked) for picked in itertools.permutations(words, 5))
    fit = (text for text in made if counter.count([text])[0] == len(text.split()) + 1)
    return list(itertools.islice(fit, count))


def test_requests_are_ledger_rows(wire: Wire, tmp_path: Path) -> None:
    """Under 20 % mixed faults every request is in the ledger once, and confirmed ≤ billed ≤ confirmed + unknown."""
    texts = counted_alike(880)
    batches = [texts[start : start + 4] for start in range(0, 880, 4)]
    faults = {
        "rate": {"p": 0.04, "form": "ms", "seconds": 0.02},
        "status": {"p": 0.04, "status": 503},
        "reset_before": 0.02,
        "reset_after": 0.03,
        "truncated": 0.02,
        "count": 0.02,
        "nan": 0.01,
        "html": 0.01,
        "usage_missing": 0.01,
    }
    wire.plan(faults=faults, seed=11)
    found = openai(wire, tmp_path)

    done = embed(found, batches, tmp_path, at_once=8, retries=30, lost_retries=30)  # chance may hit one again and again

    assert done.error is None
    assert done.refusals == []
    right([vector for one in done.vectors for vector in one], texts)
    truth = wire.truth()
    paths = LedgerPaths(found.paths.ledger, found.paths.spool, found.paths.price_file)
    ingest(paths, wait_s=5, now=datetime.now(UTC))
    with duckdb.connect(str(paths.database), read_only=True) as ledger:
        rows, ids, confirmed, unknown = ledger.execute(
            "SELECT count(*), count(DISTINCT event_id), sum(tokens_total) FILTER (billable = 'yes'), "
            "coalesce(sum(tokens_estimated) FILTER (billable = 'unknown'), 0) FROM usage_event"
        ).fetchall()[0]
    assert len(truth) == rows == ids == len(done.events) > 240
    assert confirmed <= wire.billed() <= confirmed + unknown
    assert {one["fault"] for one in truth} == {"ok", "server", *faults} - {"status"}


def test_unusable_answers_are_billed_as_the_provider_says(wire: Wire, tmp_path: Path) -> None:
    """Of a 200 that cannot be used the provider's own count is taken, where it can be read."""
    wire.plan(script=["nan"])

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    spoilt, good = done.events
    assert (spoilt.billable, spoilt.usage_source, spoilt.tokens_native) == ("yes", "native", good.tokens_total)
    assert spoilt.tokens_total + good.tokens_total == wire.billed()


def test_native_mode_without_a_count(wire: Wire, tmp_path: Path) -> None:
    """With usage_mode `native` a missing count is not estimated and not free: tokens 0, cost NULL, and the reason."""
    wire.plan(script=["usage_missing"])
    more = f'price_as = "openai"\n[models."openai:{SMALL}"]\nusage_mode = "native"\n'
    found = openai(wire, tmp_path, more=more)

    done = embed(found, [TEXTS], tmp_path)

    paths = LedgerPaths(found.paths.ledger, found.paths.spool, found.paths.price_file)
    ingest(paths, wait_s=5, now=datetime.now(UTC))
    with duckdb.connect(str(paths.database), read_only=True) as ledger:
        rows = ledger.execute("SELECT billable, tokens_total, cost, cost_status, reason FROM usage_event").fetchall()
    assert rows == [("yes", 0, None, "unpriced", "native usage missing")]
    spending = Spending(lambda provider, model, price_as, tier: Decimal("0.02"))
    spending.count(done.events[0])
    assert spending.unpriced


def test_raw_answer(wire: Wire, tmp_path: Path) -> None:
    """An answer carries vectors, tokens, the provider's id, the raw body and the request."""
    done = embed(openai(wire, tmp_path), [TEXTS[:1]], tmp_path)

    answer = done.pieces[0][0].answer
    assert answer.usage_tokens == wire.billed()
    assert answer.embedding_id == "req-1"
    assert answer.raw_response.startswith(b'{"object":"list"')
    assert list(answer.request.texts) == TEXTS[:1]


# ── too large, and bad texts ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_poisoned_text_of_64(wire: Wire, tmp_path: Path) -> None:
    """The culprit is named, 63 neighbours are embedded, with at most 2·log2(n) + 1 requests."""
    texts = [f"text {i}" for i in range(64)]
    wire.plan(poison=["text 41"])

    done = embed(openai(wire, tmp_path), [texts], tmp_path)

    assert done.refusals == [(0, 41, "text_refused")]
    assert sum(vector is not None for vector in done.vectors[0]) == 63
    assert len(wire.truth()) == len(done.events) <= 13


@pytest.mark.parametrize(("kind", "reason"), [("bad", "text_refused"), ("server", "provider_failed")])
def test_a_text_the_server_chokes_on(wire: Wire, tmp_path: Path, kind: str, reason: str) -> None:
    """A 400 without known words, or a 500, is a text's fault only when other texts are served meanwhile."""
    wire.plan(poison=[TEXTS[3]], poison_kind=kind)

    done = embed(openai(wire, tmp_path), [TEXTS, TEXTS[:3]], tmp_path)

    assert done.error is None
    assert done.refusals == [(0, 3, reason)]
    assert [event.purpose for event in done.events].count("test") <= 2
    right(done.vectors[1], TEXTS[:3])


def test_a_text_over_which_the_connection_breaks(wire: Wire, tmp_path: Path) -> None:
    """It is named, its neighbours are embedded; at risk is 4 times the request, and the text as often as it is sent."""
    texts = counted_alike(64)
    wire.plan(poison=[texts[41]], poison_kind="lost")
    found = openai(wire, tmp_path)

    done = embed(found, [texts], tmp_path)

    assert done.error is None
    assert done.refusals == [(0, 41, "provider_failed")]
    right([vector for vector in done.vectors[0] if vector is not None], texts[:41] + texts[42:])
    lost = [one for one in wire.truth() if one["fault"] == "lost"]
    assert [one["items"] for one in lost] == [64] * 3 + [32, 16, 8, 4, 2] + [1] * 7
    assert len(wire.truth()) == len(done.events) <= len(lost) + 6 + 2
    confirmed, unknown = done.billed("yes"), done.billed("unknown")
    assert confirmed < wire.billed() <= confirmed + unknown
    assert unknown <= 6 * (4 * 64 + 7)  # each of these texts has six tokens
    paths = LedgerPaths(found.paths.ledger, found.paths.spool, found.paths.price_file)
    ingest(paths, wait_s=5, now=datetime.now(UTC))
    with duckdb.connect(str(paths.database), read_only=True) as ledger:
        costs = ledger.execute("SELECT count(*), count(cost) FROM usage_event WHERE billable = 'unknown'").fetchall()
    assert costs == [(len(lost), 0)]


def test_a_text_among_many_requests_over_which_the_connection_breaks(wire: Wire, tmp_path: Path) -> None:
    """While others get through nobody has to be asked who is to blame, and halves are not sent again and again."""
    wire.plan(poison=[TEXTS[5]], poison_kind="lost")

    done = embed(openai(wire, tmp_path), [TEXTS, *[[f"text {i}"] for i in range(60)]], tmp_path, at_once=3)

    assert done.error is None
    assert done.refusals == [(0, 5, "provider_failed")]
    assert [one["items"] for one in wire.truth() if one["fault"] == "lost"] == [8] * 3 + [4, 2] + [1] * 7


def test_texts_over_which_the_connection_breaks_open_no_circuit(wire: Wire, tmp_path: Path) -> None:
    """What is known to be the texts' fault says nothing about the server, however many they are."""
    wire.plan(poison=TEXTS[:7], poison_kind="reset")

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    assert done.error is None
    assert done.refusals == [(0, number, "provider_failed") for number in range(7)]
    assert [one.openings for one in done.router.snapshots()] == [0]
    assert done.route.first.state.budget.level == 500


@pytest.mark.parametrize("kind", ["server", "reset"])
@pytest.mark.parametrize("at_once", [4, 16, 24])
def test_a_bad_text_in_each_request_stops_nobody(wire: Wire, tmp_path: Path, kind: str, at_once: int) -> None:
    """Where each request has a text that the server fails over, all others are embedded, and no circuit opens.

    A text that is known to be good has told that it is not the server.
    """
    texts = [f"text {number}" for number in range(24 * 8)]
    bad = texts[3::8]
    wire.plan(poison=bad, poison_kind=kind)

    batches = [texts[start : start + 8] for start in range(0, len(texts), 8)]
    done = embed(openai(wire, tmp_path), batches, tmp_path, at_once=at_once)

    assert done.error is None
    assert done.refusals == [(number, 3, "provider_failed") for number in range(24)]
    for batch, vectors in zip(batches, done.vectors, strict=True):
        right([vector for vector in vectors if vector is not None], [text for text in batch if text not in bad])
    assert [one.openings for one in done.router.snapshots()] == [0]


@pytest.mark.parametrize("batch", [TEXTS, TEXTS[:1]], ids=["several", "one"])
@pytest.mark.parametrize("script", [[], ["ok"]], ids=["from the start", "in mid-run"])
def test_a_server_that_answers_nothing_fails_no_row(
    wire: Wire, tmp_path: Path, batch: list[str], script: list[str]
) -> None:
    """When a text that is known to be good is lost too, the run ends with 75: no row fails, little is at risk."""
    wire.plan(script=script, faults={"reset_after": 1.0})

    done = embed(openai(wire, tmp_path), [batch] * 4, tmp_path, max_wait_s=100.0)

    assert done.error is not None
    assert done.error.exit_code == 75
    assert done.refusals == []
    lost = [event for event in done.events if event.billable == "unknown"]
    assert [event.purpose == "test" for event in lost] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("batch", [TEXTS, TEXTS[:1]], ids=["several", "one"])
def test_a_server_that_falls_silent_while_a_text_is_looked_for(wire: Wire, tmp_path: Path, batch: list[str]) -> None:
    """Whoever got through before a text's last attempt is no witness against it."""
    script = [*["reset_after"] * 3, "ok"] if len(batch) > 1 else []  # the text that is known to be good
    wire.plan(script=script, faults={"reset_after": 1.0})
    others = {1: 5, 3: 1, 4: 5} if len(batch) == 1 else {}
    lost = 0

    def watched(route: Any) -> None:
        line = route.first.state

        def failed() -> None:
            nonlocal lost
            lost += 1
            line.successes += others.get(lost, 0)  # while this attempt failed

        line.moved = failed

    done = embed(openai(wire, tmp_path), [batch], tmp_path, max_wait_s=100.0, before=watched)

    assert done.error is not None
    assert done.error.exit_code == 75
    assert done.refusals == []


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        pytest.param(1, "lllolll", id="alone"),
        pytest.param(2, "lllollllll", id="halved"),
    ],
)
def test_a_text_has_all_its_retries_before_it_fails(wire: Wire, tmp_path: Path, texts: int, script: str) -> None:
    """On a bad network an innocent text whose answer is lost six times over has its vector with the seventh."""
    wire.plan(script=["ok" if one == "o" else "reset_after" for one in script])

    done = embed(openai(wire, tmp_path), [TEXTS[:texts]], tmp_path)

    assert done.error is None
    assert done.refusals == []
    right(done.vectors[0], TEXTS[:texts])
    assert len(done.events) == 3 + 1 + (6 if texts > 1 else 3) + texts


def test_a_bad_network_fails_no_row(wire: Wire, tmp_path: Path) -> None:
    """With a tenth of all answers lost every text has its vector."""
    wire.plan(faults={"reset_after": 0.05, "reset_before": 0.05}, seed=5)
    batches = [[f"text {i}"] for i in range(40)] + [[f"{i} {text}" for text in TEXTS] for i in range(20)]

    done = embed(openai(wire, tmp_path), batches, tmp_path, at_once=4)

    assert done.error is None
    assert done.refusals == []


def test_with_few_attempts_another_host_is_asked(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """One or two lost answers, as --retries 1 or a service with somebody to fall back to have, blame no text."""
    wire.plan(poison=[TEXTS[3]], poison_kind="reset")

    done = embed(two_hosts(wire, other, tmp_path), [TEXTS[3:4]], tmp_path, retries=1)

    assert done.error is None
    assert done.refusals == []
    assert [one["items"] for one in wire.truth()] == [1, 1]
    right(done.vectors[0], TEXTS[3:4])


def test_lost_answers_count_while_a_text_is_looked_for(wire: Wire, tmp_path: Path) -> None:
    """A call that may fail three times fails so often, also after one of its texts was refused."""
    wire.plan(script=[{"fault": "status", "status": 400}] * 2 + ["ok"], faults={"reset_after": 1.0})

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path, retries=2, most_failed=3)

    assert done.error is not None
    assert done.error.exit_code == 75
    assert [event.billable for event in done.events].count("unknown") <= 3


def test_a_wrong_parameter_is_no_texts_fault(wire: Wire, tmp_path: Path) -> None:
    """When a text that is known to be good is refused too, the run ends with 78 and no row fails."""
    wire.plan(faults={"status": {"p": 1.0, "status": 400}})

    done = embed(openai(wire, tmp_path), [TEXTS] * 4, tmp_path, at_once=4)

    assert done.error is not None
    assert done.error.exit_code == 78
    assert done.refusals == []
    assert len(wire.truth()) <= 13


def test_a_sick_server_fails_no_row(wire: Wire, tmp_path: Path) -> None:
    """With a third of all requests failing, single texts are retried, never blamed."""
    wire.plan(faults={"status": {"p": 0.3, "status": 500}}, seed=5)

    done = embed(openai(wire, tmp_path), [[f"text {i}"] for i in range(60)], tmp_path, at_once=4)

    assert done.refusals == []


def test_too_many_texts(wire: Wire, tmp_path: Path) -> None:
    """A request refused for its size is halved; the packer and the next run are told what fits."""
    wire.plan(max_items=3)

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    right(done.vectors[0], TEXTS)
    assert done.limits[-1].items == 2
    again = embed(openai(wire, tmp_path), [TEXTS[:2]], tmp_path)
    assert again.router.limits(again.route).items == 2


def test_too_many_bytes(wire: Wire, tmp_path: Path) -> None:
    """A refusal that does not speak of texts is about bytes."""
    wire.plan(max_bytes=300)

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    right(done.vectors[0], TEXTS)
    assert done.limits[-1].items == 2048
    assert done.limits[-1].bytes is not None
    assert done.limits[-1].bytes < 300


def test_a_text_over_the_models_limit(wire: Wire, tmp_path: Path) -> None:
    """A text that is too long fails alone, with the model's limit beside it."""
    wire.plan(max_tokens=20)
    texts = [*TEXTS[:5], "word " * 30, *TEXTS[5:]]

    done = embed(openai(wire, tmp_path), [texts], tmp_path)

    assert done.refusals == [(0, 5, "too_long")]
    (refused,) = [piece.refusal for piece in done.pieces[0] if piece.refusal]
    assert refused.max_tokens == 8191


def test_index_0_is_left_out(wire: Wire, tmp_path: Path) -> None:
    """A server that leaves out an index of 0, as JSON of protocol buffers does, is understood: all is kept, once."""
    wire.plan(faults={"no_index_0": 1.0})

    done = embed(openai(wire, tmp_path), [TEXTS, TEXTS[:1]], tmp_path)

    assert done.error is None
    right(done.vectors[0], TEXTS)
    assert [one["items"] for one in wire.truth()] == [8, 1]


@pytest.mark.parametrize("fault", ["width", "index_from_1"])
def test_what_no_retry_changes_is_paid_once(wire: Wire, tmp_path: Path, fault: str) -> None:
    """Width and indexes that a server gives to all answers end the run (76): at most one request is sent twice."""
    wire.plan(faults={fault: 1.0}, latency_s=0.01)
    batches = [[f"{text} in request {number}" for text in TEXTS] for number in range(40)]

    done = embed(openai(wire, tmp_path), batches, tmp_path, at_once=4)

    assert done.error is not None
    assert done.error.exit_code == 76
    assert done.refusals == []
    sent = [one for one in wire.truth() for one in one["text_hashes"]]
    assert len(set(sent)) <= 4 * len(TEXTS)
    assert len(sent) - len(set(sent)) <= (len(TEXTS) if fault == "index_from_1" else 0)


def test_a_model_swapped_under_a_run(wire: Wire, tmp_path: Path) -> None:
    """After good answers one of a wrong width is tried again; the second in a row ends the run (76)."""
    wire.plan(script=["ok", "width", "ok", "width", "width", "ok"])

    done = embed(openai(wire, tmp_path), [[text] for text in TEXTS[:4]], tmp_path)

    assert [error is None for error in done.errors] == [True, True, False, False]
    assert done.error is not None
    assert done.error.exit_code == 76
    assert len(wire.truth()) == 5


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("form", "least", "most"),
    [("seconds", 30, 45), ("date", 28, 46), ("ms", 30, 45), ("reset", 30, 45), ("unix", 28, 46), ("garbage", 0, 5)],
)
def test_retry_after(wire: Wire, tmp_path: Path, form: str, least: float, most: float) -> None:
    """However a server says when to come back, the next request comes then, with up to half of it more."""
    wire.plan(script=[{"fault": "rate", "form": form, "seconds": 30}])

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    right(done.vectors[0], TEXTS)
    assert least <= sum(done.slept) <= most
    assert [(event.status, event.billable) for event in done.events] == [("error", "no"), ("ok", "yes")]


def test_a_wait_is_told_once(wire: Wire, tmp_path: Path) -> None:
    """Four requests that are told to wait are one wait while it lasts, and it is told in words."""
    wire.plan(script=[{"fault": "rate", "seconds": 30}] * 4)

    done = embed(openai(wire, tmp_path), [TEXTS] * 8, tmp_path, at_once=8)

    assert done.error is None
    assert len(set(done.waits)) == 1  # the clock of a wait does not wait for the server: see test_waits.py for once
    assert len(done.waits) < 4
    assert "openai:text-embedding-3-small: HTTP 429" in done.waits[0]
    assert "retry in" in done.waits[0]


def test_come_back_tomorrow(wire: Wire, tmp_path: Path) -> None:
    """Azure's "retry after 86400 seconds" ends the run with 75 and the time; the next one asks once, the rest wait."""
    config = f"""
    [providers.azure]
    base_url = "{wire.base_url("azure")}"
    """
    found = load(tmp_path, config, {"AZURE_API_KEY": KEY}, model=f"azure:{SMALL}")
    wire.plan(script=[{"fault": "rate", "seconds": 86400}, {"fault": "rate", "seconds": 86400}])

    first = embed(found, [TEXTS], tmp_path)
    second = embed(found, [TEXTS] * 6, tmp_path, at_once=6)
    asked = len(wire.truth())
    third = embed(found, [TEXTS] * 6, tmp_path, at_once=6)

    assert first.error is not None
    assert (first.error.exit_code, first.error.hint) == (75, "run the same command again in 24 h to go on")
    assert second.error is not None
    assert (second.error.exit_code, asked) == (75, 2)
    assert third.error is None


def test_a_circuit_opens_and_closes(wire: Wire, tmp_path: Path) -> None:
    """After five failures in a row nothing is sent for a while, then one probe; the others go on when it is good."""
    wire.plan(script=["ok", *[{"fault": "status", "status": 503}] * 5])
    seen: list[State] = []

    def watched(route: Any) -> None:
        line = route.first.state
        moved = line.moved

        def look() -> None:
            seen.append(line.breaker.state(line.limiter._clock()))
            moved()

        line.moved = look

    batches = [TEXTS[:1], *[[text] for text in TEXTS]]
    done = embed(openai(wire, tmp_path), batches, tmp_path, at_once=3, before=watched, grace_s=1.0)

    assert done.error is None
    assert State.OPEN in seen
    assert seen[-1] is State.CLOSED
    assert 0 < sum(done.slept) < 60  # a waiting request looks again long before the probe's 180 s are over
    assert len([line for line in done.waits if "failed too often" in line or "no provider can be asked" in line]) <= 2


def test_a_dead_server_ends_the_run(wire: Wire, tmp_path: Path) -> None:
    """A server that stays away ends the run with 75 after --max-wait, with few requests and no failed row."""
    wire.plan(script=["ok"], faults={"status": {"p": 1.0, "status": 503}})

    done = embed(openai(wire, tmp_path), [TEXTS] * 4, tmp_path, max_wait_s=100.0)

    assert done.error is not None
    assert done.error.exit_code == 75
    assert done.refusals == []
    assert len(wire.truth()) < 20


def test_a_server_that_is_down_from_the_start(tmp_path: Path, wire: Wire) -> None:
    """A server that does not answer once is not waited for."""
    wire.plan(faults={"status": {"p": 1.0, "status": 503}})

    done = embed(openai(wire, tmp_path), [TEXTS] * 4, tmp_path, at_once=4)

    assert done.error is not None
    assert done.error.exit_code == 75
    assert len(wire.truth()) <= 8


# ── what is learnt ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_base64_refused(wire: Wire, tmp_path: Path) -> None:
    """A server whose refusal a float request survives is asked for floats from then on, by the next run too."""
    wire.plan(faults={"base64_refused": 1.0})

    done = embed(openai(wire, tmp_path), [TEXTS] * 4, tmp_path, at_once=4)
    asked = len(wire.truth())
    again = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    assert done.error is None
    assert asked <= 8
    right(again.vectors[0], TEXTS)
    assert len(wire.truth()) == asked + 1


def test_base64_is_not_to_blame(wire: Wire, tmp_path: Path) -> None:
    """A refusal that floats do not survive teaches nothing about base64."""
    wire.plan(poison=[TEXTS[2]], poison_kind="bad")

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    assert done.route.first.state.asks_base64
    assert done.router.memory.takes_base64(done.route.first.endpoint)


def test_floats_in_the_answer(wire: Wire, tmp_path: Path) -> None:
    """A server that answers in floats whatever it is asked is not asked for base64 again."""
    wire.plan(faults={"floats": 1.0})

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path)

    right(done.vectors[0], TEXTS)
    assert not done.route.first.state.asks_base64
    assert not done.router.memory.takes_base64(done.route.first.endpoint)


def test_tei_is_asked_what_it_takes(wire: Wire, tmp_path: Path) -> None:
    """TEI's own limits are asked once, hold for the packer, and are no ledger event."""
    config = f'[providers.tei]\nbase_url = "{wire.base_url("tei")}"\nmax_items = 500'
    found = load(tmp_path, config, model="tei:sentence-transformers/all-MiniLM-L6-v2", fallback="off")
    wire.plan(dimensions=384)

    done = embed(found, [TEXTS, TEXTS], tmp_path)

    assert done.error is None
    assert (done.limits[-1].items, done.limits[-1].tokens) == (32, 16384)
    assert done.route.first.endpoint.max_tokens == 256
    assert len(done.events) == 2


def test_tei_serves_another_model(wire: Wire, tmp_path: Path) -> None:
    """A TEI that says it serves another model is not asked for vectors."""
    config = f'[providers.tei]\nbase_url = "{wire.base_url("tei")}"'
    found = load(tmp_path, config, model="tei:sentence-transformers/all-mpnet-base-v2", fallback="off")

    done = embed(found, [TEXTS], tmp_path)

    assert done.error is not None
    assert (done.error.exit_code, done.events) == (76, [])
    assert "all-MiniLM-L6-v2" in done.error.message


# ── fallback and spaces ──────────────────────────────────────────────────────────────────────────────────────────────


def test_another_host_takes_over(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """The same model elsewhere takes over in mid-run, once three texts gave the same vectors there."""
    wire.plan(script=["ok"], faults={"quota": 1.0})
    found = two_hosts(wire, other, tmp_path)

    done = embed(found, [TEXTS, TEXTS, TEXTS], tmp_path)
    first, refused, probe, second, third = done.events
    learned.update(tmp_path / "home" / "hints.json", lambda known: replace(known, holds={}), 0.0)
    wire.plan(script=["ok"], faults={"quota": 1.0})
    again = embed(found, [TEXTS, TEXTS], tmp_path)

    assert done.error is None
    right(done.vectors[2], TEXTS)
    assert (probe.purpose, probe.input_count, probe.provider) == ("test", 3, "second")
    assert [event.fallback_from for event in (first, second, third)] == [None, f"openai:{SMALL}", f"openai:{SMALL}"]
    assert refused.error_class == "quota_exhausted"
    assert [(event.provider, event.purpose) for event in again.events] == [
        ("openai", "ingest"),
        ("openai", "ingest"),
        ("second", "ingest"),
    ]


def test_what_was_answered_is_not_asked_again(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """When a line is left between the halves of a request, the next one is asked for the rest alone."""
    wire.plan(script=["too_large", "ok", "quota"])

    done = embed(two_hosts(wire, other, tmp_path), [TEXTS], tmp_path)

    right(done.vectors[0], TEXTS)
    assert [piece.targets for piece in done.pieces[0]] == [range(4), range(4, 8)]
    assert [event.input_count for event in done.events if event.purpose == "ingest"] == [8, 4, 4, 4]
    assert other.truth()[-1]["text_hashes"] == [hash_of(text) for text in TEXTS[4:]]


def test_another_host_with_other_vectors(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """A host whose vectors have the same width but differ is refused; nothing of it is written."""
    wire.plan(script=["ok"], faults={"quota": 1.0})
    other.plan(spaces={SMALL: "another"})

    done = embed(two_hosts(wire, other, tmp_path), [TEXTS, TEXTS], tmp_path)

    assert done.error is not None
    assert done.error.exit_code == 76
    assert "gives other vectors than" in done.error.message
    assert done.vectors[1] == []
    assert len(other.truth()) == 1


def test_another_host_before_the_first_vector(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """Nothing is compared while there is nothing to mix with."""
    wire.plan(faults={"unauthorized": 1.0})

    done = embed(two_hosts(wire, other, tmp_path), [TEXTS], tmp_path)

    right(done.vectors[0], TEXTS)
    assert [event.purpose for event in done.events] == ["ingest", "ingest"]


def any_model(wire: Wire, other: Wire, folder: Path) -> Settings:
    more = f"""
    [providers.voyage]
    base_url = "{other.base_url("voyage")}"
    api_key_env = "OPENAI_API_KEY"
    """
    env = {"EMBEDCTL_FALLBACK_CHAIN": "voyage:voyage-4, onnx"}
    return openai(wire, folder, more=more, env=env, fallback="any")


def test_any_model_may_begin(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """With `any` another model takes over an output that has no vector; the chain comes from a variable."""
    wire.plan(faults={"quota": 1.0})

    done = embed(any_model(wire, other, tmp_path), [TEXTS] * 4, tmp_path, at_once=4)

    assert done.error is None
    assert done.space is not None
    assert done.space.model == "voyageai/voyage-4"
    assert {event.provider for event in done.events if event.status == "ok"} == {"voyage"}


def test_who_began_is_asked_on_while_its_vectors_are_written_down(
    wire: Wire, other: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model that has begun an output is asked on at once: not only when its first vectors are on the disk."""
    wire.plan(faults={"quota": 1.0})

    def still_writing(route: Route) -> None:
        monkeypatch.setattr(route.space_probe, "answered", lambda *leg_texts_vectors: None)

    done = embed(any_model(wire, other, tmp_path), [TEXTS] * 2, tmp_path, before=still_writing)

    assert done.error is None
    assert [event.provider for event in done.events if event.status == "ok"] == ["voyage", "voyage"]


def test_no_other_model_may_go_on(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """Once the output has a vector, `any` other model is refused, and the run ends."""
    wire.plan(script=["ok"], faults={"quota": 1.0})

    done = embed(any_model(wire, other, tmp_path), [TEXTS] * 3, tmp_path)

    assert done.error is not None
    assert "another space" in done.error.message
    assert other.truth() == []


def test_a_late_answer_of_another_space(wire: Wire, other: Wire, tmp_path: Path) -> None:
    """An answer that was under way while another model of the same width took over is billed, and not written."""
    config = f"""
    [providers.mistral]
    base_url = "{wire.base_url("mistral")}"
    [providers.voyage]
    base_url = "{other.base_url("voyage")}"
    [fallback]
    mistral = ["voyage:voyage-4"]
    """
    env = {"MISTRAL_API_KEY": KEY, "VOYAGE_API_KEY": KEY}
    found = load(tmp_path, config, env, model="mistral:mistral-embed", fallback="any")
    wire.plan(script=[{"fault": "drip", "seconds": 4}, "quota"])

    done = embed(found, [TEXTS, TEXTS], tmp_path, at_once=2)

    assert done.error is None
    assert {event.provider for event in done.events if event.status == "ok"} == {"voyage"}
    late = [event for event in done.events if event.error_class == "space_mismatch"]
    assert [(event.provider, event.billable) for event in late] == [("mistral", "yes")]


def test_an_output_of_another_space(wire: Wire, tmp_path: Path) -> None:
    """An output's space is held against every answer."""
    space = Space(model="someone/else", dimensions=1536)

    done = embed(openai(wire, tmp_path), [TEXTS], tmp_path, space=space)

    assert done.error is not None
    assert wire.truth() == []


def test_a_server_that_changes_its_model(wire: Wire, tmp_path: Path) -> None:
    """A server of one's own may call its model what it likes, but not now this and now that."""
    wire.plan(script=[{"fault": "other_model", "model": "gpt-like"}, {"fault": "other_model", "model": "e5-large"}])

    done = embed(openai(wire, tmp_path), [TEXTS, TEXTS], tmp_path)

    assert done.vectors[0] != []
    assert done.error is not None
    assert done.error.exit_code == 76
    assert "gpt-like" in done.error.message


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """It is found out with one attempt: 69, nothing billed, and how to trust it."""
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here"
    pem = tmp_path / "cert.pem"
    command = [*made.split(), "-keyout", str(pem), "-out", str(tmp_path / "out.pem")]
    subprocess.run(command, check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "out.pem").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_shake_hands, args=(listening, context))
        thread.start()
        config = f'[providers.openai]\nbase_url = "https://127.0.0.1:{listening.getsockname()[1]}/v1"'
        done = embed(load(tmp_path, config, model=f"openai:{SMALL}", fallback="off"), [TEXTS], tmp_path)
        thread.join()

    (event,) = done.events
    assert (event.status, event.billable, event.tokens_total) == ("error", "no", 0)
    assert done.error is not None
    assert done.error.exit_code == 69
    assert "certificate of 127.0.0.1" in done.error.message
    assert "ca_file" in (done.error.hint or "")


def _shake_hands(listening: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listening.accept()
    with connection, contextlib.suppress(ssl.SSLError, OSError):
        context.wrap_socket(connection, server_side=True).close()


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_is_named_but_not_set(wire: Wire, tmp_path: Path) -> None:
    """A missing key is told before anything is sent, with the variable's name."""
    config = f'[providers.mine]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\napi_key_env = "NOT_SET"'
    found = load(tmp_path, config, model="mine:some")

    with pytest.raises(ConfigurationInvalid, match="NOT_SET"):
        chain.check_usable(chain.chain(found).first)


def test_a_token_is_minted(wire: Wire, tmp_path: Path) -> None:
    """The bearer token of tldw is signed once for the run; without the secret the reason is told."""
    config = f"""
    [providers.tldw]
    base_url = "{wire.base_url("tldw")}"
    jwt_secret_env = "TLDW_SECRET"
    jwt_subject = "user-1"
    pin = "openai"
    """
    found = load(tmp_path, config, {"TLDW_SECRET": "s" * 32}, model=f"tldw:{SMALL}")

    done = embed(found, [TEXTS], tmp_path)

    endpoint = done.route.first.endpoint
    sent = endpoint.protocol.request(endpoint.place, endpoint.wire_model, ["a"], endpoint.wire)
    assert sent.headers["authorization"].startswith("Bearer eyJ")
    assert sent.headers["x-provider"] == "openai"
    assert done.error is None
    with pytest.raises(ConfigurationInvalid, match="TLDW_SECRET"):
        chain.chain(load(tmp_path, config, model=f"tldw:{SMALL}"))


def test_local_runs_need_no_http(tmp_path: Path) -> None:
    """A run with the bundled model imports no HTTP client."""
    code = """
import asyncio, sys, pathlib
sys.path.insert(0, sys.argv[2])
from tests.support import calling
done = calling.embed(calling.load(pathlib.Path(sys.argv[1])), [["a", "b"]], pathlib.Path(sys.argv[1]))
assert done.error is None and len(done.vectors[0]) == 2
print(sorted({"httpx", "httpcore", "duckdb", "pyarrow"} & set(sys.modules)))
"""
    root = str(places.ROOT)
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), root], capture_output=True, text=True, check=False
    )

    assert ended.stderr == ""
    assert "httpx" not in ended.stdout
