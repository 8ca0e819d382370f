"""Short programs of jobs: they take Arrow, DuckDB or their time, and a service serves without them in its memory.

python -m embedctl.server.jobs read JOB_FOLDER CONTENT                  prints {"errors": […]} or {"model": …, …}
python -m embedctl.server.jobs write JOB_FOLDER REASON                  prints {"completed": N, "failed": N}
python -m embedctl.server.jobs results JOB_FOLDER parquet|jsonl|base64
python -m embedctl.server.jobs search ASKED_FILE                        prints {"results": […]}
python -m embedctl.server.jobs accounts [--config=FILE] [--ledger=FILE] JOB...      prints {JOB: {…}}
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import orjson

from embedctl.errors import EmbedctlError, StorageFailed, WrongUsage
from embedctl.runs import memory
from embedctl.server.jobs.children import Form


def _said(words: list[str]) -> Any:
    """What a program has to say; each loads what it needs alone."""
    match words:
        case ["read", folder, content]:
            from embedctl.server.jobs import batch_lines

            return batch_lines.read(Path(folder), Path(content))
        case ["write", folder, reason]:
            from embedctl.server.jobs import batch_lines

            return batch_lines.write(Path(folder), reason)
        case ["results", folder, form] if form in get_args(Form):
            from embedctl.server.jobs import results

            return results.make(Path(folder), form)  # type: ignore[arg-type]
        case ["search", asked]:
            from embedctl.server.jobs import search

            found = orjson.loads(Path(asked).read_bytes())
            return {"results": search.nearest(found["folders"], found["query"], found["count"])}
        case ["accounts", *more]:
            from embedctl import settings
            from embedctl.server.jobs import accounts

            flags = {name: Path(value) for name, _, value in (word.partition("=") for word in more if word[:2] == "--")}
            loaded = settings.load(config=flags.get("--config"), ledger=flags.get("--ledger"))
            return accounts.costs(loaded, [word for word in more if word[:2] != "--"])
    raise WrongUsage("no such program of a job")


def main(words: list[str]) -> int:
    """Run one; its exit code."""
    try:
        said = _said(words)
    except EmbedctlError as problem:
        sys.stderr.write(f"error: {problem.message}\n")
        return problem.exit_code
    except OSError as problem:
        sys.stderr.write(f"error: {problem.strerror}\n")
        return StorageFailed.exit_code
    if said is not None:
        sys.stdout.buffer.write(orjson.dumps(said))
    return 0


if __name__ == "__main__":
    memory.leave_pandas_out()
    sys.exit(main(sys.argv[1:]))
