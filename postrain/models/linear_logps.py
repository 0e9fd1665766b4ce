"""Log-probabilities of tokens under a linear head, in chunks of positions: the [N, V] logits never exist as a whole.

The backward pass computes each chunk's logits again, as checkpointing does, but turns them into their gradient in place
and adds the weight's gradient into one [V, D] buffer. With Gemma's 262,144 words that buffer has 600 MB; autograd would
allocate it once per chunk.

Axes: N positions, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from postrain.models.parts import unwrapped, upcast


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        entropy: bool,
        size: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.size, ctx.dtype = temperature, size, dtype
        log_norms, logps, entropies = [], [], []
        for states, targets in zip(states_ND.split(size), targets_N.split(size), strict=True):
            logits = _logits(states, weight_VD, temperature, dtype)
            log_norm = logits.logsumexp(-1, keepdim=True)
            logps.append((logits.gather(-1, targets[:, None]) - log_norm).squeeze(-1))
            log_norms.append(log_norm)
            if entropy:
                entropies.append(log_norm.squeeze(-1) - (logits - log_norm).exp_().mul_(logits).sum(-1))
        logps_N, log_norm_N1 = torch.cat(logps), torch.cat(log_norms)
        entropy_N = torch.cat(entropies) if entropy else torch.zeros_like(logps_N)
        ctx.save_for_backward(states_ND, weight_VD, targets_N, log_norm_N1, entropy_N)
        return logps_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        states_ND, weight_VD, targets_N, log_norm_N1, entropy_N = ctx.saved_tensors
        of_logps_N, of_entropy_N = gradients
        of_logps_N = torch.zeros_like(entropy_N) if of_logps_N is None else of_logps_N
        of_states, of_weight_VD = [], None
        for at in torch.arange(len(states_ND)).split(ctx.size):
            part = slice(int(at[0]), int(at[-1]) + 1)
            logits = _logits(states_ND[part], weight_VD, ctx.temperature, ctx.dtype)
            logps = logits.sub_(log_norm_N1[part])
            if of_entropy_N is None:
                gradient = logps.exp_().mul_(-of_logps_N[part, None])
            else:
                # ∂H/∂z = −p (log p + H)
                factor = of_logps_N[part, None] + of_entropy_N[part, None] * (logps + entropy_N[part, None])
                gradient = logps.exp_().mul_(-factor)
            gradient = gradient.scatter_add_(1, targets_N[part, None], of_logps_N[part, None])
            if ctx.temperature != 1:
                gradient = gradient.div_(ctx.temperature)
            gradient = gradient.to(ctx.dtype)
            of_states.append((gradient @ weight_VD.to(ctx.dtype)).to(states_ND.dtype))
            if not ctx.needs_input_grad[1]:
                continue
            states = states_ND[part].to(ctx.dtype)
            if of_weight_VD is None:
                of_weight_VD = (gradient.T @ states).to(weight_VD.dtype)
            elif of_weight_VD.dtype == ctx.dtype:
                of_weight_VD.addmm_(gradient.T, states)
            else:
                of_weight_VD.add_(gradient.T @ states)
        return torch.cat(of_states), of_weight_VD, None, None, None, None, None


def _logits(states_ND: Tensor, weight_VD: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Logits in at least float32 that can be changed in place."""
    logits_NV = upcast(states_ND.to(dtype) @ weight_VD.to(dtype).T)
    return logits_NV if temperature == 1 else logits_NV.div_(temperature)


def linear_logps(
    states_ND: Tensor, head: nn.Linear, targets_N: Tensor, *, size: int, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """log softmax(states · Wᵀ / temperature) at the targets, and the entropies (0 unless asked for), both [N].

    `size` is the number of positions of a chunk. Differentiable once, in states and weight.
    """
    device = states_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else torch.promote_types(states_ND.dtype, head.weight.dtype)
    with torch.autocast(device, enabled=False):
        found = _LinearLogps.apply(states_ND, head.weight, targets_N, temperature, entropy, size, dtype)
    assert isinstance(found, tuple)
    return found


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The head, if the logits are only its product with the states; see `parts.logits_of`."""
    inner: Any = unwrapped(model)
    config = inner.config.get_text_config()
    head = None if hasattr(inner, "score") else inner.get_output_embeddings()
    changed = getattr(config, "logits_scaling", None) or getattr(config, "final_logit_softcapping", None)
    scaled = any(getattr(config, name, 1.0) != 1 for name in ("logit_scale", "lm_head_multiplier"))
    return head if type(head) is nn.Linear and head.bias is None and not changed and not scaled else None
