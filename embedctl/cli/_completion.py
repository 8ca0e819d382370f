"""What a shell is offered where a name is to be typed: from the catalog, the settings and the registry of runs.

No network, no ledger, no word about what is wrong: who presses Tab has not asked. What each function needs is imported
when Tab is pressed. Only names that no shell reads anything into are offered: they end up in an `eval`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING

from embedctl.errors import EmbedctlError

if TYPE_CHECKING:
    from pathlib import Path

    from embedctl.runs.registry import RunEntry
    from embedctl.settings import Settings

VARIABLE = "_EMBEDCTL_COMPLETE"
"""Set by the script of `--show-completion`, to "complete_SHELL"."""

BY = (
    "day", "week", "month", "workspace", "provider", "model", "job", "run", "tier", "source", "status", "purpose",
    "tag:",
)  # fmt: skip
"""`reports.query.KEYS`, which would bring DuckDB with it."""

LAST = ("today", "yesterday", "wtd", "mtd", "week", "month", "24h", "7d", "30d", "4w", "3m", "12m")

_PLAIN = re.compile(r"[\w.@:/-]+")


def models(incomplete: str) -> list[str]:
    """PROVIDER:NAME of the catalog's models, the settings' and the pulled ones; bare names when no provider fits."""
    from embedctl.providers import catalog
    from embedctl.storage import paths_in

    served = [one for one in catalog.models() if one.served and one.status != "retired"]
    names = [one.id for one in served]
    if settings := _settings():
        for provider, place in settings.providers.items():
            names += [f"{provider}:{name}" for name in (*place.models, *([place.model] if place.model else []))]
        with contextlib.suppress(EmbedctlError):
            names += [_pulled(path) for path in paths_in(settings.paths.models) if path.is_dir()]
    return _fitting(names, incomplete) or _fitting([one.name for one in served], incomplete)


def _pulled(path: Path) -> str:
    """A pulled model as it is named."""
    from embedctl.backends import local

    try:
        protocol = local.protocol_of(path)
    except EmbedctlError:
        protocol = "onnx"
    return f"{protocol}:{path.name.replace('--', '/')}"


def providers(incomplete: str) -> list[str]:
    """Built-in providers, and those of the settings."""
    from embedctl.providers import catalog

    settings = _settings()
    return _fitting([*catalog.providers(), *(settings.providers if settings else ())], incomplete)


def workspaces(incomplete: str) -> list[str]:
    """Workspaces of the settings, and those that runs were charged to."""
    settings = _settings()
    listed = [*settings.workspaces, settings.options.workspace] if settings else []
    return _fitting(["default", *listed, *(run.workspace_id for run in _runs())], incomplete)


def jobs(incomplete: str) -> list[str]:
    """Jobs that have run."""
    return _fitting((run.job_id for run in _runs() if run.output), incomplete)


def jobs_and_runs(incomplete: str) -> list[str]:
    """Jobs that have run; ids of runs where no job fits."""
    return jobs(incomplete) or _fitting((str(run.run_id) for run in _runs() if run.output), incomplete)


def by(incomplete: str) -> list[str]:
    """What reports can be grouped by, behind the keys that stand there already."""
    before, comma, _ = incomplete.rpartition(",")
    given = before.split(",")
    return _fitting((f"{before}{comma}{key}" for key in BY if key not in given), incomplete, also=",")


def last(incomplete: str) -> list[str]:
    """Times that --last knows."""
    return _fitting(LAST, incomplete)


def _fitting(names: Iterable[str], incomplete: str, also: str = "") -> list[str]:
    """Each name once that begins with what was typed, and holds letters, digits and plain signs only."""
    plain = (name for name in names if name.startswith(incomplete))
    return [name for name in dict.fromkeys(plain) if _PLAIN.fullmatch(name.replace(also, "") if also else name)]


def _settings() -> Settings | None:
    """What the user has set; None when it cannot be read."""
    from embedctl import settings

    try:
        return settings.load()
    except (EmbedctlError, OSError):
        return None


def _runs() -> list[RunEntry]:
    """All runs, newest first; none when they cannot be read."""
    from embedctl.runs.registry import RunRegistry

    settings = _settings()
    try:
        return RunRegistry(settings.paths.runs).all() if settings else []
    except (EmbedctlError, OSError):
        return []


# ── shells that split a word at its colons ───────────────────────────────────────────────────────────────────────────


def answer(run: Callable[[], None]) -> None:
    """Let `run` answer the shell that asks.

    bash hands `openai:te` over as three words, and wants what belongs behind the last colon.
    """
    typed = _join_colons(os.environ) if os.environ[VARIABLE] == "complete_bash" else ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run()
    finally:
        for line in said.getvalue().splitlines(keepends=True):
            sys.stdout.write(line.removeprefix(typed))


def _join_colons(environment: MutableMapping[str, str]) -> str:
    """Put words together that bash split at colons, in COMP_WORDS and COMP_CWORD, and part flags from their `=`.

    Returns:
        Of the word that is being typed, all up to its last colon.
    """
    words, current = environment.get("COMP_WORDS", "").split("\n"), int(environment.get("COMP_CWORD", "0"))
    joined: list[str] = []
    at, glue = current, False
    for index, word in enumerate(words):
        if word == "=" and joined and joined[-1].startswith("--"):
            at -= index < current
            joined += [""] if index == current else []
            continue
        is_part = bool(joined) and (glue or word == ":") and not joined[-1].startswith("-")
        if is_part:
            joined[-1] += word
            at -= index <= current
        else:
            joined.append(word)
        glue = is_part and word == ":"
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(joined), str(at)
    if len(joined) == len(words) or at >= len(joined):
        return ""
    return joined[at][: joined[at].rfind(":") + 1]
