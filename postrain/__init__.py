"""An experiment system for LLM post-training: methods are LightningModules, options are Hydra config groups.

    import postrain as pt

    model, tokenizer = pt.load_model("nano")
    run = pt.GRPO(model, tokenizer, data=rows, reward=my_reward, updates=50).fit()

    trainer = lightning.Trainer(max_steps=50)
    trainer.fit(pt.DPO(model, tokenizer), datamodule=pt.DataModule(pairs, tokenizer))

    logps = pt.score(model, rows)
    completions = pt.generate(model, prompts, max_new_tokens=32, num_generations=8, seed=0)
    loss = pt.losses.grpo(logps, old_logps, advantages, logps.mask, clip_low=0.2, clip_high=0.28)

The names listed here are the public interface; everything else may change. Names are imported on first use, so that
`import postrain` loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from postrain import losses as losses
    from postrain.api import Generated as Generated
    from postrain.api import TokenLogps as TokenLogps
    from postrain.api import generate as generate
    from postrain.api import load_model as load_model
    from postrain.api import score as score
    from postrain.data.module import DataModule as DataModule
    from postrain.errors import ConfigError as ConfigError
    from postrain.evaluation.evaluator import Evaluation as Evaluation
    from postrain.fit import Run as Run
    from postrain.methods.base import Method as Method
    from postrain.methods.cpo import CPO as CPO
    from postrain.methods.distill import Distill as Distill
    from postrain.methods.dpo import DPO as DPO
    from postrain.methods.grpo import GRPO as GRPO
    from postrain.methods.kto import KTO as KTO
    from postrain.methods.nash_md import NashMD as NashMD
    from postrain.methods.online_dpo import OnlineDPO as OnlineDPO
    from postrain.methods.orpo import ORPO as ORPO
    from postrain.methods.ppo import PPO as PPO
    from postrain.methods.pretrain import Pretrain as Pretrain
    from postrain.methods.prm import PRM as PRM
    from postrain.methods.reinforce import Reinforce as Reinforce
    from postrain.methods.reward import RewardModel as RewardModel
    from postrain.methods.rloo import RLOO as RLOO
    from postrain.methods.sft import SFT as SFT
    from postrain.methods.simpo import SimPO as SimPO
    from postrain.models.adapters import LoRA as LoRA
    from postrain.models.adapters import QLoRA as QLoRA
    from postrain.rollout.local import LocalEngine as LocalEngine
    from postrain.training.loggers import TensorBoard as TensorBoard
    from postrain.training.loggers import Trackio as Trackio
    from postrain.training.loggers import Wandb as Wandb

# The module that defines each name.
_DEFINED_IN = {
    "api": "Generated TokenLogps generate load_model score",
    "data.module": "DataModule",
    "errors": "ConfigError",
    "evaluation.evaluator": "Evaluation",
    "methods.base": "Method",
    "methods.cpo": "CPO",
    "methods.distill": "Distill",
    "methods.dpo": "DPO",
    "methods.grpo": "GRPO",
    "methods.kto": "KTO",
    "methods.nash_md": "NashMD",
    "methods.online_dpo": "OnlineDPO",
    "methods.orpo": "ORPO",
    "methods.ppo": "PPO",
    "methods.pretrain": "Pretrain",
    "methods.prm": "PRM",
    "methods.reinforce": "Reinforce",
    "methods.reward": "RewardModel",
    "methods.rloo": "RLOO",
    "methods.sft": "SFT",
    "methods.simpo": "SimPO",
    "models.adapters": "LoRA QLoRA",
    "rollout.local": "LocalEngine",
    "fit": "Run",
    "training.loggers": "TensorBoard Trackio Wandb",
}
_MODULES = {name: f"postrain.{module}" for module, names in _DEFINED_IN.items() for name in names.split()}
__all__ = [*sorted(_MODULES), "__version__", "losses"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("postrain.losses")
    if name not in _MODULES:
        raise AttributeError(f"module 'postrain' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
