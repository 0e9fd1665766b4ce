"""One run, from its config to its folder: check → resolve → build → audit → fit → export → report.

`execute` is a run in this process; `main` is what a further rank of a multi-process run starts with.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from omegaconf import OmegaConf

from postrain.config.check import check, instantiate
from postrain.config.extras import check_packages
from postrain.config.masking import masked
from postrain.config.trust import Guest, Item, said_by
from postrain.data.rendering import clock_at
from postrain.errors import Interrupted
from postrain.evaluation.subjects import InTraining
from postrain.hardware.collectives import whole_state
from postrain.hardware.ranks import is_first_rank, ranks
from postrain.hardware.trainer import Hardware
from postrain.jsonl import atomic_write_text
from postrain.methods.base import Method
from postrain.models.sources import ResolvedModel
from postrain.report import write_report
from postrain.rollout.engine import Engine
from postrain.runs.folder import RunFolder, config_hash
from postrain.runs.interrupt import Interrupt
from postrain.runs.manifest import write_manifest
from postrain.runs.resume import check_data, check_model, check_reference, resumed_config, saved_config, settings
from postrain.runs.status import Ending, as_told, writing
from postrain.training.checkpoints import Checkpoints, newest_readable
from postrain.training.components import Built, build, check_reward, load_policy, notes
from postrain.training.config import Root
from postrain.training.diagnostics import Diagnostics
from postrain.training.early_stopping import EarlyStop, Hopeless
from postrain.training.evaluation import Evaluator
from postrain.training.finalize import finish
from postrain.training.loggers import Tracker
from postrain.training.metrics_file import MetricsFile
from postrain.training.nan_guard import Guards, check_finite
from postrain.training.progress import ProgressLine
from postrain.training.samples_file import SamplesFile
from postrain.training.throughput import Throughput
from postrain.types import ConfigError

MOST_TOKENS = 10**9
"""Of all completions of one update; as token ids and log-probabilities they take a dozen gigabytes."""
# What a report is made from: of a run, a pipeline, an evaluation.
SHOWN = ("metrics.jsonl", "pipeline.yaml", "evaluation_stats.json")


def execute(
    config: Mapping[str, Any],
    *,
    overrides: Sequence[str],
    group: str | None,
    place: Path | None = None,
    trusted: Collection[Item] = (),
) -> float | None:
    """Runs `config`, a new run or the resumed one it names; returns the number a sweep compares.

    `place` is where a new run's folder shall be, if somebody has decided that; it may not hold a run yet. `trusted` is
    what the command line says besides `config`, of other stages of a pipeline.
    Raises ConfigError for a user's mistake and Interrupted after Ctrl-C or SIGTERM; whatever was trained is saved.
    """
    quieten()
    earlier = RunFolder.open(config["resume"]) if config["resume"] else None
    if earlier:
        guest = Guest(earlier.path, said_by(config) | set(trusted))
        config = resumed_config(earlier, config, overrides)
        guest.check(config, Root)
    check(config, Root)
    check_packages(config)
    hardware: Hardware = instantiate(config["trainer"])
    hardware.check()
    rehearse(config)
    resolved = instantiate(config["model"]).resolve()
    if earlier:
        check_model(earlier, resolved)
    folder = earlier or (new_folder(config, resolved, place) if is_first_rank() else None)
    with Interrupt() as interrupt, owned(folder, config), ranks(hardware, folder and folder.path) as path:
        begun = RunFolder(path)
        with clock_at(begun.status.began()):
            return train(config, resolved, begun, interrupt, overrides=overrides, group=group)


def rehearse(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for what constructors refuse, before there is a folder."""
    made = {part: instantiate(config[part]) for part in ("method", "data", "rollout", "environment", "evaluation")}
    instantiate(config["logger"])
    check_size(made["method"], made["rollout"])
    instantiate(config["adapter"]).quantization()


def check_size(method: Method, engine: Engine) -> None:
    """Raises ConfigError where sizes that are allowed alone give an update more tokens than any memory holds."""
    sizes = {
        "method.batch_size": method.batch_size,
        "method.group_size": getattr(method, "group_size", 1),
        "rollout.max_new_tokens": engine.sampling.max_new_tokens,
    }
    if method.needs_reward and math.prod(sizes.values()) > MOST_TOKENS:
        said = " × ".join(f"{key}={size}" for key, size in sizes.items() if size > 1)
        raise ConfigError(f"{said}: expected at most {MOST_TOKENS} tokens an update; lower one of them")


@contextmanager
def owned(folder: RunFolder | None, config: Mapping[str, Any]) -> Iterator[None]:
    """Keeps other processes out of the folder, writes how the run ended into status.json and closes its tracker with
    it. Further ranks under torchrun only say that they failed."""
    if folder is None or not is_first_rank():
        try:
            yield
        except Exception as error:
            if folder:
                folder.status.failed(str(error) or type(error).__name__)
            raise
        return
    with (
        folder.locked(),
        Ending(folder.status),
        reported(folder, config["report"], instantiate(config["logger"]).close),
    ):
        with writing(folder.config):
            atomic_write_text(folder.config, OmegaConf.to_yaml(settings(config)), private=True)
        yield


