"""What an older version left on the disk, finished or killed, is gone on with: `golden/made_before.tar.xz`.

`golden/make_before.py` makes it. Only the command line is used, and the provider's own log tells what was asked.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support import places
from tests.support.running import Ran, embedctl
from tests.support.wire.client import Wire, expected, hash_of

ARCHIVE = places.GOLDEN / "made_before.tar.xz"
MODEL = "text-embedding-3-small"
PRICE = Decimal("0.02") / 1_000_000
MOST_ITEMS = 3
"""What the provider takes in one request; the older version has learnt it."""

OUTPUTS = {
    "finished": ("out", "in"),
    "file": ("lines.parquet", "lines.txt"),
    "swapped": ("swapped", "swap"),
    "renewed": ("renewed", "new"),
    "cut": ("cut", "long"),
    "cut file": ("more.parquet", "more.txt"),
}
"""Output and input of each command."""


@dataclass
class Before:
    """The older version's files, and a provider that remembers nothing.

    Attributes:
        commands: What was run, by name.
        asked: What each was asked for, by the provider's log of then.
    """

    folder: Path
    wire: Wire
    commands: dict[str, list[str]]
    asked: dict[str, list[dict[str, Any]]]

    def run(self, name: str) -> Ran:
        return embedctl(*self.commands[name], "--json")

    def answered(self, name: str) -> set[str]:
        """Hashes of texts whose vectors were paid for and came."""
        return {digest for one in self.asked[name] if one["status"] == 200 for digest in one["text_hashes"]}

    def sent(self) -> list[str]:
        """Hashes of texts that are asked for now, in order."""
        return [digest for one in self.wire.truth() for digest in one["text_hashes"]]

    def texts(self, name: str) -> list[str]:
        """The input's texts that have any."""
        place = self.folder / OUTPUTS[name][1]
        if place.is_file():
            return place.read_text("utf-8").splitlines()
        tables = [pq.read_table(path) for path in sorted(place.iterdir())]
        return [text for table in tables for text in table.column("text").to_pylist() if text.strip()]

    def parts(self, name: str) -> list[Path]:
        place = self.folder / OUTPUTS[name][0]
        return sorted(place.glob("part-*")) if place.is_dir() else [place]

    def stamps(self, name: str) -> list[tuple[str, int, int]]:
        return [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in self.parts(name)]

    def published(self, name: str) -> list[int]:
        """Inodes of the parts that a killed run had put in place, or where they wait for the others."""
        place = self.folder / OUTPUTS[name][0]
        waiting = place / "_embedctl" / "next"
        return [path.stat().st_ino for path in sorted((waiting if waiting.is_dir() else place).glob("part-*"))]

    def check_rows(self, name: str, texts: list[str]) -> None:
        """Each text once, in order, with its vector."""
        tables = [pq.read_table(path) for path in self.parts(name)]
        found = [text for table in tables for text in table.column("text").to_pylist()]
        vectors = [vector for table in tables for vector in table.column("embedding").to_pylist()]

        assert found == texts
        assert np.allclose(vectors, expected(texts, MODEL, 8), atol=1e-6)


