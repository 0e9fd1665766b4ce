"""HTTP exchanges that are bounded as a whole, in time and in size.

requests and urllib3 bound each wait for a byte. A server that sends one every half second would hold a run for ever,
and one that never stops sending would fill its memory.
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

LARGEST_BODY = 2**20
"""Bytes; a judge's answer has some hundreds."""


class _Exchange(threading.local):
    """The exchange that a thread has under way: its socket is shut when it takes longer than the timeout."""

    timer: threading.Timer | None = None
    late: threading.Event

    def begin(self, connection: Any) -> None:
        """Another attempt of the thread's exchange has been sent."""
        self.end()
        self.late.clear()
        self.timer = threading.Timer(connection.timeout, _cut, (connection.sock, self.late))
        self.timer.daemon = True
        self.timer.start()

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        # Not SSLSocket's own, which takes the TLS state away from the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


EXCHANGE = _Exchange()


class _Bounded:
    """Mixed into urllib3's connections."""

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        EXCHANGE.begin(self)

    def getresponse(self) -> Any:
        response = super().getresponse()  # pyright: ignore[reportAttributeAccessIssue]
        # Before it tries again, urllib3 would read a refusal to its end, however long.
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
    """Each attempt of a request ends after the request's timeout, headers and body included."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = POOLS
        return manager


class TooLarge(requests.RequestException):
    """A body of more than LARGEST_BODY bytes."""


def post(session: requests.Session, url: str, body: Any, timeout: float) -> tuple[requests.Response, bytes]:
    """The response to a POST of JSON and its body; redirects are not followed, since a key would go along.

    Raises requests.Timeout when an attempt took longer than `timeout` seconds, TooLarge, and what requests raises.
    """
    EXCHANGE.late = threading.Event()
    try:
        with session.post(url, json=body, timeout=timeout, allow_redirects=False, stream=True) as response:
            received = b""
            for chunk in response.iter_content(2**16):
                received += chunk
                if len(received) > LARGEST_BODY:
                    raise TooLarge(f"more than {LARGEST_BODY} bytes")
            if EXCHANGE.late.is_set():
                raise requests.Timeout
            return response, received
    except requests.RequestException as error:
        if EXCHANGE.late.is_set():
            raise requests.Timeout(f"timed out after {timeout:g} s in all") from error
        raise
    finally:
        EXCHANGE.end()
