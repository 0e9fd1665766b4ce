"""The remedy in a message about a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, prefix: str = "", cutoff: float = 0.6) -> str:
    """`did you mean NAME?` with the known name most like a wrong one, after `prefix`; `otherwise` without one."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {prefix}{near[0]}?" if near else otherwise


def suggestion(name: str, known: Iterable[str], otherwise: str = "", *, prefix: str = "") -> str:
    """The same as the end of a message, after a semicolon; empty if there is nothing to suggest."""
    hint = did_you_mean(name, known, otherwise, prefix=prefix)
    return f"; {hint}" if hint else ""
