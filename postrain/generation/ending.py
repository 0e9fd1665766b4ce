"""How something ended, into its status.json, whatever ended it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from postrain.callbacks.interrupt import Interrupted
from postrain.folder import Status


class Ending:
    """Writes running, then done, interrupted or failed with its reason. Errors go on."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def __enter__(self) -> Self:
        self.status.running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.status.done()
        elif isinstance(error, Interrupted):
            self.status.interrupted(error.signal.name)
        else:
            self.status.failed(str(error) or type(error).__name__)
