"""Rows → wanted vectors and requests: nothing is lost, nothing is asked for twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl.inputs.block import REASONS, Block
from embedctl.outputs import assemble, parquet
from embedctl.planning import planner
from embedctl.planning.chunks import REASON_WORDS, TextRules
from embedctl.planning.packer import PackedRequest, Packer
from embedctl.planning.planner import JOURNAL_FILES, Planner
from embedctl.planning.slice import COLUMN_BYTES, SLICE_BYTES, Slice, SliceIndex, VectorSource, resolve_duplicates
from embedctl.records import Limits, Outcome, Refusal, VectorRef, text_hash, tokens_hash
from embedctl.settings.options import Options
from embedctl.storage.hash_index import LOCATION, HashIndex

LIMIT = 5
COLUMNS = parquet.row_columns(pa.string(), pa.schema([]), text=True)


class Words:
    """A tokenizer whose tokens are words: n of them mean n tokens; token 7 stands for "w7"."""

    tokenizer_id = "words"

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        if max(tokens) > 99:
            raise LookupError(max(tokens))
        return " ".join("" if token == 0 else f"w{token}" for token in tokens)


def by_words(text: str, size: int) -> list[str]:
    words = text.split()
    return [" ".join(words[start : start + size]) for start in range(0, len(words), size)]


def wording(**changes: Any) -> TextRules:
    return replace(
        TextRules(
            prefix="",
            max_tokens=LIMIT,
            counter=Words(),
            count_all=True,
            takes_tokens=False,
            chunked=None,
            pieces=lambda text: by_words(text, LIMIT),
            shortened=lambda text: by_words(text, LIMIT)[0],
        ),
        **changes,
    )


@dataclass
class Taken:
    """What became of some blocks in one slot."""

    slice_: Slice
    requests: list[PackedRequest]
    intake: Planner
    ids: list[str] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def sent(self) -> list[Any]:
        return [text for one in self.requests for text in one.request.texts]

    def finish(self) -> tuple[list[Any], Any]:
        """Answer every request, then the failures and the counts as the pipeline makes them."""
        for number, one in enumerate(self.requests):
            ref = VectorRef(str(number), 0, len(one.ordinals), 4)
            self.slice_.outcomes.append(Outcome(targets=one.ordinals, ref=ref))
        self.slice_.settle(int)
        resolve_duplicates(self.slice_, SliceIndex())
        failed, kept = assemble.failures(self.slice_, parquet.joined(self.slice_.batches))
        return failed, assemble.counts(self.slice_, failed, kept)


def take(
    tmp_path: Path,
    *blocks: Block,
    options: Options | None = None,
    words: TextRules | None = None,
    known: dict[bytes, tuple[int, int]] | None = None,
    failed_before: dict[bytes, Refusal] | None = None,
    columns: pa.Schema = COLUMNS,
    token_arrays: bool = False,
    denied: dict[str, str] | None = None,
    cut: Callable[[int], None] = lambda rows: None,
    each: Callable[[PackedRequest], None] = lambda one: None,
) -> Taken:
    """Blocks through a real intake, packer and index."""
    with HashIndex(tmp_path) as index, HashIndex(tmp_path) as seen:
        if known:
            places = np.array(list(known.values()), LOCATION)
            index.add(b"".join(known), places)
        intake = Planner(
            options=options or Options(),
            wording=words or wording(),
            packer=Packer(Limits(items=3), token_arrays=token_arrays),
            known=index,
            seen=seen,
            columns=lambda block, at, chunks, texts: parquet.row_batch(block, at, chunks, texts, columns),
            failed_before=failed_before or {},
            denied=denied or {},
            cut=cut,
        )
        slice_ = intake.open_slice(0, 0)
        requests: list[PackedRequest] = []
        for one in (one for block in blocks for one in intake.take(block, slice_)):
            each(one)
            requests.append(one)
        requests += intake.close(slice_)
    found = Taken(slice_, requests, intake)
    for batch in slice_.batches:
        found.ids += batch.column("id").to_pylist()
        found.indexes += batch.column("chunk_index").to_pylist()
        if "text" in batch.schema.names:
            found.texts += batch.column("text").to_pylist()
    return found


def block(*texts: str | None, first_row: int = 0, **about: Any) -> Block:
    ids = [f"r{first_row + position}" for position in range(len(texts))]
    return Block(first_row, ids, list(texts), **about)


WORD = st.sampled_from(["ant", "bee", "cat", "dog", "é", "日本"])
ROW = st.one_of(
    st.none(),
    st.sampled_from(["", " ", "\n\t", "\u3000"]),
    st.lists(WORD, min_size=1, max_size=4).map(" ".join),
    st.lists(WORD, min_size=LIMIT, max_size=3 * LIMIT).map(" ".join),
)


def cut(rows: list[str | None], reasons: dict[int, Any], sizes: list[int]) -> Iterator[Block]:
    """The rows in blocks of these sizes, again and again."""
    start, turn = 0, 0
    while start < len(rows):
        end = start + sizes[turn % len(sizes)]
        inside = {
            at - start: why for at, why in reasons.items() if start <= at < min(end, len(rows)) and rows[at] is None
        }
        yield block(*rows[start:end], first_row=start, reasons=inside)
        start, turn = min(end, len(rows)), turn + 1


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_row_gives_vectors_or_a_failure(tmp_path: Path, data: st.DataObject) -> None:
    """Rows in = rows with all their vectors + failed + skipped, for any rows, blocks, policies, chunks and prefix."""
    rows = data.draw(st.lists(ROW, max_size=30))
    reasons = data.draw(st.dictionaries(st.integers(0, 29), st.sampled_from(REASONS), max_size=8))
    policy = data.draw(st.sampled_from(["fail", "skip", "truncate", "chunk", "mean"]))
    options = Options(on_too_long=policy, on_blank=data.draw(st.sampled_from(["skip", "fail"])))
    chunk_words = data.draw(st.none() | st.integers(1, 7))
    words = wording(
        count_all=data.draw(st.booleans()),
        prefix=data.draw(st.sampled_from(["", "q: "])),
        chunked=None if chunk_words is None else lambda text, row_id: by_words(text, chunk_words),
        pieces=lambda text: by_words(text, LIMIT - 1),
        shortened=lambda text: by_words(text, LIMIT - 1)[0],
    )
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    taken = take(tmp_path, *cut(rows, reasons, sizes), options=options, words=words)
    failed, counts = taken.finish()

    assert counts.read == len(rows) == counts.embedded + counts.failed + counts.skipped
    assert {f"r{i}" for i in range(len(rows))} == set(taken.ids) | {one.id for one in failed}
    assert all(one.reason in (*REASON_WORDS, "too_long") for one in failed)
    assert len(set(zip(taken.ids, taken.indexes, strict=True))) == len(taken.ids)
    asked = [ordinal for one in taken.requests for ordinal in one.ordinals]
    twins = np.flatnonzero(taken.slice_.where[: taken.slice_.targets] == VectorSource.DUPLICATE)
    assert sorted([*asked, *twins]) == sorted(set(asked) | set(twins))
    hashes = [one.request.hashes[i : i + 16] for one in taken.requests for i in range(0, len(one.request) * 16, 16)]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [text_hash(text) for text in taken.sent]
    assert all(text.startswith(words.prefix) and text.strip() for text in taken.sent)


CHUNKED = wording(chunked=lambda text, row_id: by_words(text, LIMIT))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=40), characters=st.integers(1, 60))
def test_parts_of_a_block_are_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str | None], characters: int
) -> None:
    """A block that is chunked a part at a time gives the same rows, requests, failures and hash as all at once."""
    monkeypatch.setattr(planner, "CHUNKED_AT_ONCE", 1 << 20)
    whole = take(tmp_path, block(*rows), words=CHUNKED)
    monkeypatch.setattr(planner, "CHUNKED_AT_ONCE", characters)
    parts = take(tmp_path, block(*rows), words=CHUNKED)

    assert (parts.ids, parts.indexes, parts.texts) == (whole.ids, whole.indexes, whole.texts)
    assert parts.sent == whole.sent
    assert parts.slice_.rows_hash == whole.slice_.rows_hash
    assert (parts.slice_.failures, parts.slice_.failed_bytes) == (whole.slice_.failures, whole.slice_.failed_bytes)
    assert (parts.slice_.rows, parts.slice_.row_of) == (whole.slice_.rows, whole.slice_.row_of)
    assert parts.intake.planned == whole.intake.planned == (len(rows), whole.intake.texts)


def test_a_chunk_has_the_id_of_its_row(tmp_path: Path) -> None:
    """Also where rows without text and rows of several chunks leave as many chunks as there are rows."""
    taken = take(tmp_path, block(None, "a b c d e f g h", "x", "", "y z"), words=CHUNKED)

    assert taken.ids == ["r1", "r1", "r2", "r4"]
    assert take(tmp_path, block(None, "a b c d e f g h"), words=CHUNKED).ids == ["r1", "r1"]


def test_chunks_are_sent_while_others_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request of a large block of documents goes before the last one is cut."""
    monkeypatch.setattr(planner, "CHUNKED_AT_ONCE", 100)
    rows_cut, rows_cut_by_then = [0], []
    take(
        tmp_path,
        block(*(f"document {number} has some words" for number in range(60)), first_row=7),
        words=CHUNKED,
        cut=lambda rows: rows_cut.__setitem__(0, rows),
        each=lambda one: rows_cut_by_then.append(rows_cut[0]),
    )

    assert rows_cut == [7 + 59]
    assert 7 < rows_cut_by_then[0] < 7 + 10


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=40), size=st.integers(1, 9))
def test_ordinals_are_dense_and_each_text_is_asked_for_once(tmp_path: Path, rows: list[Any], size: int) -> None:
    """Wanted vectors are numbered without gaps; the first of equal texts is asked for, the others are its twins."""
    taken = take(tmp_path, *cut(rows, {}, [size]), options=Options(on_too_long="truncate"))
    slice_ = taken.slice_
    asked = {o: text for one in taken.requests for o, text in zip(one.ordinals, one.request.texts, strict=True)}
    twins = {
        int(p): int(slice_.offset[p]) for p in np.flatnonzero(slice_.where[: slice_.targets] == VectorSource.DUPLICATE)
    }

    assert sorted([*asked, *twins]) == list(range(slice_.targets))
    assert len(set(asked.values())) == len(asked)
    assert all(first in asked and first < twin for twin, first in twins.items())
    for row, text in enumerate(taken.texts):
        targets = slice_.rows[row]
        assert asked[twins.get(targets, targets)] == text
    assert taken.intake.duplicates == len(twins)


