"""OpenTelemetry: what a run does arrives at a collector under the published names; a bad collector harms nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import places
from tests.support.bad_servers import bad_server
from tests.support.collecting import Receiver, receiver
from tests.support.processes import MODEL, Ended, World, Zygote, sentence
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(20)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5", "--no-cache", "--json", "--no-progress")
CLIENT = 3
KEY_OF_COLLECTOR = "canary-collector-key"

# open-telemetry/semantic-conventions-genai, docs/gen-ai/client-embeddings.md at 88eccb1: the tables of the span and of
# both metrics, and the two bucket lists.
SPAN = {
    "gen_ai.operation.name", "gen_ai.provider.name", "error.type", "gen_ai.request.model", "server.port",
    "gen_ai.embeddings.dimension.count", "gen_ai.request.encoding_formats", "gen_ai.response.model",
    "gen_ai.usage.input_tokens", "server.address",
}  # fmt: skip
DURATION = {
    "gen_ai.operation.name", "gen_ai.provider.name", "error.type", "gen_ai.request.model", "server.port",
    "gen_ai.response.model", "server.address",
}  # fmt: skip
INPUT_TOKENS = DURATION - {"error.type"}
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


class Patient(World):
    """Its processes wait for a collector for as long as the machine takes; the bounds are for one that is silent."""

    patience_s = 60.0

    @property
    def constants(self) -> dict[str, Any]:
        bounds = dict.fromkeys(("CLOSE_S", "READY_S"), self.patience_s)
        return {**super().constants, **{f"embedctl.telemetry.collector:{name}": one for name, one in bounds.items()}}


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = Patient(tmp_path, wire, forks, hurried=True)
    found.table(TEXTS)
    return found


def embed(world: World, endpoint: str, *words: object, **variables: str) -> Ended:
    """A run that tells a collector."""
    world.variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables}
    return world.run("embed", "in.parquet", "-o", "out.parquet", *OPENAI, *words)


def test_an_operation_is_a_span_under_the_published_names(world: World, collector: Receiver) -> None:
    """Each request is one client span with what its provider said, its attempts are its children."""
    receipt = embed(world, collector.endpoint).receipt
    spans = collector.operations
    one = spans[0]

    assert len(spans) == receipt["requests"]
    assert {span.name for span in spans} == {f"embeddings {MODEL}"}
    assert {span.kind for span in spans} == {CLIENT}
    assert {name for span in spans for name in span.attributes if not name.startswith("embedctl.")} <= SPAN
    assert one.attributes["gen_ai.operation.name"] == "embeddings"
    assert one.attributes["gen_ai.provider.name"] == "openai"
    assert (one.attributes["server.address"], one.attributes["server.port"]) == ("127.0.0.1", world.wire.port)
    assert one.attributes["gen_ai.embeddings.dimension.count"] == 8
    assert one.attributes["gen_ai.request.encoding_formats"] == ["base64"]
    assert sum(span.attributes["gen_ai.usage.input_tokens"] for span in spans) == receipt["tokens"]
    assert {span.attributes["embedctl.run.id"] for span in spans} == {receipt["run_id"]}
    assert not any(span.is_error for span in collector.spans)
    for span in spans:
        (attempt,) = collector.children(span)
        assert attempt.trace_id == span.trace_id
        assert span.began_ns <= attempt.began_ns <= attempt.ended_ns <= span.ended_ns
        assert not any(name.startswith("gen_ai.") for name in attempt.attributes)


def test_metrics_have_the_published_names_and_no_dimensions(world: World, collector: Receiver) -> None:
    """Two histograms have the published units, buckets and attributes, and tokens add up to the ledger's.

    Nothing that grows with the input is a label.
    """
    receipt = embed(world, collector.endpoint).receipt
    (duration,) = collector.metrics["gen_ai.client.embeddings.duration"]
    (tokens,) = collector.metrics["gen_ai.client.embeddings.operation.input_tokens"]

    assert len(collector.metrics) == 2
    assert (duration.unit, duration.bounds, set(duration.attributes) <= DURATION) == ("s", SECONDS, True)
    assert (tokens.unit, tokens.bounds, set(tokens.attributes) <= INPUT_TOKENS) == ("{token}", TOKENS, True)
    assert duration.count == tokens.count == receipt["requests"]
    assert tokens.sum == world.ledger()["confirmed"] == receipt["tokens"]
    spans_s = sum(span.ended_ns - span.began_ns for span in collector.operations) / 1e9
    assert duration.sum == pytest.approx(spans_s)
    resource = collector.resources[0]
    assert (resource["service.name"], "service.version" in resource) == ("embedctl", True)


def test_a_local_model_has_no_server(world: World, collector: Receiver) -> None:
    """A model on this machine is told like any other, without an address and at no cost."""
    world.variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    receipt = world.run("embed", "in.parquet", "-o", "out.parquet", "--json", "--no-progress").receipt
    spans = collector.operations

    assert {span.attributes["gen_ai.provider.name"] for span in spans} == {"onnx"}
    assert not any(name.startswith("server.") for span in collector.spans for name in span.attributes)
    assert sum(span.attributes["gen_ai.usage.input_tokens"] for span in spans) == receipt["tokens"]
    assert {float(span.attributes["embedctl.cost.amount"]) for span in spans} == {0.0}


def test_attempts_are_children(world: World, collector: Receiver) -> None:
    """What failed and was tried again is one span with a child for each attempt, in order; errors are fixed words."""
    world.wire.plan(script=[{"fault": "status", "status": 503}, {"fault": "status", "status": 500}])
    ended = embed(world, collector.endpoint, "--concurrency", "1")
    tried = [span for span in collector.operations if span.attributes["embedctl.attempts"] > 1]
    attempts = [one for span in tried for one in collector.children(span)]

    assert ended.code == 0, ended.err
    assert len(collector.spans) == len(collector.operations) + ended.receipt["attempts"]
    assert [one.attributes["embedctl.attempt.number"] for one in collector.children(tried[0])][:2] == [1, 2]
    assert [one.is_error for one in attempts].count(True) == 2
    assert {one.attributes["error.type"] for one in attempts if one.is_error} == {"server_failed"}
    assert not any(span.is_error for span in tried)


def test_the_billed_count_is_the_one_of_the_ledger(world: World, collector: Receiver) -> None:
    """A count that the ledger does not believe is not told as the provider's: what is billed has another name."""
    world.wire.plan(faults={"usage_zero": 1.0})
    receipt = embed(world, collector.endpoint).receipt
    (tokens,) = collector.metrics["gen_ai.client.embeddings.operation.input_tokens"]
    spans = collector.operations

    assert receipt["usage_source"] == "fallback"
    assert not any("gen_ai.usage.input_tokens" in span.attributes for span in spans)
    assert sum(span.attributes["embedctl.usage.estimated_input_tokens"] for span in spans) == receipt["tokens"]
    assert tokens.sum == receipt["tokens"]


