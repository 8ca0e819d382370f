"""docs/deploy: each file is valid, says the same as the others, and what it promises of the service holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from embedctl.server.openapi import OPERATIONS
from embedctl.settings import ServeSettings
from tests.support import places
from tests.support.running import embedctl
from tests.support.serving import until

DEPLOY = places.ROOT / "docs" / "deploy"
COMPOSE = places.REFERENCE / "compose-spec.json"
"""Source: github.com/compose-spec/compose-spec, schema/compose-spec.json (Apache-2.0), of 2026-06-23."""

USER = 10001
HOME = "/var/lib/embedctl"
_OPEN = {one.path for one in OPERATIONS if one.who == "anybody"}


def read(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


def image() -> dict[str, list[str]]:
    """Instruction → its arguments, of the last stage of the Containerfile."""
    lines = read("Containerfile").replace("\\\n", " ").splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("FROM"))
    found: dict[str, list[str]] = {}
    for line in lines[last:]:
        if line and not line.startswith("#"):
            found.setdefault(line.split()[0], []).append(line.split(maxsplit=1)[1])
    return found


def manifests() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(read("kubernetes.yaml"))}


def test_the_image_is_nobody_s_and_keeps_one_folder() -> None:
    """A number for a user, one volume, no secret, the signal that drains; versions are those that CI tests with."""
    found = image()
    environment = dict(pair.split("=", 1) for line in found["ENV"] for pair in line.split())

    assert found["USER"] == [f"{USER}:{USER}"]
    assert json.loads(found["VOLUME"][0]) == [HOME]
    assert environment["EMBEDCTL_HOME"] == environment["HOME"] == HOME
    assert found["STOPSIGNAL"] == ["SIGTERM"]
    assert json.loads(found["CMD"][0])[:3] == ["serve", "--host", "0.0.0.0"]
    assert not re.search(r"(?i)(_key|secret|token)=", read("Containerfile"))
    bounds = subprocess.run(
        ["sed", "-e", r"s/ \\$//", "-e", "/--hash=/d", places.ROOT / ".ci" / "requirements.txt"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(re.match(r"[\w.-]+==[^\s\\]+( ; .*)?$", line) for line in bounds.splitlines())


def test_the_compose_file_is_one() -> None:
    """It is valid by the specification's schema; Redis is on the host's port 6380; both are on loopback, read-only."""
    found = yaml.safe_load(read("compose.yaml"))
    Draft7Validator(json.loads(COMPOSE.read_text("utf-8"))).validate(found)
    gateway, redis = found["services"]["gateway"], found["services"]["redis"]

    assert redis["ports"] == ["127.0.0.1:6380:6379"]
    assert gateway["ports"] == ["127.0.0.1:8000:8000"]
    assert gateway["volumes"] == [f"state:{HOME}"]
    assert (DEPLOY / gateway["build"]["context"] / gateway["build"]["dockerfile"]).samefile(DEPLOY / "Containerfile")
    for service in (gateway, redis):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    serve = ServeSettings()
    assert int(gateway["stop_grace_period"].removesuffix("s")) > serve.grace_s + serve.drain_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_unit_is_one(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say of it, and finds little that it could do beside its work."""
    program = Path(sys.executable).parent / "embedctl"
    unit = tmp_path / "embedctl.service"
    unit.write_text(read("embedctl.service").replace("/opt/embedctl/bin/embedctl", str(program)))
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", unit], capture_output=True, text=True
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert exposed.returncode == 0, exposed.stdout[-500:]


def test_the_unit_gives_it_time_and_one_folder() -> None:
    """It is given the time that it drains in, ends well with 143, and writes nowhere but into its own folder."""
    settings = dict(
        line.split("=", 1) for line in read("embedctl.service").splitlines() if "=" in line and line[0] != "#"
    )
    serve = ServeSettings()

    assert int(settings["TimeoutStopSec"]) > serve.grace_s + serve.drain_s
    assert settings["SuccessExitStatus"] == "143"
    assert "78" in settings["RestartPreventExitStatus"].split()
    assert settings["ProtectSystem"] == "strict"
    assert (settings["StateDirectory"], settings["StateDirectoryMode"]) == ("embedctl", "0700")
    assert f"EMBEDCTL_HOME={HOME}" in settings["Environment"]
    assert "ReadWritePaths" not in settings


def test_the_manifest_is_valid() -> None:
    """Each object is valid by the schema of its kind."""
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (100 MB)")
    for one in yaml.safe_load_all(read("kubernetes.yaml")):
        kubernetes.validate(one, kubernetes.latest_version(), strict=True)


