"""Tool calls in sampled answers of held-out conversations: parsed, right functions, right arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from postrain.data.conversation import Messages, tools_of
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.prompt import Prompt, prompt_record
from postrain.errors import ConfigError
from postrain.evaluation.completions import first_prompt, sample_prompts
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.rewards.tool_calls import compare, find_calls, reads_calls
from postrain.types import Count

NEEDS_TOOLS = "needs conversations with tools and an answer; see docs/howto/tools.md"
UNREADABLE = "calls of this chat template are not JSON with a name and arguments, so they cannot be read; use another"


@dataclass(frozen=True, kw_only=True)
class ToolCalls:
    """Greedy answers in conversations with tools, compared with the held-out ones, at every assistant message.

    Where a call is expected: the share `parsed`, the share that calls the right `function`, and the share that calls it
    with the right `arguments`. Where text is expected: the share with `no_call`. `accuracy` is the share with the right
    arguments or, where text is expected, without a call.
    """

    answers: Count = 64
    """Maximum number of held-out assistant messages to sample."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        try:
            data = eval_model.data_as("Demonstration")
        except ConfigError:
            return EvalResult(metrics={}, notes=(NEEDS_TOOLS,))
        items = [item for record in data.records.held_out for item in turns_to_answer(record)][: self.answers]
        if not items:
            return EvalResult(metrics={}, notes=(NEEDS_TOOLS,))
        if not _readable(eval_model, [item.prompt for item in items], [_expected(item) for item in items]):
            return EvalResult(metrics={}, notes=(UNREADABLE,))
        # The run's reward may need columns that conversations lack.
        rollouts = sample_prompts(replace(eval_model, reward=None), data.encode_prompts(items), greedy=True)
        records = [
            {
                "row": f"{item.row}/{len(item.prompt)}",
                "held_out_row": item.row,
                "prompt": item.text,
                "completion": text,
                "expected": _expected(item),
                **verdicts(text, _expected(item)),
            }
            for item, text in zip(items, rollouts.completions, strict=True)
        ]
        names = ("parsed", "function", "arguments", "no_call", "accuracy")
        known = {name: [bool(record[name]) for record in records if name in record] for name in names}
        return EvalResult(
            metrics={name: Estimate.share(values) for name, values in known.items() if values},
            example=first_prompt(eval_model, rollouts),
            records=tuple(records),
        )


def turns_to_answer(record: Any) -> list[Prompt]:
    """The conversation up to each assistant message, with the expected calls; [] without tools."""
    if not isinstance(record, Demonstration) or not tools_of(record.messages):
        return []
    return [
        prompt_record(record, record.messages[:at], tool_calls=list(turn.tool_calls))
        for at, turn in enumerate(record.messages)
        if turn.role == "assistant" and turn.in_loss
    ]


def verdicts(text: str, expected: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """The metrics of one answer."""
    if not expected:
        found = find_calls(text)
        silent = not (found.calls or found.malformed)
        return {"no_call": silent, "accuracy": silent}
    one = compare(text, expected)
    return {"parsed": one.parsed, "function": one.function, "arguments": one.arguments, "accuracy": one.arguments}


def _expected(item: Prompt) -> Sequence[Mapping[str, Any]]:
    return item.columns["tool_calls"]


def _readable(
    eval_model: EvalModel, prompts: Sequence[Messages], expected: Sequence[Sequence[Mapping[str, Any]]]
) -> bool:
    """Whether the first expected calls, as the template writes them, can be read back."""
    first = next((pair for pair in zip(prompts, expected, strict=True) if pair[1]), None)
    if first is None:
        return True
    return reads_calls(eval_model.template, *first)
