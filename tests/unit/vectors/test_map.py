"""The map: the right directions in one pass, and a page that renders alone, whatever the texts hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedctl.cli import app
from embedctl.errors import InputInvalid
from embedctl.vectors import files, picture
from tests.support.browser import CHROMIUM, MISSING, look
from tests.support.vector_files import Rows, folder, put, rows

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> & \u202e$x$"


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


def page_of(output: Path) -> Any:
    """What a map holds for its script."""
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', output.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_asks_nobody(tmp_path: Path) -> None:
    """No script, style, font or picture is loaded from elsewhere, and only the page's own scripts may run."""
    output = tmp_path / "map.html"
    run("vectors", "map", str(put(tmp_path / "out.parquet", rows(9))), "-o", str(output))
    page = output.read_text()

    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page.split("<body>")[1]) == []
    assert "content=\"default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert "unsafe" not in page.split("<style>")[0]
    assert page.count("<script>") == 2


def test_points_stand_where_they_are(tmp_path: Path) -> None:
    """What the page holds is each point's place to a 65535th of the map, its id and text, in groups of one colour."""
    path = put(tmp_path / "out.parquet", made := stretched(30))
    stored = files.open_stored(path)
    axes = picture.principal(stored)
    drawn = picture.points(stored, axes, colour=None, most=30)
    output = tmp_path / "map.html"
    output.write_text(picture.as_page(drawn, axes, title="x", colour=None))
    page = page_of(output)
    low, high = np.array(page["ranges"]).T
    places = np.array([page["x"], page["y"]]).T / 65535 * (high - low) + low

    assert places == pytest.approx(drawn.places, abs=float((high - low).max()) / 65535)
    assert page["ids"] == made.ids
    assert page["texts"] == made.texts
    assert page["groups"] == [{"name": "rows", "first": 0, "count": 30, "rest": False}]


@pytest.mark.parametrize("letter", ["x", "<", "ß", "\u202e"])
def test_many_points_with_long_texts_are_a_light_page(tmp_path: Path, letter: str) -> None:
    """20,000 points whose ids and texts are long, in any script, weigh 1.5 MB at most; what was cut is said."""
    count = 20_000
    chance = np.random.default_rng(3)
    drawn = picture.Points(
        chance.standard_normal((count, 2)).astype(np.float32),
        [f"{number}{letter * 200}" for number in range(count)],
        list(range(count)),
        [f"{letter * 300} {number}" for number in range(count)],
        chance.standard_normal(count).tolist(),
    )
    axes = picture.Axes(np.zeros(3), np.eye(3)[:2], (0.5, 0.3))
    output = tmp_path / "map.html"
    output.write_text(picture.as_page(drawn, axes, title="many", colour="score"), "utf-8")

    assert output.stat().st_size <= 1_500_000
    assert len(page_of(output)["ids"]) == count
    assert any("so that the page weighs little" in note for note in page_of(output)["notes"])


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_renders_in_a_browser(tmp_path: Path) -> None:
    """Under its own policy the map is drawn, the legend has the words, nothing is complained about, no text is run."""
    made = rows(40)
    made.ids[3] = made.texts[3] = HOSTILE
    output = tmp_path / "map.html"
    assert run("vectors", "map", str(put(tmp_path / "out.parquet", made)), "-o", str(output), "-c", "id")[0] == 0
    assert output.stat().st_mode & 0o777 == 0o600  # it shows texts
    seen = look(output, tmp_path)

    assert seen.console == []
    assert seen.dom.count("<canvas") == 1
    assert "30 others (30)" in seen.dom
    assert "<title>out.parquet: 40 of 40 vectors of test/model</title>" in seen.dom
    shown = re.sub(r"<script.*?</script>", "", seen.dom.split("<body>")[1], flags=re.DOTALL)
    assert "&lt;img src=x onerror" in shown
    assert "<img" not in shown


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
@pytest.mark.parametrize("width", [500, 1200])
def test_points_are_drawn_read_and_found(tmp_path: Path, width: int) -> None:
    """Points have their colour, keys go from one to the next, a search counts and lists its matches, on any screen."""
    output = tmp_path / "map.html"
    assert run("vectors", "map", str(put(tmp_path / "out.parquet", stretched(300))), "-o", str(output))[0] == 0
    probe = """
      const canvas = document.querySelector('canvas');
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      let lit = 0;
      for (let at = 0; at < pixels.length; at += 4) lit += pixels[at + 2] > pixels[at] + 60;
      const plot = document.querySelector('.plot'), keys = [];
      for (const key of ['Home', 'ArrowRight', 'End']) {
        plot.dispatchEvent(new KeyboardEvent('keydown', {key}));
        keys.push(plot.querySelector('.live').textContent);
      }
      const search = document.querySelector('input[type=search]');
      search.value = 'NUMBER 29';
      search.dispatchEvent(new Event('input'));
      document.querySelector('.head button').click();
      const rows = document.querySelectorAll('tbody tr').length;
      const found = search.closest('.filters').lastChild.textContent;
      return {lit, keys, rows, found, fits: innerWidth >= document.documentElement.scrollWidth};
    """
    told = look(output, tmp_path, probe=probe, width=width).told

    assert told["lit"] > 2000
    assert [line.split(",")[0] for line in told["keys"]] == ["row-0", "row-1", "row-299"]
    assert (told["rows"], told["found"], told["fits"]) == (11, "11 of 300", True)
