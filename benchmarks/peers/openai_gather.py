"""What most people write: the official SDK, asyncio.gather, lists to Parquet. `openai_gather.py IN OUT BASE_URL`."""

import asyncio
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from openai import AsyncOpenAI

SOURCE, TARGET, URL = sys.argv[1:4]


async def main() -> None:
    client = AsyncOpenAI(api_key="sk-bench", base_url=URL, max_retries=2)
    table = pq.read_table(SOURCE)
    texts = table.column("text").to_pylist()
    gate = asyncio.Semaphore(16)

    async def one(part: list[str]) -> list[list[float]]:
        async with gate:
            answer = await client.embeddings.create(model="text-embedding-3-small", input=part)
            return [item.embedding for item in answer.data]

    parts = await asyncio.gather(*(one(texts[i : i + 512]) for i in range(0, len(texts), 512)))
    vectors = [vector for part in parts for vector in part]
    pq.write_table(table.append_column("embedding", pa.array(vectors, pa.list_(pa.float32()))), TARGET)


asyncio.run(main())
