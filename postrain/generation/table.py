"""What a generation says of its model, for the console."""

from __future__ import annotations

from rich.table import Table

from postrain.evaluation.intervals import Interval
from postrain.formatting import figure
from postrain.generation.measure import Measured


def table(found: Measured, kept: int, kept_prompts: int, *, scored: bool) -> Table:
    """A line for each number; those that nobody knows are left out. `scored` is whether there was a reward."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_row("prompts", f"{found.prompts}, each {found.samples} times")
    means = {
        "reward": found.reward,
        "best reward of a prompt": found.best,
        "gold score": found.gold,
        "gold score of the best": found.gold_of_best,
    }
    for name, value in means.items():
        if value is not None:
            made.add_row(name, figure(value))
    rates = {"right, greedy": found.greedy, "right (pass@1)": found.sampled, f"pass@{found.samples}": found.solved}
    for name, interval in rates.items():
        if interval is not None:
            made.add_row(name, said(interval))
    made.add_row("came to an end", f"{found.finished:.1%}")
    if found.unscorable and scored:
        made.add_row("unscorable", f"{found.unscorable} prompts")
    if kept:
        made.add_row("kept", f"{kept} rows of {kept_prompts} prompts")
    return made


def said(interval: Interval) -> str:
    """A number with its 95 % interval."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
