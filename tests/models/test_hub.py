"""The Hub: cached models need no network, missing files are downloaded, and requests time out."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from postrain.errors import ConfigError
from postrain.models import hub
from postrain.models.loading import load_causal
from tests.models.conftest import source, tiny_model
from tests.models.hub_server import COMMIT, serving
from tests.models.test_adapters import logits
from tests.models.test_loading import save_adapter


@pytest.fixture
def online(saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Hub with org/tiny and an empty cache; returns the directory it serves."""
    directory = saved("llama")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(directory) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield directory


def test_downloaded_model_is_found_later_without_a_network(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (online / "pytorch_model.bin").write_bytes(b"not wanted")
    fetched = source("org/tiny").resolve()
    assert (fetched.source, fetched.loads_as, fetched.revision) == ("hub", "org/tiny", COMMIT)
    assert fetched.name == "tiny"
    assert not (fetched.directory / "pytorch_model.bin").exists()
    assert torch.equal(logits(load_causal(fetched, dtype=torch.float32)), logits(tiny_model("llama")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert source("org/tiny").resolve() == fetched


def test_incomplete_download_is_completed(online: Path) -> None:
    directory = source("org/tiny").resolve().directory
    (directory / "model.safetensors").unlink()
    assert (source("org/tiny").resolve().directory / "model.safetensors").is_file()


def test_hub_adapter_is_named_after_its_repository(online: Path, tmp_path: Path) -> None:
    base = online.rename(tmp_path / "base")
    save_adapter(base, online)
    found = source("org/tiny").resolve()
    assert (found.name, found.source, found.directory) == ("tiny", "hub", base)
    assert len(found.adapters) == 1


def test_invalid_hub_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a directory here nor a name the Hub allows"):
        source("org/a--b").resolve()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("org/gated", "org/gated is gated: accept its license"),
        ("org/absent", "the Hub has no model org/absent"),
        ("org/broken", "Hub not reachable"),
    ],
)
def test_hub_refusal_is_a_one_line_error(online: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        source(path).resolve()
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_downloaded(online: Path) -> None:
    (online / "model.safetensors").rename(online / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="org/tiny has no safetensors weights"):
        source("org/tiny").resolve()


def test_unknown_hub_name_is_not_replaced_by_the_bundled_model(online: Path) -> None:
    with pytest.raises(ConfigError, match="the Hub has no model org/absent"):
        source("org/absent", offline="nano").resolve()


def test_request_without_a_response_times_out() -> None:
    with pytest.raises(hub.Unreachable, match="no answer within 0 s"):
        hub.with_timeout(0.01, lambda: time.sleep(0.5))


def test_hub_timeouts_are_below_ten_seconds() -> None:
    assert hub.REQUEST_SECONDS < hub.PROBE_SECONDS < 10
