"""What takes a while before anything is sent: keys take turns at it, and nobody waits for it past a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from embedctl.server import turns
from embedctl.server.admission import KeyRates
from embedctl.server.fields import Asked
from embedctl.server.gateway import Gateway
from embedctl.server.refusals import Refused

LONG = Asked(inputs=["a text that must be counted " * 4000])
ROUTE: Any = SimpleNamespace(first=SimpleNamespace(max_tokens=8191))


def gateway(counted: Callable[[Any], Any]) -> Gateway:
    """One whose counting thread is the test's own."""
    embedder: Any = SimpleNamespace(router=SimpleNamespace(counted=counted))
    nothing: Any = None
    serve: Any = SimpleNamespace(cl100k=False)
    return Gateway(
        embedder, nothing, None, KeyRates(), shift=lambda: nothing, scope=lambda *_: "", serve=serve, bug=print
    )


def test_no_key_s_long_texts_stand_before_another_s() -> None:
    """Whoever sends many long texts has them counted in turn with whoever sends one."""
    order: list[str] = []

    async def counted(_: object) -> None:
        order.append(turns.current_key())
        await asyncio.sleep(0)

    async def one(made: Gateway, key: str) -> None:
        turns.serve_for(key)
        await made._prepared(LONG, ROUTE, time.monotonic() + 60)

    async def run() -> None:
        made = gateway(counted)
        await asyncio.gather(*(one(made, key) for key in ["a"] * 6 + ["b"]))

    asyncio.run(run())

    assert order == ["a", "a", "b", "a", "a", "a", "a"]


def test_a_turn_is_not_waited_for_past_the_deadline() -> None:
    """Who does not come to it in time is told to come again (429), and the next one gets the turn."""

    async def counted(_: object) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        made = gateway(counted)
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                await made._prepared(LONG, ROUTE, time.monotonic())
            assert (refused.value.code, refused.value.status) == ("overloaded", 429)

    asyncio.run(run())
