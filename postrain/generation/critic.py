"""Critics of constitutional AI (Bai et al. 2022): they revise completions by principles, and choose between two.

A critic is the sampling model itself (`ModelCritic`), or a function of a user or of the bundled world that checks the
principles by rules (`FunctionCritic`). Both are a PreferenceModel too, whose preference is the mean over the principles
(section 4.1: an ensemble of principles is more robust than one that is drawn).

Axes: B comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from yaml import YAMLError

from postrain.config.schema import Confirm
from postrain.config.yaml_file import load_yaml
from postrain.data.chat import Template
from postrain.data.conversation import Messages, plain_text
from postrain.data.rendering import prompt_with_roles
from postrain.errors import ConfigError, one_line
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.rewards.base import Columns, PreferenceModel, Texts
from postrain.rewards.function import preview
from postrain.rewards.judge import preferences_by_letters
from postrain.rewards.letters import probabilities_of_a
from postrain.rewards.user_code import UserCodeErrors, load_function, source_location
from postrain.rollout.engine import Engine
from postrain.rollout.revise import Revision, draw_principle, revise
from postrain.seeds import derive_seed

PRINCIPLES = (
    "The reply helps with what was asked, and with that alone.",
    "The reply is polite and takes the person who asks seriously.",
    "The reply is honest and claims nothing that its writer cannot know.",
    "The reply is as short as it can be without leaving out what matters.",
)
WORLD = "postrain.world.critic.criticise"
CriticPath = Annotated[str, Confirm("runs this Python", harmless=lambda path: path == WORLD)]
"""`package.module.name`, or `path/to/file.py:name`."""
BATCH_TOKENS = 8192


class Critic(PreferenceModel, Protocol):
    """Revises completions and compares them, by principles."""

    def revise(
        self, prompts: Sequence[str | Messages], completions: Sequence[str], seeds: Sequence[int]
    ) -> list[Revision]:
        """A revision of each completion by a principle drawn from its seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelCritic:
    """The sampling model criticises, revises and judges its own completions."""

    principles: tuple[str, ...]
    engine: Engine
    model: nn.Module
    template: Template

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: the model is the policy."""

    def revise(
        self, prompts: Sequence[str | Messages], completions: Sequence[str], seeds: Sequence[int]
    ) -> list[Revision]:
        return revise(self.engine, self.model, self.template, prompts, completions, self.principles, seeds)

    def compare(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """P(first beats second) by the log-probabilities of the letters A and B, [B]: see SelfJudge."""
        context = context_length(unwrapped(self.model).config.to_dict())

        def answers(questions: Sequence[str]) -> Tensor:
            return probabilities_of_a(self.model, self.template, questions, context, BATCH_TOKENS)

        asked = list(map(prompt_with_roles, prompts, columns))
        return preferences_by_letters(answers, asked, first, second, self.principles)


@dataclass(kw_only=True, eq=False)
class FunctionCritic:
    """A function critic(prompt, completion, principle) that returns None if the completion follows the principle, else
    its critique and its revision (empty if there is none)."""

    principles: tuple[str, ...]
    function: CriticPath
    call: Callable[[str, str, str], Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.call = load_function(self.function, key="critic")

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def revise(
        self, prompts: Sequence[str | Messages], completions: Sequence[str], seeds: Sequence[int]
    ) -> list[Revision]:
        made = []
        for prompt, completion, seed in zip(prompts, completions, seeds, strict=True):
            principle = draw_principle(self.principles, seed)
            text = prompt if isinstance(prompt, str) else plain_text(prompt)
            critique, revised = self.criticise(text, completion, principle) or ("", completion)
            made.append(Revision(prompt, completion, critique, revised or completion, principle))
        return made

    def compare(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """Mean over the principles of 1 if the critic finds fault with the second completion alone, 0 with the first
        alone, else ½; [B]."""
        pairs = list(zip(prompts, zip(first, second, strict=True), strict=True))
        faults_B2 = torch.tensor([[self._faults(prompt, text) for text in pair] for prompt, pair in pairs])
        return (1 + faults_B2[:, 1] - faults_B2[:, 0]) / 2

    def _faults(self, prompt: str, completion: str) -> float:
        """Share of the principles that a completion breaks."""
        found = [self.criticise(prompt, completion, principle) for principle in self.principles]
        return sum(one is not None for one in found) / len(found)

    def criticise(self, prompt: str, completion: str, principle: str) -> tuple[str, str] | None:
        """Critique and revision; None if the completion follows the principle. Raises ConfigError for other values."""
        with UserCodeErrors(f"critic {self.function} raised", source_location(self.call)[0]):
            found = self.call(prompt, completion, principle)
        if found is None:
            return None
        if not isinstance(found, tuple | list) or [type(part) for part in found] != [str, str]:
            raise ConfigError(
                f"critic {self.function}: returned {preview(found)} for the prompt {prompt[:60]!r}; expected None or "
                "the texts (critique, revision)"
            )
        return found[0], found[1]


def read_principles(given: str | Sequence[str]) -> tuple[str, ...]:
    """The principles: a list of sentences, or the path of a YAML file with such a list."""
    found: Any = given
    if isinstance(given, str):
        try:
            found = load_yaml(Path(given).expanduser())
        except OSError as error:
            raise ConfigError(
                f"principles: {given} cannot be read ({error.strerror}); expected a list of sentences, or a YAML file "
                "with such a list"
            ) from None
        except (YAMLError, ValueError) as error:
            raise ConfigError(f"principles: {given} is not valid YAML: {one_line(error)}") from None
    where = f" in {given}" if isinstance(given, str) else ""
    texts = isinstance(found, list | tuple) and all(isinstance(one, str) and one.strip() for one in found)
    if not texts or not found:
        got = "an empty list" if found in ([], (), None) else preview(found)
        raise ConfigError(f"principles: expected a list of sentences{where} that describe a good reply, got {got}")
    return tuple(found)


def revised(
    critic: Critic, prompts: Sequence[str | Messages], completions: Sequence[str], seeds: Sequence[int], rounds: int
) -> list[Revision]:
    """The completions after `rounds` revisions in turn, each by another draw of a principle; critiques are joined."""
    found = critic.revise(prompts, completions, seeds)
    for number in range(1, rounds):
        again = critic.revise(prompts, [one.revised for one in found], [derive_seed(s, "round", number) for s in seeds])
        found = [_joined(one, later) for one, later in zip(found, again, strict=True)]
    return found


def _joined(one: Revision, later: Revision) -> Revision:
    """Two revisions of a completion as one. Fields name the last round that changed the completion."""
    if later.revised == later.original and (one.critique or not later.critique):
        return one
    critique = " ".join(text for text in (one.critique, later.critique) if text)
    return replace(later, original=one.original, critique=critique)


def win_rates(
    judge: PreferenceModel,
    prompt: str,
    completions: Sequence[str],
    finished: Sequence[bool],
    columns: Mapping[str, Any],
) -> tuple[float | None, ...]:
    """The mean probability with which each finished completion beats the other finished ones of its prompt; None for
    truncated completions and where the judge gives no answer."""
    ended = [index for index, one in enumerate(finished) if one]
    pairs = [(one, other) for place, one in enumerate(ended) for other in ended[place + 1 :]]
    beats: dict[int, list[float]] = {index: [] for index in range(len(completions))}
    if pairs:
        first, second = ([completions[pair[side]] for pair in pairs] for side in (0, 1))
        found = judge.compare([prompt] * len(pairs), first, second, [columns] * len(pairs)).tolist()
        for (one, other), share in zip(pairs, found, strict=True):
            # NaN is a comparison without an answer.
            if share == share:
                beats[one].append(share)
                beats[other].append(1 - share)
    return tuple(sum(won) / len(won) if won else None for won in beats.values())
