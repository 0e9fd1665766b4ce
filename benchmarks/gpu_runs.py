"""Short training runs on random weights: their tokens per second, share of the device's peak, and memory. Part of
gpu_check.py.

Model FLOPs of an update: 6N per trained token (4N with an adapter, as frozen weights have no gradient), 2N per sampled
token and per token under DPO's reference. N counts the parameters of matrix products: all but untied input embeddings.
Attention, recomputation and scoring of rollouts are not counted, as usual for MFU (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import AutoModelForCausalLM, LlamaConfig

import postrain as pt
from postrain.hardware.trainer import Hardware
from postrain.models.adapters import Adapter, NoAdapter
from postrain.models.sources import ModelSource
from postrain.training.config import TrainConfig
from postrain.training.memory import estimate
from postrain.training.memory_estimate import MemoryEstimate


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama architecture with random weights, and how it is trained."""

    name: str
    settings: Mapping[str, Any]
    precision: Literal["fp32", "bf16-mixed", "bf16"] = "bf16-mixed"
    adapter: Adapter = field(default_factory=NoAdapter)
    gradient_checkpointing: bool = False

    @property
    def config(self) -> LlamaConfig:
        """The architecture; special tokens are those of the bundled model's tokenizer."""
        return LlamaConfig(**self.settings, bos_token_id=0, eos_token_id=0, pad_token_id=1)

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model with new weights, made on the device, and its adapter."""
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(self.config, dtype=dtype, trust_remote_code=False)
        return self.adapter.wrap(model.eval(), head="causal")


def llama(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool) -> Any:
    """Settings of a Llama architecture."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 2048,
        # Logits of standard deviation 1: with the usual 0.02 narrow models are almost uniform, which hides errors.
        "initializer_range": width**-0.5,
    }


