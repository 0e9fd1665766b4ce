"""The client of an LLM judge behind an OpenAI-compatible URL; the base class of both judges.

Sends requests in parallel, retries when the server is busy or unreachable, and asks once more if an answer cannot be
parsed. A question without an answer scores None, with a warning; if none was ever answered, the run ends with a
ConfigError. Answers are cached for the run. Leaves out the prompts of the judges: judge.py.
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
# Checked before anything is written to disk, so that a key entered here by mistake is not saved.
VariableName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]{0,63}$"),
    doc("the name, in capitals, of an environment variable that holds the key (never the key itself)"),
]
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Status codes that are retried."""
THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
QUOTED_CHARACTERS = 2000


@dataclass(frozen=True)
class JudgeAnswer:
    """The parsed answer to a question."""

    value: float | None
    reason: str = ""
    """Why the value is None."""


class NoAnswer(Exception):
    """The server gave no answer; the message is the reason."""


@dataclass(kw_only=True, eq=False)
class Endpoint(ABC):
    """A judge; subclasses define its prompt and how to parse its answers."""

    model_based: ClassVar[bool] = True
    """See `is_model_based`."""

    form: ClassVar[str]
    """The required format of an answer, as stated to the judge."""

    url: Annotated[Address, Confirm("sends prompts and completions there")]
    """Base URL of the API; /chat/completions is appended."""
    model: str
    """Name of the model on the server."""
    key_variable: Annotated[VariableName | None, Confirm("sends the key of this variable")] = None
    """Name of the environment variable that holds the API key, such as OPENAI_API_KEY; null sends no key."""
    max_tokens: Count = 256
    """Maximum tokens of an answer."""
    workers: Workers = 8
    """Requests in parallel."""
    timeout: Positive = 60.0
    """Limit in seconds for the connection, and for the whole answer, of each attempt."""
    retries: CountOrZero = 4
    """Further attempts when the server is busy, unreachable or slow."""
    backoff: NonNegative = 1.0
    """Retries wait 0, 2, 4, 8, ... times this many seconds."""
    retry_after: CountOrZero = 60
    """Maximum wait in seconds that the Retry-After header of the server can cause."""

    def __post_init__(self) -> None:
        self.cache: dict[bytes, float] = {}
        self.key = api_key(self.key_variable)

    @abstractmethod
    def read(self, answer: str) -> float | None:
        """The number in an answer; None if it cannot be parsed."""

    def to(self, device: torch.device | str) -> None:  # noqa: B027 - not meant to be overridden
        """Nothing to move."""

    def query(self, questions: Sequence[str]) -> Tensor:
        """The number in the answer to each question, float32 [B]; NaN if there is none."""
        keys = [blake2b(question.encode(errors="surrogatepass"), digest_size=16).digest() for question in questions]
        new = {name: text for name, text in zip(keys, questions, strict=True) if name not in self.cache}
        with ThreadPoolExecutor(self.workers) as pool:
            results = dict(zip(new, pool.map(self._judge, new.values()), strict=True))
        self.cache |= {name: judgement.value for name, judgement in results.items() if judgement.value is not None}
        if reasons := [judgement.reason for judgement in results.values() if judgement.value is None]:
            self._warn(reasons, len(questions))
        return torch.tensor([self.cache.get(name, float("nan")) for name in keys], dtype=torch.float32)

    def _warn(self, reasons: Sequence[str], count: int) -> None:
        """Warns of questions without an answer; raises ConfigError if none was ever answered."""
        if not self.cache:
            raise ConfigError(
                f"reward: the judge {self.model} at {self.address} {reasons[0]}; nothing could be scored: start the "
                "server, or correct reward.url, reward.model or reward.key_variable"
            )
        counted = ", ".join(f"{len(list(same))} × {reason}" for reason, same in groupby(sorted(reasons)))
        print(f"warning: {len(reasons)} of {count} not scored; the judge at {self.address} {counted}", file=sys.stderr)

    def _judge(self, question: str) -> JudgeAnswer:
        """Asks, and once more if the answer cannot be parsed."""
        messages = [{"role": "user", "content": question}]
        try:
            answer = self._complete(messages)
            value = self.read(strip_thinking(answer))
            if value is None:
                again = f"That cannot be read. Reply with nothing but {self.form}"
                previous = {"role": "assistant", "content": answer[:QUOTED_CHARACTERS] or "(nothing)"}
                answer = self._complete([*messages, previous, {"role": "user", "content": again}])
                value = self.read(strip_thinking(answer))
        except NoAnswer as problem:
            return JudgeAnswer(None, str(problem))
        return (
            JudgeAnswer(value)
            if value is not None
            else JudgeAnswer(None, f"answered without {self.form}: {answer!r:.80}")
        )

    def _complete(self, messages: Sequence[dict[str, str]]) -> str:
        """One greedy completion of the model."""
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        try:
            response, received = post(self.session, self.address, body, self.timeout)
        except TooLarge as error:
            raise NoAnswer(f"answered with {error}") from None
        except requests.RequestException as error:
            raise NoAnswer(f"could not be reached ({_root_cause(error)})") from None
        if response.status_code != 200:
            text = received.decode(errors="replace").replace(self.key or "\0", "***")
            raise NoAnswer(_one_line(f"answered {response.status_code} {response.reason}: {text}"))
        return _content(received)

    @property
    def address(self) -> str:
        """URL of the chat completions."""
        return f"{self.url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"

    @cached_property
    def session(self) -> requests.Session:
        """A session with kept connections and retries."""
        # urllib3 would print a line for each retry.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        retry = Retry(
            self.retries,
            allowed_methods=None,
            status_forcelist=BUSY,
            backoff_factor=self.backoff,
            retry_after_max=self.retry_after,
            raise_on_status=False,
        )
        session = requests.Session()
        # No proxy for a server on this machine.
        session.trust_env = urlsplit(self.url).hostname not in ("localhost", "127.0.0.1", "::1")
        # Set so that .netrc is ignored.
        session.auth = self._authenticate
        for scheme in ("http://", "https://"):
            session.mount(scheme, BoundedAdapter(pool_maxsize=self.workers, max_retries=retry))
        return session

    def _authenticate(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable; no message contains it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"reward.key_variable={variable}: the environment has no such variable; export it first")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"reward.key_variable={variable}: its value cannot be a key (a line break?)")
    return key


