"""`serve --lock space.lock`: questions are embedded by the model that made the documents, or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedctl.routing.canaries import TEXTS
from tests.support import serving
from tests.support.model_server import served, states, unit


def test_serve_obeys_a_lock(tmp_path: Path) -> None:
    """A model that is not the one of the lock is refused (502) before a text is sent, and served when it is again."""
    folder = tmp_path / "world"
    folder.mkdir()
    with served() as model:
        text = (
            f'[providers.mini]\nprotocol = "openai"\nbase_url = "{model.base_url}"\napi_key_env = "OPENAI_API_KEY"\n'
            '[serve]\nlocks = ["space.lock"]\n'
        )
        serving.write_settings(folder, text)
        env = serving.environment(folder, None, EMBEDCTL_CANARY="always")
        (folder / "in.txt").write_text("The ferry leaves the island at seven.")
        words = ("embed", "in.txt", "-o", "out.parquet", "-m", "mini:all-MiniLM-L6-v2", "--no-progress")
        assert serving.embedctl(folder, env, *words).returncode == 0
        assert serving.embedctl(folder, env, "vectors", "lock", "out.parquet").returncode == 0
        model.restore()
        model.embed = lambda texts: unit([one[0] for one in states(texts)])  # another pooling
        asked = {"model": "mini:all-MiniLM-L6-v2", "input": "When does the ferry leave?"}
        with serving.started(folder, env) as server:
            refused = server.ask("POST", "/v1/embeddings", asked)
            sent = [texts for texts in model.asked if texts != list(TEXTS)]
            model.restore()
            answered = server.ask("POST", "/v1/embeddings", asked)
            looked = model.asked.count(list(TEXTS))
            again = server.ask("POST", "/v1/embeddings", asked | {"input": "And when does it come back?"})
            once = model.asked.count(list(TEXTS))
            server.stop()

        lock = json.loads((folder / "space.lock").read_text())
        lock["prefixes"] = {"document": "passage: ", "query": "query: "}
        (folder / "space.lock").write_text(json.dumps(lock))
        with serving.started(folder, env) as server:
            unlike = server.ask("POST", "/v1/embeddings", asked | {"input": "Where does it leave?"})
            server.stop()
            booked = server.ledger("SELECT DISTINCT purpose FROM usage_event ORDER BY 1")

    assert (refused.status, refused.json["error"]["code"], sent) == (502, "space_mismatch", [])
    assert (answered.status, again.status, looked, once) == (200, 200, 1, 1)
    assert (unlike.status, "prefixes" in unlike.json["error"]["message"]) == (502, True)
    assert booked == [("ingest",), ("test",)]


def test_the_first_canaries_of_a_served_model_come_first(tmp_path: Path) -> None:
    """A model that was never asked is asked for its canaries, then for the text; both are on the caller's account."""
    folder = tmp_path / "world"
    folder.mkdir()
    with served() as model:
        text = f'[providers.mini]\nprotocol = "openai"\nbase_url = "{model.base_url}"\napi_key_env = "OPENAI_API_KEY"\n'
        serving.write_settings(folder, text)
        env = serving.environment(folder, None, EMBEDCTL_CANARY="daily")
        with serving.started(folder, env) as server:
            asked = {"model": "mini:all-MiniLM-L6-v2", "input": "When does the ferry leave?"}
            answers = [server.ask("POST", "/v1/embeddings", asked | {"input": text}) for text in ("One.", "Two.")]
            server.stop()
            booked = server.ledger("SELECT purpose, sum(tokens_total) FROM usage_event GROUP BY ALL ORDER BY 1")

    assert [one.status for one in answers] == [200, 200]
    assert model.asked == [list(TEXTS), ["One."], ["Two."]]
    assert [one[0] for one in booked] == ["ingest", "test"]
    assert sum(one[1] for one in booked) == model.tokens


def first_token(texts: Sequence[str]) -> np.ndarray:
    """The model after a change: another pooling."""
    return unit([one[0] for one in states(texts)])


