"""`embedctl serve`: built, started, kept up to date, drained and closed. The only place that knows uvicorn's server."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from embedctl import storage
from embedctl.budgets.limits import KeyBudget
from embedctl.dataclass import dataclass
from embedctl.embedding.call import Embedder
from embedctl.embedding.router import Router
from embedctl.embedding.usage_events import Caller
from embedctl.errors import ConfigurationInvalid, EmbedctlError, Locked, ProviderError, QuotaExhausted
from embedctl.records import Observer, Observers, utc_now
from embedctl.routing.breaker import Thresholds
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.learned_file import QUOTA_HOLD_S
from embedctl.routing.limiter import AdaptiveLimiter, FairTurn, Limiter
from embedctl.runs import foundations
from embedctl.server import app as apps
from embedctl.server import keys, recovered, shifts
from embedctl.server.admission import AdmissionQueue, KeyRates
from embedctl.server.authentication import Client, DefaultRates, Failures, Keyring
from embedctl.server.connections import protocol
from embedctl.server.gateway import Gateway
from embedctl.server.jobs import routes as job_routes
from embedctl.server.jobs.queue import JobQueue
from embedctl.server.jobs.store import JobStore
from embedctl.server.jwt_tokens import Verifier
from embedctl.server.log import AccessLog, take_libraries
from embedctl.server.metrics import Metrics
from embedctl.server.metrics_page import MetricsPage
from embedctl.server.served_routes import ServedRoutes
from embedctl.server.shifts import Shift
from embedctl.server.state import ServerState
from embedctl.server.turns import current_key
from embedctl.settings import Settings
from embedctl.storage import locks
from embedctl.storage.token_count_cache import RunCounts, count_store
from embedctl.storage.vector_cache import VectorCache
from embedctl.telemetry import collector

LOOK_S = 0.5
"""How often the key file and wishes of other commands are looked at: a revoked key ends within a second."""

SHIFT_S = 3600.0
"""How long a shift lasts at most, with budgets: so long what a restored or corrected ledger says goes unseen."""

_REVIVE_S = 300.0
_SHIFT_AGAIN_S = 60.0
_ADMIN_ID = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where and how it listens.

    Attributes:
        certificate, key: Files, for https.
        behind_tls: TLS ends in front of it.
        metrics: Host and port where nothing but the metrics is told, to whoever asks; None: nowhere.
    """

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    behind_tls: bool = False
    metrics: tuple[str, int] | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def keyring(settings: Settings) -> Keyring:
    """Everybody who may ask, as files and environment have it now.

    Raises:
        ConfigurationInvalid: The key file or the token's secret is not as it should be.
    """
    serve = settings.serve
    single = settings.environment.get("SINGLE_USER_API_KEY")
    return Keyring(
        keys=keys.load(settings.paths.keys),
        single=keys.digest(single) if single else None,
        verifier=Verifier.of(serve.jwt, settings.environment) if serve.jwt is not None else None,
        workspace=settings.options.workspace,
        rates=DefaultRates.of(settings.environment),
        key_in_flight=serve.key_in_flight,
        require_x_api_key=serve.require_x_api_key,
    )


def check_reachable(listening: Listening, ring: Keyring) -> None:
    """Refuse to serve strangers.

    Raises:
        ConfigurationInvalid: Others than this machine could ask, and nobody could tell who they are.
    """
    if not listening.is_loopback and ring.is_empty:
        raise ConfigurationInvalid(
            f"{listening.host} can be reached by others, and there is no key",
            hint="`embedctl keys create --workspace NAME`, or [serve.jwt]; or listen on 127.0.0.1",
        )


