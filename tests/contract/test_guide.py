"""The examples of the API guide, as it prints them: curl, Python, JavaScript, its SDKs, LangChain and LlamaIndex.

Brought up to date: keys, port and secret, where libraries keep their classes today, and the fields that LlamaIndex's
models have to declare. An example whose library is missing is skipped with its name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.serving import MODEL, Serving, bill, environment, make_key, started, until, write_settings
from tests.support.wire.client import Wire, expected

ADMIN = "the one key of a single user, in the environment"
SECRET = "a secret of at least thirty-two bytes, as the service asks"
HELLO = "Transform this text into embeddings"

JWT = """
import jwt
from datetime import UTC, datetime, timedelta

# Generate JWT token
def generate_token(user_id: str, secret_key: str):
    payload = {
        "sub": user_id,
        "exp": datetime.now(UTC) + timedelta(hours=24),
        "iat": datetime.now(UTC)
    }
    return jwt.encode(payload, secret_key, algorithm="HS256")

# Use token
token = generate_token("user123", "{secret}")
headers = {
    "Authorization": f"Bearer {token}",
    # Optionally include X-API-KEY if your deployment requires it
}
"""


@dataclass
class World:
    """A service with a single user's key, keys of tenants and signed tokens.

    Attributes:
        limited: A key that has one request a minute.
    """

    server: Serving
    wire: Wire
    key: str
    limited: str
    jwt: str

    def filled(self, example: str) -> str:
        """An example with this service's address and key."""
        found = example.replace("http://localhost:8000", self.server.base)
        return found.replace("your_api_key_or_jwt", self.key).replace("your_api_key", self.key)

    def run(self, *command: str) -> Any:
        """What a program prints, as JSON."""
        names = {"SINGLE_USER_API_KEY": ADMIN, "JWT": self.jwt, "JWT_OR_API_KEY": self.key}
        env = {"PATH": os.environ["PATH"], "HOME": str(self.server.folder), "PYTHONDONTWRITEBYTECODE": "1", **names}
        done = subprocess.run(command, cwd=self.server.folder, env=env, capture_output=True, text=True, timeout=120)

        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def python(self, example: str, shown: str) -> Any:
        """What `shown` is after an example."""
        script = self.server.folder / "example.py"
        script.write_text(f"{self.filled(example)}\nimport json\nprint(json.dumps({shown}))\n")
        return self.run(sys.executable, str(script))

    def javascript(self, example: str, shown: str) -> Any:
        """The same, of a module of Node."""
        if shutil.which("node") is None:
            pytest.skip("node is not installed")
        script = self.server.folder / "example.mjs"
        script.write_text(f"{self.filled(example)}\nconsole.log(JSON.stringify({shown}));\n")
        return self.run("node", str(script))

    def shell(self, example: str) -> Any:
        """What curl prints."""
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        return self.run("sh", "-euc", self.filled(example).replace("curl -X", "curl -sS -X"))


@pytest.fixture
def world(wire: Wire, tmp_path: Path) -> Iterator[World]:
    wire.reset()
    places = f'[providers.huggingface]\nbase_url = "{wire.base_url("huggingface")}"\n'
    media = f'[serve]\nguide_status = true\nmedia = "{tmp_path}/media/{{workspace}}/{{media_id}}.*"\n'
    write_settings(tmp_path, f'{places}{media}[serve.jwt]\nsecret_env = "JWT_SECRET_KEY"\n')
    env = environment(tmp_path, wire, SINGLE_USER_API_KEY=ADMIN, JWT_SECRET_KEY=SECRET, HF_TOKEN="hf_0123456789abcdef")
    key, limited = make_key(tmp_path, env), make_key(tmp_path, env, "--rpm", 1, "--burst", 1)
    signed: dict[str, Any] = {}
    exec(JWT.replace("{secret}", SECRET), signed)
    with started(tmp_path, env) as server:
        yield World(server, wire, key, limited, signed["token"])
        server.stop()
        assert bill(server).attempts == len(wire.truth())


