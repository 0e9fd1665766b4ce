"""Tasks of EleutherAI's lm-evaluation-harness (the extra postrain[eval]): the ecosystem's benchmarks, and one's own in
its YAML format. Most of its tasks take their data from the Hub.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from postrain.config.schema import Confirm
from postrain.errors import ConfigError
from postrain.evaluation.estimate import Estimate, Z
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.types import Count, CountOrZero

Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Every numeric metric of these tasks, as `<task>/<metric>`; with its interval."""

    tasks: Annotated[Sequence[str], MinLen(1)]
    """Names of the harness, such as [arc_easy, hellaswag], or of tasks in `folder`; most take their data from the
    Hub."""
    folder: Annotated[str | None, Confirm("runs the Python that its tasks name")] = None
    """A directory with task YAMLs of one's own."""
    examples: CountOrZero | None = None
    """Solved examples shown before each question; null leaves it to the task."""
    limit: Count | None = None
    """Items of each task at most; null is all."""
    batch_size: Count = 8
    """Requests that are scored together."""
    chat: bool = False
    """Whether questions are put in the model's chat template."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        harness, models, tasks = map(
            importlib.import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
        )
        manager = tasks.TaskManager(include_path=self.folder)
        unknown = sorted(set(self.tasks) - set(manager.all_tasks))
        if unknown:
            raise ConfigError(
                f"evaluation.tasks.lm_eval.tasks: the harness has no {', '.join(unknown)}; `lm-eval ls tasks` lists "
                "what it has, and evaluation.tasks.lm_eval.folder=DIRECTORY adds your own"
            )
        wrapped = models.HFLM(
            pretrained=eval_model.model,
            tokenizer=eval_model.tokenizer,
            batch_size=self.batch_size,
            backend="causal",
            trust_remote_code=False,
        )
        found = harness.simple_evaluate(
            model=wrapped,
            tasks=list(self.tasks),
            num_fewshot=self.examples,
            limit=self.limit,
            task_manager=manager,
            apply_chat_template=self.chat,
            bootstrap_iters=100,
            random_seed=eval_model.seed,
            numpy_random_seed=eval_model.seed,
            torch_random_seed=eval_model.seed,
            fewshot_random_seed=eval_model.seed,
        )
        return parse_results(found)


def parse_results(found: Mapping[str, Any]) -> EvalResult:
    """What the harness returns as a result: numbers, item 0's text, and a record an item."""
    samples: Mapping[str, Items] = found.get("samples") or {}
    first = next(iter(samples.values()), ())
    metrics = {
        f"{task}/{name}": estimate(value, results, name, samples.get(task, ()), item_count(found, task))
        for task, results in found["results"].items()
        for name, value in numeric_metrics(results)
    }
    return EvalResult(
        metrics=metrics,
        example=str(first[0]["arguments"][0][0]) if first else "",
        records=tuple(item_record(task, one, metrics) for task, items in samples.items() for one in items),
    )


def item_count(found: Mapping[str, Any], task: str) -> int:
    """Items of a task, or of all tasks of a group of tasks and of groups."""
    subtasks: Mapping[str, Sequence[str]] = found.get("group_subtasks") or {}
    tasks, waiting = set[str](), [task]
    while waiting:
        name = waiting.pop()
        # A group that is named twice counts once.
        waiting += [part for part in subtasks.get(name, ()) if part not in tasks]
        tasks.add(name)
    return sum(int(found["n-samples"][name]["effective"]) for name in tasks if name in found["n-samples"])


def numeric_metrics(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each metric of a task; the harness writes `acc,none`, after the filter that read the answer."""
    pairs = [(key.removesuffix(",none"), value) for key, value in results.items() if "," in key]
    return [(key, value) for key, value in pairs if "_stderr" not in key and isinstance(value, int | float)]


def estimate(value: float, results: Mapping[str, Any], name: str, items: Items, count: int) -> Estimate:
    """A metric with its interval: from its items where it is their mean, else from the harness's own error, if any."""
    own = [one[name] for one in items if isinstance(one.get(name), int | float)]
    if own and math.isclose(sum(own) / len(own), value, abs_tol=1e-9):
        return Estimate.of(own)
    metric, _, filtered = name.partition(",")
    error = results.get(f"{metric}_stderr,{filtered or 'none'}")
    half = Z * error if isinstance(error, int | float) else math.inf
    return Estimate(value=float(value), low=value - half, high=value + half, n=count)


def item_record(task: str, one: Mapping[str, Any], metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    """What is kept of an item: its own share of each metric that has one."""
    own = {name: one[key] for name in metrics if (key := name.removeprefix(f"{task}/")) in one}
    said = {"target": str(one["target"]), "answer": str(one["filtered_resps"])}
    return {"row": f"{task} {one['doc_id']}", **said, **own}
