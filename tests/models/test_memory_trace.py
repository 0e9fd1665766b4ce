"""The memory of a pass on fake tensors against the same pass on real ones."""

import pytest
import torch

from postrain.models.adapters import LoRA, NoAdapter
from postrain.models.memory_trace import FakeModel, LiveBytes
from postrain.models.scoring import score
from postrain.models.sources import ModelSource
from postrain.types import Rows
from tests.tiny import tiny_model

# A prompt of 6 tokens that two rows share, and a longer row.
IDS = [torch.tensor([5, 6, 7, 8, 9, 10, *rest]) for rest in ([11, 12], [13], [14] * 20)]
ROWS = Rows(tuple(IDS), tuple(torch.arange(len(ids)) >= 6 for ids in IDS), (0, 0, 1))


def test_live_bytes_counts_storages_until_they_are_freed():
    with LiveBytes() as live:
        one = torch.zeros(100)
        view = one[:50]
        assert live.bytes == 400
        other = one + 1
        del one, view
        assert (live.bytes, live.peak) == (400, 800)
    del other


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("adapter", [NoAdapter(), LoRA(r=2)], ids=["full", "lora"])
def test_peak_on_fake_tensors_is_that_on_real_ones(architecture, adapter, tmp_path, monkeypatch):
    model = tiny_model(architecture)
    monkeypatch.setattr("postrain.models.memory_trace.skeleton", lambda *_: tiny_model(architecture).to("meta"))
    resolved = ModelSource(path="bundled:nano").resolve()
    fake = FakeModel(resolved, "causal", adapter, dtype=torch.float32, device=torch.device("cpu"))
    estimated = fake.peak(ROWS, accumulates=False)
    policy = adapter.wrap(model, head="causal")
    score(policy, ROWS)  # tests once whether the model supports packing
    with LiveBytes([*policy.parameters(), *policy.buffers()]) as live:
        score(policy, ROWS).logps_BT.sum().backward()
    assert estimated == pytest.approx(live.peak, rel=0.05)


def test_peak_with_gradients_of_an_earlier_micro_batch_is_larger():
    resolved = ModelSource(path="bundled:nano").resolve()
    model = FakeModel(resolved, "causal", NoAdapter(), dtype=torch.float32, device=torch.device("cpu"))
    gradients = sum(parameter.numel() * 4 for parameter in model.policy.parameters())
    first, later = (model.peak(ROWS, accumulates=accumulates) for accumulates in (False, True))
    assert gradients < first < later
