"""A local model's weights lie in its folder: what a graph names elsewhere is not read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from embedctl.backends.onnx import folders, local_model
from embedctl.errors import ConfigurationInvalid
from embedctl.tokens import ASSETS

WEIGHTS = b"sixteen bytes, 4"


def number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def message(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    assert len(content) < 128 * 128
    size = [len(content)] if len(content) < 128 else [len(content) & 127 | 128, len(content) >> 7]
    return bytes([field << 3 | 2, *size]) + content


def graph(location: str) -> bytes:
    """An ONNX model that gives out four numbers, which lie in another file. Source: onnx.proto3 of ONNX 1.16."""
    facts = {"location": location, "offset": "0", "length": "16"}
    external = b"".join(message(13, message(1, key) + message(2, value)) for key, value in facts.items())
    tensor = number(1, 4) + number(2, 1) + message(8, "w") + external + number(14, 1)
    node = message(1, "w") + message(2, "y") + message(4, "Identity")
    shape = message(1, number(1, 1) + message(2, message(1, number(1, 4))))
    body = message(1, node) + message(2, "g") + message(5, tensor) + message(12, message(1, "y") + message(2, shape))
    return number(1, 8) + message(7, body) + message(8, message(1, "") + number(2, 13))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, two below somebody's secret."""
    (tmp_path / "secret.bin").write_bytes(WEIGHTS)
    place = tmp_path / "models" / "mine"
    place.mkdir(parents=True)
    (place / "inside.bin").write_bytes(WEIGHTS)
    (place / "link.bin").symlink_to("../../secret.bin")
    shutil.copy(ASSETS / "minilm" / "tokenizer.json", place)
    return place


def test_weights_beside_the_model_are_read(folder: Path) -> None:
    """A model whose weights lie in a second file of its folder is loaded."""
    (folder / "model.onnx").write_bytes(graph("inside.bin"))

    local_model.OnnxModel(folder, 256)


def test_weights_beside_the_model_are_part_of_what_it_is(folder: Path) -> None:
    """Another second file is another revision, under the same `model.onnx`; so is another tokenizer."""
    (folder / "model.onnx").write_bytes(graph("inside.bin"))
    first = folders.read(folder)
    (folder / "inside.bin").write_bytes(WEIGHTS[::-1])
    second = folders.read(folder)
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    third = folders.read(folder)

    assert first.digest == second.digest == third.digest
    assert len({one.revision for one in (first, second, third)}) == 3


@pytest.mark.parametrize("location", ["../../secret.bin", "./../../secret.bin", "link.bin", "/secret.bin", "{secret}"])
def test_weights_elsewhere_are_refused(folder: Path, location: str) -> None:
    """A model that names a file out of its folder, by a path or a link, is refused (78)."""
    secret = folder.parent.parent / "secret.bin"
    (folder / "model.onnx").write_bytes(graph(location.format(secret=secret)))
    with pytest.raises(ConfigurationInvalid, match="not a model that onnxruntime can load"):
        local_model.OnnxModel(folder, 256)
    with pytest.raises(ConfigurationInvalid, match=r"out of its folder|cannot be read"):
        folders.read(folder)