def test_a_known_text_is_taken_from_where_it_is(tmp_path: Path) -> None:
    """A text of an older part or of the journal is not asked for; the slot says where its vector is."""
    places = {text_hash("in a part"): (3, 17), text_hash("in the journal"): (JOURNAL_FILES + 2, 640)}
    taken = take(tmp_path, block("new", "in a part", "in the journal"), known=places)
    slice_ = taken.slice_

    assert taken.sent == ["new"]
    assert [int(slice_.where[i]) for i in range(3)] == [VectorSource.PENDING, VectorSource.PART, VectorSource.JOURNAL]
    assert [(int(slice_.file[i]), int(slice_.offset[i])) for i in (1, 2)] == [(3, 17), (2, 640)]
    assert taken.intake.reused == 2


def test_a_text_that_failed_before_is_not_tried_again(tmp_path: Path) -> None:
    """A text an earlier run was refused for fails again with the same words, unsent, and its twin with it."""
    refusal = Refusal(reason="text_refused", message="bad words", provider="openai", attempts=1)
    taken = take(tmp_path, block("bad", "good", "bad"), failed_before={text_hash("bad"): refusal})
    failed, counts = taken.finish()

    assert taken.sent == ["good"]
    assert [(one.id, one.reason, one.provider) for one in failed] == [
        ("r0", "text_refused", "openai"),
        ("r2", "text_refused", "openai"),
    ]
    assert (counts.embedded, counts.failed) == (1, 2)


