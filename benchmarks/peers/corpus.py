"""Texts to embed: Zipf words, log-normal lengths, mean about 61 tokens and 281 bytes. `corpus.py ROWS FILE`."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

rows, path = int(sys.argv[1]), sys.argv[2]
random = np.random.default_rng(20261121)
words = np.array(["".join(random.choice(list("etaoinshrdlucmfwyp"), random.integers(2, 9))) for _ in range(20_000)])
with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        lengths = np.clip(random.lognormal(3.7, 0.6, count), 3, 400).astype(int)
        ranks = np.minimum(random.zipf(1.2, int(lengths.sum())) - 1, len(words) - 1)
        pieces = np.split(words[ranks], np.cumsum(lengths)[:-1])
        texts = [f"{' '.join(piece)} {start + i}" for i, piece in enumerate(pieces)]
        ids = pa.array(range(start, start + count), pa.int64())
        writer.write_table(pa.table({"id": ids, "text": texts}))
