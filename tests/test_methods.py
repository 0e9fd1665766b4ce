"""Requirements on every method of conf/method/*.yaml; a new YAML is tested without a change here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from postrain.errors import ConfigError
from postrain.jobs.session import TRAIN, execute
from postrain.metrics import declared
from postrain.runs.folder import RunFolder
from postrain.training.finalize import before_and_after
from tests.training_runs import (
    METHODS,
    added_callback,
    composed,
    final_state,
    records,
    resumed,
    same,
    shallow,
    small_run,
    with_teacher,
)

OneUpdate = Callable[[int], "Recorder"]
SmallRun = Callable[..., "Recorder"]

# Divisors of the default updates, for methods that reach their required change in less than a third of them.
UPDATES_DIVISOR = {
    "sft": 9,
    "dpo": 18,
    "ipo": 18,
    "kto": 16,
    "reward": 18,
    "pretrain": 9,
    "prm": 5,
    "ppo": 4,
    "nash_md": 8,
    "online_dpo": 5,
    "grpo": 5,
    "rloo": 6,
    "reinforce": 5,
    "simpo": 2,
    "distill": 9,
}
# Divisors of the default batch size, for methods that need no more; group-relative methods halve it in any case.
BATCH_DIVISOR = {
    **dict.fromkeys(("cpo", "orpo", "lora_sft", "ppo", "nash_md", "online_dpo", "distill"), 2),
    **dict.fromkeys(("sft", "pretrain", "dpo", "ipo", "kto", "reward", "prm"), 2),
    "simpo": 4,
}
# Metrics of held-out rows, which need no sampled completions.
MEASURED_ON_ROWS = ("eval/accuracy", "eval/loss", "eval/step_accuracy", "eval/win_rate")


class Recorder(Callback):
    """Records the first gradients of a run and its weights before and after training; `folder` is the run folder."""

    batch: Any = None
    folder: RunFolder

    def __init__(self, *, double: bool = False) -> None:
        self.double = double

    def on_train_start(self, trainer, pl_module: Any):
        if self.double:
            pl_module.double()
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.trainable = {name for name, p in pl_module.named_parameters() if p.requires_grad}
        self.gradients = None
        original = pl_module.update

        def update(minibatch):
            self.batch = minibatch
            original(minibatch)

        pl_module.update = update

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.gradients is None:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_end(self, trainer, pl_module: Any):
        self.after = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.module = pl_module


@contextmanager
def blank_pictures() -> Iterator[None]:
    """Rendering the figures of a report takes longer than the run; tests/report renders them."""

    def savefig(figure: Figure, file: Any, **_: Any) -> None:
        if not isinstance(file, Path):
            file.write("<svg></svg>")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", savefig)
        yield


def recorded_run(output: Path, *words: str, double: bool = False) -> Recorder:
    """A small run with a Recorder."""
    recorder = Recorder(double=double)
    with added_callback(recorder):
        recorder.folder = small_run(output, *words)
    return recorder


# One process runs all tests of a method in order (tests/conftest.py); they share the runs below.
@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def shared_run(method: str, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Read-only small runs of the method, one per adapter; without `adapter`, with the default of the method."""
    runs: dict[str, Recorder] = {}

    @cache
    def run(adapter: str | None = None) -> Recorder:
        words = [*shallow(method), *([f"adapter={adapter}"] if adapter else [])]
        chosen = composed(words)["adapter"]
        if str(chosen) not in runs:
            # Two updates change all of an adapter: the gradient of A is 0 while B is. Only whole models need a report.
            whole = chosen["_target_"].endswith("NoAdapter") or adapter is None
            words += [f"report={whole}", *([] if whole else ["method.updates=2"])]
            with blank_pictures():
                runs[str(chosen)] = recorded_run(tmp_path_factory.mktemp("shared_run"), *words)
        return runs[str(chosen)]

    return run


@pytest.fixture(scope="module")
def one_update(method: str, tmp_path_factory: pytest.TempPathFactory) -> OneUpdate:
    """One update with this `micro_batch_tokens`; each is run once, the one with 1 with gradient checkpointing.

    In float64, because the gradient of a reward model is a small difference of large numbers.
    """

    @cache
    def run(tokens: int) -> Recorder:
        words = (*shallow(method), "method.updates=1", "method.batch_size=4", f"method.micro_batch_tokens={tokens}")
        # Evaluation and checkpoints do not affect the gradient.
        words += ("evaluation.completions=0", "data.eval_rows=2", "trainer.checkpoint_every=100")
        words += ("method.gradient_checkpointing=true",) if tokens == 1 else ()
        return recorded_run(tmp_path_factory.mktemp("update"), *words, double=True)

    return run


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_only_trainable_parameters_change(adapter, shared_run):
    recorder = shared_run(adapter)
    moved = {name for name in recorder.before if not torch.equal(recorder.before[name], recorder.after[name])}
    assert moved == recorder.trainable
    assert recorder.trainable
    assert [record["update"] for record in records(recorder.folder)] == [*range(recorder.module.counters.updates + 1)]
    assert recorder.folder.status.read()["status"] == "done"


def test_every_logged_metric_is_declared(shared_run):
    logged = {name for record in records(shared_run().folder) for name in record}
    assert [name for name in sorted(logged) if declared(name) is None] == []


def test_kl_is_logged_by_every_update_or_by_none(shared_run):
    recorder = shared_run()
    for record in records(recorder.folder)[1:]:
        assert bool({"kl/exact", "kl/k3"} & set(record)) == recorder.module.logs_kl()


