"""Code in a model folder never runs, and no prompt asks to run it."""

import ast
import inspect
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch

from postrain.data.files import open_split
from postrain.errors import ConfigError
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from tests.models.conftest import source

ROOT = Path(__file__).parents[2]
LOADERS = {"from_pretrained", "from_config", "HFLM", "LLM"}
# PEFT loads only adapter classes that it defines, so its loaders have no such argument.
WITHOUT_CODE = {"PeftConfig", "PeftModel"}
FILES = sorted([*ROOT.glob("postrain/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "train.py"])
AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoModelForSequenceClassification": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


def loaders(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call that may read a model or tokenizer from a folder or the Hub."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            owner = getattr(getattr(node.func, "value", None), "id", None)
            if name in LOADERS and owner not in WITHOUT_CODE:
                yield node


def trusts(call: ast.Call) -> bool:
    """Whether a call leaves remote code to a default or allows it."""
    values = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
    return [getattr(value, "value", None) for value in values] != [False]


def test_every_loader_forbids_remote_code() -> None:
    calls = [(file, call) for file in FILES for call in loaders(ast.parse(file.read_text(encoding="utf-8")))]
    assert len(calls) >= 12
    assert [f"{file.relative_to(ROOT)}:{call.lineno}" for file, call in calls if trusts(call)] == []


def test_package_never_trusts_remote_code() -> None:
    allowed = [file for file in FILES if "trust_remote_code=True" in file.read_text(encoding="utf-8")]
    assert allowed == []


def test_datasets_has_no_argument_that_runs_loading_scripts() -> None:
    assert "trust_remote_code" not in inspect.signature(datasets.load_dataset).parameters


def test_dataset_loading_script_is_refused_in_one_line(tmp_path: Path) -> None:
    directory = tmp_path / "evil_set"
    directory.mkdir()
    (directory / "evil_set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_split(str(directory), None, "train", None)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def evil(saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that names its own Python code wherever transformers looks, and a user who types y."""
    directory = saved("llama")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(content | {"auto_map": AUTO_MAP}))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
    (directory / "evil.py").write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return directory


@pytest.mark.parametrize("unknown", [False, True], ids=["known_type", "type_of_its_own"])
def test_code_in_model_folder_does_not_run(evil: Path, tmp_path: Path, unknown: bool) -> None:
    if unknown:
        for name, key in (("config.json", "model_type"), ("tokenizer_config.json", "tokenizer_class")):
            content = json.loads((evil / name).read_text())
            (evil / name).write_text(json.dumps(content | {key: "evil"}))
    resolved = source(evil).resolve()
    for read in (load_tokenizer, *(partial(load, dtype=torch.float32) for load in (load_causal, load_scalar))):
        if not unknown:
            read(resolved)
            continue
        with pytest.raises(ConfigError, match=r"cannot be (used|read): [^\n]*$"):
            read(resolved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "evil/kernel"},
        {"attn_implementation": {"": "evil/kernel:evil"}},
        {"text_config": {"experts_implementation": "evil/kernel"}},
    ],
)
def test_config_that_names_hub_code_is_refused(saved: Callable[..., Path], changes: dict[str, object]) -> None:
    directory = saved("llama")
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(ConfigError, match="_implementation names evil/kernel"):
        load_causal(source(directory).resolve(), dtype=torch.float32)


def test_adapter_that_names_a_module_to_import_is_refused(tmp_path: Path) -> None:
    named = {"base_model_name_or_path": "bundled:nano", "peft_type": "LORA"}
    evil = {"megatron_config": {"a": 1}, "megatron_core": "evil"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(named | evil))
    with pytest.raises(ConfigError, match="megatron_config would import"):
        source(tmp_path).resolve()


def test_weights_outside_the_folder_are_refused(saved: Callable[..., Path]) -> None:
    directory = saved("llama")
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="a file elsewhere"):
        source(directory).resolve()
