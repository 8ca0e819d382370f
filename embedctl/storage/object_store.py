"""Amazon S3, Google Cloud Storage and Azure Blob Storage, and what speaks their language. The only door to obstore.

Objects are only ever created: every put has the condition that nothing has its name, and the store decides. An answer
that is lost is found out by an id that is kept with the object. A put with a condition is one request, however large:
obstore has none for uploads in pieces. Large contents are mapped from a file, never read into memory.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib import util
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from embedctl.errors import (
    ConfigurationInvalid,
    EmbedctlError,
    ExtraMissing,
    InputChanged,
    InputInvalid,
    InputMissing,
    OutputRefused,
    StorageFailed,
    StoreDenied,
    StoreUnreachable,
)
from embedctl.records import uuid7
from embedctl.storage import store_options
from embedctl.storage.disk import Buffer
from embedctl.storage.files import Content
from embedctl.storage.store import AT_ONCE, StoredObject, at_once
from embedctl.storage.store_url import StoreUrl

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    Client = S3Store | GCSStore | AzureStore

WRITE_ID = "embedctlwrite"
"""Metadata of every object: who put it. Letters only: Azure refuses others."""

CONNECT_S = 5.0
REQUEST_S = 30.0
"""Seconds that a request may take; a large put has more: `_SLOWEST` bytes a second."""
RETRIES = 5
RETRY_S = 60.0
"""Retries within one call: how many, and seconds from the first request on after which there is none."""

_SLOWEST = 1 << 20
_PIECE = 16 << 20
"""Bytes of one ranged read."""
_MAPPED = 1 << 20
"""Contents that are larger are mapped from a file."""
_RELEASED_EACH_S = 0.01
_MOST = 5_000_000_000
"""Bytes of one put: S3's limit is 5 GiB, Azure's 5000 MiB."""
_REMOVED_AT_ONCE = 1000
_PUTS = 6
"""Puts of one object, where answers are lost or S3 says "conflict, try again"."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([A-Za-z]{1,60})\s*</Code>")
_OF_CREDENTIALS = ("credential", "decod", "service account", "access key", "base64", "pem", "secret")
_EXPIRED = "the session's credentials have expired: get new ones, then run the same command again"
_DENIED = {
    "ExpiredToken": _EXPIRED, "ExpiredTokenException": _EXPIRED, "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to the other credentials, or is damaged",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it, then run the same command again",
}  # fmt: skip
"""What S3 says of credentials with other states than 401 and 403, or of what is not them; and what helps."""
_FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage")
"""What stores say that take no more, beside 507: it does not pass by itself."""
_INVALID = re.compile(r'Path "(.*?)"(?: contained|: Encountered)', re.DOTALL)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_BARE = re.compile(r'^"(.*)"$')
_LOOPBACK = re.compile(r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\])([:/]|$)", re.IGNORECASE)
_SAID_BY = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE (with boto3), or an instance's identity",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or an instance's identity",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or an identity",
}


def installed() -> bool:
    """Whether the extra is there."""
    return util.find_spec("obstore") is not None


