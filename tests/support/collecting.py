"""A collector: takes OTLP over HTTP, and reads it with the official protos."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Span:
    """A span, read."""

    name: str
    kind: int
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    began_ns: int
    ended_ns: int
    is_error: bool
    message: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One series of a histogram."""

    metric: str
    unit: str
    count: int
    sum: float
    bounds: tuple[float, ...]
    attributes: dict[str, Any]


@dataclass
class Receiver:
    """What has come."""

    port: int
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, list[Point]] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def operations(self) -> list[Span]:
        return [one for one in self.spans if not one.parent_id]

    def children(self, span: Span) -> list[Span]:
        found = [one for one in self.spans if one.parent_id == span.span_id]
        return sorted(found, key=lambda one: one.attributes["embedctl.attempt.number"])

    def take(self, path: str, body: bytes) -> bytes:
        """One request; the answer's body.

        Raises:
            ValueError: It is none.
        """
        self.raw.append(body)
        self.paths.append(path)
        if path == "/v1/traces":
            for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(_attributes(batch.resource.attributes))
                self.spans += [_span(one) for scope in batch.scope_spans for one in scope.spans]
            return ExportTraceServiceResponse().SerializeToString()
        if path == "/v1/metrics":
            for batch in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.resources.append(_attributes(batch.resource.attributes))
                for scope in batch.scope_metrics:
                    for metric in scope.metrics:  # cumulative: the last word counts
                        self.metrics[metric.name] = [_point(metric, one) for one in metric.histogram.data_points]
            return ExportMetricsServiceResponse().SerializeToString()
        raise ValueError(path)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A collector that takes everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.headers["Content-Type"] == PROTOBUF
            answer = found.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", PROTOBUF)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _span(one: Any) -> Span:
    return Span(
        name=one.name,
        kind=one.kind,
        trace_id=one.trace_id,
        span_id=one.span_id,
        parent_id=one.parent_span_id,
        began_ns=one.start_time_unix_nano,
        ended_ns=one.end_time_unix_nano,
        is_error=one.status.code == 2,
        message=one.status.message,
        attributes=_attributes(one.attributes),
    )


def _point(metric: Any, one: Any) -> Point:
    return Point(metric.name, metric.unit, one.count, one.sum, tuple(one.explicit_bounds), _attributes(one.attributes))


def _attributes(pairs: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