@pytest.mark.parametrize(("on_blank", "skipped"), [("skip", True), ("fail", False)])
def test_blank_and_null_are_skipped_or_fail_as_asked(tmp_path: Path, on_blank: Any, skipped: bool) -> None:
    """Empty, white and null texts are never sent; --on-blank says whether they are skipped or have failed."""
    taken = take(tmp_path, block("", " \n", None, "x"), options=Options(on_blank=on_blank))
    failed, counts = taken.finish()

    assert taken.sent == ["x"]
    assert [(one.id, one.reason, one.skipped) for one in failed] == [
        ("r0", "blank", skipped),
        ("r1", "blank", skipped),
        ("r2", "null", skipped),
    ]
    assert (counts.skipped, counts.failed) == ((3, 0) if skipped else (0, 3))


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason != "null"])
def test_an_unreadable_row_fails_with_its_reason_whatever_blanks_do(tmp_path: Path, reason: Any) -> None:
    """A row that could not be read has failed, with reading's own reason in words."""
    taken = take(tmp_path, block(None, reasons={0: reason}))
    failed, _ = taken.finish()

    assert [(one.reason, one.message, one.skipped) for one in failed] == [(reason, REASON_WORDS[reason], False)]


def test_every_reason_of_reading_has_words() -> None:
    """No reason reaches the failures file without a sentence."""
    assert set(REASONS) <= set(REASON_WORDS)


