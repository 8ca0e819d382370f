"""`batch run --engine ray`: what is wrong is one line with the right code, before anything is sent or made."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

import pytest

from tests.support.processes import Ended, World, Zygote
from tests.support.wire.client import Wire

needs_ray = pytest.mark.skipif(util.find_spec("ray") is None, reason="Ray is not installed here (extra `ray`)")
HURRY = {"embedctl.engines.ray_cluster:ANSWER_S": 1.0}


@pytest.fixture
def world(tmp_path: Path, wire: Wire, forks: Zygote) -> World:
    wire.reset()
    found = World(tmp_path, wire, forks)
    found.table(["a text"])
    return found


def run(world: World, *flags: object) -> Ended:
    return world.run(
        "batch", "run", "in.parquet", "-o", "out", "-m", "openai:text-embedding-3-small", "--no-progress", *flags
    )


def check_nothing(world: World, ended: Ended, code: int) -> None:
    """One line and a hint, nothing sent, nothing made."""
    assert ended.code == code, (ended.code, ended.out, ended.err)
    lines = ended.err.splitlines()
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "hint"])
    assert world.wire.truth() == []
    assert not (world.folder / "out/_embedctl/plan.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "ray"], "--engine ray needs --ray-address"),
        (["--ray-address", "auto"], "nobody asked for Ray"),
        (["--engine", "spark", "--ray-address", "auto"], "spark"),
        (["--engine", "ray", "--ray-address", "here"], "--ray-address is no address: 'here'"),
        (["--engine", "ray", "--ray-address", "host:99999"], "is no address"),
        (["--engine", "ray", "--ray-address", "host:1 --x"], "is no address"),
        (["--engine", "ray", "--ray-address", "ray://host:10001"], "client protocol"),
        (["--engine", "ray", "--ray-address", "auto"], "out is a folder of this machine"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:6379"], "out is a folder of this machine"),
        (["--engine", "ray", "--ray-address", "local", "--shard", "0/2"], "--shard and --engine ray"),
        (["--engine", "ray", "--ray-address", "local", "--ray-cpus", "-1"], "--ray-cpus must be at least 0"),
    ],
)
def test_wrong_flags(world: World, flags: list[str], words: str) -> None:
    """Flags that contradict, or an address that is none: 2."""
    ended = run(world, *flags)

    assert words in ended.err
    assert ended.code == 2, ended.err
    assert world.wire.truth() == []
    assert not (world.folder / "out/_embedctl/plan.json").exists()


def test_a_project_s_file_says_nothing_of_it(world: World) -> None:
    """A stranger's folder does not say whose machines see the texts: 78."""
    (world.folder / "embedctl.toml").write_text('engine = "ray"\nray_address = "stranger:6379"\n')

    check_nothing(world, run(world), 78)


def test_ray_is_not_installed(world: World) -> None:
    """Without the extra: 78, and the command that installs it."""
    (world.folder / "none").mkdir()
    code = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'ray' else found(name, *rest)\n"
        "from embedctl.cli import app; app(sys.argv[1:])"
    )
    flags = ["batch", "run", "in.parquet", "-o", "out", "--engine", "ray", "--ray-address", "local"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=world.folder, env=world.environment, capture_output=True, text=True
    )

    ended = Ended(ran.returncode, ran.stdout, ran.stderr)
    check_nothing(world, ended, 78)
    assert "--engine ray needs a library that is not installed" in ended.err
    assert "ray" in ended.err.splitlines()[1]


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port where somebody takes connections, and answers so, or says nothing."""
    taken: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            taken.append(connection)
            if answer is not None:
                connection.sendall(answer)

    with socket.create_server(("0.0.0.0", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for connection in taken:
            connection.close()


@needs_ray
@pytest.mark.parametrize("there", ["nobody", "somebody who says nothing", "another server"])
def test_no_ray_answers(there: str, tmp_path: Path, wire: Wire, forks: Zygote, s3: object) -> None:
    """A cluster that does not answer is not waited for as Ray would, for more than a minute: 75."""
    wire.reset()
    world = Hurried(tmp_path, wire, forks, variables=dict(s3.environment))  # type: ignore[attr-defined]
    world.table(["a text"])
    with listening(b"SSH-2.0-x\r\n" if there == "another server" else None) as port:
        address = f"127.0.0.1:{9 if there == 'nobody' else port}"
        flags = ("-o", s3.new(), "--engine", "ray", "--ray-address", address)  # type: ignore[attr-defined]
        ended = world.run("batch", "run", "in.parquet", "-m", "openai:text-embedding-3-small", "--no-progress", *flags)

    check_nothing(world, ended, 75)
    assert f"no Ray cluster answers at {address}" in ended.err


class Hurried(World):
    """Whose commands wait a second for a cluster."""

    @property
    def constants(self) -> dict[str, object]:
        return {**super().constants, **HURRY}


@needs_ray
@pytest.mark.parametrize("installed", ["another version", "nothing"])
def test_embedctl_on_a_machine_of_the_cluster(installed: str, tmp_path: Path) -> None:
    """A worker's machine that has no embedctl, or another one, says so in plain values: what Ray carries there is
    code that needs neither.
    """
    from ray import cloudpickle

    from embedctl.engines.ray_cluster import _task

    if installed == "another version":
        (tmp_path / "embedctl").mkdir()
        (tmp_path / "embedctl/__init__.py").write_text("__version__ = '0.0.1'\n")
    else:
        (tmp_path / "embedctl.py").write_text("raise ImportError('no such module')\n")
    (tmp_path / "task").write_bytes(cloudpickle.dumps(_task()))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pickle, ray.cloudpickle\n"
        "print(pickle.load(open(sys.argv[1] + '/task', 'rb'))('9.9.9', 0, b'', None, None)['unfit'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )

    assert ran.returncode == 0, ran.stderr
    wanted = "has embedctl 0.0.1, not 9.9.9" if installed == "another version" else "no such module"
    assert wanted in ran.stdout
    assert sys.executable in ran.stdout
