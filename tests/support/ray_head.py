"""A Ray cluster for tests, in a process of its own: it ends, with all that it started, when its stdin does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT

OBJECT_STORE_BYTES = 80 << 20


@dataclass(frozen=True)
class RayHead:
    """A running cluster.

    Attributes:
        address: HOST:PORT.
        folder: Its sessions with their logs.
    """

    address: str
    folder: Path
    process: subprocess.Popen[str]

    def pids(self, title: str) -> list[int]:
        """Its processes that Ray calls so."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes()
                if f"ray::{title}".encode() in words and self._started(int(folder.name)):
                    found.append(int(folder.name))
        return found

    def _started(self, pid: int) -> bool:
        """Whether the process comes from this cluster's."""
        while pid > 1:
            if pid == self.process.pid:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return False

    def remove_machine(self) -> None:
        """One of several is gone from one moment to the next."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"


@contextmanager
def ray_head(
    environment: Mapping[str, str], *, cpus: int = 8, machines: int = 1, version: str = ""
) -> Iterator[RayHead]:
    """A cluster whose workers have this environment.

    Args:
        cpus: Of each machine; where there are several, the first one, which commands join, has none.
        version: Of Ray, that it says it has; "": as it is.
    """
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets: a path of pytest's would be too long
    command = [sys.executable, "-m", "tests.support.ray_head", folder, str(cpus), str(machines), version]
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={"PATH": os.environ["PATH"], "HOME": folder, **own, **environment},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "Ray does not start"
        yield RayHead(address, Path(folder), process)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Start it, say where it is, wait."""
    folder, cpus, machines, version = sys.argv[1:]
    import ray

    if version:
        ray.__version__ = version
    if machines == "1":
        started = ray.init(
            address="local", num_cpus=int(cpus), object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
            logging_level="ERROR", log_to_driver=False, _temp_dir=folder,
        )  # fmt: skip
        print(started.address_info["gcs_address"], flush=True)
        sys.stdin.read()
        ray.shutdown()
        return
    from ray.cluster_utils import Cluster

    (Path(folder) / "ray").mkdir()  # where it writes its address
    about = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **about})
    others = [cluster.add_node(num_cpus=int(cpus), **about) for _ in range(int(machines) - 1)]
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(others.pop(), allow_graceful=False)
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
