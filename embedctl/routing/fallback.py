"""Who is asked next: allow-lists, spaces, and who is well enough. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, NoProviderNow, NotAllowed, ProviderError, worst

Mode = Literal["same-space", "any", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEntry:
    """One place in a chain.

    Attributes:
        provider: The configured provider's name.
        model: The model's name on the wire.
        canonical: The weights as the catalog knows them, None when it does not.
        space_id: Of the vectors it would give here, None while unknown (width not seen yet).
    """

    provider: str
    model: str
    canonical: str | None = None
    space_id: str | None = None

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}" if self.model else self.provider


@dataclass(frozen=True, slots=True)
class Excluded:
    """An entry that does not take part, and why."""

    entry: ChainEntry
    reason: str

    def __str__(self) -> str:
        return f"{self.entry}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """One allow-list; None = everything.

    Attributes:
        rule: Where it stands, for people: "[allow]", "[workspaces.acme]".
        models: Names as asked for, on the wire, or canonical; with or without "provider:".
    """

    rule: str
    providers: frozenset[str] | None = None
    models: frozenset[str] | None = None

    def against(self, entry: ChainEntry) -> str | None:
        """The sentence that names what forbids the entry, None when nothing does."""
        if self.providers is not None and entry.provider not in self.providers:
            return f"provider {entry.provider!r} is not in providers of {self.rule}"
        names = {entry.model, str(entry)}
        if entry.canonical is not None:
            names |= {
                entry.canonical,
                entry.canonical.rpartition("/")[2],
                f"{entry.provider}:{entry.canonical}",
            }
        if self.models is not None and not names & self.models:
            return f"model {entry.model!r} is not in models of {self.rule}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """How an entry stands now.

    Attributes:
        dead: What made it useless for this run, None while it may still serve.
        ready_in_s: Seconds until its breaker, its limiter or a remembered hint lets a request through.
        probe: One request may be tried although a remembered hint says to wait.
        reason: Why it is not ready, for people.
    """

    dead: ProviderError | None = None
    ready_in_s: float = 0.0
    probe: bool = False
    reason: str = ""


READY = Availability()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nobody:
    """No entry is available now.

    Attributes:
        error: What the run ends with, unless it waits.
        ready_in_s: Seconds until the first one comes back, None when none does in this run.
    """

    error: EmbedctlError
    ready_in_s: float | None


def allowed(chain: Sequence[ChainEntry], lists: Sequence[AllowList]) -> tuple[list[ChainEntry], list[Excluded]]:
    """The entries that every list allows, and the others with the rule that forbids them."""
    kept, left_out = [], []
    for entry in chain:
        reason = next(filter(None, (rule.against(entry) for rule in lists)), None)
        if reason is None:
            kept.append(entry)
        else:
            left_out.append(Excluded(entry, reason))
    return kept, left_out


def require(entry: ChainEntry, lists: Sequence[AllowList]) -> None:
    """Check the entry that the user asked for.

    Raises:
        NotAllowed: A list forbids it; the message says which.
    """
    _, left_out = allowed([entry], lists)
    if left_out:
        raise NotAllowed(
            f"{entry} is not allowed: {left_out[0].reason}",
            hint="ask for an allowed one (`embedctl models list`), or have the list changed",
        )


def fitting(
    chain: Sequence[ChainEntry], mode: Mode, *, output_space_id: str | None = None
) -> tuple[list[ChainEntry], list[Excluded]]:
    """The entries whose vectors may stand in the output, and the others with the reason.

    Args:
        chain: The entry asked for, then its fallbacks.
        output_space_id: The space of an output that already holds vectors; None while it holds none.
    """
    if not chain:
        return [], []
    first = chain[0]
    kept, left_out = [], []
    for entry in dict.fromkeys(chain):
        reason = None
        if mode == "off" and entry != first:
            reason = "--fallback off"
        elif output_space_id is not None:
            if entry.space_id != output_space_id and (entry.space_id is not None or entry != first):
                reason = "its vectors are of another space than the output's"
        elif mode == "same-space" and entry != first:
            reason = _strangers(first, entry)
        if reason is None:
            kept.append(entry)
        else:
            left_out.append(Excluded(entry, reason))
    return kept, left_out


def choose(
    chain: Sequence[ChainEntry], standings: Mapping[ChainEntry, Availability], *, left_out: Sequence[Excluded] = ()
) -> ChainEntry | Nobody:
    """The first entry that is ready; else the first that may be probed; else why there is none.

    Args:
        chain: What `allowed` and `fitting` kept, in order.
        standings: Entries that are not named are ready.
        left_out: What they did not keep, for the message.
    """
    alive = [entry for entry in chain if standings.get(entry, READY).dead is None]
    for entry in alive:
        if standings.get(entry, READY).ready_in_s <= 0:
            return entry
    for entry in alive:
        if standings.get(entry, READY).probe:
            return entry
    others = f"; not asked: {'; '.join(map(str, left_out))}" if left_out else ""
    if alive:
        return _later({entry: standings[entry] for entry in alive}, others)
    causes = [cause for entry in chain if (cause := standings.get(entry, READY).dead) is not None]
    if not causes:
        return Nobody(error=NoProviderNow(f"no provider is left to ask{others}"), ready_in_s=None)
    return Nobody(error=_gravest(causes, others), ready_in_s=None)


def _strangers(first: ChainEntry, other: ChainEntry) -> str | None:
    if first.canonical is None or other.canonical is None:
        unknown = first if first.canonical is None else other
        return f"nobody knows which weights {unknown} serves, so its vectors cannot be compared"
    if first.canonical != other.canonical:
        return f"another model ({other.canonical}, not {first.canonical})"
    if first.space_id is not None and other.space_id is not None and first.space_id != other.space_id:
        return "the same model, but its vectors are of another space"
    return None


def _later(waiting: Mapping[ChainEntry, Availability], others: str) -> Nobody:
    ready_in_s = min(standing.ready_in_s for standing in waiting.values())
    reasons = "; ".join(
        f"{entry} in {standing.ready_in_s:.0f} s" + (f" ({standing.reason})" if standing.reason else "")
        for entry, standing in waiting.items()
    )
    error = NoProviderNow(
        f"no provider is available; next retry: {reasons}{others}",
        hint=f"run the same command again in {ready_in_s:.0f} s to go on",
        details=[
            {"provider": entry.provider, "model": entry.model, "ready_in_s": round(standing.ready_in_s, 3)}
            for entry, standing in waiting.items()
        ],
    )
    return Nobody(error=error, ready_in_s=ready_in_s)


def _gravest(causes: Sequence[ProviderError], others: str) -> ProviderError:
    """The cause whose exit code is the worst, with the others named behind it."""
    code = worst([cause.exit_code for cause in causes])
    cause = next(cause for cause in causes if cause.exit_code == code)
    rest = "".join(f"; {other.provider or 'another'}: {other.message}" for other in causes if other is not cause)
    if not rest and not others:
        return cause
    return type(cause)(
        cause.message + rest + others,
        hint=cause.hint,
        details=cause.details,
        provider=cause.provider,
        status=cause.status,
        provider_code=cause.provider_code,
        retry_after_s=cause.retry_after_s,
    )
