"""Stop texts: whether a completion's newest token completes one. Decodes only where the token could, and only a tail.

A stop text may span tokens and begin inside one; the prompt is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from postrain.types import Stop

# Tokens that one character can take: its bytes in UTF-8.
TOKENS_PER_CHARACTER = 4


class StopTexts:
    """The texts of a Stop, looked for token by token."""

    def __init__(self, stop: Stop) -> None:
        if stop.texts and stop.decode is None:
            raise TypeError("stop texts need Stop.decode")
        self.texts = stop.texts
        self._decode: Callable[[Sequence[int]], str] = stop.decode or str
        # One token more than the longest text can take: the first of a tail may decode otherwise than in its place.
        self._tail = TOKENS_PER_CHARACTER * max(map(len, stop.texts), default=0) + 1
        self._ends = {text[-1] for text in stop.texts}
        self._known: dict[int, bool] = {}

    def completed(self, ids: Sequence[int]) -> bool:
        """Whether the last of a completion's tokens completes a stop text."""
        if not self._may_complete(ids[-1]):
            return False
        tail = self._decode(ids[-self._tail :])
        return any(text in tail for text in self.texts)

    def _may_complete(self, token: int) -> bool:
        """Whether the token's own text has the last character of a stop text; remembered for each token."""
        if token not in self._known:
            piece = self._decode([token])
            # Alone, spaces may be left out and bytes of a character be none: such tokens are looked at in their place.
            unsure = not piece or "\ufffd" in piece or any(character.isspace() for character in self._ends)
            self._known[token] = unsure or not self._ends.isdisjoint(piece)
        return self._known[token]
