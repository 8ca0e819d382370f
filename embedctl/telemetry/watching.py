"""What a command does, told to a collector too, where the environment names one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embedctl.records import UNOBSERVED, Observer

if TYPE_CHECKING:
    from embedctl.settings import Settings


@contextmanager
def watched(settings: Settings, observer: Observer = UNOBSERVED) -> Iterator[Observer]:
    """The observer for a call or a worker of this process; see `telemetry.collector.watched`."""
    if not any(name.startswith("OTEL_EXPORTER_OTLP_") for name in settings.environment):
        yield observer
        return
    from embedctl.ledger.prices.run_prices import RunPrices
    from embedctl.records import utc_now
    from embedctl.telemetry import collector

    prices = RunPrices(settings.paths.price_file, utc_now())
    with collector.watched(settings.environment, observer, prices.price) as told:
        yield told
