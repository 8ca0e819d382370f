"""OpenTelemetry: what the service buys for its clients is told as a run's requests are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bad_servers import bad_server
from tests.support.collecting import receiver
from tests.support.serving import MODEL, serving
from tests.support.wire.client import Wire

PATIENT = {f"embedctl.telemetry.collector:{name}": 60.0 for name in ("CLOSE_S", "READY_S")}


def test_a_call_is_an_operation_and_a_hit_is_none(tmp_path: Path, wire: Wire) -> None:
    """A call that buys is one span and one measurement, with its attempts below it.

    So it is where it takes several requests of the provider; one that the cache answers asks nobody, and there is none.
    No text, key or user is told.
    """
    wire.reset()
    wire.plan(script=[{"fault": "status", "status": 503}])
    inputs = [f"CANARYTEXT {number}" for number in range(3)]
    many = [f"CANARYTEXT number {number}" for number in range(20)]
    with receiver() as collector:
        settings = "[providers.openai]\nmax_items = 5\n"
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        with serving(tmp_path / "g", wire, settings=settings, constants=PATIENT, **variables) as server:
            key = server.key()
            replies = [server.embed(one, key=key, user="CANARYUSER") for one in (inputs, inputs, many)]
            assert server.stop() == 143
    told = {span.attributes["embedctl.operation.id"]: span for span in collector.operations}
    first, large = collector.operations
    (duration,) = collector.metrics["gen_ai.client.embeddings.duration"]
    (tokens,) = collector.metrics["gen_ai.client.embeddings.operation.input_tokens"]
    sent = b"".join(collector.raw)

    assert [one.status for one in replies] == [200, 200, 200]
    assert len(told) == 2
    assert {span.name for span in told.values()} == {f"embeddings {MODEL}"}
    assert [one.is_error for one in collector.children(first)] == [True, False]
    assert len(collector.children(large)) == large.attributes["embedctl.attempts"] == 4
    assert [span.attributes["embedctl.inputs"] for span in (first, large)] == [3, 20]
    assert {span.attributes["embedctl.workspace.id"] for span in told.values()} == {"acme"}
    assert duration.count == tokens.count == 2
    assert tokens.sum == sum(one.attributes["gen_ai.usage.input_tokens"] for one in told.values())
    assert tokens.sum == sum(replies[at].json["usage"]["total_tokens"] for at in (0, 2))
    assert b"CANARY" not in sent
    assert key.encode() not in sent


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_call_belongs_to_its_clients_trace(tmp_path: Path, wire: Wire) -> None:
    """The span of a call with a `traceparent` is a child of the client's.

    A header that is not as the standard has it, or stands twice, is ignored: the call has a trace of its own. The log
    names the client's trace.
    """
    wire.reset()
    said = [
        f"00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        "00-" + "CANARY" * 4000,
    ]
    with receiver() as collector:
        with serving(tmp_path / "g", wire, constants=PATIENT, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint) as server:
            replies = [server.embed(f"text {number}", headers={"traceparent": one}) for number, one in enumerate(said)]
            assert server.stop() == 143
        traced = [one.get("trace") for one in server.log() if one.get("path") == "/v1/embeddings"]
    calls = {reply.headers["x-embedctl-operation-id"]: number for number, reply in enumerate(replies)}
    spans = {
        calls[span.attributes["embedctl.operation.id"]]: span
        for span in collector.spans
        if "embedctl.operation.id" in span.attributes
    }

    assert {reply.status for reply in replies} == {200}
    assert sorted(spans) == [0, 2, 3, 4, 5]  # who is not recorded there is not recorded here
    assert (spans[0].trace_id.hex(), spans[0].parent_id.hex()) == (TRACE, SPAN)
    assert [one.trace_id.hex() for one in collector.children(spans[0])] == [TRACE]
    for number in (2, 3, 4, 5):
        assert spans[number].parent_id == b""
        assert spans[number].trace_id.hex() != TRACE
    assert traced == [TRACE, TRACE, None, None, None, None]
    assert b"CANARY" not in b"".join(collector.raw)


def test_circuits_are_told_under_the_same_name(tmp_path: Path, wire: Wire) -> None:
    """/metrics says how this process's circuits stand, under the name of `usage metrics`."""
    wire.reset()
    state = f'embedding_provider_circuit_state{{model="{MODEL}",provider="openai"}}'
    with serving(tmp_path / "g", wire) as server:
        server.embed("one")
        well = server.ask("GET", "/metrics").body.decode()
        wire.plan(faults={"unauthorized": 1.0})
        server.embed("two")
        badly = server.ask("GET", "/metrics").body.decode()

    assert f"{state} 0.0\n" in well
    assert f"{state} 3.0\n" in badly


@pytest.mark.parametrize("kind", ["refuses", "silent"])
def test_a_bad_collector_harms_no_call(tmp_path: Path, wire: Wire, kind: str) -> None:
    """Calls are answered, and the server ends as ever, while its collector is gone or silent; its log has one word."""
    wire.reset()
    with bad_server(kind) as port:
        with serving(tmp_path / "g", wire, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}") as server:
            replies = [server.embed(f"text {number}").status for number in range(3)]
            assert server.stop() == 143
        log = server.log()

    assert replies == [200] * 3
    assert [one["event"] for one in log if one.get("concern") == "telemetry"] == ["warned"]
    assert not any(one["event"] in ("bug", "library") for one in log)


def test_counts_are_told_under_the_same_names(tmp_path: Path, wire: Wire) -> None:
    """/metrics has this process's look-ups of token counts under the names of `usage metrics`."""
    wire.reset()
    config = f'[token_usage]\ncache = true\n[models."openai:{MODEL}"]\nusage_mode = "fallback"\n'
    with serving(tmp_path / "g", wire, settings=config) as server:
        server.embed(["one text", "another"])
        live = server.ask("GET", "/metrics").body.decode()
        server.stop()
        ledger = server.run("usage", "metrics").stdout

    for text in (live, ledger):
        assert 'embedding_token_count_cache_misses_total{store="local"} 2.0' in text
        assert 'embedding_token_count_cache_lookup_seconds_count{store="local"} 1.0' in text
