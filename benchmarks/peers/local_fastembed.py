"""fastembed on embedctl's own model file. `local_fastembed.py TEXTS.json OUT.npy MODEL.onnx TOKENIZER_FOLDER`."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

texts = json.loads(Path(sys.argv[1]).read_text())
TextEmbedding.add_custom_model(
    model="bundled", pooling=PoolingType.MEAN, normalization=True, sources=ModelSource(hf="none/none"), dim=384,
    model_file="model.onnx",
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "model.onnx").symlink_to(Path(sys.argv[3]).resolve())
    for file in Path(sys.argv[4]).glob("*.json"):
        (Path(folder) / file.name).symlink_to(file.resolve())
    model = TextEmbedding("bundled", specific_model_path=folder)
    np.save(sys.argv[2], np.stack(list(model.embed(texts, batch_size=32))))
