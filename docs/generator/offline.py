"""python -m docs.generator.offline SITE: makes a built site independent of the network, and checks that it is.

The theme loads a shim for search in files from a CDN; docs/file-worker.js takes its place.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SHIM = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"[^>]*></script>')
EXTERNAL = re.compile(
    r'<(?:script|img|iframe)[^>]* src="?https?:[^>]*>|<link[^>]* rel="?stylesheet[^>]* href="?https?:[^>]*>'
)


def make_offline(site: Path) -> list[str]:
    """Replaces the shim in every page; returns the external assets that are left, as PAGE: TAG."""
    left: list[str] = []
    for page in sorted(site.rglob("*.html")):
        up = "../" * (len(page.relative_to(site).parts) - 1)
        text = SHIM.sub(f'<script src="{up}file-worker.js"></script>', page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        left += [f"{page.relative_to(site)}: {tag}" for tag in EXTERNAL.findall(text)]
    return left


if __name__ == "__main__":
    if external := make_offline(Path(sys.argv[1])):
        sys.exit("error: the site loads external assets:\n" + "\n".join(external))
