"""Operations on their way to a collector, where the environment names one. Nothing of a run or a server waits for it.

Everything is made and sent in threads of their own; the queue between is bounded. The SDK is imported when a collector
has answered: that takes more CPU than all spans of a run, and where nobody takes them it would be for nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import util
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embedctl.dataclass import dataclass
from embedctl.errors import install_command
from embedctl.records import Event, Observer, Observers, PhaseBegan, UsageEvent, Warned
from embedctl.telemetry.conventions import PriceOf
from embedctl.telemetry.operations import Operations, OperationSpan

if TYPE_CHECKING:
    from decimal import Decimal

CLOSE_S = 1.0
"""How long the end of a command waits for a collector that takes what it is sent; for one that does not, not at all."""

READY_S = 5.0
"""How long it waits for the SDK, should it still be on its way from the disk."""

GATHER_S = 1.0
"""What ends meanwhile is taken together: a thread that wakes up holds the others up."""

AGAIN_S = 15.0
"""Until a collector that takes nothing is asked again; what ends meanwhile is lost."""

MOST_WAITING = 4096
"""Operations; the oldest go first."""

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SIGNALS = ("TRACES", "METRICS")
_PROTOCOL = "http/protobuf"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the environment asks for.

    Attributes:
        place: Host and port of the collector, for people: without user, password and path.
        asked: Where it is asked whether it takes anything; nowhere when a proxy is on the way.
        refused: Why nothing is sent although an endpoint is named.
    """

    traces: bool = False
    metrics: bool = False
    place: str = ""
    asked: tuple[str, ...] = ()
    refused: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Wanted:
        """As the variables of OpenTelemetry's specification say; nothing without an endpoint.

        Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and, beside it,
        configuration/sdk-environment-variables/ (2026-11-26).
        """
        general = environment.get(_ENDPOINT)
        found = {name: environment.get(f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT") or general for name in _SIGNALS}
        if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls()
        for name in _SIGNALS:
            if environment.get(f"OTEL_{name}_EXPORTER", "otlp").strip().lower() != "otlp":
                found[name] = None
        named = [endpoint for endpoint in found.values() if endpoint]
        if not named:
            return cls()
        protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL).strip()
        refused = None if protocol == _PROTOCOL else f"only {_PROTOCOL} is spoken, not OTEL_EXPORTER_OTLP_PROTOCOL's"
        if not _is_installed():
            refused = f"nothing is sent without the extra otel: {install_command('otel')}"
        direct = not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES)
        return cls(
            traces=bool(found["TRACES"]),
            metrics=bool(found["METRICS"]),
            place=_place(named[0]),
            asked=tuple(_endpoints(found, general)) if direct else (),
            refused=refused,
        )


@contextmanager
def watched(
    environment: Mapping[str, str],
    observer: Observer,
    price: Callable[[str, str, str | None, str], Decimal | None],
) -> Iterator[Observer]:
    """The observer, and with it the collector that the environment names, until the block ends.

    Args:
        observer: Told, once, when that collector is of no use.
        price: (provider, model, price_as, tier) → USD per million tokens.
    """
    wanted = Wanted.of(environment)
    if wanted.refused is not None:
        observer.notify(Warned("telemetry", wanted.place, wanted.refused))
    if wanted.refused is not None or not wanted.place:
        yield observer
        return

    def price_of(event: UsageEvent) -> Decimal | None:
        return price(event.provider, event.model, event.price_as, event.price_tier)

    collector = Collector(wanted, observer, price_of)
    try:
        yield Observers(observer, collector)
    finally:
        collector.close()


