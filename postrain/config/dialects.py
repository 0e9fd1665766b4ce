"""Names the dialect in messages about keys that it set: the user has not written them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from postrain.config.paths import config_dirs
from postrain.config.yaml_file import load_yaml


def with_dialect(message: str, config: Mapping[str, Any]) -> str:
    """A message `KEY: problem`, with the remedy if KEY has the value of the run's dialect, such as verl/grpo."""
    key, dialect = message.partition(":")[0], str(config.get("dialect"))
    files = [path for folder in config_dirs() if (path := folder / "dialect" / f"{dialect}.yaml").is_file()]
    if not key.startswith("method.") or not files:
        return message
    value = OmegaConf.select(OmegaConf.create(load_yaml(files[0])), key)
    if value is None or value != OmegaConf.select(OmegaConf.create(dict(config)), key):
        return message
    return f"{message} (set by dialect={dialect.partition('/')[0]}; remove it with '~{key}')"
