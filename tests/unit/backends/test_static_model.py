"""Static models: the mean of a text's token vectors, whoever else is asked for; folders that cannot be believed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedctl import tokens
from embedctl.backends import local
from embedctl.backends.static import folders, table
from embedctl.backends.static.static_model import StaticModel
from embedctl.errors import ConfigurationInvalid, TextRefused, TextTooLong
from tests.support import static_models
from tests.support.static_models import VOCABULARY, WORDS, saved

TEXTS = ["the cell is charged", "parcels leave at noon .", "les colis partent à midi", "short", "text , text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static model of a few words."""
    return saved(tmp_path_factory.mktemp("static") / "words")


def test_a_vector_is_the_mean_of_its_tokens(folder: Path) -> None:
    """Each text's vector is the mean of its words' rows, scaled to length 1; its tokens are its words."""
    vectors, counts = StaticModel(folder, None).embed(TEXTS)
    rows = static_models.table()
    means = np.array([rows[[VOCABULARY[word] for word in text.split()]].mean(axis=0) for text in TEXTS])

    np.testing.assert_allclose(vectors, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)
    assert (vectors.dtype, counts) == (np.float32, tuple(len(text.split()) for text in TEXTS))


def test_what_is_not_normalized_stays_so(tmp_path: Path) -> None:
    """A model whose settings do not say `normalize` gives means as they are; that is another space."""
    place = saved(tmp_path / "plain", config={"normalize": False})
    vectors, _ = StaticModel(place, None).embed(["noon"])

    np.testing.assert_array_equal(vectors[0], static_models.table()[VOCABULARY["noon"]])
    assert not folders.read(place).normalized
    assert folders.read(place).digest != folders.read(saved(tmp_path / "unit")).digest


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8"])
def test_types_of_tables(tmp_path: Path, dtype: str) -> None:
    """Tables of other numbers than float32 give float32 means of what they hold."""
    rows = (static_models.table() * 20).astype(dtype)
    vectors, _ = StaticModel(saved(tmp_path, config={"normalize": False}, embeddings=rows), None).embed(TEXTS[:1])
    found = rows[[VOCABULARY[word] for word in TEXTS[0].split()]].astype(np.float64).mean(axis=0)

    np.testing.assert_allclose(vectors[0], found, rtol=1e-6, atol=1e-6)


def test_weights_and_mapping(tmp_path: Path) -> None:
    """After vocabulary quantisation a token's vector is `embeddings[mapping[token]] * weights[token]`."""
    rows, weights = static_models.table(rows=3), np.linspace(0.1, 2, len(VOCABULARY), dtype=np.float32)
    mapping = np.arange(len(VOCABULARY)) % 3
    place = saved(tmp_path, config={"normalize": False}, embeddings=rows, weights=weights, mapping=mapping)
    ids = [VOCABULARY[word] for word in TEXTS[1].split()]
    vectors, _ = StaticModel(place, None).embed(TEXTS[1:2])

    np.testing.assert_allclose(vectors[0], (rows[mapping[ids]] * weights[ids, None]).mean(axis=0), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=20))
def test_a_vector_does_not_depend_on_its_batch(folder: Path, texts: list[str]) -> None:
    """Every text has, to the last bit, the vector that it has alone, in any order and at any place."""
    model = local.load("static", folder, None)
    together, _ = model.embed(texts)
    backwards, _ = model.embed(texts[::-1])

    np.testing.assert_array_equal(together, backwards[::-1])
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(model.embed([text])[0][0], vector)


def test_threads_may_share_a_model(folder: Path) -> None:
    """Four threads that embed at the same time get the vectors that one gets."""
    model, start = local.load("static", folder, None), threading.Barrier(4)
    expected, _ = model.embed(TEXTS)

    def embed(_: int) -> Any:
        start.wait()
        return model.embed(TEXTS)[0]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(embed, range(4)):
            np.testing.assert_array_equal(found, expected)


def test_unknown_words_count_but_weigh_nothing(folder: Path) -> None:
    """A word that no vocabulary holds is a token, and leaves the vector as it is without it."""
    vectors, counts = StaticModel(folder, None).embed(["noon", "noon xyzzy"])

    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert counts == (1, 2)


@pytest.mark.parametrize("text", ["xyzzy", "日本", "[UNK]"])
def test_a_text_without_a_known_word_is_refused(folder: Path, text: str) -> None:
    """A text of which the model knows no word has no vector: it is named, and zeros are never written for it."""
    with pytest.raises(TextRefused, match="text 1 has no word that the model knows"):
        StaticModel(folder, None).embed(["noon", text])


