"""Names of metrics that a study compares: refused before the first job if no job can measure them.

Names are open where a run has code of the user, such as a callback; the planner leaves such studies out. Of the other
runs, this module knows the parts of the gold score, the parts of most rewards and the evaluation tasks; other families,
such as the numbers of an environment, are open.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from postrain.config.paths import CONF
from postrain.config.schema import TARGET
from postrain.jobs.study import Study
from postrain.metrics import declarations, declared
from postrain.suggestions import did_you_mean
from postrain.world.gold import CHECKS, is_bundled

REWARD_PARTS: Mapping[str, tuple[str, ...]] = {
    "postrain.rewards.code.Code": ("code", "out_of_limits"),
    "postrain.rewards.environment.NoReward": (),
    "postrain.rewards.judge.Judge": ("judge",),
    "postrain.rewards.reasoning_gym.ReasoningGymScore": ("right",),
    "postrain.rewards.reward_model.OutcomeRewardModel": ("learned",),
    "postrain.rewards.unsupervised.Majority": ("majority", "majority_correct"),
    "postrain.rewards.world.Gold": ("gold", *CHECKS),
}
"""The parts of rewards that do not depend on their settings or rows."""
OF_ALL_RUNS = ("kl",)
"""Names of evaluation tasks that begin metrics without the task too, such as eval/kl/exact."""


def metric_problems(study: Study, jobs: Sequence[Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Messages for the metrics of a study that no job can measure.

    A job is the config of its run, under the name "", or the configs of a pipeline's stages by name.
    """
    named = [("metric", study.metric), ("plot.x", study.plot.x), ("plot.y", study.plot.y)]
    for key, name in [*named, *(("columns", each) for each in study.columns)]:
        problems = [_problem_of_job(name, stages) for stages in jobs] if name is not None else []
        if problems and all(problems):
            yield f"sweep.{key}: no run measures {name}; {problems[0]}"


def _problem_of_job(name: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Why no stage of a job measures the metric, with a remedy; empty if one may. STAGE/NAME is that of one stage."""
    stage, _, rest = name.partition("/")
    if stage in stages:
        return _problem(rest, stages[stage]).replace("did you mean ", f"did you mean {stage}/")
    # Stages without an evaluation, which generate rows, have no metrics to compare.
    problems = [_problem(name, each) for each in stages.values() if "evaluation" in each or "call" in each]
    return max(problems, key=lambda one: one.startswith("did you mean")) if all(problems) and problems else ""


def _problem(name: str, config: Mapping[str, Any]) -> str:
    """Why this run does not measure the metric, with a remedy; empty if it may."""
    if "evaluation" not in config:
        return ""
    tasks = config["evaluation"]["tasks"]
    held_out = name.startswith("eval/") or "method" not in config
    family, _, member = name.removeprefix("eval/").partition("/")
    if family in tasks and held_out:
        return _problem_of_task(name, str(tasks[family][TARGET]), config)
    if "method" not in config:
        return _nearest(family, [*tasks], "the tasks are")
    if family == "greedy" and held_out:
        return "" if config["evaluation"]["greedy"] else "set evaluation.greedy=true"
    if member and family == "reward":
        return _other_member(name, _reward_metrics(config))
    if member and family == "gold" and not held_out:
        return _other_member(name, _gold_metrics(config))
    if held_out and member and not _has_parts(config["data"]):
        if family in _task_options() and family not in OF_ALL_RUNS:
            return f"evaluation.tasks has no {family}; add it, as in evaluation={family}"
        if family not in _families():
            known = [f"eval/{one}/{member}" for one in sorted({*tasks, *_task_options()})]
            return _misspelt(name) or _nearest(name, known, "the metrics of evaluation tasks are")
    return _misspelt(name)


def _problem_of_task(name: str, target: str, config: Mapping[str, Any]) -> str:
    """The same for a metric TASK/METRIC or eval/TASK/METRIC of an existing task."""
    if target in TASK_MEMBERS:
        return _other_member(name, TASK_MEMBERS[target](config))
    task = name.rpartition("/")[0]
    return _misspelt(name, [f"{task}/{one.name.strip('*/')}" for one in declarations() if one.name[0] == "*"])


def _other_member(name: str, members: Collection[str] | None) -> str:
    """The members of a family that resemble one that does not exist; empty if it does, or if the family is open."""
    if members is None or any(name.endswith(f"/{one}") for one in members):
        return ""
    family = name[: name.index("/", len("eval/") if name.startswith("eval/") else 0)]
    return _nearest(name, [f"{family}/{one}" for one in members], "the metrics are")


def _has_parts(data: Mapping[str, Any]) -> bool:
    """Whether held-out rows have parts, whose metrics are logged as eval/PART/METRIC."""
    return bool(data.get("mix") or data.get("replay")) or isinstance(data.get("eval_path"), Mapping)


def _misspelt(name: str, more: Sequence[str] = ()) -> str:
    """The declared names that resemble an undeclared one; empty if the name is declared, or resembles none: then it
    may be a metric of an external benchmark."""
    if declared(name) is not None:
        return ""
    held_out = "eval/" if name.startswith("eval/") else ""
    known = [*(held_out + one.name for one in declarations()), *more]
    return did_you_mean(name, (one for one in known if "*" not in one), cutoff=0.8)


def _nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    return did_you_mean(name, known, f"{otherwise} {', '.join(known) or 'none'}")


def _gold_metrics(config: Mapping[str, Any]) -> Collection[str] | None:
    """The parts of the bundled gold score; None if open. Without gold scores, another metric decides."""
    return (*CHECKS, "total") if is_bundled(config["data"].get("gold")) else None


def _reward_metrics(config: Mapping[str, Any]) -> Collection[str] | None:
    """The members of reward/* and rewards/*; None if they depend on rows."""
    of_methods = {one.name.removeprefix("reward/") for one in declarations() if one.name.startswith("reward/")} - {"*"}
    parts = _parts(config["reward"]) if config.get("reward") else ()
    return None if parts is None else (*parts, *sorted(of_methods), "environment")


TASK_MEMBERS = {
    "postrain.evaluation.completion_metrics.GoldScores": _gold_metrics,
    "postrain.evaluation.completion_metrics.Rewards": _reward_metrics,
}


def _parts(reward: Mapping[str, Any]) -> Collection[str] | None:
    target, function = reward.get(TARGET), str(reward.get("function"))
    if target == "postrain.rewards.base.WeightedSum":
        inner = {name: _parts(part) for name, part in reward["parts"].items()}
        if None in inner.values():
            return None
        return [*inner, *(f"{name}/{one}" for name, own in inner.items() for one in own or ())]
    if target == "postrain.rewards.function.Function":
        return (function.rpartition(".")[2],)
    return REWARD_PARTS.get(str(target))


@cache
def _task_options() -> frozenset[str]:
    return frozenset(file.stem for file in (CONF / "evaluation/task").glob("*.yaml"))


def _families() -> Iterator[str]:
    return (one.name.partition("/")[0] for one in declarations() if not one.name.startswith("*"))
