"""Old names of config keys, options and metrics: they work for one version and print their new name.

Applied to command lines, users' YAML, studies and the files of earlier runs. Python arguments have no aliases.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

UNTIL = "0.4"
"""The first version that refuses the old names."""

KEYS = {
    "method.resample": "method.dynamic_sampling",
    "method.sync_every": "method.ref_sync_steps",
    "method.sync_mix": "method.ref_mixup_alpha",
    "method.length_weight": "method.ld_alpha",
    "method.nll_coef": "method.sft_coef",
    "method.ratio_ceiling": "method.delta",
    "method.centring_coef": "method.center_rewards_coefficient",
    "method.scale": "method.scale_rewards",
    "method.aggregation": "method.loss_type",
    "method.ratio": "method.importance_sampling_level",
    "data.source.learned": "data.source.train_prompts",
    "data.source.asked": "data.source.eval_prompts",
    "environment.room": "environment.max_observation_tokens",
    "method.mask_truncated": "method.mask_truncated_completions",
    "evaluation.measures.wins": "evaluation.tasks.win_rate",
    "evaluation.measures": "evaluation.tasks",
    **{
        f"evaluation.tasks.{task}.right": f"evaluation.tasks.{task}.grader"
        for task in ("best_of_n", "self_consistency", "cot", "beam", "tree")
    },
    "evaluation.shown": "evaluation.logged_samples",
    "shown": "logged_samples",
    "keep": "selection",
    "part": "split",
    "sweep.picture": "sweep.plot",
}
SYNONYMS = {"method.num_generations": "method.group_size"}
"""Other names of a key that stay."""
VALUES = {
    "method.reference_logps": {
        "cached": ("method.precompute_ref_log_probs", True),
        "fresh": ("method.precompute_ref_log_probs", False),
        "none": ("method.reference_free", True),
    },
    "data.source.kind": {"judgements": ("data.source.kind", "unpaired_preferences")},
}
"""Keys that are replaced by another one for each of their values."""
OPTIONS = {
    ("evaluation", "wins"): "win_rate",
    ("data", "world_judgements"): "world_unpaired_preferences",
    ("data", "wordings"): "paraphrases",
    ("sweep", "demonstrations"): "experiments",
}
METRICS = {
    "group/all_equal": "group/frac_reward_zero_std",
    "group/useful": "group/with_gradient",
    "group/prompts_drawn": "group/prompts_sampled",
    "kl/step": "kl/old_policy",
    "completion/left_out": "completion/masked",
    "undecided": "tie_rate",
    "right_share": "positive_step_fraction",
    "win/mixture": "win_rate/mixture",
    "wins/win_rate": "win_rate/win_rate",
}
METRIC_FAMILIES = {"logp_change/": "log_ratio/"}
"""Beginnings of metric names."""
RULES = {
    "kl_runs_away": "kl_blow_up",
    "reward_leaves_gold": "reward_overoptimization",
    "groups_agree": "zero_variance_groups",
}
"""Diagnostic rules, as the run folders of earlier versions name them."""
TOKEN_USES = {"read": "context", "learned": "loss", "right": "positive_step", "wrong": "negative_step"}
"""Token uses in the loss masks of a manifest."""
STUDY = {"picture": "plot"}
"""Keys of a study."""


@cache
def announce(old: str, new: str) -> None:
    """One line on stderr, once in a process."""
    print(f"note: {old} is now {new}; the old name works until version {UNTIL}", file=sys.stderr)


def metric(name: str) -> str:
    """The present name of a logged metric, for training or held-out data."""
    held_out = "eval/" if name.startswith("eval/") else ""
    bare = name.removeprefix(held_out)
    for old, new in METRIC_FAMILIES.items():
        if bare.startswith(old):
            return held_out + new + bare.removeprefix(old)
    return held_out + METRICS.get(bare, bare)


def metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of metrics, such as a line of metrics.jsonl, under their present names."""
    return {metric(name): value for name, value in record.items()}


