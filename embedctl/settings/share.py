"""A worker's static share of a job on a store: `--shard I/N`, or as the scheduler's variables say."""

from __future__ import annotations

import re
from collections.abc import Mapping

from embedctl.dataclass import dataclass
from embedctl.errors import ConfigurationInvalid, WrongUsage

MOST_SHARES = 100_000

_GIVEN = re.compile(r"(\d{1,9})/(\d{1,9})\Z", re.ASCII)
_AUTO = re.compile(r"auto(?:/(\d{1,9}))?\Z", re.ASCII)
_COUNTED = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"),
)
"""Schedulers that say which task this is, and of how many."""

_ALONE = ("AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX")
"""Those that do not say of how many."""


@dataclass(frozen=True, slots=True)
class JobShare:
    """One of `count` equal parts of a job.

    Attributes:
        index: From 0.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, ordinal: int) -> bool:
        """Whether the shard of this number is its own."""
        return ordinal % self.count == self.index


def check_share(text: str, spelt: str) -> None:
    """Raise WrongUsage unless `text` is I/N, auto or auto/N."""
    auto, given = _AUTO.match(text), _GIVEN.match(text)
    counts = [one for one in (auto and auto[1], given and given[2]) if one is not None]
    if not (auto or given) or not all(1 <= int(count) <= MOST_SHARES for count in counts):
        raise WrongUsage(
            f"{spelt} is I/N, auto or auto/N, not {text!r}", hint=f"like 0/4, the first of four; N up to {MOST_SHARES}"
        )
    if given and int(given[1]) >= int(given[2]):
        raise WrongUsage(f"{spelt} {text}: shares are counted from 0 to {int(given[2]) - 1}")


def share_of(text: str | None) -> JobShare:
    """What I/N says; all of the job where nothing does, or where "auto" is not looked up yet."""
    given = _GIVEN.match(text or "")
    return JobShare(int(given[1]), int(given[2])) if given else JobShare()


def resolved_share(text: str | None, environment: Mapping[str, str]) -> str | None:
    """`text` as I/N: "auto" is looked up in the scheduler's variables.

    Raises:
        ConfigurationInvalid: There are none, or they contradict.
    """
    auto = _AUTO.match(text or "")
    if auto is None:
        return text
    asked = int(auto[1]) if auto[1] else None
    for index_name, count_name in _COUNTED:
        if index_name in environment and (count_name in environment or asked is not None):
            count = _number(environment, count_name) if count_name in environment else asked
            assert count is not None  # noqa: S101 - one of them is there
            if asked not in (None, count):
                raise ConfigurationInvalid(
                    f"--shard {text}: {count_name} is {count}", hint="an array of N tasks has N shares: --shard auto"
                )
            return _counted(index_name, _index(environment, index_name), count)
    for index_name in _ALONE:
        if index_name in environment:
            if asked is None:
                raise ConfigurationInvalid(
                    f"--shard auto: {index_name} does not say of how many", hint="--shard auto/N with that number"
                )
            return _counted(index_name, _index(environment, index_name), asked)
    names = ", ".join([name for name, _ in _COUNTED] + list(_ALONE))
    raise ConfigurationInvalid(f"--shard {text}: none of {names} is set", hint="no scheduler started this: --shard I/N")


def _index(environment: Mapping[str, str], name: str) -> int:
    """From 0; Slurm counts from the lowest number of the array, in its steps."""
    number = _number(environment, name)
    if name != "SLURM_ARRAY_TASK_ID":
        return number
    first = _number(environment, "SLURM_ARRAY_TASK_MIN", default=0)
    index, rest = divmod(number - first, max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", default=1)))
    if rest:
        raise ConfigurationInvalid(
            f"--shard auto: {name}={number} is no step of the array", hint="begin it at 0, as 0-3"
        )
    return index


def _counted(name: str, index: int, count: int) -> str:
    if not (0 <= index < count <= MOST_SHARES):
        raise ConfigurationInvalid(
            f"--shard auto: {name} makes this number {index} of {count}, counted from 0",
            hint="as many tasks as shares, without gaps, like 0-3 with --shard auto",
        )
    return str(JobShare(index, count))


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigurationInvalid(f"--shard auto: {name} is no number: {text[:40]!r}")
    return int(text)
