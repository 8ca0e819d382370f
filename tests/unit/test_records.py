"""The words of embedctl as values: ids, hashes and spaces."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import fields, replace
from hashlib import blake2b
from unicodedata import category

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl import records
from embedctl.journal.frames import Head
from embedctl.records import Space, from_json, is_blank, text_hash, tokens_hash, uuid7
from tests.support import places


def test_a_uuid7_carries_its_time_version_and_variant() -> None:
    """48 bits of milliseconds, version 7, variant 10, and the random bits that were given (RFC 9562, 5.7)."""
    found = uuid7(now_s=1_645_557_742.0, random=bytes(range(10)))

    assert str(found).startswith("017f22e2-79b0-7")
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert uuid7(now_s=1.5, random=bytes(10)) == uuid7(now_s=1.5, random=bytes(10))


@given(st.floats(0, 2**37, width=32), st.floats(0, 2**37, width=32), st.binary(min_size=10, max_size=10))
def test_uuid7s_sort_by_time(first: float, second: float, random: bytes) -> None:
    """An id made a millisecond later, or more, is greater, whatever the random bits."""
    earlier, later = sorted((first, second))
    if int(later * 1000) > int(earlier * 1000):
        assert uuid7(earlier, b"\xff" * 10) < uuid7(later, random)


def test_uuid7s_differ() -> None:
    """A thousand ids of one moment are a thousand ids."""
    assert len({uuid7(1.0) for _ in range(1000)}) == 1000


def test_a_text_hash_is_blake2b_of_its_bytes() -> None:
    """16 bytes of blake2b over UTF-8; a text with a lone surrogate has one too."""
    assert text_hash("héllo") == blake2b("héllo".encode(), digest_size=16).digest()
    assert len(text_hash("\ud800")) == 16


@given(st.lists(st.integers(0, 2**31 - 1), max_size=8), st.lists(st.integers(0, 2**31 - 1), max_size=8))
def test_token_arrays_collide_with_nothing(these: list[int], those: list[int]) -> None:
    """Different arrays have different hashes, and none has the hash of a text with the same bytes."""
    packed = b"".join(token.to_bytes(4, "little") for token in these)

    assert (tokens_hash(these) == tokens_hash(those)) == (these == those)
    assert tokens_hash(these) != blake2b(packed, digest_size=16).digest()


SPACE = Space(model="openai/text-embedding-3-small", dimensions=1536)


def test_a_space_id_is_the_hash_of_all_its_fields() -> None:
    """blake2b-128 in hex of the JSON of all fields, keys sorted: a contract with files already written."""
    text = orjson.dumps(SPACE.as_dict(), option=orjson.OPT_SORT_KEYS)

    assert SPACE.space_id == blake2b(text, digest_size=16).hexdigest()
    assert SPACE.space_id == "442b77f4fc2454c6ed63ac722641769e"


@pytest.mark.parametrize("name", [entry.name for entry in fields(Space)])
def test_every_field_of_a_space_makes_another_space(name: str) -> None:
    """Two spaces that differ in any field have different ids, and the difference is told in words."""
    changed = {"dimensions": 256, "normalized": True}.get(name, "other")
    other = replace(SPACE, **{name: changed})

    assert other.space_id != SPACE.space_id
    assert SPACE.differences(other) == [f"{name}: {getattr(SPACE, name)!r} here, {changed!r} there"]


def test_equal_spaces_do_not_differ() -> None:
    """A space that went through JSON is the same space."""
    again = Space(**orjson.loads(orjson.dumps(SPACE.as_dict())))

    assert again.space_id == SPACE.space_id
    assert again.differences(SPACE) == []


def test_the_wall_clock_is_utc() -> None:
    """Time stamps carry their zone."""
    assert records.utc_now().tzinfo is not None
    assert records.utc_now().utcoffset().total_seconds() == 0  # type: ignore[union-attr]


def test_invisible_characters_are_blank() -> None:
    """Text is blank when it is all white space, control, format and filler characters, by Unicode's own categories."""
    invisible = [
        chr(code) for code in range(sys.maxunicode + 1) if category(chr(code)) in ("Cc", "Cf", "Zs", "Zl", "Zp")
    ]
    shown = {*map(chr, range(0x600, 0x606)), *"\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"}  # signs of numbers

    assert {char for char in invisible if not is_blank(char)} <= shown
    assert is_blank("")
    assert is_blank("".join(char for char in invisible if char not in shown))
    for char in ("\u3164", "\u115f", "\ufe0f", "\u034f", "\u180b", "\U000e0100"):  # fillers, selectors, joiners
        assert is_blank(char * 3)
    for char in ("a", ".", "é", "\u0301", "漢", "😀", "\ufffd", "\u0000a", "\u200bx"):
        assert not is_blank(char)


RACE = """
import sys, threading
from dataclasses import make_dataclass
from embedctl.records import from_json
sys.setswitchinterval(1e-6)
inner = {f"a{number}": number for number in range(20)}
counts = [(name, int) for name in inner]
content = repr({"inner": inner, **inner}).replace("'", '"').encode()
for _ in range(400):
    kind = make_dataclass("Kind", [("inner", make_dataclass("Inner", counts)), *counts])
    made, start = [], threading.Barrier(3)
    def decode(later):
        start.wait()
        for _ in range(later):
            pass
        made.append(from_json(content, kind))
    threads = [threading.Thread(target=decode, args=(50 * number,)) for number in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert [(one.a19, one.inner.a19) for one in made] == [(19, 19)] * 3
"""


def test_threads_may_decode_a_class_that_nobody_has_decoded() -> None:
    """Threads that decode JSON into a new class at the same time all get it: no process ends by SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", RACE], cwd=places.ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"key": 1}', b'{"key": "\\ud800"}', b'{"key":"\xff"}', b"[" * 10_000]
)
def test_json_that_is_none_of_ours_is_a_value_error(content: bytes) -> None:
    """Whatever stands in a file in place of a dataclass of ours, its reader is told in one way."""
    with pytest.raises(ValueError, match=r"^no Head: |utf-8"):
        from_json(content, Head)
