"""A completions server that answers each request with the same words, `latency` seconds after it came."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection


@contextmanager
def serving(text: str, tokens: int, latency: float) -> Iterator[str]:
    """The address of one in a process of its own, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, text, tokens, latency), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.kill()
        process.join()


def _serve(told: Connection, text: str, tokens: int, latency: float) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    made = {"id": "0", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    body = json.dumps(made).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
            except asyncio.IncompleteReadError:
                break
            await reader.readexactly(int(asked.partition(b"content-length:")[2].split(b"\r\n")[0]))
            await asyncio.sleep(latency)
            writer.write(head + body)
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=4096)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())
