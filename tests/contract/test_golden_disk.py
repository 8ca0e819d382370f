"""Every file that commands leave on the disk, also those of killed runs, is as it was: `golden/disk_*`.

`EMBEDCTL_UPDATE_GOLDEN=1` writes the golden files anew (goldens.py). Only the command line is used, and files are read
as they are, so that modules may be moved and renamed.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.goldens import Masks, check, columns, sentence
from tests.support.running import embedctl
from tests.support.wire.client import Wire, expected, hash_of, started

MODEL = "text-embedding-3-small"
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--concurrency", "1")
SLOT_ROWS = 1 << 17
POISON = "the dog war."
CONFIG = f"""
[providers.eu]
protocol = "openai"
base_url = "{{wire}}"
api_key_env = "EU_KEY"
models = {{{{ "{MODEL}" = "{MODEL}" }}}}
price_as = "openai"

[fallback]
openai = ["eu"]

[token_usage]
cache = true
"""
HANG = {"hang": {"p": 1.0, "seconds": 600}}
KIND = ("entry_kind", "status", "billable", "purpose")
"""What tells kinds of events apart."""


@dataclass
class Home:
    """A user's folders, in which commands are processes.

    Attributes:
        found: What was read, by the name of its golden file.
    """

    folder: Path
    wire: Wire
    other: Wire
    found: dict[str, Any] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def masks(self) -> Masks:
        addresses = {
            f"127.0.0.1:{one.port}": name for one, name in ((self.wire, "<wire>"), (self.other, "<other wire>"))
        }
        return Masks({str(self.folder): "<here>"} | {f"http://{one}": name for one, name in addresses.items()})

    def environment(self, wire: Wire) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "EMBEDCTL_HOME": str(self.state),
            "EMBEDCTL_CANARY": "off",
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": wire.base_url(),
            "EU_KEY": "sk-eu",
        }

    def start(self, *words: object, stdin: str | None = None, wire: Wire | None = None) -> subprocess.Popen[str]:
        """A command in a process of its own, which can be killed."""
        process = subprocess.Popen(
            [sys.executable, "-m", "embedctl", *map(str, words)],
            cwd=self.folder,
            env=self.environment(wire or self.wire),
            text=True,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if stdin is not None:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.close()
            process.stdin = None
        self.running.append(process)
        return process

    def run(self, *words: object, code: int = 0, wire: Wire | None = None) -> str:
        """What a command prints that ends by itself."""
        environment = self.environment(wire or self.wire)
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["embedctl", *map(str, words)])
            ended = embedctl(*words)
        assert ended.code == code, ended.err
        return ended.out

    def kill(self, process: subprocess.Popen[str], when: Callable[[], Any]) -> None:
        """End it as a power switch would, as soon as something is so."""
        until = time.monotonic() + 60
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def table(self, texts: list[str], name: str, **more: list[Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": list(range(len(texts))), **more, "text": texts}), path)

    def json(self, path: Path) -> Any:
        return self.masks(json.loads(path.read_bytes()))

    def lines(self, path: Path) -> list[Any]:
        return [self.masks(json.loads(line)) for line in path.read_bytes().splitlines()]

    def entry(self, where: Callable[[dict[str, Any]], bool]) -> Any:
        """The newest entry of the run registry like this."""
        entries = [json.loads(path.read_bytes()) for path in sorted(self.state.glob("runs/*.json"), reverse=True)]
        return self.masks(next(filter(where, entries)))

    def files(self, folder: Path) -> list[str]:
        """Everything below a folder, with its mode; but a spool file half written where a kill came, for an hour."""
        whole = [path for path in folder.rglob("*") if not path.match("spool/.tmp-*")]
        return sorted({f"{stat.filemode(path.stat().st_mode)} {self.name(path)}" for path in whole})

    def name(self, path: Path) -> str:
        return self.masks.text(str(path.relative_to(self.folder)))


def frames(path: Path, secret: bytes) -> Iterator[tuple[dict[str, Any], bytes, bytes, int]]:
    """JSON, text hashes and vectors of each frame, and where its vectors begin; every frame is the home's own."""
    content, at = path.read_bytes(), 0
    segment, _, file = path.name.split(".")
    scope = f"embedctl journal 2 {file} {segment}".encode()
    key = blake2b(scope, key=secret, digest_size=32).digest()
    while any(content[at : at + 4]):
        magic, length, json_length, *numbers, mac = struct.unpack_from("<4sIIIIQ16s", content, at)
        body = content[at + 44 : at + 44 + length]
        told = json.loads(body[:json_length])
        hashes_end = json_length + 16 * told.get("count", 0)
        covered = struct.pack("<QIIIIQ", at, length, json_length, *numbers) + body[:hashes_end]
        assert (magic, mac) == (b"EMB2", blake2b(covered, key=key, digest_size=16).digest())
        yield told, body[json_length:hashes_end], body[hashes_end:], at + 44 + hashes_end
        at += 44 + length
    assert not any(content[at:])


