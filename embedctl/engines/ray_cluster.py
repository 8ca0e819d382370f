"""The door to Ray: a cluster that is joined, or started for the time of a command; tasks, actors, and their failures.

Tasks and actors are defined inside functions: Ray then carries their code, and a machine without embedctl can say so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from importlib import util
from pathlib import Path
from typing import Any

from embedctl import __version__
from embedctl.dataclass import dataclass
from embedctl.engines.ray_actor import KeptLimits
from embedctl.errors import (
    ConfigurationInvalid,
    EmbedctlError,
    ExtraMissing,
    HostLost,
    InvariantBroken,
    RayUnreachable,
    Terminated,
)

ANSWER_S = 10.0
"""How long a cluster may take to answer at all; Ray itself would wait for minutes."""

OBJECT_STORE_BYTES = 80 << 20
"""Of a cluster of our own: hardly anything goes through it, and Ray takes no less."""

RETRIES = 3
"""How often Ray starts a worker again whose process or machine has died."""

AGAIN_S = 0.3
UNREACHABLE_S = 60.0
"""How long a worker tries to reach an actor that is being started again."""

_OF_BUDGET = frozenset({"reserve", "settle", "spent_before"})
_OVER = frozenset({"ended", "settle", "withdraw"})
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
)  # preface, empty SETTINGS; RFC 9113, 3.4
_SHORT_PATH = 40


@contextmanager
def joined(address: str, *, workers: int, cpus: int) -> Iterator[RayCluster]:
    """A cluster, left with the block; `local` is one of this machine alone that ends with it.

    In the main thread: Ray takes the handler of SIGTERM there, and gets it back.

    Raises:
        ExtraMissing: Ray is not installed.
        RayUnreachable: No cluster answers at the address.
        ConfigurationInvalid: Its versions of Ray or Python differ from ours.
    """
    if util.find_spec("ray") is None:
        raise ExtraMissing("--engine ray needs a library that is not installed", extra="ray")
    with _own_folder(address == "local") as (folder, variables), _variables({**_quiet(), **variables}):
        import ray  # which reads them now

        with _own_signals():
            _connect(ray, address, folder, workers * max(cpus, 1))
        _silence()
        try:
            yield RayCluster(ray, cpus)
        finally:
            with _own_signals():
                ray.shutdown()


def _connect(ray: Any, address: str, folder: Path, cpus: int) -> None:
    """Join it, or start it in `folder`; in there, as Ray's workers import from where the command was started."""
    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    own = {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    here = {"_node_ip_address": "127.0.0.1", "_temp_dir": str(folder), "include_dashboard": False}
    if address != "local":
        _check_answers(ray, os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)
        own, here = {}, {}
    with chdir(folder), _printed(folder) as printed:
        try:
            ray.init(address=address, **own, **here, **quiet)
        except SystemExit:  # its own handler of SIGTERM
            raise Terminated("stopped before anything was sent") from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
            raise _not_joined(address, problem, printed()) from problem


@contextmanager
def _printed(folder: Path) -> Iterator[Callable[[], str]]:
    """What Ray's libraries write to stderr, which is no place for it."""
    before = os.dup(2)
    try:
        with (folder / "printed").open("wb") as file:
            os.dup2(file.fileno(), 2)
        yield (folder / "printed").read_text
    finally:
        os.dup2(before, 2)
        os.close(before)


def _not_joined(address: str, problem: BaseException, printed: str) -> EmbedctlError:
    """What is wrong, in a line: Ray's own words are a page.

    Args:
        printed: What it wrote meanwhile.
    """
    if "InvalidAuthToken" in printed:
        return ConfigurationInvalid(
            f"the Ray cluster at {address} asks for a token",
            hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the cluster",
        )
    reasons, one = [str(problem)], problem.__cause__ or problem.__context__
    while one is not None and len(reasons) < 5:
        reasons.append(str(one))
        one = one.__cause__ or one.__context__
    for reason in reasons:
        if "ersion mismatch" in reason:
            there, here = [*_versions(reason), "", ""][:2]
            which = f"it has {there}, this machine {here}" if here else reason.splitlines()[0]
            return ConfigurationInvalid(
                f"the Ray cluster at {address} is of another version: {which}",
                hint="install the same versions of Ray and Python on all machines",
            )
    first = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    if address == "local":
        return RayUnreachable(f"Ray does not start: {first[:300]}", hint="try `ray start --head` to see why")
    return _unreachable(address, first[:300])


def _versions(reason: str) -> list[str]:
    """Those of the cluster and of this process, as Ray's refusal names them in turn."""
    return [f"Ray {ray} and Python {python}" for ray, python in re.findall(r"Ray: (\S+)\s+Python: (\S+)", reason)]


def _unreachable(address: str, why: str) -> RayUnreachable:
    hint = "start it with `ray start --head`, or give --ray-address local for one that ends with the command"
    return RayUnreachable(f"no Ray cluster answers at {address}: {why}", hint=hint)


def _check_answers(ray: Any, address: str) -> None:
    """Raise RayUnreachable unless something that speaks gRPC answers: Ray would try for more than a minute."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # auto: Ray looks among the processes of this machine
    host = host.strip("[]")
    if host in ("localhost", "127.0.0.1", "::1"):
        host = ray.util.get_node_ip_address()  # as Ray itself will ask
    until = time.monotonic() + ANSWER_S
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S / 2) as connection:
            connection.settimeout(max(0.1, until - time.monotonic()))
            connection.sendall(_GREETING)
            head = connection.recv(9)
    except OSError as problem:
        raise _unreachable(address, problem.strerror or str(problem) or type(problem).__name__) from None
    if len(head) < 4 or head[3] != 4:  # SETTINGS come first
        raise _unreachable(address, "something else listens there")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Our handlers stay, though Ray sets its own."""
    kinds = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in kinds}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _own_folder(is_local: bool) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder of this command alone, and variables by which nobody else may use a cluster of its own."""
    root = tempfile.gettempdir()
    if len(root) > _SHORT_PATH:  # sockets' paths have 107 bytes at most
        root = "/tmp"  # noqa: S108 - the folder in it is new, and ours alone
    folder = Path(tempfile.mkdtemp(prefix="embedctl-ray-", dir=root))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        yield folder, token if is_local else {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _quiet() -> dict[str, str]:
    """No reports to Ray's makers, unless the user's environment says otherwise."""
    return {name: value for name, value in _QUIET.items() if name not in os.environ}


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)


def _silence() -> None:
    """What Ray would print among our lines, also on stdout: that a worker died is told by us."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *arguments, **options: None


