"""verified.py: calls to the libraries (fakes) and the rewards from their results."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from postrain.errors import ConfigError
from postrain.rewards.user_code import time_limit
from postrain.rewards.verified import json_valid, math_equal

SCHEMA = {"type": "object", "required": ["a"]}


class Mathematics:
    """Fake math_verify: parses the content of a box or the last word; two spellings of a half are equal."""

    def __init__(self) -> None:
        self.limits: set[int | None] = set()

    def parse(self, text: str, *, parsing_timeout: int | None) -> list[str]:
        self.limits.add(parsing_timeout)
        if parsing_timeout is None:
            logging.getLogger("math_verify.parser").warning("Timeout is disabled as parsing_timeout is None")
            logging.getLogger("math_verify.parser").warning("another")
        inner = text.removeprefix(r"\boxed{").removesuffix("}") if text.startswith(r"\boxed{") else text
        return [{r"\frac{1}{2}": "0.5", "1/2": "0.5"}.get(word, word) for word in inner.split()[-1:]]

    def verify(self, gold: list[str], found: list[str], *, timeout_seconds: int | None) -> bool:
        self.limits.add(timeout_seconds)
        if timeout_seconds is None:
            logging.getLogger("math_verify.grader").warning("Timeout is disabled as timeout_seconds is None or <= 0")
        return gold == found


@pytest.fixture
def mathematics(monkeypatch: pytest.MonkeyPatch) -> Mathematics:
    library = Mathematics()
    monkeypatch.setitem(sys.modules, "math_verify", library)
    return library


def test_math_equal_passes_the_marked_answer_or_the_text(mathematics: Mathematics) -> None:
    completions = ["it is 0.5", r"\boxed{\frac{1}{2}} of 3", "<answer>1/2</answer> of 3", "1/3", ""]
    assert math_equal(completions, [r"\frac{1}{2}"] * 5) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert math_equal(["$x$", "72"], ["$x$", "so\n#### 72"]) == [1.0, 1.0]
    assert mathematics.limits == {5}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"\boxed{\$18}", "18"),
        (r"\boxed{18}", r"\$18"),
        (r"\boxed{1,250}", "$1,250"),
        (r"\boxed{-5}", "-$5"),
        (r"<answer>\boxed{5}</answer>", "€5"),
        (r"\boxed{5}", ["4", "5"]),
    ],
)
def test_currency_is_not_mathematics(mathematics: Mathematics, completion: str, expected: Any) -> None:
    assert math_equal([completion], [expected]) == [1.0]


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (r"\boxed{\approx72}", "72", 1),
        (r"\boxed{x \sim 72}", "72", 1),
        (r"so x is \approx72", "72", 1),
        ("<answer>≅72</answer>", "72", 1),
        ("72", r"\cong72", 1),
        (r"\boxed{72 \approx 73}", "72", 0),
        (r"\boxed{\not\approx 72}", "72", 0),
        (r"\boxed{\nsim 72}", "72", 0),
        # The library compares the formula, not its rounded value.
        (r"\boxed{\frac{1}{3} \approx 0.33}", r"\frac{1}{3} \approx 0.33", 1),
    ],
)
def test_approximation_is_its_value(mathematics: Mathematics, completion: str, answer: str, score: float) -> None:
    assert math_equal([completion], [answer]) == [score]


def test_no_time_limit_inside_another(mathematics: Mathematics, caplog: pytest.LogCaptureFixture) -> None:
    with time_limit(60, "reward", "r.py"):
        math_equal(["1"], ["1"])
    assert mathematics.limits == {None}
    # Of the library's warnings only that about its time limit is hidden; the answer and the completion are parsed.
    assert caplog.messages == ["another"] * 2


def test_missing_or_unreadable_answer_is_unscorable(mathematics: Mathematics) -> None:
    assert math_equal(["1", "1"], [None, ""]) == [None, None]


def test_no_time_limit_outside_the_main_thread(mathematics: Mathematics) -> None:
    thread = threading.Thread(target=math_equal, args=(["1"], ["1"]))
    thread.start()
    thread.join()
    assert mathematics.limits == {None}


class SchemaError(Exception):
    """Fake of jsonschema.SchemaError."""


class Unresolvable(Exception):
    """Fake of referencing.exceptions.Unresolvable."""


class Validator:
    """Fake jsonschema validator: checks objects and their required keys."""

    registries: ClassVar[list[Any]] = []

    def __init__(self, schema: Mapping[str, Any], *, registry: Any) -> None:
        self.schema = schema
        self.registries.append(registry)

    @staticmethod
    def check_schema(schema: Any) -> None:
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise SchemaError("not a type,\n\nin several lines")

    def is_valid(self, value: Any) -> bool:
        if "$ref" in self.schema:
            raise Unresolvable(self.schema["$ref"])
        if self.schema.get("deep"):
            raise RecursionError
        return isinstance(value, dict) and set(self.schema.get("required", ())) <= set(value)


@pytest.fixture(autouse=True)
def _schemas(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    validators = SimpleNamespace(validator_for=lambda schema: Validator)
    referencing = SimpleNamespace(Registry=lambda: "empty", exceptions=SimpleNamespace(Unresolvable=Unresolvable))
    monkeypatch.setitem(sys.modules, "jsonschema", SimpleNamespace(validators=validators, SchemaError=SchemaError))
    monkeypatch.setitem(sys.modules, "referencing", referencing)
    yield
    Validator.registries.clear()


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('{"a": 1}', 1.0),
        ('Here [you are]: ```json\n{"a": [2]}\n``` {"b": 3}', 1.0),
        ('{"b": 1} {"a": 1}', 0.0),  # the first one counts
        ('[{"a": 1}]', 0.0),
        ('{"b": {"a": 1}', 0.0),  # truncated: a value inside is not the answer
        ('{"a": NaN}', 0.0),
        ('{"a": 1', 0.0),
        ("a", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_first_json_value_is_checked_against_the_schema(completion: str, score: float) -> None:
    assert json_valid([completion], SCHEMA) == [score]


def test_schemas_from_a_column_as_text_and_null() -> None:
    assert json_valid(["{}"] * 3, [SCHEMA, '{"type": "object"}', None]) == [0.0, 1.0, None]
    assert json_valid(["{}"] * 2, '{"type": "object"}') == [1.0, 1.0]
    assert json_valid(["{}"], {"deep": True}) == [0.0]
    assert set(Validator.registries) == {"empty"}


@pytest.mark.parametrize("schema", [{"type": "strin"}, "not JSON", "[1]", {"$ref": "https://example.org/x"}])
def test_invalid_schema_is_a_one_line_error(schema: Any) -> None:
    with pytest.raises(ConfigError, match=r"^schema: .* is not a self-contained JSON schema \(.*\)$"):
        json_valid(["{}"], schema)


@pytest.mark.parametrize(("reward", "package"), [(math_equal, "math_verify"), (json_valid, "jsonschema")])
def test_missing_package_is_an_error_with_its_extra(reward: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"the package {package} is not installed; run pip install \"postrain\["):
        reward(["1"], [SCHEMA])
