"""A job as a command gives it to its worker processes: everything that was asked for, and nothing of the environment.

Keys come to a worker in its own environment; they stand neither in its arguments nor in what it is sent.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.runs.job import JobRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedJob:
    """What a worker process is sent.

    Attributes:
        job: Without its environment, and without what is open.
        output: Address or folder.
    """

    job: JobRequest
    output: str


def packed(job: JobRequest) -> bytes:
    """A job as bytes, for a process of ours."""
    assert job.store is not None  # noqa: S101 - who has workers has a store
    bare = replace(job, settings=replace(job.settings, environment={}), store=None, is_worker=True)
    content = io.BytesIO()
    _Pickler(content, pickle.HIGHEST_PROTOCOL).dump(PackedJob(job=bare, output=job.store.url))
    return content.getvalue()


def unpacked(content: bytes, environment: Mapping[str, str]) -> JobRequest:
    """The job, in a process that sees `environment`."""
    found: PackedJob = pickle.loads(content)  # noqa: S301 - of the process that has started this one
    settings = replace(found.job.settings, environment=environment)
    return replace(found.job, settings=settings, store=settings.stores.at(found.output))


class _Pickler(pickle.Pickler):
    """Views of mappings are no objects that can be pickled."""

    def reducer_override(self, found: Any) -> Any:
        return (dict, (dict(found),)) if type(found) is MappingProxyType else NotImplemented
