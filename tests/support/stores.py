"""Object stores for tests: real servers on free ports of this machine, which end with the block."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from embedctl.storage.object_store import ObjectStore
from embedctl.storage.store_url import StoreUrl, parse

ROOT = Path(__file__).parents[2]
AZURITE = ROOT / ".ci/node/node_modules/azurite/dist/src/blob/main.js"
HAS_AZURITE = AZURITE.is_file() and shutil.which("node") is not None

# Azurite's own, the same everywhere and in its documentation.
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SECRET = "CANARY-store-secret"


@dataclass(frozen=True)
class StoreServer:
    """A running store.

    Attributes:
        root: "s3://bucket".
        port: Of 127.0.0.1.
        environment: Variables by which a process reaches it, as a user would set them.
        options: The same as obstore's options, for a store that is opened here.
    """

    root: str
    port: int
    environment: Mapping[str, str]
    options: Mapping[str, str]
    prefixes: Iterator[int] = field(default_factory=itertools.count)

    def new(self) -> str:
        """The address of a prefix that nothing is under yet."""
        return f"{self.root}/prefix-{next(self.prefixes)}"

    def open(self, url: str | StoreUrl | None = None, *, retries: int = 2) -> ObjectStore:
        """A prefix as a store: a new one by default."""
        place = parse(url or self.new()) if not isinstance(url, StoreUrl) else url
        return ObjectStore(place, self.options, retries=retries)

    def behind(self, port: int) -> StoreServer:
        """The same, reached through a proxy."""
        swap = {f"127.0.0.1:{self.port}": f"127.0.0.1:{port}"}

        def moved(values: Mapping[str, str]) -> dict[str, str]:
            return {key: value.replace(*next(iter(swap.items()))) for key, value in values.items()}

        return replace(self, environment=moved(self.environment), options=moved(self.options))


@contextmanager
def s3_server() -> Iterator[StoreServer]:
    """Amazon's S3, by moto, with one bucket."""
    with _printing("tests.support.moto_server") as port:
        make_bucket(port, "bucket")
        endpoint = f"http://127.0.0.1:{port}"
        yield StoreServer(
            "s3://bucket",
            port,
            {
                "AWS_ACCESS_KEY_ID": "CANARY-store-key", "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true",
            },
            {
                "endpoint": endpoint, "region": "us-east-1", "access_key_id": "CANARY-store-key",
                "secret_access_key": SECRET,
            },
        )  # fmt: skip


def make_bucket(port: int, name: str) -> None:
    """A bucket of moto's."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/{name}", method="PUT")
    urllib.request.urlopen(asked, timeout=120).close()


@contextmanager
def gcs_server(*, overwrites: bool = False) -> Iterator[StoreServer]:
    """Google's, by a stub; one that overwrites is the store that must be refused."""
    with _printing("tests.support.gcs_stub", *(["--overwrites"] if overwrites else [])) as port:
        account = json.dumps(
            {"gcs_base_url": f"http://127.0.0.1:{port}", "disable_oauth": True, "client_email": "", "private_key": "",
             "private_key_id": ""}
        )  # fmt: skip
        environment = {"GOOGLE_SERVICE_ACCOUNT_KEY": account, "GOOGLE_ALLOW_HTTP": "true"}
        yield StoreServer("gs://bucket", port, environment, {"service_account_key": account, "allow_http": "true"})


@contextmanager
def azure_server() -> Iterator[StoreServer]:
    """Azure's, by azurite, with one container."""
    port = _free_port()
    command = ["node", str(AZURITE), "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    process = subprocess.Popen(
        [*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(port, process)
        endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
        options = {
            "account_name": "devstoreaccount1", "account_key": _AZURITE_KEY, "endpoint": endpoint, "allow_http": "true"
        }  # fmt: skip
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1", "AZURE_STORAGE_ACCOUNT_KEY": _AZURITE_KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint, "AZURE_ALLOW_HTTP": "true",
        }  # fmt: skip
        _make_container(options)
        yield StoreServer("az://container", port, environment, options)
    finally:
        _end(process)


def _make_container(options: Mapping[str, str]) -> None:
    """Obstore makes none."""
    import base64
    import email.utils
    import hashlib
    import hmac

    now = email.utils.formatdate(usegmt=True)
    version = "2023-11-03"
    text = (
        "PUT\n\n\n\n\n\n\n\n\n\n\n\n"
        f"x-ms-date:{now}\nx-ms-version:{version}\n/devstoreaccount1/devstoreaccount1/container\nrestype:container"
    )
    mac = hmac.new(base64.b64decode(options["account_key"]), text.encode(), hashlib.sha256).digest()
    asked = urllib.request.Request(
        f"{options['endpoint']}/container?restype=container",
        method="PUT",
        headers={
            "x-ms-date": now, "x-ms-version": version,
            "Authorization": f"SharedKey devstoreaccount1:{base64.b64encode(mac).decode()}",
        },
    )  # fmt: skip
    urllib.request.urlopen(asked, timeout=120).close()


@contextmanager
def _printing(module: str, *arguments: str) -> Iterator[int]:
    """The port that a server prints; it ends when its stdin does."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        _end(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the server ended"
        with suppress(urllib.error.HTTPError, OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.05)


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(60)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
