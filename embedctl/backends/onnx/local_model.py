"""One inference call of a local sentence-transformers ONNX model. The only door to onnxruntime.

Source of pooling and limits: facts of the bundled model, assets/PROVENANCE.md (2026-11-21).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from embedctl.backends.onnx import folders
from embedctl.errors import ConfigurationInvalid, TextTooLong
from embedctl.tokens import asset, model_tokenizer

BATCH_TOKENS = 512
"""Padded tokens of one inference call; larger batches were measured slower (facts/performance.md, B)."""


def _threads() -> int:
    """One per core, unless whoever started this process says otherwise: it shares the cores with others."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(said)) if said.isdecimal() else os.cpu_count() or 1


class OnnxModel:
    """A model folder: `model.onnx` and `tokenizer.json`; pooled as the folder says, unit length.

    Thread-safe; one inference thread per core (or OMP_NUM_THREADS), each with one intra-op thread.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._session = _session(folders.weights_in(folder))
        self._pooling = folders.pooling_of(folder)
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        self._tokenizer = model_tokenizer(folder / "tokenizer.json")
        self._max_tokens = max_tokens
        self._workers = ThreadPoolExecutor(_threads(), thread_name_prefix="inference")

    def embed(
        self, texts: Sequence[str], done: Callable[[int, int], None] = lambda texts, tokens: None
    ) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Embed all texts; blocks, and leaves the interpreter to others meanwhile.

        Args:
            done: Told of texts that are embedded, and of their tokens, a few at a time; what it raises ends the work.

        Returns:
            float32, shape (n, D), unit length, row i of texts[i]; and the tokens of each text, special ones included.

        Raises:
            TextTooLong: A text is over the model's limit; nothing is ever cut.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        lengths = [len(encoding.ids) for encoding in encodings]
        for index, tokens in enumerate(lengths):
            if tokens > self._max_tokens:
                raise TextTooLong(
                    f"text {index} has {tokens} tokens, the model takes {self._max_tokens}",
                    details=[{"index": index, "tokens": tokens, "max_tokens": self._max_tokens}],
                )
        batches = _batches(lengths)
        mapped = self._workers.map(lambda batch: self._infer([encodings[i].ids for i in batch]), batches)
        parts, pooled = cast("Generator[NDArray[np.float32], None, None]", mapped), []
        with closing(parts):  # which cancels what has not begun
            for batch, part in zip(batches, parts, strict=True):
                pooled.append(part)
                done(len(batch), sum(lengths[place] for place in batch))
        vectors = np.empty((len(encodings), pooled[0].shape[1] if pooled else 0), dtype=np.float32)
        for batch, part in zip(batches, pooled, strict=True):
            vectors[batch] = part
        return vectors, tuple(lengths)

    def _infer(self, ids: list[list[int]]) -> NDArray[np.float32]:
        """One vector per text, divided by its length: the mean over its tokens, or its first token's."""
        width = max(map(len, ids))
        tokens = np.zeros((len(ids), width), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = text
            mask[row, : len(text)] = 1
        feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        states = self._session.run(None, {name: feed[name] for name in self._inputs & feed.keys()})[0]
        pooled = states if states.ndim == 2 else self._pooled(states, mask)  # some graphs pool by themselves
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), dtype=np.float32)

    def _pooled(self, states: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._pooling == "cls":
            return states[:, 0]
        weights = mask[:, :, None].astype(np.float32)
        means: NDArray[np.float32] = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return means


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of texts of like length together, each batch about BATCH_TOKENS when padded."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[place] <= BATCH_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def _session(path: Path) -> Any:
    # Its Linux wheel keeps a device id and resolves a collector unless this is set before the import (1.32).
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # the arena only grows (qdrant/fastembed#570)
    if not sums_in_32_bits(_processor()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigurationInvalid(f"{path} is not a model that onnxruntime can load: {error}") from None


_VNNI = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})
"""What onnxruntime's int8 kernel with 32-bit sums needs (mlas/lib/platform.cpp, 1.32)."""


def sums_in_32_bits(cpuinfo: str) -> bool:
    """Whether the processor is known to sum products of uint8 and int8 in 32 bits.

    Others on x64 sum them in 16 bits, which overflow: cosine 0.989 (Haswell, in qemu). onnxruntime can be told to make
    the weights uint8, whose sums are exact everywhere; where they are so anyhow that costs a quarter of the CPU.

    Args:
        cpuinfo: Linux's words on the processor; "" where nobody has any.
    """
    flags = next((line.partition(":")[2] for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return set(flags.split()) >= _VNNI


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return ""


@cache
def load(folder: Path | None, max_tokens: int) -> OnnxModel:
    """The model in `folder`, loaded once per process; None is the bundled one.

    Raises:
        ConfigurationInvalid: The bundled one is damaged, or the folder holds no model.
    """
    if folder is None:
        asset("minilm/tokenizer.json")
        folder = asset("minilm/model.onnx").parent
    return OnnxModel(folder, max_tokens)
