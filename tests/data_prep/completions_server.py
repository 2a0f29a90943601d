"""A completions endpoint on loopback that does as it is told, one behaviour a request, and remembers what it saw."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


class CompletionsServer(ThreadingHTTPServer):
    """Answers "word " and the prompt's first id; `script` has other behaviours for the first requests.

    Behaviours: answer, busy (429), broken (500), hang, close, garbage (no JSON), page (HTML), refuse (400 in words),
    detail (422, worded otherwise), bare (no usage), empty (no choices), a finish reason in JSON, `reason:"abort"`, and
    words to say, `says:yes`.
    "hold" answers when `released` is set; "answer" when `together` requests are there.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, script: Sequence[str] = (), default: str = "answer", together: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.default = list(script), default
        self.barrier = threading.Barrier(together)
        self.released, self.lock = threading.Event(), threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def enter(self, body: dict[str, Any], key: str | None) -> str:
        with self.lock:
            self.bodies.append(body)
            self.keys.append(key)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            behaviour = self.script.pop(0) if self.script else self.default
        if behaviour == "answer":
            self.barrier.wait(timeout=30)
        return behaviour

    def leave(self) -> None:
        with self.lock:
            self.in_flight -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = cast(CompletionsServer, self.server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour = server.enter(body, self.headers.get("Authorization"))
        if behaviour in ("hang", "hold"):
            server.released.wait(timeout=30)
        server.leave()  # before the answer: after it the client may already have sent the next
        if behaviour in ("hang", "close"):
            self.close_connection = True
        else:
            self.reply(*answer(behaviour.replace("hold", "answer"), body))

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def answer(behaviour: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers."""
    head = body["prompt"] if isinstance(body["prompt"], str) else body["prompt"][0]
    choice = {"index": 0, "text": f"word {head}", "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 7, "total_tokens": len(body["prompt"]) + 7}
    whole = {"id": "c", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice]}
    table: dict[str, tuple[int, Any, dict[str, str]]] = {
        "answer": (200, {**whole, "usage": usage}, {}),
        "bare": (200, whole, {}),
        "empty": (200, {**whole, "choices": []}, {}),
        "busy": (429, {"error": {"message": "too many requests"}}, {"Retry-After": "0"}),
        "broken": (500, {"error": {"message": "out of memory on rank 3"}}, {}),
        "refuse": (400, {"error": {"message": "longer than the context of 8 tokens", "type": "BadRequest"}}, {}),
        "detail": (422, {"detail": "prompt: not a string"}, {}),
    }
    if behaviour.startswith("reason:"):
        reason = json.loads(behaviour.removeprefix("reason:"))
        return 200, json.dumps({**whole, "choices": [{**choice, "finish_reason": reason}], "usage": usage}).encode(), {}
    if behaviour.startswith("says:"):
        said = {**choice, "text": behaviour.removeprefix("says:")}
        return 200, json.dumps({**whole, "choices": [said], "usage": usage}).encode(), {}
    if behaviour == "garbage":
        return 200, b'{"choices": [', {}
    if behaviour == "page":
        return 200, b"<html>maintenance</html>", {"Content-Type": "text/html"}
    status, content, headers = table[behaviour]
    return status, json.dumps(content).encode(), headers


@contextmanager
def serving(*arguments: Any, **keywords: Any) -> Iterator[CompletionsServer]:
    """A running server; whoever hangs in it is let go at the end."""
    server = CompletionsServer(*arguments, **keywords)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
