"""`serve --lock space.lock`: questions are embedded by the model that made the documents, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

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