@contextmanager
def reported(folder: RunFolder, report: bool, close: Callable[[str], None] | None = None) -> Iterator[None]:
    """Closes the tracker, if there is one, and writes report.html, of a failed run too: it then says so."""
    status, reason = "failed", ""
    try:
        yield
        status = "done"
    except Interrupted as stop:
        status, reason = "interrupted", stop.signal.name
        raise
    except BaseException as error:
        reason = str(as_told(error, folder.path))
        raise
    finally:
        # What goes wrong from here on must not hide why the run failed.
        with suppress(*(() if status == "done" else (ConfigError, OSError))):
            if close:
                close(status)
            # What never began has nothing to show.
            if report and any((folder.path / name).exists() for name in SHOWN):
                folder.status.tell(status, reason)
                print(f"report  {write_report(folder.path)}")


def new_folder(config: Mapping[str, Any], resolved: ResolvedModel, place: Path | None) -> RunFolder:
    """A folder of this run's own."""
    if place is not None:
        return RunFolder.at(place)
    name = config["name"] or str(config["method"]["_target_"]).rpartition(".")[2].lower()
    return RunFolder.create(Path(config["paths"]["output"]), name, resolved.name, config_hash(settings(config)))


def train(
    config: Mapping[str, Any],
    resolved: ResolvedModel,
    folder: RunFolder,
    interrupt: Interrupt,
    *,
    overrides: Sequence[str],
    group: str | None,
) -> float | None:
    """The part every rank goes through."""
    built = build(config, resolved)
    first = is_first_rank()
    if first:
        check_reference(folder, built.other)
        if not config["allow_change"]:
            check_data(folder, built.audit)
        reference = built.method.parts.reference
        lines = [built.audit.render(), *notes(built, resolved), f"run folder: {folder.path}"]
        print("\n".join([reference.says, *lines] if reference else lines), flush=True)
        write_manifest(
            folder,
            config=config,
            overrides=overrides,
            seeds={"seed": config["seed"]},
            data=built.audit.to_dict(),
            model={"name": resolved.name, "source": resolved.source, "fingerprint": resolved.fingerprint}
            | ({"reference": built.other.fingerprint} if built.other else {}),
            stand_in_for=resolved.stand_in_for,
        )
    tracker: Tracker = instantiate(config["logger"])
    # In a sweep, a job is called by what sets it apart; some trackers take equal names for the same run.
    name = f"{config['name']} · {group}" if group else folder.name
    about = {"run_dir": folder.path, "run_name": name, "group": group, "config": masked(config)}
    loggers = tracker.build(**about) if first else []
    check_finite(built.method, f"model={resolved.name}")
    checkpoint, damaged = newest_readable(folder.path)
    for path in damaged if first else []:
        print(f"warning: {path} is damaged and was passed over", file=sys.stderr)
    if built.method.needs_reward and checkpoint is None:
        check_reward(built.method, built.data)
    if config["early_stop"]["flat_updates"] and not built.method.needs_reward:
        raise ConfigError("early_stop.flat_updates: this method has no reward that could be flat; leave it null")
    guards = Guards(folder)
    acting = callbacks(config, built, folder, interrupt, resolved, guards)
    with guards.blamed(built.method):
        trainer = built.hardware.make_trainer(acting, loggers, folder.path)
        trainer.fit(built.method, datamodule=built.data, ckpt_path=checkpoint, weights_only=True)
    if interrupt.signal is not None:
        raise Interrupted(interrupt.signal)
    guards.check(built.method)
    state = whole_state(built.method.policy) if built.method.device_mesh is not None else None
    if state is not None and first:
        built.method.policy = load_policy(built.method, config, resolved, built.hardware, built.data)
        built.method.policy.load_state_dict(state, strict=False)
    return finish(built, resolved, folder) if first else None


def callbacks(
    config: Mapping[str, Any],
    built: Built,
    folder: RunFolder,
    interrupt: Interrupt,
    resolved: ResolvedModel,
    guards: Guards,
) -> list[Callback]:
    """In the order they act after an update: check, measure, write down, diagnose, stop, and only then save."""
    samples = SamplesFile(folder)
    title = f"{config['name'] or folder.path.parts[-3]} · {resolved.name}"
    return [
        Throughput(),
        guards,
        Hopeless(EarlyStop(**config["early_stop"]), folder),
        samples,
        Evaluator(built.data, instantiate(config["evaluation"]), samples, InTraining(config, resolved, built.data)),
        MetricsFile(folder),
        Diagnostics(folder),
        ProgressLine(title),
        interrupt,
        Checkpoints(folder, guards, every=built.hardware.checkpoint_every, keep=built.hardware.checkpoints_kept),
    ]


def quieten() -> None:
    """Keeps the libraries' own chatter out of a run's output: advertisements, notes on what they think is unusual."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\.pytorch")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def main(path: str) -> None:
    """A further rank of the run in the folder `path`."""
    folder = RunFolder.open(path)
    config = saved_config(folder)
    quieten()
    resolved = instantiate(config["model"]).resolve()
    with Interrupt() as interrupt, ranks(instantiate(config["trainer"]), None), clock_at(folder.status.began()):
        train(config, resolved, folder, interrupt, overrides=(), group=None)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ConfigError as mistake:
        # The first rank has made the same mistake and says so.
        sys.exit(f"rank {os.environ['RANK']}: {mistake}")
