"""A verifiable reward for code: runs the program of a completion against the tests of its row. Off by default.

The column `tests` is Python with asserts (MBPP's lists, and HumanEval's `check`, which is called with the function that
the column `entry_point` names), or inputs with their expected outputs. Lists and objects may be given as JSON or Python
text. The sandbox (sandbox_process.py) stops mistakes, not malicious code. Leaves out other languages, and packages that
are not installed on this machine.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from textwrap import dedent
from typing import Annotated, Any, Literal

import torch

from postrain.config.schema import Confirm
from postrain.errors import ConfigError, MissingColumn
from postrain.formatting import available_columns
from postrain.rewards.base import none_to_nan
from postrain.rewards.function import row_label
from postrain.rewards.sandbox import Limits, check_execution, execute
from postrain.types import Count, RewardBatch, Workers

BLOCK = re.compile(r"(```|~~~)[ \t]*(?:python[\d.]*|py)(?:[ \t:{][^\n]*)?\n(.*?)(?:\1|\Z)", re.DOTALL | re.IGNORECASE)
UNNAMED_BLOCK = re.compile(r"(```|~~~)[ \t]*\n(.*?)(?:\1|\Z)", re.DOTALL)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)
INPUTS, OUTPUTS = ("stdin", "input"), ("stdout", "output")


@dataclass(frozen=True)
class Checks:
    """The tests of a row: one of the two fields, the other is empty."""

    tests: tuple[str, ...] = ()
    """Python that raises if the program is wrong."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Standard input and expected standard output."""


@dataclass(frozen=True)
class Verdict:
    """The score of a program."""

    score: float
    limited: bool
    """True if it exceeded its time or memory limit."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The share of its tests that the program of a completion passes, or 1 if it passes all."""

    allow_execution: Annotated[bool, Confirm("runs Python that the model writes")] = False
    """Must be true: this reward runs programs that a model wrote."""
    credit: Literal["share", "all"] = "share"
    """share: the share of passed tests; all: 1 if all pass, else 0."""
    timeout: Count = 5
    """Time limit of a program (for each of its inputs) in seconds of CPU time; five times that in wall-clock time."""
    memory_mb: Count = 1024
    """Memory limit of one program in MiB."""
    workers: Workers = 2
    """Programs that run in parallel; affects only scores of programs near their time limit."""

    def __post_init__(self) -> None:
        check_execution("reward", "this reward", self.allow_execution)
        if self._run_asserts("", ("pass",)).score != 1.0:
            raise ConfigError(
                f"reward.memory_mb={self.memory_mb}, reward.timeout={self.timeout}: not even an empty program can run "
                "within these limits; raise them"
            )

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        checks = [parse_tests(row, row_label(index, prompts, columns)) for index, row in enumerate(columns)]
        with ThreadPoolExecutor(self.workers) as pool:
            verdicts = list(pool.map(self._verdict, map(extract_program, completions), checks))
        scores = tuple(verdict.score if verdict else None for verdict in verdicts)
        limited = tuple(float(verdict.limited) if verdict else None for verdict in verdicts)
        return RewardBatch(none_to_nan(scores), {"code": scores, "out_of_limits": limited})

    def _verdict(self, program: str, checks: Checks | None) -> Verdict | None:
        if checks is None:
            return None
        if not program.strip():
            return Verdict(0.0, limited=False)
        return self._run_asserts(program, checks.tests) if checks.tests else self._run_pairs(program, checks.pairs)

    def _run_asserts(self, program: str, tests: Sequence[str]) -> Verdict:
        outcome = execute(program, tests=tests, limits=Limits(self.timeout, self.memory_mb))
        return Verdict(self._credit(outcome.output[: len(tests)].count("1"), len(tests)), outcome.limited)

    def _run_pairs(self, program: str, pairs: Sequence[tuple[str, str]]) -> Verdict:
        """Runs the program on each input, until it exceeds a limit."""
        passed_count = 0
        for given, expected in pairs:
            outcome = execute(program, tests=None, stdin=given, limits=Limits(self.timeout, self.memory_mb))
            passed = outcome.status == 0 and lines(outcome.output) == lines(expected)
            passed_count += passed
            if outcome.limited or (not passed and self.credit == "all"):
                return Verdict(self._credit(passed_count, len(pairs)), outcome.limited)
        return Verdict(self._credit(passed_count, len(pairs)), limited=False)

    def _credit(self, passed: int, count: int) -> float:
        return passed / count if self.credit == "share" else float(passed == count)


