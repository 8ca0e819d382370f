"""The gateway as real clients see it: three texts bit by bit, one 400, one 429, one 402, and a row for each request.

Python clients are the extra `clients`; those of Node are asked for where `node` finds them. Any that is missing is
skipped with its name.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support import places
from tests.support.serving import MODEL, Serving, bill, environment, make_key, started, until
from tests.support.wire.client import Wire, expected

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries of others warn of what they like

TEXTS = ["one small text", "another text, a little longer", "ein dritter Text mit Umlauten: äöü"]


def library(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"{name} is not installed (extra `clients`)")


@dataclass
class Keys:
    """Keys that get vectors, too many requests, and no money."""

    good: str
    limited: str
    poor: str


@dataclass
class World:
    """A gateway, and what its provider has seen."""

    server: Serving
    keys: Keys
    wire: Wire

    @property
    def base(self) -> str:
        return f"{self.server.base}/v1"


@pytest.fixture
def world(wire: Wire, tmp_path: Path) -> Iterator[World]:
    wire.reset()
    env = environment(tmp_path, wire)
    keys = Keys(
        make_key(tmp_path, env),
        make_key(tmp_path, env, "--rpm", 1, "--burst", 1),
        make_key(tmp_path, env, "--budget", "0"),
    )
    with started(tmp_path, env) as server:
        yield World(server, keys, wire)
        server.stop()
        assert bill(server).attempts == len(wire.truth())


def same(found: Any, texts: list[str] = TEXTS) -> None:
    """Bit by bit the provider's own vectors."""
    assert np.asarray(found, dtype=np.float64).astype(np.float32).tobytes() == expected(texts, MODEL).tobytes()


def status_of(call: Callable[[], object]) -> tuple[int | None, str]:
    """The HTTP status that a client's exception carries, and what it says."""
    try:
        call()
    except Exception as problem:
        found: Any = problem
        while found is not None:
            status = getattr(found, "status_code", None)
            if isinstance(status, int):
                return status, str(problem)
            found = found.__cause__ or found.__context__
        return None, str(problem)
    return 200, ""


def refusals(world: World, embed: Callable[[str, list[str], str], Any], *, repeats: bool = False) -> None:
    """One 400, one 402, one 429, each with its words.

    Args:
        embed: (key, texts, model) → vectors.
        repeats: It waits the minute that a 429 asks for, and is told nothing of it.
    """
    keys = world.keys

    def asked(key: str, text: str, model: str = MODEL) -> tuple[int | None, str]:
        return status_of(lambda: embed(key, [text], model))

    bad = asked(keys.good, "a", "no-such-model")
    money = asked(keys.poor, "costs something, however little")

    assert bad[0] in (400, 404)
    assert "no-such-model" in bad[1]
    assert money[0] == 402
    assert "budget" in money[1]
    if not repeats:
        rate = max(asked(keys.limited, f"too often {n}") for n in range(2))
        assert rate[0] == 429
        assert "requests a minute" in rate[1]


