"""The base of all methods: their common settings and their components.

A method defines `loss_sum`, and `prepare` if its loss has constants (reference log-probs, a rollout); update_loop.py
describes these and trains with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, Literal, dataclass_transform

import torch
from torch import nn

from postrain.config.keywords import refuse_unknown_keywords
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.methods.components import MethodComponents, RewardLike, components_of
from postrain.methods.learning_rate_search import settle_learning_rate
from postrain.methods.learning_rates import LearningRates, Multiple, resolve
from postrain.methods.optim import set_hyperparameters
from postrain.methods.update_loop import UpdateLoop
from postrain.models.gradient_checkpointing import checkpoints
from postrain.models.parts import parameter_count
from postrain.models.reference import Reference
from postrain.rollout.engine import Engine
from postrain.rollout.environment import Environment
from postrain.types import Count, Fraction, LRSchedule, Max, Mean, NonNegative, Positive, Size


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
@dataclass(kw_only=True, eq=False, repr=False)
class Method(UpdateLoop):
    """Base of all methods. Annotated fields are config keys; subclasses become keyword-only dataclasses.

    In Python: `GRPO(model, tokenizer, reward=my_reward, data=rows, updates=50)`; components that are not given have
    defaults. Without a model, a method holds only its settings until `attach`. Raises ConfigError for components that
    do not fit.
    """

    kind: ClassVar[str]
    """Record kind of the training data: the name of a class in postrain.data.kinds."""
    head: ClassVar[Literal["causal", "scalar"]] = "causal"
    """The head of the policy: language model (causal) or one number per sequence (scalar)."""
    samples: ClassVar[bool] = False
    """Whether training samples completions from the policy."""
    needs_reward: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    """Whether the reference has to be another model than the initial policy."""
    accepts_preferences: ClassVar[bool] = False
    """Whether a pairwise preference suffices, without a reward for each completion."""
    headline: ClassVar[tuple[str, str, str]]
    """The three metrics of the progress line."""
    expected_change: ClassVar[tuple[str, float]]
    """The held-out metric that measures success, and its minimum change after a third of the default run."""

    most_micro_batch_tokens: ClassVar[int] = 2048
    """The default `micro_batch_tokens` of small models on a CPU."""
    rates: ClassVar[LearningRates] = LearningRates(base=1e-5, nano=1e-3)
    """The default learning rates, by model size."""

    model: InitVar[nn.Module | None] = field(default=None, kw_only=False)
    """The policy: a causal language model, or a scalar one for a reward model; with its adapter, if any."""
    tokenizer: InitVar[Any] = field(default=None, kw_only=False)
    reference: InitVar[nn.Module | Reference | None] = None
    """The reference policy; None is a frozen copy of the model, or the model with its adapter off."""
    engine: InitVar[Engine | None] = None
    """The sampling engine; None is LocalEngine()."""
    reward: InitVar[RewardLike | None] = None
    """A reward, a preference, or a function of (prompts, completions, **columns) that returns a list of numbers."""
    environment: InitVar[Environment | None] = None
    optim: InitVar[Callable[..., torch.optim.Optimizer] | None] = None
    """Builds the optimizer from parameter groups and lr: functools.partial(SGD, momentum=0.9); None is AdamW."""
    data: InitVar[Any] = None
    """Training data of `fit`: a DataModule, or rows that DataModule accepts."""
    seed: InitVar[int] = 0

    updates: Count = 100
    """Length of the run in updates, one global batch each."""
    num_train_epochs: Positive | None = None
    """Length of the run in passes over the training rows, instead of `updates`, which config.yaml then does not have;
    1.5 is one and a half."""
    batch_size: Size = 16
    """Rows, pairs or prompts in a global batch, over all ranks."""
    learning_rate: Positive | Literal["auto"] | Multiple | None = None
    """Peak learning rate. null is the method's rate for this model: its rate at 1B parameters, such as 2e-5 for SFT and
    1e-6 for DPO, times √(1B / parameters), times 10 with an adapter. The bundled model has rates of its own. 0.5x is
    half of this default. auto: the largest rate whose first updates, undone afterwards, keep the KL to the initial
    policy small and lower the loss."""
    check_learning_rate: bool = True
    """Try a rate above 3 × the default in a few updates, undone afterwards, and refuse one that destroys the policy."""
    schedule: LRSchedule = "linear"
    """Learning-rate schedule after the warm-up: constant, linear (to 0) or cosine (to 0)."""
    warmup: Fraction = 0.1
    """Fraction of the updates with linear learning-rate warm-up from 0; 0 disables it."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay (AdamW) of matrices; other parameters have none."""
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's β₁ and β₂."""
    adam_eps: Positive = 1e-8
    """AdamW's ε."""
    max_grad_norm: Positive = 1.0
    """Maximum global gradient norm; larger gradients are scaled down."""
    micro_batch_tokens: Count | None = None
    """Tokens per micro-batch (forward and backward pass). Changes memory use and speed, not the result. null: 2048
    (8192 in online methods) on a CPU, fewer for models whose activations would take more than a quarter of the memory;
    32768 on a GPU, fewer where they would take more than half of what weights, gradients and optimizer leave."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations: less memory, about a third more
    computation, the same gradients."""
    dropout: bool = False
    """Whether the dropout of the trained models is active in updates; rollouts are without it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unknown_keywords(dataclass(kw_only=True, eq=False, repr=False)(cls))

    def __post_init__(
        self,
        model: nn.Module | None,
        tokenizer: Any,
        reference: nn.Module | Reference | None,
        engine: Engine | None,
        reward: RewardLike | None,
        environment: Environment | None,
        optim: Callable[..., torch.optim.Optimizer] | None,
        data: Any,
        seed: int,
    ) -> None:
        UpdateLoop.__init__(self)
        if self.num_train_epochs and self.updates != type(self).updates:
            raise ConfigError(
                f"method.updates={self.updates}: method.num_train_epochs={self.num_train_epochs:g} sets the length "
                "too; write '~method.updates' or method.num_train_epochs=null"
            )
        for name, needed in self.conditional_options().items():
            if needed and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"method.{name}={getattr(self, name)}: has no effect without {needed}; leave it out")
        self.accumulated: dict[str, Mean | Max] = {}
        self.current_rows: tuple[int, ...] = ()
        if model is None:
            return
        components = components_of(
            model,
            tokenizer,
            method=self,
            seed=seed,
            reference=reference,
            needs_reference=self.needs_reference(),
            engine=engine,
            reward=reward,
            environment=environment,
            optim=optim,
        )
        self.attach(components)
        if data is not None:
            self.own_data = data if isinstance(data, DataModule) else DataModule(data, tokenizer)

    # Components and learning rate -------------------------------------------------------------------------------

    def attach(self, components: MethodComponents) -> None:
        """Attaches model, engine, reward and the other components of a run."""
        self.policy = components.policy
        adapted, size = hasattr(self.policy, "peft_config"), parameter_count(self.policy)
        if not hasattr(self, "default_learning_rate"):
            self.default_learning_rate = self.learning_rates().for_model(size, adapter=adapted)
        self.learning_rate = resolve(self.learning_rate, self.default_learning_rate)
        # A plain object, not a module: the reference must stay out of state_dict, optimizer and device moves.
        self.components = components
        self.gradient_checkpointing = checkpoints(self.policy, requested=self.gradient_checkpointing)
        self.on_model_attached()

    def data_kind(self) -> str:
        """The record kind of the training data, which may depend on the settings."""
        return self.kind

    def check_teacher(self, teacher: str | None) -> None:
        """Raises ConfigError if the key `reference` of a config does not fit; called before the model is resolved."""

    def conditional_options(self) -> dict[str, str | None]:
        """Options that only some settings use: None, or a setting that would use the option, whose change is then an
        error."""
        return {}

    def data_remedy(self) -> str:
        """A setting of the method that admits data of another record kind, appended to the error about the kind."""
        return ""

    def learning_rates(self) -> LearningRates:
        """The default learning rates, which may depend on the settings."""
        return self.rates

    def on_train_start(self) -> None:
        """Settles the learning rate before the first update; sets the optimizer of a resumed run to these settings."""
        if self.counters.updates == 0:
            with self.trainer.precision_plugin.forward_context():
                settle_learning_rate(self, iter(self.datamodule.train_dataloader()))
            return
        adamw = {} if self.components.optim else {"betas": tuple(self.adam_betas), "eps": self.adam_eps}
        set_hyperparameters(self.optimizer, self.weight_decay, **adamw)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.learning_rate == "auto":
            self.learning_rate = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["learning_rate"]
