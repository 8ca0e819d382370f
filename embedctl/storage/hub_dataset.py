"""Data sets of Hugging Face as a store that is only read: hf://datasets/ORG/NAME[@REVISION]/PATH.

A revision is looked up once, and its commit is what is read: nothing changes meanwhile. The door to huggingface_hub,
an extra, for data sets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from embedctl.errors import (
    ConfigurationInvalid,
    EmbedctlError,
    InputMissing,
    OutputRefused,
    StoreDenied,
    StoreUnreachable,
)
from embedctl.storage import hub_access
from embedctl.storage.disk import Buffer
from embedctl.storage.files import Content
from embedctl.storage.store import StoredObject
from embedctl.storage.store_url import StoreUrl

_T = TypeVar("_T")
_DENIED = (401, 403)


class HubDataset:
    """A data set at one commit, as a `Store` that refuses to be written to.

    Args:
        url: Its path is a folder: names of objects are relative to it.

    Raises:
        ExtraMissing: huggingface_hub is not installed.
        ConfigurationInvalid: HF_ENDPOINT, or another variable of the library's, is wrong.
        InputMissing: There is no such data set or revision, or it is closed and no token is known.
        StoreDenied, StoreUnreachable: As every store.
    """

    def __init__(self, url: StoreUrl) -> None:
        endpoint = hub_access.endpoint(os.environ)
        hub_access.import_library(str(url))
        from huggingface_hub import HfApi, HfFileSystem

        self._url = url.at(url.path.rstrip("/"))
        api = HfApi(endpoint=endpoint)
        found = self._asked(lambda: api.dataset_info(url.bucket, revision=url.revision, timeout=hub_access.ANSWER_S))
        self._files = HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
        self._root = f"datasets/{url.bucket}@{found.sha}/" + (f"{self._url.path}/" if self._url.path else "")

    @property
    def url(self) -> str:
        """Its address."""
        return str(self._url)

    def put_if_absent(self, name: str, content: Content | Path, *, write_id: str | None = None) -> bool:
        """Never.

        Raises:
            OutputRefused: Always.
        """
        raise OutputRefused(f"{self.url} is read only", hint="write to a folder, and upload that with `hf upload`")

    def remove(self, name: str) -> None:
        """Never.

        Raises:
            OutputRefused: Always.
        """
        raise OutputRefused(f"{self.url} is read only")

    def remove_all(self, names: Iterable[str]) -> None:
        """Never.

        Raises:
            OutputRefused: Always.
        """
        raise OutputRefused(f"{self.url} is read only")

    def hold(self, name: str, path: Path) -> bool:
        """No file of this machine can be an object there."""
        return False

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        found = self.stat(name)
        if found is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        return self.read_range(name, 0, found.size)

    def read_range(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """A part of a file; it is the commit's, so it is what was listed."""
        if end <= start:
            return b""

        def get() -> bytes:
            with self._files.open(self._root + name, "rb", cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(end - start))

        return self._asked(get)

    def view(self, name: str, start: int, end: int, *, etag: str | None = None) -> Buffer:
        """A part of a file."""
        return self.read_range(name, start, end, etag=etag)

    def stat(self, name: str) -> StoredObject | None:
        """Size and identity of a file; None for a folder too."""
        try:
            found = self._asked(lambda: self._files.info(self._root + name))
        except (FileNotFoundError, InputMissing):
            return None
        return self._object(found) if found["type"] == "file" else None

    def list(self, prefix: str = "") -> Sequence[str]:
        """Names that begin so, in order."""
        return sorted(found.name for found in self.objects(prefix))

    def objects(self, prefix: str = "", *, odd: Callable[[str], object] | None = None) -> Iterator[StoredObject]:
        """Files whose names begin so."""
        folder = prefix.rpartition("/")[0]
        try:
            found = self._asked(lambda: self._files.find((self._root + folder).rstrip("/"), detail=True))
        except (FileNotFoundError, InputMissing):
            return
        for one in cast("dict[str, Any]", found).values():
            if (stored := self._object(one)).name.startswith(prefix):
                yield stored

    def _object(self, found: Any) -> StoredObject:
        lfs = found.get("lfs") or {}
        etag = lfs.get("sha256") or found.get("blob_id")
        return StoredObject(found["name"].removeprefix(self._root), found["size"], etag)

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """Foreign errors as ours; the library's words name addresses, which may be signed."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return ask()
        except FileNotFoundError:
            raise
        except HfHubHTTPError as refusal:
            raise self._ours(refusal) from None
        except Exception as trouble:
            if isinstance(trouble, EmbedctlError):
                raise
            words, hint, again = hub_access.trouble_words(trouble)
            kind = StoreUnreachable if again else ConfigurationInvalid
            raise kind(f"{self.url}: the hub {words}", hint=hint) from None

    def _ours(self, refusal: Any) -> EmbedctlError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        status = getattr(refusal.response, "status_code", None)
        if isinstance(refusal, GatedRepoError):
            return StoreDenied(
                f"{self._url.root}: access must be granted first", hint="ask for it on its page, and set HF_TOKEN"
            )
        if isinstance(refusal, RevisionNotFoundError):
            return InputMissing(f"{self._url.root}: there is no such revision")
        if isinstance(refusal, RepositoryNotFoundError) or status == 404:
            return InputMissing(
                f"{self._url.root}: there is no such data set, or it is private", hint="for a private one set HF_TOKEN"
            )
        if status in _DENIED:
            return StoreDenied(f"{self._url.root}: access denied ({status})", hint="set HF_TOKEN")
        return StoreUnreachable(f"{self._url.root}: the hub answers {status}", hint="run the same command again later")
