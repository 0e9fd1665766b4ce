"""Keyword arguments of the Python API that a class or function does not have, as one ConfigError with a suggestion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from postrain.config.foreign_keys import suggest_argument
from postrain.config.old_names import KEYS, SYNONYMS
from postrain.errors import ConfigError

Target = TypeVar("Target", bound=Callable[..., Any])
RENAMED = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in {**KEYS, **SYNONYMS}.items()}
"""Present names of arguments by their old and other names."""
OF_LOAD_MODEL = ("adapter", "peft_config", "lora_config")
"""Arguments of methods in other libraries that belong to the model here."""


def refuse_unknown_keywords(target: Target) -> Target:
    """Decorates a class or function of the public API: unknown keywords raise ConfigError instead of TypeError."""
    found: Any = target
    if not inspect.isclass(target):
        return _checked(found, found.__name__)
    found.__init__ = _checked(vars(found)["__init__"], found.__name__)
    return found


def _checked(function: Callable[..., Any], name: str) -> Any:
    known = inspect.signature(function).parameters.keys() - {"self"}

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if unknown := [word for word in given if word not in known]:
            raise ConfigError("\n".join(_problems(name, unknown, sorted(known))))
        return function(*args, **given)

    return call


def _problems(name: str, unknown: list[str], known: list[str]) -> Iterator[str]:
    for word in unknown:
        near = [RENAMED[word]] if RENAMED.get(word) in known else suggest_argument(word, known)
        near = near or get_close_matches(word, known, n=1, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else f"its arguments are {', '.join(known)}"
        if word in OF_LOAD_MODEL:
            hint = "give it to the model, as in load_model(NAME, adapter=LoRA(r=8))"
        yield f"{name}: unknown argument {word}; {hint}"
