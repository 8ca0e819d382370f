"""Who asks: a key or a token in the request's headers → a client. Pure, but for what it remembers of failures.

The workspace comes from the key alone, never from a body or another header.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.records import utc_now
from embedctl.server import jwt_tokens, keys
from embedctl.server.jwt_tokens import Verifier
from embedctl.server.keys import Key, Period, Role
from embedctl.server.refusals import Refused

MOST_FAILURES = 20
FAILURES_S = 60.0
_MOST_ADDRESSES = 10_000
_NOBODY = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who asks, and what it may.

    Attributes:
        id: Of its key; of a token: its workspace's. "" where the server takes everybody.
        models, providers: What it may ask for; None: everything.
        rpm, burst, tpm, in_flight: None: no limit of its own.
        budget: USD per period; None: what its workspace may.
    """

    id: str
    workspace: str
    role: Role = "tenant"
    models: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    rpm: int | None = None
    burst: int = 10
    tpm: int | None = None
    in_flight: int | None = None
    budget: Decimal | None = None
    budget_period: Period = "month"

    @property
    def is_admin(self) -> bool:
        """Whether it may manage the server."""
        return self.role == "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRates:
    """What every key may that does not say otherwise."""

    rpm: int | None = None
    burst: int = 10

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> DefaultRates:
        """The API guide's variables; no limit while none of them says that there is one."""
        on = {environment.get(name, "").lower() for name in ("RATE_LIMIT_ENABLED", "EMBEDDINGS_RATE_LIMIT")}
        if not on & {"1", "true", "on", "yes"}:
            return cls()
        return cls(
            rpm=_number(environment.get("RATE_LIMIT_PER_MINUTE"), 60),
            burst=_number(environment.get("RATE_LIMIT_BURST"), 10),
        )


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and 0 < int(text) < 10**9 else default


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """Everybody who may ask, as it stood when it was read.

    Attributes:
        single: Digest of SINGLE_USER_API_KEY: an admin without a file.
        local: Everybody is this client: no keys at all, and only this machine can ask.
        require_x_api_key: Keys count in X-API-KEY alone.
    """

    keys: Mapping[str, Key] = field(default_factory=dict)
    single: str | None = field(default=None, repr=False)
    verifier: Verifier | None = None
    local: Client | None = None
    workspace: str = "default"
    rates: DefaultRates = field(default_factory=DefaultRates)
    key_in_flight: int = 16
    require_x_api_key: bool = False
    now: Callable[[], datetime] = utc_now

    @property
    def is_empty(self) -> bool:
        """Whether nobody could be told apart."""
        return not self.keys and self.single is None and self.verifier is None

    def client(self, authorization: str, x_api_key: str) -> Client:
        """Who sends these headers. An empty credential is none; two must name the same workspace.

        Raises:
            Refused: It is missing, or not valid: unknown, revoked and malformed are told alike.
        """
        if self.local is not None:
            return self.local
        scheme, _, bearer = authorization.strip().partition(" ")
        bearer = bearer.strip()
        if bearer and scheme.lower() != "bearer":
            raise Refused("invalid_key", "the credential must be a bearer token, or stand in X-API-KEY")
        x_api_key = x_api_key.strip()
        found = [self._of(one) for one in (x_api_key, bearer) if one]
        if not found:
            raise Refused("missing_key", "a key is needed: Authorization: Bearer KEY, or X-API-KEY: KEY")
        if self.require_x_api_key and not x_api_key and not jwt_tokens.looks_like(bearer):
            raise Refused("missing_key", "the key must stand in X-API-KEY")
        if len({one.workspace for one in found}) > 1:
            raise Refused("invalid_key", "the two credentials belong to different workspaces")
        return found[0]

    def _of(self, credential: str) -> Client:
        if self.single is not None and hmac.compare_digest(keys.digest(credential), self.single):
            return Client(id="single-user", workspace=self.workspace, role="admin", **self._limits(None))
        if jwt_tokens.looks_like(credential):
            if self.verifier is None:
                raise Refused("invalid_token", "the token is not valid", reason="no [serve.jwt]")
            claims = self.verifier.claims(credential)
            return Client(
                id=f"jwt-{claims.workspace}", workspace=claims.workspace, role=claims.role, **self._limits(None)
            )
        return self._of_key(credential)

    def _of_key(self, credential: str) -> Client:
        now = self.now()
        key_id = keys.parts(credential)
        key = self.keys.get(key_id or "")
        said = keys.digest(credential)
        is_it = hmac.compare_digest(said, key.sha256 if key else _NOBODY)
        if key is not None and key.previous is not None and key.previous_until is not None and now < key.previous_until:
            is_it |= hmac.compare_digest(said, key.previous)
        if key is None or key_id is None or not is_it or key.state(now) == "revoked":
            raise Refused("invalid_key", "the key is not valid")
        if key.state(now) == "expired":
            raise Refused("expired_key", "the key has expired")
        return Client(
            id=key_id,
            workspace=key.workspace,
            role=key.role,
            models=key.models,
            providers=key.providers,
            tpm=key.tpm,
            budget=key.budget,
            budget_period=key.budget_period,
            **self._limits(key),
        )

    def _limits(self, key: Key | None) -> dict[str, Any]:
        return {
            "rpm": (key.rpm if key else None) or self.rates.rpm,
            "burst": (key.burst if key else None) or self.rates.burst,
            "in_flight": (key.in_flight if key else None) or self.key_in_flight,
        }

    def with_local(self, client: Client) -> Keyring:
        """The same, taking everybody as `client` when it could tell nobody apart."""
        return replace(self, local=client) if self.is_empty else self


class Failures:
    """Addresses that have sent credentials that were none: 20 a minute, and then they are not looked at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises Refused while an address has failed too often."""
        seen = self._seen.get(address)
        if seen is None:
            return
        now = self._clock()
        while seen and now - seen[0] >= FAILURES_S:
            seen.popleft()
        if len(seen) >= MOST_FAILURES:
            raise Refused(
                "too_many_failures", "too many credentials that are not valid", retry_after_s=FAILURES_S - now + seen[0]
            )
        if not seen:
            del self._seen[address]

    def count(self, address: str) -> None:
        """One more."""
        self._seen.setdefault(address, deque(maxlen=MOST_FAILURES)).append(self._clock())
        self._seen.move_to_end(address)
        while len(self._seen) > _MOST_ADDRESSES:
            self._seen.popitem(last=False)