def test_a_text_whose_rows_are_zeros_is_refused(tmp_path: Path) -> None:
    """A table may hold zeros for a word; a text of such words alone has no vector either."""
    rows = static_models.table()
    rows[VOCABULARY["noon"]] = 0
    model = StaticModel(saved(tmp_path, embeddings=rows), None)

    with pytest.raises(TextRefused, match="text 0"):
        model.embed(["noon"])
    assert model.embed(["noon midi"])[1] == (2,)


def test_nothing_is_cut(folder: Path) -> None:
    """The limit is kept to the token, whatever truncation the tokenizer was saved with."""
    model = StaticModel(folder, 6)
    _, counts = model.embed(["noon " * 6])
    with pytest.raises(TextTooLong) as caught:
        model.embed(["noon", "noon " * 7])

    assert counts == (6,)
    assert caught.value.details == ({"index": 1, "tokens": 7, "max_tokens": 6},)


@pytest.mark.parametrize(
    ("said", "longest"),
    [({}, 512), ({"max_length": 40}, 40), ({"max_length": None}, None), ({"seq_length": 10**6}, 10**6),
     ({"max_length": 40, "seq_length": 10**6}, 40)],
)  # fmt: skip
def test_the_limit_is_the_folders(tmp_path: Path, said: dict[str, Any], longest: int | None) -> None:
    """A text may be as long as config.json says; null is any length; without a word it is what model2vec reads."""
    assert folders.read(saved(tmp_path, config=said)).max_tokens == longest


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_tokenizers_of_all_kinds(tmp_path: Path, kind: str) -> None:
    """Counting beforehand and embedding agree on the tokens, whatever kind the tokenizer is; none has special ones."""
    place = saved(tmp_path, kind=kind)
    texts = ["the cell is charged", "parcels leave at noon"]
    counter = tokens.counter(f"plain:{place / 'tokenizer.json'}")

    assert tuple(counter.count(texts)) == StaticModel(place, None).embed(texts)[1]
    assert counter.count([""]) == [0]


def test_no_texts_make_no_vectors(folder: Path) -> None:
    """An empty request has an empty answer, as wide as any."""
    vectors, counts = StaticModel(folder, None).embed([])

    assert (vectors.shape, counts) == ((0, static_models.WIDTH), ())


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_makes_the_vectors_makes_the_digest(tmp_path: Path) -> None:
    """Another table or tokenizer is another space; a word in config.json that changes no vector is not."""
    found = [
        folders.read(saved(tmp_path / name, **how)).digest
        for name, how in {
            "one": {},
            "same": {"config": {"base_model": "anyone", "max_length": 100}},
            "table": {"embeddings": static_models.table(seed=8)},
        }.items()
    ]
    (tmp_path / "same" / "tokenizer.json").write_text((tmp_path / "one" / "tokenizer.json").read_text() + "\n")

    assert found[0] == found[1] != found[2]
    assert folders.read(tmp_path / "same").digest != found[0]


NAN = np.full((len(VOCABULARY), 4), np.nan, np.float32)
ROWS = static_models.table()
COUNT = len(VOCABULARY)
OF_ALL = np.zeros(COUNT, np.int64)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"embeddings": NAN}, "contains NaN or infinity"),
        ({"embeddings": ROWS, "weights": NAN[:, 0]}, "contains NaN or infinity"),
        ({"embeddings": ROWS[:-1]}, f"has vectors for {COUNT - 1} tokens, its tokenizer makes {COUNT}"),
        ({"embeddings": ROWS, "weights": np.ones(5, np.float32)}, "has vectors for 5 tokens"),
        ({"embeddings": ROWS[:2], "mapping": OF_ALL[:-1]}, f"has vectors for {COUNT - 1} tokens"),
        ({"embeddings": ROWS[:2], "mapping": OF_ALL + 2}, "maps tokens to rows that it does not hold: there are 2"),
        ({"embeddings": ROWS[:2], "mapping": OF_ALL - 1}, "maps tokens to rows"),
        ({"embeddings": ROWS[0]}, "embeddings is F32 of 1 dimensions"),
        ({"embeddings": ROWS.astype(np.int64)}, "embeddings is I64 of 2 dimensions"),
        ({"embeddings": ROWS, "mapping": ROWS[:, 0]}, "mapping is F32"),
        ({"embeddings": ROWS[:, :0]}, "vectors of 0 dimensions"),
        ({"embeddings": np.zeros((1, 65_537), np.int8), "mapping": OF_ALL}, "vectors of 65,537 dimensions"),
        ({"layer.weight": ROWS}, "holds no table of vectors alone, but layer.weight"),
        ({"embeddings": ROWS, "head": ROWS}, "holds no table of vectors alone"),
    ],
    ids=range(14),
)
def test_tables_that_cannot_be(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    """A table with NaN, of another shape or type, or too small for its tokenizer is refused before any text."""
    place = saved(tmp_path, **tensors)

    with pytest.raises(ConfigurationInvalid, match=said):
        local.load("static", place, None)


HEADER = b'{"embeddings":{"dtype":"F32","shape":[39,32],"data_offsets":[0,4992]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no table",
        (1 << 40).to_bytes(8, "little") + HEADER,
        len(HEADER).to_bytes(8, "little") + HEADER,
        len(HEADER).to_bytes(8, "little") + HEADER + b"\0" * 4991,
        len(HEADER).to_bytes(8, "little") + HEADER.replace(b"[39,32]", b"[39,33]") + b"\0" * 4992,
        len(HEADER).to_bytes(8, "little") + HEADER.replace(b"[0,4992]", b"[4992,0]") + b"\0" * 4992,
        len(HEADER).to_bytes(8, "little") + HEADER.replace(b"4992", b"-992") + b"\0" * 4992,
        len(HEADER).to_bytes(8, "little") + HEADER.replace(b"39", b"9" * 2) + b"\0" * 4992,
    ],
    ids=range(9),
)
def test_headers_that_lie(tmp_path: Path, content: bytes) -> None:
    """A file that is cut, or whose header speaks of bytes that are not there, is no safetensors file."""
    place = saved(tmp_path)
    (place / "model.safetensors").write_bytes(content)

    with pytest.raises(ConfigurationInvalid, match="is no safetensors file"):
        local.read("static", place)


