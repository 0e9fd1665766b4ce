"""Every method of conf/method/*.yaml trains under a plain Lightning Trainer, with its callbacks, loggers and resume."""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Any

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import postrain as pt
from postrain.config.schema import load_target
from postrain.config.tree import instantiate
from postrain.methods.base import Method
from tests.training_runs import METHODS, composed, one_layer, small_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
ROWS = [{"prompt": f"{n} + 1 =", "chosen": f" {n + 1}.", "rejected": " no", "completion": " ok"} for n in range(12)]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@cache
def config(name: str) -> dict[str, Any]:
    small = ("method.batch_size=4", "data.source.count=24", "data.eval_rows=4", "rollout.max_new_tokens=6")
    return composed([f"method={name}", *small])


def method_arguments(name: str) -> tuple[type[Method], dict[str, Any]]:
    """The class of a method and its constructor arguments."""
    node = dict(config(name)["method"])
    kind: Any = load_target(node.pop("_target_"))
    model, tokenizer = pt.load_model(one_layer(), head=kind.head)
    components = {"model": model, "tokenizer": tokenizer, "engine": instantiate(config(name)["rollout"])}
    reward = {"reward": instantiate(config(name)["reward"])} if kind.needs_reward else {}
    teacher = {"reference": pt.load_model(one_layer())[0]} if kind.needs_teacher else {}
    return kind, {**components, **reward, **teacher, **{key: instantiate(value) for key, value in node.items()}}


