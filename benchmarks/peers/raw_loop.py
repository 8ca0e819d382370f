"""The fastest loop that can be written by hand: `raw_loop.py aiohttp|httpx base64|float IN OUT URL`.

Bounded queue, 16 requests of 512 texts in flight, typed lazy JSON, pybase64 into float32, Parquet in a thread. No
retry, no journal, no accounting, no check of any answer.
"""

import asyncio
import sys

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pybase64

CLIENT, FORMAT, SOURCE, TARGET, URL = sys.argv[1:6]
BATCH, CONCURRENCY, D = 512, 16, 1536


class Item(msgspec.Struct):
    embedding: msgspec.Raw


class Body(msgspec.Struct):
    data: list[Item]


decoder = msgspec.json.Decoder(Body)


def vectors(body: bytes) -> np.ndarray:
    items = decoder.decode(body).data
    if FORMAT == "float":
        import simdjson

        out = np.empty((len(items), D), np.float32)
        for i, item in enumerate(items):
            out[i] = np.frombuffer(simdjson.Parser().parse(bytes(item.embedding)).as_buffer(of_type="d"), np.float64)
        return out
    return np.frombuffer(
        b"".join(pybase64.b64decode(memoryview(item.embedding)[1:-1], validate=True) for item in items), np.float32
    ).reshape(-1, D)


async def main() -> None:
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), D)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("embedding", kind)])
    writer = pq.ParquetWriter(TARGET, schema, compression="none", use_dictionary=False, write_statistics=False)
    todo: asyncio.Queue = asyncio.Queue(CONCURRENCY)
    done: dict[int, tuple] = {}

    if CLIENT == "aiohttp":
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))

        async def post(payload: dict) -> bytes:
            async with session.post(
                URL, data=msgspec.json.encode(payload), headers={"content-type": "application/json"}
            ) as r:
                return await r.read()

        close = session.close
    else:
        import httpx

        session = httpx.AsyncClient(limits=httpx.Limits(max_connections=CONCURRENCY), timeout=120)

        async def post(payload: dict) -> bytes:
            return (await session.post(URL, content=msgspec.json.encode(payload))).content

        close = session.aclose

    async def work() -> None:
        while (taken := await todo.get()) is not None:
            number, ids, texts = taken
            body = await post({"model": "text-embedding-3-small", "input": texts, "encoding_format": FORMAT})
            done[number] = (ids, texts, vectors(body))

    def put(group: list[tuple]) -> None:
        flat = pa.chunked_array(
            [pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), type=kind) for _, _, v in group], type=kind
        )
        ids = pa.array([i for part, _, _ in group for i in part], pa.int64())
        texts = pa.array([t for _, part, _ in group for t in part], pa.string())
        writer.write_table(pa.Table.from_arrays([ids, texts, flat], schema=schema), row_group_size=16_384)

    workers = [asyncio.create_task(work()) for _ in range(CONCURRENCY)]
    for worker in workers:
        worker.add_done_callback(lambda task: task.exception() and sys.exit(repr(task.exception())))
    written, group = 0, []

    async def flush(last: bool = False) -> None:
        nonlocal written, group
        while written in done:
            group.append(done.pop(written))
            written += 1
            if len(group) * BATCH >= 16_384:
                full, group = group, []
                await asyncio.to_thread(put, full)
        if last and group:
            await asyncio.to_thread(put, group)

    for number, batch in enumerate(pq.ParquetFile(SOURCE).iter_batches(BATCH)):
        await todo.put((number, batch.column("id").to_pylist(), batch.column("text").to_pylist()))
        await flush()
    for _ in workers:
        await todo.put(None)
    await asyncio.gather(*workers)
    await flush(last=True)
    writer.close()
    await close()


asyncio.run(main())
