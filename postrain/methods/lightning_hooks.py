"""Lightning hooks of all methods: `Trainer(max_steps=50).fit(method, datamodule=...)`.

Hooks, logging, validation and checkpoints; the training loop is in update_loop.py. `postrain train` differs in two
points. It evaluates in a callback instead of the validation loop, so that results are in the record of the update and
precede its checkpoint. It writes metrics itself, numbered by update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from postrain.config.schema import Section
from postrain.data.module import DataModule
from postrain.data.schedule import DataSpec, EvalBatches
from postrain.errors import ConfigError
from postrain.hardware import collectives, sharding
from postrain.hardware.optimizer_state import ORDER, ShardedStrategy, grouped_names, regroup
from postrain.hardware.shares import Share
from postrain.methods.components import Counters, MethodComponents
from postrain.methods.lightning_options import check_trainer
from postrain.methods.metrics import Metrics, add_metrics
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.models.reference import Reference
from postrain.rewards.base import PreferenceModel, Reward, compares_group
from postrain.types import Batch, Max, Mean

if TYPE_CHECKING:
    from postrain.evaluation.evaluator import Evaluation
    from postrain.fit import Run
    from postrain.training.loggers import Tracker


class LightningHooks(LightningModule):
    """Base of Method: Lightning's hooks, logging, validation and checkpoints."""

    data_kind: Callable[[], str]
    needs_reward: ClassVar[bool]
    accepts_preferences: ClassVar[bool]
    headline: ClassVar[tuple[str, str, str]]
    updates: int
    policy: nn.Module
    components: MethodComponents

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.counters = Counters()
        self.last_metrics: dict[str, float] = {}
        self.stop_reason = ""
        """Reason for stopping early; empty otherwise."""
        self.logs_to_trackers = True
        """Whether Lightning sends metrics to the Trainer's loggers; False if a callback does (MetricsFile)."""
        self.held_out: dict[str, Mean | Max] = {}
        self.own_data: DataModule | None = None

    # Defined by methods ---------------------------------------------------------------------------------------------

    def items_per_update(self) -> int:
        """Number of data items per update, over all ranks."""
        raise NotImplementedError

    def trained_models(self) -> list[nn.Module]:
        """The models that training changes: the policy, and further ones such as a separate critic."""
        return [self.policy]

    def references(self) -> list[Reference]:
        """The reference models of the loss and of evaluations."""
        return [self.components.reference] if self.components.reference is not None else []

    def steps_per_update(self) -> int:
        """Number of optimizer steps per update."""
        return 1

    def evaluate(self, batch: Any, index: int, share: Share) -> Metrics:
        """Metrics of `batch`, this rank's share of the items of a held-out batch; `index` numbers it, for seeds."""
        raise NotImplementedError

    def validate(self, batch: Any, index: int, share: Share) -> Metrics:
        """`evaluate` in Lightning's validation loop, which runs without evaluation tasks."""
        return self.evaluate(batch, index, share)

    def combined(self, metrics: Metrics) -> dict[str, float]:
        """Metrics over all ranks as floats."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Further state for resume (a KL coefficient), as plain containers."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the output of `state`."""

    def fit(
        self,
        *,
        output: str | Path = "runs",
        evaluation: Evaluation | None = None,
        callbacks: Sequence[Callback] = (),
        logger: Tracker | Logger | None = None,
        resume: str | Path | None = None,
        name: str | None = None,
        report: bool = True,
    ) -> Run:
        """Trains on `data` in a new run folder under `output`, as `postrain train` does, with the same files.

        `evaluation` configures tasks and interval, `callbacks` are Lightning's, `logger` is a tracker or
        a Lightning logger, `resume` the folder of an interrupted fit with the same settings, `name` the folder's name.
        Raises ConfigError for a user's mistake and KeyboardInterrupt after Ctrl-C, with the folder to resume.

            run = GRPO(model, tokenizer, data=rows, reward=my_reward, updates=50).fit()
            run.model, run.path, run.metrics[-1], run.result["objective"]
        """
        # Imported at run time: postrain.fit is a higher layer, and imports go down only.
        return import_module("postrain.fit").fit(
            self,
            output=output,
            evaluation=evaluation,
            callbacks=callbacks,
            logger=logger,
            resume=resume,
            name=name,
            report=report,
        )

    # Before training ----------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """The first hook: sets `updates` from `Trainer(max_steps=)`, which counts optimizer steps.

        Raises ConfigError if this Trainer cannot train this method.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_trainer(self.trainer)
            self.check_ready(resumes=bool(self.trainer.ckpt_path))
            if self.trainer.max_steps > 0:
                self.updates = math.ceil(self.trainer.max_steps / self.steps_per_update())
                self.num_train_epochs = None
        return []

    def check_ready(self, *, resumes: bool) -> None:
        """Raises ConfigError if training cannot start; `resumes` is True if a checkpoint is loaded."""
        name = type(self).__name__
        if not hasattr(self, "components"):
            raise ConfigError(f"{name}: has no model; construct it as {name}(model, tokenizer)")
        if self.counters.updates and not resumes:
            raise ConfigError(
                f"{name}: has been trained already, {self.counters.updates} updates; construct a new one for another "
                "fit, or resume from a checkpoint with ckpt_path"
            )
        self.check_reward(self.components.reward, self.components.preference)

    def check_reward(self, reward: Reward | None, preference: PreferenceModel | None) -> None:
        """Raises ConfigError if the reward or preference that the method needs is missing."""
        name = type(self).__name__
        if self.needs_reward and reward is None and preference is None:
            raise ConfigError(f"reward: {name} learns from a reward; give one, as reward=OPTION or {name}(reward=...)")
        if self.needs_reward and reward is None and not self.accepts_preferences:
            raise ConfigError(
                f"reward: {type(preference).__name__} compares two completions, and {name} needs a number for each; "
                "choose another reward, or a method trained on preferences (online_dpo, nash_md)"
            )
        if reward is not None and compares_group(reward) and getattr(self, "group_size", 1) < 2:
            raise ConfigError(
                f"reward: {type(reward).__name__} compares the completions of a prompt, and {name} samples one; use "
                "method=grpo or method.group_size=8"
            )

    def setup(self, stage: str) -> None:
        """Uses the chat template that the data is encoded with."""
        data = self.datamodule
        if data is self.own_data:
            data.trainer = self.trainer
            data.setup(stage)
        self.components = replace(self.components, template=data.chat_template)

    @property
    def datamodule(self) -> DataModule:
        """The Trainer's datamodule, else the method's `data`. Raises ConfigError without either."""
        module = getattr(self.trainer, "datamodule", None) or self.own_data
        if not isinstance(module, DataModule):
            raise ConfigError("data: no rows to train on; call fit(method, datamodule=DataModule(rows, tokenizer))")
        return module

    def data_spec(self) -> DataSpec:
        """Requirements on the data: kind of record, context length, batch size, number of batches."""
        return DataSpec(
            kind=self.data_kind(),
            context=context_length(unwrapped(self.policy).config.to_dict()),
            completion_tokens=self.components.engine.sampling.max_new_tokens
            + self.components.environment.max_observation_tokens,
            batch_size=self.items_per_update(),
            updates=self.updates,
            num_train_epochs=self.num_train_epochs,
            seed=self.components.seed,
            use_margin=getattr(self, "use_margin", False),
        )

    def configure_model(self) -> None:
        """Shards policy, critic and reference if the strategy provides a device mesh (FSDP)."""
        if self.device_mesh is None:
            return
        dtype, strategy = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None, self.trainer.strategy
        mesh = strategy.mesh if isinstance(strategy, ShardedStrategy) else self.device_mesh["data_parallel"]
        change = partial(sharding.shard, mesh=mesh, compute_dtype=dtype)
        for model in self.trained_models():
            change(model)
        for reference in self.references():
            reference.convert(change)

    def on_fit_start(self) -> None:
        """Moves reward and preference models, which are not submodules, to the policy's device."""
        for model in (self.components.reward, self.components.preference):
            if model is not None:
                model.to(self.device)

    def train_dataloader(self) -> Any:
        """Training batches of `data=`, if the Trainer has no datamodule."""
        return self.datamodule.train_dataloader()

    def val_dataloader(self) -> EvalBatches:
        """Held-out batches of `data=`, if the Trainer has no datamodule."""
        return self.datamodule.val_dataloader()

    # While training -----------------------------------------------------------------------------------------------

    def log_update(self, metrics: Mapping[str, float], items: int) -> None:
        """Logs an update's metrics to callbacks, progress bars and Lightning's loggers."""
        logger = self.logs_to_trackers and bool(self.trainer.loggers)
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name in self.headline, logger=logger, batch_size=items)

    def stop_after_last_update(self) -> None:
        """Stops the Trainer after the last update, where the schedule ends."""
        trainer = self.trainer
        if self.counters.updates < self.updates or trainer.max_epochs == 1:
            return
        trainer.should_stop = True
        if trainer.is_global_zero and not 0 < trainer.max_steps <= trainer.global_step:
            print(f"method.updates={self.updates}: training ends here, at the end of the schedule", flush=True)

    def on_validation_epoch_start(self) -> None:
        """Clears the metrics of the last evaluation."""
        self.held_out = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures this rank's share of one held-out batch."""
        share = Share.of(len(batch))
        found = self.validate(batch.select(share.items).to(self.device), batch_idx, share)
        add_metrics(self.held_out, found if share.counts else {})

    def on_validation_epoch_end(self) -> None:
        """Logs the evaluation as `eval/...`."""
        found = self.combined(self.held_out) if any(collectives.gather(bool(self.held_out))) else {}
        logger = bool(self.trainer.loggers)
        self.log_dict({f"eval/{name}": value for name, value in found.items()}, logger=logger)

    # Checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves trainable weights and counters; frozen weights are loaded from the model's source again.

        `load_from_checkpoint(path, model=..., tokenizer=...)` constructs the method with the saved settings.
        """
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        # Lightning's progress counts batches of a loader; ours starts at the current update after resume.
        checkpoint.pop("loops", None)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        order = [name for group in grouped_names(self, optimizer) for name in group]
        checkpoint["postrain"] = {"counters": asdict(self.counters), "state": self.state(), ORDER: order}
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = self.settings()

    def settings(self) -> dict[str, Any]:
        """Config keys with their values, as plain containers."""
        keys: Any = self
        return {key.name: to_plain(getattr(self, key.name)) for key in fields(keys)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores counters and state."""
        saved = checkpoint["postrain"]
        self.counters = Counters(**saved["counters"])
        self.load_state(saved["state"])
        # ShardedStrategy has loaded them already; without a trainer only the weights are loaded.
        if self._trainer is not None and not isinstance(self.trainer.strategy, ShardedStrategy):
            regroup(checkpoint, self, saved.get(ORDER))


def to_plain(value: Any) -> Any:
    """A setting as dicts, lists and scalars."""
    value = asdict(value) if isinstance(value, Section) and is_dataclass(value) else value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value