FITS = "one two three four five"
LONG = "one two three four five six seven eight nine ten eleven"


@pytest.mark.parametrize("count_all", [True, False])
def test_a_text_of_exactly_the_limit_goes(tmp_path: Path, count_all: bool) -> None:
    """A text with as many tokens as the model takes is sent whole."""
    taken = take(tmp_path, block(FITS), words=wording(count_all=count_all))

    assert taken.sent == [FITS]


@pytest.mark.parametrize(("policy", "skipped"), [("fail", False), ("skip", True)])
def test_an_over_long_text_fails_or_is_skipped_with_its_length(tmp_path: Path, policy: Any, skipped: bool) -> None:
    """--on-too-long fail and skip send nothing of the text, and list how long it is and how long it may be."""
    taken = take(tmp_path, block(LONG, "x"), options=Options(on_too_long=policy))
    failed, _ = taken.finish()
    (one,) = failed

    assert taken.sent == ["x"]
    assert one.as_dict() == {
        "id": "r0",
        "chunk_index": 0,
        "reason": "too_long",
        "message": "11 tokens, the model takes 5 (counted by words)",
        "attempts": 0,
        "tokens": 11,
        "max_tokens": 5,
        "text_hash": text_hash(LONG).hex(),
    } | ({"skipped": True} if skipped else {})


def test_truncate_sends_the_beginning_and_keeps_it_as_the_text(tmp_path: Path) -> None:
    """--on-too-long truncate: what is sent, hashed and kept as `text` is the beginning that fits."""
    taken = take(tmp_path, block(LONG), options=Options(on_too_long="truncate"))

    assert taken.sent == taken.texts == [FITS]
    assert taken.slice_.row_hashes == [text_hash(FITS)]


def test_chunk_makes_rows_of_the_pieces(tmp_path: Path) -> None:
    """--on-too-long chunk: each piece is a row of its own, numbered from 0."""
    taken = take(tmp_path, block(LONG), options=Options(on_too_long="chunk"))

    assert taken.sent == taken.texts == by_words(LONG, LIMIT)
    assert list(zip(taken.ids, taken.indexes, strict=True)) == [("r0", 0), ("r0", 1), ("r0", 2)]


