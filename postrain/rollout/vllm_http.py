"""HTTP requests to a vLLM server, with one-line errors: a lost server (down, killed, restarting) can be waited for, a
refusal cannot."""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from postrain.errors import ConfigError
from postrain.rollout.engine import EngineLost

SERVE = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs"
POLL = 2.0
"""Seconds between questions whether a server is up."""


class ServerLost(EngineLost):
    """The server cannot be reached, or stopped while it answered."""


@dataclass(frozen=True)
class Connection:
    """A server's address without a slash at the end, and the seconds to wait for an answer."""

    url: str
    timeout: float
    key: str = "rollout.url"
    """The config key of the address, for messages."""
    start: str = SERVE
    """The command that starts the server."""
    slow: str = "raise rollout.timeout or lower method.batch_size or rollout.max_new_tokens"
    """What to do if an answer takes too long."""

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The parsed response; None if it is not JSON. Raises ServerLost or ConfigError."""
        try:
            return self._request(path, body, self.timeout)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:300].replace("\n", " ")
            message = f"{path} was refused ({error.code}): {detail}; start it with {self.start}"
            # An engine that died answers its last requests with an error before the server ends.
            kind = ServerLost if error.code >= 500 and not self.is_up() else ConfigError
            raise kind(f"{self.key}={self.url}: {message}") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", error), TimeoutError):
                raise ConfigError(
                    f"{self.key}={self.url}: {path} has no answer within {self.timeout:g} s; {self.slow}"
                ) from None
            raise ServerLost(
                f"{self.key}={self.url}: {path} cannot be reached ({error}); start it with {self.start}"
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"{self.key}={self.url}: {path} does not answer with JSON ({error}); expected vLLM, started with "
                f"{self.start}"
            ) from None

    def is_up(self) -> bool:
        """Whether the server and its engine run."""
        try:
            self._request("/health", None, min(10.0, self.timeout))
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True

    def wait(self, lost: ServerLost, seconds: float) -> None:
        """Returns when the server is up. Raises `lost` if it is not within `seconds`."""
        until, announced = time.monotonic() + seconds, False
        while not self.is_up():
            if time.monotonic() > until:
                raise lost
            if not announced:
                print(f"note: waiting up to {seconds:g} s for the vLLM server at {self.url}", file=sys.stderr)
                announced = True
            time.sleep(min(POLL, max(0.0, until - time.monotonic()) + 0.01))

    def _request(self, path: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            text, kind = response.read(), response.headers.get_content_type()
        # Adapters are confirmed in plain text.
        return json.loads(text) if text and kind == "application/json" else None


@dataclass(frozen=True)
class Connections:
    """One or several servers that have the same weights."""

    servers: tuple[Connection, ...]

    @property
    def where(self) -> str:
        """The config key, for messages."""
        return f"rollout.url={','.join(server.url for server in self.servers)}"

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> list[Any]:
        """The responses of all servers, which answer at the same time. Raises ServerLost or ConfigError."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(lambda server: server.request(path, body), self.servers))

    def wait(self, lost: ServerLost, seconds: float) -> None:
        """Returns when all servers are up. Raises `lost` if one of them is not within `seconds`."""
        for server in self.servers:
            server.wait(lost, seconds)
