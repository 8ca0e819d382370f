"""Step 1, what of an input is not read: named and counted, and told when it is found. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from embedctl.dataclass import dataclass

Why = Literal["other_kind", "other_format", "binary", "link_outside", "unreadable", "odd_name"]


@dataclass(frozen=True, slots=True)
class LeftOutFile:
    """A file that a folder or a glob holds, and that is not read.

    Attributes:
        why: A fixed word.
        message: What a person should know; empty where the word says it.
    """

    label: str
    why: Why
    message: str = ""


class LeftOut:
    """The files of an input that are not read, each once; `listener` is told of each, also of those known before."""

    def __init__(self) -> None:
        self._files: dict[str, LeftOutFile] = {}
        self._listener: Callable[[LeftOutFile], None] | None = None

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[LeftOutFile]:
        return iter(self._files.values())

    def __contains__(self, label: str) -> bool:
        return label in self._files

    def add(self, label: str, why: Why, message: str = "") -> None:
        """One more file; nothing when it is known."""
        if label in self._files:
            return
        one = self._files[label] = LeftOutFile(label, why, message)
        if self._listener is not None:
            self._listener(one)

    def tell(self, listener: Callable[[LeftOutFile], None]) -> None:
        """Tell `listener` of all there are, and of all that come."""
        self._listener = listener
        for one in self:
            listener(one)

    def as_dict(self) -> dict[str, object]:
        """For a receipt: how many, and how many for each reason."""
        reasons = Counter(one.why for one in self)
        return {"count": len(self), "reasons": dict(sorted(reasons.items()))}
