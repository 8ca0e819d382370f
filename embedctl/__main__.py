"""`python -m embedctl`, and the `embedctl` command."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # `-m` puts the current folder there: what lies in it is not to be run

import os
import signal
from collections.abc import MutableMapping
from types import FrameType

# fmt: off
LIBRARY_PATHS = (
    "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HF_TOKEN_PATH",
    "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR",
    "MATPLOTLIBRC", "MPLCONFIGDIR",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC", "OPENSSL_CONF", "SSLKEYLOGFILE",
)
# fmt: on
"""Variables by which libraries find their caches, certificates, tokens and settings."""


def main() -> None:
    """The command line; Ctrl-C ends it quietly, also while it is still being imported."""
    drop_relative_paths(os.environ)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from embedctl import cli

        cli.main()
    except KeyboardInterrupt:
        _end()


def drop_relative_paths(environment: MutableMapping[str, str]) -> None:
    """Remove those of LIBRARY_PATHS that are relative: in a stranger's folder they would name a stranger's files.

    Such a value is of no use in any other folder, and the XDG ones must be ignored then by their own rules.
    """
    for name in LIBRARY_PATHS:
        if not environment.get(name, "/").startswith(("/", "~")):
            del environment[name]


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