def test_the_manifest_promises_what_the_image_does() -> None:
    """One server without root on a read-only root; probes are paths that need no key; it is given time to drain."""
    found = manifests()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    serve = tomllib.loads(found["ConfigMap"]["data"]["config.toml"])["serve"]

    assert (found["Deployment"]["spec"]["replicas"], found["Deployment"]["spec"]["strategy"]["type"]) == (1, "Recreate")
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, USER)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")} <= _OPEN
    assert mounts["state"] == HOME
    assert pod["terminationGracePeriodSeconds"] > serve["grace_s"] + serve["drain_s"]
    assert set(found["Secret"]["stringData"].values()) == {""}


def test_the_job_is_valid() -> None:
    """The indexed Job is valid by its schema."""
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (100 MB)")
    for one in yaml.safe_load_all(read("kubernetes-job.yaml")):
        kubernetes.validate(one, kubernetes.latest_version(), strict=True)


def test_the_job_s_pods_are_its_shares() -> None:
    """As many shares as pods, all at once, as nobody on a read-only root; its command is one, and holds no key."""
    secret, job = yaml.safe_load_all(read("kubernetes-job.yaml"))
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]

    assert (spec["completionMode"], spec["parallelism"]) == ("Indexed", spec["completions"])
    assert f"--shard=auto/{spec['completions']}" in container["args"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, USER)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {one["mountPath"] for one in container["volumeMounts"]} == {HOME, "/tmp"}
    assert set(secret["stringData"].values()) == {""}
    assert flags_of(container["args"]) <= known_flags()


def test_the_array_is_a_script() -> None:
    """Bash takes it, it does not wait, and its flags are those of the command."""
    assert subprocess.run(["bash", "-n", DEPLOY / "slurm-array.sh"], capture_output=True).returncode == 0
    script = read("slurm-array.sh")
    command = re.findall(r"^srun embedctl (.*?)$", script.replace("\\\n", " "), re.MULTILINE)[0].split()

    assert {"--shard", "auto", "--no-wait"} <= set(command)
    assert flags_of(command) <= known_flags()


def test_the_tasks_of_airflow_compile() -> None:
    """Python takes the file, and its flags are those of the command."""
    source = read("airflow_embed.py")
    compile(source, "airflow_embed.py", "exec")

    assert flags_of(re.findall(r"--[a-z-]+", source)) <= known_flags()


def flags_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def known_flags() -> set[str]:
    return set(re.findall(r"--[a-z-]+", embedctl("batch", "run", "--help").out))


def _can_be_contained() -> bool:
    if os.getuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that another user reaches: pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="embedctl-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(not _can_be_contained(), reason="only root can make a read-only root to run on")
@pytest.mark.parametrize("mode", [0o700, 0o2775])
def test_it_serves_on_a_read_only_root_as_nobody(reachable: Path, mode: int) -> None:
    """With the image's user and environment, no capability and one folder to write to, it serves, accounts and drains.

    That folder is the user's own, as in the image, or one that a group may write to, as Kubernetes mounts a claim; the
    settings are then root's.
    """
    state, settings = reachable / "state", reachable / "config.toml"
    state.mkdir()
    settings.write_text("[serve]\ngrace_s = 0\n")
    if mode == 0o700:
        os.chown(state, USER, USER)
        home = state
    else:
        os.chown(state, 0, USER)
        home = state / "home"
    state.chmod(mode)
    inside = (
        f"mount --make-rprivate / && mount --bind {state} {state} && mount -o remount,bind,ro / && "
        f"exec setpriv --reuid {USER} --regid {USER} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs "
        f'"$@"'
    )
    program = ["unshare", "-m", "sh", "-ec", inside, "sh", sys.executable, "-m", "embedctl"]
    env = {
        "PATH": os.environ["PATH"], "HOME": HOME, "EMBEDCTL_HOME": str(home), "EMBEDCTL_CONFIG": str(settings),
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(places.ROOT), "SINGLE_USER_API_KEY": "one key of one user",
    }  # fmt: skip
    with (reachable / "log").open("wb") as log:
        server = subprocess.Popen(
            [*program, "serve", "--host", "0.0.0.0", "--port", "0"],
            cwd="/",
            env=env,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert server.stdout is not None
    try:
        line = server.stdout.readline().decode()
        assert line.startswith("listening on http"), (reachable / "log").read_text()
        base = f"http://127.0.0.1:{line.strip().rpartition(':')[2]}"

        def ask(path: str, body: Any = None, key: str = "one key of one user") -> Any:
            request = urllib.request.Request(base + path, None if body is None else json.dumps(body).encode())
            request.add_header("X-API-KEY", key)
            request.add_header("Content-Type", "application/json")
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.loads(answer.read())

        vectors = ask("/v1/embeddings", {"input": "a text", "model": "all-MiniLM-L6-v2"})
        assert len(vectors["data"][0]["embedding"]) == 384
        until(lambda: ask("/api/v1/embeddings/usage")["totals"]["calls"] == 1)
        with pytest.raises(urllib.error.HTTPError):
            ask("/v1/models", key="another one")
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{USER}\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 143
        assert {one.name for one in home.iterdir()} >= {"usage.duckdb", "spool"}
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        server.stdout.close()
