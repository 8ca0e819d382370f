"""Jobs and files on the disk: what is kept, what goes, and that nothing outside of the root is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from embedctl.server.jobs.store import Job, JobStore, StoredFile, new_id
from embedctl.server.refusals import Refused


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(root: Path, clock: Clock, keep_s: float = 100) -> JobStore:
    found = JobStore(root, keep_s=keep_s, clock=clock)
    found.open()
    return found


def job(kind: Any = "job", **more: Any) -> Job:
    about = {"key": "k", "model": "m", "provider": "p", "created_at": 1.0, "updated_at": 1.0, "workspace": "acme"}
    return Job(id=new_id(kind), kind=kind, **{**about, **more})


def file(**more: Any) -> StoredFile:
    about = {"filename": "a.jsonl", "bytes": 1, "purpose": "batch", "created_at": 1.0, "workspace": "acme"}
    return StoredFile(id=new_id("file"), expires_at=1100.0, **{**about, **more})


def test_what_was_put_is_there_for_the_next_server(tmp_path: Path, clock: Clock) -> None:
    """Jobs and files are read as they were written; what is none of them is passed over."""
    store = opened(tmp_path / "jobs", clock)
    one, other = job(state="running", tries=2), file()
    store.add(one)
    store.add_file(other)
    (tmp_path / "jobs" / new_id("job")).mkdir()
    (tmp_path / "jobs" / new_id("job") / "x").parent.mkdir()
    broken = tmp_path / "jobs" / new_id("job")
    broken.mkdir()
    (broken / "job.json").write_text('{"id": 1}')
    (tmp_path / "jobs" / "upload-of-a-killed-server").write_text("half")
    again = opened(tmp_path / "jobs", clock)

    assert [(one.id, one.state, one.tries) for one in again.jobs()] == [(one.id, "running", 2)]
    assert again.files("acme") == [other]
    assert not (tmp_path / "jobs" / "upload-of-a-killed-server").exists()


@pytest.mark.parametrize("name", ["..", "../x", "job_", "job_" + "g" * 24, "job_" + "0" * 24 + "/..", "", "file-\n"])
def test_what_is_no_id_is_no_path(tmp_path: Path, clock: Clock, name: str) -> None:
    """A folder is made of an id of ours alone."""
    with pytest.raises(Refused) as refused:
        opened(tmp_path / "jobs", clock).folder(name)

    assert refused.value.code == "job_not_found"


def test_a_link_in_place_of_a_job_leads_nowhere(tmp_path: Path, clock: Clock) -> None:
    """A job's folder that is a link is no job, and removing it removes nothing of where it leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    one = job()
    store = opened(tmp_path / "jobs", clock)
    store.add(one)
    os.rename(tmp_path / "jobs" / one.id, elsewhere / "real")
    (tmp_path / "jobs" / one.id).symlink_to(elsewhere / "real")
    again = opened(tmp_path / "jobs", clock)
    store.remove(one.id)

    assert again.jobs() == []
    assert (elsewhere / "real" / "job.json").exists()


def test_old_jobs_and_files_go(tmp_path: Path, clock: Clock) -> None:
    """So long after its end a job goes with all it has, a file at its time; what is open, or is read, stays."""
    store = opened(tmp_path / "jobs", clock)
    read, unread = file(), file()
    ended = job(state="completed", finished_at=1000.0)
    batch = job("batch", state="running", batch={"input_file_id": read.id})
    for one in (ended, batch):
        store.add(one)
    for one_file in (read, unread):
        store.add_file(one_file)
    assert store.expire() == 0
    clock.now = 1101.0

    assert store.expire() == 2
    assert [one.id for one in store.jobs()] == [batch.id]
    assert store.files("acme") == [read]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted([batch.id, read.id])


def test_the_same_request_is_the_same_job(tmp_path: Path, clock: Clock) -> None:
    """By its content, or by the key that its client gave it, within a workspace."""
    store = opened(tmp_path / "jobs", clock)
    one = job(fingerprint="a", idempotency_key="mine")
    store.add(one)

    assert store.same("acme", "a", None) == store.same("acme", "a", "mine") == store.job(one.id)
    assert store.same("other", "a", None) is None
    assert store.same("acme", "b", None) is None
    with pytest.raises(Refused):
        store.same("acme", "b", "mine")
