"""What a person sees: harmless whatever a provider or a file says, the same in every format."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import struct
import subprocess
import sys
import termios
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl import terminal
from embedctl.errors import InputMissing, WrongUsage
from embedctl.records import format_money
from embedctl.terminal import Column, Table

HOSTILE = st.text(
    st.one_of(
        st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Co"]),
        st.characters(),
        st.sampled_from("\x1b\x9b\u202e\u2066\u200b\ufeff\ud800\r\n\t"),
    ),
    max_size=40,
)


@given(HOSTILE)
def test_foreign_text_is_made_harmless(text: str) -> None:
    """No control, escape, bidi, line or surrogate character of a text reaches the terminal; it is always UTF-8."""
    shown = terminal.safe(text)

    assert shown.isprintable()
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    assert shown.encode("utf-8").decode("utf-8") == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=40))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """Letters, digits, punctuation and symbols of all scripts are shown unchanged."""
    assert terminal.safe(text) == text


def test_what_is_hidden_is_shown_by_its_code() -> None:
    """An escape sequence and a right-to-left override are spelt out."""
    assert terminal.safe("a\x1b[31mb\u202ec\ud800") == "a\\x1b[31mb\\u202ec\\ud800"


def test_a_notice_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A message with line breaks stays one line on stderr, and stdout stays empty."""
    terminal.warning("first\nsecond\r\x1b[2Kthird")

    assert capsys.readouterr() == ("", "warning: first\\nsecond\\r\\x1b[2Kthird\n")


def test_an_error_is_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """People get the message and what to do, on stderr."""
    terminal.error(InputMissing("no such file: a.txt", hint="look there"), as_json=False)

    assert capsys.readouterr() == ("", "error: no such file: a.txt\nhint: look there\n")


def test_an_error_for_programs_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json an error is {error, message, details, hint, exit_code} on stdout, and stderr is silent."""
    terminal.error(InputMissing("no such file: a.txt", details=[{"id": 1}]), as_json=True)
    out, err = capsys.readouterr()

    assert json.loads(out) == {
        "error": "input_missing",
        "message": "no such file: a.txt",
        "details": [{"id": 1}],
        "hint": None,
        "exit_code": 66,
    }
    assert err == ""


TABLE = Table(
    columns=[
        Column("name", "Name"),
        Column("tokens", "Tokens", "right"),
        Column("cost", "Cost", "right"),
        Column("ok", "OK"),
    ],
    rows=[
        {"name": "acme", "tokens": 1234567, "cost": Decimal("0.5"), "ok": True},
        {"name": "日本", "tokens": 0, "cost": None, "ok": False},
        {"name": "=SUM(A1)|x", "tokens": -3, "cost": Decimal("-1E-7")},
    ],
    envelope={"schema_version": 1, "at": datetime(2026, 11, 21, tzinfo=UTC), "cost": Decimal("1.10")},
    title="A title\x1b[0m",
    totals={"name": "Total", "tokens": 1234564},
    footer=["! a warning\u202e"],
)

FORMS = {
    "table": """\
