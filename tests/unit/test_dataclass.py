"""Our `dataclass`: the standard library's in all that a class of ours can see of it, and cheaper to make."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl.dataclass import dataclass

FIELDS = {
    "bare": lambda **more: dataclasses.field(**more),
    "default": lambda **more: dataclasses.field(default=7, **more),
    "factory": lambda **more: dataclasses.field(default_factory=list, **more),
    "unset": lambda **more: dataclasses.field(init=False, **more),
    "fixed": lambda **more: dataclasses.field(default=8, init=False, **more),
    "made": lambda **more: dataclasses.field(default_factory=dict, init=False, **more),
}

kinds = st.tuples(
    st.sampled_from(sorted(FIELDS)),
    st.fixed_dictionaries({"compare": st.booleans(), "repr": st.booleans(), "kw_only": st.booleans()}),
)
options = st.fixed_dictionaries({name: st.booleans() for name in ("frozen", "slots", "kw_only", "eq")})
arguments = st.tuples(
    st.lists(st.integers(0, 1), max_size=3), st.dictionaries(st.sampled_from("abc"), st.integers(0, 1), max_size=3)
)


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns, or what kind of error it raises, and with which words."""
    try:
        return call()
    except (TypeError, AttributeError) as error:
        return type(error), str(error)


def seen(made: Any) -> Any:
    """All that an object shows of itself."""
    if isinstance(made, tuple):
        return made
    names = [field.name for field in dataclasses.fields(made)]
    return (
        {name: outcome(lambda name=name: getattr(made, name)) for name in names},
        outcome(lambda: repr(made)),
        outcome(lambda: hash(made) if type(made).__eq__ is not object.__eq__ else None),
        outcome(lambda: dataclasses.asdict(made)),
        type(made).__match_args__,
        hasattr(made, "__dict__"),
        [outcome(lambda name=name: setattr(made, name, 3)) for name in names],
        [outcome(lambda name=name: getattr(made, name, None)) for name in names],
        [outcome(lambda name=name: delattr(made, name)) for name in names],
    )


@given(st.lists(kinds, max_size=3), options, arguments, arguments)
def test_it_is_the_standard_library_s(
    chosen: list[tuple[str, dict[str, bool]]],
    options: dict[str, bool],
    one: tuple[list[int], dict[str, int]],
    other: tuple[list[int], dict[str, int]],
) -> None:
    """Whatever its fields are, a class takes the same arguments, and its objects look and compare alike."""

    def made(decorator: Any) -> Any:
        names = dict(zip("abc", chosen, strict=False))
        body = {name: FIELDS[kind](**more) for name, (kind, more) in names.items()}
        return decorator(**options)(type("Made", (), body | {"__annotations__": dict.fromkeys(names, "int")}))

    theirs = outcome(lambda: made(dataclasses.dataclass))
    if isinstance(theirs, tuple):  # a default before none: no class at all, and here no object
        return
    theirs, ours = (
        [outcome(lambda kind=kind, given=given: kind(*given[0], **given[1])) for given in (one, other) * 3]
        for kind in (theirs, made(dataclass))
    )

    assert [[outcome(lambda a=a, b=b: a == b) for a in ours for b in ours if a is not b]] == [
        [outcome(lambda a=a, b=b: a == b) for a in theirs for b in theirs if a is not b]
    ]
    for a, b in zip(theirs, ours, strict=True):
        if not isinstance(a, tuple):
            assert seen(outcome(lambda b=b: dataclasses.replace(b))) == seen(
                outcome(lambda a=a: dataclasses.replace(a))
            )
        assert seen(b) == seen(a)


@dataclass(frozen=True, slots=True)
class Point:
    """Of a module, so that it can be pickled."""

    x: int
    rest: list[int] = dataclasses.field(default_factory=list)


def test_what_a_class_says_itself_stays() -> None:
    """Methods that stand in the class are not replaced, and `__post_init__` is called."""

    @dataclass(frozen=True, slots=True)
    class Own:
        name: str

        def __post_init__(self) -> None:
            object.__setattr__(self, "name", self.name.upper())

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

    @dataclass(frozen=True)
    class Below(Own):
        more: int = 0

        def __hash__(self) -> int:
            return 5

    assert (Own("a").name, repr(Own("a")), Own("a") == 1) == ("A", "own", True)
    assert hash(Own("a")) == hash(("A",))
    assert (Below("b", 2).name, Below("b", 2).more, hash(Below("b"))) == ("B", 2, 5)


@pytest.mark.parametrize("base", [dataclass, dataclasses.dataclass])
@pytest.mark.parametrize("below", [dataclass, dataclasses.dataclass])
@pytest.mark.parametrize("frozen", [True, False])
def test_classes_inherit_from_their_own_kind(base: Any, below: Any, frozen: bool) -> None:
    """A frozen class has frozen bases and no others, whoever made them."""

    @base(frozen=frozen, slots=True)
    class Base:
        x: int

    @below(frozen=frozen, slots=True)
    class Below(Base):
        y: int = 2

    assert (Below(1).x, Below(1).y, Below(1) == Below(1, 2)) == (1, 2, True)
    if frozen:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Below(1).y = 3
    with pytest.raises(TypeError, match="cannot inherit"):
        below(frozen=not frozen)(type("Other", (Base,), {}))


def test_frozen_objects_are_pickled_and_stay_frozen() -> None:
    """Pickle brings back an equal object, which cannot be changed."""
    found = pickle.loads(pickle.dumps(Point(1, [2])))

    assert found == Point(1, [2])
    assert hash(Point(1, ()).x) == 1  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        found.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'other'"):
        found.other = 2  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del found.x  # type: ignore[misc]


def test_a_wrong_call_is_named_as_python_names_it() -> None:
    """The first wrong call is told like any other: by the class's name."""

    @dataclass
    class Never:
        x: int

    for _ in range(5):
        with pytest.raises(TypeError, match=r"Never\.__init__\(\) missing 1 required positional argument: 'x'"):
            Never()  # type: ignore[call-arg]


def test_nothing_is_compiled_before_there_are_several_objects() -> None:
    """A class is made without compiling anything; its fourth object compiles one method, the fifth none."""
    code = """
import sys
from embedctl.dataclass import dataclass
compiled = []
sys.addaudithook(lambda event, given: compiled.append(event) if event == "compile" else None)

@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0

counts = [len(compiled)]
for x in range(5):
    point = Point(x)
    assert (point, repr(point), hash(point)) == (point, f"Point(x={x}, y=0)", hash((x, 0)))
    counts.append(len(compiled))
print(counts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[0, 0, 0, 0, 1, 1]\n"
