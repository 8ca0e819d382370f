"""A worker process, as a process: what it does beside its job."""

from __future__ import annotations

import subprocess
import sys

from embedctl.errors import HostLost

WITHOUT_A_COMMAND = """
import gc, runpy, socket, sys
ours, theirs = socket.socketpair()
theirs.close()
sys.argv = ["worker", str(ours.detach())]
try:
    runpy.run_module("embedctl.engines.process_worker", run_name="__main__")
except SystemExit as end:
    print(end.code, *gc.get_threshold(), gc.get_freeze_count() > 0)
"""


def test_it_collects_as_a_command_does() -> None:
    """It looks for garbage as seldom as a command, and not at its end; without a command it ends with 75."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT_A_COMMAND], capture_output=True, text=True)

    assert ended.stdout.split() == [str(HostLost.exit_code), "100000", "20", "100", "True"], ended.stderr
