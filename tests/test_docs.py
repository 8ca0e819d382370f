"""README and CHANGELOG say what is true: their examples run, their tables equal the code."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from embedctl import errors, settings
from embedctl.cli import _progress
from embedctl.errors import EmbedctlError
from embedctl.outputs import parquet
from embedctl.providers.catalog import ModelEntry, ProviderEntry
from embedctl.settings import ServeSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


_PROGRESS = re.compile(rf"({'|'.join(_progress.DOING.values())})( |$)")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def _rows(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _classes(root: type[EmbedctlError]) -> set[type[EmbedctlError]]:
    return {root}.union(*(_classes(child) for child in root.__subclasses__()))


def _masked(text: str) -> str:
    """Output without what differs from run to run: seconds, the width of columns, and how far a slow machine is."""
    text = re.sub(r"in \d+\.\d s", "in N s", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if not set(line) <= {"-"})
    return "\n".join(line for line in lines if not _PROGRESS.match(line))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    return tmp_path


def test_every_console_example_prints_what_it_shows(folder: Path) -> None:
    """A command in a console block of README succeeds and prints the lines below it, but for times."""
    first = re.search(r"<!-- main -->\n```sh\n.*&& \S*(embedctl .*)$", README, re.M)
    commands = [part for block in _blocks("console") for part in re.split(r"^\$ ", block, flags=re.M)[1:]]
    commands = [first[1] if first else "", *commands]
    for command in commands:
        line, _, shown = command.partition("\n")
        words = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
        )

        assert done.returncode == 0, done.stderr
        if shown.strip():
            assert _masked(done.stderr + done.stdout) == _masked(shown), line


def test_toml_examples_are_settings_that_load(tmp_path: Path) -> None:
    """Every TOML block of README is a valid settings file, or a job's."""
    for block in _blocks("toml"):
        path = tmp_path / "config.toml"
        path.write_text(block, "utf-8")
        if block.startswith("input"):
            assert settings.read_job(path)["input"]
            continue
        loaded = settings.load(config=path, folder=tmp_path)

        assert loaded.providers or loaded.chains or loaded.stores.by_root or loaded.serve != ServeSettings()


def test_no_example_takes_the_name_of_another() -> None:
    """README's commands, copied word by word, do not meet: an output is of one input, model and job, a job of one."""
    code = "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```$", README, re.M | re.S)).replace("\\\n", " ")
    outputs: dict[str, set[tuple[str, ...]]] = {}
    jobs: dict[str, set[str]] = {}
    for call in re.findall(r"embedctl ((?:embed|batch run) .* -o .*)", code):
        words = shlex.split(call, comments=True)
        flags = {name: words[words.index(name) + 1] for name in ("-o", "-m", "--job") if name in words}
        given = next((word for word in words[1 + (words[0] == "batch") :] if not word.startswith("-")), "")
        outputs.setdefault(flags["-o"], set()).add((given, flags.get("-m", ""), flags.get("--job", "")))
        if "--job" in flags:
            jobs.setdefault(flags["--job"], set()).add(flags["-o"])

    assert len(outputs) > 8
    assert len(jobs) > 1
    assert [name for name, used in (outputs | jobs).items() if len(used) > 1] == []


CRON = [line for block in _blocks("sh") for line in block.splitlines() if re.match(r"\d+ \d+ \* \* \*  ", line)]


@pytest.mark.parametrize("line", CRON)
def test_cron_lines_name_the_full_path_and_report_failures(line: str, folder: Path) -> None:
    """Each crontab line of README names embedctl by its full path, is right, and a failure leaves a word."""
    call, _, report = line.split("  ", 1)[1].partition(" || ")
    path, *words = shlex.split(call.replace("/data/", f"{folder}/"))
    shutil.copy(folder / "sample_data" / "tickets.parquet", folder)
    (folder / "usage.csv").write_text("the night before")
    run = [sys.executable, "-m", "embedctl", *words]

    well = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
    (folder / "tickets.parquet").unlink()
    failed = subprocess.run([*run, "--no-such-flag"], cwd=folder, capture_output=True, text=True, check=False)

    assert Path(path).is_absolute()
    assert report.startswith("logger -p user.err") or "MAILTO=" in README
    assert (well.returncode, well.stdout) in ((0, ""), (3, "")), well.stderr  # one of the sample's rows is too long
    assert failed.returncode == 2
    assert len([said for said in failed.stderr.splitlines() if said.startswith("error: ")]) == 1


def test_the_exit_code_table_is_that_of_the_error_tree() -> None:
    """README lists every exit code that an error class has, and no other."""
    listed = {int(row[0]) for row in _rows("Exit codes")}
    raised = {found.exit_code for found in _classes(EmbedctlError)}

    assert listed == raised | {0}
    assert set(errors.SEVERITY) <= listed


def test_the_column_table_is_that_of_the_output() -> None:
    """README lists the columns that embedctl writes, in their order."""
    listed = [name for row in _rows("What it looks like") for name in re.findall(r"`(\w+)`", row[0])]

    assert listed == list(parquet.OWN_COLUMNS)


def test_files_named_in_readme_exist() -> None:
    """A module that README names is there."""
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|toml|md))`", README):
        found = list(ROOT.glob(f"embedctl/{name}")) + list(ROOT.glob(name))

        assert found or name in ("embedctl.toml",), name


def test_a_place_of_a_known_dialect_is_two_blocks() -> None:
    """What README says a place in the catalog needs are keys of its tables."""
    (block,) = _blocks("text")
    said = tomllib.loads(block)

    assert set(said["acme"]) <= {entry.name for entry in fields(ProviderEntry)}
    assert set(said["model"][0]) - {"weights"} <= {entry.name for entry in fields(ModelEntry)}


def test_the_rooms_are_all_in_the_table() -> None:
    """README's table of rooms names every folder of the package, and the two files that a person meets."""
    top = {path.name for path in (ROOT / "embedctl").iterdir() if (path / "__init__.py").is_file()}
    listed = set(re.findall(r"`embedctl/(\w+)/`", README))

    assert top <= listed
    assert all(f"`embedctl/{name}.py`" in README for name in ("terminal", "doctor"))


def test_the_package_version_is_in_the_changelog_or_unreleased() -> None:
    """CHANGELOG follows Keep a Changelog and has a place for what is not released yet."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")

    assert "## [Unreleased]" in text
    assert "keepachangelog.com" in text


def test_package_metadata_names_its_licence_and_ships_it() -> None:
    """The wheel carries the licence, the notice of bundled parts, and the parts themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert project["license"] == "Apache-2.0"
    for name in (*project["license-files"], "embedctl/assets/PROVENANCE.md", "embedctl/assets/minilm/model.onnx"):
        assert (ROOT / name).is_file(), name
