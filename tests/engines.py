"""Local engines, prompts and adapters for the models of tiny.py."""

from typing import Any

import torch

from postrain.models.adapters import LoRA
from postrain.rollout.local import LocalEngine
from tests.tiny import VOCABULARY

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 12,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "stop": (),
    "batch_rows": 64,
    "dtype": "policy",
}


def engine(**changes: Any) -> LocalEngine:
    return LocalEngine(**(SETTINGS | changes))


def prompts(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


def adapted(model: Any) -> Any:
    """The model with a LoRA adapter that changes its outputs."""
    settings: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "rslora": False, "dora": False}
    policy: Any = LoRA(**settings, target_modules=None).wrap(model, head="causal")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return policy


def text(ids: Any) -> str:
    """Decodes each token as two letters, so that a stop text can begin inside a token."""
    return "".join(f"{chr(97 + int(token) // 8)}{chr(65 + int(token) % 8)}" for token in ids)
