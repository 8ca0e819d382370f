"""A large file is divided between several workers: every row is in one shard, in order."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from embedctl.planning import shards
from embedctl.planning.shards import Shard, Unit


@given(st.integers(0, 500), st.integers(1, 200), st.integers(0, 1000))
def test_every_row_is_in_one_shard(rows: int, shard_rows: int, first_row: int) -> None:
    """Borders follow each other without a gap, and no part is larger than asked."""
    found = shards.divided(Shard(ordinal=0, key="", first_row=first_row, pieces=((0, None),)), rows, shard_rows)

    borders = [one.within for one in found]
    assert borders[0] is not None
    assert borders[0][0] == 0
    assert borders[-1] == (borders[-1][0], rows) if borders[-1] else False
    assert all(one and other and one[1] == other[0] for one, other in itertools.pairwise(borders))
    assert all(one.rows is not None and one.rows <= shard_rows for one in found)
    assert [one.first_row - first_row for one in found] == [one[0] for one in borders if one]


def test_several_workers_have_several_shards_each() -> None:
    """A job of one worker has the usual shards; of more, smaller ones, but none too small to be worth its files."""
    units = [Unit(number, None, 10_000, 0) for number in range(20)]

    assert shards.rows_for(units, 1) == shards.SHARD_ROWS
    assert shards.rows_for(units, 4) == 200_000 // 32
    assert shards.rows_for(units[:1], 100) == shards.LEAST_ROWS
