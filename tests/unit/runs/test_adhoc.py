"""Calls without an output leave nothing behind but their events, whatever happens to their process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedctl import settings
from embedctl.errors import BudgetReached, KeyRejected
from embedctl.ledger import spool
from embedctl.routing import chain
from embedctl.runs import adhoc
from embedctl.runs.registry import RunRegistry, home_trust, recover_dead
from embedctl.settings import Settings
from tests.support.wire import client


@pytest.fixture(scope="module")
def server() -> Iterator[client.Wire]:
    """One wire server for this module."""
    with client.started() as wire:
        yield wire


@pytest.fixture
def wire(server: client.Wire) -> client.Wire:
    """The server without plan and memory."""
    server.reset()
    server.plan(dimensions=1536)
    return server


@pytest.fixture
def configured(wire: client.Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings whose openai is the wire server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    path = tmp_path / "config.toml"

    def load(more: str = "", **flags: Any) -> Settings:
        path.write_text(f'[providers.openai]\nbase_url = "{wire.base_url()}"\nprice_as = "openai"\n{more}')
        return settings.load(flags={"model": "openai:text-embedding-3-small", **flags}, config=path)

    return load


def made(found: Settings, texts: list[str]) -> adhoc.AdhocAnswers:
    """Embed some texts for a test."""
    return asyncio.run(adhoc.embed(found, chain.chain(found), texts, purpose="test", command="a test"))


def test_vectors_come_in_order_and_are_paid_for(wire: client.Wire, configured: Callable[..., Settings]) -> None:
    """Each text has the vector at its place, requests keep to the batch size, and all tokens are counted."""
    found = configured(batch_size=3)
    texts = [f"text {number}" for number in range(8)]
    came = made(found, texts)
    alone = made(found, [texts[5]])

    assert len(wire.truth()) == 4
    assert came.spending.tokens + alone.spending.tokens == wire.billed()
    assert all(came.vector(place) is not None for place in range(8))
    assert np.allclose(came.vector(5), alone.vector(0))  # type: ignore[arg-type]
    assert not np.allclose(came.vector(4), alone.vector(0))  # type: ignore[arg-type]


def test_nothing_is_left_behind(configured: Callable[..., Settings]) -> None:
    """When it is over, the events wait in the spool; journal and registry are as they were."""
    found = configured()
    made(found, ["some words"])
    files = spool.pending(found.paths.spool)

    assert sum(len(spool.read(path).lines) for path in files) == 1
    assert b'"purpose":"test"' in spool.read(files[0]).lines[0]
    assert list(found.paths.journal.iterdir()) == []
    assert RunRegistry(found.paths.runs).all() == []


def test_a_text_that_is_refused_is_named(wire: client.Wire, configured: Callable[..., Settings]) -> None:
    """One bad text has a reason instead of a vector; its neighbours have theirs."""
    wire.plan(dimensions=1536, poison=["bad text"])
    came = made(configured(), ["good one", "bad text", "good two"])

    assert came.refusals.keys() == {1}
    assert came.vector(1) is None
    assert came.vector(0) is not None
    assert came.vector(2) is not None


def test_an_error_is_raised_and_still_counted(wire: client.Wire, configured: Callable[..., Settings]) -> None:
    """A rejected key is the caller's error; the attempt is in the spool all the same."""
    wire.plan(keys=["sk-another"])
    found = configured()
    with pytest.raises(KeyRejected):
        made(found, ["some words"])

    assert sum(len(spool.read(path).lines) for path in spool.pending(found.paths.spool)) == 1
    assert RunRegistry(found.paths.runs).all() == []


def test_a_budget_holds_for_questions_too(wire: client.Wire, configured: Callable[..., Settings]) -> None:
    """A workspace whose budget is used up asks nothing."""
    budget = '[workspaces.default]\nbudget = { amount = "0.000000001" }\n'
    with pytest.raises(BudgetReached):
        made(configured(budget), ["some words " * 200])

    assert wire.truth() == []


def test_what_a_killed_process_spent_is_found(
    wire: client.Wire, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """Killed while it waits for the answer: the next one finds the attempt and counts it as possibly billed."""
    wire.plan(dimensions=1536, hold_after=0)
    found = configured()
    program = (
        "import sys; from pathlib import Path; from embedctl import settings;"
        "from embedctl.routing import chain; from embedctl.runs import adhoc;"
        "found = settings.load(flags={'model': 'openai:text-embedding-3-small'}, config=Path(sys.argv[1]));"
        "import asyncio;"
        "asyncio.run(adhoc.embed(found, chain.chain(found), ['some words'], purpose='query', command='search'))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "config.toml")]) as process:
        until = time.monotonic() + 120
        while not wire.held() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    put = recover_dead(
        found.paths.runs,
        lambda spool_id, events: spool.publish(found.paths.spool, spool_id, events),
        home_trust(found.paths),
        ledger=found.paths.ledger,
    )
    line = spool.read(spool.pending(found.paths.spool)[0]).lines[0]

    assert put == 1
    assert b'"status":"interrupted"' in line
    assert b'"billable":"unknown"' in line
    assert b'"purpose":"query"' in line
