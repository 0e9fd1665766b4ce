"""Small copies of the Hub's data sets: their files, subsets, splits and columns, with rows of our own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import yaml

Row = Callable[[int], dict[str, Any]]
ROWS = 8


def turns(n: int, answer: str = "Yes.") -> list[dict[str, str]]:
    return [{"content": f"Is {n} a number?", "role": "user"}, {"content": answer, "role": "assistant"}]


def sides(n: int) -> dict[str, Any]:
    return {side: f"\n\nHuman: Is {n} odd?\n\nAssistant: {answer}" for side, answer in SIDES.items()}


SIDES = {"chosen": "Let us see.", "rejected": "No idea."}
BOXED = r"We add the parts: $\boxed{\frac{%d}{7}}$."
PARQUET = "-00000-of-00001.parquet"


@dataclass(frozen=True)
class HubSet:
    """The files of a data set and what its option reads."""

    files: Mapping[str, Row]
    """Rows of each file; its suffix is the format."""
    kinds: tuple[str, ...]
    """Record kinds that the option gives."""
    configs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Glob of the files of each split, by subset; without it `datasets` finds the splits by the names of the files."""
    prompt: str = ""
    """The prompt of row 0."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns of row 0 for rewards."""


def parquet(*splits: str, folder: str = "data") -> dict[str, str]:
    return {split: f"{folder}/{split}-*" for split in splits}


def files(row: Row, *splits: str, folder: str = "data") -> dict[str, Row]:
    return {f"{folder}/{split}{PARQUET}": row for split in splits}


def preferred(n: int) -> dict[str, Any]:
    """A row of HelpSteer2's preference file."""
    return {
        "split": "val" if n == ROWS - 1 else "train",
        "prompt": f"Is {n} odd?",
        "response_1": "Let us see.",
        "response_2": "No idea.",
        "preference_strength": -1 - n % 3,
        "preference_statement": "Response 1 is better.",
        "preference_elaboration": "It begins to think.",
        "three_most_similar_preferences": [{"statement": "1", "elaboration": "a", "strength": -1}],
        "all_preferences_unprocessed": [{"strength": -1, "justification": "a"}],
    }


def rated_response(n: int) -> dict[str, Any]:
    """A row of HelpSteer2's ratings; two rows in succession have the same prompt."""
    scores = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), n % 5)
    return {"prompt": f"Is {n // 2} odd?", "response": f"Yes, {n}.", **scores}


def rated(n: int) -> dict[str, Any]:
    pair = {side: turns(n, answer) for side, answer in SIDES.items()}
    one = {"prompt": f"Is {n} a number?", "prompt_id": f"id{n}", **pair, "messages": pair["chosen"]}
    return one | {"score_chosen": 8.5, "score_rejected": 4.0}


def compared(n: int) -> dict[str, Any]:
    context = [*turns(n), {"content": "Are you sure?", "role": "user"}]
    first, second = ("Quite.", "What?") if n % 2 else ("What?", "Quite.")
    scores = [{"score": 2, "reasoning": "clear", "feedback1": "short", "feedback2": "short"}]
    preference = 0 if n == 3 else -2 if n % 2 else 1
    return {
        "domain": "general",
        "language": "english",
        "context": context,
        "response1": first,
        "response2": second,
        "overall_preference": preference,
        "individual_preference": scores,
    }


def gsm8k(n: int) -> dict[str, Any]:
    return {"question": f"Add {n} to 2000.", "answer": f"It is <<{n}+2000={n + 2000}>>.\n#### {n + 2000:,}"}


def math(n: int) -> dict[str, Any]:
    return {"problem": f"Take {n} sevenths.", "level": "Level 1", "type": "Algebra", "solution": BOXED % n}


