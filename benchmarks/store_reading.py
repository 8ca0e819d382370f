"""What reading an input from a store costs beside reading it from a disk: CPU seconds of a process that only reads.

    python benchmarks/store_reading.py --store s3 --rounds 5

Every shape is about --mb of text, in a file whose pages the system keeps, and an object of the Rust store
of benchmarks/server. What a process of one row takes is taken away from both; of several rounds, the least counts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from store import SERVERS, Server, measured, reached, started

READ = """
import sys
from embedctl.inputs import ReadOptions, open_input
print(sum(len(block) for block in open_input([sys.argv[1]], ReadOptions()).blocks()))
"""
WORDS_EACH = 60
GROUP_ROWS = 20_000
PER_TEXT_FILE = 400_000
"""Bytes of a file, and of a row, of a text folder."""


def texts(count: int) -> list[str]:
    """Texts of some words, no two alike."""
    random = np.random.default_rng(7)
    words = np.array([f"{chr(97 + at % 26)}{'etaoinshrdlu'[: 2 + at % 9]}{at % 97}" for at in range(4096)])
    chosen = words[random.integers(0, len(words), (count, WORDS_EACH))]
    return [f"{number} {' '.join(row)}" for number, row in enumerate(chosen)]


def shapes(folder: Path, size_bytes: int) -> dict[str, Path]:
    """Files, or folders of files, by what they are called."""
    one = texts(1000)
    count = size_bytes // (sum(map(len, one)) // len(one))
    table = pa.table({"id": range(count), "text": texts(count)})
    tiny = table.slice(0, 1)
    found: dict[str, Path] = {}

    def add(name: str, suffix: str, write: Callable[[pa.Table, Path], object]) -> None:
        for kind, content in (("", table), ("tiny", tiny)):
            path = folder / f"{len(found)}{kind}{suffix}"
            write(content, path)
            found[f"{name}{kind}"] = path

    add("Parquet, row groups of 8 MB", ".parquet", lambda of, at: pq.write_table(
        of, at, row_group_size=GROUP_ROWS, use_dictionary=False
    ))  # fmt: skip
    add("Parquet, one row group", ".parquet", lambda of, at: pq.write_table(
        of, at, row_group_size=1 << 30, use_dictionary=False
    ))  # fmt: skip
    add("Parquet, one row group, plain", ".parquet", lambda of, at: pq.write_table(
        of, at, row_group_size=1 << 30, use_dictionary=False, compression="none"
    ))  # fmt: skip
    add("CSV", ".csv", pc.write_csv)
    add("JSON Lines", ".jsonl", lambda of, at: at.write_text(
        "".join(f"{json.dumps(row)}\n" for row in of.to_pylist())
    ))  # fmt: skip
    add("text folder", "", _text_folder)
    return found


def _text_folder(of: pa.Table, at: Path) -> None:
    at.mkdir()
    whole = "\n".join(of["text"].to_pylist())
    for start in range(0, len(whole), PER_TEXT_FILE):
        (at / f"{start:012}.txt").write_text(whole[start : start + PER_TEXT_FILE])


def put(store: Server, path: Path, folder: Path) -> None:
    """Make an object of each file."""
    asked = http.client.HTTPConnection(store.root.removeprefix("http://"))
    for one in sorted(path.iterdir()) if path.is_dir() else [path]:
        asked.request("PUT", f"/bucket/{one.relative_to(folder)}", one.read_bytes())
        asked.getresponse().read()
    asked.close()


def main() -> None:
    """Interleaved rounds, then the least of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=("s3", "gs"), default="s3")
    parser.add_argument("--mb", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8141)
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=SERVERS, check=True)
    folder = Path(tempfile.mkdtemp())
    taken: dict[tuple[str, bool], list[float]] = {}
    try:
        with started("mockstore", args.port) as store:
            found = shapes(folder, args.mb << 20)
            for path in found.values():
                put(store, path, folder)
            environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **reached(args.store, store)}
            for _ in range(args.rounds):
                for name, path in found.items():
                    below = f"{path.name}/" if path.is_dir() else path.name
                    for is_stored, place in ((False, str(path)), (True, f"{args.store}://bucket/{below}")):
                        cpu, _, _ = measured([sys.executable, "-c", READ, place], environment, folder)
                        taken.setdefault((name, is_stored), []).append(cpu)
    finally:
        shutil.rmtree(folder)
    print(f"{'':32}{'disk':>8}{'store':>8}{'x':>7}   CPU s")
    for name in found:
        if not name.endswith("tiny"):
            disk, stored = (min(taken[name, one]) - min(taken[f"{name}tiny", one]) for one in (False, True))
            print(f"{name:32}{disk:8.2f}{stored:8.2f}{stored / disk:7.2f}")


if __name__ == "__main__":
    main()
