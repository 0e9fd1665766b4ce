"""The config of `postrain generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from postrain.config.schema import Deferred, Paths, Section
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.generation.critic import PRINCIPLES, CriticPath, read_principles
from postrain.generation.prompts import PromptMaker
from postrain.generation.selection import AIPreferences, NoRows, PreferencePairs, RevisionPairs, Selection, TopK
from postrain.hardware.trainer import Hardware
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward, scores_completions
from postrain.rollout.engine import Engine
from postrain.rollout.environment import SINGLE_TURN, Environment, SingleTurn
from postrain.rollout.local import LocalEngine
from postrain.types import Count, Seed, Size


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """Samples and scores completions of a data source's prompts, and writes selected ones as training data. Raises
    ConfigError for settings that do not fit together."""

    model: ModelSource
    """The model that samples."""
    data: DataModule
    """The source of the prompts."""
    reward: Deferred[Reward | PreferenceModel] | None = None
    """The reward of completions; null is allowed with selection=revisions, revised, ai_preferences and none. A reward
    that compares two completions (self_judge, judge_pairwise) replaces the critic of selection=ai_preferences."""
    rollout: Engine = field(default_factory=LocalEngine)
    """The sampling engine and its settings."""
    environment: Environment = SINGLE_TURN
    """The environment that responds to the model's turns. Its episodes can be measured (selection=none), not
    written as data."""
    trainer: Hardware = field(default_factory=Hardware)
    """The hardware: processes, devices and precision."""
    selection: Selection
    """The selection of completions for the data file."""
    principles: str | tuple[str, ...] = PRINCIPLES
    """The constitution of selection=revisions and ai_preferences: sentences that describe a good reply, or a YAML file
    with a list of them. One is drawn for each revision; preferences are the mean over all."""
    critic: CriticPath | None = None
    """The critic that revises and compares completions: a Python function critic(prompt, completion, principle), as
    package.module.name or file.py:name, that returns None or (critique, revision). null is the model itself."""
    split: Literal["train", "eval", "all"] = "train"
    """The split of the prompts: train, eval (held-out) or all, the prompts of both."""
    prompts: PromptMaker | None = None
    """Makes prompts with the model instead of completions; their seeds are the prompts of the data. null samples
    completions of the prompts of the data."""
    prompt_count: Count | None = None
    """Maximum number of prompts of the data, in order; null is all."""
    samples: Size = 8
    """Completions per prompt."""
    greedy: bool = False
    """Also evaluate one greedy completion per prompt."""
    threshold: float = 1.0
    """A completion is correct if its reward is at least this."""
    chunk: Size = 64
    """Prompts per write to disk. An interrupted run loses at most one chunk."""
    seed: Seed = 0
    """Seed of the samples."""
    name: str | None = None
    """Name of the folder; null is generate."""
    resume: str | None = None
    """Resume the generation in this folder: resume=runs/generate/nano/..."""
    allow_change: bool = False
    """Allow changed settings when resuming. Completions, revisions and comparisons in the folder are kept; another
    selection= selects other rows of them."""
    debug: bool = False
    """Show tracebacks."""
    paths: Paths = field(default_factory=Paths)
    """Output directories."""

    def __post_init__(self) -> None:
        assert self.constitution
        self._refuse_without_effect()
        compares = isinstance(self.selection, AIPreferences)
        if compares and self.samples < 2:
            raise ConfigError("samples: expected at least 2, since selection=ai_preferences compares completions")
        if self.reward is None:
            if isinstance(self.selection, TopK | PreferencePairs):
                raise ConfigError(
                    "reward: expected one, since selection ranks completions by it; without one choose "
                    "selection=none, which writes completions.jsonl only, or selection=revisions or ai_preferences"
                )
            return
        target = self.reward.target
        if not compares and not scores_completions(target):
            raise ConfigError(
                f"reward: {target.__name__} compares two completions, but selection needs a score of each; choose "
                "another reward, or selection=ai_preferences"
            )

    def _refuse_without_effect(self) -> None:
        """Raises ConfigError for settings that this generation would not use."""
        if self.prompts is not None:
            unused = {
                "critic": self.critic is not None,
                "environment": not isinstance(self.environment, SingleTurn),
                "greedy": self.greedy,
                "samples": self.samples != type(self).samples,
            }
            if names := [name for name, given in unused.items() if given]:
                raise ConfigError(
                    f"{', '.join(names)}: no effect with prompts=, which samples prompts only; leave them out"
                )
        if not isinstance(self.environment, SingleTurn) and not isinstance(self.selection, NoRows):
            raise ConfigError(
                "environment: rows of data would train on the environment's replies too; choose selection=none, which "
                "measures only, or environment=none"
            )
        if self.critic is not None and not isinstance(self.selection, RevisionPairs | AIPreferences):
            raise ConfigError(
                "critic: this selection uses none; choose selection=revisions, revised or ai_preferences, or leave it "
                "out"
            )

    def check(self) -> None:
        """Raises ConfigError if the machine cannot run this. Called before the folder is created."""
        self.trainer.check()
        if self.trainer.ranks > 1:
            raise ConfigError("trainer: a generation runs in one process; use trainer=cpu or trainer=gpu")

    @cached_property
    def constitution(self) -> tuple[str, ...]:
        """The principles as sentences."""
        return read_principles(self.principles)

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model that samples."""
        return self.model.resolve()

    @property
    def label(self) -> str:
        """The first part of the folder's path."""
        return self.name or "generate"
