"""Experiment trackers: TensorBoard, Weights & Biases, trackio, any Lightning logger, or none.

A tracker builds Lightning loggers and closes them with the run's exit status. It receives a copy of metrics.jsonl and
samples.jsonl, which are always written (training/record_files.py). Trackers never prompt, and use the network only
with `online: true`. Packages are imported on use: wandb and tensorboard take a second each.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from postrain.config.extras import load
from postrain.config.schema import Confirm, load_target
from postrain.errors import ConfigError
from postrain.jsonl import is_list, leaves
from postrain.types import Count

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEP = "trainer/global_step"
# Settings left out of TensorBoard's hyperparameters, by the end of their key.
HPARAMS_OMITTED = ("._target_", ".adam_betas", ".adam_eps", ".micro_batch_tokens")


class Tracker(Protocol):
    """The interface of the options in conf/logger."""

    def build(self, *, run_dir: Path, run_name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        """The loggers of one run; `config` is in plain containers with secrets masked."""
        ...

    def close(self, status: str) -> None:
        """Closes the tracker at the end of a run; `status` is "done", "failed" or "interrupted"."""
        ...


@dataclass(frozen=True)
class LightningTracker:
    """Any Lightning logger: it receives hyperparameters and the metrics of every update, but no samples."""

    logger: Logger

    def build(self, *, run_dir: Path, run_name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        self.logger.log_hyperparams(config)
        return [self.logger]

    def close(self, status: str) -> None:
        """Lightning finalizes the logger."""


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """No tracker (logger=none)."""

    def build(self, *, run_dir: Path, run_name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        return []

    def close(self, status: str) -> None:
        """Nothing to close."""


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files in <run folder>/tensorboard."""

    flush_seconds: Count = 10
    """Seconds between writes of the event file."""

    def build(self, *, run_dir: Path, run_name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        logger = TensorBoardLogger(
            run_dir, name="tensorboard", version="", default_hp_metric=False, flush_secs=self.flush_seconds
        )
        log_settings(logger, config)
        return [logger]

    def close(self, status: str) -> None:
        """Lightning closes the writer itself."""


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Weights & Biases; offline by default, written to <run folder>/wandb."""

    project: str = "postrain"
    """Project name."""
    entity: str | None = None
    """User or team that owns the project; null is your default entity."""
    online: Annotated[bool, Confirm("sends the run to Weights & Biases")] = False
    """Send metrics during the run; false stores them for `wandb sync`."""
    timeout: Count = 20
    """Seconds to wait for the server when online."""

    def build(self, *, run_dir: Path, run_name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        if getattr(rank_zero_only, "rank", 0) != 0:
            return [WandbLogger(project=self.project, save_dir=run_dir)]
        import wandb  # noqa: PLC0415 - start-up time

        if wandb.run is not None:
            # Left open by an earlier job of this process; a new WandbLogger would write into it.
            wandb.finish(exit_code=1)
        self._check_login()
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=self.timeout, x_disable_stats=True, disable_git=True
        )
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                dir=run_dir,
                id=_identifier(run_dir),
                name=run_name,
                group=group,
                config=config,
                mode="online" if self.online else "offline",
                resume="allow" if self.online else None,
                settings=settings,
            )
        except wandb.Error as error:
            raise ConfigError(f"logger.online: W&B did not respond ({error}); use logger.online=false") from error
        remove_outside_links(run_dir / "wandb")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return [WandbLogger(experiment=run, project=self.project, save_dir=run_dir)]

    def close(self, status: str) -> None:
        if "wandb" not in sys.modules:
            return
        import wandb  # noqa: PLC0415 - start-up time

        if (run := wandb.run) is not None:
            wandb.finish(exit_code=0 if status == "done" else 1)
            remove_outside_links(Path(run.settings.wandb_dir))

    def _check_login(self) -> None:
        import wandb  # noqa: PLC0415 - start-up time

        if self.online and not wandb.login(prompt=False):
            raise ConfigError("logger.online: no W&B key is configured; run `wandb login` or use logger.online=false")


def remove_outside_links(folder: Path) -> None:
    """Removes links that lead out of a folder: wandb links a log in the user's cache, and a run folder must not."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            path.unlink()


@dataclass(frozen=True, kw_only=True)
class Trackio:
    """trackio, a local dashboard with tables of samples; open it with `trackio show --project PROJECT`."""

    project: str = "postrain"
    """Project name."""

    def build(self, *, run_dir: Path, run_name: str, group: str | None, config: dict[str, Any]) -> list[Logger]:
        return [TrackioLogger(project=self.project, run_name=run_name, group=group, config=config)]

    def close(self, status: str) -> None:
        if "trackio" not in sys.modules:
            return
        trackio = load("trackio")

        with contextlib.suppress(RuntimeError), contextlib.redirect_stdout(io.StringIO()):
            # RuntimeError: no run was ever opened.
            trackio.finish()


class TrackioLogger(Logger):
    """trackio behind Lightning's logger interface."""

    def __init__(self, *, project: str, run_name: str, group: str | None, config: dict[str, Any]) -> None:
        super().__init__()
        self._project, self._run_name, self._group, self._config = project, run_name, group, config
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._run_name

    def run(self) -> Any:
        """The trackio run, opened on first use on rank 0."""
        if self._run is None:
            trackio = load("trackio")

            # Hidden: trackio prints a dashboard address with a write token.
            with contextlib.redirect_stdout(io.StringIO()):
                self._run = trackio.init(
                    project=self._project,
                    name=self._run_name,
                    group=self._group,
                    config=self._config,
                    resume="allow",
                    embed=False,
                    auto_log_cpu=False,
                    auto_log_gpu=False,
                )
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.run().log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """Does nothing: the config is passed to trackio.init."""

    def finalize(self, status: str) -> None:
        """Does nothing: samples may follow after fit, so Trackio.close ends the run."""


def log_settings(logger: TensorBoardLogger, config: Mapping[str, Any]) -> None:
    """Writes the settings and headline metrics of the run to TensorBoard's HPARAMS tab."""
    if "method" not in config:
        return
    # Imports torch.utils.tensorboard, which takes a second.
    from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415 - start-up time

    method: Any = load_target(config["method"]["_target_"])
    metrics = dict.fromkeys((*method.headline, method.expected_change[0]), 0.0)
    files = writer(logger)._get_file_writer()
    for summary in hparams(hyperparameters(config), metrics):
        files.add_summary(summary)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that may differ between runs of a sweep, as flat keys: `method.beta`, `seed`, ..."""
    model = config.get("model") or {}
    # TensorBoard sorts by name and shows only the first settings; parentheses sort first.
    found: dict[str, Any] = {"(job)": config.get("name"), "(model)": model.get("name") or model.get("path")}
    found["seed"] = config.get("seed")
    for group in ("method", "adapter", "reward", "rollout"):
        found |= leaves(group, config.get(group) or {}, is_leaf=is_list)
    kept = {key: value for key, value in found.items() if not key.endswith(HPARAMS_OMITTED)}
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in kept.items()}


def discard_after(loggers: Sequence[Logger], update: int) -> None:
    """Discards logged steps after `update`, which a resumed run repeats, in loggers that support it (TensorBoard)."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            # pyright does not see names that are created at run time.
            from tensorboard.compat.proto.event_pb2 import (  # noqa: PLC0415 - start-up time
                Event,  # pyright: ignore[reportAttributeAccessIssue]
                SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
            )

            events = writer(logger)._get_file_writer()
            start = SessionLog(status=SessionLog.START)
            events.add_event(Event(step=update + 1, file_version="brain.Event:2"))
            events.add_event(Event(step=update + 1, session_log=start))


def _identifier(run_dir: Path) -> str:
    """A unique run id: the last parts of the path, up to the one with the time (further up in a pipeline's sweep)."""
    parts = run_dir.parts[-5:] if run_dir.parent.parent.name == "jobs" else run_dir.parts[-3:]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(parts))[-64:]


def writer(logger: TensorBoardLogger) -> SummaryWriter:
    """The SummaryWriter of a run's event file."""
    return cast("SummaryWriter", logger.experiment)
