"""The API's description, held to the routes, to a running server, and to the schema of descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import validate

from embedctl.server import app as apps
from embedctl.server import openapi
from embedctl.server.jobs import routes as job_routes
from embedctl.server.openapi import OPERATIONS, DescribedPath
from embedctl.server.refusals import CODES
from embedctl.settings import ServeSettings
from tests.support.serving import MODEL, Serving, serving
from tests.support.wire.client import Wire


@pytest.fixture(scope="module")
def server(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that takes everybody on this machine for its admin."""
    wire.reset()
    with serving(tmp_path_factory.mktemp("described"), wire, settings=f'model = "openai:{MODEL}"\n') as found:
        found.embed("so that there are circuits and usage")
        yield found


def check(schema: Any, value: Any) -> None:
    """Against the description's schemas."""
    whole = {**schema, "components": openapi.document()["components"]}
    Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)


class NoQueue:
    """What paths of jobs hold on to when they are made; none of it is used here."""

    is_elsewhere = False
    store = None
    steps: dict[str, Any] = {}  # noqa: RUF012 - nothing is put there that matters


def test_it_is_a_description() -> None:
    """It is valid OpenAPI 3.1, and each operation has an id of its own."""
    document = openapi.document()
    validate(document)
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]

    assert document["openapi"] == "3.1.0"
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


def test_each_route_is_described_and_the_reverse() -> None:
    """Every method of every route is in it, and it has none that is no route."""
    state = type("State", (), {"serve": ServeSettings(), "clock": lambda: 0.0})()
    queue = NoQueue()
    routes = apps.app(cast("Any", state), job_routes.routes(cast("Any", state), cast("Any", queue))).routes
    there = {
        (method, re.sub(r":path}", "}", cast("Any", route).path))
        for route in routes
        for method in cast("Any", route).methods - {"HEAD"}
    }

    assert {(one.method, one.path) for one in OPERATIONS} == there


def test_every_code_has_a_place() -> None:
    """Each code that the service refuses with is one of some operation, or of every request."""
    operations = [each for path in openapi.document()["paths"].values() for each in path.values()]
    told = " ".join(answer["description"] for each in operations for answer in each["responses"].values())
    codes = set(re.findall(r"`(\w+)`", told))

    assert set(CODES) - codes == {"method_not_allowed"}


@pytest.mark.parametrize("one", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_its_examples_are_what_it_says(one: DescribedPath) -> None:
    """An example of a body or an answer is valid by its own schema."""
    described = openapi.document()["paths"][one.path][one.method.lower()]
    for about in (one.takes, one.answers):
        if isinstance(about, tuple):
            check(*about)
    for status, answer in described["responses"].items():
        if int(status) >= 400:
            content = answer["content"]["application/json"]
            check(content["schema"], content["example"])


OF_SOMETHING = [one for one in OPERATIONS if one.group in ("Jobs", "Media", "Files and batches")]
"""What is about a job, a file or a media item that there is not here: tests of jobs make some."""

TRIED = [one for one in OPERATIONS if one not in OF_SOMETHING or (one.method == "GET" and "{" not in one.path)]


@pytest.mark.parametrize("one", TRIED, ids=lambda one: f"{one.method} {one.path}")
def test_a_server_answers_as_it_says(one: DescribedPath, server: Serving) -> None:
    """The example of each operation, sent to a server, is answered with 200 and as its schema says."""
    names = {"id": MODEL, "name": "openai", "provider": "openai"}
    path = re.sub(r"{(\w+)}", lambda part: names[part[1]], one.path)
    reply = server.ask(one.method, path, one.takes[1] if one.takes else None)

    assert reply.status == 200, reply.body
    if isinstance(one.answers, tuple):
        check(one.answers[0], reply.json)
    else:
        assert reply.headers["content-type"].startswith(one.answers)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/embeddings", {"input": ""}),
        ("POST", "/v1/embeddings", {"input": ["a", "word " * 9000]}),
        ("POST", "/api/v1/embeddings", {"input": "word " * 9000}),
        ("POST", "/api/v1/embeddings", {"input": "a", "model": "nothing"}),
        ("GET", "/api/v1/embeddings/usage?by=nothing", None),
        ("GET", "/api/v1/embeddings/usage?since=never", None),
        ("GET", "/api/v1/embeddings/usage?timezone=Mars/Olympus", None),
        ("POST", "/api/v1/embeddings/circuit-breakers/nobody/reset", None),
        ("POST", "/api/v1/embeddings/models/warmup", {"model": MODEL}),
    ],
)
def test_a_refusal_is_as_it_says(server: Serving, method: str, path: str, body: Any) -> None:
    """Status and code of a refusal are among those of its operation, and its body is an error."""
    reply = server.ask(method, path, body)
    known = openapi.document()["paths"]
    about = known.get(path.partition("?")[0]) or known["/api/v1/embeddings/circuit-breakers/{provider}/reset"]
    told = about[method.lower()]["responses"][str(reply.status)]

    assert f"`{reply.code}`" in told["description"]
    check(told["content"]["application/json"]["schema"], reply.json)
