"""Consistency checks on the components of a run before training."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.models.adapters import Adapter, LoRA
from postrain.models.loading import load_tokenizer
from postrain.rewards.base import WeightedSum
from postrain.rewards.function import Function
from postrain.rewards.tool_calls import tool_calls
from postrain.rollout.environment import SINGLE_TURN
from postrain.training.components import check_call_format
from postrain.training.reference import reference_fingerprint, resolve_reference
from tests.data.helpers import byte_tokenizer
from tests.training_runs import train_config


@dataclass(frozen=True, kw_only=True)
class Quantized(Adapter):
    """Quantizes like QLoRA, without bitsandbytes."""

    def quantization(self) -> str:
        return "nf4"


def test_reference_fingerprint_depends_on_weights_precision_device_and_quantization():
    config = train_config(["method=dpo"])
    nano = config.resolved
    names = [
        reference_fingerprint(config, nano),
        reference_fingerprint(config, replace(nano, from_scratch=True)),
        reference_fingerprint(config, replace(nano, fingerprint="other")),
        reference_fingerprint(replace(config, trainer=replace(config.trainer, precision="bf16")), nano),
        reference_fingerprint(replace(config, trainer=replace(config.trainer, accelerator="gpu")), nano),
        reference_fingerprint(replace(config, adapter=Quantized()), nano),
        reference_fingerprint(
            replace(config, reference="other", trainer=replace(config.trainer, reference_precision="bf16")), nano
        ),
    ]
    assert len(set(names)) == len(names)
    # A new LoRA adapter does not change the outputs.
    lora = train_config(["method=dpo", "adapter=lora"])
    assert isinstance(lora.adapter, LoRA)
    assert reference_fingerprint(lora, nano) == names[0]


@pytest.mark.parametrize(("method", "refusal"), [("reward", "this method has no log-probabilities"), ("sft", None)])
def test_reference_requires_a_language_model(method, refusal):
    config = train_config([f"method={method}", "reference=bundled:nano"])
    tokenizer = load_tokenizer(config.resolved)
    if refusal is None:
        found = resolve_reference(config, tokenizer)
        assert found is not None
        assert found.name == "nano"
        return
    with pytest.raises(ConfigError, match=rf"^reference=bundled:nano: {refusal}.*remove it$"):
        resolve_reference(config, tokenizer)


CALLS_AS_PYTHON = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.x }}){% endfor %}<|stop|>"
    "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.mark.parametrize(
    "reward", [Function.of(tool_calls), WeightedSum(parts={"a": Function.of(tool_calls)}, weights={"a": 1})]
)
def test_calls_that_cannot_be_read_are_refused_before_training(reward):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}}]
    prompts = Prompts(ids=(), texts=("Go.", "Go."), columns=({}, {"tools": tools}), row_ids=(1, 2))

    def check(mode, reward, template=None):
        template = Template(byte_tokenizer(template=template), mode=mode)
        components = SimpleNamespace(template=template, reward=reward, environment=SINGLE_TURN)
        method: Any = SimpleNamespace(components=components)
        check_call_format(method, prompts)

    with pytest.raises(ConfigError, match="tool calls in a form that cannot be read"):
        check("auto", reward, CALLS_AS_PYTHON)
    check("auto", Function.of(len), CALLS_AS_PYTHON)
    check("tools", reward)
