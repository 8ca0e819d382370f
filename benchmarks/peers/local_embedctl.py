"""embedctl's own inference, without files. `local_embedctl.py TEXTS.json OUT.npy`."""

import json
import sys
from pathlib import Path

import numpy as np

from embedctl.backends.onnx import local_model

vectors, _ = local_model.load(None, 256).embed(json.loads(Path(sys.argv[1]).read_text()))
np.save(sys.argv[2], vectors)
