"""Every JSON that a command prints keeps its keys, structure, types, fixed words and exit code: `golden/printed_*`.

`EMBEDCTL_UPDATE_GOLDEN=1` writes the golden files anew (goldens.py). Only the command line is used, so that modules may
be moved and renamed.
"""

from __future__ import annotations

import csv
import fcntl
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedctl.routing.canaries import TEXTS_ID
from tests.support.goldens import FOLDER, Masks, check, kinds, sentence
from tests.support.running import Ran, embedctl
from tests.support.wire.client import Wire

POISON = "the dog war."
CONFIG = """
[providers.house]
protocol = "openai"
base_url = "{wire}"
api_key_env = "HOUSE_KEY"
model = "tiny"

[providers.poor]
protocol = "openai"
base_url = "{wire}"
api_key_env = "HOUSE_KEY"
model = "tiny"

[fallback]
poor = ["onnx:all-MiniLM-L6-v2"]

[token_usage]
cache = true

[workspaces.strict]
providers = ["onnx"]
"""
RUN = ("-m", "house:tiny", "-w", "acme", "--concurrency", "1")


@dataclass
class World:
    """A home in which something of everything was done, once for all tests, which only look.

    Attributes:
        printed: What the commands that filled it have said.
    """

    folder: Path
    wire: Wire
    printed: dict[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> Masks:
        address = f"127.0.0.1:{self.wire.port}"
        return Masks({str(self.folder): "<here>", f"http://{address}": "<wire>", address: "<wire>"})

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the user who works here."""
        for name, value in {
            "HOME": self.folder,
            "XDG_CONFIG_HOME": self.folder / "config",
            "EMBEDCTL_HOME": self.folder / "state",
            "EMBEDCTL_CANARY": "off",
            "HOUSE_KEY": "sk-house-0123456789",
        }.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.chdir(self.folder)

    def says(self, *words: object) -> dict[str, Any]:
        """What a command prints as JSON, masked, and how it ends."""
        ended = self.run(*words)
        return {"exit_code": ended.code, "stdout": self.masks(ended.json)}

    def run(self, *words: object) -> Ran:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["embedctl", *map(str, words)])  # a receipt says how to go on
            patch.setattr("embedctl.routing.status.ONLINE_S", 60.0)
            return embedctl(*words)

    def fill(self) -> None:
        """Inputs, prices, budgets, and runs that end in all kinds of ways."""
        (self.folder / "state").mkdir()
        (self.folder / "state" / "config.toml").write_text(CONFIG.format(wire=self.wire.base_url()))
        texts = [sentence(1), sentence(1), POISON, " ", sentence(2)]
        table = {"id": list(range(5)), "who": ["x", "y", "x", "y", "x"], "text": texts}
        pq.write_table(pa.table(table), self.folder / "rows.parquet")
        (self.folder / "lines.txt").write_text(f"{sentence(2)}\n{sentence(3)}\n")
        self.wire.reset()
        self._do("prices", "set", "house:tiny", "0.5", "--from", "2026-01-01")
        self._do("prices", "set", "house:tiny", "0.25", "--from", "2026-01-01", "--tier", "batch")
        self._do("prices", "set", "house:later", "1", "--from", "2999-01-01")
        self._do("usage", "budget", "set", "-w", "acme", "--amount", "50")
        self._embed()
        self._ask()
        self._account()
        self._keep("cache stats")

    def _embed(self) -> None:
        """Runs."""
        batch = ("batch", "run", "rows.parquet", "-o", "out", "--job", "nightly", *RUN)
        lines = ("embed", "lines.txt", "--split", "lines", *RUN)
        self.wire.plan(dimensions=8, poison=[POISON])
        self._keep("batch run --dry-run", *batch, "--dry-run")
        self._keep("batch run", *batch)
        self._keep("batch run again", *batch)
        self._keep("embed --dry-run", *lines, "--dry-run", "--rpm", "60")
        self._keep("embed", *lines, "-o", "lines.parquet", "--tag", "team=search", "--dimensions", "8")
        self._keep("embed from the cache", *lines, "-o", "again.parquet", "--dimensions", "8")
        self._keep("embed --max-cost", *lines, "-o", "dear.parquet", "--no-cache", "--max-cost", "0.000001")
        for form in ("float", "base64"):
            told = self.run(*lines, "--no-cache", "-o", "-", "--vectors", form)
            self.printed[f"embed -o - --vectors {form}"] = [self.masks(row) for row in told.lines]
        self.wire.plan(dimensions=8, faults={"quota": 1.0})
        self._keep(
            "embed by another", "embed", "lines.txt", "-o", "other.parquet", "-m", "poor:tiny", "--fallback", "any"
        )
        self.wire.plan(dimensions=8, faults={"reset_after": 1.0})
        self._keep("embed, answer lost", *lines, "-o", "lost.parquet", "--no-cache", "--retries", "0")

    def _ask(self) -> None:
        """Calls without an output."""
        self.wire.plan(dimensions=8)
        test = ("providers", "test", "house", "-w", "acme")
        self._keep("providers test", *test)
        self._keep("vectors search", "vectors", "search", "out", sentence(1), "-k", "1", "-w", "acme")
        self._keep("vectors verify --sample", "vectors", "verify", "out", "--sample", "3", "-w", "acme")
        self.wire.plan(dimensions=8, keys=["sk-another"])
        self._keep("providers test, key rejected", *test)
        self.wire.plan(dimensions=8, max_tokens=2)
        self._keep("providers test, too long", *test)
        self.wire.plan(dimensions=8)

    def _account(self) -> None:
        """What is done by hand in the ledger."""
        now = datetime.now(UTC)
        today, yesterday = (day.date().isoformat() for day in (now, now - timedelta(days=1)))
        house, acme = ("--provider", "house"), ("-w", "acme")
        self._keep("usage estimate --save", "usage", "estimate", "lines.txt", *RUN, "--save", "estimate.json")
        self._do("embed", "lines.txt", "-o", "estimated.parquet", *RUN, "--no-cache")
        self._keep("usage adjust", "usage", "adjust", "--credit", "0.000001", *house, "--reason", "a gift", *acme)
        bill = f"day,model,tokens,cost\n{today},tiny,100,\n{yesterday},tiny,100,0.00005\n"
        (self.folder / "bill.csv").write_text(bill)
        compare = ("usage", "reconcile", *house, "--file", "bill.csv")
        self._keep("usage reconcile", *compare, "--write-true-up", "-w", "books")
        (self.folder / "rates.csv").write_text(f"day,base,quote,rate\n{yesterday},EUR,USD,1.25\n")
        self._do("usage", "rates", "rates.csv")
        self._keep("usage ingest")
        self._do("prices", "set", "house:tiny", "0.6", "--from", today)
        self._keep("usage reprice")

    def _keep(self, title: str, *words: object) -> None:
        self.printed[title] = self.says(*(words or title.split()), "--json")

    def _do(self, *words: object) -> None:
        ended = self.run(*words)
        assert ended.code == 0, ended.err


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, wire: Wire) -> World:
    return World(tmp_path_factory.mktemp("world").resolve(), wire)


@pytest.fixture
def world(empty: World, clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The filled home; the first who comes fills it."""
    empty.enter(monkeypatch)
    if not empty.printed:
        empty.fill()
    return empty


def test_runs(world: World) -> None:
    """The receipt of every kind of run and call, what a dry run foresees, and rows on stdout are as they were."""
    check("printed_runs", {title: told for title, told in world.printed.items() if not title.startswith("usage")})


def test_usage(world: World) -> None:
    """Reports, explanations, budgets, and what mends a ledger, are as they were."""
    found = world.run("usage", "sql", "select * from usage_event where tags like '%team%'", "--json").json
    event = dict(zip(found["columns"], found["rows"][0], strict=True))
    sums = "select workspace_id, model, sum(tokens) as tokens, sum(cost) as cost from usage_daily group by all order by"
    asked = [
        ("report",),
        ("report", "--workspace", "--breakdown", "--top", "2", "--strict"),
        ("report", "--by", "job,purpose,status,source,tier,run,tag:team", "-w", "acme"),
        ("report", "--currency", "EUR", "--last", "7d", "--corrections", "split"),
        ("daily",),
        ("weekly", "-w", "acme"),
        ("monthly", "--timezone", "Europe/Berlin", "-w", "acme"),
        ("jobs",),
        ("explain", event["event_id"]),
        ("explain", event["operation_id"]),
        ("explain", "--run", event["run_id"]),
        ("drift",),
        ("budget", "list"),
        ("budget", "check", "-w", "acme"),
        ("estimate", "rows.parquet", *RUN, "--tier", "batch"),
        ("diff", "estimate.json"),
        ("diff", "--from", "yesterday", "--to", "today"),
        ("forecast",),
        ("forecast", "--by", "workspace"),
        ("anomalies",),
        ("doctor",),
        ("sql", f"{sums} all"),
    ]
    printed = {world.masks.text(" ".join(("usage", *words))): world.says("usage", *words, "--json") for words in asked}
    done = {title: told for title, told in world.printed.items() if title.startswith("usage")}

    check("printed_usage", printed | done)


def test_batch(world: World) -> None:
    """`batch list`, `status` of a run and of rows, and `failures` are as they were."""
    asked = [
        ("list",),
        ("list", "--status", "failed", "--limit", "1"),
        ("status", "nightly"),
        *(("status", "nightly", "--id", str(row)) for row in (0, 2, 3, 99)),
        ("failures", "nightly"),
    ]

    check("printed_batch", {" ".join(("batch", *words)): world.says("batch", *words, "--json") for words in asked})


def test_vectors(world: World) -> None:
    """What is in an output, and whether it is right or wrong, are told as they were."""
    shutil.copytree(world.folder / "out", world.folder / "wrong", dirs_exist_ok=True)
    part = world.folder / "wrong" / "part-000000.parquet"
    facts, table = pq.read_metadata(part).metadata, pq.read_table(part)
    doubled = pa.concat_tables([table.slice(0, 2), table.slice(0, 1)])
    pq.write_table(doubled.replace_schema_metadata({b"embedctl": facts[b"embedctl"]}), part)
    vectors = ["AACAPwAAAAA=", "AAAAAAAAgD8=", "AACAPwAAgD8="]
    seen: dict[str, Any] = {
        "texts": TEXTS_ID,
        "at": "2026-11-24T07:12:26+00:00",
        "host": "mini@https://h/v1#m",
        "version": "m-1",
    }
    seen["vectors"] = vectors
    record = {"space_id": "0" * 32, "first": seen, "last": seen, "sightings": [[seen["at"], "m-1", None, "first"]]}
    kept = world.folder / "state" / "canaries" / "one.json"
    kept.parent.mkdir(mode=0o700)
    kept.write_text(json.dumps({"version": 1, "hosts": {seen["host"]: record}}))
    asked = [
        ("lock", "out"),
        ("drift", "0" * 32),
        ("info", "out"),
        ("info", "lines.parquet"),
        ("verify", "out", "-i", "rows.parquet"),
        ("verify", "wrong", "-i", "rows.parquet"),
    ]

    check(
        "printed_vectors", {" ".join(("vectors", *words)): world.says("vectors", *words, "--json") for words in asked}
    )


def test_prices(world: World) -> None:
    """Prices of one's own are told as they were; those of the catalog are data, and keep their shape."""
    offer = {"input_cost_per_token": 7e-7, "mode": "embedding", "litellm_provider": "house"}
    (world.folder / "list.json").write_text(json.dumps({"house/tiny": offer, "house/new": offer}))
    checked = world.run("prices", "check", "--json").json
    own = [remark for remark in checked["remarks"] if remark["price"].startswith("house:")]
    printed = {
        "prices list --provider house": world.says("prices", "list", "--provider", "house", "--all", "--json"),
        "prices show house:tiny": world.says("prices", "show", "house:tiny", "--json"),
        "prices import": world.says("prices", "import", "list.json", "--json"),
        "prices list": kinds(world.run("prices", "list", "--json").json),
        "prices check": {**kinds(checked), "remarks": world.masks(own)},
    }

    check("printed_prices", printed)


def compared(world: World, *flags: str) -> Ran:
    """`models compare`, in a home of its own: what it asks stands in no other report."""
    rows = [
        {"id": n, "title": f"Day {n}", "text": f"The ship of day {n} carries {n} sacks of {n} kinds."}
        for n in range(24)
    ]
    (world.folder / "ships.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDCTL_HOME", str(world.folder / "compared"))
        return world.run("models", "compare", "ships.jsonl", "--candidates", "onnx:all-MiniLM-L6-v2", *flags)


def test_models(world: World) -> None:
    """The bundled model is shown as it was; others are data, and keep their shape."""
    chosen = world.run("models", "choose", "lines.txt", "--cost", "free", "--json").json
    bundled = world.run("models", "show", "onnx:all-MiniLM-L6-v2", "--json").json
    printed = {
        "models list": kinds(world.run("models", "list", "--all", "--json").json),
        "models show onnx:all-MiniLM-L6-v2": {**bundled, "model": {**bundled["model"], "also_served_by": "<str>"}},
        "models show": kinds(world.run("models", "show", "openai:text-embedding-3-small", "--json").json),
        "models choose": {**chosen, "candidates": kinds(chosen["candidates"])},
        "models compare": kinds(compared(world, "--json").json),
        "models warmup": world.says("models", "warmup", "--json"),
    }

    check("printed_models", printed)


def test_providers(world: World) -> None:
    """A provider of one's own is listed as it was; the built-in ones keep their shape."""
    printed = {}
    for words in (("list",), ("list", "--online"), ("list", "-w", "strict")):
        listed = world.run("providers", *words, "--json").json
        own = [row for row in listed["data"] if row["provider"] == "house"]
        printed[" ".join(("providers", *words))] = {**kinds(listed), "house": world.masks(own)}
    printed["providers reset"] = world.says("providers", "reset", "house", "--json")

    check("printed_providers", printed)


def test_keys(world: World) -> None:
    """A key is shown with what it was shown with; of what is drawn by lot, and of times, only the kind."""
    flags = ("-w", "acme", "--rpm", "60", "--budget", "5/day", "--expires", "90d", "--models", "a,b*", "--json")
    made = world.run("keys", "create", *flags).json
    printed = {
        "keys create": kinds(made),
        "keys list": kinds(world.run("keys", "list", "--json").json),
        "keys rotate": kinds(world.run("keys", "rotate", made["id"], "--json").json),
        "keys revoke": kinds(world.run("keys", "revoke", made["id"], "--json").json),
    }

    check("printed_keys", printed)


def test_settings(world: World) -> None:
    """Every option is shown with its value and where that comes from, as it was."""
    check("printed_settings", {"config show": world.says("config", "show", "--json")})


@pytest.mark.parametrize("flags", [["--json"], ["--json", "--online"]], ids=["offline", "online"])
def test_doctor(world: World, flags: list[str]) -> None:
    """`doctor` looks at what it looked at, and says so in the same words, but for numbers and the catalog's names."""
    ended = world.run("doctor", *flags)
    told = ended.json
    told["warnings"] = [line for line in told["warnings"] if not line.startswith("extras")]
    local = {
        f"provider {name}" for name in ("local_api", "tldw", "tei", "ollama")
    }  # what listens here is the machine's
    told["checks"] = [one for one in told["checks"] if one["check"] not in local]
    for one in told["checks"]:
        one["detail"] = re.sub(r"\d[\d.,]*", "<number>", world.masks.text(one["detail"]))
        one["facts"] = kinds(one["facts"])
        if one["check"] in ("version", "other providers"):
            one["detail"] = "<names>"
        if one["check"] == "extras":  # what is installed is the machine's business
            one |= {"detail": "<text>", "hint": "<text>", "state": "<word>", "facts": list(one["facts"])}

    title = " ".join(("doctor", *flags[1:]))
    check(f"printed_{title.replace(' --', '_')}", {title: {"exit_code": ended.code, "stdout": told}})


def test_errors(world: World) -> None:
    """An error with --json is one object as it was: word, message, details, hint and exit code."""
    (world.folder / "bad.toml").write_text("modell = 1\n")
    embed = ("embed", "lines.txt")
    asked: list[tuple[str, ...]] = [
        (*embed, "-o", "-"),
        ("embed", "nothing.txt"),
        (*embed, "-o", "lines.txt", *RUN),
        (*embed, "-m", "openai:text-embedding-3-small"),
        (*embed, "-m", "house:tiny", "-w", "strict"),
        (*embed, "-m", "house:other", "--max-cost", "1"),
        (*embed, "--config", "bad.toml"),
        ("batch", "run", "lines.txt", "-o", "out", *RUN),
        ("batch", "status", "nobody"),
        ("batch", "lst"),
        ("usage", "sql", "select 1; select 2"),
        ("usage", "report", "--by", "colour"),
        ("vectors", "info", "rows.parquet"),
    ]
    holder = {"pid": 1, "host": "elsewhere", "started": "2026-11-21T10:00:00+00:00", "command": "embedctl batch run"}
    with (world.folder / "out" / "_embedctl" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        json.dump(holder, lock)
        lock.flush()
        printed = {" ".join(words): world.says(*words, "--json") for words in asked}

    check("printed_errors", printed)


def test_files_that_commands_write(world: World) -> None:
    """Exports, saved reports and metrics keep their columns, names and metadata."""
    for words in (
        ("report", "--format", "parquet", "-o", "report.parquet"),
        ("export", "--format", "parquet", "--overwrite", "-o", "events.parquet"),
        ("export", "--format", "focus", "--overwrite", "-o", "focus.csv"),
        ("export", "--format", "cloudevents", "--overwrite", "-o", "events.jsonl"),
        ("metrics", "--textfile", "."),
    ):
        assert world.run("usage", *words).code == 0
    saved = pq.read_metadata("report.parquet").metadata[b"embedctl"]
    charges = list(csv.DictReader(Path("focus.csv").read_text("utf-8").splitlines()))
    events = [json.loads(line) for line in Path("events.jsonl").read_text("utf-8").splitlines()]
    metrics = Path("embedctl_usage.prom").read_text("utf-8")
    labels = re.findall(r"^(\w+)(?:{(.*)})? ", metrics, re.MULTILINE)
    written = {
        "usage report --format parquet": {
            "columns": described("report.parquet"),
            "embedctl": world.masks(json.loads(saved)),
        },
        "usage export --format parquet": described("events.parquet"),
        "usage export --format focus": world.masks(next(one for one in charges if "team" in one["Tags"])),
        "usage export --format cloudevents": world.masks(
            next(one for one in events if one["data"]["purpose"] == "test" and one["data"]["status"] == "ok")
        ),
        "usage metrics": {
            "kinds": dict(re.findall(r"^# TYPE (\w+) (\w+)$", metrics, re.MULTILINE)),
            "labels": {name: re.findall(r'(\w+)="', text) for name, text in labels},
        },
        "usage estimate --save": world.masks(json.loads(Path("estimate.json").read_text("utf-8"))),
    }

    check("written_reports", written)


def described(file: str) -> list[str]:
    """The columns of a file that the ledger wrote."""
    found = duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM '{file}')").fetchall()
    return [f"{name}: {kind}" for name, kind in found]


def test_tables_have_their_columns(world: World) -> None:
    """The columns of a table, as --format csv names them, are those of before."""
    asked = [
        "batch list", "batch status nightly", "batch failures nightly", "models list", "models choose",
        "models show onnx:all-MiniLM-L6-v2", "providers list", "prices list", "prices check", "vectors info out",
        "vectors verify out", "cache stats", "config show", "doctor", "usage report", "usage jobs", "usage drift",
        "usage budget list", "usage estimate lines.txt -m house:tiny", "usage diff estimate.json", "usage doctor",
        "usage forecast", "usage anomalies",
    ]  # fmt: skip
    found = {words: world.run(*words.split(), "--format", "csv").out.partition("\n")[0] for words in asked}
    found["models compare"] = compared(world, "--format", "csv").out.partition("\n")[0]

    check("printed_columns", found)


def leaves(*path: str) -> Iterator[tuple[str, str]]:
    """Every command below `path`, and what its --help says."""
    text = embedctl(*path, "--help").out
    below = re.findall(r"^  ([a-z]+)  +\S", text, re.MULTILINE)
    if not below:
        yield " ".join(path), text
    for name in below:
        yield from leaves(*path, name)


WITHOUT = {
    "models pull": "asks another machine",
    "batch cancel": "needs a batch: tests/cli/test_batch_mode.py",
    "batch finish": "needs a store: tests/cli/test_store_output.py",
}


def test_every_json_is_looked_at() -> None:
    """Each command with --json has a golden document, or a reason why not."""
    titles = [title for path in FOLDER.glob("printed_*.json") for title in json.loads(path.read_text("utf-8"))]
    printing = [name for name, text in leaves() if "--json" in text and name not in WITHOUT]
    missing = [name for name in printing if not any(re.match(rf"{name}( |,|$)", title) for title in titles)]

    assert len(printing) > 30
    assert missing == []
