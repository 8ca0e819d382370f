"""OpenVINO's CPU kernels on a model file. `local_openvino.py TEXTS.json OUT.npy MODEL.onnx TOKENIZER.json [PRECISION]`.

Needs openvino, tokenizers and numpy. PRECISION: f32, or OpenVINO's own choice: bf16 where the processor has it.
Batches as embedctl makes them; OMP_NUM_THREADS is the number of threads.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer

BATCH_TOKENS = 512

tokenizer = Tokenizer.from_file(sys.argv[4])
tokenizer.no_padding()
tokenizer.no_truncation()
settings = {"INFERENCE_NUM_THREADS": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))}
if len(sys.argv) > 5:
    settings["INFERENCE_PRECISION_HINT"] = sys.argv[5]
request = openvino.Core().compile_model(sys.argv[3], "CPU", settings).create_infer_request()

ids = [encoding.ids for encoding in tokenizer.encode_batch(json.loads(Path(sys.argv[1]).read_text()))]
batches: list[list[int]] = []
for place in sorted(range(len(ids)), key=lambda place: len(ids[place])):
    if batches and (len(batches[-1]) + 1) * len(ids[place]) <= BATCH_TOKENS:
        batches[-1].append(place)
    else:
        batches.append([place])
vectors = np.empty((len(ids), 384), dtype=np.float32)
for batch in batches:
    tokens = np.zeros((len(batch), max(len(ids[place]) for place in batch)), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, place in enumerate(batch):
        tokens[row, : len(ids[place])] = ids[place]
        mask[row, : len(ids[place])] = 1
    request.infer({"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)})
    sums = (request.get_output_tensor().data * mask[:, :, None]).sum(axis=1)
    vectors[batch] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
np.save(sys.argv[2], vectors)
