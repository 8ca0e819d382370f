"""Options: their ranges, durations, names, and that a flag exists for each."""

from __future__ import annotations

from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.cli import _flags
from embedctl.errors import WrongUsage
from embedctl.settings import options
from embedctl.settings.options import Options


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), (90, 90), (Decimal("1.5"), 1.5), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("1h30m15s", 5415),
        ("1.5h", 5400), (" 2m ", 120), ("0", 0), ("2m5", 125),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_minutes_and_hours(text: Any, seconds: float) -> None:
    """A bare number is seconds; h, m and s go together."""
    assert options.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", -1, "1d", "m", "1m1h", "1e3", "nan", float("nan"), "9999999999", True]
)
def test_anything_else_is_no_duration(text: Any) -> None:
    """What is no duration, negative or endless is refused with examples."""
    with pytest.raises(WrongUsage, match="not a duration") as caught:
        options.seconds(text)

    assert caught.value.hint == "like 90, 90s, 2m or 1h30m"


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_adds_up(hours: int, minutes: int, seconds: int) -> None:
    """1h2m3s is one hour, two minutes and three seconds."""
    assert options.seconds(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize("name", ["a", "0", "kb", "a.b-c_d", "x" * 63])
def test_a_legal_name_is_kept(name: str) -> None:
    """Lower-case letters, digits, dots, dashes and underscores, at most 63, make a name."""
    assert options.checked_name(name, "workspace") == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "_a", "a b", "a/b", "x" * 64, "é", "a\n"])
def test_an_illegal_name_is_refused(name: str) -> None:
    """Everything else is refused, with the rule."""
    with pytest.raises(WrongUsage, match="bad job name") as caught:
        options.checked_name(name, "job")

    assert "at most 63" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("chunk_size", 1), ("chunk_overlap", 0), ("dimensions", 1), ("batch_size", 1), ("concurrency", 1), ("rpm", 0),
        ("tpm", 0), ("burst", 1), ("retries", 0), ("max_cost", 0), ("max_row_bytes", 1),
    ],
)  # fmt: skip
def test_a_number_has_a_least_value(name: str, least: int) -> None:
    """The least value goes, one less is refused and the flag is named."""
    flag = "--" + name.replace("_", "-")

    assert options.check(replace(Options(), **{name: least}))
    with pytest.raises(WrongUsage, match=f"^{flag} must be at least {least}, not {least - 1}$"):
        options.check(replace(Options(), **{name: least - 1}))


@pytest.mark.parametrize("amount", ["nan", "inf", "-inf"])
def test_an_amount_is_finite(amount: str) -> None:
    """A budget of infinity or of no number is refused."""
    with pytest.raises(WrongUsage, match="--max-cost must be an amount"):
        options.check(Options(max_cost=Decimal(amount)))


@pytest.mark.parametrize(("name", "most"), [("concurrency", 10_000), ("max_row_bytes", 10**15), ("max_cost", 10**15)])
def test_a_number_has_a_greatest_value(name: str, most: int) -> None:
    """The greatest value goes, one more is refused and the flag is named."""
    flag = "--" + name.replace("_", "-")

    assert options.check(replace(Options(), **{name: most}))
    with pytest.raises(WrongUsage, match=f"^{flag} must be at most {most}, not {most + 1}$"):
        options.check(replace(Options(), **{name: most + 1}))


def test_a_request_has_some_time() -> None:
    """No time at all is refused; the shortest goes."""
    assert options.check(Options(timeout=0.001))
    with pytest.raises(WrongUsage, match=r"^--timeout must be more than 0$"):
        options.check(Options(timeout=0))


def test_neighbouring_chunks_share_less_than_a_chunk() -> None:
    """An overlap as large as the chunk is refused; one less goes."""
    assert options.check(Options(chunk_size=10, chunk_overlap=9))
    with pytest.raises(WrongUsage, match="--chunk-overlap 10 must be smaller than --chunk-size 10"):
        options.check(Options(chunk_size=10, chunk_overlap=10))


def test_every_option_says_what_it_is() -> None:
    """Each has a help text that is a sentence."""
    for entry in fields(Options):
        text = entry.metadata["help"]

        assert text.endswith((".", ")", "]")), entry.name
        assert text[0].isupper(), entry.name


def test_every_option_is_a_flag_of_a_run() -> None:
    """`batch run` has a flag for each option, and `embed` for all but those of batches and of outputs on stores."""

    def command(*, flags: Any) -> Any:
        return flags

    wrapped = _flags.with_options(command, name="batch run")
    names = {entry.name: None for entry in fields(Options)}
    others = set(names) - set(_flags.with_options(command).__signature__.parameters)  # type: ignore[attr-defined]

    of_stores = {"lease", "shard", "share", "shard_rows", "state", "workers"}
    assert others == {"mode", "wait", "batch_min_inputs", "keep_remote_files"} | of_stores

    assert set(wrapped.__signature__.parameters) == set(names)  # type: ignore[attr-defined]
    assert wrapped(**names) == {}
    assert wrapped(**{**names, "tag": ["a=1", "b=x=y"], "max_cost": "0.50", "timeout": "2m", "rpm": 0}) == {
        "tag": {"a": "1", "b": "x=y"},
        "max_cost": Decimal("0.50"),
        "timeout": "2m",
        "rpm": 0,
    }


@pytest.mark.parametrize("pair", ["a", "=b", ""])
def test_a_tag_is_a_key_and_a_value(pair: str) -> None:
    """A tag without a key or an equals sign is refused with an example."""
    with pytest.raises(WrongUsage, match="is not K=V"):
        _flags.pairs([pair])


@pytest.mark.parametrize("text", ["much", "nan", "inf", ""])
def test_a_cost_that_is_no_amount_is_refused(text: str) -> None:
    """--max-cost takes a decimal number."""
    with pytest.raises(WrongUsage, match="--max-cost is no amount"):
        _flags.as_options({"max_cost": text})


def test_a_word_not_known_is_answered_with_the_nearest() -> None:
    """one_of gives a known word back, names the nearest for another, and lists all when none is near."""
    assert _flags.one_of("day", ["day", "week"], "unit") == "day"
    with pytest.raises(WrongUsage) as near:
        _flags.one_of("wek", ["day", "week"], "unit")
    with pytest.raises(WrongUsage) as far:
        _flags.one_of("xyz", ["day", "week"], "unit")

    assert (near.value.message, near.value.hint) == ("unknown unit: 'wek'", "did you mean 'week'?")
    assert far.value.hint == "known: day, week"


@pytest.mark.parametrize("digits", [16, 5000])
def test_a_number_of_any_length_is_refused_in_few_words(digits: int) -> None:
    """A number that Python would not write out is out of range, and said so."""
    with pytest.raises(WrongUsage) as caught:
        options.check(Options(concurrency=10**digits))

    assert len(caught.value.message) < 100
