"""`method.fit()`: a training run from Python objects, with the same lifecycle as the command line."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from postrain.config.check import check_objects
from postrain.config.schema import Deferred, Paths
from postrain.config.tree import SETTINGS, settings_of
from postrain.data.module import DataModule
from postrain.data.sources import Rows
from postrain.errors import ConfigError, Interrupted
from postrain.evaluation.evaluator import Evaluation
from postrain.hardware.trainer import Hardware
from postrain.jobs.session import TRAIN, execute
from postrain.jsonl import atomic_write_text
from postrain.methods.base import Method
from postrain.models.disk_cache import disk_cached
from postrain.models.provenance import Provenance, provenance_of, save_to_cache, unchanged
from postrain.report.notebook import run_html
from postrain.rollout.engine import Engine
from postrain.rollout.local import LocalEngine
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config
from postrain.training.config import TrainConfig
from postrain.training.loggers import NoTracker, Tracker


@dataclass(frozen=True, repr=False)
class Run:
    """A finished training run."""

    path: Path
    """Its folder: config.yaml, metrics.jsonl, model/, report.html, ..."""
    method: Method
    objective: float | None
    """The last value of the method's deciding metric; None if it was not measured."""

    def __repr__(self) -> str:
        trained = f"method={type(self.method).__name__}, updates={self.method.counters.updates}"
        return f"Run(path={str(self.path)!r}, {trained}, objective={self.objective})"

    def _repr_html_(self) -> str:
        """The verdict and the learning curves, in Jupyter."""
        return run_html(self.path)

    @property
    def model(self) -> Any:
        """The trained model."""
        return self.method.policy

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with the chat template used in training."""
        return self.method.components.template.tokenizer

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A record for each update, as in metrics.jsonl; pandas.DataFrame(run.metrics) converts them to a table."""
        return RunFolder(self.path).metrics.read()

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The completions logged at each evaluation."""
        return RunFolder(self.path).samples.read()

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json: the objective, and every held-out metric before and after training."""
        return json.loads(RunFolder(self.path).result.read_text())


def fit(
    method: Method,
    *,
    output: str | Path,
    evaluation: Evaluation | None,
    callbacks: Sequence[Callback],
    logger: Tracker | Logger | None,
    resume: str | Path | None,
    name: str | None,
    report: bool,
) -> Run:
    """See `Method.fit`."""
    method.check_ready(resumes=resume is not None)
    if method.own_data is None:
        kind = type(method).__name__
        raise ConfigError(f"data: no rows to train on; pass them, as in {kind}(model, tokenizer, data=rows)")
    parts, loaded, evaluation = method.components, provenance(method), evaluation or Evaluation()
    check_objects(data=method.own_data, evaluation=evaluation)
    name_rows(method.own_data)
    parameter = next(parts.policy.parameters())
    config = TrainConfig(
        method=method,
        model=loaded.source,
        adapter=loaded.adapter,
        data=method.own_data,
        reward=Deferred.of(parts.reward or parts.preference) if method.needs_reward else None,
        rollout=engine_of(method, resume),
        environment=parts.environment,
        trainer=Hardware(
            accelerator="gpu" if parameter.is_cuda else "mps" if parameter.is_mps else "cpu",
            precision="bf16" if parameter.dtype == torch.bfloat16 else "fp32",
            float32_matmul_precision=cast("Any", torch.get_float32_matmul_precision()),
        ),
        logger=logger or NoTracker(),
        callbacks={f"{type(one).__name__}_{index}": one for index, one in enumerate(callbacks)},
        evaluation=evaluation,
        seed=parts.seed,
        name=name,
        resume=None if resume is None else str(resume),
        report=report,
        paths=Paths(output=str(output)),
    )
    try:
        objective = execute(TRAIN, config, command=("python", *sys.argv[:1]))
    except Interrupted as stop:
        # A SystemExit would end the calling notebook or program.
        raise KeyboardInterrupt(f"{stop.signal.name}; resume with fit(resume={str(stop.folder)!r})") from None
    return Run(Path(method.trainer.default_root_dir), method, objective)


def engine_of(method: Method, resume: str | Path | None) -> Engine:
    """The method's engine; instead of `dtype="auto"` with the precision that the resumed run has measured."""
    engine = method.components.engine
    if resume is None or not isinstance(engine, LocalEngine) or engine.dtype != "auto":
        return engine
    saved = saved_config(RunFolder.open(resume)).get("rollout") or {}
    return replace(engine, dtype=saved.get("dtype", engine.dtype))


def name_rows(data: DataModule) -> None:
    """Writes in-memory rows to the cache and sets data.path to that file in the saved settings, so that a command line
    can resume the run. The path is null for rows that JSON cannot represent."""
    source = data.source
    if not isinstance(source, Rows):
        return
    path = None
    with suppress(TypeError, ValueError):
        text = "".join(json.dumps(row.values, allow_nan=False) + "\n" for row in source.load(eval_rows=0).train.rows)
        digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        path = str(disk_cached(f"rows-{digest}", lambda directory: atomic_write_text(directory / "rows.jsonl", text)))
    data.source = None
    settings = {**settings_of(data), "path": path and f"{path}/rows.jsonl"}
    data.source = source
    object.__setattr__(data, SETTINGS, settings)


def provenance(method: Method) -> Provenance:
    """The source that the policy can be reloaded from; a policy that differs from its source is saved to the cache."""
    policy, tokenizer = method.policy, method.components.template.tokenizer
    found = provenance_of(policy)
    return found if found is not None and unchanged(policy) else save_to_cache(policy, tokenizer)
