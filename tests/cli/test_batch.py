"""`batch`: jobs by name, locks, and what `list`, `status` and `failures` say. Real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(40)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5")


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.tables(TEXTS, files=4)
    return found


def shown(world: World, *args: object) -> Any:
    ended = world.run("batch", *args, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def wait_for_requests(wire: Wire, count: int) -> None:
    end = time.monotonic() + 120
    while (came := len(wire.truth())) < count:
        assert time.monotonic() < end, f"only {came} requests came"
        time.sleep(0.01)


def test_job_file(world: World) -> None:
    """A JOB.toml names input, output, job and options; flags are stronger."""
    (world.folder / "nightly.toml").write_text(
        f'input = "in"\noutput = "out"\njob = "nightly"\nmodel = "openai:{MODEL}"\ndimensions = 8\nworkspace = "acme"\n'
    )
    ended = world.run("batch", "run", "nightly.toml", "--json", "-w", "zeta")

    assert ended.code == 0, ended.err
    assert (ended.receipt["job"], ended.receipt["workspace"]) == ("nightly", "zeta")
    world.check_rows("out", TEXTS, dimensions=8)


def test_list_and_status(world: World) -> None:
    """Runs, those of `embed` too, are listed newest first with their state; a job's name means its newest run."""
    world.wire.plan(poison=[TEXTS[3]])
    assert world.run("batch", "run", "in", "-o", "one", "--job", "first", *OPENAI).code == 3
    assert world.run("batch", "run", "in", "-o", "two", "--job", "second", "--workspace", "acme", *OPENAI).code == 3
    assert world.run("batch", "run", "missing", "-o", "three", "--job", "third", *OPENAI).code == 66
    assert world.run("embed", "in", "-o", "x.parquet", *OPENAI).code == 3
    found = shown(world, "list")

    assert [(run["job"], run["state"]) for run in found["runs"]] == [
        (None, "partial"),
        ("third", "failed"),
        ("second", "partial"),
        ("first", "partial"),
    ]
    assert [run["job"] for run in shown(world, "list", "--status", "failed")["runs"]] == ["third"]
    assert [run["job"] for run in shown(world, "list", "--limit", "1", "--offset", "2")["runs"]] == ["second"]
    status = shown(world, "status", "second")
    assert (status["state"], status["workspace"], status["exit_code"]) == ("partial", "acme", 3)
    assert (status["counts"]["rows"], status["counts"]["vectors"], status["counts"]["failed"]) == (40, 39, 1)
    assert float(status["cost"]) > 0
    assert shown(world, "status", status["run_id"])["job"] == "second"
    assert "no such file" in shown(world, "status", "third")["last_error"]
    assert world.run("batch", "status", "nobody").code == 66


