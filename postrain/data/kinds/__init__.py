"""The record kinds, one file each.

A file defines the record, builders from table rows (`row_format`), its tokens, its batch, and conversions to other
kinds (`conversion`). To add a kind, add a file: this module imports all files of the folder, which registers them. A
column that only one kind uses has the name of the record's field; `PARTS` in layouts.py lists other spellings.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from postrain.data.records import KINDS as KINDS

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
