"""Step 1, a file's bytes, wherever they are: on this machine, or in a store."""

from __future__ import annotations

import os
from typing import BinaryIO, cast

import pyarrow as pa

from embedctl.inputs.block import InputFile
from embedctl.storage.store_file import READ_AHEAD, StoreFile, ViewedFile


def opened(file: InputFile, *, ahead: int = READ_AHEAD) -> BinaryIO:
    """A file's bytes, unbuffered.

    Args:
        ahead: Bytes that are fetched at least from a store; 0 where the reader buffers by itself.

    Raises:
        OSError: A file of this machine cannot be opened.
    """
    if file.stored is None:
        return cast("BinaryIO", file.path.open("rb", buffering=0))
    one = file.stored
    return cast("BinaryIO", StoreFile(one.store, one.name, one.size, one.etag, url=one.url, ahead=ahead))


def arrow_file(file: InputFile, *, ahead: int = READ_AHEAD) -> pa.NativeFile:
    """As `opened`, for Arrow."""
    if file.stored is None:
        return pa.OSFile(os.fsencode(file.path))  # text might be taken for a URI, and must be UTF-8
    one = file.stored
    return pa.PythonFile(ViewedFile(one.store, one.name, one.size, one.etag, url=one.url, ahead=ahead), "r")
