"""Functions that a setting chooses, by name or by import path, such as `method.loss`.

A chosen function is checked when the method is constructed: it exists, accepts its inputs, and its options exist and
have values of the annotated types.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import ValidationError
from torch import Tensor

from postrain.config.annotations import adapter, describe
from postrain.config.check import accepts
from postrain.config.schema import Confirm, Key, abbreviate, schema_of
from postrain.errors import ConfigError
from postrain.rewards.user_code import UserCodeErrors, load_function, source_location
from postrain.suggestions import suggestion


def is_name(value: Any) -> bool:
    """Whether a value names a function of this package's tables, not one to import."""
    return isinstance(value, str) and value.isidentifier()


ChosenName = Annotated[str, Confirm("runs this Python", harmless=is_name)]
"""A name of a table, `package.module.name` or `path/to/file.py:name`."""
Options = Mapping[str, Any]
"""Keyword arguments of a chosen function."""


@dataclass(frozen=True)
class ChosenFunction:
    """A function with its options."""

    setting: str
    """KEY=VALUE, for messages."""
    function: Callable[..., Any]
    options: Options

    def takes(self, name: str) -> bool:
        """Whether the function has an argument of this name."""
        return name in self.parameters

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the function."""
        return inspect.signature(self.function).parameters

    def __call__(self, *inputs: Any, **offered: Any) -> Any:
        """The result for these inputs and those of `offered` that the function names. An error is one line."""
        named = {name: value for name, value in offered.items() if self.takes(name)}
        if self.function.__module__.startswith("postrain."):
            try:
                return self.function(*inputs, **named, **self.options)
            except ValueError as error:
                raise ConfigError(f"{self.setting}: {error}") from None
        with UserCodeErrors(f"{self.setting} raised", source_location(self.function)[0]):
            return self.function(*inputs, **named, **self.options)


def function_of(key: str, value: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function of the table with this name, or the one at this path. Raises ConfigError if there is none."""
    if value in table:
        return table[value]
    if is_name(value):
        raise ConfigError(
            f"{key}={value}: expected one of {', '.join(table)}, package.module.function or file.py:function"
            + suggestion(value, table)
        )
    return load_function(value, key)


def choose(
    key: str,
    value: str,
    function: Callable[..., Any],
    *,
    inputs: Sequence[str],
    offered: Collection[str] = (),
    shared: Mapping[str, tuple[str, Any]] | None = None,
    options: Options,
) -> ChosenFunction:
    """The function with its options, checked.

    `inputs` are the names of its positional arguments, `offered` those that it may have, `shared` maps arguments to
    config keys and their values, None where unset. An option of None is unset too, unless its argument accepts None.
    Raises ConfigError.
    """
    setting, keys = f"{key}={value}", schema_of(function).keys
    options = {name: option for name, option in options.items() if option is not None or _accepts_null(name, keys)}
    given = {name: setting_value for name, (_, setting_value) in (shared or {}).items() if setting_value is not None}
    if not schema_of(function).open:
        for name in given.keys() - keys.keys():
            raise ConfigError(f"{(shared or {})[name][0]}: has no effect with {setting}; leave it at its default")
        own = [name for name in list(keys)[len(inputs) :] if name not in offered]
        for name in options.keys() - set(own):
            raise ConfigError(f"{key}_options.{name}: {value} has no such option; it has {', '.join(own) or 'none'}")
    given |= options
    for name in given.keys() & keys.keys():
        _check_type((shared or {}).get(name, (f"{key}_options.{name}", None))[0], given[name], keys[name].annotation)
    try:
        named = {name: None for name in offered if name in keys}
        inspect.signature(function).bind(*inputs, **named, **given)
    except TypeError as error:
        expected = ", ".join(inputs)
        raise ConfigError(
            f"{setting}: expected a function of ({expected}), whose further arguments have defaults or a value in "
            f"{key}_options: {error}"
        ) from None
    return ChosenFunction(setting, function, given)


def check_tensor(chosen: ChosenFunction, found: Any, shapes: Mapping[str, Sequence[int]], *, gradient: bool) -> None:
    """Raises ConfigError unless the result is a tensor of one of the named shapes, with a gradient if it needs one."""
    is_tensor = isinstance(found, Tensor)
    if is_tensor and tuple(found.shape) in map(tuple, shapes.values()) and (found.requires_grad or not gradient):
        return
    got = str(tuple(found.shape)) if is_tensor else type(found).__name__
    without = " without a gradient" if is_tensor and gradient and not found.requires_grad else ""
    expected = " or ".join(f"{name} = {tuple(shape)}" for name, shape in shapes.items())
    raise ConfigError(f"{chosen.setting}: expected a tensor {expected}, got {got}{without}")


def _accepts_null(name: str, keys: Mapping[str, Key]) -> bool:
    return name in keys and accepts(keys[name].annotation, None)


def _check_type(key: str, value: Any, annotation: Any) -> None:
    if annotation is inspect.Parameter.empty:
        return
    try:
        adapter(annotation).validate_python(value)
    except ValidationError:
        raise ConfigError(f"{key}: expected {describe(annotation)}, got {abbreviate(value)}") from None
