"""The schema of a `_target_`: its keys with types and defaults, from the signature of its constructor.

Leaves out the position of a node in a config (check.py), and the description and validation of types (annotations.py).
"""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, is_dataclass
from functools import cache, cached_property, reduce
from types import ModuleType, SimpleNamespace, UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from postrain.errors import ConfigError, one_line
from postrain.formatting import shortened
from postrain.suggestions import suggestion

LISTS: tuple[Any, ...] = (list, tuple, set, frozenset, Sequence)
MAPPINGS: tuple[Any, ...] = (dict, Mapping)
TARGET = "_target_"
LONGEST = 80
"""The maximum number of characters of a wrong value in a message."""
T = TypeVar("T")


class Section:
    """Base of the dataclasses that a config writes without `_target_`: `paths`, `early_stop`."""


@dataclass(frozen=True, kw_only=True)
class Paths(Section):
    """Output folders."""

    output: str = "runs"
    """Folder in which run folders are created, relative to the working directory. Those of a
    sweep's jobs are in `paths.sweeps`."""
    sweeps: str = "sweeps"
    """Folder in which folders of sweeps are created; they contain the run folders of their jobs, whatever
    `paths.output` is."""


class Deferred(Generic[T]):
    """An object that is built on first access, because its constructor loads weights or runs user code.

    The annotation Deferred[Reward] marks a key whose node is checked with the config but built later.
    """

    def __init__(self, make: Callable[[], T], target: Any, settings: Any = None) -> None:
        """`target` is the class or function that `make` calls; `settings` describe the object as plain containers."""
        self._make, self.target, self.settings = make, target, settings

    @classmethod
    def of(cls, value: T) -> Deferred[T]:
        """Wraps an existing object."""
        return cls(lambda: value, value if inspect.isfunction(value) else type(value))

    @cached_property
    def value(self) -> T:
        """The object. Raises ConfigError if it cannot be built."""
        return self._make()


@dataclass(frozen=True)
class Key:
    """One argument of a constructor."""

    annotation: Any
    """Its type, without `Deferred`."""
    required: bool
    default: Any = None
    """The default of an argument that is not required."""
    written: Any = None
    """The annotation as written, including `Deferred`."""


@dataclass(frozen=True)
class Schema:
    """The arguments of a constructor."""

    keys: Mapping[str, Key]
    open: bool
    """True if the constructor accepts further keywords (**kwargs), as in some other libraries."""


class SuppliedArguments(frozenset[str]):
    """Inside Annotated: arguments of a node that the run passes, such as the parameters of an optimizer."""


def _never(value: Any) -> bool:
    return False


@dataclass(frozen=True)
class Confirm:
    """Inside Annotated: marks a key that names code or a URL, or grants a permission. If its value comes from a run
    folder, the command line must confirm it (trust.py)."""

    effect: str
    """The effect of the value, as in "reward.function=FILE (runs this Python)"."""
    harmless: Callable[[Any], bool] = _never
    """True for values, besides null and false, that need no confirmation."""


def is_node(value: Any) -> bool:
    """True for a mapping with `_target_`, which builds an object."""
    return isinstance(value, Mapping) and TARGET in value


def is_section(annotation: Any) -> bool:
    """True for a key whose value is a mapping without `_target_`."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def abbreviate(value: Any) -> str:
    """A value for a message, truncated to LONGEST characters."""
    text = "null" if value is None else " ".join(repr(value).split())
    return shortened(text, LONGEST)


class StaticTarget(type):
    """The class of stand-ins for classes and functions that are not imported (static_schema.py). Attributes and items
    of a stand-in are stand-ins too, as in torch.optim.Optimizer."""

    static_schema: Schema

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return stand_in(name)

    def __getitem__(cls, item: Any) -> Any:
        return cls


def stand_in(name: str, schema: Schema | None = None, *, section: bool = False) -> Any:
    """A stand-in of this name; without a schema it accepts any arguments."""
    known = Schema({}, open=True) if schema is None else schema
    return StaticTarget(name, (Section,) if section else (), {"static_schema": known})


def load_target(path: str) -> Callable[..., Any]:
    """The class or function at a dotted path; a stand-in is returned as it is. Raises ConfigError if there is none."""
    if isinstance(path, StaticTarget):
        return path
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"expected a dotted path such as postrain.methods.sft.SFT, got {abbreviate(path)}")
    module, name = _split(path)
    try:
        target = operator.attrgetter(name)(module)
    except AttributeError:
        raise ConfigError(f"{module.__name__} has no {name}{suggestion(name, dir(module))}") from None
    if not callable(target):
        raise ConfigError(f"{path} is a {type(target).__name__}, not a class or function")
    return target


def _split(path: str) -> tuple[ModuleType, str]:
    """The longest prefix of a dotted path that is a module, imported, and the rest."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name), ".".join(parts[end:])
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(f"{path} needs the package {error.name!r}, which is not installed") from None
        # Importing runs the module's code, which may raise anything.
        except Exception as error:
            reason = one_line(error, limit=None)
            raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {reason}") from None
    raise ConfigError(f"there is no module {'.'.join(parts[:-1])}")


