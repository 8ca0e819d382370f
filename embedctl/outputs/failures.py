"""Texts that an earlier run could not embed, as its failures file lists them: they are not tried again unasked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import orjson

from embedctl.records import Refusal

MOST_LINE = 1 << 20
"""Bytes of a line that are read at once; a failure is a thousandth of it."""

LASTING = ("text_refused", "unusable_vector", "provider_failed", "too_long")
"""Reasons found by a provider: such a row stays failed until its text changes, or --retry-failed."""


def of(paths: Sequence[Path]) -> dict[bytes, Refusal]:
    """Texts of failures files that a provider refused."""
    found: dict[bytes, Refusal] = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                found.update(_refusals(iter(partial(file.readline, MOST_LINE), b"")))
    return found


def of_lines(lines: Iterable[bytes]) -> dict[bytes, Refusal]:
    """Texts of the lines of a failures file that a provider refused."""
    return dict(_refusals(lines))


PASSING = b'"reason":"budget"'
"""A reason that another day, or a raised budget, takes away: such rows are tried again by each run."""


def any_passing(path: Path) -> bool:
    """Whether a failures file lists rows that the next run tries again unasked."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return any(PASSING in line for line in iter(partial(file.readline, MOST_LINE), b""))


def reasons(path: Path) -> dict[str, int]:
    """Rows that failed, by reason, as a failures file lists them. A row of several chunks counts once.

    A file that cannot be read, and lines that somebody broke, say nothing.
    """
    found: dict[str, int] = {}
    before: object = None
    with suppress(OSError), path.open("rb") as file:
        for line in iter(partial(file.readline, MOST_LINE), b""):
            with suppress(orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
                failure = orjson.loads(line)
                this, reason = (failure["id"], failure["reason"]), str(failure["reason"])
                if not failure.get("skipped") and this != before:
                    found[reason] = found.get(reason, 0) + 1
                before = this
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def _refusals(lines: Iterable[bytes]) -> Iterator[tuple[bytes, Refusal]]:
    """Lines that somebody broke say nothing: such a text is tried again."""
    for line in lines:
        with suppress(orjson.JSONDecodeError, TypeError, KeyError, ValueError, AttributeError):
            failure = orjson.loads(line)
            if failure["reason"] in LASTING and failure.get("provider"):
                yield (
                    bytes.fromhex(failure["text_hash"]),
                    Refusal(
                        reason=failure["reason"],
                        message=failure["message"],
                        provider=failure["provider"],
                        attempts=failure.get("attempts", 0),
                        tokens=failure.get("tokens"),
                        max_tokens=failure.get("max_tokens"),
                    ),
                )
