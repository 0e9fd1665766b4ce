"""The names of transformers' models without the second pass over its files."""

from pathlib import Path

import pytest
import transformers
from transformers.utils import import_utils

from postrain.cli.transformers_files import reuse_file_list

INIT = str(Path(transformers.__file__).parent / "models" / "__init__.py")


def test_the_names_of_all_models_equal_those_of_a_second_pass(monkeypatch):
    read = import_utils.define_import_structure
    monkeypatch.setattr(import_utils, "define_import_structure", read)  # put back after the test
    reuse_file_list()
    found = import_utils.define_import_structure(INIT)
    # Calls that `reuse_file_list` of an earlier command line has changed too end in transformers' own function.
    second_pass = import_utils.spread_import_structure(import_utils.create_import_structure_from_path(INIT))
    assert found == second_pass
    assert "modeling_llama" in str(found)


def test_no_file_is_read_again(monkeypatch):
    monkeypatch.setattr(import_utils, "define_import_structure", import_utils.define_import_structure)
    reuse_file_list()
    first = import_utils.define_import_structure(INIT)

    def refuse(module_path):
        pytest.fail(f"read {module_path}")

    monkeypatch.setattr(import_utils, "create_import_structure_from_path", refuse)
    assert import_utils.define_import_structure(INIT) == first


def test_other_folders_are_read_as_before(monkeypatch):
    llama = str(Path(INIT).parent / "llama" / "__init__.py")
    expected = import_utils.define_import_structure(llama)
    monkeypatch.setattr(import_utils, "define_import_structure", import_utils.define_import_structure)
    reuse_file_list()
    assert import_utils.define_import_structure(llama) == expected
