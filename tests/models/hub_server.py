"""A fake Hub on the loopback interface with one model and several that it refuses."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

COMMIT = "a" * 40
REFUSALS = {"gated": (403, "GatedRepo"), "absent": (404, "RepoNotFound"), "broken": (500, "")}


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Serves org/tiny from `directory`, and refuses org/gated, org/absent and org/broken; yields the address."""
    requests = type("Requests", (HubRequests,), {"directory": directory})
    server = ThreadingHTTPServer(("127.0.0.1", 0), requests)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class HubRequests(BaseHTTPRequestHandler):
    """The three requests of a download: the commit, the list of files, and each file."""

    directory: Path

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        for name, (status, code) in REFUSALS.items():
            if f"org/{name}" in path:
                self.answer(status, b"", {"X-Error-Code": code})
                return
        files = sorted(item.name for item in self.directory.iterdir())
        if "/tree/" in path:
            tree = [{"type": "file", "path": f, "size": self.size(f), "oid": self.digest(f)} for f in files]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith("/api/models/org/tiny"):
            found = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            self.answer(200, json.dumps(found).encode())
        elif path.rpartition("/")[2] not in files:
            self.answer(404, b"")
        else:
            name = path.rpartition("/")[2]
            self.answer(200, (self.directory / name).read_bytes(), {"ETag": f'"{self.digest(name)}"'})

    do_HEAD = do_GET

    def size(self, name: str) -> int:
        return (self.directory / name).stat().st_size

    def digest(self, name: str) -> str:
        return hashlib.sha1((self.directory / name).read_bytes()).hexdigest()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Suppresses the log on stderr."""
