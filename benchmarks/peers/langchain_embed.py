"""langchain-openai's aembed_documents. `langchain_embed.py IN OUT BASE_URL`."""

import asyncio
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from langchain_openai import OpenAIEmbeddings

SOURCE, TARGET, URL = sys.argv[1:4]


async def main() -> None:
    table = pq.read_table(SOURCE)
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small",
        api_key="sk-bench",
        base_url=URL,
        chunk_size=512,
        check_embedding_ctx_length=False,
    )
    vectors = await embeddings.aembed_documents(table.column("text").to_pylist())
    pq.write_table(table.append_column("embedding", pa.array(vectors, pa.list_(pa.float32()))), TARGET)


asyncio.run(main())
