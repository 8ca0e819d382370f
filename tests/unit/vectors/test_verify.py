"""Whatever is wrong with an output is found, and said with its place; what is right is not complained about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import InputInvalid, InputMissing
from embedctl.records import text_hash
from embedctl.vectors import checks, files, verify
from embedctl.vectors.findings import SHOWN, Finding, Findings
from tests.support.vector_files import Rows, another, folder, put, rows, vector


def found(path: Path, tmp_path: Path) -> list[Finding]:
    """Everything that a verification of `path` says."""
    place = tmp_path / "indexes"
    place.mkdir(exist_ok=True)
    findings = Findings()
    verify.verify(files.open_stored(path), findings, folder=place)
    return list(findings)


def three(tmp_path: Path, spoil: Callable[[Rows], None] = lambda made: None) -> Path:
    """A folder of three parts of 20 rows each, the second of them spoilt."""
    parts = [rows(20, start) for start in (0, 20, 40)]
    spoil(parts[1])
    return folder(tmp_path / "out", parts)


def test_a_right_output_has_no_findings(tmp_path: Path) -> None:
    """Parts that are as they were written say nothing, in every number type and vector type."""
    assert found(three(tmp_path), tmp_path) == []
    for dtype in ("float32", "float16", "int8"):
        for kind in ("fixed", "list"):
            path = put(tmp_path / f"{dtype}-{kind}.parquet", rows(50), dtype=dtype, vector_type=kind)

            assert found(path, tmp_path) == []


def shift(made: Rows) -> None:
    """Each vector one row too late."""
    made.vectors = np.concatenate([made.vectors[:1], made.vectors[:-1]])


def not_a_number(made: Rows) -> None:
    made.vectors[7, 3] = np.nan


def infinite(made: Rows) -> None:
    made.vectors[7, 3] = np.inf


def zeros(made: Rows) -> None:
    made.vectors[7] = 0


def same_id(made: Rows) -> None:
    made.ids[7] = made.ids[3]


def id_of_another_part(made: Rows) -> None:
    made.ids[7] = "row-4"


def other_text(made: Rows) -> None:
    made.texts[7] = "this was never sent"


def other_space(made: Rows) -> None:
    made.space = another()


def lying_space_id(made: Rows) -> None:
    made.space_id = "0" * 32


def lost_row(made: Rows) -> None:
    made.written = 21


def twice_the_text(made: Rows) -> None:
    made.texts[7], made.hashes = made.texts[3], made.hashes[:112] + made.hashes[48:64] + made.hashes[128:]


@pytest.mark.parametrize(
    ("spoil", "check", "where"),
    [
        (shift, "same_vector", "part-000001.parquet row 1"),
        (not_a_number, "not_finite", "part-000001.parquet row 7"),
        (infinite, "not_finite", "part-000001.parquet row 7"),
        (zeros, "zero_norm", "part-000001.parquet row 7"),
        (same_id, "repeated_id", "part-000001.parquet row 7"),
        (id_of_another_part, "repeated_id", "part-000001.parquet row 7"),
        (other_text, "text_hash", "part-000001.parquet row 7"),
        (other_space, "mixed_spaces", "part-000001.parquet"),
        (lying_space_id, "space_id", "part-000001.parquet"),
        (lost_row, "row_count", "part-000001.parquet"),
        (twice_the_text, "same_text", "part-000001.parquet row 7"),
    ],
)
def test_a_spoilt_part_is_found(tmp_path: Path, spoil: Callable[[Rows], None], check: str, where: str) -> None:
    """Each thing that can be wrong with rows has a word of its own, and a place, and nothing else is said."""
    told = found(three(tmp_path, spoil), tmp_path)

    assert [(one.check, one.where, one.wrong) for one in told] == [(check, where, True)]


def test_vectors_of_another_width_are_found(tmp_path: Path) -> None:
    """A part whose vectors are not as wide as the space says is named."""
    path = three(tmp_path)
    wide = rows(20, 20)
    wide.vectors = np.stack([vector(text, 24) for text in wide.texts])
    put(path / "part-000001.parquet", wide)

    assert [(one.check, one.where) for one in found(path, tmp_path)] == [("width", "part-000001.parquet row 0")]


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    """A byte that changed on the disk fails its page's checksum; the other parts are read all the same."""
    path = three(tmp_path)
    part = path / "part-000001.parquet"
    content = bytearray(part.read_bytes())
    content[content.index(rows(20, 20).vectors[9].tobytes()) + 2] ^= 1
    part.write_bytes(content)
    told = found(path, tmp_path)

    assert [(one.check, one.where) for one in told] == [("unreadable", "part-000001.parquet rows 0 to 19")]
    assert "CRC" in told[0].message


def test_a_missing_part_is_found(tmp_path: Path) -> None:
    """A part that is gone is named, wherever it stood, and the rows that went with it."""
    middle, last = three(tmp_path), folder(tmp_path / "other", [rows(20, start) for start in (0, 20, 40)])
    (middle / "part-000001.parquet").unlink()
    (last / "part-000002.parquet").unlink()

    assert [(one.check, one.where) for one in found(middle, tmp_path)] == [
        ("part_missing", "part-000001.parquet"),
        ("part_missing", str(middle)),
        ("row_count", str(middle)),
    ]
    assert [one.check for one in found(last, tmp_path)] == ["part_missing", "row_count"]


