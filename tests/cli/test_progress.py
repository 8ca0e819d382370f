"""A person sees what a run does, from the beginning to the end, and what is kept when it stops."""

from __future__ import annotations

import itertools
import random
import re
import signal
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.cli._progress import ProgressDisplay, Throughput
from embedctl.planning.chunks import Chunks, TextRules
from embedctl.planning.slice import Slice
from embedctl.records import Paced, PhaseBegan, Progressed, Waiting
from embedctl.runs.progress import UnderWay
from embedctl.settings.options import Options
from embedctl.tokens import counter
from tests.support.processes import MODEL, World, Zygote, sentence
from tests.support.terminals import run_on
from tests.support.wire.client import Wire

TEXTS = [sentence(number) for number in range(60)]
OPENAI = ("-m", f"openai:{MODEL}", "--dimensions", "8", "--batch-size", "5", "--concurrency", "2")


class Talkative(World):
    """Says how far it is from the beginning, and often."""

    @property
    def constants(self) -> dict[str, Any]:
        return {
            **super().constants,
            "embedctl.cli._progress:FIRST_LINE_S": 0.01,
            "embedctl.cli._progress:LONGEST_PAUSE_S": 0.05,
        }


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = Talkative(tmp_path, wire, forks)
    found.tables(TEXTS, files=4)
    return found


@pytest.fixture
def documents(world: World) -> Path:
    """60 files of some pages each."""
    chance = random.Random(1)
    folder = world.folder / "docs"
    folder.mkdir()
    for number in range(60):
        pages = ("\n\n".join(sentence(chance.randrange(500)) for _ in range(12)) for _ in range(chance.randint(1, 6)))
        (folder / f"{number}.md").write_text("\n\n".join(pages))
    return folder


def numbers(seen: str, pattern: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(pattern, seen)]


def test_something_is_shown_before_the_first_answer(world: World) -> None:
    """On a terminal a run says what it does while no answer has come, and leaves nothing but its receipt."""
    world.wire.plan(hold_after=0)
    with run_on(["batch", "run", "in", "-o", "out", *OPENAI], world.folder, world.environment) as screen:
        screen.wait_for("embedding 0 of 60 texts, 0 %")
        screen.wait_for("0.00 USD, 2 requests under way")
        world.wire.plan()
        assert screen.end() == 0, screen.seen

    assert screen.raw.rindex("\x1b[2K") < screen.raw.rindex(
        "60 rows: 60 vectors"
    )  # it is wiped, then comes the receipt
    assert screen.raw.rindex("\x1b[?25h") > screen.raw.rindex("\x1b[?25l")  # and the cursor is there


def test_documents_are_chunked_then_embedded(world: World, documents: Path) -> None:
    """With the bundled model files are counted while they are chunked, and their texts, also within a request."""
    with run_on(["embed", "docs", "-o", "docs.parquet"], world.folder, world.environment) as screen:
        assert screen.end() == 0, screen.seen

    cut = numbers(screen.seen, r"chunking ([\d,]+) of 60 files")
    done = numbers(screen.seen, r"embedding ([\d,]+) of [\d,]+ texts")
    texts = numbers(screen.seen, r"embedding [\d,]+ of ([\d,]+) texts")[-1]
    assert texts == pq.read_metadata(world.folder / "docs.parquet").num_rows
    assert cut == sorted(cut)
    assert done == sorted(done)
    assert [one for one in done if 0 < one < texts]
    if cut:  # a fast machine is done before anything is drawn
        assert screen.seen.index("chunking") < screen.seen.index("embedding")


def test_a_dry_run_says_how_far_it_is(world: World, documents: Path) -> None:
    """`--dry-run` counts the files that it has cut, and sends nothing."""
    child = world.start("embed", "docs", "-o", "docs.parquet", "--dry-run", *OPENAI)
    ended = child.wait()

    assert ended.code == 0, ended.err
    assert re.search(r"^(reading|chunking \d+ of 60 files, \d+ %)$", ended.err, re.MULTILINE)
    assert "nothing was sent" in ended.out
    assert world.wire.truth() == []


