"""Whatever a Batch API answers, in every protocol: a value within bounds, or an error of our tree, in no time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl import providers
from embedctl.errors import InvariantBroken, ProviderError
from embedctl.providers import _batch, _batch_entry
from embedctl.providers._batch import BatchFile, BatchState, LineResult
from embedctl.providers._contract import HttpRequest, Provider, RequestOptions, Secret
from tests.contract.providers.batching import CASES, Batches
from tests.contract.providers.test_contract import KEY, answered
from tests.contract.providers.test_hostile import DEEP, paths, put, well_kept
from tests.support.wire.client import started

BAD_IDS = [
    "../../../etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a\x00b",
    "a\nb: c",
    "a b",
    "a?b=c",
    "a#b",
    "%2e%2e",
    "http://169.254.169.254/latest",
    "//evil.example.org",
    "file:///etc/passwd",
    "é",
    "a" * 513,
    "",
]
NASTY = [
    b"null", b"true", b"-1", b"0.5", b"1e308", b"9" * 400, b"-0", b"1e400", b"[]", b"{}", b'""', b'"x"', b"[[1]]",
    b'{"a":{"b":1}}', b'{"error":{"message":"x"}}', b"[null,null]", b'"../.."', b'"' + KEY.encode() + b'"',
    b'"\\u202e\\u001b[31m\\u0000"', b'"' + b"y" * 100_000 + b'"',
]  # fmt: skip


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    """Good answers of each protocol's calls, and lines of both kinds."""
    with started() as wire:
        return {name: _recorded(Batches(wire, name)) for name in CASES}


def _recorded(batches: Batches) -> dict[str, Any]:
    batches.wire.reset()
    module, place = batches.module, batches.place
    batches.wire.plan(batch={"each": {"fails": 0.5}})
    asked = module.batch_upload(place, "ec-1", batches.lines())
    found: dict[str, Any] = {"uploaded": (asked, answered(asked)[2])}
    file = _batch_entry.uploaded(batches.name, 200, {}, found["uploaded"][1], asked)
    made: HttpRequest = module.batch_create(place, batches.case.model, file.id, "ec-1", RequestOptions())
    found["created"] = (made, answered(made)[2])
    batch = _batch_entry.created(batches.name, 200, {}, found["created"][1], made).batch
    assert batch is not None
    for name, one in (
        ("state", module.batch_status(place, batch.id)),
        ("page", module.batch_list(place, "ec-1", None)),
        ("files", module.batch_files(place, "ec-1", None)),
        ("cancelled", module.batch_status(place, batch.id)),
    ):
        found[name] = (one, answered(one)[2])
    ended = _batch_entry.state(batches.name, 200, {}, found["state"][1], found["state"][0])
    lines = []
    for one in module.batch_results(place, batches.case.model, ended):
        lines += [(one.request, line) for line in answered(one.request)[2].splitlines(keepends=True)]
    found["lines"] = [
        next(one for one in lines if b"mbedding" in one[1]),
        next(one for one in lines if b"error" in one[1]),
    ]
    return found


CALLS: dict[str, Callable[..., Any]] = {
    "uploaded": _batch_entry.uploaded,
    "files": _batch_entry.files,
    "created": _batch_entry.created,
    "state": _batch_entry.state,
    "page": _batch_entry.page,
    "cancelled": _batch_entry.cancelled,
}


def checked(value: Any) -> None:
    """Everything in a value is in bounds."""
    if isinstance(value, ProviderError):
        well_kept(value)
    elif isinstance(value, BatchState | BatchFile):
        for one in fields(value):
            said = getattr(value, one.name)
            if one.name == "id" or one.name.endswith("_id"):
                assert said is None or _batch.remote_id(said) == said
            elif one.name in ("mark",):
                assert said is None or _batch.mark_of(said) == said
            elif one.name == "errors":
                assert len(said) <= 10
                assert all(len(word) <= 200 and word.isprintable() and KEY not in word for word in said)
            elif isinstance(said, str):
                assert len(said) <= 200
                assert said.isprintable()
                assert KEY not in said
            elif isinstance(said, bool):
                pass
            elif isinstance(said, int | float):
                assert 0 <= said < 10**13
    elif isinstance(value, LineResult):
        assert value.line_id is None or _batch.line_id_of(value.line_id) == value.line_id
        assert value.tokens is None or 0 <= value.tokens <= 10**12
        assert (value.answer is not None) == (value.kind == "answered")
        assert (value.error is not None) == (value.kind != "answered")
        for one in (value.answer, value.error):
            if one is not None:
                well_kept(one)
    elif value is not None:
        for one in fields(value):
            said = getattr(value, one.name)
            for inner in said if isinstance(said, tuple) else [said]:
                if isinstance(inner, BatchState | BatchFile | ProviderError):
                    checked(inner)


