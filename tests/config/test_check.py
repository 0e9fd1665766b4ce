"""check.py and schema.py: one error with all problems of a config; and the objects that instantiate builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pytest

from postrain.config.annotations import describe
from postrain.config.check import check
from postrain.config.schema import Section, load_target
from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.types import Count, Fraction, NonNegative, Positive


class Scorer(Protocol):
    def __call__(self, text: str) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Length:
    target: Count
    scale: float


@dataclass(kw_only=True, eq=False, repr=False)
class Base:
    updates: Count
    learning_rate: Positive


@dataclass(kw_only=True, eq=False, repr=False)
class Method(Base):
    kl_coef: NonNegative
    kl: Literal["k1", "k2", "k3"]
    dropout: Fraction | None
    betas: tuple[float, float]
    layers: list[int] | Literal["all"]
    tags: tuple[str, ...] = ()
    shuffle: bool
    name: str
    scorers: Mapping[str, Scorer]


class Open:
    def __init__(self, size: int, **rest: Any) -> None:
        self.size, self.rest = size, rest


@dataclass(frozen=True, kw_only=True)
class Paths(Section):
    output: str


@dataclass(frozen=True, kw_only=True)
class Root:
    method: Any
    seed: int
    paths: Paths
    resume: str | None = None


HERE = __name__


def valid_config() -> dict[str, Any]:
    method = {
        "_target_": f"{HERE}.Method",
        "updates": 3,
        "learning_rate": "1e-4",
        "kl_coef": 0,
        "kl": "k3",
        "dropout": None,
        "betas": [0.9, 1],
        "layers": "all",
        "shuffle": True,
        "name": "a",
        "scorers": {"length": {"_target_": f"{HERE}.Length", "target": 10, "scale": 2}},
    }
    return {"method": method, "seed": 0, "paths": {"output": "runs"}}


def problems(config: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config, root=Root)
    return str(caught.value).splitlines()


def changed(path: str, value: Any) -> dict[str, Any]:
    config = valid_config()
    node: Any = config
    *sections, leaf = path.split(".")
    for section in sections:
        node = node[section]
    node[leaf] = value
    return config


def test_valid_config_is_built_with_annotated_types() -> None:
    check(valid_config(), root=Root)
    method = instantiate(valid_config()["method"])
    assert isinstance(method, Method)
    assert method.learning_rate == 1e-4
    assert (type(method.kl_coef), method.betas) == (float, (0.9, 1.0))
    assert method.scorers == {"length": Length(target=10, scale=2.0)}


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("method.updates", 0, "method.updates: expected an integer >= 1, got 0"),
        ("method.updates", 1.5, "method.updates: expected an integer >= 1, got 1.5"),
        ("method.updates", "3", "method.updates: expected an integer >= 1, got '3'"),
        ("method.updates", True, "method.updates: expected an integer >= 1, got True"),
        ("method.learning_rate", 0.0, "method.learning_rate: expected a number > 0, got 0.0"),
        ("method.learning_rate", "fast", "method.learning_rate: expected a number > 0, got 'fast'"),
        ("method.learning_rate", "1", "method.learning_rate: expected a number > 0, got '1'"),
        ("method.learning_rate", False, "method.learning_rate: expected a number > 0, got False"),
        ("method.learning_rate", None, "method.learning_rate: expected a number > 0, got null"),
        ("method.kl", "k4", "method.kl: expected one of k1, k2, k3, got 'k4'"),
        ("method.dropout", 1.5, "method.dropout: expected a number >= 0 and <= 1 or null, got 1.5"),
        ("method.betas", [0.9], "method.betas: expected a list of 2: a number, a number, got [0.9]"),
        ("method.tags", "a", "method.tags: expected a list of texts, got 'a'; write 'method.tags=[a]'"),
        ("method.layers", [1, "x"], "method.layers: expected a list of integers or all, got [1, 'x']"),
        ("method.shuffle", 1, "method.shuffle: expected true or false, got 1"),
        ("method.name", 7, "method.name: expected text, got 7; for text write method.name='\"7\"'"),
        ("method.name", "???", "method.name: required; write method.name=...; expected text"),
        ("method.scorers.length.target", -1, "method.scorers.length.target: expected an integer >= 1, got -1"),
        ("seed", "x", "seed: expected an integer, got 'x'"),
        ("paths.output", 3, "paths.output: expected text, got 3; for text write paths.output='\"3\"'"),
        ("resume", [3], "resume: expected text or null, got [3]"),
    ],
)
def test_wrong_value_is_one_line(path: str, value: Any, line: str) -> None:
    assert problems(changed(path, value)) == [line]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("method.kl_coeff", 0.1, "method.kl_coeff: unknown key; did you mean method.kl_coef?"),
        ("method.scorers.length.sacle", 1, "method.scorers.length.sacle: unknown key; "
         "did you mean method.scorers.length.scale?"),
        ("kl_coef", 0.2, "kl_coef: unknown key; did you mean method.kl_coef?"),
        ("lr", 0.2, "lr: unknown key; did you mean method.learning_rate?"),
        ("lerning_rate", 0.2, "lerning_rate: unknown key; did you mean method.learning_rate?"),
        ("methd", {"kl_coef": 1}, "methd.kl_coef: unknown key; did you mean method.kl_coef?"),
        ("paths.outptu", "x", "paths.outptu: unknown key; did you mean paths.output?"),
        ("paths.zebra", "x", "paths.zebra: unknown key; known keys: output"),
        ("sed", 1, "sed: unknown key; did you mean seed?"),
    ],
)  # fmt: skip
def test_unknown_key_gets_a_suggestion(path: str, value: Any, line: str) -> None:
    assert problems(changed(path, value)) == [line]


def test_all_problems_are_in_one_error() -> None:
    config = changed("method.updates", -3)
    config["method"]["kl"] = "k9"
    config["sede"] = 1
    del config["method"]["name"], config["seed"]
    assert problems(config) == [
        "method.updates: expected an integer >= 1, got -3",
        "method.kl: expected one of k1, k2, k3, got 'k9'",
        "method.name: missing; expected text",
        "sede: unknown key; did you mean seed?",
        "seed: missing; expected an integer",
    ]


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (f"{HERE}.Metod", f"method._target_: {HERE} has no Metod; did you mean Method?"),
        ("nowhere.Thing", "method._target_: there is no module nowhere"),
        (f"{HERE}.HERE", f"method._target_: {HERE}.HERE is a str, not a class or function"),
        ("SFT", "method._target_: expected a dotted path such as postrain.methods.sft.SFT, got 'SFT'"),
    ],
)
def test_unknown_target_is_one_line(target: str, line: str) -> None:
    assert problems(changed("method._target_", target)) == [line]


def test_missing_package_of_a_target_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"needs_more.A needs the package 'package_that_is_not_there'"):
        load_target("needs_more.A")


def test_key_of_a_class_type_expects_a_node() -> None:
    (line,) = problems(changed("method.scorers", {"length": "long"}))
    assert line == "method.scorers.length: expected a node with _target_ (Scorer), got 'long'"


def test_constructor_with_kwargs_accepts_any_key_and_its_nodes_are_checked() -> None:
    bad = {"_target_": f"{HERE}.Length", "target": 1}
    node = {"_target_": f"{HERE}.Open", "size": 2, "extra": [bad]}
    assert problems(changed("method", node)) == ["method.extra[0].scale: missing; expected a number"]
    built = instantiate({**node, "extra": [{**bad, "scale": 3}]})
    assert built.rest == {"extra": [Length(target=1, scale=3.0)]}


@pytest.mark.parametrize(
    ("annotation", "description"),
    [
        (dict[str, float], "a mapping to a number"),
        (list[str], "a list of texts"),
        (tuple[int, ...], "a list of integers"),
        (Callable[[str], float], "a node with _target_ (Callable)"),
        (Any, "anything"),
    ],
)
def test_description_of_a_type(annotation: Any, description: str) -> None:
    assert describe(annotation) == description