def test_lines_without_a_terminal(world: World) -> None:
    """Into a pipe or a file go plain lines, without anything that draws."""
    world.wire.plan(latency_s=0.3)
    ended = world.run("batch", "run", "in", "-o", "out", *OPENAI)

    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.err
    assert "\r" not in ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("embedding ")]
    assert lines[0].startswith("embedding 0 of 60 texts, 0 %, 0.00 USD")
    done = numbers("\n".join(lines), r"embedding ([\d,]+) of 60 texts")
    assert done == sorted(done)
    assert done[-1] > 0


@pytest.mark.parametrize("flag", ["--no-progress", "-q"])
def test_none_when_it_is_not_wanted(world: World, flag: str) -> None:
    """`--no-progress` and `-q` draw nothing on a terminal."""
    world.wire.plan(latency_s=0.2)
    with run_on(["batch", "run", "in", "-o", "out", flag, *OPENAI], world.folder, world.environment) as screen:
        assert screen.end() == 0

    assert "\x1b" not in screen.raw
    assert "embedding " not in screen.seen


def test_a_free_batch_stops_in_the_middle_of_a_request(world: World, documents: Path) -> None:
    """Ctrl-C does not wait for what a local model has begun: nothing of it is paid, and the rerun does it."""
    with run_on(["batch", "run", "docs", "-o", "out"], world.folder, world.environment) as screen:
        screen.wait_for("requests? under way")
        screen.signal()
        assert screen.end() == 130

    kept = numbers(screen.seen, r"kept (\d+) (?:of|text)")
    assert [one for one in kept if one < 71], screen.seen  # what a request holds hangs on how fast documents are cut
    assert world.run("batch", "run", "docs", "-o", "out", "--no-progress").code == 0


def test_a_stopped_run_says_what_is_kept(world: World) -> None:
    """A stopped run says what is kept, what is left and what that costs; no vectors that are not, no output either."""
    world.wire.plan(hold_after=4)
    with run_on(["embed", "in", "-o", "out.parquet", *OPENAI], world.folder, world.environment) as screen:
        screen.wait_for(r"embedding [1-9]\d* of 60 texts")
        screen.signal()
        screen.wait_for("stopping: ")
        world.wire.plan()
        assert screen.end() == 130

    told = re.search(
        r"stopped after [\d.]+ s: kept (\d+) of 60 texts; (\d+) to go, about ([\d.]+) USD; the same", screen.seen
    )
    assert told, screen.seen
    kept, left = int(told[1]), int(told[2])
    assert kept + left == 60
    assert kept == len(world.safe("out.parquet")) == 5 * len(world.wire.truth())
    assert "0 vectors" not in screen.seen
    assert "output:" not in screen.seen


def test_a_second_signal_says_what_is_kept(world: World) -> None:
    """Whoever presses Ctrl-C twice does not wait for answers, learns what is kept, and has the cursor back."""
    world.wire.plan(hold_after=0)
    with run_on(["batch", "run", "in", "-o", "out", *OPENAI], world.folder, world.environment) as screen:
        screen.wait_for("2 requests under way")
        screen.signal()
        screen.wait_for("stopping: ")
        screen.signal()
        assert screen.end() == -signal.SIGINT, screen.seen[-3000:]
    world.wire.plan()

    assert "stopped at once: kept 0 of 60 texts; 60 to go; the same command goes on" in screen.seen
    assert screen.raw.rindex("\x1b[?25h") > screen.raw.rindex("\x1b[?25l")


@given(st.lists(st.integers(0, 500), min_size=4, max_size=100), st.integers(1, 10**6))
def test_the_time_left_has_bounds(steps: list[int], left: int) -> None:
    """The time left lies between its bounds, which meet when the pace never changes; it counts from the first text."""
    pace, texts = Throughput(), 0
    for second, step in enumerate(steps):
        texts += step
        pace.see(float(second), texts, 3 * texts)
    per_second, tokens = pace.per_second
    bounds = pace.left(left)
    begun = list(itertools.dropwhile(lambda step: step == 0, steps[1:]))

    assert tokens == pytest.approx(3 * per_second)
    if len(begun) < 3:
        assert bounds is None
        return
    assert per_second == pytest.approx(sum(begun) / len(begun) if len(steps) <= 60 else per_second)
    if not per_second:
        return
    assert bounds is not None
    assert bounds[0] <= left / per_second * (1 + 1e-9)
    assert bounds[1] >= left / per_second * (1 - 1e-9)
    if len(set(begun)) == 1:
        assert bounds[0] == pytest.approx(bounds[1])