@dataclass(frozen=True, slots=True)
class Actors:
    """Of one job; they end with it."""

    limiter: Any
    budget: Any

    def of(self, method: str) -> Any:
        """Who answers a question of `SharedLimits`."""
        return self.budget if method in _OF_BUDGET else self.limiter


class RayCluster:
    """A cluster that is joined: starts the actors of a job, and its workers.

    Args:
        cpus: That Ray counts for each worker.
    """

    def __init__(self, ray: Any, cpus: int) -> None:
        self._ray = ray
        self._task = ray.remote(num_cpus=cpus, max_retries=RETRIES, max_calls=0)(_task())

    async def keep(self, limiter: KeptLimits, budget: KeptLimits) -> Actors:
        """The actors of a job, on this machine: the budgets' file is here.

        Raises:
            ConfigurationInvalid: What Ray runs here has no embedctl, or another one.
            RayUnreachable: They do not start.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 100_000, "scheduling_strategy": here}
        kept = (limiter.packed(), budget.packed())
        actors = [
            self._ray.remote(**options)(kind).remote(__version__, one)
            for kind, one in zip(_actor_classes(), kept, strict=True)
        ]
        for actor in actors:
            await self.result(actor.problem.remote())
        return Actors(*actors)

    def start_worker(self, number: int, job: bytes, actors: Actors) -> Any:
        """A worker's result, for `result`: `ray_worker.work`'s.

        Args:
            job: As `ray_worker.handed` has made it.
        """
        named = self._task.options(name=f"embedctl worker {number}")
        return named.remote(__version__, number, job, actors.limiter, actors.budget)

    async def result(self, reference: Any) -> dict[str, Any]:
        """What a worker has answered; `lost` where its process or machine died once too often.

        Raises:
            RayUnreachable: The cluster itself is gone.
            ConfigurationInvalid: embedctl is not installed there, or another version.
        """
        from ray import exceptions

        try:
            answer: dict[str, Any] = await reference
        except exceptions.LocalRayletDiedError as problem:
            raise RayUnreachable(
                f"the Ray cluster is gone: {_first_line(problem)}", hint="run the same command again: it goes on"
            ) from None
        except exceptions.RayTaskError as problem:
            raise InvariantBroken(f"a worker failed: {_last_line(problem)}") from None
        except exceptions.RayError as problem:
            return {"lost": _first_line(problem)}
        if "unfit" in answer:
            hint = "install the same embedctl, with the same extras, on all machines of the cluster"
            raise ConfigurationInvalid(answer["unfit"], hint=hint)
        return answer

    def cancel(self, reference: Any) -> None:
        """A worker that waits for a machine does not begin."""
        with suppress(Exception):
            self._ray.cancel(reference)

    async def ask(self, reference: Any) -> Any:
        """What an actor answers; None where it is being started again."""
        from ray import exceptions

        try:
            return await reference
        except exceptions.RayActorError:
            return None


class ActorLine:
    """A worker's way to the actors of its job (`ray_worker.WorkerLine`).

    A question whose answer was lost with its actor is asked again under a ticket of this line's own: nobody knows what
    became of the first one.
    """

    def __init__(self, actors: Actors, worker: str) -> None:
        self._actors = actors
        self._worker = worker
        self._ordered: Any = None
        self._seen = 0
        self._of_money: set[int] = set()
        self._again: dict[int, int] = {}
        self._own_tickets = itertools.count(-1, -1)

    async def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            HostLost: The command is gone, or has taken this worker for dead.
        """
        from ray.exceptions import ActorUnavailableError, RayActorError

        actor, ticket, until = self._actors.of(method), arguments[0], None
        if method == "reserve":
            self._of_money.add(ticket)
        while True:
            now_under = self._again.get(ticket, ticket)
            try:
                answer: dict[str, Any] = await actor.ask.remote(self._worker, method, (now_under, *arguments[1:]))
            except RayActorError as lost:
                now = time.monotonic()
                until = until or now + UNREACHABLE_S
                if now > until or not isinstance(lost, ActorUnavailableError):
                    raise _host_lost(_first_line(lost)) from None
                await asyncio.sleep(AGAIN_S)
                actor.tell.remote(self._worker, "withdraw", (now_under,))
                self._again[ticket] = next(self._own_tickets)
                continue
            if answer.get("gone"):
                raise _host_lost("it has taken this worker for dead")
            self._of_money.discard(ticket)
            return answer

    def tell(self, method: str, *arguments: Any) -> None:
        """Say something that needs no answer."""
        actor = self._actors.of(method)
        if method == "withdraw" and arguments[0] in self._of_money:
            self._of_money.discard(arguments[0])
            actor = self._actors.budget
        if method in _OVER and arguments[0] in self._again:
            arguments = (self._again.pop(arguments[0]), *arguments[1:])
        with suppress(Exception):  # who is gone needs no word
            actor.tell.remote(self._worker, method, arguments)

    def join(self, number: int) -> dict[str, Any]:
        """Begin; as `SharedLimits.join` of the budget answers."""
        import ray

        both = [actor.join.remote(self._worker, number) for actor in (self._actors.limiter, self._actors.budget)]
        try:
            found: dict[str, Any] = ray.get(both)[1]
        except ray.exceptions.RayActorError as lost:
            raise _host_lost(_first_line(lost)) from None
        return found

    def report(self, events: bytes) -> None:
        """Events for the command."""
        with suppress(Exception):
            self._actors.limiter.report.remote(self._worker, events)

    def orders(self, timeout_s: float) -> tuple[Sequence[str], str | None]:
        """Workers that have died meanwhile; why this one has to end, if it has to. Nothing of both after so long."""
        import ray

        self._ordered = self._ordered or self._actors.limiter.orders.remote(self._seen)
        try:
            dead, reason = ray.get(self._ordered, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return (), None
        except ray.exceptions.RayActorError:
            time.sleep(AGAIN_S)
            self._ordered, self._seen = None, 0
            return (), None
        self._ordered = None
        self._seen += len(dead)
        return dead, reason

    def close(self) -> None:
        """Nothing is held any more."""
        for actor in (self._actors.limiter, self._actors.budget):
            with suppress(Exception):
                actor.gone.remote(self._worker)


def _host_lost(why: str) -> HostLost:
    return HostLost(f"the command that started this worker is gone: {why}")


def _task() -> Callable[..., dict[str, Any]]:
    """What Ray runs for a worker. It says in plain values what is wrong on a machine that is not as ours."""

    def embedctl_worker(version: str, number: int, job: bytes, limiter: Any, budget: Any) -> dict[str, Any]:
        import socket
        import sys

        where = f"{sys.executable} on {socket.gethostname()}"
        try:
            import embedctl
        except ImportError as problem:
            return {"unfit": f"{where}: {problem}"}
        if embedctl.__version__ != version:
            return {"unfit": f"{where} has embedctl {embedctl.__version__}, not {version}"}
        from embedctl.engines import ray_cluster, ray_worker

        actors = ray_cluster.Actors(limiter, budget)
        return ray_worker.work(number, job, lambda worker: ray_cluster.ActorLine(actors, worker))

    return embedctl_worker


def _actor_classes() -> tuple[type, type]:
    """The two kinds. Each keeps all of `KeptActor`, and is asked for its part."""

    class Keeper:
        def __init__(self, version: str, kept: bytes) -> None:
            import socket
            import sys

            where = f"{sys.executable} on {socket.gethostname()}"
            self._unfit = ""
            try:
                import embedctl
            except ImportError as problem:
                self._unfit = f"{where}: {problem}"
                return
            if embedctl.__version__ != version:
                self._unfit = f"{where} has embedctl {embedctl.__version__}, not {version}"
                return
            from embedctl.engines.ray_actor import KeptActor

            self._kept = KeptActor(kept)

        async def problem(self) -> dict[str, Any]:
            return {"unfit": self._unfit} if self._unfit else {}

        async def join(self, worker: str, number: int) -> dict[str, Any]:
            return await self._kept.join(worker, number)

        async def ask(self, worker: str, method: str, arguments: Any) -> dict[str, Any]:
            return await self._kept.ask(worker, method, arguments)

        async def tell(self, worker: str, method: str, arguments: Any) -> None:
            await self._kept.tell(worker, method, arguments)

        async def gone(self, worker: str) -> None:
            await self._kept.gone(worker)

        async def silent(self, seconds: float) -> list[str]:
            return await self._kept.silent(seconds)

        async def report(self, worker: str, events: bytes) -> None:
            self._kept.report(worker, events)

        async def news(self) -> bytes:
            return await self._kept.news()

        async def stop(self, reason: str) -> None:
            self._kept.stop(reason)

        async def orders(self, seen: int) -> Any:
            return await self._kept.orders(seen)

    class EmbedctlLimiter(Keeper):
        pass

    class EmbedctlBudget(Keeper):
        pass

    return EmbedctlLimiter, EmbedctlBudget


def _first_line(problem: BaseException) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)[:200]


def _last_line(problem: BaseException) -> str:
    """Of a traceback, what was raised."""
    return ([line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__])[-1][:200]
