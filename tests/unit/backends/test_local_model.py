"""The bundled model: the vectors of the original, whoever else is in the batch."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedctl.backends.onnx import local_model
from embedctl.errors import ConfigurationInvalid, TextTooLong
from embedctl.tokens import ASSETS
from tests.support import places

FOLDER = places.REFERENCE
REFERENCE: dict[str, Any] = json.loads((FOLDER / "minilm.json").read_text("utf-8"))
TEXTS: list[str] = REFERENCE["texts"]


@pytest.fixture(scope="module")
def model() -> local_model.OnnxModel:
    """The bundled model, loaded once."""
    return local_model.load(None, 256)


@pytest.fixture(scope="module")
def vectors(model: local_model.OnnxModel) -> NDArray[np.float32]:
    """All reference texts, embedded together."""
    return model.embed(TEXTS)[0]


def test_vectors_are_those_of_the_original_weights(vectors: NDArray[np.float32]) -> None:
    """The cosine to the fp32 original is at least 0.998, and 0.999 on average; one word alone has at least 0.996."""
    original = np.load(FOLDER / "minilm.npy")
    cosines = (vectors * original).sum(axis=1)
    words = np.array(REFERENCE["tokens"]) <= 3

    assert original.shape == (len(TEXTS), 384)
    assert cosines[~words].min() >= 0.998
    assert cosines[~words].mean() >= 0.9992
    assert cosines[words].min() >= 0.996  # of 1,502 words that were measured, "okay" is the worst: 0.9964
    assert cosines.mean() >= 0.999


def test_the_reference_covers_what_texts_are_like() -> None:
    """The reference has one-word texts, texts at the limit, other scripts and code, none of them twice."""
    tokens = REFERENCE["tokens"]

    assert len(set(TEXTS)) == len(TEXTS) >= 60
    assert tokens.count(3) >= 5
    assert max(tokens) == 256
    assert sum(not text.isascii() for text in TEXTS) >= 10
    assert REFERENCE["weights_sha256"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_a_vector_does_not_depend_on_its_batch_mates(
    model: local_model.OnnxModel, vectors: NDArray[np.float32]
) -> None:
    """A text alone has the vector it has among sixty others: cosine at least 0.99999."""
    for place in range(0, len(TEXTS), 4):
        alone = model.embed([TEXTS[place]])[0][0]

        assert float(alone @ vectors[place]) >= 0.99999


VNNI = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "exact"),
    [
        (VNNI, True),
        (VNNI.replace(" avx512_vnni", ""), False),
        (VNNI.replace(" avx512bw", ""), False),
        (VNNI.replace("flags", "Features"), False),
        ("", False),
    ],
)
def test_processors_without_int8_instructions_are_told_apart(cpuinfo: str, exact: bool) -> None:
    """Only one that has all of AVX-512 VNNI sums in 32 bits; of one of which nothing is known, nothing is assumed."""
    assert local_model.sums_in_32_bits(cpuinfo) is exact


def test_processors_without_int8_instructions_get_the_same_vectors(
    model: local_model.OnnxModel, vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sums of products might overflow, the session asks for exact sums, and the vectors are the same."""
    monkeypatch.setattr(local_model, "_processor", lambda: "")
    careful = local_model.OnnxModel(ASSETS / "minilm", 256)
    options = careful._session.get_session_options()

    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    np.testing.assert_allclose(careful.embed(TEXTS[:20])[0], model.embed(TEXTS[:20])[0], atol=1e-5)


def test_each_text_gets_its_own_vector_in_any_order(model: local_model.OnnxModel, vectors: NDArray[np.float32]) -> None:
    """Row i is the vector of texts[i] although texts are sorted by length inside; the nearest reference is itself."""
    order = np.random.default_rng(7).permutation(len(TEXTS))[:30]
    shuffled = model.embed([TEXTS[place] for place in order])[0]

    assert (shuffled @ vectors.T).argmax(axis=1).tolist() == order.tolist()


def test_vectors_have_unit_length_and_tokens_are_counted(
    model: local_model.OnnxModel, vectors: NDArray[np.float32]
) -> None:
    """Every vector is float32 of length 1, 384 wide; the tokens of each text are told, special ones included."""
    counts = model.embed(TEXTS[:10])[1]

    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert list(counts) == REFERENCE["tokens"][:10]


def test_a_text_of_256_tokens_goes_and_of_257_is_too_long(model: local_model.OnnxModel) -> None:
    """The model's limit is kept to the token; nothing is ever cut, and the error says which text and how long."""
    fits = " ".join(["word"] * 254)
    found, counts = model.embed([fits])
    with pytest.raises(TextTooLong) as caught:
        model.embed(["ok", fits + " word"])

    assert (found.shape, counts) == ((1, 384), (256,))
    assert caught.value.message == "text 1 has 257 tokens, the model takes 256"
    assert caught.value.details == ({"index": 1, "tokens": 257, "max_tokens": 256},)


def test_no_texts_make_no_vectors(model: local_model.OnnxModel) -> None:
    """An empty request has an empty answer."""
    found, counts = model.embed([])

    assert (len(found), counts) == (0, ())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 256), max_size=80))
def test_batches_hold_every_text_once_and_stay_small(lengths: list[int]) -> None:
    """Every place is in exactly one batch; a padded batch is at most 512 tokens, or one text; lengths are alike."""
    batches = local_model._batches(lengths)

    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= local_model.BATCH_TOKENS
    longest = [max(lengths[place] for place in batch) for batch in batches]
    assert longest == sorted(longest)


def test_threads_may_share_a_model(model: local_model.OnnxModel, vectors: NDArray[np.float32]) -> None:
    """Four threads that embed at the same time get the vectors that one gets."""
    start = threading.Barrier(4)

    def embed(offset: int) -> NDArray[np.float32]:
        start.wait()
        return model.embed(TEXTS[offset : offset + 8])[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, (0, 8, 16, 24)))

    for number, part in enumerate(found):
        assert ((part * vectors[number * 8 : number * 8 + 8]).sum(axis=1) >= 0.99999).all()


def test_a_model_is_loaded_once(model: local_model.OnnxModel) -> None:
    """Asking again for the same model gives the same one."""
    assert local_model.load(None, 256) is model


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    """A model folder needs model.onnx and tokenizer.json; the error names the first that is missing."""
    with pytest.raises(ConfigurationInvalid, match=r"holds no model\.onnx"):
        local_model.load(tmp_path, 256)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ConfigurationInvalid, match=r"holds no tokenizer\.json"):
        local_model.load(tmp_path, 256)


def test_a_file_that_is_no_model_is_a_configuration_error(tmp_path: Path) -> None:
    """What onnxruntime cannot load is our error, with the file's name."""
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    shutil.copy(ASSETS / "minilm" / "tokenizer.json", tmp_path)

    with pytest.raises(ConfigurationInvalid, match=r"model\.onnx is not a model that onnxruntime can load"):
        local_model.load(tmp_path, 256)
