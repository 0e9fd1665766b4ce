"""What a run's parts have to agree on before anything learns."""

from dataclasses import dataclass, replace

import pytest

from postrain.models.adapters import Adapter, LoRA
from postrain.models.loading import load_tokenizer
from postrain.training.components import reference_fingerprint, resolve_reference
from postrain.types import ConfigError
from tests.training_runs import train_config


@dataclass(frozen=True, kw_only=True)
class InFourBits(Adapter):
    """What QLoRA does to the weights, without the library that does it."""

    def quantization(self) -> str:
        return "nf4"


def test_what_is_kept_of_a_reference_depends_on_all_that_decides_its_numbers():
    config = train_config(["method=dpo"])
    nano = config.resolved
    names = [
        reference_fingerprint(config, nano),
        reference_fingerprint(config, replace(nano, from_scratch=True)),
        reference_fingerprint(config, replace(nano, fingerprint="other")),
        reference_fingerprint(replace(config, trainer=replace(config.trainer, precision="bf16")), nano),
        reference_fingerprint(replace(config, trainer=replace(config.trainer, accelerator="gpu")), nano),
        reference_fingerprint(replace(config, adapter=InFourBits()), nano),
    ]
    assert len(set(names)) == len(names)
    # A fresh LoRA adapter changes nothing yet.
    lora = train_config(["method=dpo", "adapter=lora"])
    assert isinstance(lora.adapter, LoRA)
    assert reference_fingerprint(lora, nano) == names[0]


@pytest.mark.parametrize(("method", "says"), [("reward", "this method gives no log-probabilities"), ("sft", None)])
def test_only_language_models_are_compared(method, says):
    config = train_config([f"method={method}", "reference=bundled:nano"])
    tokenizer = load_tokenizer(config.resolved)
    if says is None:
        found = resolve_reference(config, tokenizer)
        assert found is not None
        assert found.name == "nano"
        return
    with pytest.raises(ConfigError, match=rf"^reference=bundled:nano: {says}.*leave it out$"):
        resolve_reference(config, tokenizer)
