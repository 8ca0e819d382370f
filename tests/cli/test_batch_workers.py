"""`batch run --workers`: what a folder that several workers have written is for every other command."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(60)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, wire: Wire, forks: Zygote) -> World:
    """A folder that two workers have written, with a text that the provider refuses."""
    wire.reset()
    wire.plan(poison=[TEXTS[7]])
    world = World(tmp_path_factory.mktemp("workers"), wire, forks)
    world.tables(TEXTS, files=6)
    ended = world.run("batch", "run", "in", "-o", "out", "--workers", 2, "--shard-rows", 10, "--job", "j", *OPENAI)
    assert ended.code == 3, ended.err
    return world


def test_everybody_reads_it(worked: World) -> None:
    """Status, failures, finish, verify, search and ingest take the folder as they take one of a single process."""
    out = worked.folder / "out"
    status = json.loads(worked.run("batch", "status", "out", "--json").out)
    failures = json.loads(worked.run("batch", "failures", "out", "--json").out)
    by_job = json.loads(worked.run("batch", "failures", "j", "--json").out)
    row, other, none = (worked.run("batch", "status", "out", "--id", str(one), "--json") for one in (7, 8, 99))
    by_name = [worked.run("batch", "status", "j", "--id", one, "--json").out for one in ("7", "8", "99")]

    assert (status["state"], status["shards"]["done"], status["counts"]["vectors"]) == ("completed", 6, 59)
    assert [one["id"] for one in failures["failures"]] == [7] == [one["id"] for one in by_job["failures"]]
    assert by_name == [row.out, other.out, none.out]
    assert [one.receipt["state"] for one in (row, other, none)] == ["failed", "embedded", "absent"]
    assert other.receipt["part"] == "part-00000-000000.parquet"
    assert worked.run("batch", "finish", "out").code == 0
    assert worked.run("vectors", "verify", "out").code == 0
    assert "59" in worked.run("vectors", "info", "out").out
    assert worked.run("vectors", "search", "out", TEXTS[3], "-k", "1").code == 0
    assert worked.run("usage", "ingest", "--from", "out").code == 0
    assert len(pq.read_table(sorted(out.glob("part-*.parquet")))) == 59


def test_run_again_without_workers(worked: World) -> None:
    """The same command with another N, or without, finds everything there, and sends nothing."""
    seen = len(worked.wire.truth())
    for workers in (1, 3):
        ended = worked.run("batch", "run", "in", "-o", "out", "--workers", workers, "--json", *OPENAI)
        assert (ended.code, ended.receipt["vectors"]) == (3, 59), ended.err
    assert len(worked.wire.truth()) == seen


def test_nothing_of_ours_is_open_to_others(worked: World) -> None:
    """Parts are as open as any file of the user; the plan, whose secret makes journals evidence, is not."""
    out = worked.folder / "out"

    assert (out / "part-00000-000000.parquet").stat().st_mode & 0o777 == 0o644
    assert (out / "_embedctl").stat().st_mode & 0o777 == 0o700
    assert (out / "_embedctl" / "plan.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--workers", 0), 2, "--workers must be at least 1"),
        (("--workers", 2, "--no-share"), 2, "--no-share and several workers do not go together"),
        (("--workers", 2, "--mode", "batch"), 2, "--mode batch and auto and several workers"),
        (("--workers", 2, "--cache"), 2, "--cache and several workers"),
        (("--workers", 2, "-o", "x.parquet"), 2, "--workers writes a folder of parts"),
    ],
)
def test_what_several_workers_cannot(worked: World, more: tuple[object, ...], code: int, words: str) -> None:
    """One line and the right code before anything is sent or made."""
    seen = len(worked.wire.truth())
    ended = worked.run("batch", "run", "in", "-o", "new", *OPENAI, *more)

    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err.splitlines()[0]
    assert not (worked.folder / "new").exists()
    assert len(worked.wire.truth()) == seen


def test_a_folder_of_one_process_is_not_taken_over(worked: World) -> None:
    """What was begun without --workers goes on without: 73, and nothing in it is touched."""
    worked.table(TEXTS[:5], "few.parquet")
    assert worked.run("batch", "run", "few.parquet", "-o", "plain", *OPENAI).code == 0
    before = sorted((worked.folder / "plain").rglob("*"))
    ended = worked.run("batch", "run", "few.parquet", "-o", "plain", "--workers", 2, *OPENAI)

    assert ended.code == 73
    assert "was begun without --workers" in ended.err
    assert sorted((worked.folder / "plain").rglob("*")) == before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_one_file_is_enough_for_several_workers(worked: World, kind: str, tmp_path: Path) -> None:
    """A single file is divided by its rows; each is embedded once, and rows without an id have their number."""
    texts = [f"{sentence(number % 100)} {number}" for number in range(2400)]
    if kind == "jsonl":
        lines = "".join(json.dumps({"text": text, "note": "x" * 400}) + "\n" for text in texts)
        (worked.folder / "one.jsonl").write_text(lines)
    else:
        path = worked.table(texts, "one.parquet")
        pq.write_table(pq.read_table(path).drop(["id"]), path)
    seen = worked.wire.billed()
    ended = worked.run(
        "batch", "run", f"one.{kind}", "-o", f"one-{kind}", "--workers", 2, "--json", *OPENAI[:4], "--batch-size", 200
    )

    assert ended.code == 0, ended.err
    plan = json.loads((worked.folder / f"one-{kind}" / "_embedctl" / "plan.json").read_bytes())
    assert (plan["format"], len(plan["shards"])) == (2, 3)
    found = pq.read_table(sorted((worked.folder / f"one-{kind}").glob("part-*.parquet")))
    assert found.column("id").to_pylist() == list(range(2400))
    assert found.column("text").to_pylist() == texts
    assert worked.wire.billed() - seen == ended.receipt["tokens"]
