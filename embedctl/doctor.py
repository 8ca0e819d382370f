"""What `doctor` looks at: everything that could be wrong here, one check each. Prints nothing, and costs nothing.

Keys are named, never shown.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, Locked, install_command
from embedctl.ledger.paths import LedgerPaths
from embedctl.runs.pending import pending
from embedctl.runs.registry import OPEN, RunRegistry
from embedctl.settings import Settings

State = Literal["ok", "note", "bad"]

LOW_DISK_BYTES = 200 << 20
"""Less free space than this will not do for a run."""

_LIBRARIES = ("duckdb", "pyarrow", "numpy", "onnxruntime", "tokenizers", "tiktoken", "httpx")
_EXTRAS = {
    "hub": ("huggingface_hub", "models pull"),
    "charts": ("matplotlib", "vectors map -o FILE.png"),
    "store": ("obstore", "embed s3://…"),
    "ray": ("ray", "batch run --engine ray"),
}
_PROXIES = ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        state: ok; note: good to know; bad: something does not work.
        hint: What to do about it.
        facts: The same as `detail`, for programs.
    """

    name: str
    state: State
    detail: str
    hint: str | None = None
    facts: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {"check": self.name, "state": self.state, "detail": self.detail, "hint": self.hint}
        return {**told, "facts": dict(self.facts or {})}


def unreadable_settings(error: EmbedctlError) -> list[Check]:
    """What can be said when there are no settings to look with."""
    return [version(), Check("settings", "bad", error.message, error.hint)]


def checks(settings: Settings, *, online: bool, now: datetime) -> Iterator[Check]:
    """Everything, one after the other; what cannot be looked at is bad, and ends nothing.

    Args:
        online: Also ask providers whether they answer, without a key and without a text.
    """
    looks: dict[str, Callable[[], Iterable[Check]]] = {
        "version": lambda: [version()],
        "home": lambda: folders(settings),
        "settings": lambda: [_settings(settings)],
        "model": lambda: [_model(settings)],
        "providers": lambda: _providers(settings, online=online, now=now),
        "remembered": lambda: [_hints(settings)],
        "cache": lambda: [_cache(settings)],
        "spool": lambda: [_spool(settings, now)],
        "ledger": lambda: [_ledger(settings, now)],
        "jobs": lambda: [_runs(settings)],
        "batches": lambda: _batches(settings),
        "extras": lambda: [extras()],
        "proxy": lambda: [_proxy(settings)],
    }
    for name, look in looks.items():
        try:
            yield from look()
        except EmbedctlError as error:
            yield Check(name, "bad", error.message, error.hint)


def version() -> Check:
    """What is installed."""
    libraries = {name: found for name in _LIBRARIES if (found := _version(name))}
    facts = {"embedctl": __version__, "python": platform.python_version(), "system": platform.system(), **libraries}
    return Check("version", "ok", ", ".join(f"{name} {number}" for name, number in facts.items()), facts=facts)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def folders(settings: Settings, *, low_bytes: int = LOW_DISK_BYTES) -> Iterator[Check]:
    """Where state goes: whether it can be written to, and how much room is left."""
    places = {"home": settings.paths.home, "ledger folder": settings.paths.ledger.absolute().parent}
    for name, path in places.items():
        there = _nearest(path)
        free = shutil.disk_usage(there).free
        facts = {"path": str(path), "exists": path.exists(), "free_bytes": free}
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            hint = "give yourself the right to write there, or set EMBEDCTL_HOME (or --ledger) to another place"
            yield Check(name, "bad", f"{path} cannot be written to", hint, facts)
        elif free < low_bytes:
            yield Check(name, "bad", f"{path}: only {free / 1e6:,.0f} MB are free", "free some space", facts)
        else:
            made = "" if path.exists() else ", made when it is needed"
            yield Check(name, "ok", f"{path} ({free / 1e9:,.1f} GB free{made})", facts=facts)


