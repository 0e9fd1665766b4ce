"""Options of Lightning's Trainer that cannot be used with the methods here."""

from __future__ import annotations

from lightning.pytorch import Trainer

from postrain.errors import ConfigError

# Trainer options that Lightning rejects under manual optimisation: the default, and the equivalent config key.
REPLACED_OPTIONS = {
    "accumulate_grad_batches": (1, "method.micro_batch_tokens, the tokens of a micro-batch"),
    "gradient_clip_val": (None, "method.max_grad_norm"),
}


def check_trainer(trainer: Trainer) -> None:
    """Raises ConfigError for REPLACED_OPTIONS, with the equivalent config key."""
    for name, (default, key) in REPLACED_OPTIONS.items():
        value = getattr(trainer, name)
        if value != default:
            raise ConfigError(f"Trainer({name}={value}): not supported; leave it out and set {key}")
