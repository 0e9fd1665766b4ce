"""Proves from the syntax tree of a chat template that it inserts the contents of messages unchanged.

Every expression gets a type, and content may only be written, joined to other text, stripped, or tested for being
empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

# Private characters and an em space, which no template contains.
SPACE, OPEN, CLOSE = "\u2003", "\ue000", "\ue001"
SAFE, CONTENT, TEXT, MESSAGES, NAMESPACE = "safe", "content", "text", "messages", "namespace"
"""Types of expressions: without content; the content of a message; text with contents; a message or several; a
namespace, whose attributes are variables."""
ORDER = (SAFE, CONTENT, TEXT)
LIST_FILTERS = ("list", "first", "last", "reverse")
STRUCTURE_TESTS = ("defined", "undefined", "none", "string", "mapping", "iterable", "sequence")


class Unproved(Exception):
    """An expression whose value may depend on contents in another way."""


@cache
def inserts_contents(source: str, *, fixed_clock: bool = False) -> bool:
    """Whether the rendered text consists of text that depends on roles only, and of the contents, stripped or not.

    Without a fixed clock the text must not hold the date.
    """
    if not fixed_clock and "strftime_now" in source:
        return False
    if any(sign in source for sign in (SPACE, OPEN, CLOSE)):
        return False
    tree = _compile_jinja_template(source).environment.parse(source)
    types = Types()
    try:
        before = None
        while before != types.names:  # until the types of all variables are known
            before = dict(types.names)
            types.visit_all(tree.body)
    except Unproved:
        return False
    return True


class Types:
    """Types of the variables and expressions of a template."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {"messages": MESSAGES}

    def visit_all(self, statements: Sequence[nodes.Node]) -> None:
        for statement in statements:
            self.visit(statement)

    def visit(self, node: nodes.Node) -> None:
        """Checks a statement. Raises Unproved."""
        match node:
            case nodes.Output():
                self._text(node.nodes)
            case nodes.For(target=nodes.Name(name=name), recursive=False):
                kind = self.type_of(node.iter)
                self._assign(name, self._safe_or_messages(kind))
                if node.test is not None:
                    self.type_of(node.test)
                self.visit_all([*node.body, *node.else_])
            case nodes.If():
                self.type_of(node.test)
                self.visit_all([*node.body, *node.elif_, *node.else_])
            case nodes.Assign(target=nodes.Name(name=name)):
                self._assign(name, self.type_of(node.node))
            case nodes.Assign(target=nodes.NSRef(attr=attribute)):
                self._assign(f".{attribute}", self.type_of(node.node))
            case nodes.CallBlock(call=nodes.Call(node=nodes.ExtensionAttribute())):  # {% generation %}
                self.visit_all(node.body)
            case nodes.ExprStmt():
                self.type_of(node.node)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise Unproved

    def _assign(self, name: str, kind: str) -> None:
        self.names[name] = _joined(self.names.get(name, SAFE), kind)

    def type_of(self, node: nodes.Node) -> str:
        """The type of an expression. Raises Unproved."""
        match node:
            case nodes.Const() | nodes.TemplateData():
                return SAFE
            case nodes.Name(name=name):
                return self.names.get(name, SAFE)
            case nodes.List(items=items) | nodes.Tuple(items=items):
                return self._only_safe(items)
            case nodes.Getattr(node=value, attr=key) | nodes.Getitem(node=value, arg=nodes.Const(value=key)):
                return self._item(self.type_of(value), key)
            case nodes.Getitem(node=value, arg=nodes.Slice(start=start, stop=stop, step=step)):
                self._only_safe([bound for bound in (start, stop, step) if bound is not None])
                return self._safe_or_messages(self.type_of(value))
            case nodes.Getitem(node=value, arg=nodes.Neg() | nodes.Sub() as index):  # numbers, never the key "content"
                self._only_safe([index])
                return self._safe_or_messages(self.type_of(value))
            case nodes.Filter(node=nodes.Node() as value, name=name):
                return self._filtered(self.type_of(value), name, node)
            case nodes.Test(node=value, name=name):
                kind = self.type_of(value)
                return self._arguments(node) if kind == SAFE or name in STRUCTURE_TESTS else _unproved()
            case nodes.Call():
                return self._called(node)
            case nodes.Compare(expr=nodes.Const(), ops=[nodes.Operand(op="in" | "notin", expr=value)]):
                return SAFE if self.type_of(value) in (SAFE, MESSAGES) else _unproved()
            case nodes.Compare(expr=value, ops=operands):
                return self._only_safe([value, *(operand.expr for operand in operands)])
            case nodes.CondExpr(test=test, expr1=first, expr2=second):
                self.type_of(test)
                return _joined(self.type_of(first), SAFE if second is None else self.type_of(second))
            case nodes.And(left=left, right=right) | nodes.Or(left=left, right=right):
                return _joined(self.type_of(left), self.type_of(right))
            case nodes.Not(node=value):
                self.type_of(value)
                return SAFE
            case nodes.Add(left=left, right=right):
                return self._text([left, right])
            case nodes.Concat(nodes=parts):
                return self._text(parts)
            case nodes.BinExpr(left=left, right=right):
                return self._only_safe([left, right])
            case nodes.UnaryExpr(node=value):
                return self._only_safe([value])
            case _:
                raise Unproved

    def _item(self, kind: str, key: Any) -> str:
        """The type of an item or attribute."""
        if kind == MESSAGES:
            # Messages have a role and a content only, so other keys are undefined in each of them.
            return MESSAGES if isinstance(key, int) else CONTENT if key == "content" else SAFE
        if kind == SAFE:
            return MESSAGES if key in ("previtem", "nextitem") else SAFE
        return self.names.get(f".{key}", SAFE) if kind == NAMESPACE else _unproved()

    def _filtered(self, kind: str, name: str, node: nodes.Filter) -> str:
        if name == "trim" and not node.args and kind in (SAFE, CONTENT):
            return kind
        if kind == MESSAGES and name in ("length", "count"):
            return SAFE
        by_role = name in ("selectattr", "rejectattr") and node.args[:1] == [nodes.Const("role")]
        if kind == MESSAGES and (name in LIST_FILTERS or by_role):
            self._arguments(node)
            return MESSAGES
        return self._arguments(node) if kind == SAFE and name != "random" else _unproved()

    def _called(self, node: nodes.Call) -> str:
        match node.node:
            # An error is raised for the placeholders too, and then for the row by the template itself.
            case nodes.Name(name="raise_exception"):
                return SAFE
            case nodes.Name(name="namespace"):
                self._arguments(node)
                return NAMESPACE
            case nodes.Name(name="range" | "strftime_now"):
                return self._arguments(node)
            case nodes.Getattr(node=value, attr="strip") if not node.args:
                kind = self.type_of(value)
                return kind if kind in (SAFE, CONTENT) else _unproved()
            case nodes.Getattr(node=value, attr="get") if node.args and isinstance(node.args[0], nodes.Const):
                self._arguments(node)
                return self._item(self.type_of(value), node.args[0].value)
            case _:
                raise Unproved

    def _text(self, parts: Sequence[nodes.Node]) -> str:
        kinds = {self.type_of(part) for part in parts}
        return SAFE if kinds <= {SAFE} else TEXT if kinds <= set(ORDER) else _unproved()

    def _arguments(self, node: nodes.Call | nodes.Filter | nodes.Test) -> str:
        """Checks that arguments are without content."""
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise Unproved
        return self._only_safe([*node.args, *(keyword.value for keyword in node.kwargs)])

    def _only_safe(self, parts: Sequence[nodes.Node]) -> str:
        return SAFE if all(self.type_of(part) == SAFE for part in parts) else _unproved()

    def _safe_or_messages(self, kind: str) -> str:
        return kind if kind in (SAFE, MESSAGES) else _unproved()


def _joined(one: str, other: str) -> str:
    """The type of a value of one of two types."""
    if one in ORDER and other in ORDER:
        return max(one, other, key=ORDER.index)
    return one if other in (one, SAFE) else other if one == SAFE else _unproved()


def _unproved() -> str:
    raise Unproved
