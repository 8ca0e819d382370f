"""`embedctl models compare`: figures that another computation confirms, nothing bought twice or in vain."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.support import static_models
from tests.support.browser import CHROMIUM, MISSING, look
from tests.support.processes import Zygote
from tests.support.running import Ran, embedctl, ledger, user_settings
from tests.support.wire.client import Wire, expected

MODEL = "lab:text-embedding-3-small"
ROWS = 60


def body(n: int) -> str:
    """No two are near-duplicates."""
    return " ".join(f"cargo{n * 31 + at} deck{n * 17 + at}" for at in range(10))


def table(rows: int = ROWS) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "title": f"Ships of day {n}", "text": body(n)} for n in range(rows)]


def put(name: str, rows: Sequence[dict[str, Any]]) -> str:
    Path(name).write_bytes(b"\n".join(map(orjson.dumps, rows)) + b"\n")
    return name


def lab(wire: Wire, *more: str) -> None:
    """A place that speaks OpenAI's dialect, at OpenAI's prices unless told otherwise; another by the hour."""
    lines = [
        "[providers.lab]",
        'protocol = "openai"',
        f'base_url = "{wire.base_url()}"',
        *(more or ['price_as = "openai"']),
    ]
    lines += ["[providers.gpu]", 'protocol = "openai"', f'base_url = "{wire.base_url()}"', "per_hour = 0.5"]
    user_settings("\n".join(lines))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: Wire) -> Path:
    monkeypatch.chdir(tmp_path)
    wire.reset()
    lab(wire)
    put("ships.jsonl", table())
    return tmp_path


def compare(*words: object) -> Ran:
    return embedctl("models", "compare", *words)


def figures(documents: np.ndarray, questions: np.ndarray, targets: Sequence[int]) -> dict[str, float]:
    """Recall and MRR from nothing but vectors, in double precision."""
    d, q = (
        each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1)[:, None]
        for each in (documents, questions)
    )
    ranks = [list(np.argsort(-(d @ row))).index(target) + 1 for row, target in zip(q, targets, strict=True)]
    return {
        "recall_at_1": float(np.mean([rank <= 1 for rank in ranks])),
        "recall_at_10": float(np.mean([rank <= 10 for rank in ranks])),
        "mrr": float(np.mean([1 / rank for rank in ranks])),
    }


def int8(vectors: np.ndarray) -> np.ndarray:
    return np.rint(vectors / np.abs(vectors).max(axis=1)[:, None] * 127)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_those_of_the_providers_vectors(wire: Wire) -> None:
    """Every width and number type has the figures that its vectors give, computed from nothing; so have the costs."""
    found = compare("ships.jsonl", "--candidates", MODEL, "--json")
    rows = found.json["candidates"]
    bodies, titles = [body(n) for n in range(ROWS)], [f"Ships of day {n}" for n in range(ROWS)]

    assert found.code == 0, found.err
    assert [(row["dimensions"], row["dtype"]) for row in rows] == [
        (width, dtype) for width in (1536, 1024, 512, 256) for dtype in ("float32", "int8")
    ]
    for row in rows:
        documents = expected(bodies, "text-embedding-3-small", row["dimensions"])
        questions = expected(titles, "text-embedding-3-small", row["dimensions"])
        own = figures(int8(documents) if row["dtype"] == "int8" else documents, questions, range(ROWS))
        assert {name: row[name] for name in own} == pytest.approx(own, abs=1e-4)
        assert all(low <= row[name] <= high for name, (low, high) in row["intervals"].items())
        assert row["bytes"] == ROWS * row["dimensions"] * (4 if row["dtype"] == "float32" else 1)
        assert (row["tokens"], row["tokens_input"], row["usage_source"]) == (21 * ROWS, 21 * ROWS, "native")
        assert Decimal(row["cost_input"]) == 21 * ROWS * Decimal("0.02") / 10**6
        assert Decimal(row["cost_input_batch"]) == 21 * ROWS * Decimal("0.01") / 10**6
        assert Decimal(row["cost_sample"]) == wire.billed() * Decimal("0.02") / 10**6
    assert (found.json["queries"], found.json["sample"], found.json["seed"]) == (ROWS, ROWS, 0)


def test_a_local_model_is_asked_as_embed_asks_it(here: Path) -> None:
    """Figures of a local model are those of the vectors that `embed` writes; texts over its limit are cut."""
    static_models.saved(here / "tiny", config={"max_length": 16})
    words = [word for word in static_models.WORDS if word.isalpha()]
    draw = np.random.default_rng(4)
    texts = [" ".join(draw.choice(words, 12 + n % 9)) for n in range(40)]
    rows = [{"id": n, "title": " ".join(draw.choice(words, 4)), "text": text} for n, text in enumerate(texts)]
    put("words.jsonl", rows)
    found = compare("words.jsonl", "--candidates", "static:./tiny", "--dimensions", "16", "--json")
    flags = ("-m", "static:./tiny", "--on-too-long", "chunk", "--keep", "none", "-q")
    assert embedctl("embed", "words.jsonl", "--text-column", "text", "-o", "d.parquet", *flags).code == 0
    assert embedctl("embed", "words.jsonl", "--text-column", "title", "-o", "q.parquet", *flags).code == 0
    texts, asked = (ledger(f"SELECT id, embedding FROM '{here}/{name}.parquet'") for name in "dq")
    best = []
    for width in (32, 16):
        documents = np.array([vector for _, vector in texts])[:, :width]
        questions = np.array([vector for _, vector in asked])[:, :width]
        cosines = (
            (questions @ documents.T) / np.linalg.norm(questions, axis=1)[:, None] / np.linalg.norm(documents, axis=1)
        )
        items = np.full((len(rows), len(rows)), -1.0)
        for at, (row_id, _) in enumerate(texts):
            items[:, row_id] = np.maximum(items[:, row_id], cosines[:, at])
        best.append(np.mean([1 / (items[n] >= items[n, n]).sum() for n in range(len(rows))]))

    assert found.code == 0, found.err
    assert len(texts) > len(rows)
    assert found.json["sample"] == found.json["queries"] == len(rows)
    assert [row["mrr"] for row in found.json["candidates"] if row["dtype"] == "float32"] == pytest.approx(
        best, abs=1e-4
    )
    assert [row["trained"] for row in found.json["candidates"]] == [True, True, False, False]
    assert found.json["candidates"][0]["texts"] == len(texts)
    assert any("40 items are" in line for line in found.json["warnings"])


def test_questions_of_ones_own(wire: Wire) -> None:
    """--queries asks what its rows say; targets are in the sample whatever chance says, and copies count as found."""
    rows = [*table(), {"id": "copy", "title": "none", "text": body(59).upper()}]
    put("ships.jsonl", rows)
    put(
        "asked.jsonl", [{"query": f"what came on day {n}", "id": f"r{n}" if n != 59 else "copy"} for n in range(48, 60)]
    )
    found = compare("ships.jsonl", "--candidates", MODEL, "--queries", "asked.jsonl", "--sample", "30", "--json")

    assert found.code == 0, found.err
    assert (found.json["queries"], found.json["queries_from"], found.json["sample"]) == (12, "file", 29)
    assert any("searched are 30 of 61 rows" in line for line in found.json["warnings"])
    assert found.json["rows"] == 61


def test_months_batches_and_machines(wire: Wire) -> None:
    """A month costs what its rows do, at both tiers; a machine by the hour 730 hours, its input the time it took."""
    wire.plan(latency_s=0.005)
    found = compare(
        "ships.jsonl", "--candidates", f"{MODEL},gpu:text-embedding-3-small", "--rows-per-month", "600", "--json"
    )
    priced, hourly = found.json["candidates"][0], found.json["candidates"][8]
    again = compare("ships.jsonl", "--candidates", "gpu:text-embedding-3-small", "--json")

    assert found.code == 0, found.err
    assert Decimal(priced["cost_month"]) == 10 * Decimal(priced["cost_input"])
    assert Decimal(priced["cost_month_batch"]) == 5 * Decimal(priced["cost_input"])
    assert (hourly["model"], hourly["per_hour"], hourly["cost_month"]) == (
        "gpu:text-embedding-3-small",
        "0.50",
        "365.00",
    )
    assert 0 < Decimal(hourly["cost_input"]) < Decimal(hourly["cost_sample"])
    assert hourly["cost_input_batch"] is None
    assert (again.json["candidates"][0]["cost_input"], again.json["candidates"][0]["pareto"]) == (None, None)
    assert any("--no-cache asks" in line for line in again.json["warnings"])


# ── what is bought ───────────────────────────────────────────────────────────────────────────────────────────────────


def told(found: Ran) -> list[str]:
    """Words that tokens are not those that were billed."""
    return [line for line in found.json["warnings"] if "not those that were billed" in line]


def test_nothing_is_bought_twice_and_all_is_booked(wire: Wire) -> None:
    """Texts that stand there twice are bought once, a second look buys nothing, a larger sample only what is new.

    Tokens of what is not bought now are counted here, and said to be.
    """
    put("ships.jsonl", [*table(), *({**row, "id": f"again {row['id']}"} for row in table())])
    flags = ("--candidates", MODEL, "-w", "acme", "--tag", "team=search", "--json")
    first = compare("ships.jsonl", "--sample", "40", *flags)
    some = wire.billed()
    again = compare("ships.jsonl", "--sample", "40", *flags)
    all_of_them = compare("ships.jsonl", *flags)
    times = {tiers["standard"] for tiers in wire.invoice()["texts"].values()}

    assert [first.code, again.code, all_of_them.code] == [0, 0, 0], first.err + again.err
    assert again.json["candidates"][0]["cost_sample"] == "0.00"
    assert [row["mrr"] for row in again.json["candidates"]] == [row["mrr"] for row in first.json["candidates"]]
    sources = [(one.json["candidates"][0]["usage_source"], bool(told(one))) for one in (first, again, all_of_them)]
    assert sources == [("native", False), ("fallback", True), ("mixed", True)]
    assert times == {1}
    assert 0 < some < wire.billed()
    assert ledger("SELECT DISTINCT purpose, workspace_id, tags ->> 'team' FROM usage_event") == [
        ("test", "acme", "search")
    ]
    assert ledger("SELECT sum(tokens_total) FROM usage_event WHERE billable = 'yes'")[0][0] == wire.billed()


def test_max_cost_holds_for_all_candidates_together(wire: Wire) -> None:
    """--max-cost ends it with 4 before it is passed, whichever candidate is asked; with more money it goes on there."""
    place = f'[providers.lab]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nprice_as = "openai"\n'
    user_settings(f"batch_size = 10\n{place}")
    flags = ("--candidates", "lab:text-embedding-3-large,lab:text-embedding-3-small", "--json")
    capped = compare("ships.jsonl", *flags, "--max-cost", "0.00023")  # either alone would cost less
    spent = ledger("SELECT sum(cost), count(DISTINCT model) FROM usage_event WHERE cost > 0")
    whole = compare("ships.jsonl", *flags, "--max-cost", "1")
    bought = [(one["model"], text) for one in wire.truth() for text in one["text_hashes"]]

    assert (capped.code, capped.json["error"]) == (4, "budget_reached")
    assert Decimal("0.0002") < spent[0][0] <= Decimal("0.00023")
    assert spent[0][1] == 2
    assert whole.code == 0, whole.err
    assert len(bought) == len(set(bought)) == 4 * ROWS


@pytest.mark.parametrize("model", [MODEL, "lab:some-model-nobody-knows"])
def test_a_killed_comparison_goes_on(model: str, here: Path, wire: Wire, forks: Zygote) -> None:
    """After SIGKILL the same command buys what was not answered, whether the model's width is known or not."""
    settings = f'batch_size = 10\n[providers.lab]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nfree = true\n'
    user_settings(settings)
    wire.plan(script=["ok", "ok", "ok", {"fault": "hang", "seconds": 20}])
    words = ["models", "compare", "ships.jsonl", "--candidates", model, "--json"]
    order = {"args": words, "cwd": str(here), "env": dict(os.environ), "constants": {}, "run": {}}
    pid = forks.ask({**order, "out": str(here / "out"), "err": str(here / "err")})
    while len(wire.truth()) < 4:  # three are answered, and the fourth never is
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    forks.ask({"wait": pid})
    answered = {text for one in wire.truth()[:3] for text in one["text_hashes"]}
    wire.plan()
    done = compare(*words[2:])
    later = [text for one in wire.truth()[4:] for text in one["text_hashes"]]

    assert done.code == 0, done.err
    assert (len(answered), len(later)) == (30, 90)
    assert not answered & set(later)
    assert ledger("SELECT count(*) FROM usage_event WHERE status = 'interrupted'") == [(1,)]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "no price": (["--candidates", "free:m", "--max-cost", "1"], 2, "free:m has no price, so --max-cost cannot hold"),
    "unknown": (["--candidates", "lab:x,text-embedding-3-smal"], 2, "unknown model: 'text-embedding-3-smal'"),
    "no such provider": (["--candidates", "nobody:model"], 2, "unknown provider: 'nobody'"),
    "no candidates": (["--candidates", " , "], 2, "no candidates"),
    "no key": (["--candidates", f"{MODEL},cohere:embed-v4.0"], 78, "COHERE_API_KEY"),
    "no model": (["--candidates", f"{MODEL},static:./none"], 78, "there is no folder ./none here"),
    "too few rows": (["--candidates", MODEL, "--sample", "12"], 65, "12 different texts are too few"),
    "ids": (["--candidates", MODEL, "--queries", "wrong.jsonl"], 65, "wrong.jsonl: no row with text has the id 'x0'"),
    "too few queries": (["--candidates", MODEL, "--queries", "few.jsonl"], 65, "2 different queries are too few"),
    "columns": (["--candidates", MODEL, "--queries", "ships.jsonl"], 65, "no column 'query'"),
    "widths": (["--candidates", MODEL, "--dimensions", "256,x"], 2, "--dimensions '256,x' is no list of numbers"),
    "no input": (["--candidates", MODEL, "--queries", "none.jsonl"], 66, "none.jsonl"),
    "page": (["--candidates", MODEL, "--html", "ships.jsonl"], 73, "ships.jsonl exists"),
    "title": (["--candidates", MODEL, "--title-column", "titel"], 65, "no column 'titel'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_compared_is_told_before_anything_is_bought(why: str, wire: Wire) -> None:
    """What is wrong is one line and the right code, and nothing was sent."""
    words, code, line = REFUSED[why]
    user_settings(
        f'[providers.lab]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\nprice_as = "openai"\n'
        f'[providers.free]\nprotocol = "openai"\nbase_url = "{wire.base_url()}"\n'
    )
    put("wrong.jsonl", [{"query": f"q {n}", "id": f"x{n}" if n < 1 else f"r{n}"} for n in range(12)])
    put("few.jsonl", [{"query": f"q {n}", "id": f"r{n}"} for n in range(2)])
    ended = compare("ships.jsonl", *words)

    assert ended.code == code, ended.err
    assert line in ended.err
    assert len([one for one in ended.err.splitlines() if one.startswith("error: ")]) == 1
    assert (ended.out, wire.truth()) == ("", [])


def test_a_refused_text_counts_as_not_found(wire: Wire) -> None:
    """A text that the provider refuses is said, and nobody finds it; the others are measured."""
    wire.plan(poison=[body(7)], poison_kind="poison")
    found = compare("ships.jsonl", "--candidates", MODEL, "--json")

    assert found.code == 0, found.err
    assert any("refused 1 texts" in line for line in found.json["warnings"])
    assert found.json["queries"] == ROWS


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_has_keywords_beside_the_models() -> None:
    """People see each variant, keyword search below, which are best, and in what way queries were made."""
    found = compare("ships.jsonl", "--candidates", MODEL)

    assert found.code == 0, found.err
    assert "60 queries, 60 items (seed 0)" in found.out
    assert re.search(r"^lab:text-embedding-3-small +1536 +float32 +0\.\d{3}", found.out, re.M)
    assert re.search(r"^keywords \(BM25\) ", found.out, re.M)
    assert "! queries are made of the texts (60 titles → bodies)" in found.out
    assert len(compare("ships.jsonl", "--candidates", MODEL, "--format", "csv").out.splitlines()) == 10


def test_choose_points_to_it() -> None:
    """`models choose` says how to find out whether its choice is good enough."""
    said = embedctl("models", "choose", "ships.jsonl", "--text-column", "text")

    assert "embedctl models compare ships.jsonl --candidates openai:text-embedding-3-small" in said.out


@pytest.fixture
def page(here: Path) -> Path:
    hostile = [
        {**row, "title": f"</script><script>document.title='taken'</script> {n}"} for n, row in enumerate(table())
    ]
    put("ships.jsonl", hostile)
    done = compare("ships.jsonl", "--candidates", f"{MODEL},lab:mistral-embed", "--html", "models.html")
    assert done.code == 0, done.err
    return here / "models.html"


def test_the_page_weighs_little_and_asks_nobody(page: Path) -> None:
    """The page is at most 300 kB, its owner's alone, and loads no script, style, font or picture from elsewhere."""
    assert page.stat().st_mode & 0o777 == 0o600
    text = page.read_text("utf-8")

    assert len(text.encode()) <= 300_000
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", text.split("<body>")[1]) == []
    assert "content=\"default-src 'none'; img-src data:; style-src 'sha256-" in text


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    """A real browser draws both frontiers and the table, without a complaint, and keys go from point to point."""
    seen = look(page, tmp_path)
    probe = """
        const plot = document.querySelector('#cost .plot');
        plot.dispatchEvent(new KeyboardEvent('keydown', { key: 'End' }));
        return { points: [...document.querySelectorAll('.plot')].map(each => each.dataset.points),
                 rows: document.querySelectorAll('#models tbody tr').length, title: document.title,
                 tip: plot.querySelector('.tip').textContent };
    """
    told = look(page, tmp_path, probe=probe).told

    assert seen.console == []
    assert told["points"] == ["8", "10"]  # nobody knows what lab:mistral-embed costs
    assert (told["rows"], told["title"]) == (11, "embedctl models compare")
    assert "MRR" in told["tip"]