def result(found: Mapping[str, Any]) -> dict[str, Any]:
    """A result.json under the present names of its metrics; may be damaged."""
    known = dict(found)
    for part in ("changes", "values"):
        if isinstance(known.get(part), Mapping):
            known[part] = metrics(known[part])
    if isinstance(known.get("metric"), str):
        known["metric"] = metric(known["metric"])
    if isinstance(known.get("headline"), list):
        known["headline"] = [metric(name) if isinstance(name, str) else name for name in known["headline"]]
    return known


def key(path: str) -> str:
    """The present path of a config key, at any depth below a renamed one."""
    for old, new in {**KEYS, **SYNONYMS}.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return path


def override(token: str) -> str:
    """An override of the command line under its present name; what is not `KEY=VALUE` stays as it is."""
    token = token.replace("evaluation/measure@evaluation.measures.", "evaluation/task@evaluation.tasks.")
    head, equals, text = token.partition("=")
    path = head.lstrip("+~")
    sign = head[: len(head) - len(path)]
    stage = ""
    if path.startswith("stage.") and path.count(".") >= 2:
        stage = ".".join(path.split(".")[:2]) + "."
    elif path.startswith("sweep.grid."):
        stage = "sweep.grid."
    bare = path.removeprefix(stage)
    if replaced := VALUES.get(bare, {}).get(text.strip("'\"")):
        now, value = replaced
        announce(f"{bare}={text}", f"{now}={str(value).lower()}")
        return f"{sign}{stage}{now}={str(value).lower()}"
    now = key(bare)
    if now != bare and bare not in SYNONYMS:
        announce(bare, now)
    option = OPTIONS.get((now, text), text)
    if option != text:
        announce(f"{now}={text}", f"{now}={option}")
    return f"{sign}{stage}{now}{equals}{option}"


def overrides(tokens: Sequence[str]) -> list[str]:
    """Overrides under their present names."""
    return [override(token) for token in tokens]


def config(plain: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """A config of plain containers under its present keys; `quiet` for one that an earlier version has saved."""
    found = {str(name): dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}
    for old, new in {**KEYS, **SYNONYMS}.items():
        if _has(found, old.split(".")):
            _set(found, new.split("."), _pop(found, old.split(".")))
            if not quiet and old not in SYNONYMS:
                announce(old, new)
    for old, replacements in VALUES.items():
        text = _get(found, old.split("."))
        if isinstance(text, str) and text in replacements:
            _pop(found, old.split("."))
            new, value = replacements[text]
            _set(found, new.split("."), value)
            if not quiet:
                announce(f"{old}={text}", f"{new}={str(value).lower()}")
    return found


def study(node: Mapping[str, Any]) -> dict[str, Any]:
    """A study, as its YAML or an earlier session's sweep.yaml has it, under present names."""
    found = {STUDY.get(name, name): value for name, value in node.items()}
    for name in ("grid", "search"):
        if isinstance(found.get(name), Mapping):
            found[name] = {key(str(path)): value for path, value in found[name].items()}
    if isinstance(found.get("metric"), str):
        found["metric"] = metric(found["metric"])
    if isinstance(found.get("columns"), list | tuple):
        found["columns"] = [metric(one) if isinstance(one, str) else one for one in found["columns"]]
    if isinstance(found.get("plot"), Mapping):
        found["plot"] = {axis: metric(one) if isinstance(one, str) else one for axis, one in found["plot"].items()}
    return found


def _has(node: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _get(node: Any, path: Sequence[str]) -> Any:
    """The value at a path; None where there is none."""
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _pop(node: dict[str, Any], path: Sequence[str]) -> Any:
    for part in path[:-1]:
        node[part] = dict(node[part])
        node = node[part]
    return node.pop(path[-1])


def _set(node: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a value where nothing stands; what is given under the present name has the last word."""
    for part in path[:-1]:
        node[part] = dict(node.get(part) or {})
        node = node[part]
    there = node.get(path[-1])
    if isinstance(there, Mapping) and isinstance(value, Mapping):
        node[path[-1]] = {**value, **there}
    else:
        node.setdefault(path[-1], value)