def test_never_text_nor_keys(world: World, collector: Receiver) -> None:
    """No text, no key and no tag is sent, also when a server repeats them in an error, an id or a model's name."""
    world.table(["CANARYTEXT and more", *TEXTS])
    more = {"model": "CANARYTEXT and more", "id": "sk-test"}
    world.wire.plan(
        script=[
            {"fault": "says", "status": 400, "body": '{"error": {"message": "CANARYTEXT sk-test"}}'},
            {"fault": "says", "more": more},
        ]
    )
    embed(world, collector.endpoint, "--tag", "who=CANARYTAG", "--concurrency", "1")
    sent = b"".join(collector.raw)

    assert len(collector.spans) > 4
    for secret in (b"CANARY", b"sk-test", b"who"):
        assert secret not in sent


def test_signals_and_headers_go_where_their_variables_say(world: World, collector: Receiver) -> None:
    """A variable for one signal sends that one alone, and the service's name is OpenTelemetry's.

    Without an endpoint, or with the SDK switched off, nothing is sent.
    """
    about = {"OTEL_SERVICE_NAME": "nightly", "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={KEY_OF_COLLECTOR}"}
    embed(world, "", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.endpoint}/v1/traces", **about)
    assert set(collector.paths) == {"/v1/traces"}
    assert {one["service.name"] for one in collector.resources} == {"nightly"}
    before = len(collector.raw)
    embed(world, collector.endpoint, "--overwrite", OTEL_SDK_DISABLED="true")
    embed(world, "", "--overwrite")

    assert len(collector.raw) == before


