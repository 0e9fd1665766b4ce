"""Renders `$$` blocks of LaTeX as MathML, so that the site needs no script for its equations."""

import re

from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports] - of the extra docs

BLOCK = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)


def with_mathml(text: str) -> str:
    """A page with its `$$` blocks as MathML elements."""
    return BLOCK.sub(lambda match: f'<div class="equation">{convert(match[1], display="block")}</div>', text)
