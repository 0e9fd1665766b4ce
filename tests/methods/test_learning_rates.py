"""Default learning rates by model size, `learning_rate=auto`, and the trial of rates far above the default."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import LlamaConfig

import postrain as pt
from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.methods.dpo import DPO
from postrain.methods.grpo import GRPO
from postrain.methods.learning_rate_search import LearningRateTrials, Trial, next_factor
from postrain.methods.learning_rates import count, describe, resolve
from postrain.methods.pretrain import Pretrain
from postrain.methods.sft import SFT
from postrain.models.adapters import NoAdapter
from postrain.models.gradient_checkpointing import gradient_checkpointing
from postrain.models.memory_trace import FakeModel
from postrain.models.size import micro_batch_tokens
from postrain.models.sources import ModelSource
from postrain.types import Rows
from tests.methods.builders import make_method
from tests.test_lightning import QUIET, config, method_arguments
from tests.tiny import tiny_model
from tests.training_runs import train_config


@pytest.mark.parametrize(
    ("layers", "hidden", "inner", "dtype", "gigabytes", "tokens"),
    [
        (4, 128, 512, torch.float32, 2, 8192),
        # 30 · (9·576 + 4·1536) · 4 bytes = 1.36 MB per token; a quarter of 16 GiB holds 3158 of them.
        (30, 576, 1536, torch.float32, 16, 2048),
        (30, 576, 1536, torch.bfloat16, 16, 4096),
        (28, 1536, 8960, torch.float32, 4, 256),
    ],
)
def test_default_micro_batch_keeps_its_activations_in_a_quarter_of_the_memory(
    layers, hidden, inner, dtype, gigabytes, tokens
):
    config = LlamaConfig(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner)
    assert (
        micro_batch_tokens(config, on_gpu=False, most=8192, dtype=dtype, memory=2 * gigabytes << 30, devices=2)
        == tokens
    )


@pytest.mark.parametrize(
    ("precision", "words", "gigabytes", "tokens"),
    [
        ("bf16-mixed", [], 80, 32768),
        # Of nano's 4 layers, 4 · (9·128 + 4·512) · 2 · 2.3 bytes = 59 kB per token; 16 MB of weights and AdamW.
        ("bf16-mixed", [], 1, 8192),
        ("bf16-mixed", ["method.gradient_checkpointing=true"], 1, 32768),
        ("fp32", [], 1, 4096),
        ("bf16-mixed", ["method.micro_batch_tokens=100"], 1, 100),
    ],
)
def test_default_micro_batch_on_a_gpu_fits_half_of_the_free_memory(precision, words, gigabytes, tokens, monkeypatch):
    monkeypatch.setattr("postrain.training.config.total_memory", lambda device: gigabytes << 30)
    config = train_config(["method=sft", "trainer=gpu", f"trainer.precision={precision}", *words])
    assert config.micro_batch_tokens == tokens


def test_default_micro_batch_in_python_leaves_room_for_the_reference(monkeypatch):
    policy, seen = tiny_model("gpt2"), {}
    monkeypatch.setattr("postrain.methods.update_loop.micro_batch_tokens", lambda *_, **given: seen.update(given) or 7)
    method = make_method("dpo", policy, reference=tiny_model("gpt2"), micro_batch_tokens=None)
    assert method.tokens_per_micro_batch == 7
    # Each parameter has 4 bytes of weights, 12 of gradients and AdamW, and 4 of the frozen reference.
    assert seen["state_bytes"] == 20 * sum(each.numel() for each in policy.parameters())
    assert seen["devices"] == 1


def test_default_micro_batch_in_python_shares_memory_with_the_ranks_of_its_node(monkeypatch):
    seen = {}
    monkeypatch.setattr("postrain.methods.update_loop.micro_batch_tokens", lambda *_, **given: seen.update(given) or 7)
    monkeypatch.setattr(collectives, "world_size", lambda: 8)
    method = make_method("sft", tiny_model("gpt2"), micro_batch_tokens=None)
    # 8 ranks on 4 nodes.
    method.trainer = trainer = SimpleNamespace(num_devices=2, num_nodes=4)
    assert method.tokens_per_micro_batch == 7
    assert seen["devices"] == trainer.num_devices == 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
def test_default_micro_batch_on_a_gpu_is_an_upper_bound_of_the_traced_one(precision, checkpointing, tmp_path):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config.save_pretrained(tmp_path)
    pt.load_model("nano")[1].save_pretrained(tmp_path)
    model = FakeModel(
        ModelSource(path=str(tmp_path), from_scratch=True).resolve(),
        "causal",
        NoAdapter(),
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        device=torch.device("cpu"),
    )

    @contextmanager
    def context():
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
        with autocast, gradient_checkpointing(model.policy, enabled=checkpointing):
            yield

    def peak(rows: int) -> int:
        ids = torch.randint(64, (rows, 256), generator=torch.Generator().manual_seed(0)).unbind()
        found = Rows(ids, (torch.arange(256) > 0,) * rows, tuple(range(rows)))
        return model.peak(found, accumulates=True, context=context)

    traced = (peak(12) - peak(4)) / (8 * 256)
    memory = int(4096 * traced / 0.5)
    found = micro_batch_tokens(
        config, on_gpu=True, most=1, dtype=torch.bfloat16, memory=memory, checkpointing=checkpointing
    )
    assert 512 <= found <= 4096


@pytest.mark.parametrize(
    ("rates", "parameters", "options", "rate"),
    [
        (SFT.rates, 10**9, {}, 2e-5),
        # √(1000 / 135) = 2.72
        (SFT.rates, 135_000_000, {}, 5.4e-5),
        (SFT.rates, 135_000_000, {"adapter": True}, 5.4e-4),
        # √(1 / 8) = 0.354
        (SFT.rates, 8 * 10**9, {}, 7.1e-6),
        (DPO.rates, 10**9, {}, 1e-6),
        (GRPO.rates, 4 * 10**9, {}, 5e-7),
        (Pretrain.rates, 10**9, {"from_scratch": True}, 2e-4),
        (SFT.rates, 989_952, {}, 2e-3),
        (SFT.rates, 989_952, {"adapter": True}, 1e-2),
        (DPO.rates, 989_952, {"adapter": True}, 1e-4),
    ],
)
def test_default_rate_scales_with_the_square_root_of_size_and_tenfold_with_an_adapter(rates, parameters, options, rate):
    assert rates.for_model(parameters, **options) == rate


@pytest.mark.parametrize(
    ("rate", "resolved"), [(None, 2.7e-6), ("0.15x", 4.05e-7), ("2x", 5.4e-6), (1e-4, 1e-4), ("auto", "auto")]
)
def test_a_multiple_is_one_of_the_default_rate(rate, resolved):
    assert resolve(rate, 2.7e-6) == resolved


def test_multiples_hold_in_configs_and_in_python():
    model, tokenizer = pt.load_model("nano")
    assert DPO(model, tokenizer, learning_rate="0.8x").peak_learning_rate == 8e-5
    config = train_config(["method=dpo", "method.learning_rate=0.8x"])
    config.check()
    assert config.method.learning_rate == 8e-5
    with pytest.raises(ConfigError, match=r"or a multiple of the default \(0.5x\) or null, got '0x'"):
        train_config(["method=dpo", "method.learning_rate=0x"])


def test_console_line_names_the_default_where_another_rate_is_set():
    line = describe(2e-5, parameters=134_515_008, adapter=False, default=5.4e-5)
    assert line == "learning rate 2e-05: full fine-tuning, 135M parameters (default 5.4e-05)"
    assert describe(1e-3, parameters=1_235_000_000, adapter=True, default=1e-3) == (
        "learning rate 0.001: LoRA, 1.2B parameters"
    )
    assert count(989_952) == "1.0M"


@pytest.mark.parametrize(
    ("trial", "factor"),
    [
        (Trial(1e-3, 0.04, 2.0, 1.9, target=0.01, grad_norm=1.0), 0.5),
        (Trial(1e-3, 0.0001, 2.0, 1.9, target=0.01, grad_norm=1.0), 10.0),
        (Trial(1e-3, 0.01, 2.0, 2.5, target=0.01, grad_norm=1.0), 1 / 3),
        (Trial(1e-3, float("nan"), 2.0, 2.5, target=0.01, grad_norm=1.0), 0.1),
    ],
)
def test_next_rate_follows_from_a_quadratic_divergence(trial, factor):
    assert next_factor(trial) == pytest.approx(factor)


def trained(name: str, **changes: Any) -> Any:
    kind, given = method_arguments(name)
    method = kind(**{**given, "updates": 2, **changes})
    steps = 2 * method.steps_per_update()
    Trainer(max_steps=steps, limit_val_batches=0, **QUIET).fit(method, datamodule=instantiate(config(name)["data"]))
    return method


# The policy moves in the trials, though the critic warms up in the run.
@pytest.mark.parametrize(("name", "changes"), [("sft", {}), ("reward", {}), ("ppo", {"critic_warmup": 1})])
def test_automatic_rate_leaves_nothing_behind(name, changes, capsys):
    automatic = trained(name, learning_rate="auto", **changes)
    printed = capsys.readouterr().out
    assert f"learning rate {automatic.learning_rate:.2g} (auto)" in printed
    assert "move the policy by 0 nats" not in printed
    explicit = trained(name, learning_rate=automatic.learning_rate, check_learning_rate=False, **changes)
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(automatic.parameters(), explicit.parameters(), strict=True)
    )
    assert automatic.last_metrics == explicit.last_metrics


class ScriptedTrials(LearningRateTrials):
    """Trials whose n-th draw of rows has the n-th gradient norm; the divergence is (rate / 1e-3)² · target."""

    def __init__(self, *grad_norms: float) -> None:
        self.grad_norms, self.draws = grad_norms, 1

    def draw(self) -> bool:
        if self.draws == len(self.grad_norms):
            return False
        self.draws += 1
        return True

    def run(self, rate: float) -> Trial:
        norm = self.grad_norms[self.draws - 1]
        return Trial(rate, 0.01 * (rate / 1e-3) ** 2 * (norm > 0), 1.0, 1.0, target=0.01, grad_norm=norm)


@pytest.mark.parametrize(
    ("norms", "rate", "draws"),
    [((2.0,), 1e-3, 1), ((0.0, 0.0, 2.0), 1e-3, 3), ((0.0, 0.0), None, 2), ((0.0,) * 5, None, 4)],
)
def test_search_draws_rows_until_they_have_a_gradient(norms, rate, draws):
    trials = ScriptedTrials(*norms)
    found = trials.search(1e-4)
    assert (found and found.rate) == (rate and pytest.approx(rate))
    assert trials.draws == draws


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        ("auto", "learning rate 0.0005 (default): auto cannot measure one, because the first 2 batches "),
        (0.01, "learning rate 0.01: not checked, because the first 2 batches "),
    ],
)
def test_rate_without_a_gradient_is_the_default_and_is_not_checked(rate, line, capsys):
    def constant(prompts: list[str], **_: Any) -> list[float]:
        return [1.0] * len(prompts)

    method = trained("grpo", learning_rate=rate, reward=constant, dynamic_sampling=0, batch_size=2, group_size=2)
    assert method.learning_rate == (5e-4 if rate == "auto" else rate)
    assert f"{line}of the run give the policy no gradient" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("dpo", 0.1, r"move the policy by \d\.\d+ nats/token \(allowed 0\.5\); the default is 0\.0001"),
        ("sft", 0.03, r"raise the loss of their rows from [\d.]+ to [\d.]+; the default is 0\.002"),
    ],
)
def test_rate_that_destroys_the_policy_is_refused_with_what_it_exceeds(name, rate, message):
    remedy = "Give a lower rate or auto, or method.check_learning_rate=false"
    with pytest.raises(
        ConfigError, match=rf"^method\.learning_rate={rate}: 3 updates at this rate {message}\. {remedy}$"
    ):
        trained(name, learning_rate=rate)


def test_rate_is_the_default_of_the_model_from_python():
    model, tokenizer = pt.load_model("nano")
    assert SFT(model, tokenizer).learning_rate == 2e-3
    assert DPO(model, tokenizer, loss="ipo", beta=1.0).learning_rate == 2e-4


@pytest.mark.parametrize("words", [["method=reward"], ["method=sft", "evaluation.completions=0"]])
def test_sharded_trials_without_a_reference_are_refused_before_the_run(words):
    config = train_config([*words, "method.learning_rate=auto", "trainer=fsdp", "trainer.accelerator=cpu"])
    with pytest.raises(ConfigError, match=r"learning_rate=auto.*fsdp.*as reference.*default, 0\.00"):
        config.check()