def _nearest(path: Path) -> Path:
    """The path itself, or the first folder above it that is there."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def _settings(settings: Settings) -> Check:
    files = [str(path) for path in settings.files]
    named = sorted(name for name in settings.environment if name.startswith("EMBEDCTL_"))
    facts = {"files": files, "variables": named, "unheeded": list(settings.unheeded)}
    told = ", ".join(files) or "no file (`embedctl config init` writes one)"
    told += f"; set: {', '.join(named)}" if named else ""
    if settings.misplaced:
        return Check("settings", "note", told, settings.misplaced, facts)
    if settings.unheeded:
        hint = "a project's file may only ask for less; your own settings, or a flag, may ask for more"
        return Check("settings", "note", "; ".join((told, *settings.unheeded)), hint, facts)
    return Check("settings", "ok", told, facts=facts)


def _model(settings: Settings) -> Check:
    from embedctl.routing import chain as chains
    from embedctl.routing.endpoint import check_usable

    try:
        chain = chains.chain(settings)
        check_usable(chain.first)
    except EmbedctlError as error:
        return Check("model", "bad", f"the default model cannot be used: {error.message}", error.hint)
    others = [endpoint.id for endpoint in chain.endpoints[1:]]
    facts = {"model": chain.first.id, "fallbacks": others, "from": settings.origins.get("model")}
    return Check("model", "ok", chain.first.id + (f", then {', '.join(others)}" if others else ""), facts=facts)


def _providers(settings: Settings, *, online: bool, now: datetime) -> Iterator[Check]:
    from embedctl.routing import status

    known = status.standings(settings, now_s=now.timestamp())
    answers = status.reachable(settings, known) if online else {}
    quiet = []
    for one in known:
        answer = answers.get(one.name)
        facts = {
            "key": one.key,
            "key_variables": list(one.key_variables),
            "circuit": one.circuit,
            "held_s": round(one.held_s),
            "reachable": answer,
        }
        name = f"provider {one.name}"
        keys = f"key {one.key}" if one.base_url else "runs here"
        keys += f" ({' or '.join(one.key_variables)})" if one.key == "missing" else ""
        used = one.configured or one.key == "set" or not one.base_url
        if one.problem:
            yield Check(name, "bad", one.problem, f"see [providers.{one.name}] in the settings", facts)
        elif one.configured and one.key == "missing":
            yield Check(name, "bad", keys, f"export {one.key_variables[0]}=…", facts)
        elif one.circuit != "closed" or one.held_s:
            said = f"left alone for {one.held_s:.0f} s" if one.held_s else f"circuit {one.circuit}"
            hint = f"it heals by itself; `embedctl providers reset {one.name}` forgets it now"
            yield Check(name, "bad", f"{said}: {one.reason}", hint, facts)
        elif answer not in (None, "yes", "here") and used:
            yield Check(name, "bad", f"{keys}, not reachable: {answer}", "check address, network and proxy", facts)
        elif used or answer == "yes":
            yield Check(name, "ok", keys + (", reachable" if answer == "yes" else ""), facts=facts)
        else:
            quiet.append(one.name)
    if quiet:
        yield Check("other providers", "ok", f"not set up: {', '.join(quiet)}", facts={"names": quiet})


def _hints(settings: Settings) -> Check:
    from embedctl.routing import learned

    path = settings.paths.home / "hints.json"
    known, complaint = learned.load(path)
    facts = {
        "holds": len(known.holds),
        "limits": len(known.limits),
        "floats_only": len(known.floats_only),
        "trusted": len(known.trusted),
    }
    if complaint:
        return Check("remembered", "note", complaint, f"remove {path}", facts)
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in facts.items() if count)
    return Check("remembered", "ok", told or "nothing", facts=facts)


def _cache(settings: Settings) -> Check:
    path = settings.paths.cache
    try:
        size = sum(one.stat().st_size for one in path.parent.glob(path.name + "*"))
    except OSError as error:
        return Check("cache", "note", f"{path} cannot be looked at: {error.strerror}", "`embedctl cache clear`")
    facts = {"path": str(path), "bytes": size, "max_bytes": settings.cache.max_bytes}
    told = f"{size / 1e6:,.1f} of {settings.cache.max_bytes / 1e6:,.0f} MB" if size else "empty"
    return Check("cache", "ok", told, facts=facts)


def _spool(settings: Settings, now: datetime) -> Check:
    from embedctl.ledger import spool

    try:
        waiting = spool.pending(settings.paths.spool)
        events = spool.pending_events(settings.paths.spool)
        oldest = min((path.stat().st_mtime for path in waiting), default=None)
    except FileNotFoundError:
        return Check("spool", "ok", "being taken in just now")
    except OSError as error:
        return Check("spool", "bad", f"{settings.paths.spool} cannot be read: {error.strerror}")
    facts = {"path": str(settings.paths.spool), "files": len(waiting), "events": events}
    if oldest is None:
        return Check("spool", "ok", "no event waits", facts=facts)
    hours = (now.timestamp() - oldest) / 3600
    state: State = "bad" if hours > 24 else "note"
    told = f"{events:,} events wait for the ledger, the oldest for {hours:.1f} hours"
    return Check("spool", state, told, "`embedctl usage ingest`", facts)


def _ledger(settings: Settings, now: datetime) -> Check:
    path = settings.paths.ledger
    if not path.exists():
        return Check("ledger", "ok", f"{path}: none yet", facts={"path": str(path), "exists": False})
    from embedctl.ledger import database  # duckdb

    facts: dict[str, Any] = {"path": str(path), "exists": True, "bytes": path.stat().st_size}
    paths = LedgerPaths(path, settings.paths.spool, settings.paths.price_file)
    try:
        with database.reader(paths, wait_s=0.5, now=now) as connection:
            row = connection.execute("SELECT count(*) FROM usage_event").fetchone()
    except Locked as busy:
        return Check("ledger", "note", busy.message, busy.hint, facts)
    except EmbedctlError as error:
        return Check("ledger", "bad", error.message, error.hint, facts)
    facts["events"] = int(row[0]) if row else 0
    if paths.rebuilding.exists():
        return Check("ledger", "note", f"{path} is being rebuilt", "`embedctl usage ingest` goes on with it", facts)
    many = "1 event" if facts["events"] == 1 else f"{facts['events']:,} events"
    return Check("ledger", "ok", f"{path}: {many}", facts=facts)


def _runs(settings: Settings) -> Check:
    found = [run for run in RunRegistry(settings.paths.runs).all() if run.output]
    running = [run for run in found if run.state in OPEN]
    latest: dict[str, Any] = {}
    for run in found:  # newest first
        latest.setdefault(run.output, run)
    stopped = [run for run in latest.values() if run.state == "interrupted"]
    facts = {
        "running": [{"run_id": str(run.run_id), "job": run.job_id, "output": run.output} for run in running],
        "interrupted": [{"run_id": str(run.run_id), "job": run.job_id, "output": run.output} for run in stopped],
    }
    told = f"{len(running)} running" + (f": {', '.join(run.output for run in running[:3])}" if running else "")
    if not stopped:
        return Check("jobs", "ok", told, facts=facts)
    names = ", ".join(run.output for run in stopped[:3]) + (", …" if len(stopped) > 3 else "")
    return Check("jobs", "note", f"{told}; {len(stopped)} interrupted: {names}", "the same command goes on", facts)


def _batches(settings: Settings) -> Iterator[Check]:
    """What is under way at providers; nothing where nothing is."""
    waiting = pending(settings.paths)
    if waiting is None:
        return
    until = "" if waiting.results_until is None else f"; to be collected by {waiting.results_until:%Y-%m-%d %H:%M} UTC"
    words = waiting.sentence().partition(": not included")[0] + until
    hint = "the same command collects them; `embedctl batch list --status waiting` names it"
    yield Check("batches", "note", words, hint, waiting.as_dict())


def extras(found: Callable[[str], Any] = util.find_spec) -> Check:
    """Optional parts that are not installed."""
    missing = {extra: used for extra, (module, used) in _EXTRAS.items() if found(module) is None}
    facts = {"missing": sorted(missing)}
    if not missing:
        return Check("extras", "ok", "all there", facts=facts)
    told = "; ".join(f"{extra} (for `embedctl {used}`)" for extra, used in missing.items())
    return Check("extras", "note", f"not installed: {told}", install_command(*missing), facts)


def _proxy(settings: Settings) -> Check:
    environment = settings.environment
    said = [name for name in environment if name.upper() in _PROXIES]
    if not said:
        return Check("proxy", "ok", "none", facts={"variables": []})
    from embedctl.backends.http.transport import Transport  # httpx

    url = "https://api.openai.com/v1"
    facts = {"variables": sorted(said)}
    try:
        used = Transport(connections=1, environ=environment).proxy(url)
    except EmbedctlError as error:
        return Check("proxy", "bad", error.message, error.hint, facts)
    told = f"{used}, from {', '.join(sorted(said))}" if used else f"none for other machines ({', '.join(sorted(said))})"
    return Check("proxy", "note" if used else "ok", told, facts={**facts, "proxy": used})
