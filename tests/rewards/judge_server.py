"""A judge on this machine: speaks the chat-completions protocol and says what a test scripts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Says:
    """One reply of the server."""

    content: str | None = ""
    """What the model says."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | bytes | None = None
    """The whole body, in place of a chat completion."""
    drips: str = ""
    """Whether "head" or "body" comes a byte at a time, faster than any wait for a byte ends, until the test is over."""
    endless: bool = False
    """Whether the body never ends."""
    held: bool = False
    """Whether it is held back until the test is over."""


@dataclass
class Server:
    """What it was asked, and where it is."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def judge_server(script: Callable[[dict[str, Any], int], Says]) -> Iterator[Server]:
    """A server in a thread; `script` gets a request's body and how many came before it."""
    lock, over = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                place = len(server.bodies)
                server.bodies.append({**body, "path": self.path})
                server.headers.append(dict(self.headers))
            says = script(body, place)
            if says.held:
                over.wait()
                return
            content = {"choices": [{"message": {"role": "assistant", "content": says.content}}]}
            raw = json.dumps(content) if says.body is None else says.body
            raw = raw.encode() if isinstance(raw, str) else raw
            if says.drips == "head":
                self.drip(b"HTTP/1.1 200 O")
                return
            self.send_response(says.status)
            for name, value in {
                "Content-Length": str(2**40 if says.endless or says.drips else len(raw)),
                **says.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if says.drips == "body":
                self.drip(raw[:1])
            while says.endless and not over.is_set():
                self.wfile.write(b"x" * 2**16)
            self.wfile.write(raw)

        def drip(self, letter: bytes) -> None:
            self.wfile.write(letter)
            while not over.wait(0.02):
                self.wfile.write(letter[-1:])

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            """Tests print nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        over.set()
        http.shutdown()
        thread.join()
        http.server_close()
