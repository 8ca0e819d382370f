"""Addresses of object stores, checked where they enter: s3:// gs:// az:// abfss:// and, to read only, hf://."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from embedctl.dataclass import dataclass
from embedctl.errors import WrongUsage

Scheme = Literal["s3", "gs", "az", "hf"]

# Patterns are compiled when they are used: most runs see no address, and those with counts take a millisecond.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://?(.*)", re.IGNORECASE | re.DOTALL)
_BUCKETS = {
    "s3": r"(?i:[a-z0-9][a-z0-9._-]{1,253}[a-z0-9])",  # access point aliases, old buckets too
    "gs": r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]",
    "az": r"\$?[a-z0-9](?:-?[a-z0-9]){1,62}",
}
_ABFSS = r"(?i:([^/@]+)@([a-z0-9]{3,24})\.dfs\.core\.windows\.net)"
_DATASET = r"(?s:datasets/([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.*))?)"
_REVISION = r"[\w.~%-]+"
_MOST_BYTES = 1024
"""Of a name: S3's, GCS's and Azure's limit."""

WRITABLE = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A place in an object store.

    Attributes:
        bucket: Bucket or container; of hf:// ORG/NAME.
        path: Behind it, without a leading slash; "" is the whole of it. A trailing slash is kept: it is a folder.
        account: Azure's storage account, where the address names it.
        revision: Of hf://: branch, tag or commit.
    """

    scheme: Scheme
    bucket: str
    path: str
    account: str | None = None
    revision: str | None = None

    @property
    def root(self) -> str:
        """The address of bucket or container."""
        if self.scheme == "hf":
            return f"hf://datasets/{self.bucket}" + (f"@{self.revision}" if self.revision else "")
        if self.account is not None:
            return f"abfss://{self.bucket}@{self.account}.dfs.core.windows.net"
        return f"{self.scheme}://{self.bucket}"

    def __str__(self) -> str:
        return f"{self.root}/{self.path}" if self.path else self.root

    def at(self, path: str) -> StoreUrl:
        """Another path of the same bucket."""
        return replace(self, path=path)


def is_store_url(text: str) -> bool:
    """Whether it is the address of a store, and no path."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and match[1].lower() in ("s3", "gs", "az", "abfss", "hf")


def parse(text: str) -> StoreUrl:
    """The address of a store that `text` is.

    Raises:
        WrongUsage: It is none, or names what no store has; it is repeated without what stands before an @.
    """
    match = _ADDRESS.fullmatch(text)
    scheme, rest = (match[1].lower(), match[2]) if match else ("", text)
    if scheme == "hf":
        return _dataset(rest)
    if scheme not in ("s3", "gs", "az", "abfss"):
        raise WrongUsage(f"{_shown(scheme, rest)} is no address of a store", hint=f"give {WRITABLE}")
    authority, _, path = rest.partition("/")
    account = None
    if scheme == "abfss":
        parts = re.fullmatch(_ABFSS, authority)
        if parts is None:
            raise WrongUsage(
                f"{_shown(scheme, rest)} names no container and account",
                hint="give abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX",
            )
        authority, account, scheme = parts[1], parts[2].lower(), "az"
    elif "@" in authority:
        raise WrongUsage(
            f"{_shown(scheme, rest)} holds credentials, or a host",
            hint="credentials come from the environment, the host from --store-option endpoint=…",
        )
    if not re.fullmatch(_BUCKETS[scheme], authority):
        raise WrongUsage(f"{_shown(scheme, rest)}: {authority!r} is no name of a bucket or container")
    _check_path(scheme, rest, path)
    kept: Scheme = "s3" if scheme == "s3" else "gs" if scheme == "gs" else "az"
    return StoreUrl(kept, authority, path, account)


def _dataset(rest: str) -> StoreUrl:
    match = re.fullmatch(_DATASET, rest)
    if match is None or (match[2] is not None and not re.fullmatch(_REVISION, match[2])):
        raise WrongUsage(f"{_shown('hf', rest)} is no data set", hint="give hf://datasets/ORG/NAME[@REVISION]/PATH")
    path = match[3] or ""
    _check_path("hf", rest, path)
    return StoreUrl("hf", match[1], path, revision=match[2])


def _check_path(scheme: str, rest: str, path: str) -> None:
    parts = path.removesuffix("/").split("/") if path else []
    if any(part in ("", ".", "..") for part in parts):
        raise WrongUsage(f"{_shown(scheme, rest)} has an empty part, '.' or '..' in its path")
    if any(ord(char) < 32 or ord(char) == 127 or "\ud800" <= char <= "\udfff" for char in path):
        raise WrongUsage(f"{_shown(scheme, rest)} has a control character in its path, or bytes that are no UTF-8")
    if len(path.encode()) > _MOST_BYTES:
        raise WrongUsage(f"{scheme}://…: a path of more than {_MOST_BYTES} bytes")


def _shown(scheme: str, rest: str) -> str:
    """The address without what may be a secret."""
    authority, slash, path = rest.partition("/")
    behind = authority.rpartition("@")
    text = (
        f"{scheme}://{'…@' if behind[1] and scheme != 'abfss' else ''}{behind[2] if scheme != 'abfss' else authority}"
    )
    return (text + slash + path).encode("unicode_escape").decode()[:200]
