"""The jobs of a study: every one composed and checked before the first starts, all problems in one error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from postrain.config.arguments import composing, resolved
from postrain.config.check import check
from postrain.config.extras import check_packages
from postrain.config.overrides import forced, settled
from postrain.config.trust import Guest, confirmable
from postrain.evaluation.config import check_appraisal
from postrain.generation.config import check_generation
from postrain.jobs.pipeline_plan import CHECKED, ROOTS, code_of, extra_folder, make, search_paths
from postrain.jobs.sweep_config import Study, said, word
from postrain.runs.folder import config_hash
from postrain.training.config import Root
from postrain.types import ConfigError

NAMED = "setting"
# Where a run lies, what it is called and how it is shown: it is the same run.
OF_NO_ACCOUNT = ("paths", "name", "report", "logger", "debug", "resume", "allow_change")
# The kind of run that each primary config is for.
PRIMARY: Mapping[str, Literal["train", "generate", "evaluate"]] = {
    "config": "train",
    "generate": "generate",
    "evaluate": "evaluate",
}
CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "config": partial(check, root=Root),
    "generate": check_generation,
    "evaluate": check_appraisal,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A point of a study: what is compared, over seeds."""

    values: Mapping[str, Any]
    """What varies, by key; the name of a setting stands under NAMED."""
    words: tuple[str, ...]
    """The overrides that make it so."""

    @property
    def label(self) -> str:
        """kl_coef=0.1 batch_size=8; keys are as short as they can be, and a setting's name stands for itself."""
        pairs = zip(short(self.values), self.values.values(), strict=True)
        return " ".join(str(value) if name == NAMED else f"{name}={said(value)}" for name, value in pairs)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep."""

    number: int
    label: str
    settings: Mapping[str, Any]
    seed: int | None
    words: tuple[str, ...]
    """Its whole command line."""
    hash: str
    """Equal for equal configs."""
    folder: str
    """Inside the sweep's."""
    confirm: tuple[str, ...] = ()
    """What it has to be told again where it is resumed: words that name code or an address."""


def settings(study: Study) -> Iterator[Setting]:
    """Every combination of the grid with every named setting, in the order of the file."""
    named = study.jobs or {None: []}
    for (name, words), values in itertools.product(named.items(), itertools.product(*study.grid.values())):
        chosen = dict(zip(study.grid, values, strict=True))
        told = {NAMED: name} if name is not None else {}
        yield Setting(values={**told, **chosen}, words=(*words, *(word(*item) for item in chosen.items())))


def short(keys: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The last parts of keys, as many as tell them apart."""
    whole = [key.split(".") for key in keys]
    found = []
    for parts in whole:
        size = next(
            size
            for size in range(1, len(parts) + 1)
            if size == len(parts) or sum(other[-size:] == parts[-size:] for other in whole) == 1
        )
        found.append(".".join(parts[-size:]))
    return found


class Planner:
    """Makes jobs of settings; called inside a Hydra job, whose primary config `root` they share."""

    def __init__(self, study: Study, words: Sequence[str], conf: Path, root: str, guest: Guest | None = None) -> None:
        """`words` are those of the command line, which win over the study's base and lose to what varies; `guest` is
        the folder of an earlier session that study and words come from."""
        self.guest = guest
        self.study, self.words, self.conf, self.root = study, tuple(words), conf, root
        self.made = 0
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def jobs(self, chosen: Sequence[Setting]) -> list[Job]:
        """The jobs of these settings, with each seed. Raises one ConfigError with what is wrong with any of them."""
        found: list[Job] = []
        problems: dict[str, list[str]] = {}
        for setting, seed in itertools.product(chosen, self.study.seeds or (None,)):
            try:
                found.append(self._job(setting, seed))
            except ConfigError as error:
                for line in str(error).splitlines():
                    problems.setdefault(line, []).append(setting.label)
        if problems:
            total = len(chosen) * len(self.study.seeds or (None,))
            raise ConfigError("\n".join(line + _where(labels, total) for line, labels in problems.items()))
        return found

    def _job(self, setting: Setting, seed: int | None) -> Job:
        seeded = () if seed is None else (word("seed", seed),)
        label = " ".join(filter(None, [setting.label, *seeded])) or "alone"
        named = (word("name", label),)
        said = [*self.study.base, *self.words, *setting.words, *seeded, *named]
        ready = forced(said, self.conf, root=self.root, extra=extra_folder())
        words = settled(ready)
        if self.guest:
            self.guest.check_words([each.removeprefix("++") for each in words])
        config = self._composed(words)
        checked, confirm = self._checked(config, words)
        digest = config_hash(checked)
        number, self.made = self.made, self.made + 1
        return Job(
            number=number,
            label=label,
            settings=setting.values,
            seed=seed,
            words=tuple(each.removeprefix("++") for each in words),
            hash=digest,
            folder=f"jobs/{number:02d}-{digest}",
            confirm=confirm,
        )

    def _composed(self, words: Sequence[str]) -> Any:
        """What Hydra composes of these words. Reading thirty files takes long: it is done once for equal choices."""
        choices = tuple(each for each in words if not each.startswith("++"))
        values = [each for each in words if each.startswith("++")]
        with composing():
            if choices not in self.composed:
                self.composed[choices] = compose(self.root, [*search_paths(), *choices])
            config = deepcopy(self.composed[choices])
            ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
        return config

    def _checked(self, config: Any, words: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What makes this job the job it is, and what it has to be told again where it is resumed."""
        if config.get("pipeline"):
            node: Any = OmegaConf.to_container(config.pipeline)
            plan = make(node, "pipeline", [each.removeprefix("++") for each in words], self.conf, guest=self.guest)
            confirm = tuple(word(f"stage.{name}.{one.key}", one.value) for name, one in code_of(plan, CHECKED))
            return {step.stage.name: _of_account(step.config) for step in plan.steps}, confirm
        plain = resolved(config)
        if self.root == "config" and "method" not in plain:
            raise ConfigError("method: no job of the sweep names one, as in method=ppo")
        root = ROOTS[PRIMARY[self.root]][1]
        if self.guest:
            self.guest.check(plain, root)
        CHECKS[self.root](plain)
        check_packages(plain)
        return _of_account(plain), tuple(word(one.key, one.value) for one in confirmable(plain, root))


def _of_account(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in OF_NO_ACCOUNT}


def _where(labels: Sequence[str], total: int) -> str:
    return f" (in all {total} jobs)" if len(labels) == total and total > 1 else f" ({'; '.join(dict.fromkeys(labels))})"


def placed(job: Job, folder: Path) -> Job:
    """The job in the folder that an earlier session gave it."""
    there = sorted((folder / "jobs").glob(f"*-{job.hash}"))
    return replace(job, folder=f"jobs/{there[0].name}") if there else job


def flags() -> list[str]:
    """What a job has to be told to find the same config groups."""
    extra = extra_folder()
    return [*(["--config-dir", extra] if extra else []), *search_paths()]
