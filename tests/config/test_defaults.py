"""Defaults are defined only in signatures; composed configs are completed from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from postrain.cli.main import root_of
from postrain.config.overrides import PROGRAMS
from postrain.config.schema import TARGET, Section, is_node, load_target
from postrain.config.tree import complete, defaults_of, settings_of
from tests.training_runs import CONF, METHODS, composed


@dataclass(kw_only=True)
class Part:
    count: int = 2
    share: float = 0.5


@dataclass(kw_only=True)
class Hosted:
    count: int = 2
    _host: object = field(default_factory=object)


@dataclass(kw_only=True)
class Rest(Section):
    output: str = "runs"


@dataclass(kw_only=True)
class Whole:
    item: Part = field(default_factory=lambda: Part(share=0.1))
    group: Part
    rest: Rest = field(default_factory=Rest)
    pair: tuple[int, int] = (1, 2)
    names: dict[str, str | None] = field(default_factory=lambda: {"a": None, "b": None})


PART = f"{__name__}.Part"


def completed(**settings: Any) -> Any:
    return OmegaConf.to_container(complete(OmegaConf.create(settings), Whole), resolve=True)


def test_defaults_complete_missing_keys() -> None:
    rest = {"rest": {"output": "runs"}, "pair": [1, 2], "names": {"a": None, "b": None}}
    assert completed() == {**rest}
    assert completed(item={TARGET: PART, "count": 3}) == {"item": {TARGET: PART, "count": 3, "share": 0.5}, **rest}
    assert completed(item={"count": 3})["item"] == {"count": 3}  # without _target_: only a group option has it
    quality = composed(["method=sft", "data.quality.dedupe=true"])["data"]["quality"]
    assert (quality[TARGET], quality["dedupe"], quality["empty"]) == ("postrain.data.quality.Quality", True, "drop")


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        ({"group": {TARGET: "builtins.dict", "x": 1}}, "group", {TARGET: "builtins.dict", "x": 1}),
        ({"group": {TARGET: "no.such"}}, "group", {TARGET: "no.such"}),
        ({"names": {"b": "c"}}, "names", {"a": None, "b": "c"}),
        ({"pair": {"1": 7}}, "pair", [1, 7]),
        ({"pair": {"2": 7}}, "pair", {"2": 7}),
        ({"pair": "${rest.output}"}, "pair", "runs"),
        ({"rest": 5}, "rest", 5),
        ({"unknown": {"a": 1}}, "unknown", {"a": 1}),
    ],
)
def test_given_value_stays(given: dict[str, Any], key: str, expected: Any) -> None:
    assert completed(**given)[key] == expected


def test_reference_resolves_to_a_default() -> None:
    config = composed(["method=grpo", "method.kl_coef=${method.overlong_penalty}", "name=u${method.updates}"])
    assert (config["method"]["kl_coef"], config["name"]) == (1.0, "u60")


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_has_a_default(method: str) -> None:
    target = composed([f"method={method}"])["method"][TARGET]
    load_target(target)()


def test_object_created_in_python_is_saved_with_its_keys() -> None:
    assert settings_of(Hosted(count=3)) == {TARGET: f"{__name__}.Hosted", "count": 3}


def repeated(node: Any, path: str = "") -> Iterator[str]:
    """The keys of a YAML file whose values equal the defaults of the signature."""
    if not isinstance(node, dict):
        return
    defaults = defaults_of(load_target(node[TARGET])) if is_node(node) else {}
    for key, value in node.items():
        if key in defaults and defaults[key] == settings_of(value):
            yield f"{path}{key}"
        else:
            yield from repeated(value, f"{path}{key}.")


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_no_yaml_repeats_a_default(file: Path) -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(file))
    if file.parent.name == "launcher":  # built by Hydra itself
        return
    if file.stem in PROGRAMS and file.parent == CONF:
        defaults = defaults_of(root_of(file.stem))
        assert [key for key in node if key in defaults and node[key] == defaults[key]] == []
    assert list(repeated(node)) == []