def _content(received: bytes) -> str:
    """The text of a chat completion; empty if there is only reasoning."""
    try:
        content: Any = json.loads(received)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = received[:80].decode(errors="replace")
        raise NoAnswer(f"answered with something other than a chat completion: {text!r:.80}") from None
    return content if isinstance(content, str) else ""


def json_field(answer: str, names: Sequence[str]) -> Any:
    """The value of the first of these keys, in lower case, in the last JSON object of an answer that has one; None
    without such an object. Texts inside the object are not searched."""
    found, at, decoder = None, 0, json.JSONDecoder()
    while (at := answer.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(answer, at)
        except (ValueError, RecursionError):
            value, end = {}, at + 1
        fields = {key.lower(): field for key, field in value.items()}
        known = [fields[name] for name in names if fields.get(name) is not None]
        found, at = (known[0], end) if known else (found, at + 1)
    return found


def strip_thinking(answer: str) -> str:
    """An answer without its <think> parts; an unclosed tag is kept as text."""
    thinking, close, rest = answer.rpartition("</think>")
    return THINKING.sub("", thinking + close) + rest


def _one_line(text: str) -> str:
    """A message of the server as one printable line."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split())[:300])


def _root_cause(error: BaseException) -> str:
    """The root cause of an error of requests, which wraps those of urllib3 and of the system."""
    inner = error.args[0] if error.args else None
    deeper = getattr(inner, "reason", inner)
    return _root_cause(deeper) if isinstance(deeper, BaseException) else str(error).rpartition(": ")[2] or repr(error)
