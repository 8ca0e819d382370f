"""`space.lock`: what an output's vectors were made with, as a small file that an application can keep and check.

    {"space_lock": 1, "space_id", "space": {…}, "prefixes": {input type: text}, "tokenizer", "chunker": {…} | null,
     "canaries": {…} | null, "hosts": […]}

It may be anybody's: `decoded` checks all of it, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import orjson

from embedctl import storage, tokens
from embedctl.dataclass import dataclass
from embedctl.errors import InputInvalid, InputMissing
from embedctl.records import Space
from embedctl.routing import canaries
from embedctl.routing.canaries import Canaries, host_of
from embedctl.routing.endpoint import Endpoint

NAME = "space.lock"
VERSION = 1
MAX_BYTES = 4 << 20
MOST_HOSTS = 64

_INPUT_TYPES = ("document", "query", "classification", "clustering")
_LONGEST_PREFIX = 2000
_DAMAGED_HINT = "restore it, or remove it: then the next run begins a new record"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpaceLock:
    """What vectors of an output are made with.

    Attributes:
        prefixes: Input type → text that is put before each text; types without one are left out.
        tokenizer: Who counts: a bundled one's name, or the hash of a file; None where it is not known.
        chunker: name, version, size and overlap; None when texts are not chunked.
        canaries: What its model made of three fixed texts at first; None where that was not asked.
        hosts: Who was found to make the same vectors, as `canaries.host_of` names them.
    """

    space: Space
    prefixes: Mapping[str, str]
    tokenizer: str | None = None
    chunker: Mapping[str, Any] | None = None
    canaries: Canaries | None = None
    hosts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        endpoint: Endpoint,
        space: Space,
        *,
        chunker: Mapping[str, Any] | None = None,
        canaries: Canaries | None = None,
        hosts: tuple[str, ...] = (),
    ) -> SpaceLock:
        """What an endpoint's vectors are made with."""
        prefixes = dict(endpoint.entry.prefixes) if endpoint.entry else {}
        if endpoint.input_type and endpoint.prefix:
            prefixes[endpoint.input_type] = endpoint.prefix
        counter = tokens.counter(endpoint.tokenizer, endpoint.fallback_tokenizer)
        return cls(
            space=space,
            prefixes={name: text for name, text in prefixes.items() if text},
            tokenizer=counter.content_id,
            chunker=chunker,
            canaries=canaries,
            hosts=hosts,
        )

    def encoded(self) -> bytes:
        """As a file."""
        content = {
            "space_lock": VERSION,
            "space_id": self.space.space_id,
            "space": self.space.as_dict(),
            "prefixes": dict(self.prefixes),
            "tokenizer": self.tokenizer,
            "chunker": None if self.chunker is None else dict(self.chunker),
            "canaries": None if self.canaries is None else self.canaries.as_dict(),
            "hosts": list(self.hosts),
        }
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def as_dict(self) -> dict[str, Any]:
        """For JSON that people look at: without the vectors."""
        known = self.canaries
        return {
            "space_id": self.space.space_id,
            "tokenizer": self.tokenizer,
            "chunker": None if self.chunker is None else dict(self.chunker),
            "prefixes": dict(self.prefixes),
            "canaries": None if known is None else {"at": known.at, "host": known.host, "version": known.version},
            "hosts": list(self.hosts),
        }

    def unlike(self, endpoint: Endpoint) -> list[str]:
        """Sentences that name what keeps an endpoint's vectors from being compared with those of the lock.

        They may be of another input type, as questions are: then what is put before them must be the lock's.
        """
        space = endpoint.space() or endpoint.space(self.space.dimensions)
        if space is None:
            return []
        theirs = replace(space, input_type=self.space.input_type, prefix=self.space.prefix).like(self.space)
        found = self.differences(replace(SpaceLock.of(endpoint, theirs), chunker=self.chunker))
        wanted = self.prefixes.get(endpoint.input_type or "document", "")
        if endpoint.prefix != wanted:
            found.append(f"prefix: {wanted!r} here, {endpoint.prefix!r} there")
        if self.hosts and not endpoint.local and host_of(endpoint) not in self.hosts:
            found.append(f"host: {', '.join(self.hosts)} here, {host_of(endpoint)} there")
        return found

    def differences(self, other: SpaceLock) -> list[str]:
        """Sentences that name each thing in which another way to make vectors differs; hosts and canaries apart."""
        found = self.space.differences(other.space)
        for name in ("prefixes", "tokenizer", "chunker"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (name == "tokenizer" and None in (mine, theirs)):
                found.append(f"{name}: {_shown(mine)} here, {_shown(theirs)} there")
        return found


def read(path: Path, *, missing: str = "`embedctl vectors lock` writes one") -> SpaceLock:
    """The lock in a file.

    Args:
        missing: What to do when there is none.

    Raises:
        InputMissing: There is none.
        InputInvalid: It is none, or one of another version.
    """
    try:
        content = storage.read_small(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        raise InputMissing(f"no such file: {path}", hint=missing) from None
    except OSError as problem:
        raise InputInvalid(f"{path} cannot be read: {problem.strerror}", hint=_DAMAGED_HINT) from None
    return decoded(content, str(path))


def decoded(content: bytes, label: str) -> SpaceLock:
    """A lock from the content of a file.

    Raises:
        InputInvalid: It is none, or one of another version.
    """
    try:
        found = orjson.loads(content)
        version = found["space_lock"]
        if isinstance(version, int) and version == VERSION:
            return _lock(found)
        if isinstance(version, int) and version > VERSION:
            raise InputInvalid(
                f"{label} is of version {version}, and this embedctl reads version {VERSION}",
                hint="use the embedctl that wrote it, or remove it: then the next run begins a new record",
            )
        why = "it has no version"
    except (ValueError, RecursionError) as problem:
        why = "it is no JSON" if isinstance(problem, orjson.JSONDecodeError) else str(problem)
    except (TypeError, KeyError, AttributeError):
        why = "something is missing in it"
    raise InputInvalid(f"{label} is damaged, or no space.lock: {why}", hint=_DAMAGED_HINT)


def _lock(found: Mapping[str, Any]) -> SpaceLock:
    """Raises ValueError, TypeError or KeyError when it is not one."""
    space = _space(found["space"], found["space_id"])
    prefixes = found["prefixes"]
    if not isinstance(prefixes, dict) or not prefixes.keys() <= set(_INPUT_TYPES):
        raise ValueError("'prefixes' are not texts by input type")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_PREFIX for text in prefixes.values()):
        raise ValueError("a prefix is no text")
    tokenizer, chunker, hosts = found["tokenizer"], found["chunker"], found["hosts"]
    if tokenizer is not None and not canaries.is_word(tokenizer):
        raise ValueError("'tokenizer' is no name")
    if chunker is not None and not _is_chunker(chunker):
        raise ValueError("'chunker' is none")
    if not isinstance(hosts, list) or len(hosts) > MOST_HOSTS or not all(canaries.is_word(host) for host in hosts):
        raise ValueError("'hosts' are not names")
    known = None if found["canaries"] is None else Canaries.decoded(found["canaries"])
    if known is not None and known.vectors.shape[1] != space.dimensions:
        raise ValueError("its canaries are not as wide as its space says")
    return SpaceLock(
        space=space, prefixes=prefixes, tokenizer=tokenizer, chunker=chunker, canaries=known, hosts=tuple(hosts)
    )


def _space(found: Any, space_id: Any) -> Space:
    if not isinstance(found, dict) or found.keys() != {one.name for one in fields(Space)}:
        raise ValueError("its space has other fields than this embedctl knows")
    width = found["dimensions"]
    if isinstance(width, bool) or not isinstance(width, int) or not 0 < width <= canaries.MOST_DIMENSIONS:
        raise ValueError("'dimensions' is no width")
    texts = [value for name, value in found.items() if name not in ("dimensions", "normalized")]
    if not all(value is None or (isinstance(value, str) and len(value) <= _LONGEST_PREFIX) for value in texts):
        raise ValueError("its space holds something that is no text")
    space = Space(**found)
    if space.space_id != space_id:
        raise ValueError("'space_id' is not that of its space")
    return space


def _is_chunker(found: object) -> bool:
    if not isinstance(found, dict) or found.keys() != {"name", "version", "size", "overlap"}:
        return False
    numbers = (found["size"], found["overlap"])
    return all(canaries.is_word(found[name]) for name in ("name", "version")) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 31 for one in numbers
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one!r}" for name, one in value.items()) or "none"
    return "none" if value is None else str(value)
