"""Checks of a run against its inputs and its last checkpoint: rows, weights, exported model, evaluation, scores.

The evaluation of the last checkpoint is repeated, and recorded completions of earlier ones are scored again.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from postrain.config.masking import masked
from postrain.config.tree import SESSION
from postrain.evaluation.completions import gold_parts
from postrain.evaluation.eval_model_factory import EvalModelFactory
from postrain.evaluation.evaluator import evaluate, rows_of
from postrain.hardware.checkpoint_io import FileCheckpointIO
from postrain.hardware.shares import Share
from postrain.jobs.findings import Findings
from postrain.jobs.replay import threads_of
from postrain.jobs.verify_records import comparable
from postrain.jsonl import Record, plain, read_json, update_of
from postrain.methods.base import Method
from postrain.models.export import export
from postrain.rewards.base import columns_read, is_model_based, nan_to_none
from postrain.rollout.environment import SingleTurn
from postrain.runs.folder import RunFolder
from postrain.runs.forks import checkpoint_of, settings_since
from postrain.runs.resume import current, read_config
from postrain.training.checkpoints import is_whole
from postrain.training.config import TrainConfig
from postrain.training.evaluation import samples
from postrain.training.record_files import rounded

SCORED = 16
"""Completions of earlier evaluations that are scored again."""


def check_inputs(found: Findings, run: RunFolder, repeated: RunFolder) -> None:
    """Checks the config, and rows and initial weights against those of a repetition, by their fingerprints."""
    manifest, now = read_json(run.manifest), read_json(repeated.manifest)
    saved = masked(plain(read_config(run)))
    ours, theirs = (
        {k: v for k, v in each.items() if k not in SESSION} for each in (current(_get(manifest, "config")), saved)
    )
    found.records("config", "manifest.json against config.yaml: config", ours, theirs)
    for part, key, what in (
        ("data", "fingerprint", "the rows or their encoding"),
        ("model", "fingerprint", "the initial weights"),
        ("model", "reference", "the weights of the reference"),
    ):
        recorded, known = (_get(each, part).get(key) for each in (manifest, now))
        found.compared["fingerprints"] += recorded is not None
        if recorded != known:
            found.mismatches.append(
                f"manifest.json: {part}.{key} is {str(recorded)[:16]}, now {str(known)[:16]}: {what} are not those of "
                "the run"
            )


class FinalState(Callback):
    """Before a repetition starts, checks the exported model and the last evaluation against the last checkpoint, and
    scores recorded completions again. The repetition continues with its own weights."""

    def __init__(
        self,
        found: Findings,
        run: RunFolder,
        config: TrainConfig,
        last: int,
        choose: random.Random,
        *,
        evaluation: bool,
    ) -> None:
        """`last` is the last update of the run; `choose` chooses completions and held-out rows; `evaluation` repeats
        the whole evaluation of the last update, instead of one batch of held-out rows."""
        self.found, self.run, self.config, self.last, self.choose = found, run, config, last, choose
        self.evaluation = evaluation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        path = checkpoint_of(self.run, self.last)
        with threads_of(self.run, self.last - 1):
            rescore(self.found, self.run, self.config, pl_module, self.choose)
            if self.config.trainer.strategy != "single":
                self.found.notes.append("final model and last evaluation were not checked: the run has several ranks")
            elif not path.is_file() or not is_whole(path):
                self.found.notes.append(f"final model and last evaluation were not checked: {path.name} is missing")
            else:
                with loaded(pl_module, path), trainer.precision_plugin.forward_context():
                    self.check(pl_module)

    def check(self, method: Method) -> None:
        """Checks the state that is loaded."""
        run, last = self.run, self.last
        if run.result.is_file():
            _check_export(self.found, run, method)
        if not any(update_of(record) == last for record in [*run.held_out.read(), *run.samples.read()]):
            self.found.notes.append(f"update {last} has no evaluation to repeat")
        elif self.evaluation:
            _repeat_evaluation(self.found, run, self.config, method, last)
        else:
            _repeat_batch(self.found, run, method, last, self.choose)


@contextmanager
def loaded(method: Method, path: Path) -> Iterator[None]:
    """The method in the state of a checkpoint; restores its own state after the block."""
    own: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(own)
    own, other = deepcopy(own), FileCheckpointIO().load_checkpoint(path, weights_only=True)
    for state, ends in ((other, False), (own, True)):
        # Weights and counters only: the optimizer is not used.
        method.on_load_checkpoint({**state, "optimizer_states": []})
        method.load_state_dict(state["state_dict"], strict=False)
        if not ends:
            yield


def _check_export(found: Findings, run: RunFolder, method: Method) -> None:
    """Compares the files of weights in model/ with those that the checkpoint exports."""
    with tempfile.TemporaryDirectory(prefix="postrain-verify-") as scratch:
        directory = Path(scratch, "model")
        export(method.policy, method.components.template.tokenizer, directory, card="")
        names = {path.name for folder in (directory, run.model) for path in folder.glob("*.safetensors")}
        for name in sorted(names):
            one, other = (load_file(path) if path.is_file() else {} for path in (run.model / name, directory / name))
            found.tensors("weights of the exported model", f"model/{name} against the last checkpoint", one, other)


def _repeat_evaluation(found: Findings, run: RunFolder, config: TrainConfig, method: Method, last: int) -> None:
    """Repeats the evaluation of the last checkpoint and compares metrics, samples and held-out rows."""
    data, settings = method.datamodule, config.evaluation
    result = evaluate(method, data, settings, EvalModelFactory(config.resolved, data, config.reward)(method))
    logged = next(record for record in run.metrics.read() if update_of(record) == last)
    kind = "the repeated evaluation"
    metrics = {name: logged.get(name) for name in result.metrics}
    found.records(kind, f"metrics.jsonl, update {last}", metrics, plain(dict(result.metrics)))
    ours = comparable(run.samples.read(), last - 1, last) if last else []
    theirs = [{"update": last, **asdict(sample)} for sample in samples(result, settings.logged_samples)]
    _pairs(found, kind, f"samples.jsonl, update {last}", ours, theirs)
    rows = [
        {"update": last, "metric": name, "totals": rounded(total_B), "counts": rounded(count_B)}
        for name, (total_B, count_B) in result.rows.items()
    ]
    _pairs(found, kind, f"held_out.jsonl, update {last}", comparable(run.held_out.read(), last - 1, last), rows)


@torch.no_grad()
def _repeat_batch(found: Findings, run: RunFolder, method: Method, last: int, choose: random.Random) -> None:
    """Repeats the metrics of one random batch of held-out rows, of a method that has such metrics."""
    if any(update_of(sample) == last for sample in run.samples.read()):
        found.notes.append(f"completions of update {last} were scored, but not sampled again: --evaluation does that")
    batches, known = [batch for _, batch in method.datamodule.eval_batches()], run.held_out.read()
    if method.datamodule.held_out or not batches:
        return
    index = choose.randrange(len(batches))
    first, size = sum(map(len, batches[:index])), len(batches[index])
    method.policy.eval()
    rows = rows_of(method.evaluate(batches[index].to(method.device), index, Share.of(size)))
    for record in known:
        name = str(record.get("metric"))
        if update_of(record) == last and name in rows:
            ours = {part: _slice(record.get(part), first, size) for part in ("totals", "counts")}
            total_B, count_B = rows[name]
            theirs = {"totals": rounded(total_B), "counts": rounded(count_B)}
            found.records(
                "held-out rows of the final model", f"held_out.jsonl, update {last}: {name}", ours, plain(theirs)
            )


def _slice(values: Any, first: int, size: int) -> Any:
    """A part of a list of a record; a damaged value as it is."""
    return values[first : first + size] if isinstance(values, list) else values


def _pairs(found: Findings, kind: str, where: str, ours: Sequence[Record], theirs: Sequence[Record]) -> None:
    if len(ours) != len(theirs):
        found.mismatches.append(f"{where}: {len(ours)} records, {len(theirs)} when repeated")
    for one, other in zip(ours, theirs, strict=False):
        found.records(kind, where, one, plain(other))


def rescore(found: Findings, run: RunFolder, config: TrainConfig, method: Method, choose: random.Random) -> None:
    """Scores random recorded completions again, by the reward and the gold score: those of the present settings."""
    since, data = settings_since(run), method.datamodule
    recorded = [sample for sample in run.samples.read() if not since or update_of(sample) > since]
    if not recorded or method.head != "causal":
        return
    eval_model = EvalModelFactory(config.resolved, data, config.reward)(method)
    reward = eval_model and eval_model.reward
    single = isinstance(config.environment, SingleTurn)
    if reward is not None and (columns_read(reward) or not single):
        found.notes.append("completions were not scored again: their reward reads how they were sampled")
        reward = None
    prompts = data.eval_prompts(config.evaluation.completions)
    columns = dict(zip(prompts.row_ids, prompts.columns, strict=True))
    chosen = choose.sample(range(len(recorded)), min(SCORED, len(recorded)))
    for sample in [recorded[index] for index in sorted(chosen)]:
        of_row = columns.get(int(sample["row"]))
        where = f"samples.jsonl, update {sample['update']}: row {sample['row']}"
        if of_row is None:
            found.mismatches.append(f"{where} is not a held-out prompt")
            continue
        scored: dict[str, Any] = {}
        if reward is not None and sample.get("rewards") and not is_model_based(reward):
            batch = reward([sample["prompt"]], [sample["completion"]], [of_row])
            parts = {name: part[0] for name, part in batch.parts.items()}
            scored["rewards"] = {**parts, "total": nan_to_none(batch.total_B)[0]}
        if data.gold_score is not None and "gold" in of_row:
            scored["gold"] = gold_parts(data.gold_score, sample["prompt"], sample["completion"], of_row)
        ours = {name: sample.get(name) for name in scored}
        found.records("completions scored again", where, ours, plain(scored))


def _get(record: Record, name: str) -> Record:
    part = record.get(name)
    return part if isinstance(part, dict) else {}