@pytest.mark.parametrize("kind", ["refuses", "silent", "nonsense", "not_here", "busy", "endless"])
def test_a_bad_collector_costs_one_word(world: World, kind: str) -> None:
    """A collector that is gone, silent, busy or none: the run is as without it, and one line says so.

    It has neither the user and password of the address nor a header.
    """
    with bad_server(kind) as port:
        secret = {"OTEL_EXPORTER_OTLP_HEADERS": f"api-key={KEY_OF_COLLECTOR}"}
        ended = embed(world, f"http://someone:{KEY_OF_COLLECTOR}@127.0.0.1:{port}", **secret)

    assert ended.code == 0, ended.err
    assert ended.receipt["vectors"] == len(TEXTS)
    assert [line.startswith("warning: telemetry: ") for line in ended.err.splitlines()] == [True], ended.err
    assert f"127.0.0.1:{port}" in ended.err
    assert KEY_OF_COLLECTOR not in ended.err + ended.out
    assert world.ledger()["confirmed"] == ended.receipt["tokens"]


@pytest.mark.parametrize(("kind", "is_imported"), [("refuses", False), ("busy", False), ("here", True)])
def test_who_takes_nothing_costs_no_sdk(world: World, collector: Receiver, kind: str, is_imported: bool) -> None:
    """The SDK, which takes more CPU than all spans of a run, is imported for a collector that answers alone."""
    seen = world.folder / "seen"
    seen.mkdir()
    (seen / "sitecustomize.py").write_text(
        "import pathlib, sys\n"
        "class Seen:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'opentelemetry.sdk.trace':\n"
        f"            pathlib.Path({str(seen / 'imported')!r}).touch()\n"
        "sys.meta_path.insert(0, Seen())\n"
    )
    with contextlib.nullcontext(collector.port) if kind == "here" else bad_server(kind) as port:
        env = world.environment | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "PYTHONPATH": f"{seen}:{places.ROOT}",
        }
        words = [sys.executable, "-m", "embedctl", "embed", "in.parquet", "-o", "out.parquet", *OPENAI]
        done = subprocess.run(words, cwd=world.folder, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert (seen / "imported").exists() == is_imported
    assert ("warning: telemetry: " in done.stderr) != is_imported


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROTOCOL", "grpc"),
        ("TIMEOUT", KEY_OF_COLLECTOR),
        ("COMPRESSION", KEY_OF_COLLECTOR),
        ("HEADERS", KEY_OF_COLLECTOR),
    ],
)
def test_variables_that_cannot_be_followed_are_one_word(
    world: World, collector: Receiver, variable: str, value: str
) -> None:
    """Another protocol, or a value that the SDK cannot read, is said once, without the value; the run goes on."""
    ended = embed(world, collector.endpoint, **{f"OTEL_EXPORTER_OTLP_{variable}": value})

    assert ended.code == 0, ended.err
    assert ended.err.count("warning: ") == ended.err.count("warning: telemetry: ") == 1, ended.err
    assert KEY_OF_COLLECTOR not in ended.err
    assert not (variable == "PROTOCOL" and collector.raw)


def test_without_the_extra_it_is_one_word(world: World, collector: Receiver) -> None:
    """Where the SDK is not installed, the variable costs a line that says how to get it."""
    hidden = world.folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    env = world.environment | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "PYTHONPATH": f"{hidden}:{places.ROOT}",
    }
    words = [sys.executable, "-m", "embedctl", "embed", "in.parquet", "-o", "out.parquet", *OPENAI]
    done = subprocess.run(words, cwd=world.folder, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: telemetry: nothing is sent without the extra otel: ") == 1


def test_a_folder_does_not_say_where_it_goes(world: World, collector: Receiver) -> None:
    """Neither a project's file nor a job's may name a collector or a cache of counts."""
    for text, code in (
        (f'[telemetry]\nendpoint = "{collector.endpoint}"\n', 78),
        ('[token_usage]\ncache = "redis://127.0.0.1:1"\n', 78),
        ("[token_usage]\ncache = true\n", 78),
    ):
        (world.folder / "embedctl.toml").write_text(text)
        ended = world.run("embed", "in.parquet", "-o", "out.parquet", *OPENAI)
        assert ended.code == code, text
        (world.folder / "embedctl.toml").unlink()
        (world.folder / "JOB.toml").write_text(f'input = "in.parquet"\noutput = "o"\n{text}')
        assert world.run("batch", "run", "JOB.toml").code == 78, text

    assert collector.raw == []