def same(found: Any, *texts: str, model: str = MODEL) -> None:
    """Bit by bit the provider's own vectors."""
    assert np.asarray(found, np.float64).astype(np.float32).tobytes() == expected([*texts], model).tobytes()


def needs(*libraries: str) -> None:
    for name in libraries:
        pytest.importorskip(name, reason=f"{name} is not installed (extra `clients`)")


# ── quick start ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_curl_s_quick_start(world: World) -> None:
    """A single user's X-API-KEY, and a token as bearer."""
    single = world.shell(r"""
curl -X POST "http://localhost:8000/api/v1/embeddings" \
  -H "Content-Type: application/json" \
  -H "X-API-KEY: $SINGLE_USER_API_KEY" \
  -d '{"input": "Transform this text into embeddings", "model": "text-embedding-3-small"}'
""")
    many = world.shell(r"""
curl -X POST "http://localhost:8000/api/v1/embeddings" \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $JWT" \
  -d '{"input": "Transform this text into embeddings", "model": "text-embedding-3-small"}'
""")

    for answer in (single, many):
        same([answer["data"][0]["embedding"]], HELLO)
        assert answer.keys() == {"object", "data", "model", "usage"}


@pytest.mark.parametrize("header", ['"X-API-KEY": API_KEY', '"Authorization": f"Bearer {API_KEY}"'])
def test_python_s_quick_start(world: World, header: str) -> None:
    """With requests, and either header that the example's comments name."""
    needs("requests")
    example = """
import requests

# Configuration
API_URL = "http://localhost:8000/api/v1/embeddings"
API_KEY = "your_api_key_or_jwt"

# Create embeddings
response = requests.post(
    API_URL,
headers={
        HEADER,
        "Content-Type": "application/json"
    },
    json={
        "input": "Transform this text into embeddings",
        "model": "text-embedding-3-small"
    }
)

embeddings = response.json()["data"][0]["embedding"]
print(f"Embedding dimensions: {len(embeddings)}")
"""
    same([world.python(example.replace("HEADER", header), "embeddings")], HELLO)


@pytest.mark.parametrize("header", ["'X-API-KEY': 'your_api_key'", "'Authorization': 'Bearer your_api_key'"])
def test_javascript_s_quick_start(world: World, header: str) -> None:
    """With fetch, and either header that the example's comments name."""
    example = """
// Create embeddings
const response = await fetch('http://localhost:8000/api/v1/embeddings', {
    method: 'POST',
headers: {
        HEADER,
        'Content-Type': 'application/json'
    },
    body: JSON.stringify({
        input: 'Transform this text into embeddings',
        model: 'text-embedding-3-small'
    })
});

const data = await response.json();
const embedding = data.data[0].embedding;
console.log(`Embedding dimensions: ${embedding.length}`);
"""
    same([world.javascript(example.replace("HEADER", header), "embedding")], HELLO)


# ── errors, rates ────────────────────────────────────────────────────────────────────────────────────────────────────

PYTHON_RETRY = '''
import requests
import time
from typing import Optional

API_URL = "http://localhost:8000/api/v1/embeddings"
API_KEY = "your_api_key"

def create_embeddings_with_retry(
    text: str,
    max_retries: int = 3,
    backoff_factor: float = 2.0
) -> Optional[list]:
    """Create embeddings with exponential backoff retry"""

    for attempt in range(max_retries):
        try:
            response = requests.post(
                API_URL,
                headers={"Authorization": f"Bearer {API_KEY}"},
                json={"input": text, "model": "text-embedding-3-small"}
            )

            if response.status_code == 200:
                return response.json()["data"][0]["embedding"]

            elif response.status_code == 429:
                # Rate limited - wait and retry
                wait_time = backoff_factor ** attempt
                print(f"Rate limited. Waiting {wait_time}s...")
                time.sleep(wait_time)

            elif response.status_code >= 500:
                # Server error - retry
                wait_time = backoff_factor ** attempt
                print(f"Server error. Retrying in {wait_time}s...")
                time.sleep(wait_time)

            else:
                # Client error - don't retry
                print(f"Error: {response.json()}")
                return None

        except requests.exceptions.RequestException as e:
            print(f"Network error: {e}")
            if attempt < max_retries - 1:
                time.sleep(backoff_factor ** attempt)

    return None
'''

