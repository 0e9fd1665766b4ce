"""Builds the sources of the documentation site: `python -m docs.generator OUTPUT`.

A page is a Markdown file in docs/. A line `<!-- NAME ARGUMENT -->` on its own is replaced by what the directive NAME
reads off the code: keys, metrics, source excerpts, experiments. `pages.py` lists the directives.
"""
