"""What an evaluation takes from the run whose model it looks at: the data it was trained on, split as it was, and how
its completions were sampled and paid. The command line wins over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from postrain.config.check import instantiate
from postrain.config.trust import Guest
from postrain.evaluation.config import START, Appraisal
from postrain.jsonl import read_json
from postrain.models.sources import ResolvedModel, resolve_for
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config
from postrain.types import ConfigError

GROUPS = ("data", "reward", "rollout", "environment")


@dataclass(frozen=True)
class Origin:
    """The run a model comes from."""

    folder: RunFolder
    config: Mapping[str, Any]

    @classmethod
    def of(cls, path: str) -> Origin | None:
        """The training run that `path`, a run folder or its model/, belongs to; None for any other model."""
        place = Path(path).expanduser()
        for directory in (place, place.parent) if place.name == "model" else (place,):
            folder = RunFolder(directory)
            if folder.config.is_file() and folder.manifest.is_file():
                config = saved_config(folder)
                return cls(folder, config) if "method" in config else None
        return None

    def data(self) -> Mapping[str, Any]:
        """What the manifest says of the data it was trained on."""
        found = read_json(self.folder.manifest).get("data")
        return found if isinstance(found, Mapping) else {}

    def start(self) -> ResolvedModel:
        """The model it was compared with while it trained, else the one it began with."""
        named = self.config.get("reference")
        remedy = "name another with reference=DIRECTORY, or compare with none: reference=null"
        if named is not None:
            return resolve_for("reference", named, f"another; {remedy}")
        Guest(self.folder.path, ()).check({"model": self.config["model"]}, Appraisal)
        try:
            return instantiate(self.config["model"]).resolve()
        except ConfigError as error:
            reason = str(error).removeprefix("model.").partition(";")[0]
            raise ConfigError(f"reference={START}: what the run began with is gone ({reason}); {remedy}") from None


def inherited(
    config: Mapping[str, Any], origin: Origin | None, words: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The config with the run's own groups where the command line chooses none, and which groups these are.

    `data.eval_rows=...` and the like change what is taken over.
    """
    if origin is None:
        return dict(config), []
    keys = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words]
    taken = [group for group in GROUPS if group not in keys and group in origin.config]
    found = OmegaConf.create({group: origin.config[group] for group in taken})
    composed = OmegaConf.create(dict(config))
    for key in keys:
        if key.partition(".")[0] in taken:
            OmegaConf.update(found, key, OmegaConf.select(composed, key), force_add=True)
    changed: Any = OmegaConf.to_container(found)
    return {**config, **changed}, [group for group in taken if changed[group] is not None]
