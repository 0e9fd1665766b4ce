"""Distillation: the student (the policy) imitates the next-token distributions of a teacher (the reference), on its own
completions, on given ones, or on both (Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from
Self-Generated Mistakes", GKD).

The divergence of each token is exact, a sum over the vocabulary. Its gradient flows through the student's distribution,
not through the sampling of the completions.

Axes: B rows of a batch, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from postrain import losses
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.hardware.shares import Share
from postrain.methods.base import Method
from postrain.methods.learning_rates import LearningRates
from postrain.methods.metrics import Metrics
from postrain.methods.online import global_indices, local_indices
from postrain.methods.teacher import WithTeacher
from postrain.methods.teacher_context import TeacherRows, placeholders
from postrain.models.micro_batches import concatenated
from postrain.models.scoring import score_with_reference
from postrain.models.token_alignment import score_aligned
from postrain.models.top_k import TopK, score_top_k
from postrain.types import Batch, Count, Fraction, LossSum, Max, Mean, Rows, Size

Divergence = Literal["reverse_kl", "forward_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl"]


@dataclass(frozen=True)
class Experience(Batch):
    """Sampled or given completions of one batch."""

    rows: Rows
    in_loss_B: Tensor
    """False for truncated completions with mask_truncated_completions: they skip the forward pass."""
    teacher: TeacherRows | None = None
    """What the teacher reads, if it is not `rows`."""
    top_k: TopK | None = None
    """Log-probabilities of a teacher behind a server."""

    def cost(self) -> list[int]:
        return [cost * in_loss for cost, in_loss in zip(self.rows.cost(), self.in_loss_B.tolist(), strict=True)]


class Distill(WithTeacher):
    """Distils a teacher into the policy (Agarwal et al. 2023, GKD).

        loss = Σ D(teacher, student) / tokens, over the completion tokens of sampled and of given completions

    D is the divergence of the two next-token distributions given the same prefix.
    """

    needs_reward: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    expected_change: ClassVar[tuple[str, float]] = ("eval/loss", -0.5)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "completion/length", "eval/loss")
    rates: ClassVar[LearningRates] = LearningRates(base=1e-5, nano=2e-3)

    updates: Count = 60
    batch_size: Size = 32
    """Prompts or rows in a global batch, over all ranks."""
    divergence: Divergence = "reverse_kl"
    """Divergence of a token. reverse_kl: KL(student ‖ teacher), which avoids what the teacher would not write.
    forward_kl: KL(teacher ‖ student), which covers all that it would. jsd: the generalised Jensen-Shannon divergence
    between the two. skewed_forward_kl, skewed_reverse_kl: the KL to a mixture of both, which is bounded (DistiLLM)."""
    beta: Fraction = 0.5
    """Weight of the teacher in the mixture of divergence=jsd: near 0 it acts like forward_kl, near 1 like reverse_kl.
    0 and 1 are these two."""
    skew_alpha: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Weight of the first distribution of a skewed KL in the mixture that it is compared with; 0 gives the plain KL."""
    on_policy: Fraction = 1.0
    """Share of each batch whose completions the student samples; the others are those of the data. Below 1, the data
    needs completions."""

    def conditional_options(self) -> dict[str, str | None]:
        return {
            **super().conditional_options(),
            "beta": None if self.divergence == "jsd" else "method.divergence=jsd",
            "skew_alpha": None if self.divergence.startswith("skewed") else "method.divergence=skewed_reverse_kl",
            "teacher_update_rate": None if self.teacher_model_kind == "ema" else "method.teacher_model_kind=ema",
        }

    def data_kind(self) -> str:
        if "completion" in placeholders(self.teacher_prompt):
            return "DemonstratedPrompt"
        return "Prompt" if self.on_policy == 1 else "Demonstration"

    def data_remedy(self) -> str:
        return "" if self.on_policy == 1 else ", or set method.on_policy=1, which needs prompts only"

    def check(self) -> None:
        super().check()
        if self.missing_eos_penalty:
            raise ConfigError(
                f"method.missing_eos_penalty={self.missing_eos_penalty:g} is subtracted from a reward, and "
                "distillation has none; remove it"
            )
        if self.overlap and self.on_policy < 1:
            raise ConfigError(
                f"rollout.overlap={self.overlap}: expected method.on_policy=1, got {self.on_policy:g}; set "
                "rollout.overlap=0"
            )
        if 0 < self.sampled_rows < collectives.world_size():
            raise ConfigError(
                f"method.on_policy={self.on_policy:g}: expected at least one sampled completion per rank, got "
                f"{self.sampled_rows} of method.batch_size={self.batch_size}; give a larger share or 0"
            )

    @property
    def sampled_rows(self) -> int:
        """Rows of a global batch whose completions are sampled."""
        return round(self.on_policy * self.batch_size)

    def prepare(self, batch: Prompts | Rows) -> Experience:
        """Samples completions for the first rows of the global batch; the others keep those of the data."""
        indices = global_indices(range(len(batch)))
        count = sum(index < self.sampled_rows for index in indices)
        given = batch.select(range(count, len(batch))) if isinstance(batch, Rows) else None
        if not count and given is not None:
            return self.scored(self.given_completions(given))
        prompts = self.prompts_of(batch.select(range(count)))
        rollouts = self.rollout(prompts, indices=indices[:count])
        self.start_next_rollout()
        self.accumulate(self.rollout_metrics(rollouts))
        sampled = Experience(rollouts.rows, ~self.truncated_and_masked(rollouts), self.teacher_rows(prompts, rollouts))
        return self.scored(sampled if given is None else concatenated([sampled, self.given_completions(given)]))

    def given_completions(self, rows: Rows) -> Experience:
        """Rows with the completions of the data."""
        return Experience(rows, torch.ones(len(rows), dtype=torch.bool, device=self.device))

    def scored(self, batch: Experience) -> Experience:
        """With the log-probabilities of a teacher behind a server."""
        rows = batch.rows if batch.teacher is None else batch.teacher.rows
        if not self.server_url:
            return batch
        return replace(batch, top_k=self.teacher_cache.top_k_of(rows) or self.server.score(rows))

    def prompts_of(self, batch: Prompts | Rows) -> Prompts:
        """Prompts, or the tokens of each row before its first supervised one."""
        if isinstance(batch, Prompts):
            return batch
        ids = tuple(
            row[: int(mask.int().argmax())].cpu() for row, mask in zip(batch.ids, batch.supervised, strict=True)
        )
        texts = tuple(self.components.template.decode(prompt) for prompt in ids)
        return Prompts(ids, texts, ({},) * len(ids), batch.row_ids)

    def minibatches(self, prepared: Experience) -> Iterator[Experience]:
        for indices in self.minibatch_indices(self.batch_size):
            yield prepared.select(local_indices(indices))
        self.move_teacher()

    def divergence_function(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """D as a function of the log-probabilities of student and teacher and the student's probabilities."""
        functions: dict[Divergence, Callable[..., Tensor]] = {
            "reverse_kl": losses.exact_kl,
            "forward_kl": losses.forward_kl,
            "jsd": partial(losses.generalized_jsd, beta=self.beta),
            "skewed_forward_kl": partial(losses.skewed_forward_kl, alpha=self.skew_alpha),
            "skewed_reverse_kl": partial(losses.skewed_reverse_kl, alpha=self.skew_alpha),
        }
        return functions[self.divergence]

    def loss_sum(self, batch: Experience) -> LossSum:
        theirs = batch.teacher
        options: Any = {"divergence": self.divergence_function(), "temperature": self.sampling.temperature}
        if batch.top_k is not None:
            divergence_BT, mask_BT, known_BT = score_top_k(self.policy, batch.rows, batch.top_k, **options)
            mass = Mean(known_BT.sum(), mask_BT.sum())
            return self.summed(divergence_BT, mask_BT, {"teacher/top_k_mass": mass})
        if theirs is None or theirs.spans is None or self.teacher_context is None:
            options["reference_rows"] = None if theirs is None else theirs.rows
            options["reference_states_ND"] = self.teacher_cache.states_of(batch.rows) if theirs is None else None
            found = score_with_reference(self.policy, self.teacher, batch.rows, **options)
            return self.summed(found.kl_BT, found.mask_BT, {})
        vocabularies = self.teacher_context.vocabularies
        assert vocabularies is not None
        models = self.policy, self.teacher
        found = score_aligned(*models, batch.rows, theirs.rows, theirs.spans, vocabularies, **options)
        tokens, aligned = found.mask_BT.sum(), found.aligned_BT.sum()
        metrics = {
            "align/spans": Mean(aligned, tokens),
            "align/one_to_one": Mean(found.single_BT.sum(), tokens),
            "align/shared_mass": Mean(found.shared_BT.sum(), aligned),
        }
        return self.summed(found.divergence_BT, found.mask_BT, metrics)

    def summed(self, divergence_BT: Tensor, mask_BT: Tensor, metrics: Mapping[str, Mean | Max]) -> LossSum:
        """The sum over tokens, and the means of rows."""
        return LossSum(divergence_BT.sum(), metrics, (divergence_BT.detach().sum(1), mask_BT.sum(1)))

    def denominator(self, batch: Experience) -> int:
        """Completion tokens in the loss."""
        return sum(
            int(mask.sum()) for mask, in_loss in zip(batch.rows.supervised, batch.in_loss_B, strict=True) if in_loss
        )

    def evaluate(self, batch: Prompts | Rows, index: int, share: Share) -> Metrics:
        """The loss of held-out completions: those of the data with on_policy below 1, else sampled with fixed seeds."""
        if isinstance(batch, Rows):
            return Method.evaluate(self, self.scored(self.given_completions(batch)), index, share)
        sampled = self.sample_held_out(self.policy, batch, "evaluation", index, share)
        experience = replace(self.given_completions(sampled.rows), teacher=self.teacher_rows(batch, sampled))
        return Method.evaluate(self, self.scored(experience), index, share)

    def validate(self, batch: Prompts | Rows, index: int, share: Share) -> Metrics:
        return self.evaluate(batch, index, share)
