"""The tables of old names: of config keys, groups, options, classes, metrics and diagnostic rules (renamed.py)."""

from __future__ import annotations

import re

KEYS = {
    "method.resample": "method.dynamic_sampling",
    "method.sync_every": "method.ref_sync_steps",
    "method.sync_mix": "method.ref_mixup_alpha",
    "method.length_weight": "method.ld_alpha",
    "method.nll_coef": "method.sft_coef",
    "method.ratio_ceiling": "method.loss_options.delta",
    "method.delta": "method.loss_options.delta",
    "method.objective": "method.loss",
    "method.centring_coef": "method.center_rewards_coefficient",
    "method.scale": "method.scale_rewards",
    "method.aggregation": "method.loss_type",
    "method.ratio": "method.loss_options.importance_sampling_level",
    "method.importance_sampling_level": "method.loss_options.importance_sampling_level",
    "method.kl_target": "method.adaptive_kl_target",
    "method.kl_horizon": "method.adaptive_kl_horizon",
    "method.mixture": "method.mixture_coef",
    "data.source.learned": "data.source.train_prompts",
    "data.source.asked": "data.source.eval_prompts",
    "environment.room": "environment.max_observation_tokens",
    "environment.call_seconds": "environment.timeout",
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
    "selection.at_least": "selection.min_reward",
    "selection.principles": "principles",
    "sweep.picture": "sweep.plot",
}
SAVED_KEYS = {"method.clip": "method.clip_low"}
"""Keys in the configs of earlier runs only. The one clip of PPO is its clip_low with clip_high=null, but that of GRPO
has a default of its own: both are to be set."""
SYNONYMS = {
    "teacher": "reference",
    "method.num_generations": "method.group_size",
    **{
        f"method.vllm_importance_sampling_{key}": f"method.rollout_importance_sampling_{key}"
        for key in ("mode", "clip_max", "clip_min")
    },
}
"""Other names of a key that stay."""
VALUES = {
    "method.reference_logps": {
        "cached": ("method.precompute_ref_log_probs", True),
        "fresh": ("method.precompute_ref_log_probs", False),
        "none": ("method.reference_free", True),
    },
    "data.source.kind": {"judgements": ("data.source.kind", "unpaired_preferences")},
}
"""Keys whose values are replaced, each by a key and a value."""
NUMBERS = {"prompts": "prompt_count"}
"""Keys of numbers that are groups now."""
OPTIONS = {
    ("evaluation", "wins"): "win_rate",
    ("data", "world_judgements"): "world_unpaired_preferences",
    ("data", "wordings"): "paraphrases",
    ("sweep", "demonstrations"): "experiments",
}
GROUPS = {"selection": "keep"}
"""Groups, with their old names: a user's conf/ may have the old folder."""
TASK = re.compile(r"\bmeasure(/\w+)?@(evaluation\.)?measures\.\w+(=\w+)?")
"""The old group evaluation/measure in an override or in an entry of a defaults list."""
CLASSES = {
    "postrain.data.steps.StepLayout": "postrain.data.kinds.steps.StepLayout",
    "postrain.data.wordings.Wordings": "postrain.data.sources.Paraphrases",
    "postrain.evaluation.confidence.Calibration": "postrain.evaluation.accuracy.Calibration",
    "postrain.evaluation.completion_metrics.Divergence": "postrain.evaluation.completion_metrics.KLDivergence",
    "postrain.evaluation.divergence.Divergence": "postrain.evaluation.completion_metrics.KLDivergence",
    "postrain.evaluation.forgetting.Forgetting": "postrain.evaluation.likelihood.Forgetting",
    "postrain.evaluation.lengths.Lengths": "postrain.evaluation.completion_metrics.Lengths",
    "postrain.evaluation.preference.PreferenceAccuracy": "postrain.evaluation.likelihood.PreferenceAccuracy",
    "postrain.evaluation.repetitiveness.Repetition": "postrain.evaluation.completion_metrics.Repetition",
    "postrain.evaluation.scores.GoldScores": "postrain.evaluation.completion_metrics.GoldScores",
    "postrain.evaluation.scores.Rewards": "postrain.evaluation.completion_metrics.Rewards",
    "postrain.evaluation.scaling.beam.Beam": "postrain.evaluation.scaling.beam.BeamSearch",
    "postrain.evaluation.scaling.tree.Tree": "postrain.evaluation.scaling.tree.TreeOfThoughts",
    "postrain.evaluation.wins.WinRate": "postrain.evaluation.win_rate.WinRate",
    "postrain.generation.keep.Nothing": "postrain.generation.selection.NoRows",
    "postrain.generation.keep.Preferences": "postrain.generation.selection.PreferencePairs",
    "postrain.generation.keep.Revisions": "postrain.generation.selection.RevisionPairs",
    "postrain.generation.keep.Top": "postrain.generation.selection.TopK",
    "postrain.rewards.countdown.countdown": "postrain.rewards.verified.countdown",
    "postrain.rewards.learned.Learned": "postrain.rewards.reward_model.OutcomeRewardModel",
    "postrain.rewards.learned.Process": "postrain.rewards.reward_model.ProcessRewardModel",
    "postrain.rewards.pairwise.PairwiseFunction": "postrain.rewards.function.PairwiseFunction",
    "postrain.rewards.process.Process": "postrain.rewards.reward_model.ProcessRewardModel",
    "postrain.rewards.self_judge.SelfJudge": "postrain.rewards.judge.SelfJudge",
    "postrain.rewards.tasks.TaskScore": "postrain.rewards.reasoning_gym.ReasoningGymScore",
    "postrain.rollout.turns.SingleTurn": "postrain.rollout.environment.SingleTurn",
    "postrain.rewards.weighted.WeightedSum": "postrain.rewards.base.WeightedSum",
}
"""Paths of classes and functions."""
ARGUMENTS = {
    "postrain.environments.facts_lookup.FactsLookup": {"call_seconds": "timeout"},
    "postrain.environments.openenv.OpenEnvEnvironment": {"reply_seconds": "timeout"},
    "postrain.environments.python_tool.PythonTool": {"call_seconds": "timeout", "seconds": "program_timeout"},
    "postrain.environments.verifiers.VerifiersEnvironment": {"reply_seconds": "timeout"},
    "postrain.evaluation.harness.Harness": {
        "chat": "apply_chat_template",
        "examples": "num_fewshot",
        "folder": "include_path",
    },
    **{
        f"postrain.evaluation.scaling.{task}": {"answers": "answer_type"}
        for task in (
            "beam.BeamSearch",
            "best_of_n.BestOfN",
            "cot.ChainOfThought",
            "self_consistency.SelfConsistency",
            "tree.TreeOfThoughts",
        )
    },
    "postrain.rewards.code.Code": {"seconds": "timeout"},
    "postrain.rewards.function.Function": {"batch": "batch_size"},
    "postrain.rewards.judge.SelfJudge": {"batch_tokens": "micro_batch_tokens"},
    "postrain.rewards.reward_model.OutcomeRewardModel": {"batch_tokens": "micro_batch_tokens"},
    "postrain.rewards.reward_model.ProcessRewardModel": {
        "batch_tokens": "micro_batch_tokens",
        "split": "step_separator",
    },
    "postrain.rewards.rubric.LocalRubric": {"batch_tokens": "micro_batch_tokens"},
    "postrain.training.loggers.Wandb": {"timeout_seconds": "timeout"},
}
"""Arguments by class: their nodes are at any depth, as in reward.parts, and a user's class may have an argument of the
old name."""
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
    "perf/peak_memory_gb": "perf/peak_memory_gib",
    "perf/peak_gpu_gb": "perf/peak_gpu_gib",
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
