"""What a user says of a store beside its address: options for obstore, and an AWS profile. Never a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from embedctl.errors import ConfigurationInvalid, StoreDenied

_SECRET = re.compile(
    r"secret|password|passwd|bearer|sas_|sas$|token$|account_key|storage_key|access_key$|master_key|encryption_key"
    r"|customer_key|authorization|default_headers",
    re.IGNORECASE,
)
_OWN = ("bucket", "bucket_name", "container_name", "container", "conditional_put", "copy_if_not_exists")

_SAID_OTHERWISE = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE",
)  # fmt: skip
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


def check_option(name: str, value: str, where: str) -> None:
    """Refuse an option that would be a secret, or that is ours to choose.

    Args:
        where: Where it stands, for the message.

    Raises:
        ConfigurationInvalid: It is one; its value is not repeated.
    """
    key = re.sub(r"^(aws|azure(_storage)?|google)_", "", name.lower())
    if _SECRET.search(key):
        raise ConfigurationInvalid(
            f"{where}: {name} is a secret, which is taken from the environment only",
            hint=f'set the variable of its own tools, or {name}_env = "VARIABLE" under [stores] of your settings',
        )
    if key in _OWN:
        raise ConfigurationInvalid(f"{where}: {name} cannot be chosen: the address says it, or embedctl relies on it")
    if "@" in value and "://" in value:
        raise ConfigurationInvalid(f"{where}: {name} holds a user or password", hint="give the address without it")


def profile(options: Mapping[str, str]) -> Any:
    """Credentials of an AWS profile or SSO, through boto3, where nothing else says them; None: obstore's own search.

    Raises:
        ConfigurationInvalid: A profile is asked for, and boto3 is not installed.
        StoreDenied: boto3 finds no such profile, or cannot read it.
    """
    named = os.environ.get("AWS_PROFILE")
    if any(name.endswith(("access_key_id", "skip_signature")) for name in options):
        return None
    if not named and (any(name in os.environ for name in _SAID_OTHERWISE) or not any(map(_is_there, _FILES.items()))):
        return None
    if util.find_spec("boto3") is None:
        if named:
            raise ConfigurationInvalid("AWS_PROFILE is set: profiles are read by boto3", hint="pip install boto3")
        return None
    from boto3.session import Session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = Session(profile_name=named)
        return Boto3CredentialProvider(session) if session.get_credentials() else None
    except BotoCoreError as problem:
        raise StoreDenied(
            f"AWS profile {named or 'default'}: {type(problem).__name__}", hint="look at it with `aws configure list`"
        ) from None


def is_encrypted(options: Mapping[str, str]) -> bool:
    """Whether requests to S3 go by https, and nobody has said how their contents are signed.

    Then TLS keeps contents whole, and to sign them too would hash every byte once more: a third of what it costs to
    send them. AWS's own client decides alike.
    """
    names = {re.sub(r"^aws_", "", name.lower()): value for name, value in options.items()}
    if "unsigned_payload" in names or "AWS_UNSIGNED_PAYLOAD" in os.environ:
        return False
    endpoints = [value for name, value in names.items() if name.startswith("endpoint")]
    endpoints = endpoints or [os.environ[name] for name in _ENDPOINTS if os.environ.get(name)]
    return not any(one.lower().startswith("http:") for one in endpoints)


def _is_there(file: tuple[str, str]) -> bool:
    variable, default = file
    return Path(os.environ.get(variable, default)).expanduser().is_file()
