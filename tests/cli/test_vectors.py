"""`embedctl vectors info` and `verify`, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from tests.support import places
from tests.support.vector_files import SPACE, folder, put, rows

DATA = places.SAMPLES


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder made by a real run, as the current folder's `tickets`."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / "tickets.parquet", tmp_path)
    code, _, err = run("batch", "run", "tickets.parquet", "-o", "tickets", "--on-too-long", "chunk", "-q")
    assert code == 0, err
    return Path("tickets")


def test_info_says_what_is_in_it(tickets: Path) -> None:
    """Space, rows, failures by reason, who made it, tokens and cost stand in one JSON object."""
    code, out, err = run("vectors", "info", "tickets", "--json")
    told = json.loads(out)

    assert (code, err) == (0, "")
    assert (told["rows"], told["rows_read"], told["skipped"], told["failed"]) == (118, 117, 6, 0)
    assert told["failures"] == {"blank": 4, "null": 2}
    assert told["models"] == [{"provider": "onnx", "model": "all-MiniLM-L6-v2", "rows": 118}]
    assert (told["space"]["model"], told["space"]["dimensions"]) == ("sentence-transformers/all-MiniLM-L6-v2", 384)
    assert (told["dtype"], told["parts"], told["cost"], told["cost_is_lower_bound"]) == ("float32", 1, "0.00", False)
    assert told["tokens"] > 3000
    assert told["size_bytes"] == sum(part.stat().st_size for part in tickets.glob("*.parquet"))


def test_info_takes_no_counts_of_a_run_that_came_to_no_end(tickets: Path) -> None:
    """While the parts are those of an earlier run, what a later one has read is not told of them."""
    path = tickets / "_embedctl" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "state": "running", "replacing": True, "counts": {"read": 0}}))
    told = json.loads(run("vectors", "info", "tickets", "--json")[1])

    assert (told["rows"], told["rows_read"], told["skipped"]) == (118, None, None)


def test_info_is_for_people_too(tickets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has one fact a line; without a ledger the cost is unknown, not zero."""
    table = dict(line.split("  ", 1) for line in run("vectors", "info", "tickets")[1].splitlines()[1:])
    monkeypatch.setenv("EMBEDCTL_HOME", str(Path("elsewhere").absolute()))
    bare = run("vectors", "info", "tickets")[1]

    assert {name: table[name].strip() for name in ("rows", "not embedded", "cost", "made by")} == {
        "rows": "118",
        "not embedded": "blank: 4, null: 2",
        "cost": "0.00 USD",
        "made by": "onnx:all-MiniLM-L6-v2 (118)",
    }
    assert "unknown" in bare.splitlines()[-1]
    assert not Path("nowhere.duckdb").exists()


def test_info_reads_every_number_type(tmp_path: Path) -> None:
    """The number type, the texts that are not kept, and what vectors were made with are told."""
    path = put(tmp_path / "out.parquet", rows(5), text=False, dtype="int8", vector_type="list")
    told = json.loads(run("vectors", "info", str(path), "--json")[1])

    assert (told["dtype"], told["has_text"], told["tokens"]) == ("int8", False, 25)
    assert told["space"] == SPACE.as_dict()
    assert (told["cost"], told["cost_is_lower_bound"]) == (None, True)


def test_verify_says_right_in_one_line(tickets: Path) -> None:
    """An output that is right: one line, exit 0, nothing on stderr."""
    code, out, err = run("vectors", "verify", "tickets", "-i", "tickets.parquet")

    assert (code, err) == (0, "")
    assert out == "tickets: right (118 rows, 117 rows of the input)\n"


def test_verify_names_each_finding_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is wrong: a line per finding with its place, exit 65, and the sum on stderr."""
    monkeypatch.chdir(tmp_path)
    made = rows(10)
    made.vectors[3] = 0
    made.ids[4] = made.ids[2]
    folder(Path("out"), [made])
    code, out, err = run("vectors", "verify", "out")

    assert code == 65
    assert out.splitlines() == [
        "out: wrong (10 rows)",
        "State  Check        Where                      What",
        "wrong  repeated_id  part-000000.parquet row 4  id 'row-2' stands in part-000000.parquet row 2 already",
        "wrong  zero_norm    part-000000.parquet row 3  the vector is all zeros",
    ]
    assert err == "error: out is wrong in 2 places\n"


def test_verify_has_one_envelope(tmp_path: Path) -> None:
    """JSON has the same keys whether the output is right or wrong; stdout is one document either way."""
    right, wrong = folder(tmp_path / "right", [rows(3)]), folder(tmp_path / "wrong", [rows(3)], state="running")
    told = [run("vectors", "verify", str(path), "--format", "json") for path in (right, wrong)]
    parsed = [json.loads(out) for _, out, _ in told]

    assert [code for code, _, _ in told] == [0, 65]
    assert parsed[0].keys() == parsed[1].keys()
    assert [one["ok"] for one in parsed] == [True, False]
    assert parsed[1]["findings"][0].keys() == {"check", "where", "message", "wrong"}


def test_a_sample_needs_somebody_to_ask(tmp_path: Path) -> None:
    """--sample of an output whose model is not configured here is an error; without it, verification goes on."""
    path = put(tmp_path / "out.parquet", rows(3))

    assert run("vectors", "verify", str(path), "--sample", "2")[0] == 2
    assert run("vectors", "verify", str(path))[0] == 0


def test_every_command_has_help_and_an_example() -> None:
    """Each command says what it does, and shows a command line that can be pasted."""
    for command in ((), ("info",), ("verify",), ("search",), ("map",)):
        code, out, _ = run("vectors", *command, "--help")

        assert code == 0
        assert f"Example: embedctl {' '.join(('vectors', *command))} " in out
