"""A language model behind an OpenAI-compatible URL that answers questions with a number: what both judges stand on.

Asks many questions at once, waits and tries again when the server is busy or away, and asks once more when an answer
holds no number. A question that stays unanswered is worth None and is told; a judge that has never answered anything is
a mistake of the config. Each question is asked once a run. Leaves out what is asked: judge.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import groupby
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import requests
import torch
from annotated_types import doc
from pydantic import StringConstraints
from torch import Tensor
from urllib3.util.retry import Retry

from postrain.config.schema import Confirm
from postrain.errors import ConfigError
from postrain.rewards.bounded_http import BoundedAdapter, TooLarge, post
from postrain.types import Count, CountOrZero, NonNegative, Positive, Workers

Address = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[^\s@?#]+$"),
    doc("an address such as http://127.0.0.1:8000/v1, without user, password or query"),
]
# Held to when the config is checked, before anything is written to disk: a key put here by mistake stays off it.
VariableName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]{0,63}$"),
    doc("the name, in capitals, of an environment variable that holds the key (never the key itself)"),
]
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be better next time."""
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
QUOTED_CHARACTERS = 2000


@dataclass(frozen=True)
class Verdict:
    """What came of a question."""

    value: float | None
    reason: str = ""
    """Why there is no value."""


class Unanswered(Exception):
    """The server gave no answer; says why."""


@dataclass(kw_only=True, eq=False)
class Endpoint(ABC):
    """A judge; subclasses say what it is asked and how its answers are read."""

    model_based: ClassVar[bool] = True
    """A model's opinion; see `is_model_based`."""

    form: ClassVar[str]
    """What an answer has to look like, in the judge's words."""

    url: Annotated[Address, Confirm("sends prompts and completions there")]
    """Where the API begins; /chat/completions is added."""
    model: str
    """The model's name there."""
    key_variable: Annotated[VariableName | None, Confirm("sends the key of this variable")] = None
    """The environment variable that holds the API key, for instance OPENAI_API_KEY; null sends none."""
    max_tokens: Count = 256
    """Tokens an answer may have."""
    workers: Workers = 8
    """Questions under way at once."""
    timeout: Positive = 60.0
    """Seconds to wait for a connection, and for an answer as a whole, each time it is asked for."""
    retries: CountOrZero = 4
    """Further attempts when the server is busy, away or slow."""
    backoff: NonNegative = 1.0
    """Retries wait 0, 2, 4, 8, ... times this many seconds."""
    retry_after: CountOrZero = 60
    """Seconds that the server's Retry-After may have us wait at most."""

    def __post_init__(self) -> None:
        self.known: dict[bytes, float] = {}
        self.key = api_key(self.key_variable)

    @abstractmethod
    def read(self, answer: str) -> float | None:
        """The number an answer comes to; None where it holds none."""

    def to(self, device: torch.device | str) -> None:  # noqa: B027 - every judge's, not only a default
        """Nothing to move."""

    def ask(self, questions: Sequence[str]) -> Tensor:
        """The number each question is answered with, float32 [B]; NaN where there is none."""
        named = [blake2b(question.encode(errors="surrogatepass"), digest_size=16).digest() for question in questions]
        new = {name: text for name, text in zip(named, questions, strict=True) if name not in self.known}
        with ThreadPoolExecutor(self.workers) as pool:
            found = dict(zip(new, pool.map(self._verdict, new.values()), strict=True))
        self.known |= {name: verdict.value for name, verdict in found.items() if verdict.value is not None}
        if lost := [verdict.reason for verdict in found.values() if verdict.value is None]:
            self._tell(lost, len(questions))
        return torch.tensor([self.known.get(name, float("nan")) for name in named], dtype=torch.float32)

    def _tell(self, reasons: Sequence[str], asked: int) -> None:
        """Says what could not be judged; raises ConfigError when nothing ever was."""
        if not self.known:
            raise ConfigError(
                f"reward: the judge {self.model} at {self.address} {reasons[0]}; nothing could be scored: start the "
                "server, or correct reward.url, reward.model or reward.key_variable"
            )
        counted = ", ".join(f"{len(list(same))} × {reason}" for reason, same in groupby(sorted(reasons)))
        print(f"warning: {len(reasons)} of {asked} not scored; the judge at {self.address} {counted}", file=sys.stderr)

    def _verdict(self, question: str) -> Verdict:
        """Asks, and once more where the answer cannot be read."""
        asked = [{"role": "user", "content": question}]
        try:
            answer = self._answer(asked)
            value = self.read(without_thoughts(answer))
            if value is None:
                again = f"That cannot be read. Reply with nothing but {self.form}"
                said = {"role": "assistant", "content": answer[:QUOTED_CHARACTERS] or "(nothing)"}
                answer = self._answer([*asked, said, {"role": "user", "content": again}])
                value = self.read(without_thoughts(answer))
        except Unanswered as problem:
            return Verdict(None, str(problem))
        return Verdict(value) if value is not None else Verdict(None, f"answered no {self.form}, but {answer!r:.80}")

    def _answer(self, messages: Sequence[dict[str, str]]) -> str:
        """One answer of the model, greedy."""
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        try:
            response, received = post(self.session, self.address, body, self.timeout)
        except TooLarge as error:
            raise Unanswered(f"answered with {error}") from None
        except requests.RequestException as error:
            raise Unanswered(f"could not be reached ({_cause(error)})") from None
        if response.status_code != 200:
            said = received.decode(errors="replace").replace(self.key or "\0", "***")
            raise Unanswered(_line(f"answered {response.status_code} {response.reason}: {said}"))
        return _content(received)

    @property
    def address(self) -> str:
        """Where questions go."""
        return f"{self.url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"

    @cached_property
    def session(self) -> requests.Session:
        """Connections that are kept open, and the patience they are used with."""
        # Each attempt of each question would be a line on the screen.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        patience = Retry(
            self.retries,
            allowed_methods=None,
            status_forcelist=BUSY,
            backoff_factor=self.backoff,
            retry_after_max=self.retry_after,
            raise_on_status=False,
        )
        session = requests.Session()
        # A proxy knows nothing of this machine.
        session.trust_env = urlsplit(self.url).hostname not in ("localhost", "127.0.0.1", "::1")
        # Set so that a .netrc has no say.
        session.auth = self._signed
        for scheme in ("http://", "https://"):
            session.mount(scheme, BoundedAdapter(pool_maxsize=self.workers, max_retries=patience))
        return session

    def _signed(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable; no message shows it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"reward.key_variable={variable}: the environment has no such variable; export it first")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"reward.key_variable={variable}: it holds what no key is made of (a line break?)")
    return key


def _content(received: bytes) -> str:
    """The text of a chat completion; a model that only thought has said nothing."""
    try:
        content: Any = json.loads(received)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        said = received[:80].decode(errors="replace")
        raise Unanswered(f"answered something else than a chat completion: {said!r:.80}") from None
    return content if isinstance(content, str) else ""


def without_thoughts(answer: str) -> str:
    """An answer without its <think> parts; a mark that is never closed is text like any other."""
    thought, close, rest = answer.rpartition("</think>")
    return THOUGHT.sub("", thought + close) + rest


def _line(text: str) -> str:
    """A server's words as one line for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split())[:300])


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an error of requests, which wraps urllib3's, which wraps the system's."""
    inner = error.args[0] if error.args else None
    deeper = getattr(inner, "reason", inner)
    return _cause(deeper) if isinstance(deeper, BaseException) else str(error).rpartition(": ")[2] or repr(error)
