"""Keys that a server takes: `$EMBEDCTL_HOME/keys.toml`, where a key is only a hash, beside who pays and what it may.

A key is `emb_ID_SECRET`: eight letters that name it, and 256 random bits. Random keys need no slow hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import field, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

from embedctl import storage
from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, InputMissing, WrongUsage
from embedctl.records import utc_now
from embedctl.settings import files as settings_files
from embedctl.settings import toml_files
from embedctl.settings.options import checked_name
from embedctl.settings.tables import between
from embedctl.storage import locks

_T = TypeVar("_T")

Role = Literal["tenant", "admin", "metrics"]
Period = Literal["day", "week", "month"]

MAX_BYTES = 16 << 20
"""Of the file: tens of thousands of keys."""

_KEY = re.compile(r"emb_([a-z2-7]{8})_([A-Za-z0-9_-]{43})\Z")
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_DAYS = re.compile(r"(\d{1,5})d\Z")
_LONGEST_NAME = 200


def _ruled(default: Any, rule: Callable[[Any], str | None]) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key, as the file has it.

    Attributes:
        sha256: Of the whole key, in hex; likewise `previous`, which counts until `previous_until`.
        models, providers: What it may ask for; a name may end in `*`. None: everything.
        rpm, burst, tpm: Requests a minute, how many at once, tokens a minute; None: as the server has it.
        in_flight: Requests at once; None: as the server has it.
        budget: USD per period; None: what its workspace may.
        revoked: Since when it counts no more.
    """

    sha256: str = field(repr=False)
    workspace: str
    role: Role = "tenant"
    name: str = ""
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    previous: str | None = field(default=None, repr=False)
    previous_until: datetime | None = None
    models: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    rpm: int | None = _ruled(None, between(1, 10**9))
    burst: int | None = _ruled(None, between(1, 10**9))
    tpm: int | None = _ruled(None, between(1, 10**15))
    in_flight: int | None = _ruled(None, between(1, 10_000))
    budget: Decimal | None = _ruled(None, between(0, 10**12))
    budget_period: Period = "month"

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether it counts."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


@dataclass(frozen=True, slots=True)
class Minted:
    """A key as it is shown once: nobody can read it again."""

    id: str
    secret: str = field(repr=False)
    key: Key


def parts(secret: str) -> str | None:
    """The id in a key; None where it is no key of ours."""
    found = _KEY.match(secret)
    return found[1] if found else None


def digest(secret: str) -> str:
    """What stands for a key at rest."""
    return hashlib.sha256(secret.encode()).hexdigest()


def load(path: Path) -> dict[str, Key]:
    """All keys by id; none where there is no file.

    Raises:
        ConfigurationInvalid: It cannot be read, others may read or change it, or it says what no key is.
    """
    try:
        found = storage.open_small(path, max_bytes=MAX_BYTES, follow=False)
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise ConfigurationInvalid(f"{path} cannot be read: {problem.strerror}", hint="it holds who may ask") from None
    if found.owner != os.geteuid() or found.mode & 0o077:
        raise ConfigurationInvalid(f"others than you may read or change {path}", hint=f"chmod 600 {path}")
    content = toml_files.decoded(found.content, str(path))
    entries = content.get("keys", {})
    if set(content) - {"keys"} or not isinstance(entries, dict):
        raise ConfigurationInvalid(f"{path} holds more than keys", hint="`embedctl keys` writes it")
    return {
        name: _checked(settings_files.converted(one, Key, f"{path}: [keys.{name}]")) for name, one in entries.items()
    }


def _checked(key: Key) -> Key:
    """With its times in UTC, and a workspace that may be one."""
    try:
        checked_name(key.workspace, "workspace")
    except WrongUsage as wrong:
        raise ConfigurationInvalid(wrong.message, hint=wrong.hint) from None
    times: dict[str, Any] = {
        name: _in_utc(getattr(key, name)) for name in ("created", "expires", "revoked", "previous_until")
    }
    return replace(key, **times)


