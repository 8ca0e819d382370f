"""The key file: what is written reads back, what is wrong is named, nothing is lost when two write at once."""

from __future__ import annotations

import concurrent.futures
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl.errors import ConfigurationInvalid, InputMissing, WrongUsage
from embedctl.server import keys
from embedctl.server.keys import Key, KeyFile

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def plain(sha256: str, now: datetime) -> Key:
    return Key(sha256=sha256, workspace="acme", created=now)


TIMES = st.integers(1_600_000_000, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))

KEYS = st.builds(
    Key,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    workspace=st.sampled_from(["acme", "a.b-c_d", "0"]),
    role=st.sampled_from(["tenant", "admin", "metrics"]),
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    created=TIMES,
    expires=st.none() | TIMES,
    revoked=st.none() | TIMES,
    models=st.none() | st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1), max_size=3).map(tuple),
    rpm=st.none() | st.integers(1, 10**9),
    budget=st.none() | st.decimals(0, 10**6, places=9),
    budget_period=st.sampled_from(["day", "week", "month"]),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=8, max_size=8), KEYS, max_size=4))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, some: dict[str, Key]) -> None:
    """Every key reads back as it was, whatever its name holds."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(keys.written(some), "utf-8")
    path.chmod(0o600)

    assert keys.load(path) == some


def test_a_key_is_made_rotated_and_revoked(tmp_path: Path) -> None:
    """Its id stays; the old secret's hash stands beside the new one until the overlap is over; revoked is for good."""
    file = KeyFile(tmp_path / "keys.toml")
    made = file.create(plain)
    again = file.rotate(made.id, overlap=timedelta(hours=1))
    gone = file.revoke(made.id)

    assert keys.parts(made.secret) == made.id
    assert made.key.sha256 == keys.digest(made.secret) == again.key.previous
    assert again.key.sha256 == keys.digest(again.secret) != made.key.sha256
    assert gone.state(NOW) == "revoked"
    assert made.secret not in file.path.read_text()
    with pytest.raises(WrongUsage, match="revoked"):
        file.rotate(made.id, overlap=timedelta())
    with pytest.raises(InputMissing):
        file.revoke("nobodyss")


def test_keys_made_at_once_are_all_there(tmp_path: Path) -> None:
    """Ten who create keys at the same time lose none."""
    file = KeyFile(tmp_path / "keys.toml")
    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        made = list(threads.map(lambda _: file.create(plain), range(10)))

    assert keys.load(file.path).keys() == {one.id for one in made}


WHOLE = '[keys.a]\nsha256 = "x"\nworkspace = "x"\ncreated = 2026-01-01T00:00:00Z\n'


@pytest.mark.parametrize(
    "text",
    [WHOLE.replace("created", "# "), WHOLE.replace('"x"', '"X Y"'), WHOLE + "rpm = 0\n", WHOLE + "more = 1\n",
     "keys = 7\n", "[other]\n", "[[[", "\xff"],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """What is no list of keys is named by file and key, and nobody is let in."""
    path = tmp_path / "keys.toml"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)

    with pytest.raises(ConfigurationInvalid):
        keys.load(path)


def test_a_link_or_a_pipe_is_no_key_file(tmp_path: Path) -> None:
    """The file is opened as all state is: never through a link, never waiting for a pipe."""
    import os

    (tmp_path / "real.toml").write_text("")
    (tmp_path / "real.toml").chmod(0o600)
    (tmp_path / "link.toml").symlink_to(tmp_path / "real.toml")
    os.mkfifo(tmp_path / "pipe.toml", 0o600)

    for name in ("link.toml", "pipe.toml"):
        with pytest.raises(ConfigurationInvalid, match="cannot be read"):
            keys.load(tmp_path / name)


def test_times_and_amounts_as_typed() -> None:
    """Durations and dates, amounts and periods, lists of names."""
    assert keys.expiry("90d", NOW) == NOW + timedelta(days=90)
    assert keys.expiry("2027-06-30", NOW) == datetime(2027, 7, 1, tzinfo=UTC)
    assert keys.budget("5/day") == (Decimal(5), "day")
    assert keys.budget("0.50") == (Decimal("0.50"), "month")
    assert keys.listed("a, b*,a") == ("a", "b*")
    for wrong in ("soon", "2020-01-01", "0d", "-1d"):
        with pytest.raises(WrongUsage):
            keys.expiry(wrong, NOW)
    for wrong in ("much", "5/year", "-1", "nan", "1e999999"):
        with pytest.raises(WrongUsage):
            keys.budget(wrong)
    for wrong in ("", ",", "a*b"):
        with pytest.raises(WrongUsage):
            keys.listed(wrong)
