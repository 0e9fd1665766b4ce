"""Tasks of EleutherAI's lm-evaluation-harness (the extra postrain[eval]): public benchmarks, and custom tasks in its
YAML format. Most tasks load their data from the Hub.
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
    """Runs tasks of lm-evaluation-harness; metrics are named `<task>/<metric>`."""

    tasks: Annotated[Sequence[str], MinLen(1)]
    """Task names of the harness, such as [arc_easy, hellaswag], or of tasks in `include_path`. Most load their data
    from the Hub."""
    include_path: Annotated[str | None, Confirm("runs the Python that its tasks name")] = None
    """A directory with custom task YAMLs."""
    num_fewshot: CountOrZero | None = None
    """Number of few-shot examples; null is the task's default."""
    limit: Count | None = None
    """Maximum number of items per task; null is all."""
    batch_size: Count = 8
    """Requests per batch."""
    apply_chat_template: bool = False
    """Apply the model's chat template."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        harness, models, tasks = map(
            importlib.import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
        )
        manager = tasks.TaskManager(include_path=self.include_path)
        unknown = sorted(set(self.tasks) - set(manager.all_tasks))
        if unknown:
            raise ConfigError(
                f"evaluation.tasks.lm_eval.tasks: unknown tasks {', '.join(unknown)}; `lm-eval ls tasks` lists "
                "all tasks, and evaluation.tasks.lm_eval.include_path=DIRECTORY adds your own"
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
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            task_manager=manager,
            apply_chat_template=self.apply_chat_template,
            bootstrap_iters=100,
            random_seed=eval_model.seed,
            numpy_random_seed=eval_model.seed,
            torch_random_seed=eval_model.seed,
            fewshot_random_seed=eval_model.seed,
        )
        return parse_results(found)


def parse_results(found: Mapping[str, Any]) -> EvalResult:
    """Converts the harness's results: metrics, the text of item 0, and one record per item."""
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
    """The number of items of a task, or of all tasks in a (nested) group."""
    subtasks: Mapping[str, Sequence[str]] = found.get("group_subtasks") or {}
    tasks, waiting = set[str](), [task]
    while waiting:
        name = waiting.pop()
        # A task that several groups contain counts once.
        waiting += [part for part in subtasks.get(name, ()) if part not in tasks]
        tasks.add(name)
    return sum(int(found["n-samples"][name]["effective"]) for name in tasks if name in found["n-samples"])


def numeric_metrics(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each numeric metric of a task, without the suffix `,none` of the default filter."""
    pairs = [(key.removesuffix(",none"), value) for key, value in results.items() if "," in key]
    return [(key, value) for key, value in pairs if "_stderr" not in key and isinstance(value, int | float)]


def estimate(value: float, results: Mapping[str, Any], name: str, items: Items, count: int) -> Estimate:
    """A metric with its interval: from its items if it is their mean, else from the harness's standard error."""
    own = [one[name] for one in items if isinstance(one.get(name), int | float)]
    if own and math.isclose(sum(own) / len(own), value, abs_tol=1e-9):
        return Estimate.of(own)
    metric, _, filtered = name.partition(",")
    error = results.get(f"{metric}_stderr,{filtered or 'none'}")
    half = Z * error if isinstance(error, int | float) else math.inf
    return Estimate(value=float(value), low=value - half, high=value + half, n=count)


def item_record(task: str, one: Mapping[str, Any], metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    """The record of an item, with its value of each metric."""
    own = {name: one[key] for name in metrics if (key := name.removeprefix(f"{task}/")) in one}
    texts = {"target": str(one["target"]), "answer": str(one["filtered_resps"])}
    return {"row": f"{task} {one['doc_id']}", **texts, **own}
