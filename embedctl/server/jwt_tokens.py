"""JSON Web Tokens in place of keys (RFC 7519, 8725). The only door to PyJWT.

Algorithms come from the settings, never from the token; what a token says about keys (`kid`, `jku`, `x5u`, `jwk`) is
not looked at, and `crit` is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import UTC, datetime
from typing import Any, get_args

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid
from embedctl.routing import credentials
from embedctl.server.keys import Role
from embedctl.server.refusals import Refused
from embedctl.settings import JwtSettings
from embedctl.settings.options import NAME_PATTERN

MIN_SECRET_BYTES = 32
MAX_BYTES = 8 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says that is believed."""

    subject: str
    workspace: str
    role: Role
    expires: datetime


def looks_like(credential: str) -> bool:
    """Whether it is a token: three parts; then it is nothing else."""
    return credential.count(".") == 2


@dataclass(frozen=True, slots=True)
class Verifier:
    """Believes tokens that are signed with the server's secret.

    Attributes:
        wall: Epoch seconds.
    """

    settings: JwtSettings
    secret: bytes = field(repr=False)
    wall: Callable[[], float] = time.time

    @classmethod
    def of(cls, settings: JwtSettings, environment: Mapping[str, str]) -> Verifier:
        """With the secret that the environment holds, or a file named there.

        Raises:
            ConfigurationInvalid: There is none, or it is shorter than 32 bytes.
        """
        secret = credentials.key_in(environment, (settings.secret_env,))
        if secret is None:
            raise ConfigurationInvalid(
                f"[serve.jwt]: {settings.secret_env} is not set", hint=f"set it, or {settings.secret_env}_FILE"
            )
        found = secret.reveal().encode()
        if len(found) < MIN_SECRET_BYTES:
            raise ConfigurationInvalid(
                f"[serve.jwt]: {settings.secret_env} has {len(found)} bytes; at least {MIN_SECRET_BYTES} are needed",
                hint="`python3 -c 'import secrets; print(secrets.token_urlsafe(48))'` makes one",
            )
        return cls(settings, found)

    def claims(self, token: str) -> Claims:
        """What a token says.

        Raises:
            Refused: `expired_key` when it is over, `invalid_token` for everything else.
        """
        import jwt

        if len(token) > MAX_BYTES:
            raise _invalid("it is too long")
        asked = self.settings
        try:
            head = jwt.get_unverified_header(token)
            if "crit" in head:
                raise _invalid("it has a critical header")
            said: dict[str, Any] = jwt.decode(
                token,
                self.secret,
                algorithms=list(asked.algorithms),
                issuer=asked.issuer,
                audience=asked.audience,
                leeway=asked.leeway_s,
                options={
                    "require": ["exp", "sub", *(["iss"] if asked.issuer else []), *(["aud"] if asked.audience else [])],
                    "verify_aud": asked.audience is not None,
                },
            )
        except jwt.ExpiredSignatureError:
            raise Refused("expired_key", "the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as problem:
            raise _invalid(type(problem).__name__) from None
        expires = said["exp"]
        if expires - float(said.get("iat", self.wall())) > asked.lifetime_s + asked.leeway_s:
            raise _invalid("it lives too long")
        workspace = said.get(asked.workspace_claim)
        if not isinstance(workspace, str) or not NAME_PATTERN.match(workspace):
            raise _invalid("it names no workspace")
        return Claims(
            subject=str(said["sub"]),
            workspace=workspace,
            role=self._role(said),
            expires=datetime.fromtimestamp(expires, UTC),
        )

    def _role(self, said: Mapping[str, Any]) -> Role:
        if self.settings.role_claim is None:
            return "tenant"
        role = said.get(self.settings.role_claim, "tenant")
        if role not in get_args(Role):
            raise _invalid("it names no role")
        found: Role = role
        return found


def _invalid(reason: str) -> Refused:
    return Refused("invalid_token", "the token is not valid", reason=reason)