class Service:
    """One server process.

    Args:
        load: Reads all settings anew.
        ready: Told the address once requests are taken.
        flags: `--config` and `--ledger`, for its jobs' processes.

    Attributes:
        exit_code: By the signal that ended it.
    """

    def __init__(
        self,
        load: Callable[[], Settings],
        listening: Listening,
        *,
        log: AccessLog,
        ready: Callable[[str], None],
        flags: Sequence[str] = (),
    ) -> None:
        self._load = load
        self._flags = flags
        self._listening = listening
        self._log = log
        self._ready = ready
        self._settings = load()
        self._ring = self._with_local(keyring(self._settings))
        check_reachable(listening, self._ring)
        self._metrics = Metrics()
        self._observer: Observer = Observers(log, self._metrics)
        self._disk = shifts.TimedDisk(self._metrics.synced)
        self._shift: Shift | None = None
        self._asked: Router | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._ending: set[Shift] = set()
        self._shift_began = 0.0
        self._soon: float | None = None
        self._keys_seen: tuple[int, int] | None = None
        self._budgets_seen: tuple[int, int] | None = None
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self.exit_code = 143

    def _with_local(self, ring: Keyring) -> Keyring:
        if not self._listening.is_loopback:
            return ring
        return ring.with_local(Client(id=_ADMIN_ID, workspace=self._settings.options.workspace, role="admin"))

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            EmbedctlError: It cannot begin.
        """
        take_libraries(self._log)
        bound = await asyncio.to_thread(_bound, self._listening.host, self._listening.port)
        async with AsyncExitStack() as stack:
            stack.callback(bound.close)
            stack.enter_context(await asyncio.to_thread(self._locked, bound))
            state = await stack.enter_async_context(self._opened())
            queue = self._jobs(state)
            await queue.open()
            stack.push_async_callback(queue.close, self._settings.serve.drain_s)
            if self._listening.metrics is not None:
                told = await asyncio.to_thread(_bound, *self._listening.metrics)
                stack.callback(told.close)
                await self._serving(stack, MetricsPage(state.prometheus, told), told)
                self._log.say("metrics", address=_address(told, "http"))
            application = apps.app(state, job_routes.routes(state, queue))
            server, serving = await self._serving(stack, application, bound, self._listening)
            with self._signals():
                state.starting = False
                self._ready(_address(bound, "https" if self._listening.certificate else "http"))
                keeping = asyncio.create_task(self._keep(state))
                try:
                    await self._stop.wait()
                    queue.stop()
                    await self._drain(state, server, serving)
                finally:
                    keeping.cancel()

    async def _serving(
        self, stack: AsyncExitStack, application: Any, bound: socket.socket, tls: Listening | None = None
    ) -> tuple[_Server, asyncio.Task[None]]:
        """An application that takes requests now, until the stack is closed."""
        serve = self._settings.serve
        config = uvicorn.Config(
            application,
            http=protocol(serve, job_routes.UPLOADS),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(serve.idle_s)),
            timeout_graceful_shutdown=max(1, round(serve.drain_s)),
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        stack.push_async_callback(self._ended, server, serving)
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if serving.done():
            serving.result()
        return server, serving

    def _jobs(self, state: ServerState) -> JobQueue:
        asked = self._settings.serve.jobs
        root = Path(asked.folder) if asked.folder else self._settings.paths.home / "jobs"
        store = JobStore(root, keep_s=asked.keep_days * 86_400)
        return JobQueue(store, lambda: state.settings, lambda: state.keyring, self._log, self._flags)

    async def _ended(self, server: _Server, serving: asyncio.Task[None]) -> None:
        server.should_exit = True
        with suppress(Exception):
            await serving

    def _locked(self, bound: socket.socket) -> locks.Lock:
        """One server for a state folder and port."""
        folder = self._settings.paths.home / "serve"
        storage.DISK.make_folder(folder)
        return locks.hold(folder / f"{bound.getsockname()[1]}.lock", command="embedctl serve")

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[ServerState]:
        """Everything that requests share, closed in the opposite order."""
        settings, log = self._settings, self._log
        async with AsyncExitStack() as stack:
            self._observer = stack.enter_context(
                collector.watched(settings.environment, self._observer, self._metrics.price)
            )
            cache = None
            if settings.serve.cache != "off":
                kept = settings.cache
                cache = VectorCache(
                    settings.paths.cache, max_bytes=kept.max_bytes, ttl_days=kept.ttl_days, observer=log
                )
                stack.callback(cache.close)
                await asyncio.to_thread(cache.open)
            await asyncio.to_thread(
                recovered.quietly, settings, cache, self._scope, lambda text: log.say("recovered", message=text)
            )
            await self._open_shift(self._ring)
            stack.push_async_callback(self._close_shift)
            router = self._asked = self._router(settings)
            self._metrics.circuits_of(router.snapshots)
            embedder = Embedder(router, observer=self._observer, keep_bodies=False)
            stack.push_async_callback(embedder.aclose)
            counts = self._counts(settings)
            stack.callback(counts.close)
            if counts.shared is not None:
                self._metrics.counts_in(counts.shared)
            rates = KeyRates()
            gateway = Gateway(
                embedder,
                ServedRoutes(settings, router, counts, lambda text: log.say("chain", message=text), self._observer),
                cache,
                rates,
                shift=self._current,
                scope=self._scope,
                serve=settings.serve,
                bug=log.bug,
                coalesced=self._metrics.coalesced,
            )
            stack.push_async_callback(self._drained, gateway)
            yield ServerState(
                gateway=gateway,
                router=router,
                admission=AdmissionQueue(
                    most=settings.serve.in_flight,
                    most_bytes=settings.serve.bytes_in_flight,
                    queue=settings.serve.queue,
                ),
                rates=rates,
                failures=Failures(),
                keyring=self._ring,
                log=log,
                metrics=self._metrics,
                cache=cache,
                prices=lambda: self._current().prices,
                journals=lambda: [one.journal for one in (*self._ending, self._shift) if one is not None],
                loopback=self._listening.is_loopback,
                behind_tls=self._listening.behind_tls,
                disk_trouble=self._disk_trouble,
            )

    def _scope(self, space_id: str, workspace: str) -> str:
        """Whose vectors are whose: else a hit would tell that somebody else has embedded this text."""
        return space_id if self._settings.serve.cache == "shared" else f"{space_id}/{workspace}"

    def _router(self, settings: Settings) -> Router:
        deadline_s = settings.serve.deadline_s

        def limiter(endpoint: Endpoint, waiting: Callable[[float], None]) -> Limiter:
            turn = FairTurn(current_key)
            return AdaptiveLimiter(endpoint.rate_limits, longest_gate_s=deadline_s, waiting=waiting, turn=turn)

        return foundations.server_router(settings, self._observer, limiter, Thresholds(revive_s=_revived_after_s))

    def _counts(self, settings: Settings) -> RunCounts:
        asked, log = settings.token_usage, self._log
        return RunCounts(count_store(asked.cache, settings.paths.cache, ttl_s=asked.cache_ttl_s, observer=log))

    def _disk_trouble(self) -> str | None:
        shift = self._shift
        return "storage failed" if shift is None or shift.journal.failed else None

    # shifts

    def _current(self) -> Shift:
        if self._shift is None:
            raise Locked("the server is starting or stopping")
        return self._shift

    async def _open_shift(self, ring: Keyring) -> None:
        """From now on accounts go on in a new shift; the old one is closed when its calls have ended."""
        before = self._shift
        self._shift = await asyncio.to_thread(shifts.opened, self._settings, _key_budgets(ring), self._log, self._disk)
        self._metrics.prices = self._shift.prices
        self._shift_began = time.monotonic()
        self._budgets_seen = _seen(foundations.ledger_paths(self._settings).limits)
        if before is not None:
            task = asyncio.create_task(self._close(before))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, shift: Shift) -> None:
        self._ending.add(shift)
        try:
            await shift.close(self._charge_idle)
        except EmbedctlError as problem:
            self._log.say("shift_not_closed", message=problem.message)
        finally:
            self._ending.discard(shift)

    async def _charge_idle(self, shift: Shift) -> None:
        """What machines that cost by the hour came to beside the calls: the service's own workspace pays."""
        if self._asked is not None:
            caller = Caller(run_id=shift.run_id, workspace_id=self._settings.options.workspace)
            await foundations.charge_idle(self._asked, caller, shift.journal, shift.money, self._metrics)

    async def _close_shift(self) -> None:
        shift, self._shift = self._shift, None
        if self._closing:
            await asyncio.wait(self._closing, timeout=5)
        if shift is not None and not shift.calls:
            await self._close(shift)

    def _is_shift_over(self) -> bool:
        shift = self._shift
        if shift is None:
            return False
        now = time.monotonic()
        if shift.journal.failed and now - self._shift_began > _SHIFT_AGAIN_S:
            return True
        if self._soon is not None and now >= self._soon:
            return True
        if _seen(foundations.ledger_paths(self._settings).limits) != self._budgets_seen:
            return True
        return shift.ends is not None and (utc_now() >= shift.ends or now - self._shift_began >= SHIFT_S)

    # while it serves

    async def _keep(self, state: ServerState) -> None:
        """Look, twice a second, at what others have changed."""
        self._keys_seen = _seen(self._settings.paths.keys)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._reload.wait()
            try:
                await self._looked(state)
            except EmbedctlError as problem:
                self._log.say("not_reloaded", message=problem.message)
            except Exception as bug:
                self._log.bug(bug)

    async def _looked(self, state: ServerState) -> None:
        if self._reload.is_set():
            self._reload.clear()
            await self._reloaded(state)
        elif (seen := await asyncio.to_thread(_seen, self._settings.paths.keys)) != self._keys_seen:
            self._keys_seen = seen
            ring = await asyncio.to_thread(keyring, self._settings)
            if _key_budgets(ring) != _key_budgets(self._ring):
                await self._open_shift(ring)
            self._take(state, ring)
        await state.router.heed_resets()
        if self._is_shift_over():
            ended = self._shift is not None and self._shift.ends is not None and utc_now() >= self._shift.ends
            self._soon = time.monotonic() + _SHIFT_AGAIN_S if ended else None  # when the last one is in the ledger
            await self._open_shift(self._ring)

    async def _reloaded(self, state: ServerState) -> None:
        """Keys, budgets, limits and prices as they are now; the old ones stay when the new ones are not valid."""
        settings = await asyncio.to_thread(self._load)
        seen = _seen(settings.paths.keys)
        ring = await asyncio.to_thread(keyring, settings)
        check_reachable(self._listening, ring)
        before, self._settings = self._settings, settings
        try:
            await self._open_shift(ring)
        except EmbedctlError:
            self._settings = before
            raise
        state.gateway.routes.reload(settings)
        state.gateway.serve = settings.serve
        self._keys_seen = seen
        self._take(state, ring)

    def _take(self, state: ServerState, ring: Keyring) -> None:
        """From now on these keys count; their budgets do already."""
        check_reachable(self._listening, ring)
        self._ring = state.keyring = self._with_local(ring)
        self._log.say("reloaded", keys=len(ring.keys))

    # the end

    async def _drain(self, state: ServerState, server: _Server, serving: asyncio.Task[None]) -> None:
        """Take nothing new, let end what was begun, and no longer than the settings say."""
        state.draining = True
        serve = self._settings.serve
        self._log.say("draining", in_flight=state.admission.in_flight)
        if state.admission.in_flight or not self._listening.is_loopback:
            await asyncio.sleep(serve.grace_s)
        server.should_exit = True
        with suppress(Exception):
            await serving

    async def _drained(self, gateway: Gateway) -> None:
        if not await gateway.drained(self._settings.serve.drain_s):
            self._log.say("not_drained", purchases=gateway.purchases)

    def _signals(self) -> _Signals:
        stop = self._asked_to_stop
        return _Signals(
            {
                signal.SIGTERM: partial(stop, 143),
                signal.SIGINT: partial(stop, 130),
                signal.SIGHUP: self._reload.set,
            }
        )

    def _asked_to_stop(self, exit_code: int) -> None:
        if self._stop.is_set():
            os._exit(exit_code)  # at once: the journal is made for that
        self.exit_code = exit_code
        self._stop.set()


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Without its own handlers."""
        await self._serve(sockets)


class _Signals:
    """Handlers in the event loop, and as before at the end."""

    def __init__(self, handlers: dict[signal.Signals, Callable[[], object]]) -> None:
        self._handlers = handlers

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._handlers.items():
            loop.add_signal_handler(number, handler)

    def __exit__(self, *exception: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._handlers:
            loop.remove_signal_handler(number)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationInvalid: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # or answers wait for acknowledgements
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(1024)
    except OSError as refusal:
        made.close()
        raise ConfigurationInvalid(
            f"cannot listen on {host}:{port}: {refusal.strerror}", hint="--port 0 takes a free one"
        ) from None
    made.setblocking(False)
    return made


def _address(bound: socket.socket, scheme: str) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _key_budgets(ring: Keyring) -> list[KeyBudget]:
    return [
        KeyBudget(key_id=key_id, workspace=key.workspace, amount=key.budget, period=key.budget_period)
        for key_id, key in ring.keys.items()
        if key.budget is not None and key.revoked is None
    ]


def _revived_after_s(cause: ProviderError) -> float:
    """When a provider that was hopeless may be asked once more."""
    if isinstance(cause, QuotaExhausted):
        return cause.retry_after_s or QUOTA_HOLD_S
    return _REVIVE_S


def _seen(path: Path) -> tuple[int, int] | None:
    """What tells one state of a file from another."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino)
