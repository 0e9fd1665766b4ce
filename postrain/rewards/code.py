"""Code that passes its tests: runs the program of a completion against the tests of its row. Off unless asked for.

A row's column `tests` is Python with asserts (MBPP's lists and HumanEval's check(...) too), or a list of inputs with
the outputs they should give. Programs are mistaken more often than malicious, and sandbox_process.py is made for that:
it is no jail. Leaves out other languages, and packages that are not installed here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from postrain.config.schema import Confirm
from postrain.errors import ConfigError
from postrain.rewards.base import none_to_nan
from postrain.rewards.function import row_label
from postrain.rewards.sandbox import Limits, execute
from postrain.types import Count, RewardBatch, Workers

BLOCK = re.compile(r"```[ \t]*(?:python3?|py)[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
UNNAMED_BLOCK = re.compile(r"```[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)
INPUTS, OUTPUTS = ("stdin", "input"), ("stdout", "output")


@dataclass(frozen=True)
class Checks:
    """What a program is held to: one of the two, the other empty."""

    tests: tuple[str, ...] = ()
    """Python that raises where the program is wrong."""
    pairs: tuple[tuple[str, str], ...] = ()
    """What the program reads, and what it should write."""


@dataclass(frozen=True)
class Verdict:
    """What a program earned."""

    score: float
    limited: bool
    """True where it ran out of time or memory."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Pays the share of its tests that a completion's program passes, or 1 for all of them."""

    allow_execution: Annotated[bool, Confirm("runs Python that the model writes")] = False
    """Has to be true: the programs that are run were written by a model."""
    credit: Literal["share", "all"] = "share"
    """share pays the share of passed tests, all pays 1 for all of them."""
    seconds: Count = 5
    """Of processor time for one program (for each of its inputs); five times that on the clock."""
    memory_mb: Count = 1024
    """Memory of one program."""
    workers: Workers = 2
    """Programs that run at once: changes no score but that of a program near its limit."""

    def __post_init__(self) -> None:
        if not self.allow_execution:
            raise ConfigError(
                "reward.allow_execution: this reward runs Python that the model wrote, on this machine, with limits on "
                "time, memory, files and network that stop mistakes and not malice; say reward.allow_execution=true"
            )
        if sys.platform != "linux":
            raise ConfigError(f"reward: running code needs Linux, whose limits it relies on; this is {sys.platform}")
        if self._asserted("", ("pass",)).score != 1.0:
            raise ConfigError(
                f"reward.memory_mb={self.memory_mb}, reward.seconds={self.seconds}: not even an empty program can run "
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
        return self._asserted(program, checks.tests) if checks.tests else self._compared(program, checks.pairs)

    def _asserted(self, program: str, tests: Sequence[str]) -> Verdict:
        outcome = execute(program, tests=tests, limits=Limits(self.seconds, self.memory_mb))
        return Verdict(self._credit(outcome.output[: len(tests)].count("1"), len(tests)), outcome.limited)

    def _compared(self, program: str, pairs: Sequence[tuple[str, str]]) -> Verdict:
        """Runs the program on each input; one that ran out of its limits is not run again."""
        right = 0
        for given, expected in pairs:
            outcome = execute(program, tests=None, stdin=given, limits=Limits(self.seconds, self.memory_mb))
            passed = outcome.status == 0 and lines(outcome.output) == lines(expected)
            right += passed
            if outcome.limited or (not passed and self.credit == "all"):
                return Verdict(self._credit(right, len(pairs)), outcome.limited)
        return Verdict(self._credit(right, len(pairs)), limited=False)

    def _credit(self, passed: int, count: int) -> float:
        return passed / count if self.credit == "share" else float(passed == count)


def extract_program(completion: str) -> str:
    """The first block of Python after any thinking, or the first block at all, or the whole text."""
    said = completion.rpartition("</think>")[2]
    block = BLOCK.search(said) or UNNAMED_BLOCK.search(said)
    return block[1] if block else said


def lines(output: str) -> list[str]:
    """What was written, line by line, without the space at the ends."""
    return [line.rstrip() for line in output.strip().splitlines()]


def parse_tests(row: Mapping[str, Any], who: str) -> Checks | None:
    """The tests of a row, None where it has none; `who` names the row in errors."""
    if "tests" not in row:
        raise ConfigError(
            "reward: running code needs the column tests, and the data has only the columns "
            f"{', '.join(row) or '(none)'}; map one with data.columns.tests=NAME"
        )
    match row["tests"]:
        case None | "" | [] | ():
            return None
        case str() as source:
            return Checks(tests=_snippets(source, who))
        case [*tests] if all(isinstance(test, str) for test in tests):
            return Checks(tests=tuple(test for source in tests for test in _snippets(source, who)))
        case [*pairs] if all(isinstance(pair, Mapping) for pair in pairs):
            return Checks(pairs=tuple((_text(pair, INPUTS, who), _text(pair, OUTPUTS, who)) for pair in pairs))
    raise ConfigError(
        f"reward: the tests of {who}: expected Python with asserts, a list of asserts, or a list of "
        f"{{input: ..., output: ...}}, got {row['tests']!r:.60}"
    )


def _text(pair: Mapping[str, Any], names: Sequence[str], who: str) -> str:
    for name in names:
        if isinstance(pair.get(name), str):
            return pair[name]
    raise ConfigError(f"reward: the tests of {who}: expected text under {' or '.join(names)}, got {pair!r:.80}")


def _snippets(source: str, who: str) -> tuple[str, ...]:
    """Python cut so that each piece ends with one test: an assert, a call or a loop, and the definitions before it."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"reward: the tests of {who} are no Python ({error})") from None
    found, piece = [], []
    for statement in statements:
        piece.append(statement)
        if not _prepares(statement):
            found.append(ast.unparse(ast.Module(piece, [])))
            piece = []
    if not found:
        raise ConfigError(f"reward: the tests of {who} hold no assert and call nothing: {source!r:.60}")
    return tuple(found)


def _prepares(statement: ast.stmt) -> bool:
    said = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return said or isinstance(statement, (ast.Import, ast.ImportFrom, *DEFINITIONS))
