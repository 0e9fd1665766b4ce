"""A local judge server with scripted replies (the chat-completions protocol), and judges that use it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from omegaconf import OmegaConf

from postrain.config.tree import instantiate
from postrain.rewards.judge import Judge
from tests.rewards.test_configs import CONF


@dataclass(frozen=True)
class Reply:
    """One reply of the server."""

    content: str | None = ""
    """The text of the completion."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | bytes | None = None
    """The raw body instead of a chat completion."""
    slow_part: str = ""
    """Send the "head" or the "body" byte by byte until the test ends, each byte within the read timeout."""
    endless: bool = False
    """Send an endless body."""
    silent: bool = False
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
    lock, test_over = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                index = len(server.bodies)
                server.bodies.append({**body, "path": self.path})
                server.headers.append(dict(self.headers))
            reply = script(body, index)
            if reply.silent:
                test_over.wait()
                return
            content = {"choices": [{"message": {"role": "assistant", "content": reply.content}}]}
            raw = json.dumps(content) if reply.body is None else reply.body
            raw = raw.encode() if isinstance(raw, str) else raw
            if reply.slow_part == "head":
                self.send_slowly(b"HTTP/1.1 200 O")
                return
            self.send_response(reply.status)
            for name, value in {
                "Content-Length": str(2**40 if reply.endless or reply.slow_part else len(raw)),
                **reply.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if reply.slow_part == "body":
                self.send_slowly(raw[:1])
            while reply.endless and not test_over.is_set():
                self.wfile.write(b"x" * 2**16)
            self.wfile.write(raw)

        def send_slowly(self, letter: bytes) -> None:
            self.wfile.write(letter)
            while not test_over.wait(0.02):
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
        test_over.set()
        http.shutdown()
        thread.join()
        http.server_close()


TOP_SCORE = Reply('{"score": 10}')


def judge_config(option: str, url: str, **changes: Any) -> dict[str, Any]:
    """A judge from a YAML of conf/reward, without waits between retries."""
    settings = {"url": url, "model": "fake", "timeout": 5.0, "backoff": 0.0, "retry_after": 0, **changes}
    found = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF / f"{option}.yaml"), settings))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def make_judge(server: Server | str, **changes: Any) -> Judge:
    """The judge of reward=judge at a server."""
    return instantiate(judge_config("judge", server if isinstance(server, str) else server.url, **changes))


def scores_of(judge: Judge, *completions: str) -> list[float]:
    """The rewards of completions of the same prompt."""
    return judge(["Hi."] * len(completions), completions, [{}] * len(completions)).total_B.tolist()


def question_of(body: dict[str, Any]) -> str:
    """The first message of a request."""
    return body["messages"][0]["content"]


def unused_address() -> str:
    """An address without a server."""
    with judge_server(lambda body, index: TOP_SCORE) as server:
        return server.url
