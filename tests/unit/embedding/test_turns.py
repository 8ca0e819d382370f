"""Turns: how many requests are worked on at once, and who waits gives its turn away."""

from __future__ import annotations

import asyncio

from embedctl.embedding.answers import Turns


def test_who_rests_gives_its_turn_away_and_takes_one_again() -> None:
    """Two turns, six workers of which four rest: never more than two are at work, and resting holds nobody up."""

    async def main() -> list[int]:
        turns, at_work, seen = Turns(2), 0, []
        woken = asyncio.Event()

        async def wait(seconds: float) -> None:
            nonlocal at_work
            at_work -= 1
            await woken.wait()

        rest = turns.giving(wait)

        async def work(rests: bool) -> None:
            nonlocal at_work
            async with turns.turn():
                at_work += 1
                if rests:
                    await rest(1.0)
                    at_work += 1
                seen.append(at_work)
                await asyncio.sleep(0)
                at_work -= 1

        resting = [asyncio.create_task(work(True)) for _ in range(4)]
        await asyncio.gather(*(asyncio.create_task(work(False)) for _ in range(2)))  # are not held up
        woken.set()
        await asyncio.gather(*resting)

        assert turns.taken == 0

        return seen

    seen = asyncio.run(main())

    assert len(seen) == 6
    assert max(seen) <= 2


def test_a_worker_that_ends_while_it_rests_frees_no_turn_twice() -> None:
    """Cancelled while it waits, a worker has no turn to give back."""

    async def main() -> None:
        turns = Turns(1)
        rest = turns.giving(asyncio.sleep)

        async def work() -> None:
            async with turns.turn():
                await rest(60.0)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with turns.turn():
            another = asyncio.create_task(turns.turn().__aenter__())
            done, _ = await asyncio.wait((another,), timeout=0.01)

            assert not done

            another.cancel()

    asyncio.run(main())


def test_who_has_no_turn_just_sleeps() -> None:
    """Outside of a turn the sleep is the sleep."""

    async def main() -> None:
        turns = Turns(1)
        await turns.giving(asyncio.sleep)(0)
        async with turns.turn():
            pass

        assert turns.taken == 0

    asyncio.run(main())
