"""Sums beyond the policy, and a tool that runs Python in the sandbox of postrain.rewards.sandbox."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from annotated_types import Interval

from postrain.config.schema import Confirm
from postrain.data.conversation import Messages
from postrain.environments.tool_environment import ToolEnvironment, ToolState
from postrain.environments.tools import Tool, ToolError
from postrain.rewards.sandbox import Limits, check_execution, execute
from postrain.rewards.text import numeric
from postrain.types import Count, Positive
from postrain.world.items import Split, generator, split_of

PROGRAM = """\
import sys
try:
    exec(compile({code!r}, "program.py", "exec"), {{"__name__": "__main__"}})
except Exception as error:
    print()
    sys.exit(print(f"{{type(error).__name__}}: {{error}}") or 1)
"""
"""Prints the exception of a program as the last line: the sandbox discards the standard error."""


@dataclass(frozen=True, kw_only=True)
class PythonTool(ToolEnvironment):
    """What is 47 + 85? `python` runs a program and returns what it prints, or the error. The reward is 1 if the last
    number of the answer is right."""

    allow_execution: Annotated[bool, Confirm("runs Python that the model writes")] = False
    """Must be true: the tool runs programs that a model wrote."""
    digits: Annotated[int, Interval(ge=1, le=12)] = 2
    """Digits of the numbers in the questions."""
    program_timeout: Count = 2
    """Time limit of a program in seconds of CPU time; five times that in wall-clock time."""
    memory_mb: Count = 256
    """Memory limit of a program in MiB."""
    timeout: Positive = 30.0
    """Time limit in seconds of the calls of a message, above that of the programs."""
    max_turns: Count = 3
    """Maximum messages of the policy. 1 leaves it without the results of the tool."""

    def __post_init__(self) -> None:
        check_execution("environment", "this tool", self.allow_execution)

    def tools(self, columns: Mapping[str, Any]) -> Sequence[Tool]:
        def python(code: str) -> str:
            """Runs a Python program and returns what it prints.

            Args:
                code: The program, such as print(1 + 1).
            """
            return run(code, Limits(self.program_timeout, self.memory_mb))

        return (python,)

    def grade(self, columns: Mapping[str, Any], answer: str) -> float | None:
        return numeric([answer], [columns["answer"]])[0]

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        rng = generator(seed, "python_tool", split)
        hint = " Write python: and a line of code to run it." if self.call_format == "text" else ""
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            left, right = (rng.randrange(10 ** (self.digits - 1), 10**self.digits) for _ in range(2))
            expression, answer = rng.choice(((f"{left} + {right}", left + right), (f"{left} - {right}", left - right)))
            if split_of(f"python_tool {expression}") == split:
                question = {"prompt": f"What is {expression}?{hint}", "expression": expression, "answer": str(answer)}
                rows.append({**question, **self.schemas()})
        return rows

    def demonstrate(self, state: ToolState, conversation: Messages, rng: random.Random) -> str:
        """Runs the sum or guesses; mostly repeats what was printed."""
        guess = str(rng.randrange(2 * 10**self.digits))
        if len(conversation) > 1:
            return f"The answer is {conversation[-1].content if rng.random() < 0.8 else guess}."
        expression = state.columns["expression"]
        return f"python: print({expression})" if rng.random() < 0.5 else f"The answer is {guess}."


@lru_cache(maxsize=4096)
def run(code: str, limits: Limits) -> str:
    """What a program prints. Equal programs, as the completions of a prompt write them, run once. Raises ToolError with
    the reason if the program fails."""
    result = execute(PROGRAM.format(code=code), tests=None, limits=limits)
    if result.limited:
        raise ToolError(f"stopped after {limits.seconds} seconds or {limits.memory_mb} MiB")
    if result.status:
        raise ToolError(result.output.strip().rpartition("\n")[2] or "the program failed")
    return result.output.strip() or "nothing printed; use print(...)"
