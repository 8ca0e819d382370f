"""A browser that is driven: Chromium over its debugging pipe, as somebody at a page of a running server sees it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.support.browser import CHROMIUM

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars",
          "--disable-background-networking", "--disable-component-update", "--disable-quic",
          "--remote-debugging-pipe")  # fmt: skip


@dataclass
class Tab:
    """One tab.

    Attributes:
        console: What scripts, the policy and failed requests have caused: errors and warnings.
        asked: Every address that was asked for, in order.
    """

    to_browser: IO[bytes]
    from_browser: IO[bytes]
    session: str = ""
    console: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0

    def call(self, method: str, **params: Any) -> Any:
        """A command, and its answer; what is told meanwhile is kept."""
        self._number += 1
        sent = {"id": self._number, "method": method, "params": params}
        if self.session:
            sent["sessionId"] = self.session
        self.to_browser.write(json.dumps(sent).encode() + b"\0")
        self.to_browser.flush()
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told["error"]
                return told["result"]

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.from_browser.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        told: dict[str, Any] = json.loads(message)
        if told.get("sessionId", "") == self.session:
            self._keep(told.get("method", ""), told.get("params", {}))
        return told

    def _keep(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.console.append(str([one.get("value", one.get("description")) for one in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"])

    def renew(self) -> None:
        """Be another tab, with nothing of the one before."""
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.look()
        self.console, self.asked = [], []

    def run(self, script: str) -> Any:
        """What an expression comes to; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def until(self, condition: str, *, seconds: float = 120) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.console, self.run("document.body.innerText.slice(0, 2000)"))
            time.sleep(0.05)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """Be a screen of this kind."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """The whole page, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])
        )


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own."""
    reads, ours_out = os.pipe()
    ours_in, writes = os.pipe()
    reads, writes = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (reads, writes))

    def as_it_expects() -> None:
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    process = subprocess.Popen(
        [str(CHROMIUM), *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        preexec_fn=as_it_expects, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(reads)
    os.close(writes)
    with os.fdopen(ours_out, "wb") as to_browser, os.fdopen(ours_in, "rb") as from_browser:
        try:
            found = Tab(to_browser, from_browser)
            found.renew()
            yield found
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
