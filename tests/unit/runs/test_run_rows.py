"""Where rows go: too long, blank, failed; every one is in the counts, and those without a vector are listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from embedctl import tokens
from embedctl.outputs import FAILURES
from embedctl.outputs.parquet import Part, matrix
from embedctl.planning import splitter
from embedctl.runs import status
from embedctl.runs.receipt import Receipt
from embedctl.runs.registry import RunRegistry
from tests.support.crashed_runs import MODEL, WIDTH, Small
from tests.support.processes import sentence
from tests.support.wire.client import Wire, expected, hash_of, started

LONG = " ".join(["alpha beta gamma delta."] * 2500)
TEXTS = [sentence(0), LONG, sentence(1)]
CL100K = tokens.splitter_source("tiktoken:cl100k_base", "tiktoken:cl100k_base")


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with started() as wire:
        yield wire


@pytest.fixture(params=["folder", "file"])
def small(request: pytest.FixtureRequest, tmp_path: Path, server: Wire) -> Small:
    server.reset()
    return Small(tmp_path, server, request.param)


def receipt(ended: object) -> Receipt:
    assert isinstance(ended, Receipt), ended
    return ended


def listed(done: Receipt) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in Path(str(done.failures)).read_bytes().splitlines()] if done.failures else []


def rows(small: Small) -> tuple[list[tuple[int, int, str]], np.ndarray]:
    """(id, chunk_index, text) and vectors of the output."""
    path = small.output / "part-000000.parquet" if small.kind == "folder" else small.output
    table = pq.read_table(path)
    names = [table.column(name).to_pylist() for name in ("id", "chunk_index", "text")]
    return list(zip(*names, strict=True)), matrix(table.column("embedding"), WIDTH)


def vectors(texts: list[str]) -> np.ndarray:
    return expected(texts, MODEL, WIDTH)


@pytest.mark.parametrize(("policy", "code", "failed", "skipped"), [("fail", 3, 1, 0), ("skip", 0, 0, 1)])
def test_too_long_is_left_out(small: Small, policy: str, code: int, failed: int, skipped: int) -> None:
    """`fail` and `skip`: a text over the limit is not sent, and listed with its length."""
    small.fill(TEXTS, files=1)
    done = receipt(small.run(flags={"on_too_long": policy}))

    assert (done.exit_code, done.failed, done.skipped, done.vectors) == (code, failed, skipped, 2)
    (failure,) = listed(done)
    assert (failure["id"], failure["reason"], failure["max_tokens"]) == (1, "too_long", 8191)
    assert failure["tokens"] > 8191
    assert hash_of(LONG) not in {h for one in small.wire.truth() for h in one["text_hashes"]}


def test_too_long_is_cut(small: Small) -> None:
    """`truncate`: the beginning within the limit is sent."""
    small.fill(TEXTS, files=1)
    done = receipt(small.run(flags={"on_too_long": "truncate"}))
    found, made = rows(small)

    assert (done.exit_code, done.vectors) == (0, 3)
    assert LONG.startswith(found[1][2].strip())
    assert 8000 < splitter.tokens(found[1][2], CL100K) <= 8191
    assert np.allclose(made, vectors([text for _, _, text in found]), atol=1e-6)


def test_too_long_is_chunked(small: Small) -> None:
    """`chunk`: the row gets a vector for each piece, numbered, nothing is lost."""
    small.fill(TEXTS, files=1)
    done = receipt(small.run(flags={"on_too_long": "chunk"}))
    found, made = rows(small)

    assert (done.exit_code, done.rows, done.vectors) == (0, 3, len(found))
    pieces = [(index, text) for row, index, text in found if row == 1]
    assert [index for index, _ in pieces] == list(range(len(pieces)))
    assert "".join("".join(text.split()) for _, text in pieces) == "".join(LONG.split())
    assert np.allclose(made, vectors([text for _, _, text in found]), atol=1e-6)


def test_too_long_is_averaged(small: Small) -> None:
    """`mean`: the row's vector is the average of its pieces, weighted by their tokens, of length 1."""
    small.fill(TEXTS, files=1)
    done = receipt(small.run(flags={"on_too_long": "mean"}))
    found, made = rows(small)
    pieces = splitter.pieces(LONG, 8191, CL100K)
    weights = np.array([[splitter.tokens(piece, CL100K)] for piece in pieces])
    mean = (vectors(pieces) * weights).sum(axis=0)

    assert (done.exit_code, done.vectors, [row for row, _, _ in found]) == (0, 3, [0, 1, 2])
    assert np.allclose(made[1], mean / np.linalg.norm(mean), atol=1e-5)
    small.wire.reset()
    (small.folder / "in" / "0.parquet").touch()
    assert receipt(small.run(flags={"on_too_long": "mean"})).exit_code == 0
    assert small.wire.truth() == []


