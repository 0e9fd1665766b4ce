"""Whose completion each judgement borrows for the prompt-completion pairs that belong together nowhere.

KTO (Ethayarajh et al. 2024, section 4.1) measures its KL baseline on such pairs. They are a property of the data and
not of a batch: batch size, ranks and micro-batches cannot change them, and their reference log-probs can be kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from postrain.types import ConfigError


def mismatched(prompts: Sequence[Hashable], completions: Sequence[Hashable]) -> list[int]:
    """For each item another whose prompt and completion differ, or only its completion where none differs in both.

    The search starts half-way round: starting next door, both sides of a preference pair would take the chosen side of
    the next pair, and no rejected completion would ever be borrowed.
    """
    if len(set(completions)) < 2:
        raise ConfigError(
            f"data: all completions are the same in a part of {len(completions)} judgements; KTO's KL baseline needs "
            "others: give more rows or, where it is the held-out part, a larger data.eval_fraction"
        )
    strides = _strides(prompts), _strides(completions)
    return [_partner(item, prompts, completions, *strides) for item in range(len(prompts))]


def _partner(
    item: int,
    prompts: Sequence[Hashable],
    completions: Sequence[Hashable],
    prompt_strides: Sequence[int],
    completion_strides: Sequence[int],
) -> int:
    count = len(prompts)
    start = item + count // 2
    fallback, at = None, start
    while at < start + count:
        other = at % count
        if completions[other] == completions[item]:
            at += completion_strides[other]
        elif prompts[other] == prompts[item]:
            fallback = other if fallback is None else fallback
            at += prompt_strides[other]
        else:
            return other
    assert fallback is not None  # there is another completion somewhere
    return fallback


def _strides(keys: Sequence[Hashable]) -> list[int]:
    """How many places on, going round, the key is another one; a whole round where there is no other."""
    count = len(keys)
    strides = [count] * count
    for at in range(2 * count - 1, -1, -1):
        here, after = at % count, (at + 1) % count
        strides[here] = 1 if keys[here] != keys[after] else min(count, strides[after] + 1)
    return strides