@pytest.fixture
def before(tmp_path: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch, wire: Wire) -> Iterator[Before]:
    """The archive, unpacked here, as if it had always been here, and not long ago."""
    folder = tmp_path.resolve()
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    state = folder / "state"
    words = {"@HERE@": str(folder), "@WIRE@": f"http://127.0.0.1:{wire.port}", '"@NOW@"': str(time.time())}
    named = [*state.glob("runs/*.json"), *folder.rglob("ledger.json"), state / "usage.duckdb.budgets"]
    for path in [*named, state / "hints.json"]:
        text = path.read_text("utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        path.write_text(text, "utf-8")
    for name, value in {
        "HOME": folder,
        "EMBEDCTL_HOME": state,
        "EMBEDCTL_CANARY": "off",
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": wire.base_url(),
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(folder)
    wire.reset()
    wire.plan(max_items=MOST_ITEMS)
    made = json.loads((folder / "made.json").read_bytes())
    return Before(folder, wire, made["commands"], made["asked"])


@pytest.mark.parametrize("name", ["finished", "file"])
def test_a_finished_output_is_left_alone(before: Before, name: str) -> None:
    """The same command on an output that an older version finished asks for nothing, and touches no file."""
    stamps, records = before.stamps(name), [path.read_bytes() for path in before.folder.glob("out/_embedctl/run.json")]
    again = before.run(name)

    assert again.code == (3 if name == "finished" else 0), again.err
    assert before.wire.truth() == []
    assert before.stamps(name) == stamps
    assert [path.read_bytes() for path in before.folder.glob("out/_embedctl/run.json")] == records
    assert again.json["reused"] == again.json["vectors"] == len(before.answered(name))


@pytest.mark.parametrize("name", ["cut", "renewed", "cut file"])
def test_a_killed_run_goes_on(before: Before, name: str) -> None:
    """What an older version's run was answered is not asked again, what it was not is asked once, and rows are right.

    Requests are as large as it has learnt that they may be, and parts that are there stay.
    """
    texts, published = before.texts(name), before.published(name)
    ended = before.run(name)
    sent = before.sent()

    assert ended.code == 0, ended.err
    assert set(sent) & before.answered(name) == set()
    assert sorted(sent) == sorted({*map(hash_of, texts)} - before.answered(name))
    assert {one["status"] for one in before.wire.truth()} == {200}
    assert max(one["items"] for one in before.wire.truth()) == MOST_ITEMS
    before.check_rows(name, texts)
    assert before.published(name)[: len(published)] == published
    assert len(published) == (0 if name == "cut file" else 2)
    assert not list(before.folder.glob(f".{OUTPUTS[name][0]}.embedctl"))
    assert embedctl("vectors", "verify", OUTPUTS[name][0], "-i", OUTPUTS[name][1]).code == 0


def test_a_swap_is_finished(before: Before) -> None:
    """An output whose replacement an older version had decided is the new one, without a request."""
    assert (before.folder / "swapped" / "_embedctl" / "commit.json").exists()
    ended = before.run("swapped")

    assert ended.code == 0, ended.err
    assert before.wire.truth() == []
    before.check_rows("swapped", before.texts("swapped"))
    assert sorted(path.name for path in (before.folder / "swapped" / "_embedctl").iterdir()) == [
        "journal",
        "lock",
        "run.json",
    ]


def test_what_was_spent_is_known(before: Before) -> None:
    """Reports hold what the older version had confirmed, also by runs that were killed, and what is spent since."""
    assert embedctl("usage", "ingest").code == 0
    then = [one for asked in before.asked.values() for one in asked]
    old = embedctl("usage", "report", "--json").json["totals"]
    for name in ("cut", "renewed", "cut file"):
        assert before.run(name).code == 0
    now = before.wire.truth()
    new = embedctl("usage", "report", "--json").json["totals"]

    confirmed = sum(one["tokens_billed"] for one in then if one["status"] == 200)
    billed = sum(one["tokens_billed"] for one in then)
    assert (old["tokens"], old["calls"]) == (confirmed, len(then))
    assert Decimal(old["cost"]) == confirmed * PRICE
    assert confirmed < billed <= confirmed + old["tokens_unknown"]
    assert (new["tokens"], new["calls"]) == (confirmed + before.wire.billed(), len(then) + len(now))
    assert Decimal(new["cost"]) == new["tokens"] * PRICE
    assert new["tokens_unknown"] == old["tokens_unknown"]
    assert {one["state"] for one in embedctl("usage", "doctor", "--json").json["findings"]} <= {"ok", "look"}


def test_its_runs_are_listed(before: Before) -> None:
    """Runs of the older version are listed with how they ended, those that were killed as interrupted."""
    runs = embedctl("batch", "list", "--json").json["runs"]
    outputs = {str(before.folder / output): name for name, (output, _) in OUTPUTS.items()}

    assert [(outputs[run["output"]], run["job"], run["state"]) for run in runs] == [
        ("cut file", None, "interrupted"),
        ("cut", "weekly", "interrupted"),
        ("renewed", None, "interrupted"),
        ("swapped", None, "failed"),
        ("renewed", None, "completed"),
        ("swapped", None, "completed"),
        ("file", None, "completed"),
        ("finished", "nightly", "partial"),
    ]
    assert embedctl("batch", "status", "weekly", "--json").json["state"] == "interrupted"
    assert [row["reason"] for row in embedctl("batch", "failures", "nightly", "--json").json["failures"]] == [
        "blank",
        "text_refused",
    ]


@pytest.mark.parametrize("name", ["finished", "file", "swapped"])
def test_its_outputs_are_right(before: Before, name: str) -> None:
    """`vectors verify` finds nothing wrong with what the older version finished, and `vectors info` knows its cost."""
    output, source = OUTPUTS[name]
    if name == "swapped":
        before.run(name)
    verified = embedctl("vectors", "verify", output, "-i", source, "--json")
    told = embedctl("vectors", "info", output, "--json").json

    assert (verified.code, verified.json["findings"]) == (0, [])
    assert Decimal(told["cost"]) > 0


def test_its_cache_is_of_use(before: Before) -> None:
    """Vectors that the older version kept for other outputs are not bought again."""
    with sqlite3.connect(before.folder / "state" / "cache.sqlite") as cache:
        cache.execute("UPDATE entry SET made_at = ?, used_at = ?", [int(time.time())] * 2)
    cache.close()
    words = ["again.parquet" if word == "lines.parquet" else word for word in before.commands["file"]]
    ended = embedctl(*words, "--json")

    assert (ended.code, ended.json["reused"]) == (0, 6), ended.err
    assert before.wire.truth() == []