def test_status_of_a_row(world: World) -> None:
    """A row is embedded, failed or skipped; one that is nowhere is absent."""
    world.wire.plan(poison=[TEXTS[3]])
    world.tables([*TEXTS[:7], " "], files=2)
    world.run("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI)
    rows = {row: shown(world, "status", "nightly", "--id", row) for row in ("0", "3", "7", "99")}

    assert [rows[row]["state"] for row in rows] == ["embedded", "failed", "skipped", "absent"]
    assert rows["0"]["part"] == "part-000000.parquet"
    assert rows["0"]["chunks"][0]["embedding_provider"] == "openai"
    assert rows["3"]["failure"]["reason"] == "text_refused"


def test_failures(world: World) -> None:
    """Rows without a vector are listed with their reason."""
    world.wire.plan(poison=[TEXTS[3], TEXTS[20]])
    world.run("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI)
    found = shown(world, "failures", "nightly")
    table = world.run("batch", "failures", "nightly", "--format", "csv")

    assert [(row["id"], row["reason"]) for row in found["failures"]] == [(3, "text_refused"), (20, "text_refused")]
    assert table.out.count("text_refused") == 2


def test_second_run_on_one_output(world: World) -> None:
    """While a run lives, another one on its output ends with 75 and says who holds it; so does one of its job."""
    world.wire.plan(hold_after=1)
    first = world.start("batch", "run", "in", "-o", "out", "--job", "nightly", "--concurrency", "1", *OPENAI)
    wait_for_requests(world.wire, 1)
    second = world.run("batch", "run", "in", "-o", "out", *OPENAI)
    elsewhere = world.run("batch", "run", "in", "-o", "other", "--job", "nightly", *OPENAI)
    running = shown(world, "status", "nightly")
    world.wire.plan()

    assert (second.code, elsewhere.code) == (75, 75)
    assert f"process {first.pid}" in second.err
    assert f"process {first.pid}" in elsewhere.err
    assert running["state"] == "running"
    assert not (world.folder / "other").exists()
    assert first.wait().code == 0
    world.check_rows("out", TEXTS, dimensions=8)


def test_lock_of_a_dead_run_is_free(world: World) -> None:
    """A killed run is shown as interrupted, and the next one takes its lock."""
    world.wire.plan(hold_after=1)
    first = world.start("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI)
    wait_for_requests(world.wire, 1)
    first.kill()
    first.wait()
    dead = shown(world, "status", "nightly")
    world.wire.plan()

    assert dead["state"] == "interrupted"
    assert shown(world, "list", "--status", "interrupted")["total"] == 1
    assert world.run("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI).code == 0
    assert [run["state"] for run in shown(world, "list")["runs"]] == ["completed", "interrupted"]


def test_dead_run_is_accounted_for_by_the_next_one(world: World) -> None:
    """What a killed run spent is in the ledger after any later run, though its output is never touched again."""
    world.wire.plan(hold_after=5)
    first = world.start("embed", "in", "-o", "never.parquet", "--no-cache", "--concurrency", "2", *OPENAI)
    wait_for_requests(world.wire, 5)
    first.kill()
    first.wait()
    world.wire.plan()
    while world.wire.held():
        time.sleep(0.02)
    assert world.run("batch", "run", "in", "-o", "out", *OPENAI).code == 0

    world.check_bill()


def test_shorthand(world: World) -> None:
    """`batch INPUT…` means `batch run INPUT…`."""
    assert world.run("batch", "in", "-o", "out", *OPENAI).code == 0
    world.check_rows("out", TEXTS, dimensions=8)


@pytest.mark.parametrize(("fault", "code"), [("unauthorized", 77), ("quota", 69)])
def test_what_must_be_mended_first_is_said_once(world: World, fault: str, code: int) -> None:
    """A rejected key and an empty account are one error; the same command goes on only once that is mended."""
    world.variables["EMBEDCTL_CANARY"] = "daily"
    world.wire.plan(faults={fault: 1.0})
    ended = world.run("batch", "run", "in", "-o", "out", *OPENAI)

    assert ended.code == code, ended.err
    assert "is not known" not in ended.err
    assert "; once that is mended, the same command goes on\n" in ended.err
    assert ended.err.count("error: ") == 1


def test_dry_run(world: World) -> None:
    """--dry-run sends nothing, makes nothing, and says what a run would send: not what is known or there twice."""
    world.tables([*TEXTS[:10], *TEXTS[:5], " "], files=1)
    ended = world.run("batch", "run", "in", "-o", "out", "--dry-run", "--json", "--rpm", "60", *OPENAI)
    before = sorted(path.name for path in world.folder.iterdir() if not path.name.startswith("."))
    first = ended.receipt

    assert world.wire.truth() == []
    assert before == ["in"]
    assert (first["rows"], first["texts"], first["duplicates"], first["skipped"]) == (16, 10, 5, 1)
    assert (first["tokens"], first["tokens_low"], first["tokens_high"], first["requests"]) == (40, 40, 40, 2)
    assert (first["cost"], first["cost_batch"], first["seconds"]) == ("0.0000008", "0.0000004", 2.0)
    assert world.run("batch", "run", "in", "-o", "out", *OPENAI).code == 0
    world.wire.reset()
    world.tables([*TEXTS[:12]], files=1)
    (world.folder / "in" / "000.parquet").touch()
    again = world.run("batch", "run", "in", "-o", "out", "--dry-run", "--json", *OPENAI).receipt
    assert (again["texts"], again["reused"]) == (2, 10)
    assert world.wire.truth() == []
    people = world.run("batch", "run", "in", "-o", "out", "--dry-run", *OPENAI)
    assert "2 texts to send, 10 reused" in people.out
    assert "nothing was sent" in people.out


def test_a_run_has_a_name(world: World) -> None:
    """No name is no run's name; amounts are shown in full, as everywhere."""
    assert world.run("batch", "run", "in", "-o", "out", *OPENAI).code == 0
    assert world.run("batch", "status", "").code == 66
    run_id = shown(world, "list")["runs"][0]["run_id"]
    told = world.run("batch", "status", run_id).out

    assert "0.0000032" in told
    assert "E-" not in told


def test_status_is_for_people(world: World) -> None:
    """The table says in whole words how a run stands; nothing that has no value, and no names of fields."""
    world.wire.plan(poison=[TEXTS[3]])
    world.run("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI)
    told = world.run("batch", "status", "nightly").out

    assert "partial (exit code 3)" in told
    assert "40, 39 vectors, 1 failed" in told
    assert "counts." not in told
    assert "embedding_operation_id" not in told
    row = world.run("batch", "status", "nightly", "--id", "3").out
    assert "text_refused: " in row


def test_failures_of_an_output(world: World) -> None:
    """`batch failures` takes a folder, a file, or the failures file, of whatever run; a job's name comes first."""
    world.wire.plan(poison=[TEXTS[3]])
    world.run("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI)
    world.run("embed", "in", "-o", "one.parquet", *OPENAI)
    by_job = shown(world, "failures", "nightly")

    assert [one["reason"] for one in by_job["failures"]] == ["text_refused"]
    for output in ("out", "out/", "out/failures.jsonl"):
        assert shown(world, "failures", output) == by_job
    for output in ("one.parquet", "one.parquet.failures.jsonl"):
        assert [one["reason"] for one in shown(world, "failures", output)["failures"]] == ["text_refused"]
    (world.folder / "out").rename(world.folder / "moved")
    assert shown(world, "failures", "moved")["run_id"] is None
    assert shown(world, "failures", "moved")["failures"] == by_job["failures"]
    assert world.run("batch", "failures", "nowhere").code == 66
    (world.folder / "notes.txt").write_text("no output")
    for other in ("notes.txt", "in"):
        assert "is no output of embedctl" in (refused := world.run("batch", "failures", other)).err
        assert refused.code == 65


def test_status_of_an_output(world: World) -> None:
    """`batch status` takes what a run known here wrote; of any other output it says where to look (66)."""
    world.run("batch", "run", "in", "-o", "out", "--job", "nightly", *OPENAI)
    world.run("embed", "in", "-o", "one.parquet", *OPENAI)

    assert shown(world, "status", "out/") == shown(world, "status", "nightly")
    assert shown(world, "status", "one.parquet")["output"].endswith("one.parquet")
    (world.folder / "out").rename(world.folder / "moved")
    moved = world.run("batch", "status", "moved")
    assert (moved.code, "`embedctl vectors info`" in moved.err) == (66, True)