def test_pieces_of_one_chunk_never_take_the_number_of_the_next(tmp_path: Path) -> None:
    """When a chunk becomes several, the chunks behind it move up: id and chunk_index stay unique."""
    words = wording(chunked=lambda text, row_id: text.split("|"))
    taken = take(tmp_path, block(f"a|{LONG}|z"), options=Options(on_too_long="chunk"), words=words)

    assert taken.indexes == [0, 1, 2, 3, 4]
    assert taken.texts == ["a", *by_words(LONG, LIMIT), "z"]


def test_mean_is_weighted_by_the_tokens_of_the_pieces(tmp_path: Path) -> None:
    """--on-too-long mean: one row, whole text, whose vector is the mean of its pieces, each as heavy as it is long."""
    taken = take(tmp_path, block("x", LONG), options=Options(on_too_long="mean"))
    mean = taken.slice_.means[1]

    assert taken.texts == ["x", LONG]
    assert taken.slice_.rows == [0, -1]
    assert taken.sent == ["x", *by_words(LONG, LIMIT)]
    assert (mean.start, mean.stop, mean.weights) == (1, 4, (5, 5, 1))
    assert taken.slice_.row_hashes[1] == text_hash(LONG)


def test_mean_takes_a_known_mean_whole(tmp_path: Path) -> None:
    """When the long text itself has a vector already, none of its pieces is asked for."""
    taken = take(tmp_path, block(LONG), options=Options(on_too_long="mean"), known={text_hash(LONG): (0, 4)})

    assert taken.sent == []
    assert int(taken.slice_.offset[taken.slice_.rows[0]]) == 4


def test_the_prefix_is_sent_hashed_and_counted(tmp_path: Path) -> None:
    """The model's prefix is part of what is sent, of the hash and of the length, and not of the kept text."""
    taken = take(tmp_path, block("a b c", "a b c d"), words=wording(prefix="search document: "))
    failed, _ = taken.finish()

    assert taken.sent == ["search document: a b c"]
    assert taken.texts == ["a b c"]
    assert taken.slice_.row_hashes == [text_hash("search document: a b c")]
    assert [(one.id, one.tokens) for one in failed] == [("r1", 6)]


def test_only_texts_near_the_limit_are_counted(tmp_path: Path) -> None:
    """Where the provider counts, a text with fewer bytes than the limit allows is not counted here."""
    taken = take(tmp_path, block("short", "x" * 400), words=wording(count_all=False, max_tokens=300))

    assert taken.requests[0].request.tokens is None
    assert taken.sent == ["short", "x" * 400]


def arrays(*rows: list[int] | None) -> Block:
    return Block(0, [f"r{i}" for i in range(len(rows))], [], tokens=list(rows))


NO_TEXT = parquet.row_columns(pa.string(), pa.schema([]), text=False)


def test_token_arrays_go_out_as_they_are_where_the_protocol_takes_them(tmp_path: Path) -> None:
    """An array is sent unchanged, hashed as an array, and its length is its usage."""
    taken = take(
        tmp_path,
        arrays([1, 2, 3], [], None, [1, 2, 3]),
        words=wording(takes_tokens=True),
        columns=NO_TEXT,
        token_arrays=True,
    )
    failed, _ = taken.finish()
    (one,) = taken.requests

    assert list(one.request.texts) == [[1, 2, 3]]
    assert one.request.hashes == tokens_hash([1, 2, 3])
    assert (one.request.tokens, one.request.token_arrays) == (3, True)
    assert [(f.id, f.reason) for f in failed] == [("r1", "blank"), ("r2", "null")]


def test_token_arrays_are_decoded_where_the_protocol_takes_text(tmp_path: Path) -> None:
    """An array becomes its text; numbers that are no tokens fail their row; one that says nothing is blank."""
    taken = take(tmp_path, arrays([1, 2], [100], [0, 0]), columns=NO_TEXT)
    failed, counts = taken.finish()

    assert taken.sent == ["w1 w2"]
    assert [(f.id, f.reason, f.skipped) for f in failed] == [("r1", "invalid_tokens", False), ("r2", "blank", True)]
    assert (counts.embedded, counts.failed, counts.skipped) == (1, 1, 1)


