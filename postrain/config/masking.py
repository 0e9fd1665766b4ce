"""Masks secrets in everything that a run writes or prints: by the words of a key, by value, and in URLs.

Secret values are those of environment variables with secret names. Does not import torch, so that reports can use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

MASK = "***"
PLACEHOLDER = "VALUE"
"""The value in KEY=VALUE, which messages use to describe settings."""
SECRET = (
    "secret secrets password passwords passwd pwd passphrase credential credentials authorization auth bearer "
    "apikey accesskey secretkey privatekey accesstoken authtoken apitoken"
)
SECRET_WORDS = frozenset(re.findall(r"\w+", SECRET))
KEYS = frozenset({"key", "keys"})
BEFORE_KEY = frozenset({"api", "access", "private", "signing", "encryption", "ssh", "account", "service"})
# Words that mark `token` in a key as a token of text, not of access.
VOCABULARY = (
    "pad eos bos unk sep cls mask end start stop special image audio video new added extra first last next prompt "
    "completion per id ids budget budgets count type types index level limit length lengths text"
)
TOKEN_OF_TEXT = frozenset(re.findall(r"\w+", VOCABULARY))
# Last words of keys that refer to a secret but do not contain it.
REFERS_TO_SECRET = frozenset({"path", "file", "dir", "directory", "sock", "variable", "url", "uri", "parallelism"})
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?:(?P<user>[^\s:/@?#'\"]*):)?(?P<secret>[^\s/?#'\"]+)@")
SHAPE = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|AKIA[A-Z0-9]{16})")
PAIR = re.compile(r"(?P<quote>['\"]?)(?P<key>[A-Za-z_][\w.\-/@]*)(?P=quote)\s*(?P<sign>[=:])\s*")
CLOSES = {"{": "}", "[": "]", "(": ")"}


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether a dotted key or an environment variable holds a secret, by the words in its name."""
    for part in re.split(r"[./@]", key):
        words = [word.lower() for word in PART.findall(part)]
        if words and words[-1] in REFERS_TO_SECRET:
            continue
        if SECRET_WORDS & set(words) or words[-1:] == ["key"]:
            return True
        if any(one in BEFORE_KEY and two in KEYS for one, two in pairwise(words)):
            return True
        if "token" in words and not TOKEN_OF_TEXT & set(words):
            return True
    return False


def masked(value: Any, key: str = "") -> Any:
    """`value`, plain containers, with secrets masked: values of secret keys, and secrets in texts."""
    return _masked(value, key, secret_values())


def _masked(value: Any, key: str, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(item, key if is_secret(key) else str(name), secrets) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, key, secrets) for item in value]
    if value in (None, "") or isinstance(value, bool):
        return value
    if is_secret(key):
        return MASK
    return _masked_text(value, secrets) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """A message or override with secrets masked: `api_key=...`, `{api_key: ...}`, user:password@ and known values."""
    return _masked_text(text, secret_values())


def _masked_text(text: str, secrets: Sequence[str]) -> str:
    found, position = "", 0
    for match in PAIR.finditer(text):
        if match.start() < position or not is_secret(match["key"]) or not _assigns(text, match):
            continue
        end = _end(text, match.end(), top=text[: match.start()].strip("+~ '\"") == "")
        if end > match.end() and text[match.end() : end] != PLACEHOLDER:
            found += text[position : match.end()] + MASK
            position = end
    return _hidden(found + text[position:], secrets)


def hidden(text: str) -> str:
    """A text with the values of secret environment variables and the passwords of URLs masked."""
    return _hidden(text, secret_values())


def _hidden(text: str, secrets: Sequence[str]) -> str:
    for value in secrets:
        text = text.replace(value, MASK)
    return SHAPE.sub(MASK, ADDRESS.sub(_address, text))


def secret_values() -> list[str]:
    """The values of secret environment variables, longest first, without plain words and paths."""
    held = [value for name, value in os.environ.items() if is_secret(name)]
    return sorted({value for value in held if _is_distinctive(value)}, key=lambda value: (-len(value), value))


def _is_distinctive(value: str) -> bool:
    """Whether a value is long and unusual enough not to occur in harmless text."""
    odd = not value.isalpha() or len(value) >= 16
    return len(value) >= 6 and odd and not value.startswith(("/", "~", "./"))


def _address(match: re.Match[str]) -> str:
    user = f"{match['user']}:" if match["user"] is not None else ""
    return f"{match['scheme']}{user}{MASK}@"


def _assigns(text: str, match: re.Match[str]) -> bool:
    """Whether a match is a key with a value: a colon outside of braces is punctuation."""
    before = text[: match.start()]
    return match["sign"] == "=" or before.count("{") > before.count("}")


def _end(text: str, start: int, *, top: bool) -> int:
    """The end of the value that begins at `start`; the end of the text if it is a single override (`top`)."""
    first = text[start : start + 1]
    if top and "\n" not in text and ": " not in text[start:]:
        return len(text)
    if first in ("'", '"'):
        close = re.compile(rf"(?:\\.|[^\\{first}])*{first}").match(text, start + 1)
        return close.end() if close else len(text)
    if first in CLOSES:
        depth = 0
        for index in range(start, len(text)):
            depth += (text[index] in CLOSES) - (text[index] in CLOSES.values())
            if depth == 0:
                return index + 1
        return len(text)
    plain = re.compile(r"[^\s,;&}\])]*").match(text, start)
    # A message continues after the value: `key=value: unknown key`.
    return start + len(plain[0].rstrip(":")) if plain else start