def test_a_torn_part_is_found(tmp_path: Path) -> None:
    """A part that was cut off, and one that is another program's, are named; the rest is looked at."""
    path = three(tmp_path)
    part = path / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    (path / "part-000001.parquet").unlink()
    pq.write_table(pq.read_table(path / "part-000000.parquet", columns=["id"]), path / "part-000001.parquet")
    told = {(one.check, one.where) for one in found(path, tmp_path)}

    assert ("unreadable", "part-000002.parquet") in told
    assert ("not_ours", "part-000001.parquet") in told


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    """An output whose run has not ended is wrong, unless it is still whole because a run prepares its replacement."""
    begun = folder(tmp_path / "begun", [rows(5)], state="running")
    replaced = folder(tmp_path / "replaced", [rows(5)], state="running", replacing=True)

    assert [(one.check, one.wrong) for one in found(begun, tmp_path)] == [("unfinished", True)]
    assert [(one.check, one.wrong) for one in found(replaced, tmp_path)] == [("unfinished", False)]


def test_failures_and_counts_must_agree(tmp_path: Path) -> None:
    """Rows that failed must stand in the failures file, and the counts must add up."""
    counts = {"read": 7, "embedded": 5, "failed": 2, "skipped": 0, "vectors": 5}
    short = folder(tmp_path / "short", [rows(5)], counts=counts)
    (short / "failures.jsonl").write_text('{"id": "x", "chunk_index": 0, "reason": "too_long"}\nnot json\n')
    wrong = folder(tmp_path / "wrong", [rows(5)], counts={**counts, "failed": 0})

    assert [one.check for one in found(short, tmp_path)] == ["failures", "failures"]
    assert [one.check for one in found(wrong, tmp_path)] == ["row_count"]


def test_without_texts_equal_vectors_are_odd_not_wrong(tmp_path: Path) -> None:
    """Where no text is kept, nobody can say whether the model could tell two texts apart."""
    made = rows(20)
    shift(made)
    told = found(put(tmp_path / "bare.parquet", made, text=False), tmp_path)

    assert [(one.check, one.wrong) for one in told] == [("same_vector", False)]


def test_texts_that_models_cannot_tell_apart_may_share_a_vector(tmp_path: Path) -> None:
    """Case, accents, spaces and punctuation are not held against a vector; a model's own tokenizer decides the rest."""
    made = rows(4)
    made.texts[:] = ["Crème brûlée!", "creme  brulee", "CREME BRULEE", "something else"]
    made.hashes = b"".join(text_hash(made.space.prefix + text) for text in made.texts)
    made.vectors[:3] = made.vectors[0]
    path = put(tmp_path / "alike.parquet", made)

    assert found(path, tmp_path) == []

    made.vectors[3] = made.vectors[0]
    findings = Findings()
    with checks.RowWalk(files.open_stored(put(path, made)), findings, tmp_path, lambda one, other: True) as walk:
        walk.check()

    assert list(findings) == []
    assert [one.check for one in found(path, tmp_path)] == ["same_vector"]


def test_almost_equal_vectors_of_one_text_are_right(tmp_path: Path) -> None:
    """Two hosts of one model differ in the last digits: no finding."""
    made = rows(20)
    twice_the_text(made)
    made.vectors[7] = made.vectors[3] + np.float32(1e-5)

    assert found(put(tmp_path / "hosts.parquet", made), tmp_path) == []


def test_many_findings_are_counted_not_listed(tmp_path: Path) -> None:
    """The first of a kind are told one by one, the others by number."""
    made = rows(50)
    made.vectors[:, 0] = np.nan
    told = found(put(tmp_path / "nan.parquet", made), tmp_path)

    assert len(told) == SHOWN + 1
    assert told[-1].message == f"{50 - SHOWN} more of this kind"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=60), st.data())
def test_every_repeat_is_seen_by_the_index(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    """For each key the index names the row that had it first, whatever comes in one batch or in several."""
    index = checks.Firsts(tmp_path_factory.mktemp("index"))
    expected = [names.index(name) for name in names]
    seen: list[int] = []
    at = 0
    while at < len(names):
        size = data.draw(st.integers(1, len(names) - at))
        batch = names[at : at + size]
        numbers = np.arange(at, at + size, dtype=np.uint64)
        seen += index.seen(checks.keys(batch, [0] * size), numbers.astype(np.uint32), numbers)[0].tolist()
        at += size
    index.close()

    assert seen == expected


def test_what_is_not_an_output_is_refused(tmp_path: Path) -> None:
    """Nothing there: 66. A folder or a Parquet file of something else, or rubbish: 65 with a hint."""
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(
        pq.read_table(put(tmp_path / "ours.parquet", rows(2)), columns=["id"]).replace_schema_metadata(), foreign
    )
    (tmp_path / "rubbish.parquet").write_bytes(b"PAR1 and no more")

    with pytest.raises(InputMissing):
        files.open_stored(tmp_path / "nothing")
    for name in ("empty", "foreign.parquet", "rubbish.parquet"):
        with pytest.raises(InputInvalid) as refused:
            files.open_stored(tmp_path / name)
        assert refused.value.hint


def test_a_folder_without_a_record_is_looked_at(tmp_path: Path) -> None:
    """Parts that were copied without their record are verified; that counts were not compared is said."""
    path = three(tmp_path)
    (path / "_embedctl" / "run.json").unlink()
    (path / "part-000001.parquet").unlink()
    told = found(path, tmp_path)

    assert [(one.check, one.wrong) for one in told] == [("not_checked", False), ("part_missing", True)]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Rows come a few MB at a time, however large a row group is."""
    path = put(tmp_path / "large.parquet", rows(20_000))
    sizes = [len(batch) for batch in files.open_stored(path).batches(["id", "embedding"])]

    assert sum(sizes) == 20_000
    assert max(sizes) <= 8192
    assert json.loads(pq.read_metadata(path).metadata[b"embedctl"])["rows"] == 20_000
