"""What refusals and errors cost, over real sockets: embedctl, the openai SDK and a loop with fixed backoff.

    python benchmarks/goodput.py [--requests 400] [--latency 100] [--server PATH] [--python PATH] [--only embedctl]

All send the same number of requests of ten texts, sixteen at once. Reported: wall time as a ratio to the same
contestant's run without trouble, and requests that were never answered. A run ends after 25 s, and counts as that.
The SDK comes with embedctl's `sdks` extra, or with the interpreter that --python names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
PORT = 18_098
LONGEST_S = 25.0
QUIET = {"refuse_pct": 0, "error_pct": 0, "retry_after_ms": 0, "per_second": 0, "refuse_ms": 0}
TROUBLES = {
    "no trouble": {},
    "10 % 429, 50 ms": {"refuse_pct": 10, "retry_after_ms": 50},
    "10 % 429, no hint": {"refuse_pct": 10},
    "first 3 s refused": {"refuse_ms": 3000},
    "40 requests/s": {"per_second": 40},
    "40 requests/s, 25 ms": {"per_second": 40, "retry_after_ms": 25},
    "10 % 500": {"error_pct": 10},
}


def configure(**settings: int) -> None:
    query = "&".join(f"{name}={value}" for name, value in settings.items())
    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/config?{query}").read()


def serve(binary: Path | None) -> subprocess.Popen[bytes]:
    """The mock server, built when needed; ends with this process."""
    if binary is None:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=HERE / "server", check=True)
        binary = HERE / "server/target/release/mockemb"
    server = subprocess.Popen([binary, str(PORT), "0", "256"], stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            configure(latency_ms=0)
        except OSError:
            time.sleep(0.05)
        else:
            return server
    raise SystemExit("the mock server does not answer")


def contestants(work: Path, corpus: Path, requests: int, python: str) -> dict[str, list[str]]:
    """Name → command."""
    base = f"http://127.0.0.1:{PORT}/v1"
    settings = work / "config.toml"
    settings.write_text(f'[providers.mock]\nprotocol = "openai"\nbase_url = "{base}"\nprice_as = "openai"\n')
    loop = [python, str(HERE / "peers/goodput_loop.py")]
    embedctl = [sys.executable, "-m", "embedctl", "batch", "run", str(corpus), "-o", str(work / "out"), "-q", "--json"]
    return {
        "embedctl": [
            *embedctl,
            *("-m", "mock:text-embedding-3-small", "--dimensions", "256", "--force"),
            *("--batch-size", "10", "--overwrite", "--no-reuse", "--config", str(settings)),
        ],
        "openai SDK": [*loop, "openai", base, str(requests)],
        "fixed backoff": [*loop, "fixed", base, str(requests)],
    }


def run(words: list[str], home: Path) -> tuple[float, int | None]:
    """(seconds, requests that were never answered); None: it did not end in time."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "EMBEDCTL_HOME": str(home)},
            capture_output=True,
            timeout=LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return LONGEST_S, None
    took = time.perf_counter() - started
    if "embedctl" in words:
        if done.returncode:
            raise SystemExit(done.stdout.decode()[-500:] + done.stderr.decode()[-500:])
        receipt = json.loads(done.stdout)
        return took, (receipt["rows"] - receipt["vectors"]) // 10
    if done.returncode:
        raise SystemExit(done.stderr.decode()[-500:])
    return took, int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--latency", type=int, default=100, help="milliseconds")
    parser.add_argument("--server", type=Path, help="the mock server, built")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the openai SDK")
    parser.add_argument("--only", nargs="*", help="contestants")
    asked = parser.parse_args()
    has_sdk = subprocess.run([asked.python, "-c", "import openai, httpx"], stderr=subprocess.DEVNULL).returncode == 0
    if not has_sdk:
        print("no openai SDK here (embedctl's `sdks` extra, or --python): embedctl alone", file=sys.stderr)
    server = serve(asked.server)
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            corpus = work / "corpus.txt"
            corpus.write_text("".join(f"text number {index} of this run\n" for index in range(10 * asked.requests)))
            words = contestants(work, corpus, asked.requests, asked.python)
            words["embedctl"] += ["--split", "lines"]
            names = [name for name in words if (has_sdk or name == "embedctl") and name in (asked.only or words)]
            quiet: dict[str, float] = {}
            print(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
            for trouble, settings in TROUBLES.items():
                cells = []
                for name in names:
                    configure(latency_ms=asked.latency, **{**QUIET, **settings})
                    seconds, lost = run(words[name], work / f"home-{len(cells)}-{trouble.replace(' ', '')}")
                    quiet.setdefault(name, seconds)
                    missing = " (not done)" if lost is None else f" ({lost} lost)" if lost else ""
                    cells.append(f"{seconds:.1f} s, {seconds / quiet[name]:.2f}x{missing}")
                print(f"| {trouble} | {' | '.join(cells)} |", flush=True)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
