"""Compare embedctl with what a user would pick instead, side by side in one run.

    python benchmarks/run.py [--rows 20000 100000] [--rounds 3] [--latency 0 200] [--float] [--again]
                             [--local TEXTS] [--start-up]

Peers live in an environment of their own, made on first use in benchmarks/.peers; the mock server is built from
benchmarks/server with cargo. Reported: CPU seconds of the whole process tree (user + system), peak RSS of its
largest process, wall time, and CPU against the raw aiohttp loop of the same round. Medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
PACKAGES = "aiohttp httpx openai langchain-openai orjson pybase64 pysimdjson msgspec numpy pyarrow".split()  # noqa: SIM905
PORT = 18_099
INSTALLED = {"PYTHONDONTWRITEBYTECODE": ""}  # modules are compiled once, as they are for who installed them


@dataclass(frozen=True)
class Measured:
    """One process tree from start to end."""

    cpu_s: float
    wall_s: float
    rss_mb: float


def measured(words: list[str], **environment: str) -> Measured:
    """Run a command and count its CPU, that of its children included; it must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        words, env={**os.environ, **INSTALLED, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{said.decode()[-2000:]}")
    return Measured(used.ru_utime + used.ru_stime, time.perf_counter() - started, used.ru_maxrss / 1024)


def peer_python() -> str:
    """The peers' interpreter; its environment is made when it is not there."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


def serve(built: Path | None = None) -> subprocess.Popen[bytes]:
    """The mock server, built when needed; ends with this process."""
    if built is None:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=HERE / "server", check=True)
        built = HERE / "server/target/release/mockemb"
    server = subprocess.Popen([built, str(PORT), "0", "1536"], stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            configure(latency_ms=0)
        except OSError:
            time.sleep(0.05)
        else:
            return server
    raise SystemExit("the mock server does not answer")


def configure(**settings: int) -> None:
    """Set the server's latency."""
    query = "&".join(f"{name}={value}" for name, value in settings.items())
    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/config?{query}").read()


def contestants(work: Path, corpus: Path, *, floats: bool) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name → command and environment; each writes its output below `work`."""
    base = f"http://127.0.0.1:{PORT}/v1"
    python, form = peer_python(), "float" if floats else "base64"
    embedctl = [sys.executable, "-m", "embedctl", "batch", "run", str(corpus), "-o", str(work / "out"), "-q"]
    settings = work / "config.toml"
    settings.write_text(
        f'[providers.mock]\nprotocol = "openai"\nbase_url = "{base}"\nprice_as = "openai"\n'
        + ("options = { encoding_format = false }\n" if floats else "")
    )
    embedctl += ["-m", "mock:text-embedding-3-small", "--config", str(settings)]
    raw = [str(HERE / "peers/raw_loop.py")]
    target = str(work / "peer.parquet")
    found = {
        "raw aiohttp loop": ([python, *raw, "aiohttp", form, str(corpus), target, f"{base}/embeddings"], {}),
        "raw httpx loop": ([python, *raw, "httpx", form, str(corpus), target, f"{base}/embeddings"], {}),
        "embedctl": (embedctl, {"EMBEDCTL_HOME": str(work / "home")}),
    }
    if not floats:
        found["openai SDK, gather"] = ([python, str(HERE / "peers/openai_gather.py"), str(corpus), target, base], {})
        found["langchain-openai"] = ([python, str(HERE / "peers/langchain_embed.py"), str(corpus), target, base], {})
    return found


def over_http(rows: int, rounds: int, latency: int, *, floats: bool, without: list[str], again: bool) -> None:
    """One table: all contestants, interleaved, `rounds` times; with `again`, embedctl once more over what is there."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = work / "corpus.parquet"
        subprocess.run([peer_python(), HERE / "peers/corpus.py", str(rows), corpus], check=True)
        results: dict[str, list[Measured]] = {}
        configure(latency_ms=latency)
        found = contestants(work, corpus, floats=floats)
        for _ in range(rounds):
            shutil.rmtree(work / "out", ignore_errors=True)
            for name, (words, environment) in found.items():
                if name not in without:
                    results.setdefault(name, []).append(measured(words, **environment))
            if again:
                words, environment = found["embedctl"]
                results.setdefault("embedctl again, input untouched", []).append(measured(words, **environment))
                corpus.touch()
                results.setdefault("embedctl again, input touched", []).append(measured(words, **environment))
    show(f"{rows:,} rows x 1536, {'float' if floats else 'base64'}, latency {latency} ms", results, rows)


def show(title: str, results: dict[str, list[Measured]], rows: int) -> None:
    """A Markdown table of medians; ratios are medians of the rounds' own ratios."""
    base = results["raw aiohttp loop"] if "raw aiohttp loop" in results else next(iter(results.values()))
    print(f"\n### {title}\n\n| | CPU s | CPU s / 100k | x raw (CPU) | wall s | peak RSS MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, found in results.items():
        cpu = statistics.median(one.cpu_s for one in found)
        ratio = statistics.median(one.cpu_s / other.cpu_s for one, other in zip(found, base, strict=True))
        wall = statistics.median(one.wall_s for one in found)
        rss = max(one.rss_mb for one in found)
        print(f"| {name} | {cpu:.2f} | {cpu / rows * 100_000:.2f} | {ratio:.2f} | {wall:.1f} | {rss:.0f} |", flush=True)


def start_up(rounds: int) -> None:
    """CPU of commands that do next to nothing, the least of several."""
    print("\n### Start-up\n\n| command | CPU ms |\n|---|---:|")
    with tempfile.TemporaryDirectory() as home:
        text = Path(home) / "a.txt"
        text.write_text("one line\n")
        for shown, words in (
            ("--help", ["--help"]),
            ("embed --help", ["embed", "--help"]),
            ("usage report", ["usage", "report"]),
            ("embed a.txt -o - (first vector, local)", ["embed", str(text), "-o", "-"]),
        ):
            command = [sys.executable, "-m", "embedctl", *words]
            found = [measured(command, EMBEDCTL_HOME=home).cpu_s for _ in range(rounds * 2)]
            print(f"| embedctl {shown} | {min(found) * 1000:.0f} |", flush=True)


def locally(texts: int, rounds: int, python: str | None, openvino: str | None) -> None:
    """The bundled model against sentence-transformers and OpenVINO, of those for which an interpreter is named."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = " ".join((HERE.parent / "sample_data/handbook.md").read_text().split())
        words = source.split(" ")
        parts = [" ".join(words[(i * 37) % len(words) :][: 20 + (i * 13) % 100]) for i in range(texts)]
        (work / "texts.json").write_text(json.dumps(parts))
        commands = {
            "embedctl": [sys.executable, HERE / "peers/local_embedctl.py", work / "texts.json", work / "ours.npy"]
        }
        if python:
            model = os.environ["MINILM_FOLDER"]
            commands["sentence-transformers (torch, fp32)"] = [
                python, HERE / "peers/local_st.py", work / "texts.json", work / "theirs.npy", model,
            ]  # fmt: skip
            commands["fastembed (the bundled 8-bit file)"] = [
                python, HERE / "peers/local_fastembed.py", work / "texts.json", work / "fast.npy",
                HERE.parent / "embedctl/assets/minilm/model.onnx", model,
            ]  # fmt: skip
        if openvino:
            bundled = HERE.parent / "embedctl/assets/minilm"
            commands["OpenVINO (the bundled 8-bit file)"] = [
                openvino, HERE / "peers/local_openvino.py", work / "texts.json", work / "openvino.npy",
                bundled / "model.onnx", bundled / "tokenizer.json", "f32",
            ]  # fmt: skip
        results: dict[str, list[Measured]] = {}
        for _ in range(rounds):
            for name, words_ in commands.items():
                results.setdefault(name, []).append(measured([str(word) for word in words_]))
        print(f"\n### Local model, {texts} texts\n\n| | CPU s | texts per CPU s | wall s | peak RSS MB |")
        print("|---|---:|---:|---:|---:|")
        for name, found in results.items():
            cpu = statistics.median(one.cpu_s for one in found)
            wall = statistics.median(one.wall_s for one in found)
            print(
                f"| {name} | {cpu:.2f} | {texts / cpu:.0f} | {wall:.1f} | {max(o.rss_mb for o in found):.0f} |",
                flush=True,
            )
        check = (
            "import numpy as np,sys;a,b=np.load(sys.argv[1]),np.load(sys.argv[2]);c=(a*b).sum(1);"
            "print(f'cosine to {sys.argv[3]}: mean {c.mean():.5f}, least {c.min():.5f}')"
        )
        for file, name in (("theirs.npy", "sentence-transformers"), ("openvino.npy", "OpenVINO")):
            if (work / file).exists():
                subprocess.run([sys.executable, "-c", check, work / "ours.npy", work / file, name], check=True)


def main() -> None:
    """Read the flags, run what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[20_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=int, nargs="*", default=[0])
    parser.add_argument("--float", action="store_true", dest="floats")
    parser.add_argument("--again", action="store_true", help="the same run again, with nothing new")
    parser.add_argument("--without", nargs="*", default=[], help="contestants to leave out")
    parser.add_argument("--local", type=int, default=0, metavar="TEXTS")
    parser.add_argument(
        "--local-python", help="interpreter with torch and sentence-transformers; MINILM_FOLDER names the model"
    )
    parser.add_argument("--openvino-python", help="interpreter with openvino, tokenizers and numpy")
    parser.add_argument("--start-up", action="store_true")
    asked = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if asked.rows:
        server = serve()
        try:
            for rows in asked.rows:
                for latency in asked.latency:
                    more = {"floats": asked.floats, "without": asked.without, "again": asked.again}
                    over_http(rows, asked.rounds, latency, **more)
        finally:
            server.terminate()
    if asked.start_up:
        start_up(asked.rounds)
    if asked.local:
        locally(asked.local, asked.rounds, asked.local_python, asked.openvino_python)


if __name__ == "__main__":
    main()
