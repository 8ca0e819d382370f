"""The wire server's formats, checked by the vendors' own clients: each reads the right vectors from it.

They are in the optional group `sdks`; where one is not installed, its test is skipped.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from tests.contract.providers.batching import Batches
from tests.support.wire.client import Wire, expected, started

TEXTS = ["alpha", "beta gamma", "delta\nepsilon"]
KEY = "test-key-0123456789"
pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own deprecations are theirs


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with started() as running:
        yield running


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield
    gc.collect()  # some clients leave their sockets to the collector: let it complain here, where it is filtered


def client(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"the official client {name} is not installed (group `sdks`)")


def same(found: Any, model: str, dimensions: int | None = None) -> None:
    np.testing.assert_allclose(np.array(found, dtype=np.float32), expected(TEXTS, model, dimensions), rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_openai(wire: Wire, encoding: str) -> None:
    """The openai client reads the right vectors and the usage, in base64 and in floats."""
    sdk = client("openai").OpenAI(api_key=KEY, base_url=wire.base_url("openai"))
    # left to itself the client asks for base64
    more = {"encoding_format": "float"} if encoding == "float" else {}

    found = sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS, dimensions=64, **more)

    same([one.embedding for one in found.data], "text-embedding-3-small", 64)
    assert found.usage.total_tokens == wire.truth()[-1]["tokens_billed"]


def test_azure(wire: Wire) -> None:
    """The openai package's Azure client reads the right vectors from a deployment."""
    sdk = client("openai").AzureOpenAI(api_key=KEY, azure_endpoint=wire.base_url("azure"), api_version="2024-10-21")

    found = sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS)

    same([one.embedding for one in found.data], "text-embedding-3-small")


def test_openai_rate_limit(wire: Wire) -> None:
    """The openai client understands a 429 of the server as its own rate limit."""
    openai = client("openai")
    wire.plan(script=[{"fault": "rate", "form": "seconds", "seconds": 1}])
    sdk = openai.OpenAI(api_key=KEY, base_url=wire.base_url("openai"), max_retries=0)

    with pytest.raises(openai.RateLimitError) as caught:
        sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS)

    assert caught.value.response.headers["retry-after"] == "1"


def test_cohere(wire: Wire) -> None:
    """The cohere client reads the right vectors and the billed units."""
    sdk = client("cohere").ClientV2(api_key=KEY, base_url=wire.base_url("cohere"))

    found = sdk.embed(
        model="embed-v4.0", texts=TEXTS, input_type="search_document", embedding_types=["float"], output_dimension=256
    )

    same(found.embeddings.float_, "embed-v4.0", 256)
    assert found.meta.billed_units.input_tokens == wire.truth()[-1]["tokens_billed"]


def test_voyageai(wire: Wire) -> None:
    """The voyageai client reads the right vectors and the total tokens."""
    sdk = client("voyageai").Client(api_key=KEY, base_url=wire.base_url("voyage"))

    found = sdk.embed(TEXTS, model="voyage-4", input_type="document", output_dimension=256)

    same(found.embeddings, "voyage-4", 256)
    assert found.total_tokens == wire.truth()[-1]["tokens_billed"]


def test_mistralai(wire: Wire) -> None:
    """The mistralai client reads the right vectors and the usage."""
    sdk = client("mistralai.client").Mistral(api_key=KEY, server_url=wire.base_url("mistral").removesuffix("/v1"))

    found = sdk.embeddings.create(model="mistral-embed", inputs=TEXTS)

    same([one.embedding for one in found.data], "mistral-embed")
    assert found.usage.total_tokens == wire.truth()[-1]["tokens_billed"]


def test_google_genai(wire: Wire) -> None:
    """The google-genai client reads one right vector per text."""
    genai = client("google.genai")
    sdk = genai.Client(api_key=KEY, http_options={"base_url": wire.base_url("google")})

    found = sdk.models.embed_content(
        model="gemini-embedding-001", contents=TEXTS, config={"output_dimensionality": 768}
    )

    same([one.values for one in found.embeddings], "gemini-embedding-001", 768)


def test_ollama(wire: Wire) -> None:
    """The ollama client reads the right vectors and the tokens."""
    sdk = client("ollama").Client(host=wire.base_url("ollama"))

    found = sdk.embed(model="all-minilm", input=TEXTS, truncate=False)

    same(found.embeddings, "all-minilm")
    assert found.prompt_eval_count == wire.truth()[-1]["tokens_billed"]


