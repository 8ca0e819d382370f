"""What the actors of a job on Ray keep when a worker, or an actor itself, dies. Without Ray."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from embedctl import settings
from embedctl.budgets.reservations import SpendLimit
from embedctl.engines.ray_actor import Joined, KeptActor, KeptLimits
from embedctl.engines.ray_worker import check_headers, handed
from embedctl.errors import ConfigurationInvalid
from embedctl.records import Warned
from embedctl.routing.rate_limit import RateLimits
from embedctl.runs.job import JobRequest
from embedctl.storage.store import OutputFolder

LIMITS = [[name, value] for name, value in asdict(RateLimits(concurrency=1)).items()]
ENDPOINT = ["openai:m", "m", "http://127.0.0.1/v1", "account", LIMITS]


def kept(folder: Path, amount: str = "1.00") -> KeptActor:
    """An actor of two workers, as it begins, or begins again."""
    limits = [SpendLimit("--max-cost", Decimal(amount))]
    about = KeptLimits(limits=limits, shared=None, also=(), folder=folder, counted=(), workers=1, longest_gate_s=60.0)
    return KeptActor(about.packed())


def reserve(actor: KeptActor, worker: str, ticket: int, amount: str) -> Any:
    return actor.ask(worker, "reserve", (ticket, ["default"], amount, True))


def test_what_was_set_aside_counts_as_spent_once_an_actor_has_died(tmp_path: Path) -> None:
    """Nobody knows what became of it: an actor that begins again has that much less to give."""

    async def story() -> None:
        first = kept(tmp_path)
        await first.join("a", 0)
        assert await reserve(first, "a", 1, "0.30") == {}
        assert await reserve(first, "a", 2, "0.50") == {}
        await first.tell("a", "settle", (1, "0.10"))
        assert await reserve(first, "a", 3, "0.05") == {}  # 0.10 spent, 0.55 set aside

        again = kept(tmp_path)
        assert await reserve(again, "a", 4, "0.36") == {"short": True}
        assert await reserve(again, "a", 5, "0.35") == {}

    asyncio.run(story())


def test_a_worker_that_an_actor_has_not_seen_join_is_known(tmp_path: Path) -> None:
    """It joined the one before: it is asked nothing, and goes on; what that one had given it means nothing here."""

    async def story() -> None:
        again = kept(tmp_path)
        again.report("a", pickle.dumps([]))
        await again.tell("b", "ended", (7,))
        assert await again.ask("a", "acquire", (1, ENDPOINT, 1.0, 1)) == {"per_second": None}
        await again.tell("a", "ended", (1,))
        assert await again.ask("b", "acquire", (8, ENDPOINT, 1.0, 1)) == {"per_second": None}

    asyncio.run(story())


def test_a_worker_that_is_started_again_has_died(tmp_path: Path) -> None:
    """Whoever joins under the number of another one replaces it: its turns are free, its money counts as spent, others
    hear of it, and should it live after all it gets nothing any more.
    """

    async def story() -> None:
        actor = kept(tmp_path)
        await actor.join("a", 0)
        await actor.ask("a", "acquire", (1, ENDPOINT, 1.0, 1))
        await reserve(actor, "a", 2, "0.60")
        others = asyncio.create_task(actor.orders(0))
        await actor.join("b", 0)

        assert await others == (["a"], None)
        assert await asyncio.wait_for(actor.ask("b", "acquire", (3, ENDPOINT, 1.0, 1)), 60) == {"per_second": None}
        assert await reserve(actor, "b", 4, "0.50") == {"short": True}
        assert await reserve(actor, "a", 5, "0.10") == {"gone": True}
        assert pickle.loads(await actor.news()) == [("a", Joined(0)), ("b", Joined(0))]

    asyncio.run(story())


def test_who_is_silent_for_a_lease_is_given_up(tmp_path: Path) -> None:
    """A worker whose machine is gone says nothing: what it holds does not stay held for ever."""

    async def story() -> None:
        actor = kept(tmp_path)
        await actor.join("a", 0)
        await actor.ask("a", "acquire", (1, ENDPOINT, 1.0, 1))

        assert await actor.silent(3600.0) == []
        assert await actor.silent(-1.0) == ["a"]
        assert await actor.ask("a", "acquire", (2, ENDPOINT, 1.0, 1)) == {"gone": True}
        assert await actor.silent(-1.0) == []

    asyncio.run(story())


def test_all_are_told_to_end(tmp_path: Path) -> None:
    """Also who asks later."""

    async def story() -> None:
        actor = kept(tmp_path)
        waiting = asyncio.create_task(actor.orders(0))
        await asyncio.sleep(0)
        actor.stop("stopped")

        assert await waiting == ([], "stopped")
        assert await actor.orders(0) == ([], "stopped")

    asyncio.run(story())


def test_what_workers_report_is_told_once(tmp_path: Path) -> None:
    """Events in their order, with who reported them."""

    async def story() -> None:
        actor = kept(tmp_path)
        actor.report("a", pickle.dumps([Warned("cache")]))
        actor.report("b", pickle.dumps([Warned("ledger")]))

        assert pickle.loads(await actor.news()) == [("a", Warned("cache")), ("b", Warned("ledger"))]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(actor.news(), 0.01)

    asyncio.run(story())


def test_no_key_goes_to_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed over holds what was asked for, and nothing of the environment."""
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "ANYTHING_ELSE"):
        monkeypatch.setenv(name, f"a-secret-{name}")
    monkeypatch.setenv("EMBEDCTL_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[providers.other]\nheaders = {x-api-key = "a-secret", x-team = "search"}\n')
    loaded = settings.load(flags={"model": "openai:text-embedding-3-small"})
    job = JobRequest(settings=loaded, inputs=["in"], kind="folder", store=OutputFolder(tmp_path / "out"))

    content = handed(job)
    assert b"text-embedding-3-small" in content
    assert b"x-team" in content
    assert b"a-secret" not in content
    with pytest.raises(ConfigurationInvalid, match="x-api-key looks like a key"):
        check_headers(loaded, "other")
