"""A local judge server: the chat-completions protocol with scripted replies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One reply of the server."""

    content: str | None = ""
    """The text of the completion."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | bytes | None = None
    """The raw body instead of a chat completion."""
    drips: str = ""
    """Send the "head" or the "body" byte by byte until the test ends, without ever exceeding the read timeout."""
    endless: bool = False
    """Send an endless body."""
    held: bool = False
    """Send nothing until the test ends."""


@dataclass
class Server:
    """The URL of the server and the requests it received."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def judge_server(script: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    """A server in a thread; `script` receives the body of a request and its index."""
    lock, over = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                index = len(server.bodies)
                server.bodies.append({**body, "path": self.path})
                server.headers.append(dict(self.headers))
            reply = script(body, index)
            if reply.held:
                over.wait()
                return
            content = {"choices": [{"message": {"role": "assistant", "content": reply.content}}]}
            raw = json.dumps(content) if reply.body is None else reply.body
            raw = raw.encode() if isinstance(raw, str) else raw
            if reply.drips == "head":
                self.drip(b"HTTP/1.1 200 O")
                return
            self.send_response(reply.status)
            for name, value in {
                "Content-Length": str(2**40 if reply.endless or reply.drips else len(raw)),
                **reply.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if reply.drips == "body":
                self.drip(raw[:1])
            while reply.endless and not over.is_set():
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
