"""Optional packages: reported as missing before a run folder is created, imported where they are used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from postrain.errors import ConfigError
from postrain.jsonl import leaves

# What to install for each package.
INSTALL = {
    "bitsandbytes": "postrain[quant]",
    "datasketch": "postrain[quality]",
    "gymnasium": "postrain[gymnasium]",
    "jsonschema": "postrain[json]",
    "lm_eval": "postrain[eval]",
    "math_verify": "postrain[math]",
    "optuna": "postrain[search]",
    "reasoning_gym": "postrain[tasks]",
    "trackio": "postrain[trackio]",
    "verifiers": "postrain[verifiers]",
    "vllm": "postrain[vllm]",
    "wandb": "wandb",
    "websockets": "postrain[openenv]",
}
# Packages that need other versions than those in constraints.txt.
CONSTRAINTS = {"vllm": " -c constraints-vllm.txt"}
# Alternatives without the package.
INSTEAD = {
    "datasketch": "; null disables it",
    "vllm": "; rollout=local and rollout.mode=server do not need it",
}
# Values of a config, and the package that each needs.
NAMES = {
    "postrain.data.tasks.ReasoningGym": "reasoning_gym",
    "postrain.environments.gymnasium.GymnasiumEnvironment": "gymnasium",
    "postrain.environments.openenv.OpenEnvEnvironment": "websockets",
    "postrain.environments.verifiers.VerifiersEnvironment": "verifiers",
    "postrain.evaluation.harness.Harness": "lm_eval",
    "postrain.methods.adamw_8bit.AdamW8bit": "bitsandbytes",
    "postrain.models.adapters.QLoRA": "bitsandbytes",
    "postrain.rewards.reasoning_gym.ReasoningGymScore": "reasoning_gym",
    "postrain.rewards.verified.json_valid": "jsonschema",
    "postrain.rewards.verified.math_equal": "math_verify",
    "postrain.rollout.vllm.VLLMEngine": "vllm",
    "postrain.training.loggers.Trackio": "trackio",
    "postrain.training.loggers.Wandb": "wandb",
}
# A class, and a key with the value with which it does not need its package.
WITHOUT = {"postrain.rollout.vllm.VLLMEngine": ("mode", "server")}
# Keys that need a package unless they are null or false.
KEYS = {"data.quality.near_dedupe": "datasketch", "adapter.load_in_4bit": "bitsandbytes"}


def check_packages(config: Mapping[str, Any]) -> None:
    """Raises one ConfigError with a line for each value that needs a package which is not installed."""
    if problems := list(_problems(config)):
        raise ConfigError("\n".join(problems))


def load(package: str, key: str = "") -> Any:
    """Imports and returns the package. Raises ConfigError, named by the config key that needs it, if it or a package
    that it imports is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        message = missing(package if error.name is None else error.name, package)
        raise ConfigError(f"{key}: {message}" if key else message) from None


def installed(package: str) -> bool:
    """Whether the package can be imported. Does not import it."""
    return importlib.util.find_spec(package) is not None


def missing(name: str, package: str) -> str:
    """The message about a missing package: `package` itself, or its dependency `name`."""
    install = f'pip install "{INSTALL[package]}"{CONSTRAINTS.get(package, "")}'
    return f"the package {name} is not installed; run {install}{INSTEAD.get(package, '')}"


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    values = dict(leaves("", config))
    for path, value in values.items():
        key, without = WITHOUT.get(value, ("", None)) if isinstance(value, str) else ("", None)
        if key and values.get(f"{path.removesuffix('_target_')}{key}") == without:
            continue
        package = NAMES.get(value) if isinstance(value, str) else None
        package = package or (None if value is None or value is False else KEYS.get(path))
        if package and not installed(package):
            yield f"{path.removesuffix('._target_')}: {missing(package, package)}"
