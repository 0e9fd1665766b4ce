"""Schemas read from source equal those of the imported classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from postrain.cli.early_check import ROOTS
from postrain.config.annotations import describe
from postrain.config.paths import CONF
from postrain.config.schema import Schema, is_section, load_target, schema_of
from postrain.config.static_schema import static_target
from postrain.jobs.session import PROGRAMS

TARGETS = sorted(
    {
        target
        for file in CONF.rglob("*.yaml")
        for target in re.findall(r"_target_: (postrain\.[\w.]+)", file.read_text(encoding="utf-8"))
    }
    | set(ROOTS.values())
)


def described(schema: Schema) -> tuple[dict[str, tuple[str, bool, bool]], bool]:
    """The keys of a schema with type, whether required, and whether a section; the class of a node is left out."""
    keys = {
        name: (
            re.sub(r"_target_ \(\w+\)", "_target_", describe(key.annotation, limits=True)),
            key.required,
            is_section(key.annotation),
        )
        for name, key in schema.keys.items()
    }
    return keys, schema.open


@pytest.mark.parametrize("target", TARGETS)
def test_static_schema_equals_the_schema_of_the_imported_target(target: str) -> None:
    assert described(static_target(target).static_schema) == described(schema_of(load_target(target)))


def test_static_target_that_the_source_does_not_define_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        static_target("postrain.methods.sft.Missing")
    with pytest.raises(LookupError):
        static_target("postrain.methods.missing.SFT")


def test_roots_are_the_configs_of_the_programs() -> None:
    assert {program.primary: program.config for program in PROGRAMS.values()} == {
        name: load_target(path) for name, path in ROOTS.items()
    }
    assert Path(CONF, "config.yaml").is_file()
