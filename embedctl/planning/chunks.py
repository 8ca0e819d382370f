"""Step 2: a block of rows → chunks that may be embedded, each hashed, and counted where that is needed. Pure.

Rows that have none leave a failure with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage
from embedctl.inputs import REASONS
from embedctl.inputs.columns import matching
from embedctl.planning.slice import Slice
from embedctl.records import Failure, RowId, bytes_hash, is_blank, tokens_hash
from embedctl.settings.options import Options, checked_name
from embedctl.tokens import Counter


class RowBlock(Protocol):
    """A block of rows, as step 1 gives it."""

    first_row: int
    ids: Sequence[RowId]
    texts: Sequence[str | None]
    tokens: Sequence[Sequence[int] | None] | None
    kept: Any
    reasons: Mapping[int, str]
    messages: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """What the model wants of texts, and what is done with those it does not take.

    Attributes:
        prefix: Put before every text.
        max_tokens: Of one text, special tokens included; None where unknown.
        count_all: Tokens of every text are wanted (local models), not only of those near the limit.
        takes_tokens: Token arrays go out as they are.
        chunked: Text and id of its row → its chunks, when rows are chunked.
        pieces: Text → pieces within the limit, for `chunk` and `mean`.
        shortened: Text → its beginning within the limit, for `truncate`.
    """

    prefix: str
    max_tokens: int | None
    counter: Counter
    count_all: bool
    takes_tokens: bool
    chunked: Callable[[str, RowId], list[str]] | None
    pieces: Callable[[str], list[str]]
    shortened: Callable[[str], str]


@dataclass(slots=True)
class Chunk:
    """A chunk that may be embedded: where it comes from, what is sent, and how long it is.

    Attributes:
        position: Of its row in the block.
        text: Without the prefix, or a token array.
        digest: Of what is sent.
        tokens: None where nobody counted.
        pieces: What is sent instead, when the vector is to be the mean of several.
    """

    position: int
    chunk_index: int
    text: str | Sequence[int]
    content_bytes: int
    digest: bytes
    tokens: int | None = None
    pieces: list[Chunk] | None = None


SPECIAL_TOKENS = 16
"""More than any model puts around a text; near the limit, texts are counted."""

REASON_WORDS = {
    "blank": "the text is empty or white space only",
    "null": "the cell is empty",
    "too_large": "the row is larger than --max-row-bytes",
    "invalid_utf8": "the text, or a column that is kept, is not valid UTF-8",
    "invalid_unicode": "the text holds a lone surrogate",
    "invalid_tokens": "the row is no array of token numbers",
    "bad_row": "the row cannot be read",
    "bad_value": "a value of the row does not fit its column",
    "no_id": "the row has no id",
}
"""Reasons found here, beside `too_long`, `not_allowed` and `bad_workspace`, whose words depend on the row."""


class Chunks:
    """Finds the candidates of one block after the other.

    Args:
        denied: Workspace that a row may name → why it may not use the model: such a row fails.
        cut: Told how many rows of the input are cut into chunks so far, and of the one that is now its id and
            characters; may raise, and no more are.
    """

    def __init__(
        self,
        options: Options,
        wording: TextRules,
        denied: Mapping[str, str],
        cut: Callable[[int, str, int], None] = lambda rows, name, characters: None,
    ) -> None:
        self._cut = cut
        self._options = options
        self._wording = wording
        self._barred = denied
        self._payers: Sequence[str] | None = None
        self._checked: dict[str, str | None] = {}

    def of(self, block: RowBlock, slice_: Slice) -> list[Chunk]:
        """All candidates of a block, in order; failures go to the slice."""
        self._payers = self._workspaces(block)
        return self._lengths(list(self._candidates(block, slice_)), block, slice_)

    @property
    def one_pays(self) -> bool:
        """Whether one workspace pays for all rows."""
        return self._payers is None

    def payer(self, position: int) -> str:
        """The workspace that pays for a row of the block."""
        return self._options.workspace if self._payers is None else self._payers[position]

    def _candidates(self, block: RowBlock, slice_: Slice) -> Iterator[Chunk]:
        """Chunks of all rows that have text; failures for the others."""
        if block.tokens is not None:
            yield from self._arrays(block, slice_)
            return
        chunked = self._wording.chunked
        for position, text in enumerate(block.texts):
            if chunked:  # which takes long; other rows are counted by the block
                self._cut(block.first_row + position, str(block.ids[position]), len(text or ""))
            if self._is_barred(slice_, block, position):
                continue
            if text is None:
                self._fail(slice_, block, position, block.reasons.get(position, "null"))
            elif is_blank(text):
                self._fail(slice_, block, position, "blank")
            else:
                for index, chunk in enumerate(chunked(text, block.ids[position]) if chunked else (text,)):
                    yield self._candidate(position, index, chunk)
        if chunked:
            self._cut(block.first_row + len(block.texts), "", 0)

    def _arrays(self, block: RowBlock, slice_: Slice) -> Iterator[Chunk]:
        """Token arrays: as they are where the protocol takes them, else as the text they stand for."""
        for position, array in enumerate(block.tokens or ()):
            if self._is_barred(slice_, block, position):
                continue
            if array is None:
                self._fail(slice_, block, position, block.reasons.get(position, "null"))
            elif not len(array):
                self._fail(slice_, block, position, "blank")
            elif self._wording.takes_tokens and not self._wording.prefix:
                yield Chunk(position, 0, array, 4 * len(array), tokens_hash(array), len(array))
            else:
                yield from self._decoded(position, array, block, slice_)

    def _decoded(self, position: int, array: Sequence[int], block: RowBlock, slice_: Slice) -> Iterator[Chunk]:
        """The text that a token array stands for."""
        try:
            text = self._wording.counter.decode(array)
        except LookupError:
            self._fail(slice_, block, position, "invalid_tokens")
            return
        if is_blank(text):
            self._fail(slice_, block, position, "blank")
            return
        one = self._candidate(position, 0, text)
        if not self._wording.count_all:
            one.tokens = len(array)
        yield one

    def _candidate(self, position: int, index: int, text: str) -> Chunk:
        wire = (self._wording.prefix + text).encode("utf-8", "surrogatepass")
        return Chunk(position, index, text, len(wire), bytes_hash(wire))

    def _lengths(self, candidates: list[Chunk], block: RowBlock, slice_: Slice) -> list[Chunk]:
        """Count where it is needed, and do with texts over the limit what `--on-too-long` says."""
        limit, wording = self._wording.max_tokens, self._wording
        open_ones = [one for one in candidates if one.tokens is None]
        if not wording.count_all:  # a token is at least one byte: most texts need no counting
            least = 0 if limit is None else limit - SPECIAL_TOKENS
            open_ones = [one for one in open_ones if limit is not None and one.content_bytes > least]
        for one, tokens in zip(
            open_ones, wording.counter.count([wording.prefix + str(one.text) for one in open_ones]), strict=True
        ):
            one.tokens = tokens
        if limit is None or all(one.tokens is None or one.tokens <= limit for one in candidates):
            return candidates
        fitting = [
            kept
            for one in candidates
            for kept in (self._too_long(one, limit, block, slice_) if (one.tokens or 0) > limit else (one,))
        ]
        return _renumbered(fitting) if self._options.on_too_long == "chunk" else fitting

    def _too_long(self, one: Chunk, limit: int, block: RowBlock, slice_: Slice) -> list[Chunk]:
        policy = self._options.on_too_long
        if policy in ("fail", "skip") or not isinstance(one.text, str):
            message = f"{one.tokens} tokens, the model takes {limit} (counted by {self._wording.counter.tokenizer_id})"
            slice_.failures.append(
                Failure(
                    row=block.first_row + one.position,
                    id=block.ids[one.position],
                    chunk_index=one.chunk_index,
                    reason="too_long",
                    message=message,
                    skipped=policy == "skip",
                    tokens=one.tokens,
                    max_tokens=limit,
                    text_hash=one.digest.hex(),
                )
            )
            return []
        if policy == "truncate":
            pieces = [self._candidate(one.position, one.chunk_index, self._wording.shortened(one.text))]
        else:
            texts = self._wording.pieces(one.text)
            pieces = [self._candidate(one.position, one.chunk_index + i, text) for i, text in enumerate(texts)]
        for piece, tokens in zip(
            pieces, self._wording.counter.count([self._wording.prefix + str(p.text) for p in pieces]), strict=True
        ):
            piece.tokens = tokens
        if policy == "mean":
            one.pieces = pieces
            return [one]
        return pieces

    def _workspaces(self, block: RowBlock) -> list[str] | None:
        """Who pays for each row; None when one workspace pays for all."""
        column = self._options.workspace_column
        if column is None:
            return None
        kept = block.kept.column(matching(column, block.kept.schema.names, "the input"))
        named = ("" if name is None else str(name).strip() for name in kept.to_pylist())
        return [name or self._options.workspace for name in named]

    def _is_barred(self, slice_: Slice, block: RowBlock, position: int) -> bool:
        """Whether a row's workspace may not use the model, or cannot be one: then it has failed, whatever its text."""
        if self._payers is None:
            return False
        name = self._payers[position]
        if name not in self._checked:
            self._checked[name] = _wrong_name(name)
        reason = "not_allowed" if name in self._barred else "bad_workspace"
        why = self._barred.get(name) or self._checked[name]
        if why is not None:
            self._fail(slice_, block, position, reason, why)
        return why is not None

    def _is_skipped(self, reason: str) -> bool:
        if reason in ("blank", "null"):
            return self._options.on_blank == "skip"
        return is_bad_row(reason) and self._options.on_bad_row == "skip"

    def _fail(self, slice_: Slice, block: RowBlock, position: int, reason: str, message: str | None = None) -> None:
        slice_.failures.append(
            Failure(
                row=block.first_row + position,
                id=block.ids[position],
                chunk_index=0,
                reason=reason,
                message=message or block.messages.get(position) or REASON_WORDS[reason],
                skipped=self._is_skipped(reason),
            )
        )


def is_bad_row(reason: str) -> bool:
    """Whether a row with this reason cannot be read, so that `--on-bad-row` decides; empty cells are blank texts."""
    return reason in REASONS and reason != "null"


def _wrong_name(workspace: str) -> str | None:
    """What is wrong with a workspace's name."""
    try:
        checked_name(workspace, "workspace")
    except WrongUsage as wrong:
        return wrong.message
    return None


def _renumbered(candidates: list[Chunk]) -> list[Chunk]:
    """The chunks of each row numbered from 0 again: some have become several."""
    for _, chunks in groupby(candidates, key=lambda one: one.position):
        for index, one in enumerate(chunks):
            one.chunk_index = index
    return candidates