def numina(n: int) -> dict[str, Any]:
    problem, solution = f"Take {n} sevenths. ", BOXED % n
    chat = [{"content": problem, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {"source": "orca_math", "problem": problem, "solution": solution, "messages": chat}


def openmath(n: int) -> dict[str, Any]:
    solution = {"generated_solution": BOXED % n, "expected_answer": f"{n}/7", "problem_source": "augmented_math"}
    return {"problem": f"Take {n} sevenths.", **solution}


SETS: Mapping[str, HubSet] = {
    "alpaca": HubSet(
        files(lambda n: {"instruction": f"Name {n}.", "input": "", "output": "N", "text": f"### {n}"}, "train"),
        ("Demonstration", "Prompt"),
        {"default": parquet("train")},
    ),
    "dolly": HubSet(
        {
            "databricks-dolly-15k.jsonl": lambda n: {
                "instruction": f"What is {n}?",
                "context": "Numbers count.",
                "response": "A number.",
                "category": "closed_qa",
            }
        },
        ("Demonstration",),
        prompt="What is 0?\n\nNumbers count.",
    ),
    "hh_rlhf": HubSet(
        {
            "helpful-base/train.jsonl.gz": sides,
            "harmless-base/train.jsonl.gz": lambda n: sides(n + 20),
            "harmless-base/test.jsonl.gz": lambda n: sides(n + 90),
            "red-team-attempts/red_team_attempts.jsonl.gz": lambda n: {"transcript": f"{n}", "rating": 1.0},
        },
        ("Preference", "UnpairedPreference"),
    ),
    "ultrafeedback": HubSet(
        files(rated, "train_prefs") | files(lambda n: rated(n + 90), "test_prefs"),
        ("Preference", "Demonstration"),
        {"default": parquet("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen")},
        prompt="Is 0 a number?",
    ),
    "helpsteer2": HubSet(
        {
            "preference/preference.jsonl.gz": preferred,
            "train.jsonl.gz": rated_response,
            "validation.jsonl.gz": lambda n: rated_response(n + 90),
        },
        ("Preference",),
        prompt="Is 0 odd?",
    ),
    "helpsteer3": HubSet(
        {"preference/train.jsonl.gz": compared, "preference/validation.jsonl.gz": lambda n: compared(n + 90)},
        ("Preference",),
        {"preference": {split: f"preference/{split}.jsonl.gz" for split in ("train", "validation")}},
        prompt="Is 0 a number?\n\nYes.\n\nAre you sure?",
    ),
    "orca_dpo_pairs": HubSet(
        {
            "orca_rlhf.jsonl": lambda n: {"system": "Be brief." if n else "", "question": f"Is {n} odd?", **SIDES},
        },
        ("Preference",),
        prompt="Is 0 odd?",
    ),
    "gsm8k": HubSet(
        files(gsm8k, "train", folder="main") | files(lambda n: gsm8k(n + 90), "test", folder="main"),
        ("Demonstration", "Prompt"),
        {"main": parquet("train", "test", folder="main"), "socratic": parquet("train", "test", folder="socratic")},
        prompt="Add 0 to 2000.",
        columns={"answer": "2000"},
    ),
    "math": HubSet(
        files(math, "train") | files(lambda n: math(n + 90), "test"),
        ("Demonstration", "Prompt"),
        {"default": parquet("train", "test")},
        prompt="Take 0 sevenths.",
        columns={"answer": r"\frac{0}{7}"},
    ),
    "numinamath": HubSet(
        files(numina, "train") | files(lambda n: numina(n + 90), "test"),
        ("Demonstration", "Prompt"),
        {"default": parquet("train", "test")},
        columns={"answer": r"\frac{0}{7}"},
    ),
    "openmathinstruct": HubSet(
        files(openmath, "train_1M"),
        ("Demonstration", "Prompt"),
        {"default": parquet("train", "train_1M", "train_2M", "train_5M")},
        prompt="Take 0 sevenths.",
        columns={"answer": "0/7"},
    ),
    "countdown": HubSet(
        files(lambda n: {"target": n + 6, "nums": [n + 1, 2, 3]}, "train"),
        ("Prompt",),
        {"default": parquet("train")},
        columns={"target": 6, "nums": [1, 2, 3]},
    ),
    "tulu3_sft": HubSet(
        files(lambda n: {"id": f"oasst1_{n}", "messages": turns(n), "source": "ai2-adapt-dev/oasst1"}, "train"),
        ("Demonstration", "Prompt"),
        {"default": parquet("train")},
    ),
    "smoltalk": HubSet(
        files(lambda n: {"messages": turns(n), "source": "smol-rewrite"}, "train", folder="data/all")
        | files(lambda n: {"messages": turns(n + 90), "source": "smol-rewrite"}, "test", folder="data/all"),
        ("Demonstration",),
        {"all": parquet("train", "test", folder="data/all"), "longalign": parquet("train", folder="data/longalign")},
    ),
    "ultrachat": HubSet(
        files(lambda n: {"prompt": f"Is {n} a number?", "prompt_id": "p", "messages": turns(n) * 2}, "train_sft")
        | files(lambda n: {"prompt": "Is it?", "prompt_id": "p", "messages": turns(n + 90)}, "test_sft"),
        ("Demonstration",),
        {"default": parquet("train_sft", "test_sft", "train_gen", "test_gen")},
    ),
    "openthoughts": HubSet(
        files(
            lambda n: {
                "system": "Think first.",
                "conversations": [{"from": "user", "value": f"{n}?"}, {"from": "assistant", "value": "Thought. Yes."}],
            },
            "train",
        ),
        ("Demonstration",),
        {"default": parquet("train")},
        prompt="Think first.\n\n0?",
    ),
    "tiny_shakespeare": HubSet(
        {f"{split}.csv": lambda n: {"Text": f"First Citizen {n}:\nBefore we proceed. Hear me."} for split in ("train",)}
        | {"test.csv": lambda n: {"Text": f"Second Citizen {n}:\nOne word. Speak."}},
        ("Text",),
    ),
}


def write_set(folder: Path, made: HubSet) -> str:
    """Writes the files of a data set and the splits of its card."""
    for name, row in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row(n) for n in range(ROWS)]
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), path)
        else:
            text = "".join(json.dumps(each) + "\n" for each in rows).encode()
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    card = [
        {"config_name": subset, "data_files": [{"split": split, "path": glob} for split, glob in splits.items()]}
        for subset, splits in made.configs.items()
    ]
    if card:
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return str(folder)
