"""OpenAI's lines → rows: nothing is lost, nothing stands twice, and what is wrong is told with its line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedctl.server import fields, refusals
from embedctl.server.jobs import batch_lines
from embedctl.server.refusals import Refused

TEXTS = st.text(min_size=1, max_size=5).filter(lambda text: not any("\ud800" <= one <= "\udfff" for one in text))
INPUTS = st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.just(""), st.just([]), st.just(None), st.just(7))


def read(*lines: bytes) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """What is said of a file, its lines and its rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = folder / "content"
        content.write_bytes(b"\n".join(lines))
        said = batch_lines.read(folder, content)
        found = [
            [json.loads(line) for line in (folder / name).read_bytes().splitlines()]
            for name in (batch_lines.LINES, batch_lines.ROWS)
        ]
        return said, found[0], found[1]


def line(custom_id: Any, inputs: Any) -> bytes:
    body = {"model": "m", "input": inputs}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}).encode()


@given(st.lists(INPUTS, min_size=1, max_size=12))
def test_every_line_is_asked_for_or_refused(inputs: list[Any]) -> None:
    """Each stands in the list once, in order; its inputs are rows, numbered without a gap, as many as it has."""
    numbered = [(f"n{at}", one) for at, one in enumerate(inputs)]
    said, lines, rows = read(*(line(*one) for one in numbered))
    expected = [one for one in inputs if (isinstance(one, str) and one) or (isinstance(one, list) and one)]
    texts = [text for one in expected for text in ([one] if isinstance(one, str) else one)]

    assert "errors" not in said, said
    assert [one["id"] for one in lines] == [name for name, _ in numbered]
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows] == list(range(len(texts)))
    assert sum(one.get("inputs", 0) for one in lines) == said["rows"] == len(rows)
    assert all(("error" in one) != ("inputs" in one) for one in lines)


@given(st.binary(max_size=200))
def test_whatever_a_file_holds_it_is_told(content: bytes) -> None:
    """Any bytes come to errors with codes, never to an exception."""
    said, _, _ = read(content)

    assert said["errors"]
    assert all(one["code"] and one["message"] for one in said["errors"])


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**420), 10**420)
    | st.floats()
    | st.text(max_size=3)
    | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("\udc00"), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = ["input", "model", "encoding_format", "dimensions", "user", "provider", "input_type", "purpose", "x", "\ud800"]


@given(st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body"]), ANY_JSON))
@example({"custom_id": "\ud800", "method": "POST", "url": "/v1/embeddings", "body": {"input": "a"}})
def test_whatever_a_line_holds_it_is_told(row: dict[str, Any]) -> None:
    """Any JSON as a line comes to errors with codes, never to an exception."""
    said, _, _ = read(
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}, **row}).encode()
    )

    assert said.get("errors") or said["lines"] == 1


@given(st.dictionaries(st.sampled_from(NAMES), ANY_JSON | INPUTS))
def test_whatever_a_body_holds_it_is_told(body: dict[str, Any]) -> None:
    """Any JSON as a request's body is vectors to be bought, or a refusal that can be written down."""
    sent = json.dumps(body).encode()
    try:
        fields.asked(sent)
    except Refused as refused:
        told = refusals.body(refused, openai=False)

        assert told.status == 400
        assert json.loads(refusals.encoded(told.content))["error"]["message"]
    said, lines, _ = read(
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}).encode()
    )

    assert said.get("errors") or lines[0]["id"] == "a"
    assert orjson.loads(orjson.dumps(said)) == said  # it is told to the server so


@pytest.mark.parametrize(
    "twice", ['{"input": "a", "input": "b"}', '{"input": "a", "dimensions": 8, "dimensions": null}']
)
def test_a_line_says_nothing_twice(twice: str) -> None:
    """A name that stands twice in a line's body is an error, as it is online: nobody knows which one is meant."""
    said, _, rows = read(b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": %b}' % twice.encode())

    assert said["errors"][0]["code"] == "invalid_json_line"
    assert rows == []


def test_errors_name_their_lines() -> None:
    """Blank lines count as lines, and are none; a batch shows the first errors of all."""
    said, _, _ = read(line("a", "one"), b"", b"{", line("a", "two"), line(7, "three"))

    assert [(one["code"], one["line"]) for one in said["errors"]] == [
        ("invalid_json_line", 3),
        ("duplicate_custom_id", 4),
        ("missing_required_parameter", 5),
    ]
