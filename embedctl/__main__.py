"""`python -m embedctl`, and the `embedctl` command."""

import signal
from types import FrameType


def main() -> None:
    """The command line; Ctrl-C ends it quietly, also while it is still being imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from embedctl import cli

        cli.main()
    except KeyboardInterrupt:
        _end()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt; in the middle of an import the end: what is written in C++ would abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> None:
    """Die by the signal, as a shell expects: 130."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
