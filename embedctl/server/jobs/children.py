"""Child processes of a job: what they are told, what of the environment they see, how they end.

No secret stands among their arguments, which everybody on the machine may read: keys come in the environment, and of
those only the ones of providers that the job may ask.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import orjson

from embedctl import providers, storage
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, EmbedctlError
from embedctl.providers import catalog
from embedctl.routing import chain as chains
from embedctl.routing import credentials
from embedctl.settings import ProviderSettings, Settings
from embedctl.storage import locks

_SEEN = frozenset(
    "PATH HOME USER LOGNAME LANG TZ TMPDIR PYTHONPATH VIRTUAL_ENV SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE "  # noqa: SIM905
    "REQUESTS_CA_BUNDLE HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY TIKTOKEN_CACHE_DIR HF_HOME HF_HUB_CACHE "
    "OMP_NUM_THREADS COVERAGE_PROCESS_START".split()
)
_SEEN_BEGINNINGS = ("EMBEDCTL_", "LC_", "XDG_", "OTEL_")
_MOST_SAID = 1 << 20

Form = Literal["parquet", "jsonl", "base64"]
"""How a result is shown."""

OUTPUT = "out"
"""The folder of a job's vectors, in its own."""


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """A child that has ended.

    Attributes:
        code: Its exit code; negative: of the signal that ended it.
        said: The JSON object that it printed; empty where it printed none.
        complained: The sentence of the last error on its stderr.
    """

    code: int
    said: Mapping[str, Any]
    complained: str


def environment(settings: Settings, provider: str, model: str) -> dict[str, str]:
    """What a job's child sees of the server's environment: the keys of those whom it may ask, and no other secret."""
    env = settings.environment
    names = {name for name in env if name.upper() in _SEEN or name.startswith(_SEEN_BEGINNINGS)}
    for one in _providers(settings, provider, model):
        own = settings.providers.get(one, ProviderSettings())
        words = [*credentials.key_variables(settings, one), *_addresses(settings, one)]
        words += [own.jwt_secret_env] if own.jwt_secret_env else []
        names |= {name for word in words for name in (word, f"{word}_FILE") if name in env}
    return {name: env[name] for name in sorted(names)}


def _providers(settings: Settings, provider: str, model: str) -> list[str]:
    """Who may be asked for a model: its provider, and who may take over."""
    asking = replace(settings, options=replace(settings.options, model=f"{provider}:{model}", provider=None))
    found = [provider]
    with suppress(EmbedctlError):
        chain = chains.chain(asking)
        found += [one.provider for one in chain.endpoints]
        chain.close()
    return [*dict.fromkeys(found)]


def _addresses(settings: Settings, provider: str) -> tuple[str, ...]:
    """Variables that say where a provider is."""
    own, built_in = settings.providers.get(provider, ProviderSettings()), catalog.providers().get(provider)
    name = own.protocol or (built_in.protocol if built_in else None)
    with suppress(ConfigurationInvalid):
        return providers.protocol(name).BASE_URL_VARIABLES if name else ()
    return ()


def command(*words: str) -> list[str]:
    """A command of embedctl; nothing in the current folder takes the place of a module of ours."""
    return [sys.executable, "-P", "-m", "embedctl", *words]


def program(name: str, *words: str) -> list[str]:
    """A short program of jobs; see `__main__`."""
    return [sys.executable, "-P", "-m", "embedctl.server.jobs", name, *words]


class Child:
    """One child process. It has its own session: what ends the server ends no job in the middle."""

    def __init__(self, process: asyncio.subprocess.Process, said: Path, log: Path, mark: Path | None) -> None:
        self._process = process
        self._mark = mark
        self._said = said
        self._log = log
        self._asked_to_stop = False

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], said: Path, log: Path, *, mark: Path | None = None
    ) -> Child:
        """Start it.

        Args:
            said, log: Files of its stdout, made anew, and of its stderr, which grows.
            mark: A file that is locked as long as it lives, and says which process it is.

        Raises:
            OSError: It cannot be started, or another one lives under this mark.
        """
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        err = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        held: list[int] = []
        try:
            if mark is not None:
                held.append(os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
                fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)  # the child has it, too: it ends with the last one
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=held,
            )
            for fd in held:
                os.ftruncate(fd, 0)
                os.pwrite(fd, orjson.dumps({"pid": process.pid}), 0)
        finally:
            for fd in (out, err, *held):
                os.close(fd)
        return cls(process, said, log, mark)

    async def wait(self) -> ChildEnd:
        """How it ended."""
        code = await self._process.wait()
        return await asyncio.to_thread(ended, code, self._said, self._log)

    def ask_to_stop(self) -> None:
        """End it as Ctrl-C would: what it has asked for is kept. Once: a second signal would end it at once."""
        if self._asked_to_stop:
            return
        self._asked_to_stop = True
        if self._mark is not None:
            _note_asked(self._mark, self._process.pid)
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once; that is safe, too."""
        with suppress(ProcessLookupError):
            self._process.kill()


def result_name(form: Form) -> str:
    """Of the file in a job's folder that shows its result so."""
    return "result.parquet" if form == "parquet" else f"result.{form}.jsonl"


def ended(code: int, said: Path, log: Path) -> ChildEnd:
    """How a child ended that wrote these files."""
    return ChildEnd(code, _object(said), _complaint(log))


def mark_of(folder: Path) -> Path:
    """Locked while a child lives that runs this job."""
    return folder / "child.lock"


def is_at_work(folder: Path) -> bool:
    """Whether a child lives that runs this job, whoever started it."""
    return locks.is_held(mark_of(folder))


def stop_foreign(folder: Path) -> None:
    """Ask a child to stop that another server has started; only while it lives, and once, whoever asked."""
    path = mark_of(folder)
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = orjson.loads(storage.read_small(path, max_bytes=_MOST_SAID, follow=False))
        pid = int(said["pid"])
        if pid > 1 and not said.get("asked") and locks.is_held(path):
            _note_asked(path, pid)
            os.kill(pid, signal.SIGTERM)


def _note_asked(mark: Path, pid: int) -> None:
    """Say beside a child's number that it was asked to stop: the server that comes back must not ask again."""
    with suppress(OSError):
        fd = os.open(mark, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(fd, orjson.dumps({"pid": pid, "asked": True}), 0)
        finally:
            os.close(fd)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = orjson.loads(storage.read_small(path, max_bytes=_MOST_SAID, follow=False))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _complaint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
