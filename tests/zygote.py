"""A process that has imported embedctl and forks a child per command: real processes, without the imports.

Reads one JSON object per line: `{"args": […], "cwd": …, "env": {…}, "out": path, "err": path}` starts a command and
answers its pid; `{"wait": pid}` answers its exit status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

from embedctl import slots


def main() -> None:
    from embedctl import cli
    from embedctl.cli import batch, embed, running  # noqa: F401 - what a command imports

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := os.fork()) == 0:
            become(order)
            code = 70
            try:
                cli.app(order["args"])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(answer, flush=True)


def become(order: dict) -> None:
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    os.dup2(os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    slots.SLOT_BYTES = order["slot_bytes"]
    sys.argv = ["embedctl", *order["args"]]


if __name__ == "__main__":
    main()
