"""`dataclass` of the standard library, whose methods are made when they are first used.

The standard library writes the source of eight methods a class and compiles it where the class stands, also of classes
that make no object: for a few hundred classes that was a sixth of a short run. Here methods work on the fields that the
standard library finds, and only `__init__` is compiled, once a class has several objects. Fields, slots, arguments,
comparison and `dataclasses.fields`, `replace` and `asdict` are the standard library's, and `match` and pickle work as
they do with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses
    from dataclasses import MISSING, FrozenInstanceError
    from operator import attrgetter
    from reprlib import recursive_repr

    def dataclass(cls=None, /, *, frozen=False, slots=False, kw_only=False, eq=True):
        """See `dataclasses.dataclass`; nothing of our own needs its other arguments."""
        if cls is None:
            return lambda found: dataclass(found, frozen=frozen, slots=slots, kw_only=kw_only, eq=eq)
        own = dict(vars(cls))
        if "__eq__" in own and own["__hash__"] is None:  # which is what Python makes of a class with `__eq__`
            del own["__hash__"]
        cls.__doc__ = cls.__doc__ or cls.__name__  # else a signature is looked for, and compiled
        checked = frozen and any(map(dataclasses.is_dataclass, cls.__mro__[1:]))  # only bases of its kind are allowed
        cls = dataclasses.dataclass(cls, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only, frozen=checked)
        cls.__dataclass_params__.frozen = frozen  # for who inherits from it
        methods = {"__init__": _init(cls, frozen), "__repr__": _repr(cls)}
        if eq:
            methods |= _comparison(cls, hashable=frozen)
        if frozen:
            methods |= {"__setattr__": _no_assignment, "__delattr__": _no_deletion}
            if slots:
                methods |= {"__getstate__": _state, "__setstate__": _set_state}
        for name, method in methods.items():
            if name not in own:
                setattr(cls, name, method)
        return cls

    _FEW = 3
    """Objects of a class before its `__init__` is compiled: most of what a run makes one of, it makes no more of."""

    def _init(cls, frozen):
        """Sets the fields of the first few objects one by one, and makes way for a method that is compiled then."""
        fields = dataclasses.fields(cls)
        places = [field.name for field in fields if field.init and not field.kw_only]
        taken = {field.name for field in fields if field.init}
        made, compiled = 0, None

        def set_each(self, *args, **kwargs):
            nonlocal made, compiled
            given = dict(zip(places, args, strict=False))
            unclear = len(args) > len(places) or given.keys() & kwargs or not kwargs.keys() <= taken
            values = None if unclear or made >= _FEW else _values_of(fields, given | kwargs)
            if values is None:  # or the call is wrong, and Python says how
                if compiled is None:
                    compiled = _compiled(cls, frozen)
                    if vars(cls)["__init__"] is set_each:
                        cls.__init__ = compiled
                return compiled(self, *args, **kwargs)
            made += 1
            for name, value in values:
                object.__setattr__(self, name, value)
            if hasattr(cls, "__post_init__"):
                self.__post_init__()
            return None

        return set_each

    def _values_of(fields, given):
        """Of each field that gets one; None where an argument is missing."""
        values = []
        for field in fields:
            if field.init and field.name in given:
                value = given[field.name]
            elif field.default_factory is not MISSING:
                value = field.default_factory()
            elif field.default is not MISSING:
                value = field.default
            elif field.init:
                return None
            else:
                continue
            values.append((field.name, value))
        return values

    _NOT_GIVEN = object()

    def _compiled(cls, frozen):
        """`__init__`, which assigns arguments or defaults to the fields in their order."""
        values = {"_not_given": _NOT_GIVEN, "_assign": object.__setattr__}
        places, names, lines = [], [], []
        for field in dataclasses.fields(cls):
            name = value = argument = field.name
            default = f"_default_of_{name}"
            if field.default_factory is not MISSING:
                values[default] = field.default_factory
                argument = f"{name}=_not_given"
                value = f"{default}() if {name} is _not_given else {name}" if field.init else f"{default}()"
            elif field.default is not MISSING:
                values[default] = field.default
                argument = f"{name}={default}"
                value = name if field.init else default
            elif not field.init:
                continue
            if field.init:
                (names if field.kw_only else places).append(argument)
            lines.append(f" _assign(self, {name!r}, {value})" if frozen else f" self.{name} = {value}")
        if hasattr(cls, "__post_init__"):
            lines.append(" self.__post_init__()")
        arguments = ", ".join(["self", *places, *(["*", *names] if names else [])])
        exec(f"def __init__({arguments}):\n" + ("\n".join(lines) or " pass"), values)  # noqa: S102 - our fields' names
        method = values["__init__"]
        method.__qualname__ = f"{cls.__qualname__}.__init__"
        return method

    def _comparison(cls, *, hashable):
        names = [field.name for field in dataclasses.fields(cls) if field.compare]
        values = attrgetter(*names) if len(names) > 1 else lambda one: tuple(getattr(one, name) for name in names)

        def equal(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        def hashed(self):
            return hash(values(self))

        return {"__eq__": equal, "__hash__": hashed if hashable else None}

    def _repr(cls):
        names = [field.name for field in dataclasses.fields(cls) if field.repr]

        @recursive_repr()
        def shown(self):
            return f"{self.__class__.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

        return shown

    def _no_assignment(self, name, value):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _no_deletion(self, name):
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _state(self):
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def _set_state(self, state):
        for field, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, field.name, value)
