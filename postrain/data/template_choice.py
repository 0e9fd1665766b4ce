"""Selects the chat template of a tokenizer: its own, or one of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from postrain.errors import ConfigError

Mode = Literal["auto", "chat", "plain", "alpaca", "vicuna", "qa", "dialogue", "inst", "bot", "random", "tools"]
MODES: tuple[str, ...] = get_args(Mode)
INSTRUCTION = ("alpaca", "vicuna", "qa", "dialogue", "inst")
"""The templates of `random`; without `bot`, which remains as an unseen template for evaluation."""
TEMPLATES = Path(__file__).parent / "templates"


def named_templates(tokenizer: Any) -> Mapping[str, str]:
    """The tokenizer's templates by name; empty if it has none or a single one without a name."""
    found = tokenizer.chat_template
    return found if isinstance(found, Mapping) else {}


def own_template(tokenizer: Any) -> str | None:
    """The template that transformers selects for this tokenizer; None if it has none.

    Raises ConfigError if it has several and none is the default.
    """
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        names = ", ".join(sorted(named_templates(tokenizer)))
        raise ConfigError(
            f"the tokenizer has several chat templates ({names}) and none is named default; choose one with "
            "data.template=NAME, or plain"
        ) from None


def choose(tokenizer: Any, mode: str) -> tuple[str, str | None]:
    """Resolves a mode or a template name; for the tokenizer's own template, returns `chat` and its source."""
    named = named_templates(tokenizer)
    if mode not in MODES:
        if mode in named:
            return "chat", named[mode]
        own = f"; the tokenizer's templates: {', '.join(sorted(named))}" if named else ""
        raise ConfigError(f"data.template={mode}: expected one of {', '.join(MODES)}{own}")
    if mode not in ("auto", "chat", "tools"):
        return mode, None
    own = own_template(tokenizer)
    if own is None and mode == "chat":
        raise ConfigError(
            f"data.template=chat: the tokenizer has no chat template; use plain, bot or one of {', '.join(INSTRUCTION)}"
        )
    own = None if is_plain(own) else own
    if mode == "tools":
        return mode, own
    return ("plain", None) if own is None else ("chat", own)


def adds_bos(tokenizer: Any) -> bool:
    """True if the tokenizer prepends a beginning-of-sequence token to every text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def install(tokenizer: Any, source: str) -> None:
    """Makes `source` the tokenizer's default template; other templates keep their names."""
    named = named_templates(tokenizer)
    tokenizer.chat_template = {**named, "default": source} if named else source


def bundled(name: str, *, bos: bool) -> str:
    """One of this package's templates; `bos` prepends the tokenizer's bos token."""
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    return "{{ bos_token }}" + source if bos else source


def is_plain(source: str | None) -> bool:
    """True for the template that training with data.template=plain sets on the tokenizer."""
    return source in (bundled("plain", bos=False), bundled("plain", bos=True))
