"""Fetching models from Hugging Face. The door to huggingface_hub, an extra, for models."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedctl.backends import folders, local
from embedctl.backends.folders import Folder
from embedctl.errors import (
    ConfigurationInvalid,
    EmbedctlError,
    KeyRejected,
    ModelNotFound,
    NotSent,
    OutputRefused,
    WrongUsage,
)
from embedctl.records import expanded
from embedctl.storage import hub_access

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = (
    "tokenizer.json", "tokenizer_config.json", "config.json", "modules.json", "sentence_bert_config.json",
    "1_Pooling/config.json", "LICENSE*", "README.md",
)  # fmt: skip
_WEIGHTS = {
    "onnx": ("model.onnx", "model.onnx_data", "onnx/model.onnx", "onnx/model.onnx_data"),
    "static": ("model.safetensors",),
}
"""By what runs them: a repository may hold the same model in many forms, of which one is fetched."""


def pull(name: str, pulled: Path, *, revision: str | None = None, endpoint: str | None = None) -> Folder:
    """Fetch a repository's ONNX or static model; it appears whole or not at all.

    Args:
        name: OWNER/NAME.
        pulled: Where pulled models are.
        endpoint: Of the hub; None: Hugging Face itself.

    Raises:
        ExtraMissing: huggingface_hub is not installed.
        WrongUsage: The name is none.
        ModelNotFound, KeyRejected, NotSent: There is no such repository, it is closed, or the hub is not reached.
        ConfigurationInvalid: It holds no model that runs here; or what answers is no hub.
    """
    if not _NAME.fullmatch(name):
        raise WrongUsage(f"not a repository: {name!r}", hint="OWNER/NAME, like sentence-transformers/all-mpnet-base-v2")
    place = folders.home(name, pulled)
    unfinished = place.with_name(f".{place.name}.part")
    try:
        pulled.mkdir(parents=True, exist_ok=True, mode=0o700)
        commit = _fetch(name, unfinished, _SETTINGS, revision, endpoint)
        protocol = local.protocol_of(unfinished)
        _fetch(name, unfinished, _WEIGHTS[protocol], commit, endpoint)
        shutil.rmtree(unfinished / ".cache", ignore_errors=True)
        _check(name, unfinished, protocol)
        shutil.rmtree(place, ignore_errors=True)
        unfinished.replace(place)
    except OSError as error:
        raise OutputRefused(f"{pulled} cannot be written: {error.strerror}") from error
    except EmbedctlError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return local.read(protocol, place)


def _fetch(name: str, into: Path, files: Sequence[str], revision: str | None, endpoint: str | None) -> str:
    """Fetch files of one commit; which one that was."""
    if expanded("~") == Path("~"):  # a user without a home folder: the library wants one when it is imported
        os.environ.setdefault("HF_HOME", str(into / ".cache" / "huggingface"))
    hub_access.import_library("fetching models")
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        info = HfApi(endpoint=endpoint).model_info(
            name, revision=revision, files_metadata=True, timeout=hub_access.ANSWER_S
        )
        commit = info.sha or revision
        snapshot_download(
            name, revision=commit, local_dir=into, allow_patterns=list(files), endpoint=endpoint, max_workers=4
        )
    except errors.GatedRepoError:
        raise KeyRejected(
            f"{name} is closed: its owner wants to know who takes it",
            hint=f"ask at https://huggingface.co/{name}, and set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"there is no repository {name} on Hugging Face, or it is private",
            hint="check its name; HF_TOKEN, if private",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(f"{name} has no revision {revision!r}") from None
    except Exception as trouble:
        if _is_disk(trouble):
            raise
        words, hint, again = hub_access.trouble_words(trouble)
        kind = NotSent if again else ConfigurationInvalid
        raise kind(f"{'the hub' if endpoint else 'Hugging Face'} {words}", hint=hint) from None
    _check_digests(name, into, {one.rfilename: one.lfs.sha256 for one in info.siblings or () if one.lfs})
    return commit or "main"


def _is_disk(trouble: Exception) -> bool:
    """Whether it is this machine's own; all else that the library raises is the network's."""
    return isinstance(trouble, OSError) and trouble.errno is not None and not isinstance(trouble, ConnectionError)


def _check_digests(name: str, into: Path, published: Mapping[str, str]) -> None:
    """Weights are the very ones that the hub names.

    Args:
        published: A large file → its SHA-256.

    Raises:
        ConfigurationInvalid: One is another file, or was cut.
    """
    for file, digest in published.items():
        if (path := into / file).is_file():
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != digest:
                raise ConfigurationInvalid(
                    f"{file} of {name} is not the file that the hub names", hint="fetch it again"
                )


def _check(name: str, place: Path, protocol: str) -> None:
    try:
        local.read(protocol, place)
    except ConfigurationInvalid as error:
        said = error.message.replace(str(place), name)
        raise ConfigurationInvalid(
            said, hint="choose a repository with an ONNX export (onnx/model.onnx), or one that model2vec made"
        ) from None