def at(**changes: Any) -> Progressed:
    return Progressed(**{"rows": 0, "rows_total": 100, "in_flight": 1, "tokens": 0, "cost": None, **changes})


@pytest.mark.parametrize(
    ("event", "headline"),
    [
        (PhaseBegan("reading"), "reading"),
        (at(phase="chunking", rows_read=12, documents=True, share_read=0.12), "chunking 12 of 100 files, 12 %"),
        (at(phase="reading", rows_total=None, rows_read=1200), "reading 1,200 rows"),
        (at(texts=40, texts_total=200), "embedding 40 of about 200 texts, 20 %"),
        (at(texts=40, texts_total=50, is_exact=True), "embedding 40 of 50 texts, 80 %"),
        (at(rows_total=None, texts=40), "embedding 40 texts"),
        (PhaseBegan("writing"), "writing the output"),
    ],
)
def test_headlines(event: Any, headline: str) -> None:
    """What is done, how far, and a percentage where the whole is known, or can be estimated from what is read."""
    display = ProgressDisplay(shown=False)
    display.notify(event)

    assert display.headline() == headline


def test_a_large_document_is_named_while_it_is_cut() -> None:
    """Nobody can say how far cutting one document is: a large one is named, with its size, as long as that takes."""
    told: list[Any] = []
    under_way = UnderWay()

    def chunked(text: str, name: object) -> list[str]:
        told.append(under_way.cutting)
        return [text]

    rules = TextRules(
        prefix="",
        max_tokens=None,
        counter=counter("utf8_bytes"),
        count_all=False,
        takes_tokens=False,
        chunked=chunked,
        pieces=lambda text: [text],
        shortened=lambda text: text,
    )
    texts = ["a short one", "word " * 300_000]
    block: Any = SimpleNamespace(first_row=0, ids=["a.md", "b\x1b.md"], texts=texts, tokens=None)
    Chunks(Options(), rules, {}, under_way.cut).of(block, Slice(0, 0, 0))
    display = ProgressDisplay(shown=False)
    display.notify(at(phase="chunking", rows_read=1, documents=True, cutting=told[1]))

    assert told == [None, ("b\x1b.md", 1_500_000)]
    assert under_way.cutting is None
    assert display.details() == ["cutting b\\x1b.md (1.5 million characters)"]


def test_details_of_what_is_read() -> None:
    """While files are read: their rate, what they have become, what that costs, and the time left for the rest."""
    now = [0.0]
    display = ProgressDisplay(shown=False, clock=lambda: now[0])
    for second in range(6):
        now[0] = float(second)
        done = {"texts": 8 * second, "tokens": 200 * second, "cost": Decimal("0.001") * second}
        display.notify(at(phase="chunking", rows_read=4 * second, documents=True, share_read=0.04 * second, **done))

    assert display.headline() == "chunking 20 of 100 files, 20 %"
    assert display.details() == ["4.0 files/s", "40 texts so far", "about 1,000 tokens", "0.0050 USD", "20 s left"]


def test_files_are_read_beside_the_embedding() -> None:
    """What is still to be read stands behind what is embedded, until there is nothing more."""
    display = ProgressDisplay(shown=False)
    display.notify(at(texts=5, texts_total=900, rows_read=30, documents=True, share_read=0.3))
    assert display.details()[-1] == "30 of 100 files read"
    display.notify(at(texts=5, texts_total=300, is_exact=True, rows_read=100, documents=True, share_read=1.0))
    assert not any("read" in one for one in display.details())


def test_why_nothing_is_sent() -> None:
    """A wait stands below with its reason and the time that is left of it, until it is over; a short one does not."""
    now = [0.0]
    display = ProgressDisplay(shown=False, clock=lambda: now[0])
    display.notify(Waiting("corp", "too many requests.", 30.0))
    display.notify(Waiting("eu", "too many requests", 0.2))
    now[0] = 10.0
    assert display.paced() == ["corp: too many requests; retry in 20 s"]
    now[0] = 30.0
    assert display.paced() == []


def test_why_the_pace_is_cut() -> None:
    """Who is held back stands below, with the rate, until nothing is held back."""
    display = ProgressDisplay(shown=False)
    display.notify(Paced("corp", 12.0, "requests", first=True))
    assert display.paced() == ["corp refuses more: 12 requests/s, rising"]
    display.notify(Paced("corp", None, "requests", first=False))
    assert display.paced() == []