def journal(home: Home, folder: Path, texts: list[str]) -> dict[str, Any]:
    """What the journal of a dead run says; its vectors are right, and stand at multiples of 64 bytes."""
    vector = {hash_of(text): expected([text], MODEL, 8)[0] for text in texts}
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        listed = found.setdefault(home.masks.text(path.name), [])
        for told, hashes, vectors, begins in frames(path, (home.state / "journal.key").read_bytes()):
            names = [hashes[start : start + 16].hex() for start in range(0, len(hashes), 16)]
            if names:
                assert begins % 64 == 0
                numbers = np.frombuffer(vectors, "<f4").reshape(len(names), 8)
                assert np.allclose(numbers, [vector[name] for name in names], atol=1e-6)
            listed.append({**home.masks(told), "text hashes": names})
    return found


def parquet(home: Home, path: Path) -> dict[str, Any]:
    """Columns, how they are packed, and what embedctl says of the file."""
    about = pq.read_metadata(path)
    packed = [about.row_group(0).column(index) for index in range(about.num_columns)]
    return {
        "columns": columns(pq.read_schema(path)),
        "packed": [
            f"{one.path_in_schema}: {one.physical_type} {one.compression} dictionary={one.has_dictionary_page} "
            f"statistics={one.is_stats_set}"
            for one in packed
        ],
        "embedctl": home.masks(json.loads(about.metadata[b"embedctl"])),
        "keys": sorted(key.decode() for key in about.metadata),
    }


def spool(home: Home, folder: Path) -> list[Any]:
    """One event of each kind, the least where there are several; every line's checksum is right."""
    events: dict[str, list[str]] = {}
    for path in folder.glob("*.spool"):
        for line in path.read_bytes().splitlines():
            assert int(line[:8], 16) == zlib.crc32(line[9:])
            event = json.loads(line[9:])
            kind = " ".join(str(event.get(name)) for name in KIND)
            events.setdefault(kind, []).append(json.dumps(home.masks(event), sort_keys=True))
    return [json.loads(min(events[kind])) for kind in sorted(events)]


def sqlite(path: Path) -> dict[str, Any]:
    with sqlite3.connect(path) as connection:
        schema = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        kinds = {
            name: connection.execute(f"SELECT * FROM {name} ORDER BY 1 LIMIT 1").description
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        }
    connection.close()
    return {
        "schema": [" ".join(text.split()) for (text,) in schema],
        "journal_mode": mode,
        "columns": {name: [column[0] for column in described] for name, described in sorted(kinds.items())},
    }


