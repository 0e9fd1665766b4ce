"""What a run's parts have to agree on before anything learns."""

from dataclasses import dataclass, replace

import pytest

from postrain.config.check import instantiate
from postrain.models.adapters import Adapter
from postrain.models.loading import load_tokenizer
from postrain.training.components import compared_with, origin
from postrain.types import ConfigError
from tests.training_runs import composed


@dataclass(frozen=True, kw_only=True)
class InFourBits(Adapter):
    """What QLoRA does to the weights, without the library that does it."""

    def quantization(self) -> str:
        return "nf4"


def test_what_is_kept_of_a_reference_depends_on_all_that_decides_its_numbers():
    config = composed(["method=dpo"])
    nano, cpu = instantiate(config["model"]).resolve(), instantiate(config["trainer"])
    quantised = {**config, "adapter": {"_target_": "tests.training.test_components.InFourBits"}}
    lora = composed(["method=dpo", "adapter=lora"])
    names = [
        origin(nano, config, cpu),
        origin(replace(nano, from_scratch=True), config, cpu),
        origin(replace(nano, fingerprint="other"), config, cpu),
        origin(nano, config, replace(cpu, precision="bf16")),
        origin(nano, config, replace(cpu, accelerator="gpu")),
        origin(nano, quantised, cpu),
    ]
    assert len(set(names)) == len(names)
    # A fresh LoRA adapter changes nothing yet.
    assert origin(nano, lora, cpu) == names[0]


@pytest.mark.parametrize(("method", "says"), [("reward", "this method gives no log-probabilities"), ("sft", None)])
def test_only_language_models_are_compared(method, says):
    config = composed([f"method={method}", "reference=bundled:nano"])
    tokenizer = load_tokenizer(instantiate(config["model"]).resolve())
    if says is None:
        found = compared_with(instantiate(config["method"]), config, tokenizer)
        assert found is not None
        assert found.name == "nano"
        return
    with pytest.raises(ConfigError, match=rf"^reference=bundled:nano: {says}.*leave it out$"):
        compared_with(instantiate(config["method"]), config, tokenizer)