def test_saved_held_out_rows_add_up_to_the_metrics(shared_run):
    folder = shared_run().folder
    logged = {record["update"]: record for record in records(folder)}
    saved = folder.held_out.read()
    for record in saved:
        value = sum(record["totals"]) / (sum(record["counts"]) or 1)
        name = record["metric"] if record["metric"].startswith("gold/") else f"eval/{record['metric']}"
        assert value == pytest.approx(logged[record["update"]][name], rel=1e-5)
    named = {record["metric"] for record in saved}
    assert ("eval/loss" in logged[0]) == ("loss" in named)
    assert not named or {record["update"] for record in saved} >= {0, max(logged)}


def test_a_resumed_run_equals_an_uninterrupted_one(shared_run, tmp_path):
    whole = shared_run().folder
    killed = RunFolder(shutil.copytree(whole.path, tmp_path / Path(*whole.path.parts[-3:])))
    # The state after kill -9: the checkpoint of update 1 and records of later updates.
    for path in sorted(killed.checkpoints.glob("*.ckpt"))[1:]:
        path.unlink()
    shutil.rmtree(killed.model)
    # A report takes longer than the rest of this test.
    killed.config.write_text(whole.config.read_text().replace("\nreport: true\n", "\nreport: false\n"))
    resumed(killed)
    assert records(killed) == records(whole)
    assert killed.samples.read() == whole.samples.read()
    assert killed.held_out.read() == whole.held_out.read()
    one, other = final_state(killed), final_state(whole)
    assert same(one["state_dict"], other["state_dict"])
    assert same(one["optimizer_states"], other["optimizer_states"])
    assert one["postrain"] == other["postrain"]


def test_gradient_is_independent_of_micro_batch_size_and_checkpointing(one_update):
    # Each row alone, with no shared prompt, and all rows together.
    one, other = (
        torch.cat([gradient.flatten() for gradient in one_update(tokens).gradients.values()]) for tokens in (1, 100_000)
    )
    assert float((one - other).norm() / one.norm()) < 1e-6


def test_gradient_is_independent_of_row_order(one_update):
    module, batch = one_update(100_000).module, one_update(100_000).batch
    found = []
    for order in (list(range(len(batch))), list(range(len(batch)))[::-1]):
        module.zero_grad()
        module.loss_sum(batch.select(order)).total.backward()
        found.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-6


def test_initial_log_ratios_to_the_reference_are_zero(shared_run):
    if shared_run().module.components.separate_reference:
        pytest.skip("the reference is another model than the initial policy")
    first = records(shared_run().folder)
    errors = {key: value for key, value in first[0].items() if key.endswith("log_ratio_max")}
    errors |= {key: value for key, value in first[1].items() if key == "rollout/logp_error"}
    assert all(value <= 1e-5 for value in errors.values())
    assert errors or any(name.endswith("accuracy") for name in first[0])


def test_plain_transformers_loads_the_exported_model(shared_run):
    recorder = shared_run("none")
    folder = recorder.folder
    scalar = recorder.module.head == "scalar"
    loaded = (AutoModelForSequenceClassification if scalar else AutoModelForCausalLM).from_pretrained(folder.model)
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    assert tokenizer.chat_template
    ids = torch.tensor([tokenizer("Tom found a red ball.").input_ids])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, recorder.module.policy.eval()(ids).logits, atol=1e-5)
    assert (folder.path / "report.html").is_file()
    assert (folder.model / "README.md").is_file()


def test_method_improves_its_success_metric(method, tmp_path):
    """A third of the default run, or less, changes the held-out metric of the method by its required amount."""
    execute(TRAIN, part_of_default(method, f"paths.output={tmp_path}"), overrides=[], group=None)
    (path,) = tmp_path.glob("*/*/*")
    metric, margin = required_change(method)
    before, after = before_and_after(RunFolder(path).metrics.read())[metric]
    assert after - before >= margin if margin > 0 else after - before <= margin


def required_change(method: str) -> tuple[str, float]:
    """The metric of a method's success and its least change."""
    return get_class(composed([f"method={method}"])["method"]["_target_"]).expected_change


def part_of_default(method: str, *words: str) -> dict[str, Any]:
    """The default run with a part of its updates and rows, evaluated with the success metric only."""
    words = (*with_teacher([f"method={method}"]), *words)
    words = (*words, "report=false", "evaluation.every=1000000", "evaluation.greedy=false")
    default = composed(words)["method"]
    updates = default["updates"] // UPDATES_DIVISOR.get(method, 3)
    batch = default["batch_size"] // BATCH_DIVISOR.get(method, 1)
    # Prompts are sampled several times each, and dynamic sampling draws further prompts.
    batch, draws = (batch // 2, 1 + default["dynamic_sampling"]) if "dynamic_sampling" in default else (batch, 1)
    # Only the rows that are used: generating and reference-scoring a row takes as long as training on it.
    rows = updates * batch * draws
    short = [f"method.updates={updates}", f"method.batch_size={batch}", f"data.source.count={rows}"]
    if required_change(method)[0] in MEASURED_ON_ROWS:
        short.append("evaluation.completions=0")
    return composed([*words, *short])


def test_a_misspelt_key_is_named_before_the_run_folder_exists(method, tmp_path):
    words = (f"method={method}", f"paths.output={tmp_path / 'runs'}", "++method.learning_rat=1")
    config = composed(with_teacher(words))
    with pytest.raises(ConfigError, match=r"method\.learning_rat.*learning_rate"):
        execute(TRAIN, config, overrides=[], group=None)
    assert not (tmp_path / "runs").exists()
