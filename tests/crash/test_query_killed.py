"""A query over two joined files, killed at any moment and run again: bought once, and each vector of its own text."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

COUNT = 60
TEXTS = [sentence(number) for number in range(COUNT)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "3", "--concurrency", "2", "--no-cache")
SQL = "select a.id, a.head || ' ' || b.tail as text from 'a.parquet' a join 'b.parquet' b using (id) order by a.id"


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    write(found, TEXTS)
    return found


def write(world: World, texts: list[str]) -> None:
    """The texts in two files, the one in turned order."""
    heads, tails = zip(*(text.split(" ", 1) for text in texts), strict=True)
    ids = list(range(len(texts)))
    pq.write_table(pa.table({"id": ids[::-1], "head": heads[::-1]}), world.folder / "a.parquet")
    pq.write_table(pa.table({"id": ids, "tail": tails}), world.folder / "b.parquet")


def killed(world: World, after: int, *words: object) -> None:
    """Run, and kill it when so many requests have been billed."""
    seen = len(world.wire.truth())
    world.wire.plan(latency_s=0.05, hold_after=max(0, after - seen) + 2)
    child = world.start(*words)
    while len(world.wire.truth()) < after:
        time.sleep(0.01)
    child.kill()
    assert child.wait().code == -9
    world.wire.plan()


@pytest.mark.parametrize(("kind", "output"), [(("batch", "run"), "out"), (("embed",), "out.parquet")])
def test_a_killed_query_goes_on(world: World, kind: tuple[str, ...], output: str) -> None:
    """Killed twice: what was answered is not bought again, rows stand in the query's order, the bill agrees."""
    words = (*kind, "--sql", SQL, "-o", output, *OPENAI)
    for after in (4, 10):
        killed(world, after, *words)
        safe = world.safe(output)
        assert safe
    before = world.bought()
    ended = world.run(*words)

    assert ended.code == 0, ended.err
    assert all(world.bought()[text_hash] == before[text_hash] for text_hash in safe)
    world.check_rows(output, TEXTS, dimensions=8)
    world.check_bill()
    world.check_no_leftovers(output)
    again = world.run(*words, "--json")
    assert (again.receipt["requests"], again.receipt["reused"]) == (0, COUNT)
    assert world.run("vectors", "verify", output, "--sql", SQL).code == 0


@pytest.mark.parametrize(("kind", "output"), [(("batch", "run"), "out"), (("embed",), "out.parquet")])
def test_a_query_that_answers_otherwise_after_a_kill(world: World, kind: tuple[str, ...], output: str) -> None:
    """Rows that moved, changed, came or went meanwhile: each has the vector of its text, known texts are not bought."""
    words = (*kind, "--sql", SQL, "-o", output, *OPENAI)
    killed(world, 8, *words)
    safe, before = world.safe(output), world.bought()
    changed = [*TEXTS[10:0:-1], *[sentence(number) for number in range(500, 520)], *TEXTS[20:]]
    write(world, changed)
    ended = world.run(*words)

    assert ended.code == 0, ended.err
    assert all(world.bought()[text_hash] == before[text_hash] for text_hash in safe)
    world.check_rows(output, changed, dimensions=8)
    world.check_bill()