JAVASCRIPT_RETRY = """
const API_URL = 'http://localhost:8000/api/v1/embeddings';
const API_KEY = 'your_api_key';

async function createEmbeddingsWithRetry(
    text,
    maxRetries = 3,
    backoffFactor = 2
) {
    for (let attempt = 0; attempt < maxRetries; attempt++) {
        try {
            const response = await fetch(API_URL, {
                method: 'POST',
                headers: {
                    'Authorization': `Bearer ${API_KEY}`,
                    'Content-Type': 'application/json'
                },
                body: JSON.stringify({
                    input: text,
                    model: 'text-embedding-3-small'
                })
            });

            if (response.ok) {
                const data = await response.json();
                return data.data[0].embedding;
            }

            if (response.status === 429 || response.status >= 500) {
                // Retry with backoff
                const waitTime = Math.pow(backoffFactor, attempt) * 1000;
                console.log(`Retrying in ${waitTime}ms...`);
                await new Promise(resolve => setTimeout(resolve, waitTime));
            } else {
                // Client error - don't retry
                const error = await response.json();
                throw new Error(error.error.message);
            }

        } catch (error) {
            if (attempt === maxRetries - 1) throw error;

            const waitTime = Math.pow(backoffFactor, attempt) * 1000;
            await new Promise(resolve => setTimeout(resolve, waitTime));
        }
    }
}
"""


def test_python_s_retries(world: World) -> None:
    """A provider that fails once is waited for here; a text that is none is a client's error, which is not repeated."""
    needs("requests")
    world.wire.plan(script=[{"fault": "status", "status": 503}])
    shown = '[create_embeddings_with_retry("Hello world"), create_embeddings_with_retry("")]'
    found, nothing = world.python(PYTHON_RETRY, shown)

    same([found], "Hello world")
    assert nothing is None


def test_javascript_s_retries(world: World) -> None:
    """The same; what is wrong is read from `error.error.message`."""
    shown = """[
    await createEmbeddingsWithRetry('Hello world'),
    await createEmbeddingsWithRetry('', 1).catch(error => error.message)
]"""
    found, wrong = world.javascript(JAVASCRIPT_RETRY, shown)

    same([found], "Hello world")
    assert "empty" in wrong


def test_javascript_s_backoff(world: World) -> None:
    """`withBackoff` goes on at anything but a 429, and gives up after its retries."""
    example = """
async function withBackoff(fn, retries = 3) {
  for (let i = 0; i < retries; i++) {
    const res = await fn();
    if (res.status !== 429) return res;
    await new Promise(r => setTimeout(r, Math.pow(2, i) * 1000));
  }
}
const ask = (key) => fetch('http://localhost:8000/api/v1/embeddings', {
    method: 'POST',
    headers: { 'Authorization': `Bearer ${key}`, 'Content-Type': 'application/json' },
    body: JSON.stringify({ input: 'Hello world', model: 'text-embedding-3-small' })
});
const first = await withBackoff(() => ask('your_api_key'));
await ask('LIMITED');
const none = await withBackoff(() => ask('LIMITED'), 2);
"""
    found = world.javascript(example.replace("LIMITED", world.limited), "[first.status, none === undefined]")

    assert found == [200, True]


# ── the guide's own clients ──────────────────────────────────────────────────────────────────────────────────────────

