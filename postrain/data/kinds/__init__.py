"""Every kind of record, one file each.

A file defines the record, how rows of a table become it (`row_format`), its tokens, its batch, and as which other kinds
it serves (`conversion`). To add a kind, add a file: all files of this folder are imported here, which registers them.
Columns that no other kind has go by the name of their part; other spellings are a word in `PARTS` of layouts.py.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from postrain.data.records import KINDS as KINDS

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
