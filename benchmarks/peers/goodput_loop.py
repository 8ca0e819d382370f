"""Send `requests` requests of ten texts, sixteen at once, and print how many were never answered.

python goodput_loop.py openai|fixed BASE_URL REQUESTS     the SDK with its own retries, or a loop that waits 1 s
"""

from __future__ import annotations

import asyncio
import sys

import httpx
import openai


async def main(kind: str, base: str, count: int) -> None:
    slots, lost = asyncio.Semaphore(16), 0
    client = openai.AsyncOpenAI(api_key="sk-none", base_url=base)
    plain = httpx.AsyncClient(limits=httpx.Limits(max_connections=16))

    async def by_sdk(texts: list[str]) -> bool:
        try:
            await client.embeddings.create(model="text-embedding-3-small", input=texts)
        except openai.APIError:
            return False
        return True

    async def by_loop(texts: list[str]) -> bool:
        for _ in range(20):
            answer = await plain.post(
                f"{base}/embeddings",
                json={"model": "text-embedding-3-small", "input": texts, "encoding_format": "base64"},
            )
            if answer.status_code == 200:
                return True
            await asyncio.sleep(1)
        return False

    async def one(number: int) -> None:
        nonlocal lost
        texts = [f"text {number} {index}" for index in range(10)]
        async with slots:
            lost += not await (by_sdk(texts) if kind == "openai" else by_loop(texts))

    await asyncio.gather(*map(one, range(count)))
    print(lost)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