def test_a_header_that_tells_the_truth(tmp_path: Path) -> None:
    """The same bytes with a true header are a table: the guards above refuse what is wrong with the others."""
    place = saved(tmp_path)
    (place / "model.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + b"\0" * 4992)

    assert table.shape(place / "model.safetensors") == (39, 32)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    """A file of the folder that is a link to somewhere else is not read; one to a file of the folder is."""
    place = saved(tmp_path / "models" / "mine")
    (place / name).rename(tmp_path / "elsewhere")
    (place / name).symlink_to("../../elsewhere")
    with pytest.raises(ConfigurationInvalid, match="is a link out of its folder"):
        local.read("static", place)
    (place / name).unlink()
    (tmp_path / "elsewhere").rename(place / "inside")
    (place / name).symlink_to("inside")

    assert local.read("static", place).dimensions == static_models.WIDTH


def test_the_hubs_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    """A snapshot in Hugging Face's cache, whose files are links to `blobs`, is a model."""
    place = saved(tmp_path / "models--me--model" / "snapshots" / "abc")
    (tmp_path / "models--me--model" / "blobs").mkdir()
    for number, path in enumerate(sorted(place.iterdir())):
        path.rename(tmp_path / "models--me--model" / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")

    assert local.read("static", place).dimensions == static_models.WIDTH


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe or a folder in a file's place is refused, and never opened."""
    for name in ("tokenizer.json", "config.json"):
        place = saved(tmp_path / name)
        (place / name).unlink()
        os.mkfifo(place / name)
        with pytest.raises(ConfigurationInvalid, match="is no file"):
            local.read("static", place)


def test_settings_are_not_read_without_end(tmp_path: Path) -> None:
    """A config.json of more than a megabyte is none; it is not read."""
    place = saved(tmp_path)
    with (place / "config.json").open("r+b") as file:
        file.truncate(1 << 40)

    with pytest.raises(ConfigurationInvalid, match="at most 1,048,576 are read"):
        local.read("static", place)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_length": 0}, "length of a text"),
        ({"max_length": "many"}, "length of a text"),
        ({"seq_length": True}, "length of a text"),
        ({"normalize": "yes"}, "normalize must be true or false"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    """A setting of another type than it has is an error, and no guess is made."""
    with pytest.raises(ConfigurationInvalid, match=said):
        local.read("static", saved(tmp_path, config=config))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    """A folder without one of its three files says which, and what a static model is."""
    (saved(tmp_path) / name).unlink()

    with pytest.raises(ConfigurationInvalid, match=f"holds no {name}"):
        local.read("static", tmp_path)


@pytest.mark.parametrize("content", ["{}", "no json", '{"model": null}', "[" * 100_000])
def test_a_tokenizer_that_is_none(tmp_path: Path, content: str) -> None:
    """A tokenizer.json that cannot be read ends with a configuration error, whatever the library makes of it."""
    place = saved(tmp_path)
    (place / "tokenizer.json").write_text(content)

    with pytest.raises(ConfigurationInvalid, match=r"tokenizer\.json is no tokenizer"):
        local.load("static", place, None)
