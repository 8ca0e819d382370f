"""What people see of a text that was found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.cli.vectors._passages import LINES, marked, passage, wanted


@pytest.mark.parametrize(
    ("text", "heading", "begins"),
    [
        ("### 5.3 Refunds\n\nSupport may", "5.3 Refunds", "Support may"),
        ("=====\nUsing\n=====\n\nText here", "Using", "Text here"),
        (".. _using-on-unix:\n\nUsing Python\n------------\n\nA b c", "Using Python", "A b c"),
        (".. index:: pair; x\n\nPlain text", None, "Plain text"),
        ("-----\n\n<!-- note -->\nPlain", None, "Plain"),
        ("Plain\ntext\n====", None, "Plain text"),
        ("See\n\n.. _Apache: https://example.org/\n\nWhy?\n====\n\nSo.", None, "See Why? So."),
        ("----", None, "----"),
        ("", None, ""),
    ],
)
def test_what_says_nothing_is_left_out(text: str, heading: str | None, begins: str) -> None:
    """A text begins with its heading, without the rulers and directives before it, nor rulers and targets in it."""
    found = passage(text, [], 80)

    assert found.heading == heading
    assert " ".join(found.lines) == begins


def test_the_best_lines_are_shown() -> None:
    """Of a long text the lines with most of the words are shown; what is left out is marked."""
    text = (
        " ".join(f"number{at}" for at in range(200)) + " the refund of shipping " + " ".join("abcd" for _ in range(200))
    )
    words = wanted("Refund for SHIPPING?")
    found = passage(text, words, 60)

    assert words == ["refund", "for", "shipping"]
    assert len(found.lines) == LINES
    assert "the refund of shipping" in " ".join(found.lines)
    assert found.lines[0].startswith("… ")
    assert found.lines[-1].endswith(" …")
    assert " ".join(passage(text, words, 60, full=True).lines) == text


def test_words_are_marked_whatever_their_case() -> None:
    """Whole words are marked, and longer ones that begin so; parts of others are not."""
    line = marked("Refunds: a REFUND, unrefunded", wanted("refund"), lambda word: f"[{word}]")

    assert line == "[Refunds]: a [REFUND], unrefunded"


@given(st.text(max_size=400), st.text(max_size=40), st.integers(1, 120))
def test_any_text_has_a_passage(text: str, query: str, width: int) -> None:
    """Whatever a text or a query holds, its words are shown in their order, none twice."""
    found = passage(text, wanted(query), width, full=True)
    shown = "".join([*([found.heading] if found.heading else []), *found.lines])

    assert "".join("".join(shown).split()) in "".join(text.split())
    for line in found.lines:
        assert marked(line, wanted(query), lambda word: word) == line
