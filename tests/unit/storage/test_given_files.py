"""Files that a person names to be taken in: whatever they hold, they are taken in or refused with 65 or 66."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedctl.errors import EmbedctlError, InputInvalid, InputMissing
from embedctl.ledger.prices import imported
from embedctl.reports import estimates, exchange_rates, provider_export
from embedctl.storage import given_files

NOW = datetime(2026, 11, 25, tzinfo=UTC)
READERS: dict[str, Any] = {
    "prices": lambda path: imported.read_offers(path, now=NOW),
    "invoice": provider_export.read_export,
    "rates": exchange_rates.read,
    "estimate": estimates.read,
}

DEEP = "[" * 200_000 + "]" * 200_000
ROW = '{"day": "2026-11-01", "tokens": %s, "cost": "1"}'
PRICE = '{"x": {"mode": "embedding", "litellm_provider": "openai", "input_cost_per_token": %s}}'
TOKENS = ["1e400", "1e99999999", '"NaN"', "NaN", "Infinity", "9" * 5000, "1.5", "[]"]
BAD: dict[str, list[str | bytes]] = {
    "prices": [
        DEEP, '{"a":' * 200_000 + "1" + "}" * 200_000, '{"x": {"mode": ' + "[" * 90 + "]" * 90 + "}}", "9" * 5000,
        "[1]", "[]x", "null", "{}", '[{"models": 1}]', b"\xff\xfe", "", '{"x": 1}',
    ],
    "invoice": [
        *(f"[{ROW % tokens}]" for tokens in TOKENS), ROW % DEEP, DEEP, "[1]", "[[]]", "[null]",
        '{"data": 1}', '{"data": [1]}', '{"data": [{"results": 1}]}', '{"data": [{"results": [{}]}]}',
        '[{"day": 1e99}]', '[{"day": 99999999999999999999}]', '[{"day": []}]',
        '[{"day": "2026-11-01", "cost": "1e99999999"}]',
        '[{"day": "2026-11-01", "cost": "1e-99999999"}]', '[{"day": "2026-11-01", "model": {}}]',
        '[{"day": "2026-11-01", "model": "\\ud800"}]', '[{"day": "2026-11-01", "account": "%s"}]' % ("x" * 201),
        "day,tokens\n2026-11-01," + "9" * 200_000, "day,tokens\n99999999999999999,1", "a,b\n1,2", b"\x00\xff",
    ],
    "rates": [
        "day,base,quote,rate\n2026-11-01,EUR,USD,1e-400", "day,base,quote,rate\n2026-11-01,EUR,USD,1e400",
        "day,base,quote,rate\n2026-11-01,EUR,USD,NaN", "day,base,quote,rate\n2026-11-01,EUR,USD,0.00000000001",
        "day,base,quote,rate\n2026-11-01,EUR,USD," + "9" * 200_000, "day,base,quote,rate\n2026-11-01,EUR",
        "day,base,quote,rate\n2026-99-01,EUR,USD,1", "x", b"\xff",
    ],
    "estimate": [DEEP, "[]", "{}", "1", '{"made_at": 1, "cost": 1, "cost_low": 1, "cost_high": 1}'],
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind in BAD for number in range(len(BAD[kind]))])
def test_what_is_no_such_file_is_refused(tmp_path: Path, kind: str, number: int) -> None:
    """Depth, digits, exponents, shapes and encodings that none of these files has end with 65, in a short message."""
    content = BAD[kind][number]
    path = tmp_path / "given"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    with pytest.raises(InputInvalid) as caught:
        READERS[kind](path)

    assert len(caught.value.message) < 300 + len(str(path))


def test_prices_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    """A price list's numbers beyond any use, and names that are none, name no price."""
    path = tmp_path / "prices.json"
    found = []
    for value in ("1e400", "1e99999999", "1e-99999999", "-1", "true", '"1"', "[]", "9" * 4000, "NaN"):
        path.write_text(PRICE % value)
        found += imported.read_offers(path, now=NOW)
    path.write_text(json.dumps([{"id": "openai", "models": [{"id": "embed\ud800", "prices": {"input_mtok": 1}}]}]))
    found += imported.read_offers(path, now=NOW)

    assert found == []


def test_what_is_right_is_taken_in(tmp_path: Path) -> None:
    """An export's counts, money and numeric accounts come in exactly; columns without a heading are no harm."""
    path = tmp_path / "export.csv"
    path.write_text('day,tokens,cost,account\n2026-11-01,"1,234",$0.0500000000000001,42\n2026-11-02,0,,43,more\n')
    first, second = provider_export.read_export(path)

    assert (first.tokens, first.cost, first.account) == (1234, Decimal("0.0500000000000001"), "42")
    assert (second.tokens, second.cost) == (0, None)
    path.write_text("day,base,quote,rate\n2026-11-01,EUR,USD,1.1,more\n")
    assert [one.rate for one in exchange_rates.read(path)] == [Decimal("1.100000000")]


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_file_is_said(tmp_path: Path, kind: str) -> None:
    """No such file: 66; a folder, a device without end, a link to itself: 65 at once."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", given_files.MAX_BYTES + 1)
    with pytest.raises(InputMissing, match="no such file"):
        READERS[kind](tmp_path / "none")
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "loop", tmp_path / "large"):
        with pytest.raises(InputInvalid):
            READERS[kind](path)


def test_a_pipe_that_is_named_is_read(tmp_path: Path) -> None:
    """Who names a pipe means what comes through it."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["day,tokens\n2026-11-01,5\n"])
    writer.start()
    (row,) = provider_export.read_export(tmp_path / "pipe")
    writer.join()

    assert row.tokens == 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["2026-11-01", "embedding"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["day", "tokens", "cost", "data", "results", "start_time", "models", "id", "prices", "mode",
                         "input_mtok", "litellm_provider", "input_cost_per_token", "amount", "made_at", "x"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON, kind=st.sampled_from(sorted(READERS)))
def test_any_json_is_taken_in_or_refused(tmp_path: Path, content: object, kind: str) -> None:
    """Whatever shape the JSON has, it is no bug's exit code."""
    path = tmp_path / "given.json"
    path.write_text(json.dumps(content))
    try:
        READERS[kind](path)
        code = 0
    except EmbedctlError as refused:
        code = refused.exit_code

    assert code in (0, 65)