@cache
def schema_of(target: Callable[..., Any]) -> Schema:
    """The arguments of a class or function, including inherited dataclass fields."""
    if isinstance(target, StaticTarget):
        return target.static_schema
    keys, takes_any = {}, False
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        raise ConfigError(f"{target!r} has no inspectable signature; wrap it in a function") from None
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            takes_any = takes_any or parameter.kind is parameter.VAR_KEYWORD
            continue
        annotation = _resolve(target, name, parameter.annotation)
        # Only Python code can pass an InitVar.
        if not name.startswith("_") and not isinstance(annotation, InitVar):
            required = parameter.default is parameter.empty
            keys[name] = Key(
                without_deferred(annotation), required, None if required else parameter.default, annotation
            )
    return Schema(keys, takes_any)


def is_deferred(annotation: Any) -> bool:
    """Whether a node of this type is built on first access."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return any(map(is_deferred, get_args(annotation)))
    return get_origin(annotation) is Deferred


def without_deferred(annotation: Any) -> Any:
    """The annotation with T in place of every Deferred[T]."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Deferred:
        return args[0]
    if origin in (Union, UnionType):
        return reduce(operator.or_, map(without_deferred, args))
    if origin is Annotated:
        return Annotated[(without_deferred(args[0]), *args[1:])]
    return origin[tuple(map(without_deferred, args))] if origin in MAPPINGS or origin in LISTS else annotation


def _resolve(target: Any, name: str, annotation: Any) -> Any:
    """An annotation with its strings evaluated in the module that contains them."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={name: annotation})
    try:
        return get_type_hints(holder, globalns=_namespace(target, name), include_extras=True)[name]
    except NameError:  # a name imported only under TYPE_CHECKING, as in other libraries
        return Any


def _namespace(target: Any, name: str) -> dict[str, Any]:
    # A generated __init__ has the globals of its class's module, not those of an inherited field's module.
    if inspect.isclass(target) and is_dataclass(target):
        for owner in target.__mro__:
            if name in inspect.get_annotations(owner):
                return vars(sys.modules[owner.__module__])
    function: Any = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    return getattr(function, "__globals__", {})


def provides(target: Callable[..., Any], annotation: Any) -> bool:
    """Whether the result of `target` fits `annotation`, judged by its class.

    A class must inherit from the type, or have every member of a protocol and the same call signature. True for a
    function, whose result is unknown, and for a stand-in.
    """
    if isinstance(target, StaticTarget):
        return True
    if get_origin(annotation) in (Union, UnionType):
        return any(provides(target, each) for each in get_args(annotation))
    if annotation is Any or not isinstance(target, type) or not isinstance(annotation, type):
        return True
    if not getattr(annotation, "_is_protocol", False):
        return issubclass(target, annotation)
    members = {name for base in annotation.__mro__ for name in vars(base) if base.__module__.startswith("postrain.")}
    return all(_has(target, annotation, name) for name in members if name == "__call__" or not name.startswith("_"))


def _has(target: type, protocol: type, name: str) -> bool:
    if name != "__call__":
        return hasattr(target, name) or any(name in inspect.get_annotations(base) for base in target.__mro__)
    # Every class is callable; the bases show whether its instances are.
    own: Any = next((vars(base)[name] for base in target.__mro__ if name in vars(base)), None)
    if own is None:
        return False
    wanted = list(inspect.signature(vars(protocol)[name]).parameters)
    if target.__module__.startswith("postrain."):
        # Argument names distinguish the protocols of this package; user classes may name arguments differently.
        return list(inspect.signature(own).parameters) == wanted
    try:
        inspect.signature(own).bind(*wanted)
    except TypeError:
        return False
    return True
