"""What a run chooses by itself is said once, before the receipt."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.running import embedctl


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(*flags: str, **columns: list[str] | list[int]) -> list[str]:
    """Lines about columns, of a table with these."""
    pq.write_table(pa.table({"body": ["red sun", "old sea", "new law"], **columns}), "tickets.parquet")
    done = embedctl("embed", "tickets.parquet", "-o", "out.parquet", "--overwrite", *flags)
    assert done.code == 0, done.err
    return [line for line in done.err.splitlines() if line.startswith("text: ")]


ASKED = ["text: body, id: row number (is ticket_id the id? --id-column ticket_id)"]
UNIQUE, REPEATED = [7, 8, 9], [7, 7, 9]


def test_the_columns_that_were_chosen() -> None:
    """Text and id are named; a column called `*_id` in which no value is there twice is asked about."""
    assert said(ticket_id=UNIQUE) == ASKED
    assert said(customer_id=REPEATED, ticket_id=UNIQUE) == ASKED
    assert said(customer_id=REPEATED) == ["text: body, id: row number"]
    assert said(id=UNIQUE, ticket_id=UNIQUE) == ["text: body, id: id"]


def test_a_csv_is_asked_about_too() -> None:
    """Formats without types have such columns as well."""
    Path("tickets.csv").write_text("ticket_id,body\n7,red sun\n8,old sea\n")
    done = embedctl("embed", "tickets.csv", "-o", "out.parquet", "--dry-run", "--text-column", "body")
    assert ASKED[0] in done.err.splitlines()


def test_nothing_is_said_of_what_was_named() -> None:
    """Whoever names both columns, or is quiet, hears nothing; obvious names are worth a line with -v only."""
    assert said("--text-column", "body", "--id-column", "ticket_id", ticket_id=UNIQUE) == []
    assert said("-q", ticket_id=UNIQUE) == []
    pq.write_table(pa.table({"text": ["red sun"], "id": [1]}), "plain.parquet")
    assert "text: " not in embedctl("embed", "plain.parquet", "--dry-run").err
    assert "text: text, id: id\n" in embedctl("embed", "plain.parquet", "--dry-run", "-v").err


def test_programs_hear_of_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json stderr is silent: which columns were chosen is for people."""
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("id,body\n1,one\n2,two\n")
    told = embedctl("embed", "table.csv", "--no-progress")
    silent = embedctl("embed", "table.csv", "--json", "-o", "other.parquet", "--no-progress")

    assert (told.code, told.err.startswith("text: body, id: id\n")) == (0, True)
    assert (silent.code, silent.err) == (0, "")
