"""The map: the right directions in one pass, and a page that renders alone, whatever the texts hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.errors import InputInvalid
from embedctl.vectors import files, picture
from tests.support.vector_files import Rows, folder, put, rows

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> & \u202e$x$"
CHROMIUM = shutil.which("chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
]


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def stretched(count: int = 200) -> Rows:
    """Rows whose vectors differ most in two directions that are known."""
    made = rows(count)
    chance = np.random.default_rng(7)
    vectors = chance.standard_normal(made.vectors.shape) * 0.01
    vectors[:, 3] += chance.standard_normal(count)
    vectors[:, 8] += chance.standard_normal(count) * 0.4
    vectors[:, 0] += 1
    made.vectors = vectors.astype(np.float32)
    return made


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_directions_are_the_principal_ones(tmp_path: Path, dtype: str) -> None:
    """One streaming pass over several parts finds what a decomposition of all vectors of length 1 finds."""
    parts = [stretched(100), stretched(60)]
    path = folder(tmp_path / "out", parts)
    for number, part in enumerate(parts):
        put(path / f"part-{number:06d}.parquet", part, dtype=dtype)  # type: ignore[arg-type]
    axes = picture.principal(files.open_stored(path))
    vectors = np.concatenate([part.vectors for part in parts]).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, lengths, directions = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)

    assert np.abs(np.einsum("ij,ij->i", axes.directions, directions[:2])) == pytest.approx([1, 1], abs=1e-3)
    assert axes.shares == pytest.approx(tuple(lengths[:2] ** 2 / (lengths**2).sum()), abs=1e-3)
    assert axes.directions @ axes.directions.T == pytest.approx(np.eye(2), abs=1e-6)


def test_points_are_taken_evenly(tmp_path: Path) -> None:
    """No more points than asked for, spread over all parts, each with its own id and text."""
    path = folder(tmp_path / "out", [rows(50), rows(50, 50), rows(50, 100)])
    stored = files.open_stored(path)
    drawn = picture.points(stored, picture.principal(stored), colour=None, most=40)

    assert drawn.ids == [f"row-{number}" for number in range(0, 150, 4)]
    assert drawn.texts[1] == "text number 4 about nothing"
    assert drawn.places.shape == (38, 2)


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    """Two vectors, or vectors that are all the same, make no map."""
    same = rows(9)
    same.vectors[:] = same.vectors[0]
    for made in (rows(2), same):
        with pytest.raises(InputInvalid):
            picture.principal(files.open_stored(put(tmp_path / "out.parquet", made)))


def test_flags_are_checked_before_work(tmp_path: Path) -> None:
    """A name that is no picture, a column that is not there: exit 2, the nearest named. A file that exists: 73."""
    path = str(put(tmp_path / "out.parquet", rows(9)))
    there = tmp_path / "there.html"
    there.write_text("mine")

    assert run("vectors", "map", path, "-o", str(tmp_path / "map.svg"))[0] == 2
    code, _, err = run("vectors", "map", path, "-o", str(tmp_path / "map.html"), "--color", "txet")
    assert (code, "did you mean 'text'?" in err) == (2, True)
    assert run("vectors", "map", path, "-o", str(there))[0] == 73
    assert there.read_text() == "mine"
    assert not (tmp_path / "map.html").exists()


def test_a_picture_is_a_picture(tmp_path: Path) -> None:
    """A .png is a PNG, coloured by words or by numbers, and texts are not taken for formulas."""
    made = rows(30)
    made.ids[0] = made.texts[0] = "$\\frac{"
    path = put(tmp_path / "out.parquet", made)
    for column in ("id", "chunk_index", "embedding_tokens"):
        output = tmp_path / f"{column}.png"
        code, _, err = run("vectors", "map", str(path), "-o", str(output), "-c", column)

        assert (code, err) == (0, f"30 points in {output}\n")
        assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_asks_nobody(tmp_path: Path) -> None:
    """No script, style, font or picture is loaded from elsewhere, and the page's own policy forbids it."""
    output = tmp_path / "map.html"
    run("vectors", "map", str(put(tmp_path / "out.parquet", rows(9))), "-o", str(output))
    page = output.read_text()

    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page.split("<body>")[1]) == []
    assert "default-src 'none'" in page
    assert page.count("<script>") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here: apt-get install chromium")
def test_the_page_renders_in_a_browser(tmp_path: Path) -> None:
    """In a browser every row is a point, the legend has the words, nothing is complained about, no text is run."""
    made = rows(40)
    made.ids[3] = made.texts[3] = HOSTILE
    output = tmp_path / "map.html"
    assert run("vectors", "map", str(put(tmp_path / "out.parquet", made)), "-o", str(output), "-c", "id")[0] == 0
    drawn = output.read_text().split("<body>")[1]
    assert drawn.count("&lt;script") == 3  # name, hover text of id and of text
    assert "\\u003cscript" not in drawn
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", output.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert len(re.findall(r'<path class="point', done.stdout)) == 40
    assert "30 others" in done.stdout
    assert "<title>out.parquet: 40 of 40 vectors of test/model</title>" in done.stdout
    shown = re.sub(r"<script.*?</script>", "", done.stdout.split("<body>")[1], flags=re.DOTALL)
    assert "&lt;img src=x onerror" in shown
    assert "<img" not in shown