def extract_program(completion: str) -> str:
    """The first Python code block after any thinking, else the first code block, else the whole text."""
    answer = completion.rpartition("</think>")[2].replace("\r\n", "\n")
    block = BLOCK.search(answer) or UNNAMED_BLOCK.search(answer)
    if block is None:
        return answer
    # A block in a list is indented. `dedent` also empties blank lines, so it is left to such blocks.
    return dedent(block[2]) if block[2].lstrip("\n")[:1].isspace() else block[2]


def lines(output: str) -> list[str]:
    """The lines of an output without trailing white space."""
    return [line.rstrip() for line in output.strip().splitlines()]


def parse_tests(row: Mapping[str, Any], who: str) -> Checks | None:
    """The tests of a row, None if it has none; `who` names the row in errors."""
    if "tests" not in row:
        raise MissingColumn(
            "reward: running code needs the column tests, and the prompts have "
            f"{available_columns(row)}; map one with data.columns.tests=NAME"
        )
    match _literal(row["tests"]):
        case None | "" | [] | ():
            return None
        case str() as source:
            return Checks(tests=_split_tests(source, who, row.get("entry_point")))
        case [*tests] if all(isinstance(test, str) for test in tests):
            return Checks(tests=_split_tests("\n".join(tests), who, row.get("entry_point")))
        case {"fn_name": str() as name} if name:
            raise ConfigError(
                f"reward: the tests of {who}: fn_name (a function call, not standard input) is not supported; write "
                f"asserts such as assert {name}(...) == ..."
            )
        case {"inputs": [*given], "outputs": [*wanted]} if len(given) == len(wanted):
            pairs = [{"input": one, "output": other} for one, other in zip(given, wanted, strict=True)]
            return parse_tests({"tests": pairs}, who)
        case [*pairs] if all(isinstance(pair, Mapping) for pair in pairs):
            return Checks(pairs=tuple((_text(pair, INPUTS, who), _text(pair, OUTPUTS, who)) for pair in pairs))
    raise ConfigError(
        f"reward: the tests of {who}: expected Python with asserts, a list of asserts, a list of "
        f"{{input: ..., output: ...}}, or {{inputs: [...], outputs: [...]}}, got {row['tests']!r:.60}"
    )


def _literal(tests: Any) -> Any:
    """The list or object that a text holds as JSON or as Python literals; anything else unchanged."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            if isinstance(found := read(tests), list | dict):
                return found
    return tests


def _text(pair: Mapping[str, Any], names: Sequence[str], who: str) -> str:
    for name in names:
        if isinstance(pair.get(name), str):
            return pair[name]
    raise ConfigError(f"reward: the tests of {who}: expected text under {' or '.join(names)}, got {pair!r:.80}")


def _split_tests(source: str, who: str, entry_point: Any) -> tuple[str, ...]:
    """Splits Python into pieces that each end with one test (an assert, a call or a loop) after its definitions.

    A function `check` that nothing calls is called with the function that the row names as its entry point.
    """
    try:
        statements = [_as_assert(statement) for statement in ast.parse(source).body]
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"reward: the tests of {who} are not Python ({error})") from None
    if isinstance(entry_point, str) and all(map(_is_setup, statements)) and "def check(" in source:
        statements += ast.parse(f"check({entry_point})").body
    pieces, piece = [], []
    for statement in statements:
        piece.append(statement)
        if not _is_setup(statement):
            pieces.append(ast.unparse(ast.Module(piece, [])))
            piece = []
    if not pieces:
        raise ConfigError(f"reward: the tests of {who} contain neither an assert nor a call: {source!r:.60}")
    return tuple(pieces)


def _as_assert(statement: ast.stmt) -> ast.stmt:
    """A condition alone, such as `f(1) == 2` or `not f(1)`, as an assert."""
    match statement:
        case ast.Expr(value=(ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not())) as condition):
            return ast.Assert(condition)
    return statement


def _is_setup(statement: ast.stmt) -> bool:
    """Whether a statement is not a test. Of expressions, only a call is one."""
    idle = isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Call)
    return idle or isinstance(statement, (ast.Import, ast.ImportFrom, *DEFINITIONS))
