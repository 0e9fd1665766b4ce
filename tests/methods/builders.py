"""Methods with their YAML's defaults on tiny models, for tests of one loss or one gradient, and the overrides of the
smallest run. No trainer, no data module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from postrain.config.tree import instantiate
from postrain.data.kinds.preference import Pairs
from postrain.data.kinds.unpaired_preference import UnpairedPreferences
from postrain.methods.base import MethodComponents
from postrain.models.reference import Reference
from postrain.types import Completion, Rows, Sampling, Stop
from tests.tiny import VOCABULARY, tiny_model
from tests.training_runs import composed

NO_TEMPLATE: Any = None
SAMPLING = Sampling(16)
QUICK = (
    "method=dpo",
    "method.updates=2",
    "method.batch_size=4",
    "evaluation.completions=0",
    "data.eval_rows=4",
    "data.source.count=16",
    "trainer.checkpoint_every=9",
)
"""The smallest run that trains, evaluates and writes a checkpoint."""


@cache
def defaults(method: str) -> dict[str, Any]:
    """The settings of `conf/method/METHOD.yaml`, composed with their defaults."""
    return composed([f"method={method}"])["method"]


@dataclass
class ScriptedEngine:
    """An engine without sampling: the n-th request returns the n-th of `completions`, which repeat."""

    completions: Sequence[Sequence[int]] = ()
    sampling: Sampling = SAMPLING
    exact_logps: bool = True
    calls: int = 0

    def generate(self, model: Any, prompts: Sequence[torch.Tensor], *, seeds: Sequence[int], stop: Stop) -> list:
        """Completions with the model's log-probabilities (of a mixture: its policy's). Token 0 at the end means
        finished."""
        model = getattr(model, "policy", model)
        generated = []
        for prompt in prompts:
            ids = torch.tensor(self.completions[self.calls % len(self.completions)])
            self.calls += 1
            (logps,) = plain_logps(model, rows([prompt], [ids]))
            generated.append(Completion(ids, logps.detach().float(), bool(ids[-1] == 0)))
        return generated


def make_method(
    method: str,
    policy: nn.Module,
    *,
    reference: nn.Module | None = None,
    components: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Any:
    """The method with `changes` to its defaults. Reference log-probabilities are computed at every update. Without
    `reference` it is the initial policy. The type is Any because methods differ in their attributes."""
    online = {"precompute_ref_log_probs": False} if "precompute_ref_log_probs" in defaults(method) else {}
    built = instantiate({**defaults(method), **online, **changes})
    frozen = Reference.for_policy(policy, reference)
    separate = reference is not None and not changes.get("reference_free")
    built.attach(
        MethodComponents(
            **{
                "policy": policy,
                "template": NO_TEMPLATE,
                "seed": 0,
                "engine": ScriptedEngine(),
                "reference": frozen,
                "separate_reference": separate,
                **components,
            }
        )
    )
    return built


def float64_model(seed: int = 0) -> Any:
    """A tiny model in float64, so that tolerances can be tight."""
    return tiny_model(seed=seed).double()


def rows(prompts: Sequence[torch.Tensor], completions: Sequence[torch.Tensor]) -> Rows:
    """Rows of a prompt and its completion; the completion is supervised."""
    ids = tuple(torch.cat(pair) for pair in zip(prompts, completions, strict=True))
    masks = tuple(torch.arange(len(row)) >= len(prompt) for row, prompt in zip(ids, prompts, strict=True))
    return Rows(ids, masks, tuple(range(len(ids))))


def random_sequences(count: int, longest: int, draw: torch.Generator) -> list[torch.Tensor]:
    """Random token sequences of 1 to `longest` tokens."""
    sizes = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(1, VOCABULARY, (size,), generator=draw) for size in sizes]


def pairs(count: int, seed: int = 0) -> Pairs:
    """Random pairs whose prompts and completions differ in length."""
    draw = torch.Generator().manual_seed(seed)
    prompts = random_sequences(count, 6, draw)
    chosen, rejected = random_sequences(count, 9, draw), random_sequences(count, 9, draw)
    return Pairs(rows(prompts, chosen), rows(prompts, rejected), torch.zeros(count))


def unpaired_preferences(labels: Sequence[bool], seed: int = 0) -> UnpairedPreferences:
    """Random completions with these labels. The unrelated completion of a prompt is that of the next prompt."""
    draw = torch.Generator().manual_seed(seed)
    prompts, answers = random_sequences(len(labels), 6, draw), random_sequences(len(labels), 9, draw)
    return UnpairedPreferences(rows(prompts, answers), rows(prompts, answers[1:] + answers[:1]), torch.tensor(labels))


def plain_logps(model: Any, batch: Rows) -> list[torch.Tensor]:
    """Log-probabilities [T] of the supervised tokens of each row, one full forward pass per row."""
    rows_logps = []
    for ids, mask in zip(batch.ids, batch.supervised, strict=True):
        logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
        rows_logps.append(logps.gather(-1, ids[1:, None]).squeeze(-1)[mask[1:]])
    return rows_logps


def sequence_logps(model: Any, batch: Rows) -> torch.Tensor:
    """Log-probability of each completion, [B]."""
    return torch.stack([logps.sum() for logps in plain_logps(model, batch)])


def flat_gradient(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """d loss / d every parameter of the model, as one vector."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([cast("torch.Tensor", part).flatten() for part in gradients if part is not None])
