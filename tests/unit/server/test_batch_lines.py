"""OpenAI's lines → rows: nothing is lost, nothing stands twice, and what is wrong is told with its line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from embedctl.server.jobs import batch_lines

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


def test_errors_name_their_lines() -> None:
    """Blank lines count as lines, and are none; a batch shows the first errors of all."""
    said, _, _ = read(line("a", "one"), b"", b"{", line("a", "two"), line(7, "three"))

    assert [(one["code"], one["line"]) for one in said["errors"]] == [
        ("invalid_json_line", 3),
        ("duplicate_custom_id", 4),
        ("missing_required_parameter", 5),
    ]
