"""A clean machine for every test: no keys, no proxies, no settings, state in a folder of its own, no other host."""

from __future__ import annotations

import gc
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from embedctl.cli import _progress
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.processes import Zygote, zygote
from tests.support.stores import HAS_AZURITE, StoreServer, azure_server, gcs_server, s3_server
from tests.support.wire.client import Wire, started

if TYPE_CHECKING:
    from tests.support.store_world import StoreWorld

# No test may time anything: hypothesis fails examples that take 0.2 s, or long to make, unless told not to.
# Other examples each time: what few of them find, many runs find.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
settings.register_profile("long", settings.get_profile("untimed"), max_examples=400)
settings.load_profile("untimed")

_KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "SSL_CERT_FILE",
    "VIRTUAL_ENV",
    "COVERAGE_PROCESS_START",
    "OPENBLAS_NUM_THREADS",
)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing of the machine's user is seen: `EMBEDCTL_HOME` and `HOME` are empty folders."""
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith(("PYTEST", "HYPOTHESIS")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("EMBEDCTL_HOME", str(home / "embedctl"))
    monkeypatch.setenv("EMBEDCTL_CANARY", "off")  # tests count requests; those about canaries ask for them
    yield home / "embedctl"
    shutil.rmtree(home, ignore_errors=True)  # thousands of them fill a disk


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy a machine is changes nothing of what a command says."""
    monkeypatch.setattr(_progress, "FIRST_LINE_S", 3600.0)


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address!r}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` runs the tests that take minutes, and tries more examples."""
    parser.addoption("--long", action="store_true", help="run the long tests too")


def pytest_configure(config: pytest.Config) -> None:
    """`--long` tries ten times as many examples. No process of a test has threads of numpy's that wait by turning."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if config.getoption("--long"):
        settings.load_profile("long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long tests out unless asked."""
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long: run with --long"))


def pytest_collection_finish() -> None:
    """What stays until the end is no garbage: thousands of tests are looked through once, not at every collection."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have counted, behind their results; also those that ran in other processes."""
    passed = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    told = [(report.nodeid, value) for report in passed for name, value in report.user_properties if name == "counted"]
    if told:
        terminalreporter.section("counted")
    for nodeid, value in told:
        terminalreporter.write_line(f"{nodeid.rpartition('::')[2]}: {value}")


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Keeps what a test has counted for the summary, in words: what is no word cannot come from another process."""
    return lambda count: record_property("counted", str(count))


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """The wire server, in its own process."""
    with started() as server:
        yield server


@pytest.fixture(scope="session")
def forks() -> Iterator[Zygote]:
    """Real processes of embedctl without the price of their imports."""
    with zygote() as process:
        yield process


@pytest.fixture(scope="session")
def s3() -> Iterator[StoreServer]:
    """A real S3 interface, by moto, with a bucket."""
    pytest.importorskip("moto", reason="moto is not installed (extra `dev`)")
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[StoreServer]:
    """Google Cloud Storage's, by a stub, with a bucket."""
    with gcs_server() as server:
        yield server


@pytest.fixture(scope="session")
def azure() -> Iterator[StoreServer]:
    """Azure Blob Storage's, by azurite, with a container."""
    if not HAS_AZURITE:
        pytest.skip("azurite is not installed: npm ci --prefix .ci/node")
    with azure_server() as server:
        yield server


@pytest.fixture(scope="session")
def overwriting() -> Iterator[StoreServer]:
    """A store that takes the condition of a put and overwrites all the same."""
    with gcs_server(overwrites=True) as server:
        yield server


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for every few rows."""
    from embedctl.planning import slice as slices

    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


@pytest.fixture
def store_world(tmp_path: Path, wire: Wire) -> StoreWorld:
    """A provider that has been asked nothing, and a folder as a store."""
    from tests.support.store_world import StoreWorld

    wire.reset()
    return StoreWorld(tmp_path, wire)


@pytest.fixture
def faulty_s3(s3: StoreServer) -> Iterator[tuple[StoreServer, FaultProxy]]:
    """The same S3, behind a proxy that does to puts what a test says."""
    with fault_proxy(s3.port) as proxy:
        yield s3.behind(proxy.port), proxy
