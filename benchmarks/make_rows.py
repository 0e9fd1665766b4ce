"""Makes the rows of a benchmark: as text for postrain and as the same token ids for TRL. Run by against_trl.py.

Prompts of 16 to 64 tokens and completions of 16 to 128 are cut from the bundled world's running text. The reward model
is the policy with a new scalar head.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from omegaconf import OmegaConf

from postrain.config.tree import instantiate
from postrain.data.chat import Template
from postrain.data.conversation import Message
from postrain.data.kinds.steps import StepLayout
from postrain.models.loading import load_scalar, load_tokenizer
from postrain.world.rows import rows as world_rows

CONF = Path(__file__).resolve().parents[1] / "conf" / "model"
PROMPT, COMPLETION, STEP = (16, 64), (16, 128), (8, 24)

Row = tuple[dict[str, Any], dict[str, Any]]
"""A row as text for postrain, and as ids for TRL."""


def main() -> None:
    """Write the rows, the reward model, and rows.json with their paths and token counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("--batch-size", "--ppo-batch-size", "--group-prompts", "--group-size", "--updates", "--new-tokens"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    resolved = instantiate(OmegaConf.to_container(OmegaConf.load(CONF / f"{args.model}.yaml"))).resolve()
    tokenizer = load_tokenizer(resolved)
    reward_model = args.folder / "reward_model"
    load_scalar(resolved, dtype=torch.float32).save_pretrained(reward_model)
    tokenizer.save_pretrained(reward_model)
    maker = RowMaker(Template(tokenizer, mode="plain"))
    found: dict[str, Any] = {"model": str(resolved.directory), "reward_model": str(reward_model)}
    found |= {"texts": {}, "ids": {}, "tokens": {}}
    for method, make_row in maker.builders().items():
        sizes: dict[str, int] = {"ppo": args.ppo_batch_size, "distill": args.group_prompts * args.group_size}
        sizes |= {"grpo": args.group_prompts, "rloo": args.group_prompts}
        batch = sizes.get(method, args.batch_size)
        made = [make_row() for _ in range(batch * args.updates)]
        found["texts"][method] = write(args.folder / f"{method}.jsonl", [text for text, _ in made])
        found["ids"][method] = write(args.folder / f"{method}.ids.jsonl", [ids for _, ids in made])
        # A pair counts its prompt twice on both sides, as TRL computes it twice.
        offline = sum(len(value) for _, ids in made for name, value in ids.items() if name.endswith("ids"))
        sampled = {
            "ppo": 1,
            "distill": 1,
            "online_dpo": 2,
            "nash_md": 2,
            "grpo": args.group_size,
            "rloo": args.group_size,
        }.get(method)
        found["tokens"][method] = batch * sampled * args.new_tokens if sampled else offline / args.updates
    (args.folder / "rows.json").write_text(json.dumps(found), encoding="utf-8")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write the rows as JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class RowMaker:
    """Cuts rows from running text, as (text, ids). The ids are of prompt and completion, with the prompt's length."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.random = random.Random(0)
        self.label = False
        text = " ".join(row["text"] for row in world_rows("text", task="mixed", count=2000, seed=0, split="train"))
        self.ids = template.encode_text(text)

    def builders(self) -> dict[str, Callable[[], Row]]:
        """The builder of each method's rows. Their order matters, as all draw from one generator."""
        return {
            "sft": self.demonstration,
            "reward": self.preference,
            "ppo": self.prompt,
            "dpo": self.preference,
            "orpo": self.preference,
            "kto": self.unpaired_preference,
            "grpo": self.question,
            "rloo": self.question,
            "distill": self.question,
            "online_dpo": self.question,
            "nash_md": self.question,
            "prm": self.solution,
        }

    def cut(self, shortest: int, longest: int) -> str:
        """Text of `shortest` to `longest` tokens."""
        length = self.random.randint(shortest, longest)
        start = self.random.randrange(len(self.ids) - length)
        return self.template.decode(self.ids[start : start + length])

    def demonstration(self) -> Row:
        prompt, completion = self.cut(*PROMPT), self.cut(*COMPLETION)
        prompt_ids, completion_ids = self.encoded(prompt, completion)
        ids = {
            "input_ids": prompt_ids + completion_ids,
            "completion_mask": [0] * len(prompt_ids) + [1] * len(completion_ids),
        }
        return {"prompt": prompt, "completion": completion}, ids

    def preference(self) -> Row:
        prompt, answers = self.cut(*PROMPT), {name: self.cut(*COMPLETION) for name in ("chosen", "rejected")}
        ids: dict[str, Any] = {}
        for name, answer in answers.items():
            prompt_ids, completion_ids = self.encoded(prompt, answer)
            ids |= {f"{name}_ids": prompt_ids + completion_ids, "prompt_length": len(prompt_ids)}
        return {"prompt": prompt, **answers}, ids

    def unpaired_preference(self) -> Row:
        """Labels alternate, so that a batch has equal numbers of both."""
        prompt, completion = self.cut(*PROMPT), self.cut(*COMPLETION)
        self.label = not self.label
        prompt_ids, completion_ids = self.encoded(prompt, completion)
        ids = {"input_ids": prompt_ids + completion_ids, "prompt_length": len(prompt_ids), "label": self.label}
        return {"prompt": prompt, "completion": completion, "label": self.label}, ids

    def solution(self) -> Row:
        """A chain of four steps with alternating labels; a step's label is at the last token of the step."""
        prompt, steps = self.cut(*PROMPT), [self.cut(*STEP) for _ in range(4)]
        labels = [step % 2 == 0 for step in range(len(steps))]
        chain = StepLayout().chain(self.template, (Message("user", prompt),), steps)
        ids, after = chain.row()
        targets = torch.full((len(ids),), -100)
        targets[after.roll(-1)] = torch.tensor(labels).long()
        row = {"input_ids": ids.tolist(), "labels": targets.tolist()}
        return {"prompt": prompt, "steps": steps, "labels": labels}, row

    def prompt(self) -> Row:
        prompt = self.cut(*PROMPT)
        return {"prompt": prompt}, {"input_ids": self.template.encode_prompt((Message("user", prompt),)).tolist()}

    def question(self) -> Row:
        """A prompt as text for both sides: TRL's online trainers tokenise it to the same ids."""
        prompt = {"prompt": self.cut(*PROMPT)}
        return prompt, prompt

    def encoded(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of its completion."""
        prompt_ids, completion_ids = self.template.encode_completion((Message("user", prompt),), completion)
        return prompt_ids.tolist(), completion_ids.tolist()


if __name__ == "__main__":
    main()
