"""An estimate of the memory of a training run, before its weights are loaded.

    peak = process + weights + reference + gradients + optimizer + the largest of
           { activations of a micro-batch, sampling, scoring completions }

Gradients stay allocated until the next backward pass, and none of the last three exist at the same time. Activations
come from a pass on fake tensors (models/memory_trace.py), everything else from shapes. On a GPU the parts are those of
its memory. A sharded model (trainer.strategy=fsdp) is gathered beside its shards: block by block where gradients are
computed, as a whole for sampling and scoring. Not included: learned rewards and judges that run in this process, user
code, and memory that the allocator keeps after it is freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.hardware.memory import available_memory, resident_memory
from postrain.hardware.sharding import transformer_blocks
from postrain.methods.optim import make_optimizer
from postrain.models.adapters import NoAdapter
from postrain.models.attention_kinds import is_windowed
from postrain.models.gradient_checkpointing import gradient_checkpointing
from postrain.models.loading import model_config
from postrain.models.memory_trace import FakeModel
from postrain.models.parts import trunk, unwrapped
from postrain.models.scoring import CHUNK_ELEMENTS
from postrain.models.size import size_of
from postrain.processor import supports_packed_weights
from postrain.rollout.decode.fast import is_supported
from postrain.training.config import TrainConfig
from postrain.training.memory_estimate import GIB, MemoryEstimate
from postrain.training.reference import moving_reference
from postrain.training.workload import completion_tokens, largest_micro_batch

LATER_IMPORTS = 0.15 * GIB
"""Libraries and caches that a process loads after the estimate, and threads."""
FRAGMENTATION, FRAGMENTATION_OF_ADAPTERS = 1.25, 1.6
"""Memory of activations relative to their bytes: the allocator keeps gaps, more of them with the small tensors of
adapters. Measured on a CPU (docs/howto/memory.md)."""
CUDA_CONTEXT = 0.6 * GIB
NF4_BYTES = 0.516
"""Bytes of a 4-bit weight with double quantization (Dettmers et al. 2023, section 3)."""


def check_memory(config: TrainConfig, data: DataModule) -> None:
    """Raises ConfigError if the run does not fit the memory of this machine.

    A run whose upper bound fits is not traced.
    """
    available = memory_of_run(config) if config.trainer.check_memory else None
    if available is not None and upper_bound(config) > available:
        refuse_if_too_large(config, estimate(config, data))


def refuse_if_too_large(config: TrainConfig, found: MemoryEstimate) -> None:
    """Raises ConfigError with the parts and the remedies if an estimate exceeds the available memory."""
    if not config.trainer.check_memory or found.available is None or found.total <= found.available:
        return
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in found.parts().items())
    raise ConfigError(
        f"memory: this run needs about {found.total / GIB:.1f} GiB ({parts}), and {found.available / GIB:.1f} GiB are "
        f"available; {' or '.join(remedies(config, found))}; trainer.check_memory=false starts it anyway"
    )


def remedies(config: TrainConfig, found: MemoryEstimate) -> Iterator[str]:
    """The settings that lower the largest parts."""
    full = isinstance(config.adapter, NoAdapter)
    if full and found.gradients + found.optimizer + found.reference > found.total / 4:
        yield "use adapter=lora"
    if found.activations > max(found.total / 4, found.sampling, found.scoring):
        yield f"lower method.micro_batch_tokens={config.micro_batch_tokens}"
        if not config.method.gradient_checkpointing:
            yield "set method.gradient_checkpointing=true"
        if config.trainer.precision == "fp32":
            yield "set trainer.precision=bf16"
    elif found.sampling > max(found.total / 4, found.scoring):
        yield f"lower rollout.batch_rows={getattr(config.rollout, 'batch_rows', '')}"
    if not full and found.weights > found.total / 4:
        yield "use adapter=qlora"
    yield "use a smaller model"


def memory_of_run(config: TrainConfig) -> float | None:
    """The memory that each rank may use, including what this process uses already."""
    hardware = config.trainer
    free = available_memory(hardware.device)
    if free is None or hardware.device.type == "cuda":
        return free
    return (free + resident_memory()) / hardware.devices


def upper_bound(config: TrainConfig) -> float:
    """A generous bound on the memory of a run, computed in a millisecond."""
    shape = model_config(config.resolved, config.method.head).get_text_config()
    tokens = min(config.micro_batch_tokens, config.resolved.context * config.method.batch_size * 16)
    width = max(shape.hidden_size, getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size)
    logits = min(tokens * shape.vocab_size, CHUNK_ELEMENTS[config.trainer.device.type])
    return 24 * size_of(config.resolved) + 4 * (16 * tokens * shape.num_hidden_layers * width + 6 * logits) + GIB


def estimate(config: TrainConfig, data: DataModule) -> MemoryEstimate:
    """The memory of each rank of a run; `data` is prepared for the method."""
    method, hardware = config.method, config.trainer
    # Before the trace, which imports modules of its own.
    process = CUDA_CONTEXT if hardware.device.type == "cuda" else resident_memory() + LATER_IMPORTS
    available = memory_of_run(config)
    fake = partial(FakeModel, config.resolved, method.head, config.adapter, device=hardware.device)
    model = fake(dtype=hardware.dtype)
    separate_critic = getattr(method, "critic", "shared") == "separate"
    critic = sum(p.numel() for p in trunk(model.policy).parameters()) if separate_critic else 0
    trained = critic + sum(p.numel() for p in model.policy.parameters() if p.requires_grad)
    masters = hardware.master_weights and hardware.dtype != torch.float32
    item = hardware.dtype.itemsize
    work = largest_micro_batch(config, data)
    sharded, mixed = hardware.strategy == "fsdp", hardware.precision == "bf16-mixed"
    # Sharded weights are gathered in bf16, others are copied to bf16 by autocast.
    traced = fake(dtype=torch.bfloat16) if sharded and mixed else model
    peak = traced.peak(
        work.rows,
        accumulates=work.micro_batches > 1,
        exact_kl=getattr(method, "kl_estimator", "") == "exact" and getattr(method, "kl_in", "") == "loss",
        entropy=getattr(method, "entropy_coef", 0) > 0,
        float32_gradients=masters,
        context=partial(training_context, config, traced.policy),
    )
    gradient_bytes = (trained - critic) * (4 if masters else item)
    whole_gradients = gradient_bytes // 2 if traced is not model else gradient_bytes
    shards = hardware.shards
    block_by_block, whole = gathered_bytes(config, model.policy)
    loaded = weight_bytes(config, model)
    overhead = FRAGMENTATION if isinstance(config.adapter, NoAdapter) else FRAGMENTATION_OF_ADAPTERS
    return MemoryEstimate(
        process=process,
        weights=(loaded + critic * item) / shards,
        reference=frozen_copies(config) * loaded * reference_share(config) / shards,
        gradients=(gradient_bytes + critic * item) / shards,
        optimizer=optimizer_bytes(config, model.policy, critic) / shards,
        activations=overhead * max(0, peak - whole_gradients) * (2 if separate_critic else 1),
        # Weights are read on the CPU, and moved to a GPU afterwards.
        loading=0.0 if hardware.device.type == "cuda" else 2 * loaded,
        gathered=block_by_block * (1 + separate_critic + frozen_copies(config)),
        sampling=gathered_with(sampling_bytes(config, data, model), whole),
        scoring=gathered_with(scoring_bytes(config, model, loaded), whole * (1 + frozen_copies(config))),
        available=available,
        parameters=size_of(config.resolved),
        trained=trained,
        tokens=work.tokens,
    )


@contextmanager
def training_context(config: TrainConfig, policy: nn.Module) -> Iterator[None]:
    """Autocast, as Lightning's precision plugin uses it, and gradient checkpointing."""
    with config.trainer.autocast(), gradient_checkpointing(policy, enabled=config.method.gradient_checkpointing):
        yield


