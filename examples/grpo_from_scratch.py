"""GRPO from scratch: sample, score, advantage, loss, step, on the kernels that postrain's own methods use.

A small bundled model ("nano") learns to work out sums. One minute on a CPU:  python examples/grpo_from_scratch.py
Paper: Shao et al. 2024, DeepSeekMath, eq. 3. Axes: P prompts, G completions of each, B = P·G, T completion tokens.
"""

import random
import re
import sys

import torch

import postrain as pt

P, G = 16, 8
LEARNING_RATE = 5e-4


def make_sum(rng: random.Random) -> tuple[str, int]:
    """A prompt such as "6 - 3 + 5 = ?" and its answer."""
    total = rng.randint(1, 6)
    text = str(total)
    for _ in range(rng.randint(2, 3)):
        number = rng.randint(-min(total, 6), 6)
        text, total = f"{text} {'-' if number < 0 else '+'} {abs(number)}", total + number
    return f"{text} = ?", total


def reward(text: str, answer: int) -> float:
    """1 for the right answer, else 0."""
    found = re.search(r"answer is (\d+)", text)
    return float(found is not None and int(found.group(1)) == answer)


def sample(model: torch.nn.Module, prompts: list[str], count: int, seed: int) -> list[pt.Generated]:
    """`count` completions of each prompt, prompt-major, with the log-probability of every sampled token."""
    return pt.generate(model, prompts, num_generations=count, max_new_tokens=48, seed=seed, template="plain")


def accuracy(model: torch.nn.Module, sums: list[tuple[str, int]]) -> float:
    """Share of right answers, one completion of each prompt."""
    completions = sample(model, [prompt for prompt, _ in sums], 1, seed=0)
    return sum(reward(one.text, answer) for one, (_, answer) in zip(completions, sums, strict=True)) / len(sums)


def main(updates: int = 40, held_out: int = 200) -> tuple[float, float]:
    """Trains and returns the held-out accuracy before and after."""
    torch.manual_seed(0)
    model, _ = pt.load_model("nano")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rng = random.Random(0)
    test = [make_sum(random.Random(f"held out {n}")) for n in range(held_out)]
    before = accuracy(model, test)
    for update in range(1, updates + 1):
        # Sample G completions of each prompt from the current policy.
        sums = [make_sum(rng) for _ in range(P)]
        completions = sample(model, [prompt for prompt, _ in sums], G, seed=update)
        # Score them and compare each with the others of its group: A = (r − mean) / std.
        answers = [answer for _, answer in sums for _ in range(G)]
        rewards_B = torch.tensor([reward(one.text, a) for one, a in zip(completions, answers, strict=True)])
        advantages_PG = pt.losses.group_advantages(rewards_B.view(P, G))
        # The clipped surrogate; on the first pass over a batch the importance ratio is 1.
        logps_BT = pt.score(model, completions)
        advantages_BT = advantages_PG.view(-1, 1) * logps_BT.mask
        loss = pt.losses.grpo(logps_BT, logps_BT.detach(), advantages_BT, logps_BT.mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(update / 6, 1 - (update - 1) / updates)
        optimizer.step()
        optimizer.zero_grad()
        print(f"update {update}  reward {rewards_B.mean():.2f}", flush=True)
    after = accuracy(model, test)
    print(f"held-out accuracy {before:.2f} → {after:.2f} (n={held_out})")
    return before, after


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
