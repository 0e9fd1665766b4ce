"""Errors of libraries as one line."""

from __future__ import annotations

import pytest

from postrain.cli import why
from postrain.errors import ConfigError, as_config_error, one_line


def test_one_line_has_the_message_without_line_breaks_up_to_the_limit() -> None:
    assert one_line(ValueError("a\n  b c"), 3) == "a b"
    assert one_line(ValueError("a" * 300)) == "a" * 200
    assert one_line(ValueError("a" * 300), limit=None) == "a" * 300
    assert one_line(KeyError()) == one_line(KeyError(), with_type=True) == "KeyError"
    assert one_line(ValueError("a"), with_type=True) == "ValueError: a"


def test_any_error_of_a_library_becomes_a_config_error_and_a_config_error_stays() -> None:
    with pytest.raises(ConfigError, match=r"^the model: 'x'$"), as_config_error("the model"):
        raise KeyError("x")
    with pytest.raises(ConfigError, match=r"^own$"), as_config_error("the model"):
        raise ConfigError("own")


def test_values_are_read_before_and_after_options() -> None:
    before = why.parser().parse_args(["RUN", "reward.function=a.py:f", "--update", "2"])
    after = why.parser().parse_args(["RUN", "--update", "2", "reward.function=a.py:f"])
    assert before == after
    assert (after.confirm, after.update) == (["reward.function=a.py:f"], 2)
    with pytest.raises(ConfigError, match=r"^the following arguments are required: RUN, --update"):
        why.parser().parse_args([])