# The shapes of SmolLM2-135M, Llama 3.2 1B and Mistral 7B.
SHAPES = (
    Shape(name="135M", settings=llama(49152, 576, 1536, 30, 9, 3, tied=True)),
    Shape(name="1B", settings=llama(128256, 2048, 8192, 16, 32, 8, tied=True)),
    Shape(
        name="7B-LoRA",
        settings=llama(32000, 4096, 14336, 32, 32, 8, tied=False),
        precision="bf16",
        adapter=pt.LoRA(r=16),
        gradient_checkpointing=True,
    ),
)
TINY = Shape(name="tiny", settings=llama(1024, 32, 64, 2, 4, 2, tied=False), precision="fp32")
REDUCED_SHAPES = (TINY, replace(SHAPES[-1], name="tiny-LoRA", settings=TINY.settings))


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the training runs."""

    prompt: int
    """Tokens of a prompt, about."""
    completion: int
    """Tokens of a completion, about; sampled ones have no more."""
    rows: int
    """Sequences of an update: rows, chosen and rejected answers, or sampled completions."""
    group: int
    """Completions of a prompt."""
    micro_batch_tokens: int
    updates: int
    """The first one is not timed."""
    matmul: int
    """Width of the matrices whose product gives the peak."""


FULL = Size(prompt=128, completion=256, rows=64, group=8, micro_batch_tokens=8192, updates=4, matmul=8192)
REDUCED = Size(prompt=6, completion=6, rows=4, group=2, micro_batch_tokens=64, updates=2, matmul=256)
METHODS: Mapping[str, tuple[type[pt.Method], Mapping[str, Any]]] = {
    "sft": (pt.SFT, {}),
    "dpo": (pt.DPO, {"precompute_ref_log_probs": False}),
    "grpo": (pt.GRPO, {"kl_coef": 0.0, "dynamic_sampling": 0}),
}


def alternating(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """A reward that differs in every group, whatever random weights sample."""
    return [float(index % 2) for index in range(len(completions))]


@dataclass(frozen=True)
class Measured:
    """The timed updates of a run."""

    tokens_per_second: float
    """Trained tokens; sampled ones in GRPO."""
    flops_per_second: float
    parameters: int
    peak_bytes: int | None
    """Most memory allocated on the GPU; None on a CPU."""


@dataclass(frozen=True)
class TrainingRun:
    """One method on one shape."""

    shape: Shape
    method: str
    size: Size
    device: torch.device
    tokenizer: Any

    @property
    def name(self) -> str:
        return f"{self.method} {self.shape.name}"

    @property
    def per_item(self) -> int:
        """Sequences of an item of a batch."""
        return {"sft": 1, "dpo": 2, "grpo": self.size.group}[self.method]

    @property
    def hardware(self) -> Hardware:
        """The trainer."""
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        return Hardware(accelerator=accelerator, precision=self.shape.precision)

    def settings(self) -> dict[str, Any]:
        """The keys of the method."""
        return {
            **METHODS[self.method][1],
            **({"group_size": self.size.group} if self.method == "grpo" else {}),
            "updates": self.size.updates,
            "batch_size": self.size.rows // self.per_item,
            "micro_batch_tokens": self.size.micro_batch_tokens,
            "gradient_checkpointing": self.shape.gradient_checkpointing,
        }

    def engine(self) -> pt.LocalEngine:
        """The engine of GRPO."""
        return pt.LocalEngine(max_new_tokens=self.size.completion)

    def data(self) -> pt.DataModule:
        """Rows of random words, of about one token each."""
        source = random.Random(0)
        words = [word[1:] for word in sorted(self.tokenizer.get_vocab()) if word[0] == "Ġ" and word[1:].isalpha()]
        columns = {"sft": ("completion",), "dpo": ("chosen", "rejected"), "grpo": ()}[self.method]
        rows = [
            {"prompt": " ".join(source.choices(words, k=self.size.prompt))}
            | {name: " " + " ".join(source.choices(words, k=self.size.completion)) for name in columns}
            for _ in range(self.size.updates * self.size.rows // self.per_item + 8)
        ]
        return pt.DataModule(rows, self.tokenizer, template="plain", eval_rows=2)

    def measure(self, folder: Path) -> Measured:
        """Trains."""
        if self.device.type == "cuda":
            gc.collect()  # modules and trainers refer to each other
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        policy = self.shape.load(self.device, self.hardware.dtype)
        count = sum(parameter.numel() for parameter in policy.parameters())
        used = count if self.shape.config.tie_word_embeddings else count - policy.get_input_embeddings().weight.numel()
        reward = {"reward": alternating} if self.method == "grpo" else {}
        method = METHODS[self.method][0](policy, self.tokenizer, engine=self.engine(), **reward, **self.settings())
        watch = Stopwatch(self.device)
        self.hardware.make_trainer([watch], [], folder).fit(method, datamodule=self.data())
        seconds, trained, sampled = (sum(values[1:]) for values in (watch.seconds, watch.trained, watch.sampled))
        per_token = (6 if isinstance(self.shape.adapter, NoAdapter) else 4) + 2 * (self.method == "dpo")
        return Measured(
            tokens_per_second=(sampled or trained) / seconds,
            flops_per_second=used * (per_token * trained + 2 * sampled) / seconds,
            parameters=count,
            peak_bytes=torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
        )

    def config(self, folder: Path, **settings: Any) -> TrainConfig:
        """The config of the run, with other settings of the method. The folder gets the model, without weights."""
        self.shape.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return TrainConfig(
            method=METHODS[self.method][0](**self.settings() | settings),
            model=ModelSource(path=str(folder), from_scratch=True),
            adapter=self.shape.adapter,
            data=self.data(),
            rollout=self.engine(),
            trainer=self.hardware,
            evaluation=pt.Evaluation(completions=0),
        )

    def default_micro_batch_tokens(self, folder: Path) -> int:
        """The tokens of a micro-batch that the command line chooses for this device."""
        return self.config(folder, micro_batch_tokens=None).micro_batch_tokens

    def estimate(self, folder: Path) -> MemoryEstimate:
        """The estimate of `--dry-run`, from the config and the rows alone."""
        config = self.config(folder)
        method, data, engine = config.method, config.data, self.engine()
        data.prepare(
            kind=method.kind,
            tokenizer=self.tokenizer,
            context=config.resolved.context,
            completion_tokens=engine.max_new_tokens,
            batch_size=method.items_per_update(),
            updates=method.updates,
            seed=0,
        )
        return estimate(config, data)


class Stopwatch(Callback):
    """Seconds, trained tokens and sampled tokens of each update."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.trained: list[float] = []
        self.sampled: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, pt.Method)
        self.before, self.started = pl_module.counters.tokens, now(self.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, pt.Method)
        self.seconds.append(now(self.device) - self.started)
        self.trained.append(pl_module.counters.tokens - self.before)
        length = pl_module.last_metrics.get("completion/length", 0.0)
        self.sampled.append(length * pl_module.batch_size * getattr(pl_module, "group_size", 0))


def now(device: torch.device) -> float:
    """Seconds, after all work given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_flops(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """FLOPs per second of a large matrix product, the fastest of ten."""
    one, other = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = now(device)
        one @ other  # pyright: ignore[reportUnusedExpression]
        seconds.append(now(device) - started)
    return 2 * width**3 / min(seconds)
