"""HTTP requests with a limit on their total time and on the size of the response.

The timeout of requests and urllib3 limits each wait for a byte. Without a total limit, a server that sends a byte every
half second would block a run forever, and an endless response would fill the memory.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

MAX_BODY = 2**20
"""Bytes; the answer of a judge has a few hundred."""


class _Exchange(threading.local):
    """The current request of a thread; its socket is shut down after the timeout."""

    timer: threading.Timer | None = None
    timed_out: threading.Event

    def begin(self, connection: Any) -> None:
        """Starts the timer of another attempt."""
        self.end()
        self.timed_out.clear()
        self.timer = threading.Timer(connection.timeout, _shut_down, (connection.sock, self.timed_out))
        self.timer.daemon = True
        self.timer.start()

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


def _shut_down(sock: socket.socket, timed_out: threading.Event) -> None:
    timed_out.set()
    with suppress(OSError):
        # SSLSocket.shutdown would drop the TLS state that the reading thread uses.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


EXCHANGE = _Exchange()


class _Bounded:
    """Mixed into urllib3's connections."""

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        EXCHANGE.begin(self)

    def getresponse(self) -> Any:
        response = super().getresponse()  # pyright: ignore[reportAttributeAccessIssue]
        # Before a retry, urllib3 would read the whole response, however long.
        response.drain_conn = response.close
        return response


class _Http(_Bounded, HTTPConnection): ...


class _Https(_Bounded, HTTPSConnection): ...


class _HttpPool(HTTPConnectionPool):
    ConnectionCls: Any = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls: Any = _Https


POOLS: dict[str, Any] = {"http": _HttpPool, "https": _HttpsPool}


class BoundedAdapter(HTTPAdapter):
    """Applies the timeout to each attempt as a whole, headers and body included."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = POOLS
        return manager


class TooLarge(requests.RequestException):
    """A body of more than MAX_BODY bytes."""


def post(session: requests.Session, url: str, body: Any, timeout: float) -> tuple[requests.Response, bytes]:
    """The response to a POST of JSON, and its body. Redirects are not followed: they would receive the API key.

    Raises requests.Timeout if an attempt takes longer than `timeout` seconds, TooLarge, and other RequestExceptions.
    """
    EXCHANGE.timed_out = threading.Event()
    try:
        with session.post(url, json=body, timeout=timeout, allow_redirects=False, stream=True) as response:
            received = b""
            for chunk in response.iter_content(2**16):
                received += chunk
                if len(received) > MAX_BODY:
                    raise TooLarge(f"more than {MAX_BODY} bytes")
            if EXCHANGE.timed_out.is_set():
                raise requests.Timeout
            return response, received
    except requests.RequestException as error:
        if EXCHANGE.timed_out.is_set():
            raise requests.Timeout(f"timed out after {timeout:g} s in all") from error
        raise
    finally:
        EXCHANGE.end()
