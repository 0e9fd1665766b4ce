"""Samples and scores completions of prompts in chunks; each chunk is written when it is done.

The seed of a completion depends only on its prompt's row and its sample index, and chunk boundaries are fixed, so a
resumed generation equals an uninterrupted one. Selection is in selection.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from postrain.data.conversation import Message, Messages, with_prefill
from postrain.data.kinds.prompt import EncodedPrompt, Prompts
from postrain.data.module import DataModule
from postrain.data.rendering import conversation_of
from postrain.errors import ConfigError
from postrain.evaluation.completions import gold_scores
from postrain.generation.critic import Critic, revised, win_rates
from postrain.generation.selection import PromptCompletions
from postrain.jsonl import JsonLines, Record, atomic_write_text, plain
from postrain.rewards.base import PreferenceModel, Reward, nan_to_none
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import Engine
from postrain.rollout.environment import Environment
from postrain.rollout.revise import Revision
from postrain.runs.folder import writing
from postrain.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Samples, scores and optionally revises or compares completions of prompts."""

    model: nn.Module
    engine: Engine
    greedy: Engine | None
    """The greedy engine, if greedy completions are evaluated."""
    data: DataModule
    reward: Reward | None
    """None if completions are not scored."""
    environment: Environment
    samples: int
    """Completions per prompt."""
    critic: Critic | None
    """Revises completions; None if they are not revised."""
    rounds: int
    """Revisions of a completion, one after the other."""
    judge: PreferenceModel | None
    """Compares the completions of a prompt; None if they are not compared."""
    split: str
    seed: int

    @torch.no_grad()
    def __call__(self, items: Sequence[EncodedPrompt]) -> list[PromptCompletions]:
        """The completions of each prompt."""
        prompts = EncodedPrompt.collate(items)
        copies = prompts.select([index for index in range(len(items)) for _ in range(self.samples)])
        seeds = [self._seed(item.row, number) for item in items for number in range(self.samples)]
        rollouts = self._rollouts(self.engine, copies, seeds)
        gold = [scores.get("total") for scores in gold_scores(rollouts, self.data)]
        greedy = self._greedy(prompts)
        revisions = self._revisions(rollouts, seeds)
        return [
            self._prompt_completions(item, rollouts, gold, revisions, range(start, start + self.samples), greedy[index])
            for index, (item, start) in enumerate(zip(items, range(0, len(seeds), self.samples), strict=True))
        ]

    def _seed(self, row: int, number: int) -> int:
        return derive_seed(self.seed, f"generate {self.split}", row, number)

    def _rollouts(self, engine: Engine, prompts: Prompts, seeds: Sequence[int]) -> Rollouts:
        template = self.data.chat_template
        return collect(
            engine, self.model, template, prompts, seeds=seeds, reward=self.reward, environment=self.environment
        )

    def _greedy(self, prompts: Prompts) -> tuple[float | None, ...]:
        if self.greedy is None:
            return (None,) * len(prompts)
        seeds = [self._seed(row, self.samples) for row in prompts.row_ids]
        return self._rewards_of(self._rollouts(self.greedy, prompts, seeds))

    def _rewards_of(self, rollouts: Rollouts) -> tuple[float | None, ...]:
        return nan_to_none(rollouts.reward_B) if self.reward else (None,) * len(rollouts.completions)

    def _revisions(self, rollouts: Rollouts, seeds: Sequence[int]) -> dict[int, Revision]:
        """The revisions of the finished completions, by their index."""
        ended = rollouts.finished_B.nonzero().flatten().tolist()
        if self.critic is None or not ended:
            return {}
        prompts = [conversation_of(rollouts.prompts[index], rollouts.columns[index]) for index in ended]
        completions = [rollouts.completions[index] for index in ended]
        own = [seeds[index] for index in ended]
        return dict(zip(ended, revised(self.critic, prompts, completions, own, self.rounds), strict=True))

    def _prompt_completions(
        self,
        item: EncodedPrompt,
        rollouts: Rollouts,
        gold: Sequence[float | None],
        revisions: Mapping[int, Revision],
        mine: range,
        greedy: float | None,
    ) -> PromptCompletions:
        rewards = self._rewards_of(rollouts)
        completions = tuple(rollouts.completions[index] for index in mine)
        finished = tuple(bool(rollouts.finished_B[index]) for index in mine)
        return PromptCompletions(
            row=item.row,
            prompt=item.text,
            columns=_as_read_from_file(item.columns),
            completions=completions,
            rewards=tuple(rewards[index] for index in mine),
            finished=finished,
            gold=tuple(gold[index] for index in mine),
            greedy=greedy,
            revisions=tuple(revisions[index] for index in mine if index in revisions),
            win_rates=win_rates(self.judge, item.text, completions, finished, item.columns) if self.judge else (),
        )


def distinct_prompts(items: Sequence[Any], count: int | None) -> list[EncodedPrompt]:
    """The first `count` different prompts."""
    found: dict[str, EncodedPrompt] = {}
    for item in items:
        if isinstance(item, EncodedPrompt):
            found.setdefault(item.text, item)
    return list(found.values())[:count]


def sample(
    sampler: Sampler, items: Sequence[EncodedPrompt], lines: JsonLines, chunk: int
) -> Iterator[list[PromptCompletions]]:
    """The completions of all prompts in chunks; chunks already in the file `lines` are read from it."""
    done = _read_whole_chunks(lines, items, chunk, sampler.samples)
    for start in range(0, len(items), chunk):
        if start < len(done):
            yield done[start : start + chunk]
            continue
        answers = sampler(items[start : start + chunk])
        with writing(lines.path, "free some space, then resume"):
            lines.append(*map(asdict, answers))
        yield answers


def _read_whole_chunks(
    lines: JsonLines, items: Sequence[EncodedPrompt], chunk: int, samples: int
) -> list[PromptCompletions]:
    """The complete chunks in the file of an earlier session; a partial chunk at the end is removed."""
    records, damaged = lines.examine()
    whole = len(records) if len(records) == len(items) else len(records) - len(records) % chunk
    if damaged or whole < len(records):
        kept = [json.dumps(plain(record), ensure_ascii=False) + "\n" for record in records[:whole]]
        with writing(lines.path, "free some space, then resume"):
            atomic_write_text(lines.path, "".join(kept))
    try:
        found = [completions_of_record(record) for record in records[:whole]]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"resume: {lines.path} is damaged; start a new generation") from None
    same_rows = [answers.row for answers in found] == [item.row for item in items[:whole]]
    if not same_rows or any(len(answers.completions) != samples for answers in found):
        raise ConfigError(
            f"resume: {lines.path} holds completions of other prompts, or a different number of samples; "
            "start a new generation"
        )
    return found


def completions_of_record(record: Record) -> PromptCompletions:
    """One line of completions.jsonl."""
    lists = {name: tuple(record[name]) for name in ("completions", "rewards", "finished", "gold")}
    revisions = tuple(Revision(**{**made, "prompt": _prompt(made["prompt"])}) for made in record.get("revisions", ()))
    lists["win_rates"] = tuple(record.get("win_rates", ()))
    return PromptCompletions(**{**record, **lists, "revisions": revisions})


def _prompt(value: Any) -> str | Messages:
    return value if isinstance(value, str) else with_prefill(tuple(Message(**turn) for turn in value))


def _as_read_from_file(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns as JSON would return them: dates become text."""
    return json.loads(json.dumps(plain(columns), default=str))
