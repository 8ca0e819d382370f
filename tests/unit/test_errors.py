"""The error tree: what is drawn is what there is, and every exit code has its place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl import errors
from embedctl.errors import EmbedctlError, ProviderError, Remedy

SOURCE = Path(errors.__file__).parent
CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EmbedctlError)]

CODES = {
    0: "done",
    2: "wrong flags or arguments",
    3: "some rows failed",
    4: "budget reached",
    5: "budget warning",
    65: "input bad",
    66: "input not there",
    69: "no provider usable",
    70: "a bug",
    73: "output refused",
    74: "I/O error",
    75: "temporary",
    76: "provider breaks its contract",
    77: "key rejected, not allowed",
    78: "configuration",
    130: "SIGINT",
    143: "SIGTERM",
}
"""The table of design.md 3."""


def drawn() -> Iterator[tuple[str, str | None, int]]:
    """(class, parent, exit code) of each line of the tree in the module's docstring."""
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([│├└─ ]*)(\w+) +(\d+)(?:  .*)?$", line)
        if found:
            depth = len(found[1]) // 4
            above = [*above[:depth], found[2]]
            yield found[2], above[depth - 1] if depth else None, int(found[3])


def test_the_drawn_tree_is_the_classes() -> None:
    """Each class stands in the drawing once, below its base, with its exit code; and nothing else does."""
    parents = {kind.__name__: None if kind is EmbedctlError else kind.__bases__[0].__name__ for kind in CLASSES}
    expected = sorted((kind.__name__, parents[kind.__name__] or "", kind.exit_code) for kind in CLASSES)

    assert sorted((name, parent or "", code) for name, parent, code in drawn()) == expected


def test_every_exit_code_has_a_class_or_a_place() -> None:
    """Each code of the contract is some class's, but for 0; and no class has a code outside the contract."""
    used = {kind.exit_code for kind in CLASSES}

    assert used | {0} == set(CODES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_has_a_word_and_a_sentence(kind: type[EmbedctlError]) -> None:
    """The word that --json prints is lower-case and fixed; the docstring says what happened."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.word)
    assert (kind.__doc__ or "").strip().endswith(".")
    assert not (kind.__doc__ or "").strip()[0].islower()


def test_words_are_unique_where_a_program_must_tell_errors_apart() -> None:
    """No two classes have the same word of their own; one without has its parent's, and is told apart in here only."""
    words = [kind.word for kind in CLASSES if "word" in vars(kind)]

    assert sorted(words) == sorted(set(words))


def test_the_worst_of_several_codes_wins() -> None:
    """70 > 74 > 78 > 77 > 76 > 69 > 75 > 4 > 3, and 0 when nothing happened."""
    order = [70, 74, 78, 77, 76, 69, 75, 4, 3]
    for place, code in enumerate(order):
        assert errors.worst(order[place:][::-1]) == code

    assert errors.worst([]) == 0


@given(st.lists(st.sampled_from([*CODES]), min_size=1))
def test_the_worst_code_is_one_of_them(codes: list[int]) -> None:
    """No code is made up, the order of happening does not matter, and 0 never hides another."""
    found = errors.worst(codes)

    assert found in codes
    assert errors.worst(codes[::-1]) == found
    assert found != 0 or set(codes) == {0}


def test_what_may_be_run_again_is_said_by_the_code() -> None:
    """Temporary trouble and signals are retryable; nothing else is."""
    again = {kind.exit_code for kind in CLASSES if kind("x").retryable}

    assert again == {75, 130, 143}


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if issubclass(kind, ProviderError)], ids=lambda k: k.__name__
)
def test_a_provider_error_decides_what_happens_next(kind: type[ProviderError]) -> None:
    """Each has a remedy and says who pays; what was lost on the way is never held for free."""
    assert isinstance(kind.remedy, Remedy)
    assert kind.billable in ("yes", "no", "unknown")
    assert kind.exit_code != 75 or kind.remedy in (Remedy.RETRY, Remedy.WAIT, Remedy.GIVE_UP)
    if kind.ill:
        assert kind.remedy is Remedy.RETRY


def test_client_mistakes_and_429_are_no_illness() -> None:
    """Only what a provider does wrong opens its circuit."""
    ill = {kind.__name__ for kind in CLASSES if issubclass(kind, ProviderError) and kind.ill}

    assert ill == {"NotSent", "ServerFailed", "AnswerLost", "AnswerUnusable", "AnswerUnshaped"}


def test_every_deliberate_exit_goes_through_the_tree() -> None:
    """No module calls sys.exit or raises SystemExit: codes come from classes, caught once in cli.

    Four processes end themselves: the one that reads a query, the short programs of jobs and workers, of which their
    parents make errors of our tree, and a server that is told to stop a second time. Ray's own exit is made an error.
    """
    calls = re.compile(r"\bsys\.exit\(|\bSystemExit\b|\bos\._exit\(|\bquit\(")
    programs = (
        "inputs/query.py",
        "server/service.py",
        "server/jobs/__main__.py",
        "engines/process_worker.py",
        "engines/ray_cluster.py",
    )
    themselves = {SOURCE / name for name in programs}
    found = [
        f"{path.relative_to(SOURCE)}:{number}"
        for path in sorted({*SOURCE.rglob("*.py")} - themselves)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if calls.search(line)
    ]

    assert found == []


def test_an_error_is_its_message() -> None:
    """str() of an error is what happened; hint and details stand beside it."""
    error = errors.InputInvalid("bad", hint="do this", details=[{"id": 1}])

    assert (str(error), error.message, error.hint, error.details) == ("bad", "bad", "do this", ({"id": 1},))
