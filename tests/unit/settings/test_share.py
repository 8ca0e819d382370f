"""`--shard`: which share of a job a worker has, as it is told or as its scheduler says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedctl import settings
from embedctl.errors import ConfigurationInvalid, WrongUsage
from embedctl.routing import credentials
from embedctl.settings.options import Options, check
from embedctl.settings.share import JobShare, resolved_share, share_of

SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("2/4", {}, JobShare(2, 4)),
        ("0/1", SLURM, JobShare(0, 1)),
        ("auto", SLURM, JobShare(3, 4)),
        ("auto/4", SLURM, JobShare(3, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "1"}, JobShare(2, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, JobShare(1, 4)),
        ("auto", {"CLOUD_RUN_TASK_INDEX": "0", "CLOUD_RUN_TASK_COUNT": "2"}, JobShare(0, 2)),
        ("auto/3", {"AWS_BATCH_JOB_ARRAY_INDEX": "2"}, JobShare(2, 3)),
        ("auto/3", {"JOB_COMPLETION_INDEX": "1"}, JobShare(1, 3)),
        (None, SLURM, JobShare(0, 1)),
    ],
)
def test_shares_that_are_said(text: str | None, environment: dict[str, str], found: JobShare) -> None:
    """Given, or looked up in the variables of the scheduler that started it; nothing said is all of the job."""
    check(Options(shard=text))
    assert share_of(resolved_share(text, environment)) == found


@pytest.mark.parametrize("text", ["", "1", "4/4", "0/0", "-1/4", "a/b", "0/4/1", "AUTO", "auto/0", "0/1000000", "٣/٤"])
def test_words_that_are_no_share(text: str) -> None:
    """They are refused before anything is read: 2."""
    with pytest.raises(WrongUsage):
        check(Options(shard=text))


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("auto", {}),
        ("auto/4", {}),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}),
        ("auto/2", {"JOB_COMPLETION_INDEX": "x"}),
        ("auto/3", SLURM),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "4"}),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "2"}),
    ],
)
def test_variables_that_say_no_share(text: str, environment: dict[str, str]) -> None:
    """No scheduler, an index out of range, a number of tasks that contradicts: 78, and never another's share."""
    with pytest.raises(ConfigurationInvalid):
        resolved_share(text, environment)


@given(shards=st.integers(0, 200), count=st.integers(1, 50))
def test_every_shard_is_in_one_share(shards: int, count: int) -> None:
    """The shares of a job are all of it, and no two have one shard."""
    found = [ordinal for index in range(count) for ordinal in range(shards) if JobShare(index, count).has(ordinal)]
    assert sorted(found) == list(range(shards))


def test_a_share_has_its_part_of_the_rate() -> None:
    """--rpm and --tpm are of the whole job; no limit stays none; of a burst at least one request is left."""
    flags = {"shard": "1/4", "rpm": 6, "tpm": 0, "burst": 2}
    found = settings.load(flags=flags, environment={"HOME": "/nowhere", "EMBEDCTL_HOME": "/nowhere"})
    limits = credentials.rate_limits(found, "openai", local=False)

    assert (limits.requests_per_minute, limits.tokens_per_minute, limits.burst) == (1.5, 0, 1)
