"""The verdict on a run in three sentences: did it learn, can the numbers be trusted, what to do next.

The page and the console print the same one. A run has learned where the 95 % interval of the change in its main metric
excludes 0. The second sentence always names the number of seeds: one seed does not show the spread between seeds.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from postrain.config import old_names
from postrain.config.override_text import key_of, resume_command
from postrain.config.paths import command, shell_line
from postrain.data.repetition import collapsed
from postrain.formatting import figure, short
from postrain.jsonl import number
from postrain.report.changes import Change, changes, signed
from postrain.report.folders import Run
from postrain.report.values import mapping, text_of
from postrain.runs.sessions import with_changes
from postrain.training.diagnostic_checks import LARGE_KL

KL = "eval/kl/exact"
FEW_ROWS, FEW_ITEMS, MANY_PASSES = 100, 30, 10.0
WARNING_RULES = (
    "saturated_margins", "accuracy_is_not_quality", "kl_blow_up", "reward_grows_with_length",
    "reward_grows_with_repetition", "reward_overoptimization", "samples_become_unlikely", "zero_variance_groups",
)  # fmt: skip
"""Diagnostics that question a result; the others explain a curve or are covered by a check of their own."""
DEFAULT_SEEDS = "0,1,2"


@dataclass(frozen=True)
class Verdict:
    """Three sentences, and the command of the third."""

    learned: str
    trust: str
    next: str
    command: str

    @property
    def lines(self) -> tuple[str, str, str]:
        """The sentences as the console prints them."""
        return self.learned, self.trust, f"{self.next} {self.command}"


def verdict(run: Run) -> Verdict:
    """The verdict on a run, finished or not."""
    found = changes(run)
    main, gold = _main(run, found), next((one for one in found if one.name == "gold/total"), None)
    warnings = _warnings(run, found, main)
    return Verdict(_learned(run, main, gold), _trust(run, warnings, main), *_next(run, main, warnings))


def _main(run: Run, found: Sequence[Change]) -> Change | None:
    """The held-out reward if the method has one, else the deciding metric of the method."""
    known = {one.name: one for one in found}
    wanted = ("eval/reward/total", text_of(run.result.get("metric")), "gold/total")
    directed = [one for one in found if one.better is not None]
    return next((known[name] for name in wanted if name in known), directed[0] if directed else None)


def _learned(run: Run, main: Change | None, gold: Change | None) -> str:
    if main is None:
        return (
            f"Whether it learned is unknown: no held-out metric was measured before and after training{_so_far(run)}."
        )
    word = {
        (True, True): "It learned",
        (True, False): "It got worse",
        (False, True): "Better, but within the error" if main.gap else "It improved",
        (False, False): "Worse, but within the error" if main.gap else "It did not improve",
    }[main.decided, bool(main.better)]
    word = "Unchanged" if main.after == main.before else word
    text = f"{word}: {_numbers(main)}"
    if gold is not None and gold is not main:
        against = gold.decided and bool(gold.better) != bool(main.better)
        text += f"; {'but ' if against else ''}{_numbers(gold)}"
    return f"{text}{_so_far(run)}."


def _so_far(run: Run) -> str:
    return "" if run.state == "done" else f" (as of update {run.updates})"


def _numbers(one: Change) -> str:
    ends = f"{short(one.name)} {figure(one.before)} → {figure(one.after)}"
    if one.gap is None:
        return f"{ends} ({one.why})"
    undecided = "" if one.decided else "undecided: "
    return f"{ends} ({undecided}change {signed(one.after - one.before)}, 95 % interval {one.interval}, n={one.gap.n})"


def _warnings(run: Run, found: Sequence[Change], main: Change | None) -> list[str]:
    """Reasons to doubt the numbers, the most serious first."""
    ends = [{name: run.metrics[name][1][end] for name in run.metrics} for end in (0, -1)]
    made = []
    if other := text_of(run.manifest.get("stand_in_for")):
        made.append(f"{run.model} stood in for {other}")
    if collapse := collapsed(*ends):
        made.append(f"the completions collapsed ({collapse})")
    if (kl := run.after(KL)) is not None and kl > LARGE_KL and _kl_matters(run):
        made.append(f"KL(policy‖reference) is {figure(kl)} nats/token")
    made += [
        f"diagnostic “{text_of(one.get('title'))}”"
        for one in run.diagnostics
        if old_names.RULES.get(rule := text_of(one.get("rule")), rule) in WARNING_RULES
    ]
    rows = number(run.data.get("rows_train"))
    if rows is not None and rows < FEW_ROWS:
        made.append(f"only {rows:.0f} training rows")
    if (passes := _passes(run, rows)) > MANY_PASSES:
        made.append(f"{passes:.0f} passes over the training rows")
    if main is not None and main.gap is not None and main.gap.n < FEW_ITEMS:
        made.append(f"only {main.gap.n} held-out items")
    if stopped := text_of(run.result.get("stopped")):
        made.append(f"training stopped early ({stopped})")
    return made


def _kl_matters(run: Run) -> bool:
    """Whether a large KL is a warning sign. Supervised fine-tuning is meant to leave the reference policy."""
    return any(name in run.metrics for name in ("reward/total", "margin", "eval/win_rate"))


def _passes(run: Run, rows: float | None) -> float:
    episodes = run.after("episodes")
    # Online methods count completions, several of a prompt.
    return episodes / rows if rows and episodes and not run.metrics.get("reward/total") else 0.0


def _trust(run: Run, warnings: Sequence[str], main: Change | None) -> str:
    seed = mapping(run.manifest.get("seeds")).get("seed")
    one = f"one seed ({seed})" if isinstance(seed, int) else "one seed"
    one = f"{short(main.name)} has no interval, and {one}" if main is not None and main.gap is None else one
    if warnings:
        return f"Doubtful: {'; '.join(warnings)}; {one}, so the spread between seeds is not known."
    rows, kl = number(run.data.get("rows_train")), run.after(KL)
    clean = ["no collapse"] if run.samples else []
    clean += [f"KL(policy‖reference) {figure(kl)} nats/token"] if kl is not None and _kl_matters(run) else []
    clean += [f"{rows:.0f} training rows"] if rows else []
    signs = f"No warning sign ({', '.join(clean)})" if clean else "No warning sign"
    return f"{signs}, but {one}: the spread between seeds is not known."


def _next(run: Run, main: Change | None, warnings: Sequence[str]) -> tuple[str, str]:
    """The next step and its command."""
    resume = resume_command("train", run.path)
    if run.state == "running":
        return "Next: keep its report current:", f"{command('report')} {shlex.quote(str(run.path))} --watch"
    if run.state == "interrupted":
        return "Next: resume it:", resume
    if run.state == "failed":
        return "Next: fix the cause, then resume it:", resume
    overrides = _overrides(run)
    if overrides is None:
        return "Next: read its samples, or talk to it:", f"{command('chat')} {shlex.quote(str(run.path))}"
    rate = number(mapping(run.settings.get("method")).get("learning_rate"))
    if run.manifest.get("stand_in_for"):
        return "Next: run it again where the model can be downloaded:", _train(overrides)
    if any("collapsed" in one or "KL(" in one for one in warnings) and rate:
        return "Next: lower the learning rate:", _train(overrides, {"method.learning_rate": f"{rate / 3:.2g}"})
    if main is not None and main.name == "eval/reward/total" and main.before == main.after == 0:
        return "Next: another reward, or an easier task, that tells completions apart:", _train(
            overrides, {"reward": "NAME"}
        )
    if main is None or not main.better or (main.gap is not None and not main.decided):
        if main is not None and main.better:
            epochs = number(mapping(run.settings.get("method")).get("num_train_epochs"))
            key, length = ("num_train_epochs", epochs) if epochs else ("updates", max(1, run.updates))
            return "Next: train longer:", _train(overrides, {f"method.{key}": f"{2 * length:g}"})
        if rate:
            rates = ",".join(f"{factor * rate:.2g}" for factor in (1 / 3, 1, 3))
            return "Next: compare learning rates:", _train(overrides, {"method.learning_rate": rates}, sweep=True)
    return "Next: repeat it with three seeds:", _train(overrides, {"seed": DEFAULT_SEEDS}, sweep=True)


def _overrides(run: Run) -> list[str] | None:
    """The overrides of its command line; None for a run that it alone cannot repeat (from Python, other settings)."""
    if with_changes(run.manifest):
        return None
    try:
        arguments = shlex.split(text_of(run.manifest.get("reproduce")))
    except ValueError:
        return None
    for start in (command("train").split(), ["python", "train.py"], ["postrain", "train"]):
        if arguments[: len(start)] == start:
            rest = arguments[len(start) :]
            return None if any(one.startswith(("resume=", "-", "pipeline=")) for one in rest) else rest
    return None


def _train(overrides: Sequence[str], changed: dict[str, str] | None = None, *, sweep: bool = False) -> str:
    """The command line with some keys changed."""
    changed = changed or {}
    kept = [one for one in overrides if key_of(one) not in changed]
    flags = ["-m"] if sweep else []
    return shell_line([*command("train").split(), *flags, *kept, *(f"{key}={value}" for key, value in changed.items())])
