"""The two sides of `postrain explain`, each a run folder or overrides, as complete configs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from postrain.cli.user_conf import use_user_conf
from postrain.config.arguments import composition_errors, resolved, set_values
from postrain.config.groups import groups_of
from postrain.config.overrides import forced
from postrain.config.paths import CONF
from postrain.config.schema import is_node, load_target
from postrain.config.tree import complete, parse, settings
from postrain.config.trust import UntrustedFolder, override_items
from postrain.errors import ConfigError
from postrain.jsonl import read_json
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config
from postrain.runs.sessions import parts
from postrain.training.config import TrainConfig

CHOOSES_METHOD = ("method=", "experiment=")


@dataclass(frozen=True)
class Side:
    """A run, or the run that overrides describe."""

    name: str
    config: Mapping[str, Any]
    """All settings as plain containers."""
    folder: RunFolder | None = None
    """None for overrides."""

    @property
    def method(self) -> Any:
        """The class of the method."""
        return load_target(self.config["method"]["_target_"])

    def surroundings(self) -> dict[str, str]:
        """Versions, hardware, code and fingerprints of a run from its manifest, as dotted keys, of all its sessions."""
        found = read_json(self.folder.manifest) if self.folder else {}
        shown = {"versions": None, "hardware": ("platform", "cpu", "threads", "gpus"), "git": ("commit",)}
        flat = {
            f"{part}.{key}": [values.get(key) for values in parts(found, part)]
            for part, keys in shown.items()
            for key in keys or dict.fromkeys(key for values in parts(found, part) for key in values)
        }
        flat |= {f"{part}.fingerprint": [(found.get(part) or {}).get("fingerprint")] for part in ("data", "model")}
        texts = {key: [str(one) for one in values if one not in (None, [])] for key, values in flat.items()}
        return {key: " → ".join(dict.fromkeys(values)) for key, values in texts.items() if values}


def side(word: str, overrides: Sequence[str]) -> Side:
    """The side that a word of the command line names; `overrides` hold for both sides. Raises ConfigError."""
    path = Path(word).expanduser()
    if path.is_dir():
        config, folder = of_run(path, overrides), RunFolder(path)
    elif "=" in word:
        config, folder = of_overrides([*shlex.split(word), *overrides]), None
    else:
        raise ConfigError(f"{word}: expected a run folder, such as runs/grpo/nano/..., or overrides, as in dialect=trl")
    ready = parse(config, TrainConfig)
    ready.check()
    return Side(word, settings(ready), folder)


def of_run(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The saved config of a training run, with changed values."""
    try:
        folder = RunFolder.open(path)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("resume: ")) from None
    saved = saved_config(folder)
    if not is_node(saved.get("method")):
        raise ConfigError(f"{path} is not a training run: its config.yaml has no method; give the folder of one")
    options = [word for word in overrides if groups_of(CONF, None).options(word.partition("=")[0])]
    if options:
        raise ConfigError(f"{options[0]}: chooses an option, which a finished run has no more; give KEY=VALUE")
    config = OmegaConf.create(saved)
    with composition_errors():
        set_values(config, forced(overrides, CONF, root="config"))
    plain = resolved(complete(config, TrainConfig))
    UntrustedFolder(folder.path, override_items(overrides)).check(plain, TrainConfig)
    return plain


def of_overrides(words: Sequence[str]) -> dict[str, Any]:
    """The config that `postrain train` composes of these words; without a method, of GRPO."""
    use_user_conf()
    words = words if any(word.startswith(CHOOSES_METHOD) for word in words) else ["method=grpo", *words]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)), composition_errors():
        config = compose("config", forced(words, CONF, root="config"))
        if config.get("pipeline"):
            name = next((word for word in words if word.startswith(("pipeline=", "experiment="))), "pipeline")
            raise ConfigError(
                f"{name}: is a pipeline, and explain compares two training runs; give the overrides or the run folder "
                "of one of its stages"
            )
        return resolved(complete(config, TrainConfig))


def check_comparable(a: Side, b: Side) -> None:
    """Raises ConfigError for methods that train on different kinds of rows."""
    one, other = a.method, b.method
    if (one.kind, one.head) != (other.kind, other.head):
        names = " and ".join(f"{kind.__name__} on {kind.kind.lower()} rows" for kind in (one, other))
        raise ConfigError(
            f"method: {names} have no common gradient; comparable are two runs of one method, or of methods with the "
            "same rows, such as grpo, rloo and ppo; postrain evaluate compares the models of any two runs"
        )
