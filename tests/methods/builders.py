"""Methods without a run, from their YAML and on tiny models, for tests that look at one loss or one gradient; and the
smallest run, for those that cannot."""

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

NOBODY: Any = None
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
"""The least of a run that still learns, is evaluated and can be loaded."""


@cache
def defaults(method: str) -> dict[str, Any]:
    """The method's node as its YAML has it."""
    return composed([f"method={method}"])["method"]


@dataclass
class Scripted:
    """An engine that writes what it is told: the n-th completion it is asked for is the n-th of `says`."""

    says: Sequence[Sequence[int]] = ()
    sampling: Sampling = SAMPLING
    exact_logps: bool = True
    asked: int = 0

    def generate(self, model: Any, prompts: Sequence[torch.Tensor], *, seeds: Sequence[int], stop: Stop) -> list:
        """Each completion with the model's own log-probabilities (a mixture's: its policy's); one that ends in 0 has
        finished."""
        model = getattr(model, "policy", model)
        found = []
        for prompt in prompts:
            ids = torch.tensor(self.says[self.asked % len(self.says)])
            self.asked += 1
            (logps,) = plain_logps(model, rows([prompt], [ids]))
            found.append(Completion(ids, logps.detach().float(), bool(ids[-1] == 0)))
        return found


def made(
    method: str,
    policy: nn.Module,
    *,
    reference: nn.Module | None = None,
    components: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> Any:
    """The method with these keys changed; its reference is asked at every update, and is the policy's start if none is
    given. Any, since each method has attributes of its own."""
    asked = {"precompute_ref_log_probs": False} if "precompute_ref_log_probs" in defaults(method) else {}
    found = instantiate({**defaults(method), **asked, **changes})
    frozen = Reference.for_policy(policy, reference)
    foreign = reference is not None and not changes.get("reference_free")
    found.attach(
        MethodComponents(
            **{
                "policy": policy,
                "template": NOBODY,
                "seed": 0,
                "engine": Scripted(),
                "reference": frozen,
                "separate_reference": foreign,
                **components,
            }
        )
    )
    return found


def precise(seed: int = 0) -> Any:
    """A tiny model in float64, where rounding cannot hide a mistake."""
    return tiny_model(seed=seed).double()


def rows(prompts: Sequence[torch.Tensor], completions: Sequence[torch.Tensor]) -> Rows:
    """Prompts with their completions, of which the completions are supervised."""
    ids = tuple(torch.cat(pair) for pair in zip(prompts, completions, strict=True))
    masks = tuple(torch.arange(len(row)) >= len(prompt) for row, prompt in zip(ids, prompts, strict=True))
    return Rows(ids, masks, tuple(range(len(ids))))


def pieces(count: int, longest: int, draw: torch.Generator) -> list[torch.Tensor]:
    """Random token sequences of 1 to `longest` tokens."""
    sizes = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(1, VOCABULARY, (size,), generator=draw) for size in sizes]


def pairs(count: int, seed: int = 0) -> Pairs:
    """Random pairs, ragged in everything."""
    draw = torch.Generator().manual_seed(seed)
    prompts = pieces(count, 6, draw)
    chosen, rejected = pieces(count, 9, draw), pieces(count, 9, draw)
    return Pairs(rows(prompts, chosen), rows(prompts, rejected), torch.zeros(count))


def unpaired_preferences(labels: Sequence[bool], seed: int = 0) -> UnpairedPreferences:
    """Random completions with these labels; each prompt's unrelated completion is the next one's."""
    draw = torch.Generator().manual_seed(seed)
    prompts, answers = pieces(len(labels), 6, draw), pieces(len(labels), 9, draw)
    return UnpairedPreferences(rows(prompts, answers), rows(prompts, answers[1:] + answers[:1]), torch.tensor(labels))


def plain_logps(model: Any, batch: Rows) -> list[torch.Tensor]:
    """Log-probabilities [T] of each row's supervised tokens, each row alone through the whole model."""
    found = []
    for ids, mask in zip(batch.ids, batch.supervised, strict=True):
        logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
        found.append(logps.gather(-1, ids[1:, None]).squeeze(-1)[mask[1:]])
    return found


def summed(model: Any, batch: Rows) -> torch.Tensor:
    """Log-probability of each completion, [B]."""
    return torch.stack([logps.sum() for logps in plain_logps(model, batch)])


def flat_gradient(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """d loss / d every parameter of the model, as one vector."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([cast("torch.Tensor", part).flatten() for part in found if part is not None])
