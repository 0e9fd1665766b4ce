"""Spares the import of transformers its second pass over the 1,600 files of its models, a third of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def reuse_file_list() -> None:
    """Lets `transformers.models` use what the import of `transformers` has found.

    Both list the public names in all files of the models. The list of a folder is kept for 128 folders, and there are
    550, so the second pass would read everything again.
    """
    import transformers  # noqa: PLC0415 - start-up time
    from transformers.utils import import_utils  # noqa: PLC0415 - as above

    read = import_utils.define_import_structure
    models = Path(transformers.__file__).parent / "models"

    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path) != models / "__init__.py":
            return read(module_path, prefix)
        return {
            backends: {name.removeprefix("models."): names for name, names in found.items() if name[:7] == "models."}
            for backends, found in read(models, prefix="models").items()  # from its cache
        }

    import_utils.define_import_structure = define_import_structure