def test_openai_batches(wire: Wire) -> None:
    """The openai client uploads, creates, lists, reads and cancels batches; each line is what its client would read."""
    openai = client("openai")
    sdk = openai.OpenAI(api_key=KEY, base_url=wire.base_url("openai"), max_retries=0)
    wire.reset()
    wire.plan(batch={"batches": [{}, {"polls": 9}]}, poison=["bad"])
    ours = Batches(wire, "openai", KEY)
    file = sdk.files.create(file=("ec-1.jsonl", ours.lines([*TEXTS, "bad"])), purpose="batch")

    made, other = (
        sdk.batches.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            metadata={"embedctl_batch": f"ec-{number}"},
        )
        for number in (1, 2)
    )
    ended = sdk.batches.retrieve(made.id)

    assert (made.status, ended.status) == ("validating", "completed")
    assert (ended.request_counts.completed, ended.request_counts.failed) == (1, 1)
    assert ended.usage.total_tokens == wire.billed()
    assert [one.metadata["embedctl_batch"] for one in sdk.batches.list(limit=1)] == ["ec-2", "ec-1"]
    assert [one.filename for one in sdk.files.list(purpose="batch")][-1] == "ec-1.jsonl"
    (line,) = map(orjson.loads, sdk.files.content(ended.output_file_id).text.splitlines())
    read = openai.types.CreateEmbeddingResponse.model_validate(line["response"]["body"])
    assert read.usage.total_tokens == ended.usage.total_tokens
    (refused,) = map(orjson.loads, sdk.files.content(ended.error_file_id).text.splitlines())
    assert refused["response"]["status_code"] == 400
    assert sdk.batches.cancel(other.id).status == "cancelled"
    assert sdk.files.delete(file.id).deleted


def test_mistralai_batches(wire: Wire) -> None:
    """The mistralai client uploads, creates, lists by metadata, reads and cancels jobs."""
    sdk = client("mistralai.client").Mistral(api_key=KEY, server_url=wire.base_url("mistral").removesuffix("/v1"))
    wire.reset()
    wire.plan(batch={"batches": [{}, {"polls": 9, "cancel_polls": 1}]})
    content = Batches(wire, "mistral", KEY).lines(TEXTS)
    file = sdk.files.upload(file={"file_name": "ec-1.jsonl", "content": content}, purpose="batch")

    made, other = (
        sdk.batch.jobs.create(
            input_files=[file.id],
            model="codestral-embed",
            endpoint="/v1/embeddings",
            metadata={"embedctl_batch": f"ec-{number}"},
        )
        for number in (1, 2)
    )
    ended = sdk.batch.jobs.get(job_id=made.id)

    assert (made.status, ended.status) == ("QUEUED", "SUCCESS")
    assert (ended.total_requests, ended.succeeded_requests, ended.failed_requests) == (1, 1, 0)
    assert [one.id for one in sdk.batch.jobs.list(metadata={"embedctl_batch": "ec-1"}).data] == [made.id]
    assert [one.filename for one in sdk.files.list(purpose="batch").data][-1] == "ec-1.jsonl"
    (line,) = map(orjson.loads, sdk.files.download(file_id=ended.output_file).read().splitlines())
    same([one["embedding"] for one in line["response"]["body"]["data"]], "codestral-embed")
    assert sdk.batch.jobs.cancel(job_id=other.id).status == "CANCELLATION_REQUESTED"
    assert sdk.files.delete(file_id=file.id).deleted


def test_google_genai_batches(wire: Wire) -> None:
    """The google-genai client creates, lists, reads and cancels batches of a file that was uploaded under its name."""
    genai = client("google.genai")
    sdk = genai.Client(api_key=KEY, http_options={"base_url": wire.base_url("google")})
    wire.reset()
    wire.plan(batch={"batches": [{}, {"polls": 9, "cancel_polls": 9}]})
    ours = Batches(wire, "google", KEY)
    file = ours.upload("ec-1", ours.lines(TEXTS))

    made, other = (
        sdk.batches.create_embeddings(
            model="gemini-embedding-001", src={"file_name": f"files/{file.id}"}, config={"display_name": f"ec-{number}"}
        )
        for number in (1, 2)
    )
    ended = sdk.batches.get(name=made.name)

    assert (made.state.name, ended.state.name) == ("JOB_STATE_PENDING", "JOB_STATE_SUCCEEDED")
    assert [one.display_name for one in sdk.batches.list()] == ["ec-2", "ec-1"]
    found = sdk.files.get(name=f"files/{file.id}")
    assert (found.display_name, found.size_bytes) == ("ec-1", file.bytes)
    lines = [orjson.loads(line) for line in sdk.files.download(file=ended.dest.file_name).splitlines()]
    assert [line["key"] for line in lines] == ["line-0", "line-1", "line-2"]
    same([line["response"]["embedding"]["values"] for line in lines], "gemini-embedding-001")
    sdk.batches.cancel(name=other.name)
    assert sdk.batches.get(name=other.name).state.name == "JOB_STATE_RUNNING"
    sdk.files.delete(name=f"files/{file.id}")