def test_openai(world: World) -> None:
    """openai-python, which asks for base64 and decodes it; and for floats when told so."""
    openai = library("openai")

    def client(key: str) -> Any:
        return openai.OpenAI(api_key=key, base_url=world.base, max_retries=0)

    good = client(world.keys.good)
    same([one.embedding for one in good.embeddings.create(model=MODEL, input=TEXTS).data])
    same([one.embedding for one in good.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float").data])
    answer = good.embeddings.create(model=MODEL, input=TEXTS)

    assert answer.usage.total_tokens > 0
    assert answer.model == MODEL
    assert MODEL in [one.id for one in good.models.list()]

    refusals(world, lambda key, texts, model: client(key).embeddings.create(model=model, input=texts))


def test_openai_async(world: World) -> None:
    """Its asynchronous client, many calls at once."""
    openai = library("openai")

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(api_key=world.keys.good, base_url=world.base) as client:
            calls = [client.embeddings.create(model=MODEL, input=text) for text in TEXTS]
            return [answer.data[0].embedding for answer in await asyncio.gather(*calls)]

    same(asyncio.run(ask()))


def test_openai_repeats_what_may_be_repeated(world: World) -> None:
    """With its own retries a 402 is asked for once, and a 429 ends well after the wait it was told."""
    openai = library("openai")
    poor = openai.OpenAI(api_key=world.keys.poor, base_url=world.base, max_retries=3)
    openai.OpenAI(api_key=world.keys.good, base_url=world.base).embeddings.create(model=MODEL, input="something")

    assert status_of(lambda: poor.embeddings.create(model=MODEL, input="costs something"))[0] == 402

    def refused() -> int:
        return sum(one.get("code") == "budget_exceeded" for one in world.server.log())

    until(lambda: refused() > 0)
    assert refused() == 1


def test_langchain(world: World) -> None:
    """langchain-openai, which sends token arrays unless told not to, and averages long texts itself."""
    langchain_openai = library("langchain_openai")

    def client(key: str, **more: Any) -> Any:
        return langchain_openai.OpenAIEmbeddings(
            model=more.pop("model", MODEL), api_key=key, base_url=world.base, max_retries=0, **more
        )

    by_text = client(world.keys.good, check_embedding_ctx_length=False).embed_documents(TEXTS)
    same(by_text)
    try:
        by_tokens = client(world.keys.good).embed_documents(TEXTS)
    except Exception as offline:  # it fetches the vocabulary, where it is not there yet
        assert "tiktoken" in str(offline) or "openaipublic" in str(offline)  # noqa: PT017
    else:
        assert np.asarray(by_tokens).shape == (3, 1536)
        assert any(one["items"] == 3 for one in world.wire.truth())

    refusals(
        world,
        lambda key, texts, model: client(key, model=model, check_embedding_ctx_length=False).embed_documents(texts),
    )


def test_langchain_s_token_arrays(world: World) -> None:
    """Token arrays as langchain-openai makes them with cl100k_base: the vectors of these very arrays."""
    from embedctl import tokens
    from tests.support.wire import vectors

    openai = library("openai")
    encoding: Any = tokens.counter(tokens.FALLBACK)
    arrays = [encoding.encoding.encode_ordinary(text) for text in TEXTS]
    client = openai.OpenAI(api_key=world.keys.good, base_url=world.base)
    answer = client.embeddings.create(model=MODEL, input=arrays)

    same([one.embedding for one in answer.data], [vectors.tokens_text(array) for array in arrays])
    assert answer.usage.prompt_tokens == sum(map(len, arrays))


def test_litellm(world: World) -> None:
    """Litellm's client, which expects floats and checks nothing."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = library("litellm")

    def embed(key: str, texts: list[str], model: str) -> Any:
        answer = litellm.embedding(model=f"openai/{model}", input=texts, api_key=key, api_base=world.base)
        return [one["embedding"] for one in answer.data]

    same(embed(world.keys.good, TEXTS, MODEL))
    refusals(world, embed, repeats=True)


def test_llama_index(world: World) -> None:
    """LlamaIndex's client for servers of OpenAI's dialect."""
    module = library("llama_index.embeddings.openai_like")

    def embed(key: str, texts: list[str], model: str) -> Any:
        client = module.OpenAILikeEmbedding(model_name=model, api_base=world.base, api_key=key, max_retries=0)
        return client.get_text_embedding_batch(texts)

    same(embed(world.keys.good, TEXTS, MODEL))
    assert status_of(lambda: embed(world.keys.poor, ["costs something"], MODEL))[0] == 402


def test_haystack(world: World) -> None:
    """Haystack's embedder of documents."""
    haystack = library("haystack")
    embedders = library("haystack.components.embedders")
    secrets = library("haystack.utils")

    def embed(key: str, texts: list[str], model: str) -> Any:
        embedder = embedders.OpenAIDocumentEmbedder(
            model=model,
            api_base_url=world.base,
            api_key=secrets.Secret.from_token(key),
            max_retries=0,
            progress_bar=False,
            raise_on_failure=True,
        )
        done = embedder.run(documents=[haystack.Document(content=text) for text in texts])
        return [one.embedding for one in done["documents"]]

    same(embed(world.keys.good, TEXTS, MODEL))
    refusals(world, embed)


def test_llm(world: World) -> None:
    """`llm embed`, with the gateway as an OpenAI-compatible embedding model."""
    library("llm")
    code = (
        "import json, sys, llm\n"
        "from llm.default_plugins.openai_models import OpenAIEmbeddingModel\n"
        "base, key, model = sys.argv[1:4]\n"
        "found = OpenAIEmbeddingModel(model, model)\n"
        "found.key = key\n"
        "import openai\n"
        "openai.base_url = None\n"
        "print(json.dumps([list(one) for one in found.embed_multi(json.loads(sys.argv[4]))]))\n"
    )
    env = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME")},
        "OPENAI_BASE_URL": world.base,
        "PYTHONPATH": str(places.ROOT),
        "LLM_USER_PATH": str(world.server.folder / "llm"),
    }
    command = [sys.executable, "-c", code, world.base, world.keys.good, MODEL, json.dumps(TEXTS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    same(json.loads(done.stdout))


@pytest.mark.parametrize("door", ["X-API-KEY", "bearer"])
def test_embedctl_s_own_tldw_protocol(world: World, tmp_path: Path, door: str) -> None:
    """Embedctl asks the gateway as it asks a tldw_server: round trip, vectors bit by bit, headers understood."""
    import pyarrow.parquet as pq

    folder = tmp_path / "client"
    folder.mkdir()
    (folder / "in.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    config = folder / "config.toml"
    config.write_text(
        f'[providers.tldw]\nbase_url = "{world.server.base}/api/v1"\n'
        + (f'headers = {{ authorization = "Bearer {world.keys.good}" }}\n' if door == "bearer" else "")
    )
    config.chmod(0o600)
    env = {
        **world.server.environment,
        "EMBEDCTL_HOME": str(folder / "state"),
        "EMBEDCTL_CANARY": "off",
        "EMBEDCTL_CONFIG": str(config),
        "SINGLE_USER_API_KEY": world.keys.good,
        "PYTHONPATH": str(places.ROOT),
    }
    command = [sys.executable, "-m", "embedctl", "embed", "in.txt", "--split", "lines", "-m", f"tldw:openai:{MODEL}"]
    done = subprocess.run([*command, "-o", "out.parquet"], cwd=folder, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    same(pq.read_table(folder / "out.parquet").column("embedding").to_pylist())


def node(world: World, code: str, needs: str) -> list[Any]:
    """What a program of Node prints; skipped where node or the package is missing."""
    folder = os.environ.get("EMBEDCTL_NODE_MODULES") or str(places.ROOT / ".ci" / "node" / "node_modules")
    if shutil.which("node") is None or not (Path(folder) / needs).is_dir():
        pytest.skip(f"node, or its package {needs}, is not installed (.ci/run does it)")
    script = world.server.folder / "program.mjs"
    modules = world.server.folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(folder)
    script.write_text(code)
    values = {"BASE": world.base, "KEY": world.keys.good, "POOR": world.keys.poor, "LIMITED": world.keys.limited}
    env = {"PATH": os.environ["PATH"], "MODEL": MODEL, "TEXTS": json.dumps(TEXTS), **values}
    done = subprocess.run(["node", str(script)], env=env, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def test_openai_node(world: World) -> None:
    """openai-node, which takes floats in answer to base64 for a quarter of the width, and says nothing."""
    code = """
import OpenAI from "openai";
const { BASE, KEY, POOR, LIMITED, MODEL, TEXTS } = process.env;
const client = (apiKey) => new OpenAI({ apiKey, baseURL: BASE, maxRetries: 0 });
const input = JSON.parse(TEXTS);
const one = await client(KEY).embeddings.create({ model: MODEL, input });
const two = await client(KEY).embeddings.create({ model: MODEL, input, encoding_format: "float" });
const status = async (call) => { try { await call(); return 200; } catch (e) { return [e.status, e.message]; } };
const bad = await status(() => client(KEY).embeddings.create({ model: MODEL, input: "" }));
const money = await status(() => client(POOR).embeddings.create({ model: MODEL, input: "costs something" }));
await status(() => client(LIMITED).embeddings.create({ model: MODEL, input: "a" }));
const rate = await status(() => client(LIMITED).embeddings.create({ model: MODEL, input: "a" }));
const vectors = [one, two].map(answer => answer.data.map(d => d.embedding));
console.log(JSON.stringify([...vectors, one.usage, bad, money, rate]));
"""
    one, two, usage, bad, money, rate = node(world, code, "openai")

    same(one)
    same(two)
    assert usage["total_tokens"] > 0
    assert (bad[0], money[0], rate[0]) == (400, 402, 429)
    assert "empty" in bad[1]


def test_the_ai_sdk(world: World) -> None:
    """Vercel's AI SDK, which adds up what `usage` says, and heeds only Retry-After."""
    code = """
import { embedMany } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
const { BASE, KEY, POOR, LIMITED, MODEL, TEXTS } = process.env;
const model = (apiKey) => createOpenAI({ apiKey, baseURL: BASE }).embedding(MODEL);
const values = JSON.parse(TEXTS);
const one = await embedMany({ model: model(KEY), values, maxRetries: 0 });
const status = async (key, values) => {
  try { await embedMany({ model: model(key), values, maxRetries: 0 }); return 200; } catch (e) { return e.statusCode; }
};
const bad = await status(KEY, [""]);
const money = await status(POOR, ["costs something"]);
await status(LIMITED, ["a"]);
const rate = await status(LIMITED, ["a"]);
console.log(JSON.stringify([one.embeddings, one.usage, bad, money, rate]));
"""
    one, usage, bad, money, rate = node(world, code, "ai")

    same(one)
    assert usage["tokens"] > 0
    assert (bad, money, rate) == (400, 402, 429)
