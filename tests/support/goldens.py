"""Golden files: documents compared whole with what `tests/golden` keeps, once what varies is masked.

`EMBEDCTL_UPDATE_GOLDEN=1 pytest tests/test_golden.py tests/test_golden_disk.py` writes them anew; the difference in
the version control then says what a change does to files and documents that other programs rely on.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pytest

from tests.support import places

FOLDER = places.GOLDEN
UPDATE = os.environ.get("EMBEDCTL_UPDATE_GOLDEN") == "1"

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID7_HEX = r"\b01[0-9a-f]{10}7[0-9a-f]{3}[89ab][0-9a-f]{15}"
_PATTERNS = (
    (re.compile(_UUID), "<uuid>"),
    (re.compile(_UUID7_HEX), "<uuid7>"),
    (re.compile(r"\b[0-9a-f]{32}(?=\.(json|lock))"), "<hex>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:\d\d)?)?"), "<time>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "<day>"),
    (re.compile(r"\b\d{8}T\d{6,}Z\b"), "<stamp>"),
    (re.compile(r"\b[0-9a-f]{20}\b"), "<operation>"),
    (re.compile(r"\bprocess \d+\b"), "process <pid>"),
)
_VARYING = frozenset(
    "seconds duration_ms pid host size size_bytes mtime_ns binding digest rows_per_second tokens_per_second load_s "  # noqa: SIM905
    "first_vector_s next_vector_s ready_in_s score version tool_version key seal".split()
)
"""Keys whose value, where there is one, is another in every run."""

_EPOCH_S = (1.7e9, 4e9)
_WORDS = "the one red big old new day man sun sea war law art car dog cat"


def sentence(number: int) -> str:
    """A text of its own for each number below 4096, which cl100k_base counts as the provider does: 4 tokens."""
    words = _WORDS.split()
    return " ".join(words[number >> shift & 15] for shift in (8, 4, 0)) + "."


class Masks:
    """What stands for what varies from run to run and from machine to machine.

    Args:
        names: Text → what stands for it: folders, addresses.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = sorted(names.items(), key=lambda pair: -len(pair[0]))

    def text(self, text: str) -> str:
        """A text without ids, times, folders and addresses."""
        for name, mask in self._names:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", mask, text)
        for pattern, mask in _PATTERNS:
            text = pattern.sub(mask, text)
        return text

    def __call__(self, value: Any, key: str = "") -> Any:
        """A document likewise: keys, structure, types and fixed words stay."""
        if isinstance(value, Mapping):
            return {self.text(str(name)): self(inner, str(name)) for name, inner in value.items()}
        if key == "embedding":
            return f"<{len(value)} numbers>" if isinstance(value, list) else f"<{type(value).__name__}>"
        if isinstance(value, list | tuple):
            return [self(inner, key) for inner in value]
        if value is None or isinstance(value, bool) or (key == "version" and isinstance(value, int)):
            return value
        if key in _VARYING:
            return f"<{type(value).__name__}>"
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, float):
            return "<epoch>" if _EPOCH_S[0] < value < _EPOCH_S[1] else round(value, 6)
        return value


def kinds(value: Any) -> Any:
    """The shape of a document whose values are data: types for values, one shape for all entries of a list."""
    if isinstance(value, Mapping):
        return {name: kinds(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_joined(map(kinds, value))] if value else []
    return "null" if value is None else type(value).__name__


def columns(schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file, with their types."""
    return [f"{one.name}: {one.type}{'' if one.nullable else ' not null'}" for one in schema]


def _joined(shapes: Iterable[Any]) -> Any:
    """One shape that holds for all: types that differ stand beside each other, keys that some lack say so."""
    found = list(shapes)
    if all(isinstance(one, Mapping) for one in found):
        names = dict.fromkeys(name for one in found for name in one)
        return {name: _joined(one.get(name, "absent") for one in found) for name in names}
    if all(isinstance(one, list) for one in found):
        inner = [entry for one in found for entry in one]
        return [_joined(inner)] if inner else []
    words = sorted({one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in found})
    return " | ".join(words)


def check(name: str, found: Any) -> None:
    """Fail unless `found` is what the golden file of this name says, whole; the order of keys does not matter."""
    path = FOLDER / f"{name}.json"
    text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if UPDATE:
        path.write_text(text, "utf-8")
        return
    kept = path.read_text("utf-8") if path.exists() else ""
    if text != kept:
        lines = difflib.unified_diff(kept.splitlines(), text.splitlines(), f"golden/{path.name}", "found", lineterm="")
        pytest.fail("\n".join([*lines, "EMBEDCTL_UPDATE_GOLDEN=1 writes it anew, if that is meant"]), pytrace=False)