A title\\x1b[0m
Name           Tokens        Cost  OK
acme        1,234,567        0.50  yes
日本                0           -  no
=SUM(A1)|x         -3  -0.0000001  -
--------------------------------------
Total       1,234,564           -  -
! a warning\\u202e
""",
    "md": """\
| Name | Tokens | Cost | OK |
| --- | ---: | ---: | --- |
| acme | 1,234,567 | 0.50 | yes |
| 日本 | 0 | - | no |
| =SUM(A1)\\|x | -3 | -0.0000001 | - |
| Total | 1,234,564 | - | - |

! a warning\\\\u202e
""",
    "csv": """\
name,tokens,cost,ok
acme,1234567,0.50,yes
日本,0,,no
'=SUM(A1)|x,-3,-0.0000001,
""",
    "json": """\
{
  "schema_version": 1,
  "at": "2026-11-21T00:00:00+00:00",
  "cost": "1.10"
}
""",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_has_four_forms(capsys: pytest.CaptureFixture[str], form: Any) -> None:
    """Each form of one table is exactly this, on stdout."""
    terminal.table(TABLE, form)

    assert capsys.readouterr() == (FORMS[form], "")


def test_an_unknown_form_is_wrong_usage() -> None:
    """A format that does not exist is refused with those that do."""
    with pytest.raises(WrongUsage) as caught:
        terminal.table(TABLE, "yaml")  # type: ignore[arg-type]

    assert caught.value.hint == "one of table, json, csv, md"


CELLS = st.one_of(
    st.text(max_size=20),
    HOSTILE,
    st.sampled_from(["=1+1", "+1+1", "-x", "@SUM(A1)", "\r=1", 'a"b', "a,b", "\u3000a\xa0\u200c"]),
    st.sampled_from([" a ", "-1.50", "+7"]),
)


@given(CELLS)
def test_a_csv_carries_every_character(text: str) -> None:
    """A cell is read as it was, but for the apostrophe before a text that a spreadsheet would run."""
    columns = [Column("a", "A"), Column("b", "B", exact=True)]
    content = Table(columns=columns, rows=[{"a": text, "b": text}], envelope={})

    heading, row = list(csv.reader(io.StringIO(terminal._csv(content), newline="")))

    assert heading == ["a", "b"]
    assert row[1] == text
    assert row[0] in ((text,) if not text.startswith(("=", "+", "-", "@")) else (f"'{text}", text))
    assert not row[0].startswith(("=", "@"))
    assert not row[0].startswith(("+", "-")) or row[0] in ("-1.50", "+7") or row[0].lstrip("+-")[0].isdigit()


def test_a_csv_cell_is_guarded_only_where_it_is_text() -> None:
    """A heading and a text get the apostrophe; ids and numbers never, also those that are kept as text."""
    columns = [Column("0", "-h", name="-h"), Column("1", "N", name="n", exact=True), Column("2", "M"), Column("3", "S")]
    row = {"0": "@a", "1": "=id", "2": Decimal(-1), "3": "-0.5"}
    content = Table(columns=columns, rows=[row], envelope={})

    assert terminal._csv(content) == "'-h,n,2,3\n'@a,=id,-1.00,-0.5\n"

    terminal.leave_formulas(True)
    try:
        assert terminal._csv(content) == "-h,n,2,3\n@a,=id,-1.00,-0.5\n"
    finally:
        terminal.leave_formulas(False)


def test_a_terminal_is_protected_from_a_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal no character of a CSV is one that it obeys, or that nobody sees."""
    content = Table(columns=[Column("a", "A")], rows=[{"a": "\x1b[31m\u202e\u3000"}], envelope={})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    assert terminal._csv(content) == "a\n\\x1b[31m\\u202e\\u3000\n"


def test_markdown_has_no_markup_of_others() -> None:
    """HTML, links, pictures, code, rows and cells of a name, a heading and a warning are shown, not obeyed."""
    hostile = "<img src=x> ![a](http://b) `c` d|e \\| *f*\n&lt; \x1b[0m"
    shown = r"&lt;img src=x&gt; !\[a\](http://b) \`c\` d\|e \\\| \*f\*\\n&amp;lt; \\x1b\[0m"
    content = Table(columns=[Column("a", hostile)], rows=[{"a": hostile}], envelope={}, footer=[hostile])

    assert terminal._markdown(content) == f"| {shown} |\n| --- |\n| {shown} |\n\n{shown}\n"


def test_headings_are_harmless() -> None:
    """A heading that comes from data obeys the rule for cells: a terminal sees no control character."""
    content = Table(columns=[Column("a", "x\x1b[2J\u202e")], rows=[], envelope={})

    assert terminal._text(content) == "x\\x1b[2J\\u202e\n"


@given(st.one_of(st.text(max_size=20), HOSTILE).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_json_is_harmless_and_the_same(text: str) -> None:
    """JSON parses to what was said; no C1, DEL, bidi or other unseen character stands in it raw."""
    printed = terminal.document({text: [text]}).decode()

    assert json.loads(printed) == {text: [text]}
    assert printed.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00"),
        ("5", "5.00"),
        ("0.5", "0.50"),
        ("1E+3", "1000.00"),
        ("0.000000020", "0.00000002"),
        ("-2.345", "-2.345"),
    ],
)
def test_money_has_all_its_digits(amount: str, text: str) -> None:
    """At least cents, never an exponent, nothing rounded."""
    assert format_money(Decimal(amount)) == text


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=9))
def test_money_can_be_read_back(amount: Decimal) -> None:
    """The printed amount is the amount."""
    assert Decimal(format_money(amount)) == amount


