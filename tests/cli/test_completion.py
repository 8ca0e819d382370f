"""Tab: the shell asks by environment, in a process of its own, and gets names without network, ledger or a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedctl.cli import _completion
from embedctl.errors import WrongUsage
from embedctl.ledger import periods
from embedctl.records import utc_now
from embedctl.reports import query
from tests.support.running import embedctl, user_settings

EMBEDCTL = Path(sys.executable).with_name("embedctl")

SETTINGS = """\
[providers.corp]
protocol = "openai"
base_url = "http://127.0.0.1:9/v1"
models = { "bge-m3" = "wire-name" }

[workspaces.acme]
[workspaces."$(touch hacked)"]
"""


def asked(*words: str, shell: str = "bash", **more: str) -> list[str]:
    """What the shell is told for the last of `words`; words are split as bash does it."""
    environment = os.environ | more | {"_EMBEDCTL_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": "\n".join(["embedctl", *words]), "COMP_CWORD": str(len(words))}
    else:
        environment["_TYPER_COMPLETE_ARGS"] = " ".join(["embedctl", *words])
    done = subprocess.run([EMBEDCTL], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and settings with a provider, a model and workspaces."""
    monkeypatch.chdir(tmp_path)
    user_settings(SETTINGS)
    return tmp_path


def test_models() -> None:
    """-m offers PROVIDER:NAME of the catalog and the settings, and bare names where those fit."""
    assert "openai:" in " ".join(asked("embed", "x", "-m", ""))
    assert asked("embed", "x", "-m", "corp") == ["corp:bge-m3"]
    assert asked("batch", "run", "x", "--model", "onnx") == ["onnx:all-MiniLM-L6-v2"]
    assert "text-embedding-3-small" in asked("models", "show", "text-emb")


@pytest.mark.parametrize("words", [("-m", "corp", ":"), ("-m", "corp", ":", "bge"), ("--model", "=", "corp", ":", "b")])
def test_bash_splits_at_colons(words: tuple[str, ...]) -> None:
    """Bash hands a name over in pieces, and gets what belongs behind its last colon."""
    assert asked("embed", "x", *words) == ["bge-m3"]


def test_providers() -> None:
    """Built-in and configured providers, for --provider and for `providers test`."""
    assert asked("embed", "x", "--provider", "co") == ["cohere", "corp"]
    assert asked("providers", "test", "cor") == ["corp"]


def test_workspaces_and_jobs() -> None:
    """Workspaces of the settings and of runs, jobs of runs; what a shell would run is not offered."""
    Path("one.txt").write_text("one")
    assert embedctl("batch", "run", "one.txt", "-o", "out", "--job", "nightly", "-w", "zeta").code == 0

    assert sorted(asked("embed", "x", "-w", "")) == ["acme", "default", "zeta"]
    assert asked("usage", "report", "--workspace", "z") == ["zeta"]
    assert asked("batch", "status", "n") == ["nightly"]
    assert asked("usage", "report", "--job", "") == ["nightly"]
    assert len(asked("batch", "failures", "0")) == 1


def test_groupings_and_times() -> None:
    """--by knows the keys of reports, also behind a comma; --last knows its words."""
    assert asked("usage", "report", "--by", "wo") == ["workspace"]
    assert asked("usage", "report", "--by", "day,mo") == ["day,month", "day,model"]
    assert asked("usage", "daily", "--last", "m") == ["mtd", "month"]


def test_lists_of_words_are_the_real_ones() -> None:
    """What is offered for --by are the keys of reports, and each word of --last is one."""
    assert (*query.KEYS, "tag:") == _completion.BY
    for word in _completion.LAST:
        assert periods.chosen(None, None, word, periods.zone("UTC"), utc_now()).since is not None
    with pytest.raises(WrongUsage):
        periods.chosen(None, None, "neverending", periods.zone("UTC"), utc_now())


def test_commands_and_flags() -> None:
    """Commands, flags and fixed values; a word that is none ends in no traceback."""
    assert asked("models", "") == ["list", "show", "choose", "compare", "pull", "warmup"]
    assert "--dry-run" in asked("embed", "x", "--dry")
    assert asked("embed", "x", "--purpose", "") == ["ingest", "query", "test"]
    assert asked("nonsense", "") != []
    assert "run" in asked("batch", "")


def test_a_broken_settings_file_is_not_told_now() -> None:
    """Tab offers what is known without settings that cannot be read, and says nothing."""
    user_settings("[broken")

    assert asked("embed", "x", "--provider", "open") == ["openai"]
    assert asked("batch", "status", "") == []


def test_fish_gets_whole_names() -> None:
    """A shell that splits no word at its colons gets the whole name."""
    assert asked("embed", "x", "-m", "corp", shell="fish", _TYPER_COMPLETE_FISH_ACTION="get-args") == ["corp:bge-m3"]


def test_tab_brings_no_heavy_library() -> None:
    """Completing a model, a job and a grouping imports nothing that computes, sends or stores."""
    heavy = "{'duckdb', 'pyarrow', 'numpy', 'httpx', 'pycurl', 'onnxruntime', 'rich', 'pydantic', 'tokenizers'}"
    code = (
        "import sys; from embedctl.cli import _completion as c; c.models('o'); c.workspaces(''); c.jobs(''); c.by('d');"
        f"print(sorted({heavy} & {{name.partition('.')[0] for name in sys.modules}}))"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself() -> None:
    """The script that embedctl prints makes bash complete a model behind its colon."""
    script = subprocess.check_output([EMBEDCTL], env=os.environ | {"_EMBEDCTL_COMPLETE": "source_bash"}, text=True)
    ask = "COMP_WORDS=(embedctl embed x -m corp : bg); COMP_CWORD=6; _embedctl_completion embedctl; echo $COMPREPLY"
    path = f"{EMBEDCTL.parent}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{ask}"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("bge-m3\n", "")
