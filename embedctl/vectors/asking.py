"""From an output to the provider that can make vectors which fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, WrongUsage
from embedctl.records import UNOBSERVED, Observer, Space
from embedctl.routing import chain as chains
from embedctl.routing import names
from embedctl.routing.chain import FallbackChain
from embedctl.routing.endpoint import Endpoint
from embedctl.settings import Settings
from embedctl.vectors.files import Stored

Load = Callable[[Mapping[str, Any]], Settings]
"""Options, as flags would give them → settings."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Whom to ask for vectors that may be compared with those of an output.

    Attributes:
        space: Of the vectors that will come.
    """

    settings: Settings
    chain: FallbackChain
    space: Space | None

    @property
    def endpoint(self) -> Endpoint:
        """The one that is asked first."""
        return self.chain.first


def fitting(
    stored: Stored,
    load: Load,
    *,
    model: str | None,
    provider: str | None,
    as_query: bool,
    observer: Observer = UNOBSERVED,
) -> Asking:
    """The chain that makes vectors of the output's space.

    Args:
        model: Another name for the model than the output's own, e.g. of another host; likewise `provider`.
        observer: Told when the model does not get to know the input type.
        as_query: For questions to documents: the input type, and with it the prefix, may be another.

    Raises:
        WrongUsage: What is asked for makes vectors of another space.
        EmbedctlError: The provider is not configured.
    """
    candidates = [(provider, model)] if model or provider else made_by(stored)
    problems: list[WrongUsage | ConfigurationInvalid] = []
    for one in candidates:
        try:
            settings, flags = _documents(stored, load, *one, asked=bool(model or provider))
            if as_query and flags["input_type"] == "document":
                settings = load({**flags, "input_type": "query"})
            chain = chains.chain(settings, observer=observer)
        except (WrongUsage, ConfigurationInvalid) as problem:
            problems.append(problem)
            continue
        return Asking(settings, chain, chain.first.space(stored.space.dimensions))
    raise problems[0]


def made_by(stored: Stored) -> list[tuple[str | None, str | None]]:
    """(provider, model) that may have made the output: as it was asked for, then who answered."""
    found: list[tuple[str | None, str | None]] = []
    if (asked := stored.options) is not None:
        found.append((asked.get("provider"), asked.get("model")))
    for batch in stored.batches(["embedding_provider", "embedding_model"], rows=1):
        found.append((batch.values("embedding_provider")[0], batch.values("embedding_model")[0]))
        break
    return [names.BUNDLED if one == (None, None) else one for one in found] or [names.BUNDLED]


def _documents(
    stored: Stored, load: Load, provider: str | None, model: str | None, *, asked: bool
) -> tuple[Settings, dict[str, Any]]:
    """Settings, and the options they were made of, that make vectors like those of the output."""
    flags = _flags(stored, model, provider)
    settings = load(flags)
    endpoint = _offer(settings, stored, asked=asked)
    if endpoint.dimensions not in (None, stored.space.dimensions):
        flags["dimensions"] = stored.space.dimensions
        settings = load(flags)
        endpoint = _offer(settings, stored, asked=asked)
    _check(endpoint, stored)
    return settings, flags


def _flags(stored: Stored, model: str | None, provider: str | None) -> dict[str, Any]:
    space = stored.space
    flags: dict[str, Any] = {
        "provider": provider,
        "model": model,
        "input_type": space.input_type or "document",
        "force": True,  # it was allowed when the output was made
        "on_too_long": space.truncation if space.truncation in ("truncate", "mean") else None,
    }
    if space.dimension_policy in ("reduce", "pad"):
        flags |= {"dimensions": space.dimensions, "dimension_policy": space.dimension_policy}
    return flags


def _offer(settings: Settings, stored: Stored, *, asked: bool) -> Endpoint:
    try:
        return chains.endpoint(settings, *names.asked_for(settings))
    except (WrongUsage, ConfigurationInvalid) as problem:
        space = stored.space
        raise type(problem)(
            f"{stored.path} holds {space.dimensions} dimensions of {space.model}: {problem.message}",
            hint=problem.hint if asked else "say who serves that model now: -m PROVIDER:MODEL",
        ) from None


def _check(endpoint: Endpoint, stored: Stored) -> None:
    """Refuse another space; what the output was normalised or cut by does not change a direction."""
    theirs = stored.space
    mine = endpoint.space(theirs.dimensions if endpoint.dimensions is None else None)
    if mine is None:
        return
    alike: dict[str, Any] = {
        "revision": theirs.revision if None in (mine.revision, theirs.revision) else mine.revision,
        "normalized": theirs.normalized,
        "truncation": theirs.truncation,
    }
    if {mine.dimension_policy, theirs.dimension_policy} == {"native", "ignore"}:
        alike["dimension_policy"] = theirs.dimension_policy
    if differences := replace(mine, **alike).differences(theirs):
        raise WrongUsage(
            f"{endpoint.id} makes vectors of another space than {stored.path} holds: {'; '.join(differences)}",
            hint="name the model it was made with, in the same way, or leave -m out",
        )