class ObjectStore:
    """A prefix of a bucket as a `Store`.

    Args:
        url: Its path is a folder: names of objects are relative to it.
        options: obstore's, by its names ("endpoint", "region", "allow_http"); over the environment's.
        scratch: Where contents that are written piece by piece stand until they are put; the system's own by default.
        retries: Within one call.

    Raises:
        ExtraMissing: obstore is not installed.
        ConfigurationInvalid: An option is unknown or wrong.
        StoreDenied: What the environment names as credentials cannot be read.
    """

    def __init__(
        self,
        url: StoreUrl,
        options: Mapping[str, str] | None = None,
        *,
        scratch: Path | None = None,
        retries: int = RETRIES,
    ) -> None:
        if not installed():
            raise ExtraMissing(f"{url} needs a library that is not installed", extra="store")
        self._url = url.at(url.path.rstrip("/"))
        self._options = dict(options or {})
        self._scratch = scratch
        self._retries = retries
        self._clients: dict[float, Client] = {}
        self._client = self._client_for(REQUEST_S)

    def __repr__(self) -> str:
        return f"ObjectStore({self._url})"

    @property
    def url(self) -> str:
        """Its address; it never holds a secret."""
        return str(self._url)

    def put_if_absent(self, name: str, content: Content | Path, *, write_id: str | None = None) -> bool:
        """Put a whole object unless something has that name; whether it is there and mine."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mine = write_id or uuid7().hex
        with self._body(name, content) as body:
            client = self._client_for(REQUEST_S + _rounded(len(body) / _SLOWEST))
            for tried in range(1, _PUTS + 1):
                try:
                    with self._told(f"put {name}"):
                        obstore.put(client, name, body, mode="create", use_multipart=False, attributes={WRITE_ID: mine})
                except (AlreadyExistsError, PreconditionError):
                    writer = self._writer(name)
                    if writer is not None:
                        return writer == mine
                    # Nothing is there: S3 says "conflict, try again" when two creations meet.
                except StoreUnreachable:  # it may have arrived all the same: the next try finds out
                    if tried == _PUTS or self._retries == 0:
                        raise
                except FileNotFoundError:
                    raise self._no_bucket(OutputRefused) from None
                else:
                    return True
                time.sleep(random.uniform(0.5, 1) * min(2.0, 0.05 * 2**tried))  # noqa: S311 - jitter
        raise StoreUnreachable(
            f"{self.url}: the store keeps saying that {name} is being written, and it is not there",
            hint="run the same command again later",
        )

    def hold(self, name: str, path: Path) -> bool:
        """No file of this machine can be an object there."""
        return False

    def read(self, name: str) -> bytes:
        """An object's bytes, in pieces when it is large."""
        first, found = self._get(name, 0, _PIECE, None)
        if len(first) < _PIECE:
            return bytes(first)
        pieces = [first]
        for start in range(_PIECE, found.size, _PIECE):
            pieces.append(self._get(name, start, start + _PIECE, found.etag)[0])
        return b"".join(pieces)

    def read_range(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """A part of an object."""
        return bytes(self.view(name, start, end, etag=etag))

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> Buffer:
        """A part of an object, as it came."""
        return self._get(name, start, end, etag)[0] if end > start else b""

    def stat(self, name: str) -> StoredObject | None:
        """Size and identity of an object."""
        import obstore

        try:
            with self._told(f"look at {name}"):
                return _stored(obstore.head(self._client, name), name)
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> Sequence[str]:
        """Names that begin so, in order, whatever the store's own order is."""
        return sorted(found.name for found in self.objects(prefix))

    def objects(self, prefix: str = "", *, odd: Callable[[str], object] | None = None) -> Iterator[StoredObject]:
        """Objects whose names begin so."""
        folder, slash, begun = prefix.rpartition("/")
        below = self._below if odd is None else partial(self._around, odd=odd)
        if not begun:
            yield from below(folder + slash)
            return
        # Such a store is asked for whole parts of a name only; what is in other folders beside is not listed.
        found: Sequence[StoredObject]
        folders: Sequence[str] = ()
        try:
            found, folders = self.folder(folder)
        except _OddName:
            if odd is None:
                raise
            found = list(self._around(folder + slash, odd=odd))
        yield from (one for one in found if one.name.startswith(prefix))
        for one in folders:
            if one.startswith(prefix):
                yield from below(one)

    def folder(self, folder: str = "") -> tuple[Sequence[StoredObject], Sequence[str]]:
        """Objects in a folder, and the names of folders in it, with a trailing slash; nothing of what is below them."""
        import obstore

        with self._told("list objects", reading=True):
            found = obstore.list_with_delimiter(self._client, prefix=folder.rstrip("/") or None)
        return list(map(_stored, found["objects"])), [f"{one.rstrip('/')}/" for one in found["common_prefixes"]]

    def _below(self, folder: str, behind: str | None = None) -> Iterator[StoredObject]:
        import obstore

        with self._told("list objects", reading=True):
            for page in obstore.list(self._client, folder.rstrip("/") or None, offset=behind, chunk_size=1000):
                yield from map(_stored, page)

    def _around(self, folder: str, *, odd: Callable[[str], object]) -> Iterator[StoredObject]:
        """As `_below`, around names that the library cannot read: it fails for the whole page in which one stands.

        So folders are listed one by one as far as that is needed; in the folder that holds the odd name, what comes
        behind all that begin as it does.
        """
        try:
            found = list(self._below(folder))
        except _OddName:
            pass
        else:
            yield from found
            return
        try:
            here, folders = self.folder(folder)
        except _OddName as bad:
            yield from self._behind(folder, bad, odd)
            return
        yield from here
        for below in folders:
            yield from self._around(below, odd=odd)

    def _behind(self, folder: str, bad: _OddName, odd: Callable[[str], object]) -> Iterator[StoredObject]:
        begins = _begins_oddly(folder, bad.name)
        if begins is None:
            raise bad
        odd(begins)
        behind = f"{begins[:-1]}0"  # what may come next: "0" follows "/"
        try:
            found = list(self._below(folder, behind))
        except _OddName as another:
            if another.name < behind:  # a store that lists from the beginning all the same
                raise
            yield from self._behind(folder, another, odd)
            return
        if (first := self.stat(behind)) is not None:
            yield first
        yield from found

    def remove(self, name: str) -> None:
        """Remove an object."""
        import obstore

        with self._told(f"remove {name}"), suppress(FileNotFoundError):
            obstore.delete(self._client, name)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove many objects; the library removes ten at a time of each call."""
        left = iter(names)
        while some := list(islice(left, _REMOVED_AT_ONCE)):
            each = -(-len(some) // AT_ONCE)
            at_once(partial(self._remove_some, some[at : at + each]) for at in range(0, len(some), each))

    def _remove_some(self, names: Sequence[str]) -> None:
        import obstore

        try:
            with self._told("remove objects"):
                obstore.delete(self._client, names)
        except FileNotFoundError:  # it ends at the first one that is gone already
            for name in names:
                self.remove(name)

    def _get(self, name: str, start: int, end: int, etag: str | None) -> tuple[Buffer, StoredObject]:
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            with self._told(f"read {name}", reading=True):
                options: dict[str, Any] = {"range": (start, end)}
                if etag is not None:
                    options["if_match"] = etag if etag.startswith("W/") else f'"{etag}"'
                answer = obstore.get(self._client, name, options=cast("Any", options))
                return memoryview(answer.bytes()), _stored(answer.meta, name)
        except PreconditionError:
            raise InputChanged(f"{self.url}/{name} changed while it was read") from None
        except _BeyondTheEnd:
            found = self.stat(name)
            if found is None:
                raise FileNotFoundError(f"{self.url}/{name}") from None
            return b"", found

    def _writer(self, name: str) -> str | None:
        """The id under which an object was put; "" where it has none, None where there is no object."""
        import obstore

        try:
            with self._told(f"look at {name}"):
                found = obstore.get(self._client, name, options={"head": True}).attributes
        except FileNotFoundError:
            return None
        return next((value for key, value in found.items() if key.lower() == WRITE_ID), "")

    @contextmanager
    def _body(self, name: str, content: Content | Path) -> Iterator[bytes | memoryview | mmap.mmap]:
        if isinstance(content, (bytes, memoryview)):
            yield content
            return
        if isinstance(content, Path):
            with content.open("rb") as file, self._mapped(name, file) as body:
                yield body
            return
        with tempfile.TemporaryFile(dir=self._scratch) as grown:
            content(cast("Any", grown))
            grown.flush()
            with self._mapped(name, grown) as body:
                yield body

    @contextmanager
    def _mapped(self, name: str, file: IO[bytes]) -> Iterator[bytes | mmap.mmap]:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST:
            raise OutputRefused(f"{self.url}/{name}: {size} bytes are more than a store takes in one request")
        if size < _MAPPED:
            yield os.pread(file.fileno(), size, 0)
            return
        body = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        try:
            with _releasing(body):
                yield body
        finally:
            with suppress(BufferError):  # a request that was given up may still hold it
                body.close()

    def _client_for(self, seconds: float) -> Client:
        """The client whose requests may take so long."""
        if seconds not in self._clients:
            self._clients[seconds] = self._opened(seconds)
        return self._clients[seconds]

    def _opened(self, seconds: float) -> Client:
        from obstore import store
        from obstore.exceptions import BaseError, UnknownConfigurationKeyError

        config: dict[str, Any] = {
            "timeout": f"{seconds:.0f}s", "connect_timeout": f"{CONNECT_S:.0f}s", **self._options
        }  # fmt: skip
        if _LOOPBACK.match(config.get("endpoint", "")):
            config.setdefault("allow_http", "true")
        shared: dict[str, Any] = {
            "prefix": self._url.path or None,
            "retry_config": {
                "max_retries": self._retries,
                "retry_timeout": timedelta(seconds=RETRY_S),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
            },
        }
        try:
            if self._url.scheme == "s3":
                config.setdefault("disable_bulk_delete", "true")  # a gateway's answer to it cannot be read
                if store_options.is_encrypted(config):
                    config.setdefault("unsigned_payload", "true")
                given = store_options.profile(config)
                return store.S3Store(self._url.bucket, config=cast("Any", config), credential_provider=given, **shared)
            if self._url.scheme == "gs":
                return store.GCSStore(self._url.bucket, config=cast("Any", config), **shared)
            if self._url.account:
                config.setdefault("account_name", self._url.account)
            return store.AzureStore(self._url.bucket, config=cast("Any", config), **shared)
        except UnknownConfigurationKeyError as unknown:
            name = re.search(r"key: '([\w.-]+)'", str(unknown))
            raise ConfigurationInvalid(
                f"{self._url.root}: {name[1] if name else 'an option'} is no option of this kind of store",
                hint="names are those of obstore: endpoint, region, allow_http, virtual_hosted_style_request, …",
            ) from None
        except (BaseError, OSError, ValueError) as refusal:
            raise self._unusable(refusal) from None

    def _unusable(self, refusal: Exception) -> EmbedctlError:
        """What is wrong with settings or credentials, before any request: the library's words may hold a secret."""
        said = str(refusal).lower()
        if "missingaccount" in said:
            return ConfigurationInvalid(
                f"{self._url.root}: no storage account is named",
                hint="set AZURE_STORAGE_ACCOUNT_NAME, or give abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…",
            )
        if any(
            word in said for word in ("credential", "decod", "service account", "access key", "base64", "pem", "secret")
        ):
            return StoreDenied(f"{self._url.root}: its credentials cannot be read", hint=self._how())
        return ConfigurationInvalid(
            f"{self._url.root}: an option or variable of the store is wrong",
            hint="look at --store-option, [stores] of your settings and the store's variables",
        )

    def _how(self) -> str:
        return f"credentials come from {_SAID_BY[self._url.scheme]}"

    def _no_bucket(self, kind: type[EmbedctlError]) -> EmbedctlError:
        return kind(f"{self._url.root}: there is no such bucket", hint="look at its name, region and endpoint")

    @contextmanager
    def _told(self, doing: str, *, reading: bool = False) -> Iterator[None]:
        """Foreign errors become ours. Only status and code of an answer are repeated: its address may be signed."""
        from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except FileNotFoundError as missing:
            if reading and _code(missing) in _NO_BUCKET:
                raise self._no_bucket(InputMissing) from None
            raise FileNotFoundError(f"{self.url}: {doing}") from None
        except InvalidPathError as invalid:
            name = _INVALID.search(str(invalid))
            shown = f"{self._url.root}/{name[1].encode('unicode_escape').decode()[:200]}" if name else self.url
            odd = _OddName(
                f"{shown}: an object whose name has an empty part, '.', '..' or a control character in it, "
                "which cannot be read",
                hint="rename it, or name a prefix without it: no listing goes past it",
            )
            odd.name = name[1].removeprefix(f"{self._url.path}/" if self._url.path else "") if name else ""
            raise odd from None
        except (BaseError, OSError, ValueError, RuntimeError) as refusal:  # the last: not built for this store
            raise self._ours(refusal, doing, reading=reading) from None

    def _ours(self, refusal: Exception, doing: str, *, reading: bool) -> Exception:
        text = str(refusal)
        code, found = _code(refusal), _STATUS.search(text)
        status = int(found[1]) if found else None
        said = " ".join(str(one) for one in (status, code) if one)
        kind = type(refusal).__name__
        if status == 416 or "StartTooLarge" in text:
            return _BeyondTheEnd()
        if status == 507 or code in _FULL:
            return StorageFailed(
                f"{self._url.root}: the store is full, or its quota is used up: cannot {doing} ({said})",
                hint="make room there, then run the same command again: it goes on where it ended",
            )
        if _asked_an_instance(text):
            return StoreDenied(f"{self._url.root}: no credentials were found", hint=self._how())
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403) or code in _DENIED:
            hint = _DENIED.get(code or "") or self._how()
            return StoreDenied(f"{self._url.root}: may not {doing} ({said or 'denied'})", hint=hint)
        if status == 404 and (code in _NO_BUCKET or reading):
            return self._no_bucket(InputMissing if reading else OutputRefused)
        if (
            kind == "NotSupportedError"
            or isinstance(refusal, RuntimeError)
            or status == 501
            or code == "NotImplemented"
        ):
            return OutputRefused(
                f"{self.url}: the store cannot create without overwriting (If-None-Match)",
                hint="use a store, or a version of its server, that can",
            )
        is_elsewhere = "redirect without LOCATION" in text  # how S3 answers for a bucket of another region
        if is_elsewhere or (status is not None and 300 <= status < 500 and status not in (408, 409, 425, 429)):
            return ConfigurationInvalid(
                f"{self._url.root}: the store refuses to {doing} ({said or 'it is in another region'})",
                hint="look at region and endpoint: --store-option region=…, endpoint=…",
            )
        return StoreUnreachable(
            f"{self._url.root}: cannot {doing}: {said or _without_answer(text)}",
            hint="look at the network and the endpoint, then run the same command again",
        )


