"""A method of your own, from Python: SFT on the tokens that the model finds hard.

A method is a pure loss and a class whose annotated fields are its settings. Run it with
    python examples/custom_method.py
To use it from the command line as `python train.py method=hard_sft`, put the class into a module and its name into a
YAML (docs/tutorials/my_method.md).
"""

import sys
from pathlib import Path
from typing import ClassVar

from torch import Tensor

import postrain as pt
from postrain.methods.learning_rates import LearningRates
from postrain.models.scoring import score
from postrain.types import Fraction, LossSum, Rows


def hard_token_nll(logps_BT: Tensor, mask_BT: Tensor, threshold: float) -> Tensor:
    """−Σ log p over the tokens of the mask with p < threshold, a scalar."""
    return -(logps_BT * (mask_BT & (logps_BT.detach().exp() < threshold))).sum()


class HardSFT(pt.Method):
    """Minimises −log p of the tokens below a probability threshold, divided by the number of all answer tokens."""

    kind: ClassVar[str] = "Demonstration"
    headline: ClassVar[tuple[str, str, str]] = ("loss", "grad_norm", "eval/loss")
    expected_change: ClassVar[tuple[str, float]] = ("eval/loss", -0.1)

    rates: ClassVar[LearningRates] = LearningRates(base=2e-5, nano=1e-3)
    threshold: Fraction = 0.5
    """Tokens with a higher probability have no gradient."""

    def loss_sum(self, batch: Rows) -> LossSum:
        scores = score(self.policy, batch)
        return LossSum(hard_token_nll(scores.logps_BT, scores.mask_BT, self.threshold), {})


def rows() -> list[dict[str, str]]:
    """Demonstrations: a request and its answer."""
    return [{"prompt": f"What comes after {n}?", "completion": f"After {n} comes {n + 1}."} for n in range(200)]


def main(output: str = "runs", updates: int = 30) -> Path:
    """Trains and returns the run folder."""
    model, tokenizer = pt.load_model("nano")
    run = HardSFT(model, tokenizer, data=rows(), updates=updates, batch_size=16).fit(output=output)
    before, after = run.result["changes"]["eval/loss"]
    print(f"held-out loss {before:.3f} → {after:.3f}; report: {run.path / 'report.html'}")
    return run.path


if __name__ == "__main__":
    main(updates=int(sys.argv[1]) if len(sys.argv) > 1 else 30)
