"""Spans and metrics of operations, over OTLP (http/protobuf). The only door to opentelemetry.

What the SDK reads from the environment (headers, timeouts, batches, sampling, resource attributes) holds as its
documentation says: https://opentelemetry.io/docs/languages/sdk-configuration/.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from embedctl import __version__
from embedctl.telemetry import conventions
from embedctl.telemetry.conventions import PriceOf
from embedctl.telemetry.operations import NANOSECONDS, OperationSpan, span_of
from embedctl.telemetry.trace_context import TraceParent

Saw = Callable[[bool], None]
"""Told whether the collector took something."""


class _Spans(OTLPSpanExporter):
    saw: Saw

    def export(self, spans: Any) -> SpanExportResult:
        result = None
        try:
            result = super().export(spans)
        finally:
            self.saw(result is SpanExportResult.SUCCESS)
        return result


class _Metrics(OTLPMetricExporter):
    saw: Saw

    def export(self, *args: Any, **about: Any) -> MetricExportResult:
        result = None
        try:
            result = super().export(*args, **about)
        finally:
            self.saw(result is MetricExportResult.SUCCESS)
        return result


class _LogListener(logging.Handler):
    """What the SDK logs is not printed: it may hold a header. While it is set up, it means an odd variable; later,
    of its exporters, that something was not taken.
    """

    def __init__(self, saw: Saw, ignored: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._saw = saw
        self._ignored = ignored
        self.is_set_up = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.is_set_up:
            self._ignored()
        elif ".exporter." in record.name:
            self._saw(False)


class Pipeline:
    """Makes spans and metrics of operations; its threads send them.

    Args:
        traces, metrics: What is wanted of the two.
        saw: Told, from any thread, whether the collector took something.
        ignored: Told that the SDK cannot read what a variable says.
    """

    def __init__(
        self, *, traces: bool, metrics: bool, price_of: PriceOf, saw: Saw, ignored: Callable[[], None]
    ) -> None:
        said = _LogListener(saw, ignored)
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [said], False
        self._price_of = price_of
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get("service.name", "")).partition(":")[0] in ("", "unknown_service"):
            resource = resource.merge(Resource({"service.name": "embedctl"}))
        self._traces = self._metrics = None
        if traces:
            spans = _Spans()
            spans.saw = saw
            self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._traces.add_span_processor(BatchSpanProcessor(spans))
            self._tracer = self._traces.get_tracer("embedctl", __version__)
        if metrics:
            exporter = _Metrics()
            exporter.saw = saw
            reader = PeriodicExportingMetricReader(exporter)
            self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
            meter = self._metrics.get_meter("embedctl", __version__)
            self._duration = meter.create_histogram(
                conventions.DURATION,
                "s",
                "GenAI client embeddings operation duration.",
                explicit_bucket_boundaries_advisory=conventions.DURATION_BUCKETS,
            )
            self._tokens = meter.create_histogram(
                conventions.INPUT_TOKENS,
                "{token}",
                "The number of input tokens used per embeddings operation.",
                explicit_bucket_boundaries_advisory=conventions.INPUT_TOKENS_BUCKETS,
            )

        said.is_set_up = True

    def record(self, operation: OperationSpan, *, spans: bool = True) -> None:
        """One that is over; only counted when nobody takes its spans now."""
        if self._traces is not None and spans:
            self._span(operation)
        if self._metrics is not None:
            self._measure(operation)

    def _span(self, operation: OperationSpan) -> None:
        span = self._tracer.start_span(
            conventions.span_name(operation),
            _within(operation.parent),
            kind=SpanKind.CLIENT,
            attributes=conventions.span_attributes(operation, self._price_of),
            start_time=operation.began_ns,
        )
        if span.is_recording():
            within = trace.set_span_in_context(span)
            for attempt in operation.attempts:
                begin, end = span_of(attempt)
                child = self._tracer.start_span(
                    conventions.ATTEMPT_SPAN,
                    within,
                    SpanKind.CLIENT,
                    conventions.attempt_attributes(attempt),
                    start_time=begin,
                )
                if attempt.event.status != "ok":
                    child.set_status(Status(StatusCode.ERROR))
                child.end(end)
            if operation.error is not None:
                span.set_status(Status(StatusCode.ERROR))
        span.end(operation.ended_ns)

    def _measure(self, operation: OperationSpan) -> None:
        error: conventions.Attributes = {} if operation.error is None else {"error.type": operation.error}
        seconds = (operation.ended_ns - operation.began_ns) / NANOSECONDS
        self._duration.record(seconds, conventions.metric_attributes(operation.last) | error)
        for attempt, tokens in operation.billed.values():
            if tokens:
                self._tokens.record(tokens, conventions.metric_attributes(attempt))

    def flush(self) -> None:
        """Send what there is, in threads of their own."""
        for provider in self._providers:
            threading.Thread(target=provider.force_flush, daemon=True).start()

    def close(self, timeout_s: float) -> None:
        """Send what there is, for so long at most; what is still at it are daemons, which end with the process."""
        ends = [threading.Thread(target=provider.shutdown, daemon=True) for provider in self._providers]
        for one in ends:
            one.start()
        for one in ends:
            one.join(timeout_s)

    @property
    def _providers(self) -> list[Any]:
        return [one for one in (self._traces, self._metrics) if one is not None]


def _within(parent: TraceParent | None) -> Context | None:
    """The context of a span in another process; None: a trace of its own."""
    if parent is None:
        return None
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(remote))
