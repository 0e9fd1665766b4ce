"""Tasks of EleutherAI's lm-evaluation-harness (the extra postrain[eval]): the ecosystem's benchmarks, and one's own in
its YAML format. Most of its tasks take their data from the Hub.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from postrain.evaluation.intervals import Z
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.types import ConfigError, Count, CountOrZero


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Every numeric metric of these tasks, as `<task>/<metric>`; the interval is 1.96 of the harness's errors."""

    tasks: Annotated[Sequence[str], MinLen(1)]
    """Names of the harness, or of tasks in `folder`."""
    folder: str | None
    """A directory with task YAMLs of one's own."""
    examples: CountOrZero | None
    """Solved examples shown before each question; null leaves it to the task."""
    limit: Count | None
    """Items of each task at most."""
    batch_size: Count
    chat: bool
    """Whether questions are put in the model's chat template."""

    def __call__(self, subject: Subject) -> Finding:
        harness, models, tasks = (
            installed("lm_eval"),
            installed("lm_eval.models.huggingface"),
            installed("lm_eval.tasks"),
        )
        manager = tasks.TaskManager(include_path=self.folder)
        unknown = sorted(set(self.tasks) - set(manager.all_tasks))
        if unknown:
            raise ConfigError(
                f"evaluation.measures.lm_eval.tasks: the harness has no {', '.join(unknown)}; `lm-eval ls tasks` lists "
                "what it has, and evaluation.measures.lm_eval.folder=DIRECTORY adds your own"
            )
        wrapped = models.HFLM(
            pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=self.batch_size, backend="causal"
        )
        found = harness.simple_evaluate(
            model=wrapped,
            tasks=list(self.tasks),
            num_fewshot=self.examples,
            limit=self.limit,
            task_manager=manager,
            apply_chat_template=self.chat,
            bootstrap_iters=0,
            random_seed=subject.seed,
            numpy_random_seed=subject.seed,
            torch_random_seed=subject.seed,
            fewshot_random_seed=subject.seed,
        )
        return read(found)


def installed(module: str) -> Any:
    """A module of the harness."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluation=lm_eval needs the package {error.name}, which is not installed; pip install 'postrain[eval]'"
        ) from None


def read(found: Mapping[str, Any]) -> Finding:
    """What the harness returns as a finding: numbers, item 0's text, and a record an item."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = found.get("samples") or {}
    first = next(iter(samples.values()), ())
    return Finding(
        metrics=dict(numbers(found)),
        example=str(first[0]["arguments"][0][0]) if first else "",
        records=tuple(
            {"row": f"{task} {one['doc_id']}", "target": str(one["target"]), "answer": str(one["filtered_resps"])}
            for task, items in samples.items()
            for one in items
        ),
    )


def numbers(found: Mapping[str, Any]) -> list[tuple[str, Estimate]]:
    """Each task's metrics; the harness names them `acc,none`, after the filter that read the answer."""
    made = []
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = results.get(f"{metric}_stderr,{filtered}")
            half = Z * error if isinstance(error, int | float) else float("inf")
            name = f"{task}/{metric}" if filtered == "none" else f"{task}/{metric}/{filtered}"
            count = int(found["n-samples"][task]["effective"])
            made.append((name, Estimate(value=float(value), low=value - half, high=value + half, n=count)))
    return made
