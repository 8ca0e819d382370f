"""The tables protocol × promise: `python -m tests.contract.providers.conformance` runs both suites and prints them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

from tests.contract.providers.batching import CASES as BATCH_CASES
from tests.contract.providers.test_contract import CASES

Cells = dict[str, dict[str, list[bool]]]


def table(report: Path, protocols: Collection[str] = CASES) -> str:
    """Markdown: one row per promise, one column per protocol; a cell counts its checks, or says that one failed."""
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for case in ElementTree.parse(report).iter("testcase"):
        promise, _, told = case.attrib["name"].partition("[")
        protocol = _protocol(told.removesuffix("]"), protocols)
        if protocol:
            cells[promise][protocol].append(not list(case))
    lines = ["| promise | " + " | ".join(protocols) + " |", "|---" * (len(protocols) + 1) + "|"]
    for promise, row in cells.items():
        words = promise.removeprefix("test_").replace("_", " ")
        lines.append(f"| {words} | " + " | ".join(_cell(row.get(name, [])) for name in protocols) + " |")
    return "\n".join(lines)


def _protocol(told: str, protocols: Collection[str]) -> str | None:
    """The protocol among a test's parameters; the longest name wins, bedrock-cohere before cohere."""
    named = [name for name in protocols if re.search(rf"(?:^|-){re.escape(name)}(?:-|$)", told)]
    return max(named, key=len, default=None)


def _cell(checks: list[bool]) -> str:
    if not checks:
        return "·"
    return str(len(checks)) if all(checks) else f"**{checks.count(False)} of {len(checks)} fail**"


def main(suite: str = str(Path(__file__).with_name("test_contract.py")), protocols: Collection[str] = CASES) -> int:
    """Run a suite, print its table; 0 when every cell holds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", suite, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
        print(table(report, protocols))
    print("\n" + ended.stdout.strip().splitlines()[-1])
    return ended.returncode


if __name__ == "__main__":
    batches = str(Path(__file__).with_name("test_batch_contract.py"))
    raise SystemExit(max(main(), main(batches, BATCH_CASES)))
