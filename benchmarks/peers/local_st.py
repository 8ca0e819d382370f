"""sentence-transformers (torch, CPU) on the same weights. `local_st.py TEXTS.json OUT.npy MODEL_FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

texts = json.loads(Path(sys.argv[1]).read_text())
model = SentenceTransformer(sys.argv[3], device="cpu")
np.save(sys.argv[2], model.encode(texts, normalize_embeddings=True, batch_size=32))
