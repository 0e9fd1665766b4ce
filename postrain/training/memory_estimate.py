"""The estimated memory of a run by part, and how it is printed; training/memory.py computes it."""

from __future__ import annotations

from dataclasses import dataclass, fields

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes by part."""

    process: float
    """Python, torch and the data; on a GPU, the CUDA context."""
    weights: float
    """The policy, its adapter and a separate critic."""
    reference: float
    """A frozen copy of the initial policy, or another reference model."""
    gradients: float
    optimizer: float
    activations: float
    """Tensors of the forward and backward pass of the largest micro-batch."""
    sampling: float
    """KV cache, copies of weights for decoding, and logits."""
    scoring: float
    """Comparing completions with the reference in evaluations."""
    gathered: float
    """With fsdp, weights of other ranks during a forward and backward pass; `sampling` and `scoring` contain theirs."""
    loading: float
    """While weights are read: the weights and the mapped file; not shown, because it rarely is the peak."""
    available: float | None
    """Memory that the run may use, with that of this process; None if unknown."""
    parameters: int
    trained: int
    tokens: int
    """Tokens of the largest micro-batch."""

    @property
    def total(self) -> float:
        """The peak."""
        fixed = self.process + self.weights + self.reference + self.gradients + self.optimizer
        most = max(self.activations + self.gathered, self.sampling, self.scoring)
        return max(fixed + most, self.process + self.loading)

    def render(self) -> str:
        """For the console: one line per part."""
        share = "" if self.available is None else f" of {self.available / GIB:.1f} GiB available"
        notes = {
            "weights": f"{self.parameters:,} parameters",
            "gradients": f"{self.trained:,} trained parameters",
            "activations": f"micro-batch of {self.tokens:,} tokens",
            "sampling": "after activations are freed",
            "scoring": "after activations are freed",
        }
        lines = [f"memory estimate: {self.total / GIB:.2f} GiB{share}"]
        for name, value in self.parts().items():
            lines.append(f"  {name:<12}{value / GIB:6.2f} GiB  {notes.get(name, '')}".rstrip())
        return "\n".join(lines)

    def parts(self) -> dict[str, float]:
        """The parts that are not empty, in bytes."""
        names = [field.name for field in fields(self) if field.name not in HIDDEN]
        return {name: getattr(self, name) for name in names if getattr(self, name)}


COUNTS = ("parameters", "trained", "tokens")
HIDDEN = ("available", "loading", *COUNTS)