def vectors(reply: serving.Reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.array([one["embedding"] for one in reply.json["data"]], np.float32)


def test_what_is_kept_of_a_model_goes_with_it(tmp_path: Path) -> None:
    """After a change was noticed no call gets what was made before: not from the cache, in one answer with vectors of
    now, nor from a killed server's journal; under a lock none gets what was made since.
    """
    folder = tmp_path / "world"
    folder.mkdir()
    with served() as model:
        settings = (
            'on_drift = "warn"\n'
            f'[providers.mini]\nprotocol = "openai"\nbase_url = "{model.base_url}"\napi_key_env = "OPENAI_API_KEY"\n'
        )
        serving.write_settings(folder, settings)
        env = serving.environment(folder, None, EMBEDCTL_CANARY="always")
        asked = {"model": "mini:all-MiniLM-L6-v2"}

        with serving.started(folder, env) as server:
            server.ask("POST", "/v1/embeddings", asked | {"input": ["One?", "Two?"]})
            (folder / "in.txt").write_text("The ferry leaves the island at seven.")
            lock = serving.embedctl(folder, env, "embed", "in.txt", "-o", "out.parquet", "-m", asked["model"])
            assert lock.returncode == 0, lock.stderr
            assert serving.embedctl(folder, env, "vectors", "lock", "out.parquet").returncode == 0
            server.process.kill()
            server.process.wait()

        model.embed = first_token
        with serving.started(folder, env) as server:
            mixed = vectors(server.ask("POST", "/v1/embeddings", asked | {"input": ["One?", "Three?"]}))
            cached = server.ask("POST", "/v1/embeddings", asked | {"input": "Three?"})
            server.process.kill()
            server.process.wait()
        (folder / "state" / "cache.sqlite").unlink()
        with serving.started(folder, env) as server:
            recovered = vectors(server.ask("POST", "/v1/embeddings", asked | {"input": "Three?"}))
            server.stop()

        serving.write_settings(folder, settings.partition("\n")[2] + '[serve]\nlocks = ["space.lock"]\n')
        sent = len(model.asked)
        with serving.started(folder, env | {"EMBEDCTL_CANARY": "daily"}) as server:
            locked = server.ask("POST", "/v1/embeddings", asked | {"input": "Three?"})
            server.stop()

    assert np.allclose(mixed, first_token(["One?", "Three?"]), atol=1e-5)
    assert cached.headers["x-embedctl-cache"] == "hit"
    assert np.allclose(recovered, first_token(["Three?"]), atol=1e-5)
    assert (locked.status, locked.json["error"]["code"], len(model.asked)) == (502, "space_mismatch", sent)


def test_what_a_killed_server_left_is_of_the_time_when_it_was_asked_for(tmp_path: Path) -> None:
    """Vectors of a killed server's journal come into the cache as old as they are: a change since makes them none."""
    folder = tmp_path / "world"
    folder.mkdir()
    with served() as model:
        serving.write_settings(
            folder,
            'on_drift = "warn"\n'
            f'[providers.mini]\nprotocol = "openai"\nbase_url = "{model.base_url}"\napi_key_env = "OPENAI_API_KEY"\n',
        )
        env = serving.environment(folder, None, EMBEDCTL_CANARY="always")
        asked = {"model": "mini:all-MiniLM-L6-v2", "input": "One?"}
        with serving.started(folder, env) as server:
            server.ask("POST", "/v1/embeddings", asked)
            server.process.kill()
            server.process.wait()
        (folder / "state" / "cache.sqlite").unlink(missing_ok=True)
        model.embed = first_token
        (folder / "in.txt").write_text("The ferry leaves the island at seven.")
        done = serving.embedctl(folder, env, "embed", "in.txt", "-o", "out.parquet", "-m", asked["model"])
        assert "is not the model that it was" in done.stderr, done.stderr
        with serving.started(folder, env | {"EMBEDCTL_CANARY": "daily"}) as server:
            now = vectors(server.ask("POST", "/v1/embeddings", asked))
            server.stop()

    assert np.allclose(now, first_token(["One?"]), atol=1e-5)