def test_refused_piece_fails_its_row(small: Small) -> None:
    """When a piece of a mean is refused the row has failed, and its other pieces are not bought again."""
    pieces = splitter.pieces(LONG, 8191, CL100K)
    small.fill(TEXTS, files=1)
    small.wire.plan(poison=[pieces[0]])
    done = receipt(small.run(flags={"on_too_long": "mean"}))

    assert (done.exit_code, done.failed, done.vectors) == (3, 1, 2)
    assert listed(done)[0]["id"] == 1


@pytest.mark.parametrize(("policy", "code", "failed", "skipped"), [("skip", 0, 0, 2), ("fail", 3, 2, 0)])
def test_blank(small: Small, policy: str, code: int, failed: int, skipped: int) -> None:
    """Empty texts are never sent: skipped, or failed when asked; listed in any case."""
    small.fill([sentence(0), "", " \n", sentence(1)], files=1)
    done = receipt(small.run(flags={"on_blank": policy}))

    assert (done.exit_code, done.rows, done.failed, done.skipped, done.vectors) == (code, 4, failed, skipped, 2)
    assert [(one["id"], one["reason"]) for one in listed(done)] == [(1, "blank"), (2, "blank")]


def test_nothing_but_blanks(small: Small) -> None:
    """An input without any text is a run like any other: nothing is sent, everything is listed, again as well."""
    small.fill(["", "  "], files=1)
    first = receipt(small.run())
    second = receipt(small.run())

    assert [(one.exit_code, one.rows, one.skipped, one.vectors) for one in (first, second)] == [(0, 2, 2, 0)] * 2
    assert [len(listed(one)) for one in (first, second)] == [2, 2]
    assert small.wire.truth() == []


def test_every_row_is_accounted_for(small: Small) -> None:
    """Rows in = rows with a vector + failed + skipped, whatever is in them."""
    texts = [sentence(0), "", LONG, sentence(1), sentence(0), "  ", sentence(2), LONG]
    small.fill(texts, files=2)
    small.wire.plan(poison=[sentence(2)])
    done = receipt(small.run())

    assert (done.rows, done.vectors, done.failed, done.skipped, done.duplicates) == (8, 3, 3, 2, 1)
    assert sorted(one["id"] for one in listed(done)) == [1, 2, 5, 6, 7]


def test_a_row_is_found_while_its_run_ends(tmp_path: Path, server: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends puts its parts into the output, and its failures into one list, under the eyes of who asks."""
    server.reset()
    small = Small(tmp_path, server, "folder")
    small.fill([sentence(0), " "], files=1)
    receipt(small.run())
    (run,) = RunRegistry(tmp_path / "home" / "runs").all()
    ended = (small.output / "part-000000.parquet", small.output / FAILURES)
    going_on = (small.state / "next" / ended[0].name, small.state / "failed" / "000000.jsonl")
    for before, after in zip(going_on, ended, strict=True):
        before.parent.mkdir(exist_ok=True)
        after.rename(before)
    looked, opened = Part.rows_of, Path.open

    def swapped(part: Part, row_id: str) -> list[dict[str, Any]]:
        if going_on[0].exists():
            going_on[0].rename(ended[0])
        return looked(part, row_id)

    def joined(path: Path, *words: Any) -> Any:
        if path == going_on[1] and path.exists():
            path.rename(ended[1])
        return opened(path, *words)

    monkeypatch.setattr(Part, "rows_of", swapped)
    monkeypatch.setattr(Path, "open", joined)

    assert status.whereabouts(run, "1")["state"] == "skipped"
    assert status.whereabouts(run, "0")["state"] == "embedded"