def test_a_receipt_without_money_says_unknown_not_zero() -> None:
    """None is null in JSON; money and times become strings."""
    assert terminal._plain(Decimal("0")) == "0.00"
    assert terminal._plain(b"\x01\xff") == "01ff"


def on_a_terminal(width: int, table: str, **environment: str) -> str:
    """What a table looks like on a real terminal of so many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    code = f"from embedctl import terminal as t; from decimal import Decimal as D; t.table(t.Table({table}), 'table')"
    clean = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "TERM")}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env={**clean, **environment}, check=True)
    os.close(theirs)
    said = b""
    with suppress(OSError):
        while piece := os.read(ours, 1 << 16):
            said += piece
    os.close(ours)
    return said.decode().replace("\r\n", "\n")


WIDE = (
    "columns=[t.Column('model', 'Model'), t.Column('calls', 'Calls', 'right', optional=2), "
    "t.Column('risk', 'At risk', 'right', optional=1), t.Column('cost', 'Cost', 'right')], envelope={}, "
    "rows=[{'model': 'text-embedding-3-small-of-some-place', 'calls': 12, 'risk': '0.10', 'cost': '1.00'}]"
)


def test_a_table_fits_its_terminal() -> None:
    """Columns that are optional go first, in the order given, and are named; then long texts take several lines."""
    wide = on_a_terminal(80, WIDE, NO_COLOR="1").splitlines()
    narrow = on_a_terminal(54, WIDE, NO_COLOR="1").splitlines()
    least = on_a_terminal(24, WIDE, NO_COLOR="1").splitlines()

    assert wide[0].split() == ["Model", "Calls", "At", "risk", "Cost"]
    assert (narrow[0].split(), narrow[-1]) == (["Model", "At", "risk", "Cost"], "no room for: Calls")
    assert (least[0].split(), least[-1]) == (["Model", "Cost"], "no room for: Calls, At risk")
    assert "".join(line.split()[0] for line in least[1:-1]) == "text-embedding-3-small-of-some-place"
    assert least[1].split()[1:] == ["1.00"]
    assert max(map(len, narrow)) <= 54
    assert max(map(len, least[:-1])) <= 24


def test_colour_is_for_terminals_that_want_it() -> None:
    """A terminal shows headings bold, unless NO_COLOR or TERM says otherwise; a pipe never has codes."""
    assert "\x1b[1m" in on_a_terminal(80, WIDE, TERM="xterm")
    assert "\x1b" not in on_a_terminal(80, WIDE, TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(80, WIDE, TERM="dumb")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_of_fewer_characters_takes_utf_8(encoding: str) -> None:
    """What stdout's encoding has no characters for is written as UTF-8, JSON too, and nothing is lost or refused."""
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONUTF8")}
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    said = "from embedctl import terminal as t; t.out(%a); t.result({'a': %a}); t.out(%a)"
    code = said % ("a … 日本\n", "…日本", "\udcff\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**clean, **odd}, check=False)

    assert done.stderr == b""
    assert done.stdout == 'a … 日本\n{\n  "a": "…日本"\n}\n'.encode() + b"\xff\n"
