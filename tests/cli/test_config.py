"""`embedctl config`, --help and --version: what is set, where it comes from, and what can be asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from embedctl import __version__, settings
from embedctl.cli import COMMANDS, app
from embedctl.cli.config import JOB_TEMPLATE, TEMPLATE
from embedctl.settings.options import Options
from tests.support import places
from tests.support.running import Ran, embedctl

GOLDEN = places.GOLDEN


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a terminal 100 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    return tmp_path


@pytest.mark.parametrize(("words", "name"), [(["--help"], "help.txt"), (["embed", "--help"], "help_embed.txt")])
def test_help_is_as_it_was_agreed(words: list[str], name: str) -> None:
    """The whole text of --help is the golden file's."""
    assert embedctl(*words) == Ran(0, (GOLDEN / name).read_text("utf-8"), "")


def commands() -> Iterator[tuple[str, Any]]:
    """(path, command) of every command that exists."""
    root = typer.main.get_command(app)
    context = root.make_context("embedctl", ["--version"], resilient_parsing=True)

    def below(path: str, group: Any) -> Iterator[tuple[str, Any]]:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield f"{path} {name}", command
            if hasattr(command, "list_commands"):
                yield from below(f"{path} {name}", command)

    yield from below("embedctl", root)


def test_every_command_and_every_flag_has_a_sentence() -> None:
    """Each command says what it does and shows an example; each flag says what it is."""
    context = typer.main.get_command(app).make_context("embedctl", ["--version"], resilient_parsing=True)
    silent = []
    for path, command in commands():
        if not re.match(r"[A-Z`].*[.:]", command.help or ""):
            silent.append(path)
        if not (command.epilog or "").startswith("Example: "):
            silent.append(f"{path} (example)")
        for param in command.get_params(context):
            if not (getattr(param, "help", "") or "").strip():
                silent.append(f"{path} {param.name}")

    assert silent == []


def test_help_lists_every_group_of_commands() -> None:
    """--help shows each command of the table under its heading."""
    out = embedctl("--help").out
    for title, group in COMMANDS.items():
        section = out.split(f"{title}:\n", 1)[1]
        for name, sentence in group.items():
            assert re.search(rf"^  {name} +{re.escape(sentence[:40])}", section, re.M)


def test_the_version_is_the_package_s() -> None:
    """--version prints one line."""
    assert embedctl("--version") == Ran(0, f"embedctl {__version__}\n", "")


def test_a_bare_command_shows_its_help() -> None:
    """A group without a command shows what there is."""
    assert "Commands:" in embedctl("config").out + embedctl("config").err
    assert "usage" in embedctl().out + embedctl().err


def test_init_writes_a_file_that_changes_nothing() -> None:
    """`config init` writes a commented file where the user's settings are; loading it gives the defaults."""
    before = settings.load()
    done = embedctl("config", "init")
    path = embedctl("config", "path").out.strip()

    assert (done.code, done.err) == (0, f"wrote {path}\n")
    assert Path(path).read_text("utf-8") == TEMPLATE
    assert settings.load().options == before.options
    assert settings.load().files == (Path(path),)


def test_every_line_of_the_template_is_valid_when_uncommented(here: Path) -> None:
    """Without its comment signs the template is a settings file that loads."""
    code = re.findall(r"^# (\[[a-z.]+\]|[a-z_]+ = .*)$", TEMPLATE, re.M)
    path = here / "all.toml"
    path.write_text("\n".join(code))
    found = settings.load(config=path)

    assert found.options.model == "openai:text-embedding-3-small"
    assert found.providers["eu"].api_key_env == "AZURE_EU_KEY"
    assert found.workspaces["acme"].budget is not None


def test_every_line_of_a_job_is_valid_when_uncommented() -> None:
    """`config init --job` writes a JOB.toml that runs as it is, and each of its options is one."""
    done = embedctl("config", "init", "--job")
    assert (done.code, done.err) == (0, "wrote JOB.toml\n")
    path = Path("JOB.toml")
    assert settings.read_job(path) == {"input": ["tickets/*.parquet"], "output": "tickets-vectors"}
    path.write_text(re.sub(r"^# (?=[a-z_]+ = )", "", JOB_TEMPLATE, flags=re.M))
    job = settings.read_job(path)

    assert len(job) == 17
    options = {key: value for key, value in job.items() if key not in ("input", "output", "job")}
    assert settings.load(job=options).options.workspace_column == "tenant"


def test_init_does_not_replace_a_file() -> None:
    """A settings file that exists is kept (73) unless --overwrite (or --force) says so."""
    path = Path("mine.toml")
    path.write_text("workspace = 'kb'")
    refused = embedctl("config", "init", "--config", path)

    assert refused == Ran(73, "", "error: mine.toml exists\nhint: name another, or --overwrite replaces it\n")
    assert path.read_text() == "workspace = 'kb'"
    assert embedctl("config", "init", "--config", path, "--force").code == 0
    assert embedctl("config", "init", "--config", path, "--overwrite").code == 0
    assert path.read_text() == TEMPLATE