def weight_bytes(config: TrainConfig, model: FakeModel) -> float:
    """Bytes of the policy's weights; those of the trunk's linear layers have 4 bits with QLoRA."""
    whole = sum(p.numel() * p.dtype.itemsize for p in {*model.policy.parameters(), *model.policy.buffers()})
    if config.adapter.quantization() is None:
        return whole
    linear = [layer.weight for layer in trunk(model.base).modules() if isinstance(layer, nn.Linear)]
    frozen = [weight for weight in linear if not weight.requires_grad]
    return whole - sum(weight.numel() * (weight.dtype.itemsize - NF4_BYTES) for weight in frozen)


def gathered_bytes(config: TrainConfig, policy: nn.Module) -> tuple[float, float]:
    """Bytes of gathered weights of a sharded model: of a forward and backward pass block by block, and of the whole.

    Weights and gradients outside blocks, and of the block in work; weights of the next one, which is fetched meanwhile.
    """
    hardware = config.trainer
    if hardware.strategy != "fsdp":
        return 0.0, 0.0
    item = 2 if hardware.precision == "bf16-mixed" else hardware.dtype.itemsize
    blocks = [sum(p.numel() for p in block.parameters()) for block in transformer_blocks(policy)]
    total = sum(p.numel() for p in policy.parameters())
    if not hardware.reshard_after_forward:
        return 2.0 * item * total, float(item * total)
    return float(item * (2 * (total - sum(blocks)) + 3 * max(blocks))), float(item * total)