class Collector:
    """Hands operations to a thread that makes spans and metrics of them.

    Args:
        observer: Told once when the collector is of no use.
    """

    def __init__(self, wanted: Wanted, observer: Observer, price_of: PriceOf) -> None:
        self._wanted = wanted
        self._observer = observer
        self._price_of = price_of
        self._operations = Operations(self._add)
        self._waiting: deque[OperationSpan] = deque(maxlen=MOST_WAITING)
        self._wake, self._asked, self._ready = threading.Event(), threading.Event(), threading.Event()
        self._over = threading.Event()
        self._flush = self._closing = self._failing = self._told = False
        self._began = time.monotonic()
        threading.Thread(target=self._work, name="telemetry", daemon=True).start()

    def notify(self, event: Event) -> None:
        """As an observer: takes microseconds, and never blocks."""
        if isinstance(event, PhaseBegan):
            if event.phase == "writing":  # what is left of a run takes longer than to send this
                self._flush = True
                self._wake.set()
        else:
            self._operations.notify(event)

    def close(self) -> None:
        """Send what is left, and no longer than `CLOSE_S`; not at all when the last thing sent was not taken."""
        self._closing = True
        self._wake.set()
        answered = self._asked.wait(max(0.0, self._began + CLOSE_S - time.monotonic()))
        if answered and not self._failing and self._ready.wait(READY_S) and not self._failing:
            self._over.wait(CLOSE_S)
        if not self._over.is_set():
            self._tell(f"{self._wanted.place} has not answered in time; what was not sent is lost")

    def _add(self, operation: OperationSpan) -> None:
        self._waiting.append(operation)

    def _saw(self, taken: bool) -> None:
        """Whether the collector took what it was last sent."""
        self._failing = not taken
        if not taken:
            self._tell(f"{self._wanted.place} does not take it; nothing waits for that, and what it misses is lost")
            if self._closing:
                self._over.set()

    def _tell(self, words: str) -> None:
        if not self._told:
            self._told = True
            self._observer.notify(Warned("telemetry", self._wanted.place, words))

    def _work(self) -> None:
        try:
            if self._finds_it():
                self._send()
        except Exception as problem:  # a variable that the SDK cannot read, a broken installation
            self._failing = True
            self._tell(f"off, because of an error of the SDK: {type(problem).__name__}")
        finally:
            self._asked.set()
            self._ready.set()
            self._over.set()

    def _finds_it(self) -> bool:
        """Whether the collector answers; asked until it does, or the command ends."""
        while not self._answers():
            self._saw(False)
            self._asked.set()
            if self._closing:
                return False
            self._wake.wait(AGAIN_S)
            self._wake.clear()
            self._waiting.clear()
        self._failing = False
        self._asked.set()
        return True

    def _answers(self) -> bool:
        from embedctl.telemetry import otlp_probe

        return not self._wanted.asked or any(map(otlp_probe.answers, self._wanted.asked))

    def _send(self) -> None:
        from embedctl.telemetry.otlp import Pipeline

        wanted = self._wanted
        pipeline = Pipeline(
            traces=wanted.traces,
            metrics=wanted.metrics,
            price_of=self._price_of,
            saw=self._saw,
            ignored=lambda: self._tell("the value of an OTEL_ variable cannot be read, and is ignored"),
        )
        self._ready.set()
        ask_again = 0.0
        while True:
            self._wake.wait(GATHER_S)
            self._wake.clear()
            closing, flush, self._flush = self._closing, self._flush, False
            if self._failing and not closing and time.monotonic() >= ask_again:
                self._failing = not self._answers()
                ask_again = time.monotonic() + AGAIN_S
            spans = closing or not self._failing
            with suppress(IndexError):
                while True:
                    pipeline.record(self._waiting.popleft(), spans=spans)
            if closing:
                pipeline.close(CLOSE_S)
                return
            if flush and spans:
                pipeline.flush()


def _is_installed() -> bool:
    try:
        return all(util.find_spec(name) for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"))
    except ImportError:  # what they are in is not there either
        return False


def _endpoints(found: Mapping[str, str | None], general: str | None) -> Iterator[str]:
    """Where signals go: the general address has a path for each, one of a signal's own is taken as it is."""
    for name, endpoint in found.items():
        if endpoint:
            yield f"{endpoint.rstrip('/')}/v1/{name.lower()}" if endpoint == general else endpoint


def _place(endpoint: str) -> str:
    """Host and port of a URL; "the collector" when there is none to read."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return "the collector"
    return "the collector" if not host else f"{host}:{port}" if port else host
