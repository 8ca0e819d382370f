"""Where earlier vectors are: as every single place says, in memory that follows the exceptions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedctl.planning.slice import Slice, SliceIndex, VectorSource
from embedctl.records import Refusal

PLACES = st.lists(
    st.tuples(
        st.sampled_from([VectorSource.JOURNAL, VectorSource.PART, VectorSource.FAILED]),
        st.integers(0, 2),
        st.integers(0, 6).map(lambda number: number * 32),
    ),
    min_size=1,
    max_size=30,
)


def filled(places: list[tuple[VectorSource, int, int]]) -> Slice:
    slice_ = Slice(number=0, first_row=0, first_target=7)
    for place, (where, file, offset) in enumerate(places):
        slice_.add_target(where, file, offset)
        if where is VectorSource.FAILED:
            slice_.refused(place, Refusal(reason="text_refused", message=f"text {offset}"))
    return slice_


@given(PLACES)
def test_every_place_is_found_again(places: list[tuple[VectorSource, int, int]]) -> None:
    """However vectors lie in a journal, each is found where it is, and a refused text with its refusal."""
    index = SliceIndex()
    index.add(filled(places), None)

    for place, (where, file, offset) in enumerate(places):
        found = index.place(7 + place)
        if where is VectorSource.FAILED:
            assert found == (where, 0, 0, Refusal(reason="text_refused", message=f"text {offset}"))
        else:
            assert found == (where, file, offset, None)


def test_memory_follows_the_exceptions() -> None:
    """A slice of which some texts were refused takes some bytes for each of those, not for each of its rows."""
    count, refused = 100_000, (17, 5_000, 5_001)
    slice_ = Slice(number=0, first_row=0, first_target=0)
    slice_.add_known(*(np.zeros(count, kind) for kind in (np.uint8, np.uint32, np.uint64)))
    slice_.where[:count] = VectorSource.JOURNAL
    slice_.rows = list(range(count))
    for place in refused:
        slice_.refused(place, Refusal(reason="text_refused", message="no"))
    index = SliceIndex()

    index.add(slice_, 3)

    assert index.place(16)[:3] == (VectorSource.PART, 3, 16)
    assert index.place(18)[:3] == (VectorSource.PART, 3, 17)
    assert index.place(count - 1)[:3] == (VectorSource.PART, 3, count - 4)
    assert index.place(5_000)[3] == Refusal(reason="text_refused", message="no")
    assert len(index._slices[0].starts) <= 2 * len(refused) + 1
