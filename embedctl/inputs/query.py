"""Step 1, the rows of a query: DuckDB reads, in a child process, and its answer is streamed from there.

The child knows no keys, loads no extension and takes one statement that reads. A query that somebody else wrote (in a
JOB.toml) reaches files below that file's folder only; DuckDB itself follows links before it decides.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, InputMissing, Locked, StorageFailed, WrongUsage
from embedctl.inputs import arrow_rows
from embedctl.inputs.block import Block, ReadOptions
from embedctl.inputs.columns import Columns
from embedctl.storage import child as children

LABEL = "the query"
MEMORY_MB = 1024
"""DuckDB's; sorts and joins that need more go to the disk, below the system's temporary folder."""

ROWS_PER_BATCH = 2048
_REFUSED = 65
_MOST_WORDS = 4096

_AS_TEXT = ("TIME WITH TIME ZONE", "BIT", "BIGNUM", "VARINT")
"""DuckDB's types that Arrow has none for: their text is exact."""

_WHOLE = ("HUGEINT", "UHUGEINT")
"""Exact as DECIMAL(38,0); a number of more digits ends the query."""

_ONE = "one SELECT or FROM; nothing that writes, loads or sets"

_LOSSY = re.compile(r"TIME WITH TIME ZONE|\bBIT\b|BIGNUM|VARINT|UHUGEINT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One statement that reads.

    Attributes:
        attached: Name → DuckDB file, which is opened read only.
        folder: Where relative paths begin, and beyond which no file is read; None: the current folder, and any file.
    """

    sql: str
    attached: Mapping[str, Path] = field(default_factory=dict)
    folder: Path | None = None

    def fingerprint(self) -> dict[str, Any]:
        """What is known before it is asked: its words, not its answer."""
        return {"sql": self.sql, "attach": {name: str(path) for name, path in self.attached.items()}}


def asked(sql: str, attach: Mapping[str, str], *, folder: Path | None, attach_folder: Path | None) -> Query:
    """What a command or a job file asks for.

    Args:
        folder: Of the job file that holds the statement; None when it is the user's own word.
        attach_folder: Likewise of the file that names the databases.

    Raises:
        InputMissing: A database that is not there.
        InputInvalid: One that a job file may not reach.
    """
    attached = {}
    for name, path in attach.items():
        place = (attach_folder or Path()) / path
        real = Path(os.path.realpath(place))
        if attach_folder is not None and not real.is_relative_to(os.path.realpath(attach_folder)):
            raise InputInvalid(f"{path} is outside of {attach_folder}", hint="a job file reads below its own folder")
        if not real.is_file():
            raise InputMissing(f"no such database: {path}", hint="--attach NAME=PATH of a DuckDB file")
        attached[name] = real
    return Query(sql=sql, attached=attached, folder=folder)


def schema(query: Query) -> pa.Schema:
    """The columns of its answer.

    Raises:
        InputInvalid: It is no single statement that reads, or DuckDB refuses it.
    """
    with _answer(query, rows=False) as answer:
        return answer.schema


def blocks(query: Query, columns: Columns, options: ReadOptions) -> Iterator[Block]:
    """Rows of its answer, in order.

    Raises:
        InputInvalid: DuckDB could not go on.
    """
    first_row = 0
    with _answer(query, rows=True) as answer:
        for batch in answer:
            for block in arrow_rows.blocks(batch, first_row, columns, options, LABEL):
                yield block
                first_row += len(block)


@contextmanager
def _answer(query: Query, *, rows: bool) -> Iterator[pa.RecordBatchReader]:
    """The child's stream of batches; what it says of itself when that ends is an error of ours."""
    folder = Path.cwd() if query.folder is None else Path(os.path.realpath(query.folder))
    task = {
        "sql": query.sql,
        "attached": {name: str(path) for name, path in query.attached.items()},
        "only": None if query.folder is None else str(folder),
        "rows": rows,
    }
    child = subprocess.Popen(  # noqa: S603 - this Python, with our own words
        children.command("embedctl.inputs.query"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=children.environment(),
        start_new_session=True,  # Ctrl-C is this process's: it ends the child when it has stopped
    )
    assert child.stdin is not None  # noqa: S101 - they are pipes
    assert child.stdout is not None  # noqa: S101
    try:
        with suppress(BrokenPipeError):
            child.stdin.write(orjson.dumps(task) + b"\n")
            child.stdin.flush()
        try:
            reader = pa.ipc.open_stream(pa.PythonFile(child.stdout, "r"))
        except pa.ArrowInvalid:
            raise _said(child) from None
        try:
            yield reader
        except (pa.ArrowException, OSError):
            raise _said(child) from None
        while child.stdout.read(1 << 16):  # its end, where only the columns were asked for
            pass
        if child.wait() != 0:  # a stream that breaks off looks like one that ends
            raise _said(child)
    finally:
        child.kill()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        child.wait()


def _said(child: subprocess.Popen[bytes]) -> Exception:
    """Why the child ended."""
    assert child.stderr is not None  # noqa: S101 - it is a pipe
    words = child.stderr.read(1 << 20).decode("utf-8", "replace").strip()
    code = child.wait()
    if code == _REFUSED:
        with suppress(orjson.JSONDecodeError, KeyError, TypeError):
            found = orjson.loads(words.rpartition("\n")[2])
            kind = {"locked": Locked, "usage": WrongUsage}.get(found["error"], InputInvalid)
            return kind(found["message"], hint=found["hint"])
    return StorageFailed(f"the query's process ended with {code}: {words.rpartition(chr(10))[2][:200]}")


# ── in the child ─────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """The task from stdin, the answer as an Arrow stream to stdout; refusals as one line of JSON to stderr."""
    task = orjson.loads(sys.stdin.buffer.readline())
    spill = tempfile.mkdtemp(prefix="embedctl-query-")
    threading.Thread(target=_end_with_parent, args=(spill,), daemon=True).start()
    try:
        with children.answering() as out:
            refusal = _tried(task, spill, out)
    finally:
        shutil.rmtree(spill, ignore_errors=True)
    if refusal is not None:
        sys.stderr.buffer.write(orjson.dumps(refusal) + b"\n")
        sys.stderr.buffer.flush()
        os._exit(_REFUSED)
    os._exit(0)


def _end_with_parent(spill: str) -> None:
    """End when nobody holds the other end of stdin any more: the parent was killed."""
    while sys.stdin.buffer.read(1 << 10):
        pass
    shutil.rmtree(spill, ignore_errors=True)
    os._exit(1)


def _tried(task: dict[str, Any], spill: str, out: BinaryIO) -> dict[str, Any] | None:
    import duckdb

    try:
        with closing(_locked_down(task, spill)) as connection:
            _send(connection, task["sql"], out, rows=task["rows"])
    except InputInvalid as refused:
        return {"error": "input", "message": f"{LABEL}: {refused.message}", "hint": refused.hint}
    except BrokenPipeError:
        return {"error": "input", "message": f"{LABEL} was not waited for", "hint": None}
    except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
        return _translated(str(error), task["sql"])
    return None


def _locked_down(task: dict[str, Any], spill: str) -> Any:
    import duckdb

    connection = duckdb.connect(
        config={
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_persistent_secrets": "false",
            "memory_limit": f"{MEMORY_MB}MB",
            "temp_directory": spill,
            "threads": "2",
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")  # after two seconds it would be drawn, as for a notebook
    for name, path in task["attached"].items():
        connection.execute(f"ATTACH {_quoted(path)} AS {_name(name)} (TYPE duckdb, READ_ONLY)")
    if task["only"] is not None:
        connection.execute(f"SET allowed_directories = [{_quoted(task['only'].rstrip('/') + '/')}]")
        connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _send(connection: Any, sql: str, out: BinaryIO, *, rows: bool) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InputInvalid(f"one statement, not {len(statements)}", hint=_ONE)
    if statements[0].type != duckdb.StatementType.SELECT:
        what = str(statements[0].type).rpartition(".")[2]
        raise InputInvalid(f"{what} is no statement that only reads", hint=_ONE)
    relation = _relation(connection, statements[0].query)
    columns = [(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True)]
    for name, kind in columns:
        if not _is_plain(kind) and _LOSSY.search(kind):
            raise InputInvalid(f"column {name!r} is {kind}, which no Arrow type holds", hint="cast it in the query")
    shown = [_exact(place, name, kind) for place, (name, kind) in enumerate(columns, 1)]
    if any(shown_as != f"#{place} AS {_name(columns[place - 1][0])}" for place, shown_as in enumerate(shown, 1)):
        relation = relation.project(", ".join(shown))
    if not rows:
        relation = relation.limit(0)
    read = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
    uuids = [at for at, (_, kind) in enumerate(columns) if kind == "UUID"]
    reader = read(ROWS_PER_BATCH)
    sent = reader.schema
    for at in uuids:
        sent = sent.set(at, pa.field(sent.field(at).name, pa.uuid()))
    with pa.PythonFile(out, "w") as sink, pa.ipc.new_stream(sink, sent) as stream:
        for batch in reader:
            stream.write_batch(_with_uuids(batch, sent, uuids))


def _relation(connection: Any, sql: str) -> Any:
    import duckdb

    try:
        return connection.sql(sql)
    except duckdb.Error:
        connection.execute(sql)  # the same error, and the line
        raise


def _is_plain(kind: str) -> bool:
    return kind in _AS_TEXT or kind in _WHOLE


def _exact(place: int, name: str, kind: str) -> str:
    """A column as Arrow holds it without loss."""
    what = f"#{place}"
    if kind in _AS_TEXT:
        what = f"CAST(#{place} AS VARCHAR)"
    elif kind in _WHOLE:
        what = f"CAST(#{place} AS DECIMAL(38,0))"
    elif kind == "UUID":
        what = f"CAST(#{place} AS BLOB)"
    return f"{what} AS {_name(name)}"


def _with_uuids(batch: pa.RecordBatch, out: pa.Schema, uuids: list[int]) -> pa.RecordBatch:
    columns = list(batch.columns)
    for at in uuids:
        columns[at] = pa.ExtensionArray.from_storage(pa.uuid(), columns[at].cast(pa.binary(16)))
    return pa.RecordBatch.from_arrays(columns, schema=out)


def _line(words: str, sql: str) -> int | None:
    """The line that DuckDB shows; it counts those that it put around the query itself too."""
    shown = re.search(r"^LINE (\d+): (?:\.\.\.)?(.*?)(?:\.\.\.)?$", words, re.MULTILINE)
    if shown is None:
        return None
    alike = [number for number, line in enumerate(sql.splitlines(), 1) if shown[2].strip() in line]
    return int(shown[1]) if int(shown[1]) in alike else alike[0] if len(alike) == 1 else None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _translated(words: str, sql: str) -> dict[str, Any]:
    """DuckDB's words in one line, with the line of the query where it names one."""
    line = _line(words, sql)
    message = " ".join(words.partition("\n\n")[0].split())[:_MOST_WORDS]
    where = f"{LABEL}, line {line}" if line else LABEL
    if "Could not set lock" in words:
        return {"error": "locked", "message": f"{where}: {message}", "hint": "another process writes that database"}
    hint = None
    if "operations are disabled by configuration" in words:
        hint = "a job file's query reads below the folder of that file"
    elif "extension" in words.lower():
        hint = "no extension is loaded or fetched: name local files, or --attach NAME=PATH"
    return {"error": "input", "message": f"{where}: {message}", "hint": hint}
