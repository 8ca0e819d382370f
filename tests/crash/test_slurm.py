"""The array of docs/deploy on a real Slurm: its tasks are the shares of a job, and one goes back to the queue."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import places
from tests.support.processes import Zygote
from tests.support.slurm import HAS_SLURM, slurm
from tests.support.store_stories import StoreStory
from tests.support.stores import StoreServer
from tests.support.wire.client import Wire

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HAS_SLURM, reason="needs root, and Debian's slurm-wlm and munge"),
]
SCRIPT = places.ROOT / "docs" / "deploy" / "slurm-array.sh"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


def test_slurm_takes_the_script(cluster: dict[str, str]) -> None:
    """`sbatch --test-only` would run it."""
    asked = subprocess.run(["sbatch", "--test-only", SCRIPT], env={**os.environ, **cluster}, capture_output=True)
    assert asked.returncode == 0, asked.stderr


def test_an_array_with_a_requeue(
    cluster: dict[str, str], tmp_path: Path, wire: Wire, forks: Zygote, s3: StoreServer
) -> None:
    """A task that is put back into the queue while it works goes on later; in the end all rows are there, once."""
    job = StoreStory(tmp_path, wire, forks, s3, lease_s=2.0)
    job.begin(144, files=8, latency_s=0.5)
    text = SCRIPT.read_text()
    before, command, after = text.partition("srun embedctl ")
    rest = after.replace("\\\n", " ").split("\n", 1)[1]
    words = shlex.join(str(word) for word in job.command("--shard", "auto", "--no-wait"))
    script = tmp_path / "array.sh"
    script.write_text(f"{before}{command}{words}\n{rest}")
    env = {
        **os.environ, **cluster, **s3.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EMBEDCTL_HOME": str(tmp_path / "home"), "EMBEDCTL_CANARY": "off", "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": wire.base_url(),
    }  # fmt: skip

    def say(*words: object) -> str:
        return subprocess.run([str(word) for word in words], env=env, capture_output=True, text=True).stdout.strip()

    number = say("sbatch", "--parsable", "-o", tmp_path / "log-%a", script)
    job.wait_for_requests(8)
    say("scontrol", "requeue", f"{number}_1")
    job.kills += 1
    end = time.monotonic() + 240
    while job.store.stat("_embedctl/manifest/00000001.json") is None:
        assert time.monotonic() < end, say("squeue") + "".join(one.read_text() for one in tmp_path.glob("log-*"))
        say("scontrol", "update", f"JobId={number}_1", "StartTime=now")  # Slurm lets a requeued task wait two minutes
        time.sleep(0.5)
    while (states := say("squeue", "-h", "-j", number, "-o", "%T")) and "RUNNING" in states:
        time.sleep(0.2)

    assert "Restarts=1" in say("scontrol", "show", "job", f"{number}_1")
    job.check()
