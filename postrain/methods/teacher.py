"""The teacher of distillation: another model, or the student with another prompt; its weights may move.

Leaves out the loss (distill.py) and the rows that the teacher reads (teacher_context.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Interval

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware.sharding import load_state
from postrain.hardware.shares import dealt
from postrain.methods.online import Online
from postrain.methods.reference_cache import deduplicate, rows_in
from postrain.methods.reference_model import all_items, move_towards, print_on_rank_zero
from postrain.methods.server_teacher import ServerTeacher
from postrain.methods.teacher_cache import TeacherCache
from postrain.methods.teacher_context import TeacherContext, TeacherRows, end_token
from postrain.models.directory import context_length
from postrain.models.parts import frozen_copy, model_width, unwrapped
from postrain.models.reference import Reference
from postrain.models.token_alignment import Vocabularies
from postrain.rollout.collect import Rollouts
from postrain.rollout.environment import SingleTurn
from postrain.types import Positive, Size

NO_LIMIT = 2**20
"""A server checks the length of its rows itself."""


def is_url(teacher: str) -> bool:
    """Whether a teacher is an address, not a model on this machine."""
    return teacher.startswith(("http://", "https://"))


class WithTeacher(Online):
    """Base of methods that sample from a student and imitate a teacher."""

    teacher_prompt: str = "{prompt}"
    """The last message of the prompt that the teacher reads, with the student's as {prompt} and columns of the row in
    braces, such as {answer}; {completion} is the completion of the data. A teacher=self needs it or
    teacher_system_prompt."""
    teacher_system_prompt: str | None = None
    """System prompt of the teacher, which the student does not see; null keeps that of the data."""
    teacher_model_kind: Literal["base", "live", "ema"] = "base"
    """The weights of teacher=self. base: those before the first update. live: the current ones. ema: an exponential
    moving average, updated after every update."""
    teacher_update_rate: Annotated[float, Interval(gt=0, le=1)] = 0.05
    """α of θ_teacher ← α·θ + (1 − α)·θ_teacher with teacher_model_kind=ema."""
    cross_tokenizer: bool = False
    """Align the tokens of a teacher with another tokenizer by the text of the completion. The coverage is logged as
    align/*."""

    precompute_teacher: bool = False
    """Run the teacher over all completions once before the first update, which saves time with several epochs. Needs
    on_policy=0. In memory are its last hidden states, hidden size · 4 bytes per token, or a server's answers."""
    teacher_top_k: Size = 20
    """Tokens of each position whose log-probabilities a teacher behind a URL sends; the others are one outcome."""
    teacher_timeout: Positive = 120.0
    """Limit in seconds for an answer of a teacher behind a URL."""
    server_url = ""
    """The address of a teacher behind a server, of the config's key `teacher`; not a key of its own."""

    def needs_reference(self) -> bool:
        return not (self.server_url or self.cross_tokenizer)

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.teacher_cache = TeacherCache()
        self.ema: Reference | None = None
        if self.teacher_model_kind == "ema":
            if hasattr(self.policy, "disable_adapter"):
                raise ConfigError(
                    "method.teacher_model_kind=ema: not with an adapter, where the teacher is the base model; use base "
                    "or live"
                )
            with self.reference_policy.scoring() as initial:
                self.ema = Reference(self.policy, frozen_copy(initial))

    def references(self) -> list[Reference]:
        foreign = self.components.foreign_teacher
        own = [self.ema, foreign and foreign.reference]
        return [*super().references(), *(each for each in own if each is not None)]

    @property
    def teacher(self) -> Reference:
        """The teacher's model."""
        if self.teacher_model_kind == "live":
            return Reference(self.policy, self.policy)
        foreign = self.components.foreign_teacher
        return self.ema or (foreign.reference if foreign else self.reference_policy)

    @cached_property
    def server(self) -> ServerTeacher:
        """The teacher behind `server_url`."""
        found = ServerTeacher(self.server_url, self.teacher_top_k, self.teacher_timeout)
        found.check_tokens(self.components.template.tokenizer)
        return found

    @cached_property
    def teacher_context(self) -> TeacherContext | None:
        """Builds the teacher's rows; None if they are the student's."""
        if not (self.has_other_prompt or self.cross_tokenizer):
            return None
        template, vocabularies = self.components.template, None
        if self.server_url:
            return TeacherContext(template, self.teacher_prompt, self.teacher_system_prompt, NO_LIMIT)
        with self.teacher.scoring() as model:
            context = context_length(unwrapped(model).config.to_dict())
            if (foreign := self.components.foreign_teacher) is not None:
                template, student = foreign.template, template
                vocabularies = Vocabularies.of(
                    student.tokenizer,
                    template.tokenizer,
                    (model_width(self.policy), model_width(model)),
                    (end_token(student), end_token(template)),
                )
                print_on_rank_zero(f"{vocabularies.describe()}\n")
        return TeacherContext(template, self.teacher_prompt, self.teacher_system_prompt, context, vocabularies)

    def check(self) -> None:
        super().check()
        on_policy = getattr(self, "on_policy", 1.0)
        if (self.has_other_prompt or self.cross_tokenizer) and on_policy < 1:
            key = "cross_tokenizer" if self.cross_tokenizer else "teacher_prompt"
            raise ConfigError(
                f"method.{key}: the teacher's rows are made from prompts and sampled completions; set "
                f"method.on_policy=1, got {on_policy:g}"
            )
        if self.precompute_teacher and on_policy:
            raise ConfigError(
                f"method.precompute_teacher: sampled completions are not known before the first update; set "
                f"method.on_policy=0, got {on_policy:g}"
            )
        if self.server_url and self.sampling.temperature != 1:
            raise ConfigError(
                f"rollout.temperature={self.sampling.temperature:g}: a server sends log-probabilities at temperature "
                "1; set rollout.temperature=1"
            )
        single = isinstance(self.components.environment, SingleTurn)
        if not single and 0 < on_policy < 1:
            raise ConfigError(
                f"method.on_policy={on_policy:g}: rows with completions lack the columns that an environment reads; "
                "set method.on_policy=1 or environment=none"
            )
        if self.cross_tokenizer and not single:
            raise ConfigError("method.cross_tokenizer aligns single completions; set environment=none")

    def check_teacher(self, teacher: str | None) -> None:
        if teacher is None:
            raise ConfigError(
                "teacher: Distill learns from another model; give one, as teacher=RUN (a run folder), "
                "teacher=DIRECTORY or teacher=NAME, or teacher=self with method.teacher_prompt"
            )
        self.server_url = teacher if is_url(teacher) else ""
        for name in () if self.server_url else ("teacher_top_k", "teacher_timeout"):
            if (value := getattr(self, name)) != getattr(type(self), name):
                raise ConfigError(f"method.{name}={value}: has no effect without a teacher behind a URL; leave it out")
        if self.server_url and self.cross_tokenizer:
            raise ConfigError(
                "method.cross_tokenizer: log-probabilities of a server are those of the student's tokens; give the "
                "teacher as a directory, or set method.cross_tokenizer=false"
            )
        if teacher == "self" and not self.has_other_prompt:
            raise ConfigError(
                "teacher=self: the student with the same prompt has a loss of 0; give the teacher another one with "
                "method.teacher_prompt='\"{prompt} Hint: {answer}\"' or method.teacher_system_prompt"
            )
        if self.teacher_model_kind != "base" and teacher != "self":
            raise ConfigError(
                f"method.teacher_model_kind={self.teacher_model_kind} moves the weights of teacher=self; remove it"
            )

    def check_ready(self, *, resumes: bool = False) -> None:
        super().check_ready(resumes=resumes)
        parts = self.components
        if self.teacher_model_kind != "base" and (parts.separate_reference or parts.foreign_teacher):
            raise ConfigError(
                f"method.teacher_model_kind={self.teacher_model_kind} makes the student its own teacher; leave out the "
                "reference"
            )
        if not (parts.separate_reference or parts.foreign_teacher or self.has_other_prompt or self.server_url):
            raise ConfigError(
                "reference: Distill learns from another model; give the teacher, as Distill(model, tokenizer, "
                "reference=teacher)"
            )

    @property
    def has_other_prompt(self) -> bool:
        """Whether the teacher reads another prompt than the student."""
        return self.teacher_prompt != "{prompt}" or self.teacher_system_prompt is not None

    def setup(self, stage: str) -> None:
        """Fills the cache before the first update, and before a checkpoint is loaded."""
        super().setup(stage)
        if not self.precompute_teacher:
            return
        batch = deduplicate(all_items(self.datamodule))
        print_on_rank_zero(f"teacher: reading {len(batch)} rows once ... ")
        started = time.monotonic()
        if self.server_url:
            rows = rows_in(batch)
            self.teacher_cache = TeacherCache.of_server(self.server, rows.select(dealt(range(len(rows)))))
        else:
            mine = dealt(self.micro_batches(batch))
            with self.trainer.strategy.precision_plugin.forward_context():
                self.teacher_cache = TeacherCache.of_model(self.teacher, batch, mine)
        size = self.teacher_cache.bytes() / 2**20
        print_on_rank_zero(f"{time.monotonic() - started:.1f} s, {size:.0f} MiB in memory\n")

    def teacher_rows(self, prompts: Prompts, rollouts: Rollouts) -> TeacherRows | None:
        """What the teacher reads for sampled completions; None if it is the same."""
        return None if self.teacher_context is None else self.teacher_context.rows(prompts, rollouts.rows)

    def move_teacher(self) -> None:
        """One update of teacher_model_kind=ema."""
        if self.ema is not None:
            move_towards(self.ema, self.policy, self.teacher_update_rate)

    def state(self) -> dict[str, Any]:
        if self.ema is None:
            return super().state()
        with self.ema.scoring() as model:
            return {**super().state(), "teacher": model.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        if self.ema is not None and "teacher" in state:
            with self.ema.scoring() as model:
                load_state(model, state["teacher"])
