"""The memory estimate of a run, and the refusal of a run that does not fit."""

import pytest

from postrain.errors import ConfigError
from postrain.training import memory
from postrain.training.components import build
from postrain.training.memory import estimate, state_bytes
from postrain.training.workload import largest_micro_batch
from tests.training_runs import SMALL, train_config


def estimated(*overrides):
    """The estimate of a small run."""
    found = []

    class Estimated(Exception):
        pass

    def before_weights(config, data):
        found.append(estimate(config, data))
        raise Estimated

    with pytest.raises(Estimated):
        build(train_config([*SMALL, *overrides]), before_weights=before_weights)
    return found[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (8, 8)),  # two float32 moments
        (["optim=sgd"], (4, 4)),  # one momentum
        (["optim=muon"], (4, 8)),  # one momentum of a matrix of a block, AdamW's moments of the others
        (["trainer.precision=bf16"], (12, 12)),  # a float32 copy and two moments
        (["trainer.precision=bf16", "trainer.master_weights=false"], (4, 4)),
        (["trainer.precision=bf16", "adapter=lora"], (8, 8)),
    ],
)
def test_optimizer_bytes_per_parameter_in_and_outside_of_blocks(overrides, expected):
    assert state_bytes(train_config(["method=sft", *overrides])) == pytest.approx(expected, abs=0.01)


def test_pairs_with_masks_of_shared_prompts_are_traced():
    """Masks are on the device of the run, as its tensors are: cpu, not cpu:0."""
    assert estimated("method=dpo", "data.source.count=64", "data.max_length=64").activations > 0


def test_reference_in_the_loss_is_a_second_model_except_with_an_adapter():
    ppo = estimated("method=ppo")
    assert ppo.reference == ppo.weights
    assert ppo.gradients == ppo.parameters * 4
    lora = estimated("method=ppo", "adapter=lora")
    assert lora.reference == 0
    assert lora.trained < ppo.trained / 5


def test_sharded_run_keeps_its_share_and_gathers_block_by_block():
    fsdp = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.devices=4")
    whole, found = estimated("method=ppo"), estimated("method=ppo", *fsdp)
    for part in ("weights", "reference", "gradients", "optimizer"):
        assert getattr(found, part) == pytest.approx(getattr(whole, part) / 4)
    # nano: four blocks of 198,272 parameters; embeddings of 1,024 tokens and 512 positions, and the last norm.
    block, outside = 198_272, (1024 + 512 + 2) * 128
    assert found.parameters == 4 * block + outside
    # Policy and reference.
    assert found.gathered == 2 * 4 * (2 * outside + 3 * block)
    assert (whole.gathered, found.scoring - whole.scoring) == (0, 2 * 4 * found.parameters)
    zero2 = estimated("method=ppo", *fsdp, "trainer.reshard_after_forward=false")
    assert zero2.gathered == 2 * 2 * 4 * found.parameters
    copies = estimated("method=ppo", *fsdp, "trainer.shard_size=2")
    assert (copies.weights, copies.optimizer) == (2 * found.weights, 2 * found.optimizer)
    assert copies.gathered == found.gathered


def test_gradient_checkpointing_lowers_activations():
    plain, recomputed = (estimated("method=sft", f"method.gradient_checkpointing={each}") for each in ("false", "true"))
    assert recomputed.activations < plain.activations / 2


def test_largest_micro_batch_counts_shared_prompts_once():
    found = []

    class Found(Exception):
        pass

    def before_weights(config, data):
        found.append(largest_micro_batch(config, data))
        raise Found

    config = train_config([*SMALL, "method=grpo", "method.batch_size=2", "method.group_size=4"])
    with pytest.raises(Found):
        build(config, before_weights=before_weights)
    (work,) = found
    # Two prompts and eight completions of eight tokens.
    prompts = {index: len(ids) - 8 for index, ids in zip(work.rows.row_ids, work.rows.ids, strict=True)}
    assert work.tokens <= sum(prompts.values()) + 8 * 8 <= work.tokens + 8
    assert len(work.rows) == 8


def test_run_that_does_not_fit_is_refused_before_weights_are_loaded(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 0)
    monkeypatch.setattr(memory, "resident_memory", lambda: 2**28)
    monkeypatch.setattr("postrain.training.components.load_policy", lambda *_: pytest.fail("weights were loaded"))
    message = r"^memory: this run needs about .* GiB \(process 0.4, .*activations .*use .*trainer.check_memory=false"
    with pytest.raises(ConfigError, match=message) as error:
        build(train_config([*SMALL, "method=sft"]))
    assert "\n" not in str(error.value)


def test_check_memory_false_starts_a_run_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 0)
    assert build(train_config([*SMALL, "method=sft", "trainer.check_memory=false"])).method.policy


def test_upper_bound_exceeds_the_estimate():
    assert memory.upper_bound(train_config([*SMALL, "method=ppo"])) > estimated("method=ppo").total