class LearningRates(Callback):
    """The learning rate of every update."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values += [group["lr"] for group in trainer.optimizers[0].param_groups[:1]]
        assert pl_module.last_metrics.keys() <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_plain_trainer_trains_and_its_checkpoint_gives_the_same_logits(name, tmp_path):
    kind, given = method_arguments(name)
    method, rates = kind(**given), LearningRates()
    trainer = Trainer(max_steps=3, callbacks=[rates], **QUIET)
    trainer.fit(method, datamodule=instantiate(config(name)["data"]))
    assert method.counters.updates == method.updates == -(-3 // method.steps_per_update())
    assert all(0 < rate <= method.peak_learning_rate for rate in rates.values)
    assert any(key.startswith("eval/") for key in trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    reloaded = method_arguments(name)[1]
    loaded = kind.load_from_checkpoint(
        tmp_path / "last.ckpt", model=reloaded["model"], tokenizer=reloaded["tokenizer"], engine=given["engine"]
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(loaded.policy.eval()(ids).logits, method.policy.eval()(ids).logits)
    assert (loaded.updates, loaded.counters) == (method.updates, method.counters)
    assert loaded.settings() == method.settings()


# 24 rows in batches of 4: a third of a pass is two updates.
@pytest.mark.parametrize(
    ("name", "length"),
    [("sft", {"num_train_epochs": 1 / 3}), *((name, {"updates": 2}) for name in ("dpo", "grpo", "ppo"))],
)
def test_training_ends_with_the_schedule_when_the_trainer_has_more_epochs(name, length, capsys):
    kind, given = method_arguments(name)
    method, rates = kind(**{**given, **length}), LearningRates()
    Trainer(max_epochs=2, limit_val_batches=0, callbacks=[rates], **QUIET).fit(
        method, datamodule=instantiate(config(name)["data"])
    )
    assert method.counters.updates == 2
    assert all(0 < rate <= method.peak_learning_rate for rate in rates.values)
    assert "method.updates=2: training ends here" in capsys.readouterr().out


def sft(**changes: Any) -> Method:
    kind, given = method_arguments("sft")
    return kind(**{**given, **changes})


def fitted(method: Method, data: Any = None, **options: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, **options})
    trainer.fit(method, datamodule=data or instantiate(config("sft")["data"]))
    return trainer


def test_lightning_callbacks_and_loggers_receive_every_metric(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="eval/loss", filename="best")
    trainer = fitted(
        sft(updates=4),
        callbacks=[best, EarlyStopping("loss", patience=9), LearningRateMonitor("step")],
        logger=CSVLogger(tmp_path, name="csv", version=""),
        log_every_n_steps=1,
        val_check_interval=2,
        enable_checkpointing=True,
        enable_progress_bar=True,
    )
    lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert {"loss", "grad_norm", "eval/loss", "learning_rate", "lr-AdamW/pg1"} <= {*header}
    assert len(lines) >= 1 + 4
    assert best.best_model_score == trainer.callback_metrics["eval/loss"]
    assert json.loads(json.dumps(torch.load(best.best_model_path)["hyper_parameters"]))["updates"] == 4


def test_run_resumed_by_lightning_equals_an_uninterrupted_one(tmp_path):
    # The second penalty is on the distance to the weights before the checkpoint was loaded.
    whole, half, rest = (sft(updates=4, l2_coef=100.0) for _ in range(3))
    fitted(whole)
    trainer = fitted(half, limit_train_batches=2, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    Trainer(**QUIET).fit(rest, datamodule=instantiate(config("sft")["data"]), ckpt_path=tmp_path / "half.ckpt")
    state = whole.state_dict()
    assert all(torch.equal(state[name], value) for name, value in rest.state_dict().items())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"accumulate_grad_batches": 2}, "method.micro_batch_tokens"),
        ({"gradient_clip_val": 1.0}, "method.max_grad_norm"),
    ],
)
def test_unsupported_trainer_options_name_the_method_key(options, key):
    with pytest.raises(pt.ConfigError, match=key):
        fitted(sft(), **options)


def test_mistakes_are_one_line_config_errors():
    model, _ = pt.load_model("nano")
    done = sft(updates=1)
    fitted(done)
    kind, given = method_arguments("grpo")
    text: Any = "a"
    for call, message in (
        (lambda: fitted(done), "SFT: has been trained already, 1 updates"),
        (lambda: fitted(kind(**{**given, "reward": None})), r"reward: GRPO learns from a reward; give one"),
        (lambda: fitted(sft(), pt.DataModule([{"text": "a"}] * 9)), "Demonstration|prompt|completion"),
        (lambda: fitted(sft(), pt.DataModule(["a", "b"])), "data: expected rows such as"),
        (lambda: fitted(sft(), pt.DataModule(7)), "data: expected a list of rows"),
        (lambda: Trainer(**QUIET).fit(sft()), "data: no rows to train on"),
        (lambda: Trainer(**QUIET).fit(settings_only("sft")), "SFT: has no model"),
        (lambda: sft(tokenizer=None), "tokenizer: expected the model's tokenizer"),
        (lambda: sft(model="nano"), "model: expected a PyTorch model"),
        (lambda: method_arguments("reward")[0](**{**method_arguments("reward")[1], "model": model}), 'head="scalar"'),
        (lambda: kind(**{**given, "reward": 3}), "reward: expected a function"),
        (lambda: pt.load_model("no/such/dir/ectory"), "there is no such directory"),
        (lambda: pt.score(model, [text]), "rows: expected"),
        (lambda: pt.generate(torch.nn.Linear(1, 1), ["a"]), "tokenizer: pass tokenizer="),
    ):
        with pytest.raises(pt.ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def settings_only(name: str) -> Method:
    return instantiate(config(name)["method"])


def test_rows_are_lists_files_or_datasets(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    losses = []
    for rows in (ROWS, Dataset.from_list(ROWS), tmp_path / "rows.jsonl"):
        method = sft(updates=1)
        fitted(method, pt.DataModule(rows))
        losses.append(method.last_metrics["loss"])
    own = sft(updates=1, data=ROWS)
    Trainer(**QUIET).fit(own)
    assert losses == [own.last_metrics["loss"]] * 3


def test_config_groups_accept_classes_of_lightning_and_torch(tmp_path):
    """With mode=max and patience=1 the run ends at the first evaluation whose loss is not higher, with a reason."""
    stop = "callbacks.early_stopping"
    words = ("method=sft", "optim=sgd", "optim.momentum=0.5", "callbacks=[early_stopping,lr_monitor]")
    words += (f"{stop}.mode=max", f"{stop}.patience=1", "evaluation.completions=0", "evaluation.every=1")
    words += (
        "logger._target_=lightning.pytorch.loggers.CSVLogger",
        f"++logger.save_dir={tmp_path}",
        "++logger.name=csv",
    )
    folder = small_run(tmp_path / "runs", *words, "trainer.profiler=simple", "trainer.detect_anomaly=true")
    result = json.loads(folder.result.read_text())
    assert (result["updates"], result["stopped"]) == (2, "a callback stopped training at update 2")
    assert [record["update"] for record in folder.metrics.read()] == [0, 1, 2]
    assert "momentum: 0.5" in folder.config.read_text()
    (table,) = tmp_path.glob("csv/*/metrics.csv")
    lines = table.read_text().splitlines()
    column = lines[0].split(",").index("loss")
    assert len([line for line in lines[1:] if line.split(",")[column]]) == 2
    assert "lr-SGD/pg1" in lines[0]
    assert (folder.path / "fit-profile.txt").is_file()


def test_unsupported_optimizer_is_a_one_line_error():
    for make, message in (
        (partial(torch.optim.SGD, momentum=-1), "optim: Invalid momentum"),
        (partial(torch.optim.LBFGS), "optim: LBFGS"),
        (lambda groups, lr: None, "optim: expected a torch optimizer"),
    ):
        with pytest.raises(pt.ConfigError, match=message):
            fitted(sft(optim=make))
