"""Chunking: pieces hold the whole text, in order, and fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl import tokens
from embedctl.errors import WrongUsage
from embedctl.planning import splitter
from tests.support import places

SOURCES = ("bundled:minilm", "tiktoken:cl100k_base", "bytes/4")

HANDBOOK = places.SAMPLES / "handbook.md"

prose = st.lists(
    st.sampled_from(
        [
            "Word",
            "naïve",
            "漢字かな",
            "Привет мир.",
            "مرحبا",
            "नमस्ते",
            "👩‍👩‍👧",
            "x" * 150,
            "# Head\n",
            "\n\n",
            "- item\n",
            "`code`",
            "| a | b |\n",
            ". ",
            "\t",
            "\u2028",
            "e\u0301",
        ]
    )
    | st.text(max_size=8),
    max_size=120,
).map(" ".join)


def squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


@pytest.fixture(scope="module", params=SOURCES)
def measure(request):
    """What counts tokens: the bundled model's tokenizer, tiktoken, or bytes."""
    return tokens.splitter_source(request.param)


@settings(max_examples=40, deadline=None)
@given(text=prose, size=st.integers(12, 60), markdown=st.booleans())
def test_chunks_hold_every_character_in_order_and_fit(measure, text, size, markdown):
    """Without overlap, chunks put together are the text but for white space, and none has more tokens than asked."""
    found = splitter.chunks(text, splitter.splitter(measure, size, markdown=markdown))

    assert squeezed("".join(found)) == squeezed(text)
    assert all(splitter.tokens(each, measure) <= size for each in found)


@settings(max_examples=40, deadline=None)
@given(text=prose, size=st.integers(14, 60), markdown=st.booleans())
def test_overlapping_chunks_leave_no_gap(measure, text, size, markdown):
    """With overlap, each chunk starts where the one before has not ended or has just ended, and still fits."""
    found = splitter.chunks(text, splitter.splitter(measure, size, size // 4, markdown=markdown))
    whole = squeezed(text)
    covered = 0
    for each in map(squeezed, found):
        start = max((at for at in range(covered + 1) if whole.startswith(each, at)), default=-1)

        assert start >= 0
        covered = max(covered, start + len(each))
    assert covered == len(whole)
    assert all(splitter.tokens(each, measure) <= size for each in found)


@pytest.mark.parametrize("text", ["", " \n ", "short", "  kept \n exactly  \n", "# Head\n\nbody\n"])
@pytest.mark.parametrize("markdown", [False, True])
def test_a_text_that_fits_is_one_unchanged_chunk(measure, text, markdown):
    """A text within the size is returned as it is, white space at its ends too."""
    assert splitter.chunks(text, splitter.splitter(measure, 50, 10, markdown=markdown)) == [text]


def test_markdown_is_cut_at_headings():
    """A Markdown document is cut before a heading rather than in the middle of a section."""
    by = splitter.splitter(len, 60, markdown=True)

    assert splitter.chunks("# One\n\n" + "a " * 20 + "\n\n# Two\n\n" + "b " * 20, by) == [
        "# One\n\n" + "a " * 19 + "a",
        "# Two\n\n" + "b " * 19 + "b",
    ]


@pytest.mark.parametrize(
    ("asked", "max_tokens", "expected"),
    [
        ((1000, 200), None, (1000, 200)),
        ((1000, 200), 8192, (1000, 200)),
        ((1000, 200), 1000, (1000, 200)),
        ((1000, 200), 254, (254, 50)),
        ((100, 0), 10, (10, 0)),
        ((100, 99), 10, (10, 9)),
        ((100, 50), 1, (1, 0)),
    ],
)
def test_size_and_overlap_shrink_in_proportion(asked, max_tokens, expected):
    """When the model takes less than asked, overlap shrinks as size does and stays below it."""
    assert splitter.capacity(*asked, max_tokens) == expected


@pytest.mark.parametrize("asked", [(0, 0), (-5, 0), (10, 10), (10, 11), (10, -1)])
def test_impossible_sizes_are_wrong_usage(asked):
    """A size of nothing, or an overlap as large as the size, ends with 2."""
    with pytest.raises(WrongUsage):
        splitter.capacity(*asked, None)


@settings(max_examples=40, deadline=None)
@given(text=prose, limit=st.integers(1, 60))
def test_truncation_is_a_beginning_that_fits(measure, text, limit):
    """A truncated text is a beginning of the text within the limit, the whole text only if that fits."""
    short = splitter.truncated(text, limit, measure)

    assert text.startswith(short)
    assert splitter.tokens(short, measure) <= limit
    assert (short == text) == (splitter.tokens(text, measure) <= limit)


def test_truncation_keeps_as_much_as_fits(measure):
    """One more word would be too much."""
    words = "alpha " * 500
    short = splitter.truncated(words, 100, measure)

    assert splitter.tokens(short + "alpha alpha", measure) > 100
    assert splitter.tokens(short, measure) >= 99


def test_pieces_share_nothing(measure):
    """Pieces of a text over the limit fit, and together are the text once."""
    text = "One sentence after the other. " * 100
    found = splitter.pieces(text, 40, measure)

    assert len(found) > 5
    assert squeezed("".join(found)) == squeezed(text)
    assert all(splitter.tokens(each, measure) <= 40 for each in found)


def test_the_handbook_is_cut_into_full_chunks(measure):
    """A real document makes chunks that are half full on average, none over the size."""
    text = HANDBOOK.read_text()
    by = splitter.splitter(measure, 254, 50, markdown=True)
    sizes = [splitter.tokens(each, measure) for each in splitter.chunks(text, by)]

    assert max(sizes) <= 254
    assert sum(sizes) / len(sizes) > 127


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.md", True), ("a.MARKDOWN.gz", True), ("d/a.mdx", True), ("a.txt", False), ("md", False), ("a.md.txt", False)],
)
def test_markdown_is_known_by_name(name, expected):
    """Markdown files are those whose extension says so."""
    assert splitter.is_markdown(name) is expected