def test_init_where_no_file_can_be(here: Path) -> None:
    """A place below a file is refused with one line."""
    Path("file").write_text("")
    done = embedctl("config", "init", "--config", "file/config.toml")

    assert done.code == 73
    assert done.err.startswith("error: file is not a folder")


def test_show_tells_every_option_with_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option stands there with its value and the layer it comes from."""
    Path("embedctl.toml").write_text('concurrency = 4\nmax_cost = "0.50"\ntag = { team = "search" }')
    monkeypatch.setenv("EMBEDCTL_WORKSPACE", "acme")
    done = embedctl("config", "show", "--json")
    options = done.json["options"]
    project = str(Path("embedctl.toml").absolute())

    assert list(options) == [entry.name for entry in fields(Options)]
    assert options["concurrency"] == {"value": 4, "from": project}
    assert options["workspace"] == {"value": "acme", "from": "EMBEDCTL_WORKSPACE"}
    assert options["max_cost"] == {"value": "0.50", "from": project}
    assert options["retries"] == {"value": 6, "from": "default"}
    assert done.json["paths"]["home"] == os.environ["EMBEDCTL_HOME"]
    assert done.json["files"] == [project]


def test_show_is_a_table_for_people() -> None:
    """Without --json: one line an option, then where things are."""
    lines = embedctl("config", "show").out.splitlines()

    assert re.fullmatch(r"Option +Value +From", lines[0])
    assert any(re.fullmatch(r"workspace +default +default", line) for line in lines)
    assert lines[-1] == "files: none (`embedctl config init` writes one)"


@pytest.mark.parametrize("form", ["csv", "md", "json", "table"])
def test_show_has_every_format(form: str) -> None:
    """--format takes all four."""
    done = embedctl("config", "show", "--format", form)

    assert done.code == 0
    assert "chunk_overlap" in done.out


def test_path_follows_the_flag_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, else EMBEDCTL_CONFIG, else EMBEDCTL_HOME, else the platform's place, whether the file exists or not."""
    within = embedctl("config", "path")
    with monkeypatch.context() as patch:
        patch.delenv("EMBEDCTL_HOME")
        usual = embedctl("config", "path")
    monkeypatch.setenv("EMBEDCTL_CONFIG", "/by/variable.toml")

    assert within == Ran(0, f"{os.environ['EMBEDCTL_HOME']}/config.toml\n", "")
    assert usual == Ran(0, f"{os.environ['XDG_CONFIG_HOME']}/embedctl/config.toml\n", "")
    assert embedctl("config", "path").out == "/by/variable.toml\n"
    assert embedctl("config", "path", "--config", "/by/flag.toml").out == "/by/flag.toml\n"


def test_settings_in_the_old_place_are_read_with_a_word() -> None:
    """With EMBEDCTL_HOME, settings that are only in the platform's place count, and a word says where to."""
    old = Path(os.environ["XDG_CONFIG_HOME"]) / "embedctl" / "config.toml"
    new = Path(os.environ["EMBEDCTL_HOME"]) / "config.toml"
    old.parent.mkdir(parents=True)
    old.write_text('workspace = "old"\n')
    Path("one.txt").write_text("one")
    word = f"EMBEDCTL_HOME is set, but the settings are in {old}: move them to {new}"

    shown = embedctl("config", "show", "--json").json
    run = embedctl("embed", "one.txt", "--json")
    (check,) = [one for one in embedctl("doctor", "--json").json["checks"] if one["check"] == "settings"]

    assert (shown["options"]["workspace"]["value"], shown["warnings"]) == ("old", [word])
    assert embedctl("config", "path") == Ran(0, f"{old}\n", f"warning: {word}\n")
    assert (run.json["workspace"], f"warning: {word}\n" in run.err) == ("old", True)
    assert embedctl("embed", "one.txt", "-q") == Ran(0, "", "")
    assert (check["state"], check["hint"]) == ("note", word)
    assert embedctl("config", "init").code == 73

    old.rename(new)

    assert embedctl("config", "path") == Ran(0, f"{new}\n", "")
    assert embedctl("config", "show", "--json").json["options"]["workspace"]["value"] == "old"


def test_settings_beside_the_state_are_stronger_than_the_old_ones() -> None:
    """Where both files are there, that in EMBEDCTL_HOME counts alone, without a word of the other."""
    old = Path(os.environ["XDG_CONFIG_HOME"]) / "embedctl" / "config.toml"
    new = Path(os.environ["EMBEDCTL_HOME"]) / "config.toml"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_text(f'workspace = "{"new" if path == new else "old"}"\n')

    shown = embedctl("config", "show", "--json").json

    assert (shown["options"]["workspace"]["value"], shown["warnings"], shown["files"]) == ("new", [], [str(new)])
