"""The correctness checks of gpu_check.py: a device computes what the CPU computes in float32."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_runs import alternating
from lightning.pytorch import Callback
from torch import Tensor, nn

import postrain as pt
from postrain.hardware.trainer import Hardware

LOGPS, GRADIENT = 5e-4, 1e-3
"""Bounds in float32: largest difference of a log-probability in nats, and relative difference of the gradient."""
BF16_LOGPS, BF16_COSINE = 0.1, 0.98
"""Bounds of bf16 autocast against float32: root mean square in nats, and cosine of the gradients."""


@dataclass
class Result:
    """The outcome of a check."""

    name: str
    status: str
    """passed, failed or skipped."""
    text: str
    numbers: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    traceback: str = ""


def rows_for(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Prompts with two completions each, of different lengths, as random tokens."""
    source = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(2, vocabulary, (count,), generator=source).tolist()

    prompts = [tokens(4 + 9 * index) for index in range(4)]
    return [(prompt, tokens(3 + 5 * number)) for number, prompt in enumerate(2 * prompts)]


def scored(model: nn.Module, rows: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all completion tokens, and the gradient of their sum, on the CPU."""
    model.zero_grad()
    logps = pt.score(model, rows)
    logps.sum().backward()
    gradient = torch.cat([p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None])
    return logps.detach()[logps.mask].cpu(), gradient


def compared(name: str, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Result:
    """Two computations of the same numbers in float32."""
    logps = float((found[0] - expected[0]).abs().max())
    gradient = float((found[1] - expected[1]).norm() / expected[1].norm())
    text = f"log-probabilities differ by {logps:.1e} nats (bound {LOGPS:.0e}), "
    text += f"gradients by {gradient:.1e} (bound {GRADIENT:.0e})"
    status = "passed" if logps <= LOGPS and gradient <= GRADIENT else "failed"
    return Result(name, status, text, {"logps": logps, "gradient": gradient})


def same_as_cpu(name: str, model: nn.Module, rows: Sequence[Any], device: torch.device) -> Result:
    """The device against the CPU."""
    expected = scored(model, rows)
    return compared(name, scored(copy.deepcopy(model).to(device), rows), expected)


def packed_as_separate(name: str, model: nn.Module, rows: Sequence[Any], device: torch.device) -> Result:
    """All rows in one pass against one pass for each."""
    model = copy.deepcopy(model).to(device)
    packed, gradient, logps = scored(model, rows), torch.zeros((), dtype=torch.float64), []
    for row in rows:
        alone = scored(model, [row])
        logps.append(alone[0])
        gradient = gradient + alone[1]
    return compared(name, packed, (torch.cat(logps), gradient))


def bf16_near_float32(name: str, model: nn.Module, rows: Sequence[Any], device: torch.device) -> Result:
    """bf16 autocast against float32."""
    model = copy.deepcopy(model).to(device)
    expected = scored(model, rows)
    with torch.autocast(device.type, torch.bfloat16):
        found = scored(model, rows)
    logps = float((found[0] - expected[0]).square().mean().sqrt())
    cosine = float(torch.nn.functional.cosine_similarity(found[1], expected[1], dim=0))
    text = (
        f"log-probabilities differ by {logps:.3f} nats RMS (bound {BF16_LOGPS}), cosine of the gradients {cosine:.4f} "
    )
    status = "passed" if logps <= BF16_LOGPS and cosine >= BF16_COSINE else "failed"
    return Result(name, status, f"{text}(bound {BF16_COSINE})", {"logps": logps, "cosine": cosine})


def sampled_as_scored(name: str, model: nn.Module, tokenizer: Any, rows: Sequence[Any], device: torch.device) -> Result:
    """Log-probabilities of the sampler against those of a forward pass."""
    model = copy.deepcopy(model).to(device)
    prompts = [prompt for prompt, _ in rows[:4]]
    found = pt.generate(model, prompts, tokenizer=tokenizer, max_new_tokens=12, num_generations=2)
    with torch.no_grad():
        logps = pt.score(model, found)
    sampled = torch.tensor([logp for each in found for logp in each.logps])
    error = float((logps[logps.mask].cpu() - sampled).abs().max())
    text = f"{len(sampled)} sampled tokens, log-probabilities differ by {error:.1e} nats (bound {LOGPS:.0e})"
    return Result(name, "passed" if error <= LOGPS else "failed", text, {"logps": error})


class KillAfter(Callback):
    """Saves a checkpoint after an update, and ends the run in the next one."""

    class Killed(Exception):
        """The end of the run."""

    def __init__(self, update: int, path: Path) -> None:
        self.update, self.path = update, path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.counters.updates == self.update:
            trainer.save_checkpoint(self.path)
        if pl_module.counters.updates > self.update:
            raise self.Killed


def resumed_as_whole(name: str, device: torch.device) -> Result:
    """GRPO of nano, with deterministic kernels."""
    hardware = Hardware(accelerator="gpu" if device.type == "cuda" else "cpu", deterministic=True)
    rows = [{"prompt": f"{index} + {index} ="} for index in range(40)]

    def run(callbacks: Sequence[Callback] = (), resume: Path | None = None) -> Tensor:
        model, tokenizer = pt.load_model("nano", device=device)
        method = pt.GRPO(
            model,
            tokenizer,
            reward=alternating,
            engine=pt.LocalEngine(max_new_tokens=8),
            updates=4,
            batch_size=2,
            group_size=4,
            dynamic_sampling=0,
        )
        trainer = hardware.make_trainer(callbacks, [], path.parent)
        trainer.fit(method, datamodule=pt.DataModule(rows, tokenizer), ckpt_path=resume and str(resume))
        return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.ckpt"
        try:
            whole = run()
            with suppress(KillAfter.Killed):
                run([KillAfter(2, path)])
            resumed = run(resume=path)
        finally:
            torch.use_deterministic_algorithms(False)
    error = float((resumed - whole).abs().max())
    text = f"weights of a resumed run differ by {error:.1e} from those of an uninterrupted one (bound 0)"
    return Result(name, "passed" if error == 0 else "failed", text, {"weights": error})
