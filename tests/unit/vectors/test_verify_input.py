"""An output against what it was made of: real runs of the bundled model, then an input or an output that changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedctl.cli import app

LONG = " ".join(f"word{number}" for number in range(400))
ROWS: list[dict[str, Any]] = [
    {"key": "a", "body": "The harbour opens at seven."},
    {"key": "b", "body": "Refunds take five days."},
    {"key": "c", "body": "The harbour opens at seven."},
    {"key": "d", "body": "   "},
    {"key": "e", "body": None},
    {"key": "f", "body": LONG},
    {"key": "g", "body": "Glaciers move slowly."},
]


def run(*words: str) -> tuple[int, str]:
    """Exit code and stdout of a command."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(tmp_path: Path, *flags: str, rows: list[dict[str, Any]] = ROWS) -> tuple[Path, Path]:
    """An input, and the output of a real run over it."""
    source, output = put(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet"
    code, _ = run("embed", str(source), "-o", str(output), "--id-column", "key", "--text-column", "body", "-q", *flags)
    assert code in (0, 3)
    return source, output


def told(output: Path, *inputs: Path) -> tuple[int, list[tuple[str, str]]]:
    """Exit code of a verification, and (check, where) of what is wrong."""
    given = [word for one in inputs for word in ("--input", str(one))]
    code, out = run("vectors", "verify", str(output), *given, "--json")
    return code, [(one["check"], one["where"]) for one in json.loads(out)["findings"] if one["wrong"]]


@pytest.mark.parametrize(
    "flags",
    [
        ("--on-too-long", "fail"),
        ("--on-too-long", "skip"),
        ("--on-too-long", "truncate"),
        ("--on-too-long", "chunk"),
        ("--on-too-long", "mean"),
        ("--chunk-size", "60", "--chunk-overlap", "10"),
        ("--on-blank", "fail", "--keep", "none", "--dtype", "int8"),
    ],
)
def test_what_a_run_made_is_right(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Whatever is done with long, blank and equal texts, the output is recognised as made of its input."""
    source, output = made(tmp_path, *flags)

    assert told(output, source) == (0, [])


def test_documents_are_recognised(tmp_path: Path) -> None:
    """Text files in chunks, and files split into lines, are compared chunk by chunk."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.md").write_text("# Title\n\n" + "\n\n".join(f"{LONG} {number}" for number in range(3)))
    (folder / "two.txt").write_text("first line\nsecond line\n\nfourth line\n")
    for flags in ((), ("--split", "lines", "--on-too-long", "chunk")):
        output = tmp_path / f"texts{len(flags)}.parquet"
        assert run("embed", str(folder), "-o", str(output), "-q", *flags)[0] == 0

        assert told(output, folder) == (0, [])

    (folder / "two.txt").write_text("first line\nsecond line, changed\n\nfourth line\n")
    code, wrong = told(output, folder)

    assert (code, [check for check, _ in wrong]) == (65, ["input_changed"])
    assert wrong[0][1].endswith("two.txt#2'")


def test_a_changed_text_is_named(tmp_path: Path) -> None:
    """A row whose text is not the one that was embedded is wrong."""
    source, output = made(tmp_path)
    put(source, [{**row, "body": "Refunds take ten days."} if row["key"] == "b" else row for row in ROWS])

    assert told(output, source) == (65, [("input_changed", "rows.jsonl row 'b'")])


def test_a_row_without_a_vector_is_named(tmp_path: Path) -> None:
    """A row that the output does not have, and that did not fail, is missing."""
    source, output = made(tmp_path)
    put(source, [*ROWS, {"key": "new", "body": "Somebody added this."}])

    assert told(output, source) == (65, [("input_missing", "rows.jsonl row 'new'")])


def test_a_row_that_is_not_of_the_input_is_named(tmp_path: Path) -> None:
    """A row of the output that the input does not have is extra."""
    source, output = made(tmp_path)
    put(source, ROWS[1:])

    assert told(output, source) == (65, [("input_extra", "rows.parquet row 0")])


def test_a_failure_that_is_not_listed_is_named(tmp_path: Path) -> None:
    """Every row without text stands in the failures file; one that vanished from it is missed."""
    source, output = made(tmp_path)
    failures = tmp_path / "rows.parquet.failures.jsonl"
    kept = [line for line in failures.read_text().splitlines() if json.loads(line)["id"] not in ("d", "f")]
    failures.write_text("\n".join(kept) + "\n")
    code, wrong = told(output, source)

    assert code == 65
    assert sorted(wrong) == [
        ("failures", failures.name),
        ("input_missing", "rows.jsonl row 'd'"),
        ("input_missing", "rows.jsonl row 'f'"),
    ]


def test_ids_that_repeat_in_the_input_may_repeat(tmp_path: Path) -> None:
    """Repeated ids are wrong, unless the input is there to show that they are its own."""
    rows = [{**row, "key": "same"} for row in ROWS]
    source, output = made(tmp_path, rows=rows)

    assert told(output)[0] == 65
    assert told(output, source) == (0, [])

    put(source, [{**row, "body": "Another text."} if row["body"] == ROWS[-1]["body"] else row for row in rows])
    assert told(output, source)[0] == 65


def test_an_output_of_an_unknown_place_is_compared_by_id(tmp_path: Path) -> None:
    """When nobody can say how texts were sent, ids alone are compared, and that is said."""
    source, output = made(tmp_path)
    assert output.read_bytes().count(b'"model":null,') == 1
    output.write_bytes(output.read_bytes().replace(b'"options":', b'"optimal":'))
    code, out = run("vectors", "verify", str(output), "-i", str(source), "--json")

    assert code == 0
    assert [one["check"] for one in json.loads(out)["findings"]] == ["not_checked"]

    put(source, [*ROWS, {"key": "new", "body": "Somebody added this."}])
    assert told(output, source)[1][0] == ("input_missing", "rows.jsonl row 'new'")
