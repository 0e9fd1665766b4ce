"""Which way through a model is taken: the fastest that gives the model's own logits, tried once on two short rows.

Our own forward reads plain weights in one piece, so sharded models and mixed precision go through the model itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from postrain.models.parts import RELATIVE_TOLERANCE, unwrapped
from postrain.models.reference import in_eval_mode
from postrain.rollout.decode.cache import Room
from postrain.rollout.decode.fast import knows
from postrain.rollout.decode.steppers import LeanStepper, PaddedStepper, SlotStepper, Stepper
from postrain.rollout.decode.weights import NotPlain

KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def stepper_for(model: nn.Module, *, room: Room, dtype: torch.dtype | None) -> Stepper:
    """The best way through this model, for rows that fit in `room`; `model` in eval mode."""
    inner: Any = unwrapped(model)
    # A window that no layer speaks of is in masks we do not make; one that is wider than all rows hides nothing.
    config = inner.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    narrow = window is not None and window < room.row
    if not hasattr(inner, "decodes_by"):
        inner.decodes_by = {}
    settings = {"room": room, "dtype": dtype}
    whole = not any(isinstance(module, FSDPModule) for module in inner.modules())
    plain = whole and not torch.is_autocast_enabled(inner.device.type) and not (narrow and layers != {"full_attention"})
    if plain and knows(inner) and (found := tried(LeanStepper, model, settings)):
        return found
    if KNOWN_LAYERS.issuperset(layers) and (layers or not narrow) and (found := tried(SlotStepper, model, settings)):
        return found
    return PaddedStepper(model, dtype=dtype)


def tried(way: type[SlotStepper], model: nn.Module, settings: Any) -> SlotStepper | None:
    """The stepper, if it is known to give the model's own logits; found out once and remembered."""
    known: dict[type[SlotStepper], bool] = unwrapped(model).decodes_by  # pyright: ignore[reportAssignmentType]
    try:
        if way not in known:
            known[way] = agrees(way, model)
        return way(model, **settings) if known[way] else None
    except NotPlain:
        return None


@torch.no_grad()
def agrees(way: type[SlotStepper], model: nn.Module) -> bool:
    """Whether two rows of unlike length get from it the logits that the model gives them."""
    row = torch.arange(2, 12) * 7919 % unwrapped(model).config.get_text_config().vocab_size
    rows = [row[:5], row[2:]]
    with in_eval_mode(model):
        stepper = way(model, room=Room(slots=3, prompt=7, new_tokens=1, row=8), dtype=None)
        turned = torch.tensor([1, 0], device=stepper.device)
        try:
            stepper.seat(stepper.prefill([ids[:-1] for ids in rows]), turned, turned)
            mine_BV = stepper.step(torch.stack([ids[-1] for ids in rows]).to(stepper.device))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # what refuses masks or shapes
            return False
        whole_BV = torch.stack(
            [model(input_ids=ids[None].to(stepper.device), use_cache=False).logits[0, -1] for ids in rows]
        )
    tolerance = RELATIVE_TOLERANCE.get(whole_BV.dtype, 3e-2)
    return bool((mine_BV - whole_BV).abs().max() <= tolerance * whole_BV.abs().max().clamp(min=1))