PYTHON_CLIENT = '''
import requests
from typing import List, Optional, Union

class EmbeddingsClient:
    """Python client for Embeddings API"""

    def __init__(self, api_url: str, api_key: str):
        self.api_url = api_url
        self.api_key = api_key
        self.session = requests.Session()
        self.session.headers.update({
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/json"
        })

    def create_embedding(
        self,
        text: Union[str, List[str]],
        model: str = "text-embedding-3-small",
        provider: Optional[str] = None
    ) -> List[List[float]]:
        """Create embeddings for text"""

        headers = {}
        if provider:
            headers["x-provider"] = provider

        response = self.session.post(
            f"{self.api_url}/embeddings",
            headers=headers,
            json={
                "input": text,
                "model": model
            }
        )

        response.raise_for_status()
        data = response.json()

        return [item["embedding"] for item in data["data"]]

# Usage
client = EmbeddingsClient(
    api_url="http://localhost:8000/api/v1",
    api_key="your_api_key"
)

# Single embedding
embedding = client.create_embedding("Hello world")

# Batch embeddings
embeddings = client.create_embedding([
    "First text",
    "Second text",
    "Third text"
])
'''

BATCHES = '''
def process_large_dataset(texts: List[str], batch_size: int = 100):
    """Process large dataset efficiently"""

    all_embeddings = []

    for i in range(0, len(texts), batch_size):
        batch = texts[i:i + batch_size]

        # Process batch
        embeddings = client.create_embedding(batch)
        all_embeddings.extend(embeddings)

        # Progress tracking
        progress = (i + len(batch)) / len(texts) * 100
        print(f"Progress: {progress:.1f}%")

    return all_embeddings
'''


def test_the_python_client(world: World) -> None:
    """One text, some, and a provider that a header names."""
    needs("requests")
    local = 'client.create_embedding("Hello world", "sentence-transformers/all-MiniLM-L6-v2", "huggingface")'
    one, some, other = world.python(PYTHON_CLIENT, f"[embedding, embeddings, {local}]")

    same(one, "Hello world")
    same(some, "First text", "Second text", "Third text")
    assert [len(vector) for vector in other] == [384]


def test_large_datasets_in_batches(world: World) -> None:
    """A hundred texts a request, all in order."""
    needs("requests")
    texts = [f"text {n}" for n in range(250)]
    found = world.python(PYTHON_CLIENT + BATCHES, 'process_large_dataset([f"text {n}" for n in range(250)])')

    same(found, *texts)


def test_requests_at_once(world: World) -> None:
    """Ten at once with aiohttp."""
    needs("aiohttp")
    example = '''
import asyncio
import aiohttp
from typing import List

API_URL = "http://localhost:8000/api/v1"
API_KEY = "your_api_key"
texts = [f"text {n}" for n in range(30)]

async def create_embedding_async(
    session: aiohttp.ClientSession,
    text: str
) -> List[float]:
    """Async embedding creation"""

    async with session.post(
        f"{API_URL}/embeddings",
        json={"input": text, "model": "text-embedding-3-small"}
    ) as response:
        data = await response.json()
        return data["data"][0]["embedding"]

async def process_parallel(texts: List[str], max_concurrent: int = 10):
    """Process embeddings in parallel"""

    headers = {"Authorization": f"Bearer {API_KEY}"}

    async with aiohttp.ClientSession(headers=headers) as session:
        semaphore = asyncio.Semaphore(max_concurrent)

        async def bounded_create(text):
            async with semaphore:
                return await create_embedding_async(session, text)

        tasks = [bounded_create(text) for text in texts]
        return await asyncio.gather(*tasks)

# Use
embeddings = asyncio.run(process_parallel(texts, max_concurrent=10))
'''
    same(world.python(example, "embeddings"), *(f"text {n}" for n in range(30)))


