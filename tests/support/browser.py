"""Pages in a real browser: what it makes of them, and what it complains about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
MISSING = "chromium is not installed here: apt-get install chromium"
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
          "--hide-scrollbars", "--virtual-time-budget=6000")  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A page as the browser has it.

    Attributes:
        dom: Its HTML after its scripts ran.
        console: Lines that its scripts or its policy caused.
        told: What the probe returned.
    """

    dom: str
    console: list[str]
    told: Any


def look(page: Path, folder: Path, *, probe: str | None = None, width: int = 1200, dark: bool = False) -> Seen:
    """Open a page; `probe` is the body of an async function whose JSON comes back.

    With a probe the page stands without its policy, which would not let a foreign script in.
    """
    if probe is not None:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
        script = (
            "<script>addEventListener('load', () => setTimeout(async () => { const told = await (async () => {"
            f"{probe}}})().catch(error => String(error.stack)); const place = document.createElement('pre');"
            "place.id = 'told'; place.textContent = JSON.stringify(told); document.body.append(place); }, 300))"
            "</script>"
        )
        page = folder / "probe.html"
        page.write_text(text.replace("</body>", f"{script}</body>"), "utf-8")
    command = [str(CHROMIUM), *_QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*command, "--dump-dom", page.absolute().as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    return Seen(
        dom=done.stdout,
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        told=json.loads(unescape(told[1])) if told else None,
    )