def _in_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class KeyFile:
    """The file, changed under a lock: whole or not at all.

    Raises:
        ConfigurationInvalid, Locked, OutputRefused, StorageFailed: From every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, key: Callable[[str, datetime], Key]) -> Minted:
        """A new key.

        Args:
            key: (hash, now) → what it may.
        """

        def change(keys: dict[str, Key]) -> Minted:
            key_id = _new_id(keys)
            secret = _new_secret(key_id)
            keys[key_id] = key(digest(secret), utc_now().replace(microsecond=0))
            return Minted(key_id, secret, keys[key_id])

        return self._change(change)

    def rotate(self, key_id: str, *, overlap: timedelta) -> Minted:
        """A new secret for a key; the old one counts for a while yet."""

        def change(keys: dict[str, Key]) -> Minted:
            old = _found(keys, key_id)
            if old.revoked is not None:
                raise WrongUsage(f"key {key_id} is revoked", hint="create a new one: `embedctl keys create`")
            secret, now = _new_secret(key_id), utc_now().replace(microsecond=0)
            keys[key_id] = replace(old, sha256=digest(secret), previous=old.sha256, previous_until=now + overlap)
            return Minted(key_id, secret, keys[key_id])

        return self._change(change)

    def revoke(self, key_id: str) -> Key:
        """It counts no more, neither of its secrets."""

        def change(keys: dict[str, Key]) -> Key:
            old = _found(keys, key_id)
            now = utc_now().replace(microsecond=0)
            keys[key_id] = replace(old, revoked=old.revoked or now, previous=None, previous_until=None)
            return keys[key_id]

        return self._change(change)

    def _change(self, change: Callable[[dict[str, Key]], _T]) -> _T:
        storage.DISK.make_folder(self.path.parent)
        with locks.hold(self.path.with_suffix(".lock"), command="embedctl keys", wait_s=10):
            keys = load(self.path)
            result = change(keys)
            storage.replace(storage.DISK, self.path, written(keys).encode(), mode=0o600)
        return result


def _found(keys: Mapping[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise InputMissing(f"no key is called {key_id!r}", hint="`embedctl keys list` shows them")
    return keys[key_id]


def _new_id(taken: Mapping[str, Key]) -> str:
    while (key_id := "".join(secrets.choice(_ID_LETTERS) for _ in range(8))) in taken:
        pass
    return key_id


def _new_secret(key_id: str) -> str:
    return f"emb_{key_id}_{secrets.token_urlsafe(32)}"


def written(keys: Mapping[str, Key]) -> str:
    """The file's content."""
    lines = ["# Keys that `embedctl serve` takes; written by `embedctl keys`. A key itself stands nowhere."]
    for key_id, key in keys.items():
        lines += ["", f"[keys.{key_id}]"]
        for entry in fields(Key):
            value = getattr(key, entry.name)
            if value not in (None, "", entry.default):
                lines.append(f"{entry.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return f'"{value:f}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return orjson.dumps(value).decode().replace("\x7f", "\\u007f")


def expiry(text: str, now: datetime) -> datetime:
    """`90d`, or a date: the end of that day, UTC.

    Raises:
        WrongUsage: It is neither, or over already.
    """
    days = _DAYS.match(text)
    try:
        if days:
            moment = now.replace(microsecond=0) + timedelta(days=int(days[1]))
        else:
            moment = datetime.combine(date.fromisoformat(text) + timedelta(days=1), time(), UTC)
    except (ValueError, OverflowError):
        raise WrongUsage(f"not a time: {text!r}", hint="like 90d or 2027-06-30") from None
    if moment <= now:
        raise WrongUsage(f"{text} is over already", hint="like 90d or 2027-06-30")
    return moment


def budget(text: str) -> tuple[Decimal, Period]:
    """`AMOUNT[/day|week|month]` in USD.

    Raises:
        WrongUsage: It is none.
    """
    amount, _, period = text.partition("/")
    try:
        value = Decimal(amount)
    except ArithmeticError:
        value = Decimal("nan")
    if between(0, 10**12)(value) or (period or "month") not in ("day", "week", "month"):
        raise WrongUsage(f"not a budget: {text!r}", hint="like 5, 0.50/day or 100/month, in USD")
    return value, period or "month"  # type: ignore[return-value]


def listed(text: str | None) -> tuple[str, ...] | None:
    """Names with commas; None: everything.

    Raises:
        WrongUsage: There is no name in it, or a `*` that is not at the end of one.
    """
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or any("*" in name[:-1] or len(name) > _LONGEST_NAME for name in names):
        raise WrongUsage(f"not a list of names: {text!r}", hint="like text-embedding-3-small,voyage-*")
    return names