def test_the_javascript_client(world: World) -> None:
    """The guide's TypeScript, without its types."""
    example = """
class EmbeddingsClient {
    constructor(apiUrl, apiKey) {
        this.apiUrl = apiUrl;
        this.apiKey = apiKey;
    }

    async createEmbedding(
        input,
        model = 'text-embedding-3-small',
        provider
    ) {
        const headers = {
            'Authorization': `Bearer ${this.apiKey}`,
            'Content-Type': 'application/json'
        };

        if (provider) {
            headers['x-provider'] = provider;
        }

        const response = await fetch(`${this.apiUrl}/embeddings`, {
            method: 'POST',
            headers,
            body: JSON.stringify({ input, model })
        });

        if (!response.ok) {
            throw new Error(`API error: ${response.statusText}`);
        }

        const data = await response.json();
        return data.data.map(item => item.embedding);
    }

    async *streamBatchEmbeddings(
        texts,
        batchSize = 10
    ) {
        for (let i = 0; i < texts.length; i += batchSize) {
            const batch = texts.slice(i, i + batchSize);
            const embeddings = await this.createEmbedding(batch);
            yield embeddings;
        }
    }
}

// Usage
const client = new EmbeddingsClient(
    'http://localhost:8000/api/v1',
    'your_api_key'
);

// Single embedding
const embedding = await client.createEmbedding('Hello world');

// Batch with streaming
const counts = [];
const texts = Array(100).fill('text');
for await (const batch of client.streamBatchEmbeddings(texts)) {
    console.log(`Processed ${batch.length} embeddings`);
    counts.push(batch.length);
}
"""
    one, counts = world.javascript(example, "[embedding, counts]")

    same(one, "Hello world")
    assert counts == [10] * 10


# ── curl ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def curl(path: str, body: str, more: str = "") -> str:
    """As the guide writes all of them: both headers, of which one comes from a variable that is not set."""
    return f"""
curl -X POST "http://localhost:8000/api/v1{path}" \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $JWT_OR_API_KEY" \\
  -H "X-API-KEY: ${{API_KEY_IF_SINGLE_USER:-}}" \\
  {more}-d '{body}'
"""


def test_curl_s_examples(world: World) -> None:
    """Basic, a named provider, a batch, another width, and base64."""
    basic = world.shell(
        curl("/embeddings", '{\n    "input": "Hello world",\n    "model": "text-embedding-3-small"\n  }')
    )
    local = '{\n    "input": "Hello world",\n    "model": "sentence-transformers/all-MiniLM-L6-v2"\n  }'
    named = world.shell(curl("/embeddings", local, '-H "x-provider: huggingface" \\\n  '))
    texts = '{\n    "texts": ["Text 1", "Text 2", "Text 3"],\n    "model": "text-embedding-3-small"\n  }'
    batch = world.shell(curl("/embeddings/batch", texts))
    large = '{\n    "input": "Hello world",\n    "model": "text-embedding-3-large",\n    "dimensions": 1024\n  }'
    width = world.shell(curl("/embeddings", large))
    packed = '{"input": "Hello world", "model": "text-embedding-3-small", "encoding_format": "base64"}'
    base64 = world.shell(curl("/embeddings", packed))

    same([basic["data"][0]["embedding"]], "Hello world")
    assert named["model"] == "huggingface:sentence-transformers/all-MiniLM-L6-v2"
    assert len(named["data"][0]["embedding"]) == 384
    same(batch["embeddings"], "Text 1", "Text 2", "Text 3")
    assert (batch["model"], batch["provider"], batch["count"]) == (MODEL, "openai", 3)
    assert len(width["data"][0]["embedding"]) == 1024
    assert isinstance(base64["data"][0]["embedding"], str)