def call(name: str, what: str, status: int, body: bytes) -> Any:
    """What a call makes of a body."""
    began = time.process_time()
    asked = recorded()[name][what][0]
    try:
        found = CALLS[what](name, status, {}, body, asked)
    except ProviderError as error:
        found = error
    assert time.process_time() - began < 2
    checked(found)
    return found


def read_line(name: str, content: bytes) -> LineResult:
    began = time.process_time()
    found = _batch_entry.line(name, content, recorded()[name]["lines"][0][0])
    assert time.process_time() - began < 2
    checked(found)
    if found.error is not None:
        assert "the line cannot be read (" not in found.error.message
    return found


def changed(body: bytes, raw: bytes) -> Iterator[bytes]:
    """The body with this JSON at each of its places in turn."""
    value, marker = orjson.loads(body), "☃ here"
    for path in paths(value):
        yield orjson.dumps(put(value, path, marker)).replace(orjson.dumps(marker), raw)


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("name", CASES)
def test_nasty_values_everywhere(name: str, what: str) -> None:
    """Numbers without end, other types, long strings, control characters and the key, anywhere in any answer."""
    _, body = recorded()[name][what]

    for raw in (*NASTY, DEEP):
        for one in changed(body, raw):
            call(name, what, 200, one)


@pytest.mark.parametrize("name", CASES)
def test_nasty_values_in_lines(name: str) -> None:
    """The same in every place of a line that was answered, and of one that was not."""
    for _, body in recorded()[name]["lines"]:
        for raw in (*NASTY, DEEP):
            for one in changed(body, raw):
                read_line(name, one)


