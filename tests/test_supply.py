"""What embedctl is installed from: CI's lists agree with pyproject.toml, and every file in them has its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from embedctl.errors import ExtraMissing, install_command

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
LISTS = ("requirements.txt", "requirements-lowest.txt")
_ENTRY = re.compile(r"^([\w.-]+)==([^\s;]+)((?: ;[^\n]*?)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def listed(name: str) -> dict[str, list[Version]]:
    """Versions by name; the same name may stand there for several Pythons."""
    text = (ROOT / ".ci" / name).read_text("utf-8")
    found: dict[str, list[Version]] = {}
    for entry in _ENTRY.finditer(text):
        found.setdefault(canonicalize_name(entry[1]), []).append(Version(entry[2]))
    assert _ENTRY.sub("", text).strip() == ""
    return found


def direct(*extra: str) -> list[Requirement]:
    lines = [*PROJECT["project"]["dependencies"], *(line for name in extra for line in EXTRAS[name])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", LISTS)
def test_every_file_has_its_hash_and_no_place(name: str) -> None:
    """CI's lists hold exact versions with hashes, and say nothing of where they come from."""
    assert len(listed(name)) > 50
    assert "://" not in (ROOT / ".ci" / name).read_text("utf-8")


def test_what_ci_installs_is_what_the_project_asks_for() -> None:
    """Each dependency, of every extra and of the build, is in the list with a version that pyproject.toml takes."""
    versions = listed("requirements.txt")
    build = [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    wrong = [
        f"{one.name} {version}"
        for one in (*direct(*EXTRAS), *build)
        for version in versions.get(canonicalize_name(one.name), [Version("0")])
        if version not in one.specifier
    ]

    assert wrong == [], "run .ci/lock"


def test_lower_bounds_are_those_that_are_tested() -> None:
    """The second list holds each library at the very bound that pyproject.toml names."""
    versions = listed("requirements-lowest.txt")
    for one in direct("hub", "charts", "otel", "redis", "store"):
        (bound,) = [Version(part.version) for part in one.specifier if part.operator in (">=", "==")]

        assert versions[canonicalize_name(one.name)] == [bound], f"{one.name}: run .ci/lock"


def test_hints_name_what_installs() -> None:
    """The command for an extra names the libraries with their bounds, not whatever has embedctl's name elsewhere."""
    for extra in ("hub", "charts", "otel", "redis", "store"):
        command = str(ExtraMissing("missing", extra=extra).hint)
        names = {canonicalize_name(Requirement(word.strip("'")).name) for word in command.split()[2:]}

        assert command.startswith("pip install ")
        assert names == {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        assert "embedctl" not in command
    assert install_command("no such extra") == "install embedctl with [no such extra], as it was installed"


def test_no_text_tells_to_install_the_name() -> None:
    """No message, page or document says `pip install embedctl…`."""
    wrong = re.compile(r"pip install\s+['\"]?embedctl\b")
    texts = [*(ROOT / "embedctl").rglob("*.py"), ROOT / "README.md"]

    assert [path.name for path in texts if wrong.search(path.read_text("utf-8"))] == []
