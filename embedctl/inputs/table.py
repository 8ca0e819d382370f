"""Step 1, what a look into a file tells of its table. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, InputInvalid, InputMissing
from embedctl.inputs.block import InputFile

Bad = Callable[[InputFile, EmbedctlError], None]
"""What becomes of a file that cannot be read: it raises the error, or notes it, and the file is left out."""

UNREADABLE = (InputInvalid, InputMissing)
"""Errors that are about one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTable:
    """One table: of one file, or of several whose values have no types but those that they show.

    Attributes:
        files: Where its rows are, in order.
        schema: Its columns; what the values look like where the format has no types.
        rows: How many, where that is known before reading.
        is_typeless: Every value is text (CSV), whatever it looks like.
        nested_as_text: Objects and lists travel along as JSON text.
        seen: What `rows` of the format needs of this look.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    rows: int | None
    is_typeless: bool = False
    nested_as_text: bool = False
    seen: Any = None