def gathered_with(part: float, whole: float) -> float:
    """The bytes of a part that runs on gathered weights; 0 for a part that does not run."""
    return part + whole if part else 0.0


def frozen_copies(config: TrainConfig) -> int:
    """Models of the policy's size that stay in memory: the reference in the loss, fixed or moving."""
    separate = config.reference is not None or isinstance(config.adapter, NoAdapter)
    return int(config.method.needs_reference() and separate)


def reference_share(config: TrainConfig) -> float:
    """Bytes of a frozen copy, relative to the policy."""
    return 0.5 if config.trainer.reference_precision and config.trainer.dtype == torch.float32 else 1.0


def optimizer_bytes(config: TrainConfig, policy: nn.Module, critic: int = 0) -> float:
    """Bytes of optimizer state; Muon treats the matrices of blocks differently from the rest."""
    lists = [module for module in policy.modules() if isinstance(module, nn.ModuleList)]
    inside = {p for each in lists for p in each.parameters() if p.requires_grad}
    blocks = sum(p.numel() for p in inside)
    rest = critic + sum(p.numel() for p in policy.parameters() if p.requires_grad) - blocks
    in_block, outside = state_bytes(config)
    return blocks * in_block + rest * outside


def state_bytes(config: TrainConfig) -> tuple[float, float]:
    """Bytes of optimizer state per trained parameter of a block and outside of blocks, measured on small matrices."""
    hardware = config.trainer
    dtype = hardware.dtype if isinstance(config.adapter, NoAdapter) else torch.float32
    make = config.make_optimizer or torch.optim.AdamW

    def measured(outside: int) -> float:
        layers = [nn.Linear(128, 64, bias=False, dtype=dtype) for _ in range(1 + outside)]
        # Muon refuses a model without a matrix in a block.
        module = nn.Sequential(nn.ModuleList(layers[:1]), *layers[1:])
        optimizer = make_optimizer(module, make, lr=1e-3, weight_decay=0.0, master_weights=hardware.master_weights)
        sum((layer.weight.float().sum() for layer in layers), torch.zeros(())).backward()
        optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
        return sum(value.numel() * value.element_size() for value in state) / layers[0].weight.numel()

    in_block = measured(0)
    return in_block, measured(1) - in_block


def sampling_bytes(config: TrainConfig, data: DataModule, model: FakeModel) -> float:
    """KV cache of the rows that are decoded together, copies of weights for decoding, and logits."""
    method, count, shape = config.method, config.evaluation.completions, model.config
    if method.head != "causal" or not (method.samples or count):
        return 0.0
    slots_of_training = method.batch_size * getattr(method, "group_size", 1) if method.samples else 0
    slots = min(getattr(config.rollout, "batch_rows", 0), max(slots_of_training, count))
    if not slots:
        return 0.0
    prompts = data.eval_prompts(count).ids if count else ()
    trained = [item.sequences()[0] for item in islice(data.train, 1000)] if method.samples else []
    prompt = max(map(len, (*prompts, *trained)))
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    sharded, mixed = config.trainer.strategy == "fsdp", config.trainer.precision == "bf16-mixed"
    rounded = getattr(config.rollout, "dtype", "") == "bf16" or (mixed and not sharded)
    item = 2 if rounded else config.trainer.dtype.itemsize
    cache = 2 * slots * (prompt + completion_tokens(config)) * shape.num_hidden_layers * heads * width * item
    dtype = torch.bfloat16 if item == 2 else torch.float32
    copied = (
        not sharded
        and is_supported(unwrapped(model.policy), windowed=is_windowed(shape, prompt + completion_tokens(config)))
        and (config.trainer.device.type == "cuda" or supports_packed_weights(dtype))
    )
    copies = size_of(config.resolved) * item if copied else 0
    # Sampling makes float32 weights of the logits, and pads them.
    return cache + copies + 4 * slots * model.width * 4


def scoring_bytes(config: TrainConfig, model: FakeModel, loaded: float) -> float:
    """Log-probabilities of completions under policy and reference, without gradients, in evaluations and of rollouts;
    a reference that is not in the loss is loaded for an evaluation."""
    method, count = config.method, config.evaluation.completions
    if method.head != "causal":
        return 0.0
    positions = max(count * completion_tokens(config), config.micro_batch_tokens if method.samples else 0)
    logits = min(positions * model.width, CHUNK_ELEMENTS[config.trainer.device.type])
    separate = count and (config.reference is not None or isinstance(config.adapter, NoAdapter))
    return 6 * 4 * logits + loaded * bool(separate and (not method.needs_reference() or moving_reference(config)))
