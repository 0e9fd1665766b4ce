"""Sampling from a Hugging Face causal LM in this process.

Each distinct prompt is prefilled once however many completions it gets; rows that have ended leave the batch; the
log-probability of each token is recorded as it is drawn. Left out: stop strings and continuous refilling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn
from transformers.cache_utils import Cache

from postrain.models.parts import unwrapped
from postrain.rollout.cache import make_cache
from postrain.rollout.engine import Mixture
from postrain.rollout.sampling import draw, uniforms
from postrain.types import Completion, Count, CountOrZero, NonNegative, Sampling, Stop

# Rows that have ended are dropped from the batch once they are this share of it: each drop copies the cache.
DROP_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """Samples with the policy's own weights."""

    max_new_tokens: Count
    temperature: NonNegative
    """0 is greedy."""
    top_k: CountOrZero
    """Draw among this many likeliest tokens; 0 is off."""
    top_p: Annotated[float, Interval(gt=0, le=1)]
    """Draw among the likeliest tokens that hold this much probability."""
    batch_rows: Count
    """Rows that are decoded together; a memory knob that changes no completion."""

    @property
    def sampling(self) -> Sampling:
        """How it draws."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p)

    @torch.no_grad()
    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, keys: Sequence[int], stop: Stop
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if isinstance(model, Mixture):
            raise TypeError("a mixture cannot be sampled yet")
        sampling = self.sampling
        was_training = model.training
        model.eval()
        # Prompts of like length decode together: less padding in the cache.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        found: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_rows):
            index = order[start : start + self.batch_rows]
            uniform_BT = uniforms([keys[i] for i in index], sampling.max_new_tokens)
            decoder = Decoder(model, [prompts[i] for i in index], uniform_BT, sampling, stop.ids)
            found.update(zip(index, decoder.run(), strict=True))
        model.train(was_training)
        return [found[i] for i in range(len(prompts))]


class Decoder:
    """One batch of rows from prefill to the last token."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Tensor],
        uniform_BT: Tensor,
        sampling: Sampling,
        stop_ids: Sequence[int],
    ) -> None:
        self.model, self.sampling = model, sampling
        self.device = next(model.parameters()).device
        self.uniform_BT = uniform_BT.to(self.device)
        self.stop = torch.as_tensor(list(stop_ids), device=self.device)
        rows = len(prompts)
        self.tokens_BT = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=self.device)
        self.logps_BT = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.float32, device=self.device)
        self.lengths_B = torch.full((rows,), sampling.max_new_tokens, device=self.device)
        self.finished_B = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.live = torch.arange(rows, device=self.device)
        self.logits_BV, self.cache, self.mask_BL = self._prefill(prompts)

    def run(self) -> list[Completion]:
        """Decode until every row has ended."""
        for step in range(self.sampling.max_new_tokens):
            if step:
                self._forward(self.tokens_BT[self.live, step - 1])
            tokens_B, logps_B = draw(self.logits_BV, self.uniform_BT[self.live, step], self.sampling)
            open_B = ~self.finished_B[self.live]
            self.tokens_BT[self.live, step], self.logps_BT[self.live, step] = tokens_B, logps_B
            ended = self.live[open_B & torch.isin(tokens_B, self.stop)]
            self.finished_B[ended], self.lengths_B[ended] = True, step + 1
            if not self._drop_finished():
                break
        return [
            Completion(tokens[:length].cpu(), logps[:length].cpu(), bool(finished))
            for tokens, logps, length, finished in zip(
                self.tokens_BT, self.logps_BT, self.lengths_B.tolist(), self.finished_B.tolist(), strict=True
            )
        ]

    def _prefill(self, prompts: Sequence[Tensor]) -> tuple[Tensor, Cache, Tensor]:
        """Run each distinct prompt once, padded on the left, and repeat its cache for all its rows."""
        distinct: dict[tuple[int, ...], int] = {}
        which = [distinct.setdefault(tuple(prompt.tolist()), len(distinct)) for prompt in prompts]
        width = max(map(len, distinct))
        ids_PL = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in distinct], device=self.device)
        mask_PL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in distinct], device=self.device)
        cache = make_cache(unwrapped(self.model).config, width + self.sampling.max_new_tokens)
        found = self.model(
            input_ids=ids_PL,
            attention_mask=mask_PL,
            position_ids=(mask_PL.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = torch.tensor(which, device=self.device)
        cache.batch_select_indices(rows)
        return found.logits[rows, -1], cache, mask_PL[rows]

    def _forward(self, tokens_B: Tensor) -> None:
        """Feed the tokens just drawn; leaves the logits of the next ones in `logits_BV`."""
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(tokens_B), 1)], dim=1)
        self.logits_BV = self.model(
            input_ids=tokens_B[:, None],
            attention_mask=self.mask_BL,
            position_ids=self.mask_BL.sum(1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    def _drop_finished(self) -> bool:
        """Forget rows that have ended once they are worth the copy; False when no row is left."""
        open_B = ~self.finished_B[self.live]
        still_open = int(open_B.sum())
        if still_open and still_open <= (1 - DROP_SHARE) * len(self.live):
            keep = open_B.nonzero().squeeze(-1)
            self.live, self.mask_BL, self.logits_BV = self.live[keep], self.mask_BL[keep], self.logits_BV[keep]
            self.cache.batch_select_indices(keep)
        return still_open > 0
