"""What is wrong with an output, and where: the first of each kind in words, the rest counted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import field
from typing import Any, Literal

from embedctl.dataclass import dataclass

Check = Literal[
    "unreadable",
    "not_ours",
    "part_missing",
    "row_count",
    "unfinished",
    "mixed_spaces",
    "space_id",
    "width",
    "not_finite",
    "zero_norm",
    "repeated_id",
    "text_hash",
    "same_vector",
    "same_text",
    "failures",
    "input_missing",
    "input_changed",
    "input_extra",
    "other_vector",
    "not_checked",
]
"""A fixed word for each kind of finding."""

SHOWN = 10
"""Findings of one kind that are told one by one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        where: Part and row.
        wrong: Whether the output must not be trusted; otherwise something that could not be checked, or is odd.
    """

    check: Check
    where: str
    message: str
    wrong: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"check": self.check, "where": self.where, "message": self.message, "wrong": self.wrong}


@dataclass(slots=True)
class Findings:
    """All findings of one verification."""

    _shown: list[Finding] = field(default_factory=list)
    _counts: Counter[tuple[Check, bool]] = field(default_factory=Counter)

    def add(self, check: Check, where: str, message: str, *, wrong: bool = True) -> None:
        """Take one more."""
        self._counts[check, wrong] += 1
        if self._counts[check, wrong] <= SHOWN:
            self._shown.append(Finding(check, where, message, wrong))

    def room(self, check: Check) -> bool:
        """Whether one more of this kind would be told."""
        return self._counts[check, True] < SHOWN

    def count(self, check: Check, *, wrong: bool = True) -> int:
        """How many of a kind there are."""
        return self._counts[check, wrong]

    def excuse(self, check: Check) -> None:
        """All findings of a kind are odd, but not wrong."""
        self._counts[check, False] += self._counts.pop((check, True), 0)
        self._shown = [
            Finding(one.check, one.where, one.message, wrong=False) if one.check == check else one
            for one in self._shown
        ]

    @property
    def wrong(self) -> int:
        """How many say that the output must not be trusted."""
        return sum(count for (_, wrong), count in self._counts.items() if wrong)

    def __iter__(self) -> Iterator[Finding]:
        """Those that are told, in the order in which they were found, and then how many more there are."""
        yield from self._shown
        for (check, wrong), count in self._counts.items():
            if count > SHOWN:
                yield Finding(check, "elsewhere", f"{count - SHOWN:,} more of this kind", wrong)
