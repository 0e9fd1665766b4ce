"""An engine that returns scripted turns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from postrain.data.chat import Template
from postrain.rollout.engine import Mixture
from postrain.types import Completion, Sampling, Stop

END = "<|endoftext|>"
END_OF_TURN = "<|end|>"


@dataclass
class Scripted:
    """An engine that returns the next scripted turn for every row, and records its calls."""

    template: Template
    turns: Sequence[str]
    sampling: Sampling
    exact_logps: bool = True
    calls: list[tuple[list[str], list[int], Stop]] = field(default_factory=list)

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        text = self.turns[len(self.calls)]
        self.calls.append(([self.template.decode(ids) for ids in prompts], list(seeds), stop))
        limits = stop.limits or [self.sampling.max_new_tokens] * len(prompts)
        found = []
        for limit in limits:
            ids = self.template.encode_continuation(text)[:limit]
            decoded = self.template.decode_all(ids.tolist())
            ended = decoded.endswith((END, END_OF_TURN)) or any(stop in decoded for stop in stop.texts)
            found.append(Completion(ids, -torch.arange(1.0, len(ids) + 1), ended))
        return found