def test_media(world: World) -> None:
    """A media item is embedded by a job, of which status and the paths of jobs tell; asked for again it is the same."""
    item = world.server.folder / "media" / "acme" / "123.txt"
    item.parent.mkdir(parents=True)
    item.write_text("The text of a media item.")
    model = "sentence-transformers/all-MiniLM-L6-v2"
    body = f"""{{ "embedding_model": "{model}", "embedding_provider": "huggingface",
    "chunk_size": 1000, "chunk_overlap": 200 }}"""
    begun = world.shell(curl("/media/123/embeddings", body))

    def get(path: str) -> Any:
        return world.shell(f'curl -X GET "http://localhost:8000/api/v1/media{path}" -H "X-API-KEY: your_api_key"')

    until(lambda: get(f"/embeddings/jobs/{begun['job_id']}")["status"] == "completed", seconds=60)
    job, status = get(f"/embeddings/jobs/{begun['job_id']}"), get("/123/embeddings/status")
    listed = get("/embeddings/jobs?status=completed&limit=50&offset=0")
    again = world.shell(curl("/media/123/embeddings", body))

    assert {"media_id": 123, "status": "accepted", "message": "Embedding generation started"}.items() <= begun.items()
    assert begun["job_id"].startswith("mej_")
    assert (job["media_id"], job["embedding_count"], job["progress_percent"]) == (123, 1, 100.0)
    assert (status["has_embeddings"], status["embedding_model"]) == (True, model)
    assert [one["id"] for one in listed["data"]] == [begun["job_id"]]
    assert listed["pagination"].items() >= {"limit": 50, "offset": 0, "count": 1}.items()
    assert again["job_id"] == begun["job_id"]


def test_health_and_models(world: World) -> None:
    """The two lists that the guide prints have its fields."""
    models = world.shell('curl -X GET "http://localhost:8000/api/v1/embeddings/models" -H "X-API-KEY: your_api_key"')
    health = world.shell('curl -X GET "http://localhost:8000/api/v1/embeddings/health" -H "X-API-KEY: your_api_key"')

    assert models.keys() == {"data", "allowed_providers", "allowed_models"}
    assert {"provider": "openai", "model": MODEL, "allowed": True, "default": True} in models["data"]
    assert health.keys() == {
        "status", "service", "timestamp", "cache_stats", "active_requests", "circuit_breakers",
    }  # fmt: skip
    assert health["cache_stats"].keys() == {"size", "max_size", "ttl_seconds"}


ADMIN_EXAMPLES = """
curl -X GET "http://localhost:8000/api/v1/embeddings/providers-config"
curl -X GET "http://localhost:8000/api/v1/embeddings/models"
curl -X GET "http://localhost:8000/api/v1/embeddings/models/text-embedding-3-small"
curl -X POST "http://localhost:8000/api/v1/embeddings/models/warmup" -d '{"model": "all-MiniLM-L6-v2"}'
curl -X POST "http://localhost:8000/api/v1/embeddings/models/download" -d '{"model": "all-MiniLM-L6-v2"}'
curl -X GET "http://localhost:8000/api/v1/embeddings/circuit-breakers"
curl -X POST "http://localhost:8000/api/v1/embeddings/circuit-breakers/openai/reset"
curl -X GET "http://localhost:8000/api/v1/embeddings/metrics"
"""


def test_administration(world: World) -> None:
    """What the guide lists for admins: a single user acts as one, a tenant's key does not."""
    world.shell(curl("/embeddings", '{"input": "Hello world", "model": "text-embedding-3-small"}'))
    told = []
    for example in ADMIN_EXAMPLES.strip().splitlines():
        said = f'{example} -H "Content-Type: application/json" -H "X-API-KEY: $SINGLE_USER_API_KEY"'
        told.append(world.shell(said))
        refused = world.shell(said.replace("$SINGLE_USER_API_KEY", "$JWT_OR_API_KEY"))
        assert (refused.get("error") or {}).get("code") == (
            None if "GET" in said and "/models" in said else "admin_required"
        )
    providers, models, model, warmed, downloaded, circuits, reset, metrics = told

    assert {"openai", "huggingface", "onnx", "local_api"} <= {one["name"] for one in providers["providers"]}
    assert model["model"] in [one["model"] for one in models["data"]]
    assert warmed["status"] == downloaded["status"] == "ok"
    assert circuits["openai"]["state"] == "closed"
    assert "openai" in reset["message"]
    assert metrics["counters"]["requests_total"] >= 1


