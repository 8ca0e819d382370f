"""What people see of a text that was found: its heading, and the lines that the words stand in. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence

from embedctl.dataclass import dataclass
from embedctl.planning.headings import RULER, headed

LINES = 6
"""Of a text, where not all of it is shown."""

_LINK_TARGET = re.compile(r"\s*\.\. _[^:]+: +\S+\s*")
_LEAST_LETTERS = 3


@dataclass(frozen=True, slots=True)
class Passage:
    """A text for people.

    Attributes:
        heading: That the text begins with; None where it begins with none.
        lines: Wrapped; "…" where something is left out.
    """

    heading: str | None
    lines: Sequence[str]


def passage(text: str, words: Sequence[str], width: int, *, full: bool = False) -> Passage:
    """A text as its heading and wrapped lines: all of them, or the LINES in which most of the words stand.

    Where not all is asked for, rulers and link targets are left out.

    Args:
        words: As `wanted` finds them.
        width: Cells of a line.
    """
    heading, rest = headed(text)
    if not full:
        saying = [line for line in rest.splitlines() if not (RULER.fullmatch(line) or _LINK_TARGET.fullmatch(line))]
        rest = "\n".join(saying) if any(map(str.strip, saying)) else rest
    lines = [
        line
        for paragraph in re.split(r"\n\s*\n", rest)
        if paragraph.strip()
        for line in textwrap.wrap(" ".join(paragraph.split()), max(width, 20), break_on_hyphens=False)
    ]
    if full or len(lines) <= LINES:
        return Passage(heading, lines)
    marks = [_count(line, words) for line in lines]
    first = max(range(len(lines) - LINES + 1), key=lambda at: sum(marks[at : at + LINES]))
    shown = lines[first : first + LINES]
    if first:
        shown[0] = f"… {shown[0]}"
    if first + LINES < len(lines):
        shown[-1] = f"{shown[-1]} …"
    return Passage(heading, shown)


def wanted(query: str) -> list[str]:
    """The words of a query that are worth a mark: those of three letters and more, in lower case."""
    found = re.findall(r"\w+", query.casefold())
    return list(dict.fromkeys(word for word in found if len(word) >= _LEAST_LETTERS))


def marked(line: str, words: Sequence[str], mark: Callable[[str], str]) -> str:
    """A line with each of the words marked, whatever their case; longer words that begin with one are marked, too."""
    if not words:
        return line
    expression = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{expression})\w*", lambda found: mark(found[0]), line, flags=re.IGNORECASE)


def _count(line: str, words: Sequence[str]) -> int:
    found = 0

    def count(word: str) -> str:
        nonlocal found
        found += 1
        return word

    marked(line, words, count)
    return found