@pytest.mark.parametrize("name", CASES)
def test_lines_that_are_cut(name: str) -> None:
    """A line that ends anywhere before its end is unreadable, never answered."""
    for _, body in recorded()[name]["lines"]:
        whole = body.rstrip()
        for end in {*range(0, len(whole), max(1, len(whole) // 200)), len(whole) - 1}:
            assert read_line(name, whole[:end]).kind == "unreadable"


@pytest.mark.parametrize("name", CASES)
def test_lines_that_are_too_long(name: str) -> None:
    """A line of more than 64 MiB is unreadable, and not parsed."""
    line = b'{"custom_id":"a","key":"a","pad":"' + b"x" * _batch.MOST_LINE_BYTES + b'"}'

    assert read_line(name, line).kind == "unreadable"


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("name", CASES)
def test_ids_never_leave_their_place(name: str, bad: str) -> None:
    """An id with separators, control characters or a URL is none: no request is made of it, no file could be named."""
    raw = orjson.dumps(bad)
    for what in CALLS:
        for one in changed(recorded()[name][what][1], raw):
            call(name, what, 200, one)
    module, place = providers.protocol(name), _place(name)
    for build in (module.batch_status, module.batch_cancel, module.batch_delete):
        with pytest.raises(InvariantBroken):
            build(place, bad)


@pytest.mark.parametrize("name", CASES)
def test_ids_as_the_server_says_them(name: str) -> None:
    """A server whose output stands at another path or host: nothing is fetched from there."""
    with started() as wire:
        for link in ("../../../../secret", "http://127.0.0.1:1/secret", "file-1?x=/../.."):
            wire.reset()
            wire.plan(batch={"each": {"link": link}})
            batches = Batches(wire, name)

            ended = batches.ended()

            assert (ended.output_id, batches.module.batch_results(batches.place, batches.case.model, ended)) == (
                None,
                (),
            )


def _place(name: str) -> Provider:
    return Provider(name=name, protocol=name, base_url="https://example.org/base", api_key=Secret(KEY))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(BAD_IDS),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            [
                "id", "name", "data", "status", "state", "metadata", "errors", "error", "total", "has_more", "last_id",
                "operations", "files", "file", "nextPageToken", "request_counts", "usage", "output_file_id",
                "batchStats", "displayName", "embedctl_batch", "filename", "bytes", "input_files", "output", "response",
                "done", "custom_id", "key", "status_code", "body", "embedding", "values", "code", "message",
            ]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_any_json(name: str, value: Any) -> None:
    """Any JSON at all, as an answer of every call, and as a line."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # an integer of more than 64 bits, or a lone surrogate
        return
    for what in CALLS:
        call(name, what, 200, body)
    read_line(name, body)
    module = providers.protocol(name)
    for reader in (module.batch_state, module.batch_file):
        reader(value)  # never an error that it did not think of


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200))
def test_any_bytes(name: str, body: bytes) -> None:
    """Any bytes at all: a create is unknown, everything else an error; a line is unreadable."""
    try:
        if isinstance(orjson.loads(body), dict):
            return
    except orjson.JSONDecodeError:
        pass
    for what in ("uploaded", "files", "state", "page"):
        assert isinstance(call(name, what, 200, body), ProviderError)
    assert call(name, "created", 200, body).kind == "unknown"
    assert read_line(name, body).kind == "unreadable"


@pytest.mark.parametrize("status", [200, 201, 202, 204])
@pytest.mark.parametrize("name", CASES)
def test_creates_that_say_nothing(name: str, status: int) -> None:
    """A success without a readable id may have made a batch: unknown."""
    for body in (
        b"",
        b"{}",
        b"null",
        b"<html>",
        b'{"id": 7}',
        b'{"name": "batches/"}',
        b'{"error": {"message": "no"}}',
    ):
        assert call(name, "created", status, body).kind == "unknown"


KNOWN = {
    "openai": ("has_more", "last_id"),
    "voyage": ("has_more", "last_id"),
    "mistral": ("total",),
    "google": ("nextPageToken",),
}


@pytest.mark.parametrize("what", ["page", "files"])
@pytest.mark.parametrize("name", CASES)
def test_lists_of_another_shape_prove_nothing(name: str, what: str) -> None:
    """A page that is none is an error; an entry that cannot be read, or more that cannot be asked for: not complete."""
    for body in (b"[]", b"null", b'"x"', b'{"items": []}', b'{"data": {}}', b'{"error": {}}', b'{"operations": {}}'):
        assert isinstance(call(name, "page", 200, body), ProviderError), body
    asked, good = recorded()[name][what]
    value = orjson.loads(good)
    listed = next(key for key in ("operations", "files", "data") if key in value)
    named = "batches" if what == "page" else "files"

    odd = call(name, what, 200, orjson.dumps({**value, listed: [*value[listed], {"id": "../x", "name": "x"}]}))
    unaskable = {"has_more": True, "last_id": "../x", "total": 9, "nextPageToken": "x" * 9999}
    more = call(name, what, 200, orjson.dumps(value | {key: unaskable[key] for key in KNOWN[name]}))

    assert odd.complete is False
    assert len(getattr(odd, named)) == len(value[listed])
    assert more.complete == (name == "mistral")  # which asks for the next number
    assert (more.cursor is not None) == (name == "mistral")
    assert asked.method == "GET"


@pytest.mark.parametrize("name", CASES)
def test_the_key_in_a_refusal(name: str) -> None:
    """A key that a refusal repeats is struck from every error."""
    said = orjson.dumps({"error": {"message": f"Incorrect API key provided: {KEY}. Look."}})

    outcome = call(name, "created", 401, said)

    assert outcome.kind == "rejected"
    assert "***" in outcome.error.message
    for what in ("uploaded", "files", "state", "page", "cancelled"):
        assert isinstance(call(name, what, 401, said), ProviderError)


@pytest.mark.parametrize(
    ("location", "goes"),
    [
        ("https://storage.example.org/signed?x=1", True),
        ("/elsewhere", True),
        ("http://storage.example.org/plain", False),
        ("https://127.0.0.1/x", False),
        ("https://10.0.0.1/x", False),
        ("https://169.254.169.254/latest", False),
        ("https://[::1]/x", False),
        ("https://localhost/x", False),
        ("https://intranet/x", False),
        ("https://user:pw@example.org/x", False),
        ("file:///etc/passwd", False),
        ("ftp://example.org/x", False),
        ("https://example.org/a b", False),
        ("https://example.org/\x1b", False),
        ("https://[/x", False),
        ("", False),
        ("https://example.org/" + "x" * 5000, False),
    ],
)
def test_results_that_are_elsewhere(location: str, goes: bool) -> None:
    """A redirect of a result becomes a request without a key, over https or at the same host, to nowhere private."""
    module = providers.protocol("voyage")
    state = BatchState(id="batch-1", output_id="file-1")
    (file,) = module.batch_results(_place("voyage"), "voyage-4", state)

    found = _batch_entry.moved(302, {"location": location}, file.request)

    assert (found is not None) == goes
    if found is not None:
        assert not any(KEY in value for value in found.headers.values())
        assert KEY not in found.url
    assert _batch_entry.moved(200, {"location": location}, file.request) is None
    made = module.batch_create(_place("voyage"), "voyage-4", "file-1", "ec-1", RequestOptions())
    assert _batch_entry.moved(302, {"location": location}, made) is None


def test_moments() -> None:
    """Times are Unix seconds, whatever form they come in; nonsense is none."""
    for said, wanted in (
        (1_700_000_000, 1_700_000_000.0),
        ("2026-11-25T10:00:00Z", 1_795_600_800.0),
        ("2026-11-25T10:00:00.123456789Z", 1_795_600_800.123456),
        ("2026-11-25T10:00:00+02:00", 1_795_593_600.0),
        (0, None), (-5, None), (1e300, None), (True, None), ("soon", None), ("9" * 50, None), (None, None), ([], None),
        ("0001-01-01T00:00:00+23:59", None),
    ):  # fmt: skip
        assert _batch.moment(said) == wanted