# ── SDKs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_openai_sdk(world: World) -> None:
    """Only its base_url is another."""
    needs("openai")
    example = """
# This API is OpenAI-compatible
from openai import OpenAI

client = OpenAI(
    api_key="your_api_key",
    base_url="http://localhost:8000/api/v1"
)

# Create embedding
response = client.embeddings.create(
    input="Your text here",
    model="text-embedding-3-small"
)

embedding = response.data[0].embedding
"""
    same([world.python(example, "embedding")], "Your text here")


def test_langchain(world: World) -> None:
    """The guide's class of embeddings, and a vector store over it."""
    needs("langchain_core", "requests")
    example = '''
import requests
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from typing import List

class TLDWEmbeddings(Embeddings):
    """Custom LangChain embeddings using TLDW API"""

    def __init__(self, api_url: str, api_key: str, model: str = "text-embedding-3-small"):
        self.api_url = api_url
        self.api_key = api_key
        self.model = model

    def embed_documents(self, texts: List[str]) -> List[List[float]]:
        """Embed documents"""
        response = requests.post(
            f"{self.api_url}/embeddings",
            headers={"Authorization": f"Bearer {self.api_key}"},
            json={"input": texts, "model": self.model}
        )
        data = response.json()
        return [item["embedding"] for item in data["data"]]

    def embed_query(self, text: str) -> List[float]:
        """Embed query text"""
        return self.embed_documents([text])[0]

# Use with LangChain
embeddings = TLDWEmbeddings(
    api_url="http://localhost:8000/api/v1",
    api_key="your_api_key"
)

# With vector store
documents = [Document("First text"), Document("Second text")]
vectorstore = InMemoryVectorStore.from_documents(
    documents=documents,
    embedding=embeddings
)
found = vectorstore.similarity_search("Second text", k=1)[0].page_content
'''
    vectors, found = world.python(example, '[embeddings.embed_documents(["First text", "Second text"]), found]')

    same(vectors, "First text", "Second text")
    assert found == "Second text"


def test_llama_index(world: World) -> None:
    """The guide's class of embeddings."""
    needs("llama_index.core", "requests")
    example = '''
import requests
from llama_index.core.embeddings import BaseEmbedding
from typing import List

class TLDWEmbedding(BaseEmbedding):
    """LlamaIndex embedding using TLDW API"""

    api_url: str
    api_key: str
    model: str = "text-embedding-3-small"

    def _get_embedding(self, text: str) -> List[float]:
        """Get embedding for text"""
        response = requests.post(
            f"{self.api_url}/embeddings",
            headers={"Authorization": f"Bearer {self.api_key}"},
            json={"input": text, "model": self.model}
        )
        return response.json()["data"][0]["embedding"]

    def _get_text_embedding(self, text: str) -> List[float]:
        """Required by LlamaIndex"""
        return self._get_embedding(text)

    def _get_query_embedding(self, query: str) -> List[float]:
        """Required by LlamaIndex"""
        return self._get_embedding(query)

    async def _aget_query_embedding(self, query: str) -> List[float]:
        return self._get_embedding(query)

# Use with LlamaIndex
embedding = TLDWEmbedding(api_url="http://localhost:8000/api/v1", api_key="your_api_key")
'''
    shown = (
        '[embedding.get_text_embedding_batch(["First text", "Second text"]), embedding.get_query_embedding("A query")]'
    )
    texts, query = world.python(example, shown)

    same(texts, "First text", "Second text")
    same([query], "A query")
