"""Measures TRL: a few updates of one method on tokenised rows. Run by against_trl.py.

TRL's defaults, but without gradient checkpointing, evaluation and saving, and in the precision of the other side. The
trainers are those of TRL 1.16 (ORPO and online DPO from its experimental package), except PPO, Nash-MD and PRM: the
experimental trainers of 1.12, the last release with them. TRL is imported inside functions, as the releases differ and
postrain's environment does not have it. The DPO, KTO and ORPO trainers accept text only, so their tokenisation is
overridden to pass the ids through.

`--best` chooses TRL's fastest settings: batches of rows of similar length (more evenly than `group_by_length` does with
so few rows), reference log-probs computed before training, and denormal numbers flushed to zero.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from measure import Stopwatch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainerCallback,
)
from vowel_reward import vowels


class StopwatchCallback(TrainerCallback):
    """Times the updates of TRL's trainers."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.stopwatch.start()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.stopwatch.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.stopwatch.stop()
        self.stopwatch.start()  # PPOTrainer does not call on_step_begin: a step begins at the end of the previous one


def common(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """Training arguments of every method."""
    return {
        "output_dir": scratch,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": 1e-5,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": args.precision == "bf16-mixed",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        **({"train_sampling_strategy": "sequential"} if args.best else {}),
    }


def sft(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl = import_module("trl")
    config = trl.SFTConfig(**common(args, scratch), max_steps=args.updates, max_length=None)
    return trl.SFTTrainer(causal(args), config, **parts(args, rows, watch))


def reward(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl = import_module("trl")
    config = trl.RewardConfig(**common(args, scratch), max_steps=args.updates, max_length=None)
    return trl.RewardTrainer(scalar(args.reward_model), config, **parts(args, rows, watch))


def dpo(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl = import_module("trl")

    class DPOOnIds(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    cached = {"precompute_ref_log_probs": args.best}
    config = trl.DPOConfig(**common(args, scratch), **cached, max_steps=args.updates, max_length=None)
    return DPOOnIds(causal(args), args=config, **parts(args, [split_pair(row) for row in rows], watch))


def kto(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl = import_module("trl")

    class KTOOnIds(trl.KTOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset.map(rotate_completions, batched=True, batch_size=args.batch_size)

    cached = {"precompute_ref_log_probs": args.best}
    config = trl.KTOConfig(**common(args, scratch), **cached, max_steps=args.updates, max_length=None)
    return KTOOnIds(causal(args), args=config, **parts(args, [split_unpaired_preference(row) for row in rows], watch))


def orpo(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl_orpo = import_module("trl.experimental.orpo")

    class ORPOOnIds(trl_orpo.ORPOTrainer):
        def tokenize_row(self, feature: dict[str, Any], *_: Any) -> dict[str, Any]:
            return feature

    config = trl_orpo.ORPOConfig(**common(args, scratch), max_steps=args.updates)
    return ORPOOnIds(causal(args), args=config, **parts(args, [labelled_pair(row) for row in rows], watch))


def ppo(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl_ppo = import_module("trl.experimental.ppo")  # gone from later releases
    config = trl_ppo.PPOConfig(
        **common(args, scratch),
        total_episodes=args.updates * args.batch_size,
        response_length=args.new_tokens,
        num_ppo_epochs=args.epochs,
        num_mini_batches=1,
        num_sample_generations=0,
        temperature=1.0,
        local_rollout_forward_batch_size=args.batch_size,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left", trust_remote_code=False)
    policy, reference = (causal(args) for _ in range(2))
    data = Dataset.from_list(rows)
    return trl_ppo.PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=scalar(args.reward_model),
        value_model=scalar(args.reward_model),
        train_dataset=data,
        eval_dataset=data.select(range(args.batch_size)),
        callbacks=[watch],
    )


def prm(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl_prm = import_module("trl.experimental.prm")  # gone from later releases
    config = trl_prm.PRMConfig(**common(args, scratch), max_steps=args.updates, max_length=None)
    model = AutoModelForTokenClassification.from_pretrained(
        args.model, num_labels=2, dtype="float32", trust_remote_code=False
    )
    return trl_prm.PRMTrainer(model, config, **parts(args, rows, watch))


def online_dpo(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl_online = import_module("trl.experimental.online_dpo")
    config = trl_online.OnlineDPOConfig(**sampling_settings(args, scratch, "max_new_tokens"))
    return trl_online.OnlineDPOTrainer(causal(args), reward_funcs=vowels, args=config, **parts(args, rows, watch))


def nash_md(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl_nash = import_module("trl.experimental.nash_md")  # gone from later releases
    config = trl_nash.NashMDConfig(**sampling_settings(args, scratch, "max_new_tokens"))
    reference, rewards = causal(args), scalar(args.reward_model)
    return trl_nash.NashMDTrainer(causal(args), reference, rewards, args=config, **parts(args, rows, watch))


def sampling_settings(args: argparse.Namespace, scratch: str, limit: str = "max_completion_length") -> dict[str, Any]:
    """Common settings of methods that sample; all completions have the maximum length, whose name is `limit`."""
    sampling = {limit: args.new_tokens, "generation_kwargs": {"min_new_tokens": args.new_tokens}}
    return common(args, scratch) | sampling | {"max_steps": args.updates}


def grpo(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl = import_module("trl")
    config = trl.GRPOConfig(**group_settings(args, scratch))
    return trl.GRPOTrainer(causal(args), vowels, args=config, **parts(args, rows, watch))


def rloo(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    trl = import_module("trl")
    config = trl.RLOOConfig(**group_settings(args, scratch))
    return trl.RLOOTrainer(causal(args), vowels, args=config, **parts(args, rows, watch))


def distill(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback, scratch: str) -> Any:
    """On-policy, reverse KL (both are TRL's defaults); the teacher is a second copy of the model."""
    trl = import_module("trl")
    config = trl.DistillationConfig(**sampling_settings(args, scratch))
    return trl.DistillationTrainer(causal(args), causal(args), args=config, **parts(args, rows, watch))


def group_settings(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """Common settings of GRPO and RLOO. Batch sizes count completions."""
    batch = {"per_device_train_batch_size": args.batch_size * args.group_size, "num_generations": args.group_size}
    return sampling_settings(args, scratch) | batch


def grouped_by_length(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The rows in batches of similar length, in random order; prompts as text stay as they are."""

    def length(row: dict[str, Any]) -> int:
        return max((len(value) for name, value in row.items() if name.endswith("ids")), default=0)

    ordered = sorted(rows, key=length)
    batches = [ordered[start : start + size] for start in range(0, len(rows), size)]
    random.Random(0).shuffle(batches)
    return [row for batch in batches for row in batch]


def split_pair(row: dict[str, Any]) -> dict[str, Any]:
    """A pair in DPOTrainer's format: the prompt is a separate field."""
    cut = row["prompt_length"]
    answers = {name: row[name][cut:] for name in ("chosen_ids", "rejected_ids")}
    return {"prompt_ids": row["chosen_ids"][:cut], **answers}


def split_unpaired_preference(row: dict[str, Any]) -> dict[str, Any]:
    """An unpaired preference in KTOTrainer's format."""
    ids, cut = row["input_ids"], row["prompt_length"]
    return {"prompt_ids": ids[:cut], "completion_ids": ids[cut:], "label": row["label"]}


def rotate_completions(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Pairs each prompt with the completion of the previous row, as KTOTrainer does to estimate the KL."""
    completions = batch["completion_ids"]
    return {**batch, "KL_completion_ids": completions[-1:] + completions[:-1]}


def labelled_pair(row: dict[str, Any]) -> dict[str, Any]:
    """A pair in ORPOTrainer's format: prompt and completion, with labels of -100 for the prompt."""
    cut, found = row["prompt_length"], {}
    for name in ("chosen", "rejected"):
        ids = row[f"{name}_ids"]
        found[f"{name}_input_ids"] = ids
        found[f"{name}_attention_mask"] = [1] * len(ids)
        found[f"{name}_labels"] = [-100] * cut + ids[cut:]
    prompt = row["chosen_ids"][:cut]
    return {**found, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * cut}


def parts(args: argparse.Namespace, rows: list[dict[str, Any]], watch: StopwatchCallback) -> dict[str, Any]:
    """Arguments of a trainer besides its model and its config."""
    return {
        "train_dataset": Dataset.from_list(rows),
        "processing_class": AutoTokenizer.from_pretrained(args.model, trust_remote_code=False),
        "callbacks": [watch],
    }


def causal(args: argparse.Namespace) -> Any:
    """The policy."""
    return AutoModelForCausalLM.from_pretrained(args.model, dtype="float32", trust_remote_code=False)


def scalar(path: str) -> Any:
    """A model with a scalar head."""
    return AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype="float32", trust_remote_code=False
    )


METHODS = {"sft": sft, "reward": reward, "ppo": ppo, "dpo": dpo, "kto": kto, "orpo": orpo, "grpo": grpo, "rloo": rloo}
METHODS |= {"distill": distill, "online_dpo": online_dpo, "nash_md": nash_md, "prm": prm}


def main() -> None:
    """Run the updates and write the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, required=True)
    for name in ("--model", "--reward-model", "--rows", "--out", "--precision"):
        parser.add_argument(name, required=True)
    for name in ("--batch-size", "--updates", "--new-tokens", "--group-size", "--epochs", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--best", action="store_true")
    args = parser.parse_args()
    rows = [json.loads(line) for line in Path(args.rows).read_text(encoding="utf-8").splitlines()]
    torch.set_num_threads(args.threads)
    if args.best:
        torch.set_flush_denormal(True)
        rows = grouped_by_length(rows, args.batch_size)
    watch = StopwatchCallback()
    with tempfile.TemporaryDirectory() as scratch:
        METHODS[args.method](args, rows, watch, scratch).train()
    watch.stopwatch.write(Path(args.out))


if __name__ == "__main__":
    main()