@pytest.mark.parametrize("takes_tokens", [True, False])
def test_an_over_long_token_array_is_not_sent(tmp_path: Path, takes_tokens: bool) -> None:
    """The model's limit holds for token arrays too."""
    taken = take(
        tmp_path,
        arrays([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]),
        words=wording(takes_tokens=takes_tokens, count_all=False),
        columns=NO_TEXT,
        token_arrays=takes_tokens,
    )
    failed, _ = taken.finish()

    assert len(taken.sent) == 1
    assert [(f.id, f.reason, f.tokens) for f in failed] == [("r1", "too_long", 6)]


def test_each_row_is_paid_by_the_workspace_its_column_names(tmp_path: Path) -> None:
    """--workspace-column splits requests; a null cell is paid by --workspace."""
    kept = pa.record_batch({"team": pa.array(["acme", None, "acme"])})
    columns = parquet.row_columns(pa.string(), kept.schema, text=True)
    taken = take(
        tmp_path,
        block("a", "b", "c", kept=kept),
        options=Options(workspace="mine", workspace_column="team"),
        columns=columns,
    )

    assert {one.request.workspace_id: list(one.request.texts) for one in taken.requests} == {
        "acme": ["a", "c"],
        "mine": ["b"],
    }


def test_a_row_whose_workspace_may_not_use_the_model_fails(tmp_path: Path) -> None:
    """A row is held to the allow-list of the workspace its column names: barred, or no workspace, it fails unsent."""
    names = ["acme", "zeta", None, "Acme Inc.", " ", "zeta"]
    kept = pa.record_batch({"team": pa.array(names)})
    taken = take(
        tmp_path,
        block("a", "b", "c", "d", "e", None, kept=kept),
        options=Options(workspace="mine", workspace_column="team"),
        columns=parquet.row_columns(pa.string(), kept.schema, text=True),
        denied={"zeta": "zeta may not"},
    )
    failed, counts = taken.finish()

    assert {one.request.workspace_id: list(one.request.texts) for one in taken.requests} == {
        "acme": ["a"],
        "mine": ["c", "e"],
    }
    assert [(one.id, one.reason, one.message) for one in failed] == [
        ("r1", "not_allowed", "zeta may not"),
        ("r3", "bad_workspace", "bad workspace name: 'Acme Inc.'"),
        ("r5", "not_allowed", "zeta may not"),
    ]
    assert (counts.read, counts.vectors, counts.failed) == (6, 3, 3)


def test_a_slot_is_complete_with_its_own_requests(tmp_path: Path) -> None:
    """Closing a slot packs what was collected, so that its last request holds no other slot's texts."""
    taken = take(tmp_path, block("a", "b", "c", "d"))

    assert [one.number for one in taken.requests] == [0, 1]


@pytest.mark.parametrize("column", ["id", "kept"])
def test_ids_and_kept_columns_close_a_slice(tmp_path: Path, column: str) -> None:
    """A slice is full when its ids, texts and kept columns take some megabytes, however short its texts are."""
    wide = ["x" * (COLUMN_BYTES // 2)] * 2
    ids, notes = (wide, ["a", "b"]) if column == "id" else (["a", "b"], wide)
    block = Block(0, ids, ["one", "two"], kept=pa.record_batch({"note": notes}))
    columns = parquet.row_columns(pa.string(), block.kept.schema, text=True)

    slice_ = take(tmp_path, block, columns=columns).slice_

    assert slice_.full(384)
    slice_.column_bytes = 0
    assert not slice_.full(384)


def test_ids_of_failed_rows_close_a_slice(tmp_path: Path) -> None:
    """Rows without text leave no batch, but their ids are held until the slice is written."""
    block = Block(0, ["x" * 1000], [" "])

    slice_ = take(tmp_path, block).slice_

    assert slice_.failed_bytes == 1000
    slice_.failed_bytes = SLICE_BYTES
    assert slice_.full(384)
    assert slice_.full(None)
    assert not slice_.full(None, closes_on_failures=False)