@contextmanager
def _releasing(body: mmap.mmap) -> Iterator[None]:
    """While the block lasts, what was read of a mapped file is no memory of ours for long: who needs it again gets it
    from the system's cache. The library takes a body as one piece, and does not say how much of it was sent.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        yield
        return
    ended = threading.Event()

    def release() -> None:
        while not ended.wait(_RELEASED_EACH_S):
            body.madvise(mmap.MADV_DONTNEED)

    releaser = threading.Thread(target=release, name="store-pages", daemon=True)
    releaser.start()
    try:
        yield
    finally:
        ended.set()
        releaser.join()


class _OddName(InputInvalid):
    """An object's name that the library cannot read.

    Attributes:
        name: As it is, below the store's prefix.
    """

    name: str = ""


def _begins_oddly(folder: str, name: str) -> str | None:
    """How names in a folder begin that are as unreadable as this one; None: it is not there, or of another kind."""
    rest = f"{name.removeprefix(folder)}/"
    begins = next((one for one in ("/", "./", "../") if rest.startswith(one)), None)
    return f"{folder}{begins}" if begins is not None and name.startswith(folder) else None


class _BeyondTheEnd(Exception):  # noqa: N818 - a condition, caught where it is read
    """A range behind the last byte."""


def _stored(found: Any, name: str | None = None) -> StoredObject:
    """What the library says of an object.

    Args:
        name: As it was asked for: before 0.12 the library answers with the prefix before it.
    """
    etag = found.get("e_tag")
    return StoredObject(
        name or found["path"], found["size"], _BARE.sub(r"\1", etag) if etag else None
    )  # Azure lists them bare


def _rounded(seconds: float) -> float:
    """To the next power of two, so that there are few clients; 0 for less than one."""
    return 2.0 ** int(seconds).bit_length() if seconds >= 1 else 0.0


def _code(refusal: Exception) -> str | None:
    found = _CODE.search(str(refusal))
    return found[1] if found else None


def _asked_an_instance(text: str) -> bool:
    """Whether what failed was to get credentials where only machines in a cloud get them."""
    where = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "/metadata/identity", "/latest/api/token")
    return any(host in text for host in where) or "no credentials" in text.lower()


def _without_answer(text: str) -> str:
    said = text.lower()
    if "timed out" in said or "timeout" in said.replace("retry_timeout", "").replace("connect_timeout", ""):
        return "no answer in time"
    if "dns" in said or "resolve" in said:
        return "no such host"
    if "certificate" in said or "tls" in said:
        return "its certificate is not trusted"
    return "no connection"
