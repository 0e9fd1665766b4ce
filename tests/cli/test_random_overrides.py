"""Random overrides result in a valid config or in short error lines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest

from postrain.config.arguments import composition_errors, resolved
from postrain.config.check import check
from postrain.config.overrides import forced, last_choices
from postrain.config.tree import parse
from postrain.errors import ConfigError
from postrain.evaluation.config import EvaluateConfig, model_path
from postrain.generation.config import GenerateConfig
from postrain.training.config import TrainConfig
from tests.training_runs import CONF, composed, unresolved

LINES = 500
# Primary configs and options that together have most keys.
BASES = (
    ("config", ("method=ppo", "adapter=lora", "logger=wandb", "reward=weighted")),
    ("config", ("method=grpo", "rollout=vllm", "environment=calculator", "evaluation=all")),
    ("config", ("method=dpo", "trainer=ddp_cpu")),
    ("config", ("method=kto", "data=jsonl", "data.path=rows.jsonl")),
    ("generate", ("selection=preferences",)),
    ("evaluate", ("model=nano",)),
)
VALUES = (
    *("null", "-1", "0", "1", "1.5", "-0.5", "true", "x", "''", "'a b'", "???", "inf", "nan", "1e400", "-1e400"),
    *("1000000000000", "1" + "0" * 400, "1" + "0" * 5000, "[" * 900 + "]" * 900),
    *("[]", "[1,2]", "[null]", "[[1]]", "{}", "{a:1}", "{1:2}", "{a:{b:2}}", "{_target_:a.b}", "{_target_:3}"),
    *(
        "{_target_:postrain.hardware.trainer.Hardware}",
        "builtins.dict",
        "os.system",
        "postrain.methods.sft.SFT",
        "a..b",
    ),
    *("${seed}", "${nope}", "${nope:1}", "${method}", "${data.quality}", "${", "'${'", "'${seed'", "${oc.env:NOPE}"),
    *("1,2", "range(3)", "glob(*)", "int(x)", "'", "$", "~", "=", "#"),
)
CHECKS: dict[str, Callable[[Any], None]] = {
    "config": partial(check, root=TrainConfig),
    "generate": partial(check, root=GenerateConfig),
    "evaluate": partial(check, root=EvaluateConfig),
}


def keys(node: Any, path: str = "") -> Iterator[str]:
    """Every dotted key of a config."""
    for name, value in node.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from keys(value, f"{path}{name}.")


@cache
def known(base: int) -> list[str]:
    root, words = BASES[base]
    return list(keys(composed(words, root)))


def override(draw: random.Random, key: str) -> str:
    """A deletion of the key, a value for it, or a value for a key below or beside it."""
    kind, value = draw.random(), draw.choice(VALUES)
    if kind < 0.2:
        return f"~{key}"
    if kind < 0.3:
        return f"{key}.{draw.choice(['x', '0', '_target_', '_partial_'])}={value}"
    return f"{draw.choice(['', '', '+', '++'])}{key[:-1] if kind < 0.35 else key}={value}"


def compose_and_check(root: str, words: list[str]) -> None:
    """The steps from a command line to a checked config."""
    with composition_errors():
        config = unresolved(root, last_choices(forced(words, CONF, root=root)))
    plain = resolved(config)
    if root == "evaluate":
        model_path(plain)
    CHECKS[root](plain)


SHARE = "a number >= 0 and <= 1"


@pytest.mark.parametrize("base", range(len(BASES)))
def test_random_override_is_a_valid_config_or_short_lines(base: int) -> None:
    root, words = BASES[base]
    draw = random.Random(base)
    lines: list[str] = []
    for _ in range(LINES // len(BASES) + 1):
        overrides = [override(draw, draw.choice(known(base))) for _ in range(draw.choice((1, 1, 2)))]
        try:
            compose_and_check(root, [*words, *overrides])
        except ConfigError as error:
            lines += str(error).splitlines() or [""]
    assert {line for line in lines if not 0 < len(line) < 600} == set()
    assert len(lines) > LINES // len(BASES) // 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["~name"], "~name: nothing to delete; it has its default or does not exist"),
        (["~model"], "~model: cannot be deleted; every run has one; choose an option, as in model=nano"),
        (["~hydra.run"], "~hydra.run: cannot be deleted; set it instead, as in hydra.run=VALUE"),
        (["~data.quality.balance"], "~data.quality.balance: nothing to delete; it has its default or does not exist"),
        (["~data.nope"], "~data.nope: nothing to delete; it has its default or does not exist"),
        (["method.adam_betas={a:1}"], f"method.adam_betas: expected a list of 2: {SHARE}, {SHARE}, got {{'a': 1}}"),
        (["method.adam_betas.x=1"], f"method.adam_betas: expected a list of 2: {SHARE}, {SHARE}, got {{'x': 1}}"),
        (["model._target_=${nope:1}"], "model._target_: Unsupported interpolation type nope"),
        (["seed=${seed}"], "seed: Recursive interpolation detected"),
        (["name=" + "[" * 900], "name=" + "[" * 74 + "…: cannot be read (more than 20 brackets inside each other); "
         "quote special characters, as in name='\"...\"'"),
        (["model.name=gpt2"],
         "model.name: only names the model in folders and reports; choose one with model=OPTION or model.path=PATH"),
        (["model=Qwen/Qwen2.5-7B"],
         "model=Qwen/Qwen2.5-7B: no such option; write model=local model.path=Qwen/Qwen2.5-7B"),
        (["data=rows.jsonl"], "data=rows.jsonl: no such option; write data=jsonl data.path=rows.jsonl"),
        (["reward='mine.py:f'"], "reward=mine.py:f: no such option; write reward=function reward.function=mine.py:f"),
        (["rollout=[null]"], "rollout=None: no such option; available: local, vllm"),
        (["seed=1000000000000000000000"],
         "seed: expected an integer >= 0 and <= 9223372036854775807, got 1000000000000000000000"),
        (["method.batch_size=1000000000000"],
         "method.batch_size: expected an integer >= 1 and <= 1000000, got 1000000000000"),
        (["method.batch_size=-1"], "method.batch_size: expected an integer >= 1, got -1"),
        (["data.max_length=1000000000000"],
         "data.max_length: expected an integer >= 4 and <= 1000000000 or null, got 1000000000000"),
        (["method.learning_rate=inf"],
         "method.learning_rate: expected a number > 0 or auto or a multiple of the default (0.5x) or null, got inf"),
        (["method._partial_=true"], "method._partial_: unknown key; of Hydra's own keys only _target_ is used here"),
        (["trainer._convert_=all"], "trainer._convert_: unknown key; of Hydra's own keys only _target_ is used here"),
        (["_target_=a.b"], "_target_: unknown key; only the value of a group has it, as in method._target_"),
        (["paths._target_=a.b"], "paths._target_: unknown key; paths is not built from a class"),
        (["model._target_=postrain.training.loggers.NoTracker"], "model._target_: expected a node with _target_ "
         "(ModelSource), got postrain.training.loggers.NoTracker"),
        (["reward._target_=builtins.dict"],
         "reward._target_: <class 'dict'> has no inspectable signature; wrap it in a function"),
        (["debug=default"], "debug: expected true or false, got 'default'; true shows tracebacks; for a short trial "
         "use method.updates=3 evaluation=quick"),
    ],
)  # fmt: skip
def test_error_line_names_the_override_and_the_expected_value(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_and_check("config", ["method=ppo", *words])
    assert str(caught.value) == line


@pytest.mark.parametrize("method", ["ppo", "grpo", "online_dpo"])
def test_sizes_with_a_too_large_product_are_one_line(method: str) -> None:
    words = ["method.batch_size=1000000", "rollout.max_new_tokens=1000000"]
    with pytest.raises(
        ConfigError, match=r"^method\.batch_size=1000000 × .*rollout\.max_new_tokens=1000000: expected at"
    ):
        parse(composed([f"method={method}", *words]), TrainConfig)


@pytest.mark.parametrize("group", ["trainer", "model", "method", "data"])
def test_group_without_its_target_is_rejected(group: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{group}: expected a node with _target_ .* without _target_(;|$)"):
        compose_and_check("config", ["method=ppo", f"~{group}._target_"])


@pytest.mark.parametrize(
    ("method", "typed", "line"),
    [
        ("ppo", "trainer.max_epochs", "did you mean method.num_train_epochs or method.updates?"),
        ("sft", "num_train_epochs", "did you mean method.num_train_epochs or method.updates?"),
        ("ppo", "trainer.max_steps", "did you mean method.updates? (an update is one optimizer step, or epochs * "
         "minibatches steps for methods with these keys)"),
        ("ppo", "num_ppo_epochs", "did you mean method.epochs?"),
        ("grpo", "steps_per_generation", "did you mean method.minibatches_per_epoch? (optimizer steps in each pass "
         "over a rollout)"),
        ("dpo", "sync_ref_model", "did you mean method.ref_sync_steps? (updates between synchronizations, such as 64; "
         "0 for none)"),
        ("sft", "lr", "did you mean method.learning_rate?"),
        ("sft", "optimizer.lr", "did you mean method.learning_rate?"),
        ("sft", "per_device_train_batch_size", "did you mean method.batch_size? (global batch size over all devices; "
         "method.micro_batch_tokens bounds the memory)"),
        ("sft", "logging_steps", "every update is logged; leave it out"),
        ("grpo", "num_generations", "did you mean method.group_size?"),
        ("dpo", "beta", "did you mean method.beta?"),
        ("grpo", "beta", "did you mean method.kl_coef?"),
        ("sft", "lora_r", "did you mean adapter.r? (with adapter=lora)"),
        ("sft", "output_dir", "did you mean paths.output?"),
        ("sft", "paths.output_dir", "did you mean paths.output?"),
        ("sft", "hparams_search", "choose sweep=search, or sweep=FILE.yaml with a search of your own"),
        ("sft", "extras.print_config", "leave it out; --cfg job prints the config"),
        ("sft", "extras.enforce_tags", "leave it out; --cfg job prints the config"),
        ("sft", "model.name_or_path", "choose model=OPTION, or model=local model.path=DIRECTORY_OR_HUB_NAME"),
    ],
)  # fmt: skip
def test_key_of_another_program_suggests_the_equivalent(method: str, typed: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_and_check("config", [f"method={method}", f"{typed}=1"])
    assert str(caught.value) == f"{typed}: unknown key; {line}"