def ledger(path: Path) -> dict[str, Any]:
    """The ledger's tables, views and columns, its migrations, and the version of its storage."""
    with duckdb.connect(str(path), read_only=True) as connection:
        found = connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() WHERE NOT internal "
            "ORDER BY table_name, column_index"
        ).fetchall()
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
        checks = connection.execute(
            "SELECT table_name, constraint_type, count(*) FROM duckdb_constraints() GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        steps = connection.execute("SELECT version, name, checksum FROM schema_migration ORDER BY 1").fetchall()
    tables: dict[str, list[str]] = {}
    for table, column, kind, nullable in found:
        tables.setdefault(table, []).append(f"{column}: {kind}{'' if nullable else ' not null'}")
    magic, version = struct.unpack_from("<4sQ", path.read_bytes()[:20], 8)
    return {
        "tables": tables,
        "views": [name for (name,) in views],
        "constraints": [f"{table}: {count} {kind}" for table, kind, count in checks],
        "schema_migration": [list(step) for step in steps],
        "file": [magic.decode(), version],
    }


def finished(home: Home) -> None:
    """Runs that end, each leaving something of its own."""
    home.run("config", "init", "--config", "settings.toml")
    home.run("prices", "set", f"openai:{MODEL}", "0.02", "--from", "2026-01-01")
    home.run("usage", "budget", "set", "-w", "acme", "--amount", "50")
    home.found["text"] = {
        name: (home.folder / name).read_text("utf-8").splitlines() for name in ("settings.toml", "state/prices.toml")
    }
    texts = [sentence(number) for number in range(4)]
    home.table([*texts, texts[0], POISON, " "], "rows.parquet", who=["acme"] * 6 + ["zeta"])
    home.wire.plan(poison=[POISON], max_items=4)
    home.run(
        "batch", "run", "rows.parquet", "-o", "done", "--job", "nightly", "-w", "acme", "--tag", "team=search",
        *OPENAI, code=3,
    )  # fmt: skip
    home.wire.plan()
    home.run("embed", "rows.parquet", "-o", "done.parquet", "--workspace-column", "who", "--keep", "none", *OPENAI)
    home.run("embed", "rows.parquet", "-o", "small.parquet", "--dtype", "int8", "--vector-type", "list", *OPENAI)
    home.run("usage", "adjust", "--credit", "1", "--provider", "openai", "--reason", "a gift")
    done = home.folder / "done"
    home.found["output"] = {
        "done/_embedctl/run.json": home.json(done / "_embedctl" / "run.json"),
        "done/part-000000.parquet": parquet(home, done / "part-000000.parquet"),
        "done/failures.jsonl": home.lines(done / "failures.jsonl"),
        "done.parquet": parquet(home, home.folder / "done.parquet"),
        "done.parquet.failures.jsonl": home.lines(home.folder / "done.parquet.failures.jsonl"),
        "small.parquet": parquet(home, home.folder / "small.parquet"),
    }
    home.found["registry"] = {
        "batch run": home.entry(lambda run: run["command"] == "batch run"),
        "embed": home.entry(lambda run: run["command"] == "embed"),
    }
    home.found["budgets"] = {name: home.json(home.state / f"usage.duckdb.{name}") for name in ("budgets", "limits")}
    home.found["hints"] = {"a server that takes few": home.json(home.state / "hints.json")}
    home.run("providers", "reset", "openai")


def remembered(home: Home) -> None:
    """A server that refuses base64, and whose account is used up: another one goes on."""
    long = [" ".join(map(sentence, range(number, number + 5))) for number in range(6)]
    (home.folder / "long.txt").write_text("\n".join(long))
    home.wire.plan(script=["base64_refused", "ok", "quota"])
    home.run("embed", "long.txt", "--split", "lines", "-o", "long.parquet", "--batch-size", "3", "--no-cache", *OPENAI)
    home.found["hints"]["another one goes on"] = home.json(home.state / "hints.json")
    home.run("providers", "reset", "openai")


def killed_embed(home: Home) -> None:
    """`embed` of a pipe dies, goes on under another ledger, and dies again."""
    texts = [sentence(number) for number in range(100, 106)]
    words = ("embed", "-", "--split", "lines", "-o", "out.parquet", "-w", "acme", "--no-cache", "--batch-size", "2")
    state = home.folder / ".out.parquet.embedctl"
    home.wire.reset()
    home.wire.plan(script=["ok"], faults=HANG)
    home.kill(home.start(*words, *OPENAI, stdin="\n".join(texts)), lambda: len(home.wire.truth()) == 2)
    home.found["killed_embed"] = {
        "files": home.files(state),
        "lock": home.json(state / "lock"),
        "ledger.json": home.json(state / "ledger.json"),
        "stdin": (state / "stdin").read_text("utf-8").splitlines(),
        "journal": journal(home, state / "journal", texts),
        "usage.duckdb.budgets": home.json(home.state / "usage.duckdb.budgets"),
    }
    entry = home.entry(lambda run: run["state"] == "running" and run["command"] == "embed")  # another one may be slow
    assert entry["counts"].keys() <= {"rows", "in_flight", "attempts", "requests", "tokens", "tokens_unknown"}
    home.found["registry"]["embed that was killed"] = entry | {"counts": {}, "cost_usd": None}  # or it lived long
    again = home.start(*words, *OPENAI, "--ledger", "other.duckdb", stdin="\n".join(texts))
    home.kill(again, lambda: len(home.wire.truth()) == 3)
    home.found["killed_embed"]["ledger.json of two"] = home.json(state / "ledger.json")


def killed_call(home: Home) -> None:
    """A call without an output dies."""
    home.wire.reset()
    home.wire.plan(faults=HANG)
    home.kill(home.start("providers", "test", "openai", "-w", "acme"), lambda: home.wire.truth())
    (folder,) = home.state.glob("journal/*")
    home.found["killed_call"] = {"files": home.files(folder), "journal": journal(home, folder / "journal", [])}
    home.found["registry"]["providers test"] = home.entry(lambda run: run["command"].startswith("providers"))


def ill(home: Home) -> None:
    """A run whose provider fails: others see its open circuit, and can ask for it to be closed."""
    (home.folder / "ill.txt").write_text("\n".join(sentence(number) for number in range(200, 206)))
    # No text can be blamed for a 502, so that each one counts, and chance decides nothing.
    home.wire.plan(script=["ok"], faults={"status": {"p": 1.0, "status": 502, "form": "ms", "seconds": 0.01}})
    words = ("embed", "ill.txt", "--split", "lines", "-o", "ill.parquet", "--no-cache", "--fallback", "off")
    run = home.start(*words, "--batch-size", "1", *OPENAI)
    circuits = home.state / "circuits"
    while not list(circuits.glob("*.json")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGSTOP)  # or it goes on as soon as it is asked to
    (said,) = circuits.glob("*.json")
    home.found["circuits"] = found = {
        "circuits/<uuid>.json": home.json(said),
        "circuits/<uuid>.lock": home.json(said.with_suffix(".lock")),
    }
    listed = json.loads(home.run("providers", "list", "--json"))["data"]
    found["providers list"] = home.masks([one for one in listed if one["provider"] == "openai"])
    found["providers reset"] = json.loads(home.run("providers", "reset", "openai", "--json"))
    home.kill(run, lambda: True)
    found["files"] = home.files(circuits)


def replaced_in_part(home: Home) -> tuple[subprocess.Popen[str], list[str]]:
    """A run that replaces an output, and has published its first part when it will be killed."""
    (home.folder / "big").mkdir()
    home.table([sentence(1), sentence(2)], "big/0.parquet")
    words = ("batch", "run", "big", "-o", "large", "--job", "weekly", "--batch-size", "2", *OPENAI)
    home.run(*words, wire=home.other)
    home.table([" ", *[sentence(3)] * (SLOT_ROWS + 20_000)], "big/0.parquet")
    last = [sentence(number) for number in range(300, 304)]
    home.table(last, "big/1.parquet")
    home.other.reset()
    slow, never = {"fault": "drip", "seconds": 5.5}, {"fault": "hang", "seconds": 600}
    home.other.plan(texts={sentence(3): slow, last[-1]: never})
    return home.start(*words, wire=home.other), [sentence(3), *last]


def killed_batch(home: Home, run: subprocess.Popen[str], texts: list[str]) -> None:
    """It dies between two parts; another one of another input begins there, and dies too."""
    state = home.folder / "large" / "_embedctl"
    published = state / "next" / "part-000000.parquet"
    home.kill(run, lambda: len(home.other.truth()) == 3 and published.exists() and published.stat().st_nlink == 1)
    home.found["killed_batch"] = {
        "files": home.files(home.folder / "large"),
        "lock": home.json(state / "lock"),
        "runs/weekly.lock": home.json(home.state / "runs" / "weekly.lock"),
        "run.json": home.json(state / "run.json"),
        "next/part-000000.parquet": sorted(parquet(home, published)["embedctl"]),
        "failed": home.lines(state / "failed" / "000000.jsonl"),
        "journal": journal(home, state / "journal", texts),
    }
    home.found["registry"]["batch run that was killed"] = entry = home.entry(lambda one: one["job_id"] == "weekly")
    for name in ("rows", "attempts", "requests", "tokens"):  # as many as when it last said so
        entry["counts"][name] = f"<{type(entry['counts'][name]).__name__}>"
    entry["cost_usd"] = f"<{type(entry['cost_usd']).__name__}>"
    home.table([sentence(310)], "big/0.parquet")
    words = ("batch", "run", "big", "-o", "large", "--job", "weekly", "--batch-size", "2", *OPENAI)
    home.kill(home.start(*words, wire=home.other), lambda: len(home.other.truth()) == 4)
    home.found["killed_batch"]["files after a change"] = home.files(home.folder / "large")


def half_swapped(home: Home) -> None:
    """A new output is complete, and something of somebody else's stands where its failures belong."""
    words = ("batch", "run", "swap.parquet", "-o", "swapped", *OPENAI)
    home.wire.plan()
    home.table([sentence(400)], "swap.parquet")
    home.run(*words)
    (home.folder / "swapped" / "failures.jsonl").mkdir()
    home.table([sentence(401), " "], "swap.parquet")
    home.run(*words, code=74)
    home.found["half_swapped"] = {
        "commit.json": home.json(home.folder / "swapped" / "_embedctl" / "commit.json"),
        "files": home.files(home.folder / "swapped"),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, wire: Wire) -> Iterator[Home]:
    """All that was found on the disk of runs that ended, and of runs that were killed."""
    umask = os.umask(0o022)
    with started() as other:
        made = Home(tmp_path_factory.mktemp("home").resolve(), wire, other)
        (made.folder / "config" / "embedctl").mkdir(parents=True)
        (made.folder / "config" / "embedctl" / "config.toml").write_text(CONFIG.format(wire=wire.base_url()))
        try:
            finished(made)
            slow = replaced_in_part(made)
            remembered(made)
            killed_embed(made)
            killed_call(made)
            ill(made)
            killed_batch(made, *slow)
            half_swapped(made)
            made.run("usage", "ingest", "--rebuild")
            made.found["files"] = made.files(made.state)
        finally:
            for process in made.running:
                process.kill()
                process.communicate()
            os.umask(umask)
        yield made


@pytest.mark.parametrize(
    "name",
    [
        "files", "output", "registry", "budgets", "hints", "circuits", "text", "killed_embed", "killed_call",
        "killed_batch", "half_swapped",
    ],
)  # fmt: skip
def test_files(home: Home, name: str) -> None:
    """Files of runs that ended, and of runs that were killed, hold what they held, and are open to the same people."""
    check(f"disk_{name}", home.found[name])


def test_spool(home: Home) -> None:
    """Spool lines carry their checksum, and one event of each kind has the fields that it had."""
    check("disk_spool", spool(home, home.state / "spool" / "done"))


def test_ledger(home: Home) -> None:
    """The ledger's tables, views, columns and migrations are those that others query."""
    check("disk_ledger", ledger(home.state / "usage.duckdb"))


def test_cache(home: Home) -> None:
    """The cache's tables are those that older versions share it by."""
    check("disk_cache", sqlite(home.state / "cache.sqlite"))
